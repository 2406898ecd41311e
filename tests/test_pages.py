"""report.html and --format html in a real browser, without network: they load, filter, and do not execute text."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.tensorboard import SummaryWriter

import metrics
from util import charts, entity_errors, report
from util.comparison import ChangedSentence, Comparison, ComparisonRow
from util.curves import read_curves
from util.documents import Document, Tagged, format_document
from util.predictions import write_predictions
from util.split import Split

EVIL = [
    "<script>document.title='run'</script>",
    '"><img',
    "src=x",
    "onerror=document.title='run'>",
    "&amp;",
    "'quoted'",
]


class Labeled:
    """A Split of given sentences, as render_report needs it."""

    spans, entity_texts, scheme, name = Split.spans, Split.entity_texts, "IOB2", "a<b>.conll"

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


CURVES = {
    "train/loss": [(step, 3 / step) for step in range(10, 460, 10)],
    "eval/loss": [(150, 0.114), (300, 0.077), (450, 0.068)],
    "eval/f1": [(150, 0.82), (300, 0.8805), (450, 0.89)],
    "eval/accuracy": [(150, 0.9704), (300, 0.98), (450, 0.985)],
}


def page(**more) -> str:
    split = Labeled(SENTENCES, GOLD, LABELS)
    tags = np.array([LABELS.index(tag) for tag in FOUND])
    scores = metrics.score(split.tags, tags, split.lengths, LABELS, "IOB2")
    scores.pop("accuracy_ci95")  # scores of a checkpoint of an older version have none
    for row in (scores, *scores["per_entity"].values()):
        row |= {f"{name}_ci95": [row[name] / 2, row[name] + 0.1] for name in ("precision", "recall", "f1")}
    more = {"curves": CURVES, "best_step": 300} | more
    return report.render_report("a <run>", scores, split, tags, np.full(len(tags), 0.75), {("LOC", "Oslo")}, **more)


def test_every_error_is_of_one_kind():
    found = page()
    sums = re.search(r'<tr class="all"><td>all</td><td>2</td><td>1</td><td>1</td><td>1</td><td>5</td></tr>', found)
    assert sums and list(entity_errors.ERROR_KINDS) == ["missed", "spurious", "type", "boundary"]
    seen, unseen = re.findall(r"<tr><td>(?:seen in train|unseen)</td><td>(\d+)</td><td>([0-9.]+)</td>", found)
    assert seen == ("1", "0.0000") and unseen == ("4", "0.2500")
    assert found.count("<article>") == 3  # of four sentences; the one with the most errors first
    assert found.index("a&lt;b&gt;.conll:0") < found.index("a&lt;b&gt;.conll:2") < found.index("a&lt;b&gt;.conll:1")
    assert "<script>document" not in found and "<img" not in found
    assert "http" not in found and found.count("<script>") == 1


def tick_positions(figure: str) -> tuple[dict[float, float], dict[float, float]]:
    """Label -> coordinate of the ticks of both axes."""
    x = re.findall(r'<text x="([\d.]+)" y="217" text-anchor="middle">([\d.]+)<', figure)
    y = re.findall(r'<text x="40" y="([\d.]+)" text-anchor="end">([\d.]+)<', figure)
    return {float(label): float(place) for place, label in x}, {float(label): float(place) - 4 for place, label in y}


def between(ticks: dict[float, float], place: float, log: bool) -> float:
    """The value at a coordinate, by the labels of the first and the last tick."""
    (low, start), (high, end) = min(ticks.items()), max(ticks.items())
    share = (place - start) / (end - start)
    return low * (high / low) ** share if log else low + share * (high - low)


@pytest.mark.parametrize("name, log", [("Loss", True), ("Scores", False)])
def test_the_curves_go_through_the_logged_points(name, log):
    (figure,) = (part for part in page().split("<figure>") if part.startswith(f"\n<figcaption>{name}"))
    assert ("(log scale)" in figure) == log and "best model: step 300" in figure
    x_ticks, y_ticks = tick_positions(figure)
    curves = ("train/loss", "eval/loss") if log else ("eval/f1", "eval/accuracy")
    paths = re.findall(r'<path class="curve c\d" d="M([^"H]+)"/>', figure)  # those of the legend have an H
    assert len(paths) == len(curves)
    for path, tag in zip(paths, curves):
        places = [[float(number) for number in place.split(",")] for place in path.split("L")]
        steps = [between(x_ticks, x, False) for x, _ in places]
        assert steps == pytest.approx([step for step, _ in CURVES[tag]], abs=0.1)
        values = [between(y_ticks, y, log) for _, y in places]
        assert values == pytest.approx([value for _, value in CURVES[tag]], rel=0.002)
    guide = re.search(r'<path class="guide" d="M([\d.]+),', figure)
    assert guide and between(x_ticks, float(guide[1]), False) == pytest.approx(300, abs=0.1)


def test_bars_are_proportional_to_f1_and_whiskers_to_the_interval():
    figure = page().partition("<figcaption>F1")[2].partition("</figure>")[0]
    zero, one = (float(x) for x in re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">[01]\.0<', figure))
    bars = re.findall(r'<rect class="dot c1" x="([\d.]+)" y="\d+" width="([\d.]+)".*?<title>(\w+) ([\d.]+)<', figure)
    whiskers = re.findall(r'class="whisker" d="M([\d.]+),\d+v6m0,-3H([\d.]+)', figure)
    assert [name for _, _, name, _ in bars] == ["PER", "LOC"]  # of support 3 and 2
    for (start, width, _, f1), (low, high) in zip(bars, whiskers, strict=True):
        assert float(start) == zero and float(width) == pytest.approx(float(f1) * (one - zero), abs=0.1)
        assert float(low) - zero == pytest.approx(float(f1) / 2 * (one - zero), abs=0.1)
        assert float(high) - zero == pytest.approx((float(f1) + 0.1) * (one - zero), abs=0.1)


def test_scores_have_half_the_width_of_their_interval():
    found = page()
    assert re.search(r"<td>PER</td><td>\d.\d{4} ± \d.\d{3}</td>", found)
    half = re.search(r"<dt>F1</dt><dd>([\d.]+) <small>± ([\d.]+)</small>", found)
    assert half and float(half[2]) == pytest.approx(float(half[1]) / 4 + 0.05, abs=6e-4)
    assert re.search(r"<dt>accuracy</dt><dd>[\d.]+</dd>", found)  # without an interval


@pytest.mark.parametrize(
    "low, high, labels",
    [
        (0.822, 0.984, ["0.80", "0.85", "0.90", "0.95", "1.00"]),
        (0, 7, ["0", "2", "4", "6", "8"]),
        (0, 0, ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]),
        (0.95, 0.95, ["0.90", "0.92", "0.94", "0.96", "0.98", "1.00"]),
        (0.98, 0.9800001, ["0.92", "0.94", "0.96", "0.98", "1.00", "1.02", "1.04"]),
        (0, 2_500_000, ["0", "500k", "1.0M", "1.5M", "2.0M", "2.5M"]),
        (0, 9_000, ["0", "2000", "4000", "6000", "8000", "10k"]),
        (0, 12_000, ["0", "5000", "10k", "15k"]),
    ],
)
def test_ticks_are_round_numbers(low, high, labels):
    axis = charts.linear_axis(low, high, 0, 100)
    assert [label for _, label in axis.ticks] == labels
    assert axis.low <= low and high <= axis.high
    assert axis.ticks[0][0] == 0 and axis.ticks[-1][0] == 100


@pytest.mark.parametrize("last_step", [1, 2, 3, 7, 12, 450, 99_999, 10_000_000])
def test_steps_have_ticks_at_integers(last_step):
    chart = charts.line_chart("Loss", {"training": [(last_step, 0.5)]}, last_step)
    assert chart.x.high == last_step and 2 <= len(chart.x.ticks) <= 6
    places = [place for place, _ in chart.x.ticks]
    assert places == sorted(places) and places[-1] <= charts.RIGHT and len(set(chart.x.ticks)) == len(places)
    assert last_step > 999 or all(label.isdigit() for _, label in chart.x.ticks)


@pytest.mark.parametrize(
    "values", [[3.0, 1e-9], [1e-30, 1.0], [1e-5, 9e-4], [1e-4, 2.5e-4], [4e4, 1.0], [0.1, 0.0], [5.0, 5.0], [0.21, 7.9]]
)
def test_losses_of_any_size_lie_inside_of_the_chart(values):
    chart = charts.line_chart("Loss", {"training": list(enumerate(values, 1))}, log=True)
    assert chart.y.is_log == (min(values) > 0 and max(values) / min(values) >= charts.LOG_RATIO)
    assert all(charts.TOP <= y <= charts.BOTTOM for _, y, _ in chart.curves[0].markers)
    assert 2 <= len(chart.y.ticks) <= 12 and all(len(label) <= 7 for _, label in chart.y.ticks)


def test_long_curves_keep_their_extremes():
    random = np.random.default_rng(0)
    points = [(10 * i, float(value)) for i, value in enumerate(random.random(100_000), 1)]
    points[31_234] = (points[31_234][0], 9.0)
    points[77_777] = (points[77_777][0], -9.0)
    kept = charts.thin(points)
    assert len(kept) <= charts.MAX_POINTS and kept == sorted(kept)
    assert {points[0], points[-1], points[31_234], points[77_777]} <= set(kept) <= set(points)
    assert charts.thin(points[:300]) == points[:300]


def test_names_are_cut_in_the_middle():
    assert charts.shortened("a-type-of-18-chars") == "a-type-of-18-chars"
    assert charts.shortened("a-rather-long-name-1") == "a-rather-…g-name-1"
    assert charts.shortened("人" * 10) == "人人人人…人人人人" and charts.shortened("") == ""


def test_curves_of_a_run_that_was_killed_and_resumed(tmp_path):
    assert read_curves(str(tmp_path)) == {}
    for purge_step, values in ((1, {1: 3.0, 2: 2.0, 3: 9.0, 4: 9.0}), (3, {3: 1.0, 4: float("nan"), 5: 0.5})):
        writer = SummaryWriter(str(tmp_path / "runs"), purge_step=purge_step, filename_suffix=f".{purge_step}")
        for step, value in values.items():
            writer.add_scalar("train/loss", value, step)
        writer.close()
        if purge_step == 1:  # the kill interrupts the last record
            (file,) = (tmp_path / "runs").iterdir()
            file.write_bytes(file.read_bytes()[:-3])
    assert read_curves(str(tmp_path)) == {"train/loss": [(1, 3.0), (2, 2.0), (3, 1.0), (5, 0.5)]}


def test_a_run_without_validation_gets_its_training_curves(tmp_path):
    writer = SummaryWriter(str(tmp_path / "runs"), purge_step=1)
    writer.add_scalar("train/loss", 0.5, 10)
    writer.close()
    report.write_report(str(tmp_path), {}, None, None, SimpleNamespace(entities=set()), 20)
    found = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "training 0.5000 at step 10" in found and "best model: step 20" in found
    assert "Scores" not in found and "<script>" not in found


def test_scores_without_predictions_or_curves():
    split = Labeled(SENTENCES, GOLD, LABELS)
    scores = metrics.score(split.tags, split.tags, split.lengths, LABELS, "IOB2")
    found = report.render_report("x", scores, split)
    assert "<svg" in found and "Errors" not in found and 'id="training"' not in found


def test_at_the_end_the_report_has_all_steps_and_the_predictions_of_the_best_model(tmp_path):
    split = Labeled(SENTENCES, GOLD, LABELS)
    tags = np.array([LABELS.index(tag) for tag in FOUND])
    scores = metrics.score(split.tags, tags, split.lengths, LABELS, "IOB2")
    predictions = tags, np.full(len(tags), 0.75)
    train_set = SimpleNamespace(entities={("LOC", "Oslo")})
    writer = SummaryWriter(str(tmp_path / "runs"), purge_step=1)
    pages = []
    for step, saved in ((10, predictions), (20, None)):
        writer.add_scalar("train/loss", 0.5, step)
        writer.flush()
        write_predictions(str(tmp_path), "eval", split, predictions)
        report.write_report(str(tmp_path), scores, split, saved, train_set, 10)
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
    writer.close()
    first, last = (page.partition("<h2>Scores by type</h2>")[2] for page in pages)
    assert first == last and "<article>" in last
    assert "at step 20" in pages[1] and "at step 20" not in pages[0] and "best model: step 10" in pages[1]
    (tmp_path / "eval_predictions.conll").unlink()  # a run that an older version began
    report.write_report(str(tmp_path), scores, split, None, train_set, 10)
    assert "<article>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_many_types():
    """The confusion matrix has a limit; every type has a bar."""
    labels = ["O", *(f"B-{'long-' * 6}{i}" for i in range(200))]
    tags = np.arange(2000) % 201
    split = Labeled([["w"] * 10] * 200, [labels[i] for i in tags], labels)
    predicted = np.where(np.arange(2000) % 7, tags, (tags + 1) % 201)
    scores = metrics.score(split.tags, predicted, split.lengths, labels, "IOB2")
    found = report.render_report("x", scores, split, predicted, np.ones(2000), max_sentences=0)
    assert found.count('<rect class="dot') == 200 and "The 50 of 200 types" in found
    assert found.count('<td class="right"') == 50 and len(found) < 300_000


@pytest.mark.parametrize("seed", range(20))
def test_every_span_is_in_one_match(seed):
    random = np.random.default_rng(seed)

    def spans():
        borders = np.sort(random.choice(60, 2 * random.integers(0, 13), replace=False)).reshape(-1, 2)
        return np.column_stack([borders, random.integers(0, 3, len(borders))])

    gold, predicted = spans(), spans()
    found = entity_errors.match_spans(gold, predicted)
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
    rows, error = entity_errors.calibration(scores, random.random(20_000) < scores)
    assert len(rows) == 10 and sum(row[1] for row in rows) == 20_000 and error < 0.02
    assert entity_errors.calibration(np.full(10, 0.95), np.arange(10) < 5)[1] == pytest.approx(0.45)


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
    assert fits(browser)


def fits(browser) -> bool:
    """Whether nothing is wider than the window of a phone and of a desktop."""
    script, widths = "return document.documentElement.scrollWidth <= window.innerWidth", (360, 1200)
    found = []
    for width in widths:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        found.append(browser.execute_script(script))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return all(found)


def luminance(color: str) -> float:
    """Of rgb(...) or color(srgb ...), as WCAG defines it."""
    parts = [float(x) / (1 if "srgb" in color else 255) for x in re.findall(r"[\d.]+", color)[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


# The colors of all texts, each with that of the nearest background, and of the curves and bars with that of the page.
COLORS = """
const background = e => {
  for (; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (color !== "rgba(0, 0, 0, 0)") return color;
  }
};
const names = "body, h1, h2, p, small, td, th, dt, dd, mark, button, figcaption, i, text";
const texts = [...document.querySelectorAll(names)];
const shapes = [...document.querySelectorAll("path.curve, path.dot, rect.dot, circle")];
return [
  texts.map(e => [e.tagName === "text" ? getComputedStyle(e).fill : getComputedStyle(e).color, background(e)]),
  shapes.map(e => [getComputedStyle(e).color, background(e)]),
];"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_color_schemes(browser, tmp_path, dark):
    """The contrast by WCAG is at least 4.5 for text, and 3 for curves and bars."""
    pages = {"report.html": page(), "comparison.html": report.render_comparison(compared())}
    feature = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    for name, html in pages.items():
        (tmp_path / name).write_text(html, encoding="utf-8")
        opened(browser, tmp_path / name)
        texts, shapes = browser.execute_script(COLORS)
        assert len(texts) > 80 and len(shapes) >= 4
        assert (luminance(texts[0][1]) < 0.1) == dark  # the page
        for pairs, least in ((texts, 4.5), (shapes, 3)):
            for pair in pairs:
                low, high = sorted(map(luminance, pair))
                assert (high + 0.05) / (low + 0.05) >= least, (name, pair)


