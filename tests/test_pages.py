"""report.html and --format html in a real browser, without network: they load, filter, and do not execute text."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import metrics
from util import report
from util.documents import Document, Tagged, format_document
from util.split import Split

EVIL = [
    "<script>document.title='run'</script>",
    '"><img',
    "src=x",
    "onerror=document.title='run'>",
    "&amp;",
    "'quoted'",
]


class Labelled:
    """A Split of given sentences, as render_report needs it."""

    spans, entity_texts, scheme = Split.spans, Split.entity_texts, "IOB2"

    def __init__(self, sentences: list[list[str]], tags: list[str], label_list: list[str]):
        self.words, self.lengths = sentences, np.array([len(words) for words in sentences])
        self.sentences = Dataset.from_dict({"tokens": sentences})
        self.label_list = label_list
        self.tags = np.array([label_list.index(tag) for tag in tags])

    def sentence(self, i: int) -> tuple[str, list[str]]:
        return f"a<b>.conll:{i}", self.words[i]


LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
SENTENCES = [["Maria", "Santos", "saw", "New", "York"], ["Oslo", "rained"], EVIL, ["all", "right", "Peter"]]
GOLD = "B-PER I-PER O B-LOC I-LOC".split() + "B-LOC O".split() + ["B-PER"] + ["O"] * 5 + ["O", "O", "B-PER"]
FOUND = "B-PER O O B-PER I-PER".split() + "O O".split() + ["O"] + ["B-LOC"] + ["O"] * 4 + ["O", "O", "B-PER"]


def page() -> str:
    split = Labelled(SENTENCES, GOLD, LABELS)
    tags = np.array([LABELS.index(tag) for tag in FOUND])
    scores = metrics.score(split.tags, tags, split.lengths, LABELS, "IOB2")
    return report.render_report("a <run>", scores, split, tags, np.full(len(tags), 0.75), {("LOC", "Oslo")})


def test_every_error_is_of_one_kind():
    found = page()
    counts = dict(re.findall(r"<tr><td>(missed|spurious|type|boundary)</td>.*?<td>(\d+)</td></tr>", found))
    assert counts == {"missed": "2", "spurious": "1", "type": "1", "boundary": "1"}
    seen, unseen = re.findall(r"<tr><td>(?:seen in train|unseen)</td><td>(\d+)</td><td>([0-9.]+)</td>", found)
    assert seen == ("1", "0.0000") and unseen == ("4", "0.2500")
    assert found.count("<article>") == 3  # of four sentences; the one with the most errors first
    assert found.index("a&lt;b&gt;.conll:0") < found.index("a&lt;b&gt;.conll:2") < found.index("a&lt;b&gt;.conll:1")
    assert "<script>document" not in found and "<img" not in found
    assert "http" not in found and found.count("<script>") == 1


@pytest.mark.parametrize("seed", range(20))
def test_every_span_is_in_one_match(seed):
    random = np.random.default_rng(seed)

    def spans():
        borders = np.sort(random.choice(60, 2 * random.integers(0, 13), replace=False)).reshape(-1, 2)
        return np.column_stack([borders, random.integers(0, 3, len(borders))])

    gold, predicted = spans(), spans()
    found = report.match_spans(gold, predicted)
    assert sorted(m.gold for m in found if m.gold >= 0) == list(range(len(gold)))
    assert sorted(m.predicted for m in found if m.predicted >= 0) == list(range(len(predicted)))
    for kind, g, p in found:
        if kind in ("missed", "spurious"):
            assert (g < 0) == (kind == "spurious") and (p < 0) == (kind == "missed")
            continue
        (first, end, type_g), (begin, stop, type_p) = gold[g].tolist(), predicted[p].tolist()
        assert first < stop and begin < end  # they overlap
        same = (first, end) == (begin, stop)
        assert (kind == "correct") == (same and type_g == type_p)
        assert (kind == "boundary") == (not same and type_g == type_p)
    exact = {tuple(span) for span in gold.tolist()} & {tuple(span) for span in predicted.tolist()}
    assert sum(m.kind == "correct" for m in found) == len(exact)
    missed = [gold[m.gold] for m in found if m.kind == "missed"]
    spurious = [predicted[m.predicted] for m in found if m.kind == "spurious"]
    assert not any(g[0] < p[1] and p[0] < g[1] for g in missed for p in spurious)  # otherwise they would be paired


def test_calibration_of_scores_that_are_right_as_often_as_they_say():
    random = np.random.default_rng(0)
    scores = random.random(20_000)
    rows, error = report.calibration(scores, random.random(20_000) < scores)
    assert len(rows) == 10 and sum(row[1] for row in rows) == 20_000 and error < 0.02
    assert report.calibration(np.full(10, 0.95), np.arange(10) < 5)[1] == pytest.approx(0.45)


def visible(browser) -> list[str]:
    return [article.text for article in browser.find_elements("css selector", "article") if article.is_displayed()]


def opened(browser, path: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    asked = re.findall(
        r'"requestWillBeSent".*?"url":"([^"]+)"', "".join(e["message"] for e in browser.get_log("performance"))
    )
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


def test_the_report_in_a_browser(browser, tmp_path):
    (tmp_path / "report.html").write_text(page(), encoding="utf-8")
    opened(browser, tmp_path / "report.html")
    assert browser.title == "a <run>"
    assert len(visible(browser)) == 3 and EVIL[0] in visible(browser)[1]
    button = browser.find_element("css selector", 'button[data-kind="missed"]')
    assert button.text == "missed 2"
    button.click()
    assert len(visible(browser)) == 2 and browser.find_element("id", "shown").text == "2 shown"
    browser.find_element("css selector", 'button[data-type="LOC"]').click()
    assert [text.splitlines()[0] for text in visible(browser)] == ["a<b>.conll:1"]
    button.click()
    browser.find_element("css selector", 'button[data-type="LOC"]').click()
    assert len(visible(browser)) == 3
    assert browser.get_log("browser") == [] and browser.title != "run"
    for width in (360, 1200):  # of a phone and a desktop: nothing is wider than the window
        browser.set_window_size(width, 800)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_colour_schemes(browser, tmp_path, dark):
    """The contrast by WCAG of highlighted and other text is at least 4.5."""
    (tmp_path / "report.html").write_text(page(), encoding="utf-8")
    feature = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    opened(browser, tmp_path / "report.html")
    colour = "return [...document.querySelectorAll('body, mark')].map(element => getComputedStyle(element))"
    colour += ".map(style => [style.color, style.backgroundColor])"

    def luminance(text: str) -> float:
        parts = [float(x) / 255 for x in re.findall(r"[\d.]+", text)[:3]]
        return float(
            np.dot(
                [0.2126, 0.7152, 0.0722], [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
            )
        )

    pairs = [sorted(map(luminance, pair)) for pair in browser.execute_script(colour)]
    assert len(pairs) > 5 and (pairs[0][0] < 0.1)
    assert all((light + 0.05) / (dark_ + 0.05) >= 4.5 for dark_, light in pairs), pairs


def test_tagged_text_in_a_browser(browser, tmp_path):
    colors = report.type_colors({"PER", "LOC"})
    documents = [Document.from_text(f"{EVIL[0]} Maria in Oslo"), Document.from_text("Maria again")]

    def entity(kind: str, word: str, text: str) -> dict:
        start = text.index(word)
        return {"entity_group": kind, "score": 0.5, "word": word, "start": start, "end": start + len(word)}

    places = (("PER", "Maria"), ("LOC", "Oslo"))
    found = [[entity(*place, d.text) for place in places if place[1] in d.text] for d in documents]
    shown = [format_document(d, Tagged(entities, []), "html", colors) for d, entities in zip(documents, found)]
    html = report.page_start("tagged") + "".join(shown) + report.page_end()
    (tmp_path / "tagged.html").write_text(html, encoding="utf-8")
    opened(browser, tmp_path / "tagged.html")
    assert [button.text for button in browser.find_elements("tag name", "button")] == ["LOC 1", "PER 2"]
    assert browser.title == "tagged" and EVIL[0] in visible(browser)[0]
    browser.find_element("css selector", 'button[data-type="LOC"]').click()
    assert len(visible(browser)) == 1