def compared() -> Comparison:
    """Two runs on SENTENCES."""

    def row(name: str, support: int, f1_a: float, f1_b: float, p_value: float) -> ComparisonRow:
        a, b = ({"precision": f1, "recall": f1, "f1": f1} for f1 in (f1_a, f1_b))
        difference = f1_b - f1_a
        return ComparisonRow(name, support, a, b, difference, [difference - 0.1, difference + 0.1], p_value)

    maria, york, oslo, evil = (0, 2, "PER"), (3, 5, "LOC"), (0, 1, "LOC"), (0, 1, "<b>")
    changed = [
        ChangedSentence(1, SENTENCES[0], [maria, york], [york], [maria, york]),
        ChangedSentence(2, SENTENCES[1], [oslo], [oslo], []),
        ChangedSentence(3, SENTENCES[2], [], [evil], [(1, 2, "PER")]),
    ]
    rows = [row("LOC", 2, 0.5, 0.75, 0.25), row("PER", 3, 0.8, 0.8, 1.0), row("all", 5, 0.6, 0.7, 0.0001)]
    names = ("runs/a<b>", "a-rather-long-name")
    return Comparison(names, "test", 4, 16, rows, row("accuracy", 16, 0.9, 0.95, 0.5), changed, "a <note>")


def test_the_comparison_in_a_browser(browser, tmp_path):
    (tmp_path / "comparison.html").write_text(report.render_comparison(compared()), encoding="utf-8")
    opened(browser, tmp_path / "comparison.html")
    assert browser.title == "runs/a<b> and a-rather-long-name on test"
    text = browser.find_element("tag name", "body").text
    for part in (
        "+0.1000",
        "[+0.000, +0.200]",
        "< 0.001",
        "3 of 4 sentences",
        "better in 1, worse in 1",
        "…long-name",
        "a <note>",
    ):
        assert part in text, part
    order, widths = "return [...document.querySelectorAll('rect')]", ".filter(e => e.closest('svg[role=img]'))"
    bars = browser.execute_script(f"{order}{widths}.map(e => e.getBoundingClientRect().width)")
    assert np.array(bars) / bars[0] == pytest.approx(np.array([0.8, 0.8, 0.5, 0.75]) / 0.8, abs=0.01)  # PER, LOC
    shown = [button.text for button in browser.find_elements("tag name", "button")]
    assert shown == ["better 1", "same 1", "worse 1", "<b> 1", "LOC 2", "PER 2"]
    browser.find_element("css selector", 'button[data-type="LOC"]').click()
    assert [text.splitlines()[0] for text in visible(browser)] == ["sentence 1", "sentence 2"]
    browser.find_element("css selector", 'button[data-change="worse"]').click()
    assert [text.splitlines()[0] for text in visible(browser)] == ["sentence 2"]
    outlined = browser.execute_script("return document.querySelectorAll('mark[data-kind=wrong]').length")
    assert outlined == 2 and browser.get_log("browser") == [] and browser.title != "run"
    assert fits(browser)


def test_runs_without_differences():
    found = report.render_comparison(dataclasses.replace(compared(), changed=[]))
    assert "0 of 4 sentences" in found and "<article" not in found and "<script>" not in found


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
