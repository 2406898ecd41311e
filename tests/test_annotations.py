# ruff: noqa: E501 - one record per line
"""Records of every annotation tool give the right words and tags, or one helpful error."""

import json
import re

import hypothesis
import pytest
from conftest import data_args
from hypothesis import strategies

import data
from util.annotations import Columns, as_record, describe_record, label_columns, pick_column, sentences, text_columns
from util.file_facts import file_facts
from util.list_cells import parse_list
from util.spans import split_words, utf16_offsets


def read(*records: dict, **columns) -> list[tuple[str, str]]:
    """Records of one file -> "words", "tags" of each. Words and tags of these tests hold no blank."""
    return [(" ".join(s["tokens"]), " ".join(s["tags"])) for s in read_all(*records, **columns)]


def read_all(*records: dict, **columns) -> list[dict]:
    lines = [([i], record) for i, record in enumerate(records, 1)]
    facts = file_facts(iter(lines), Columns(**columns), "f")
    return list(sentences(lines, "f", None, facts))


def notes(*records: dict, **columns) -> list[str]:
    return [note for sentence in read_all(*records, **columns) for note in sentence["notes"]]


def fails(message: str, *records: dict, **columns) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read(*records, **columns)


def facts(*records: dict, **columns) -> Columns:
    return file_facts((([i], record) for i, record in enumerate(records, 1)), Columns(**columns), "f")


# ---- Prodigy

HASHES = {"_input_hash": -1, "_task_hash": 2, "_view_id": "ner_manual", "_timestamp": 1}
TOKENS = [{"text": "It", "start": 0, "end": 2, "id": 0, "ws": True}, {"text": "rained", "start": 3, "end": 9, "id": 1}]


def test_prodigy_without_spans():
    rained = {"text": "It rained", "tokens": TOKENS, "answer": "accept"} | HASHES
    rejected, ignored = {"text": "Hm", "answer": "reject"}, {"text": "Eh", "tokens": TOKENS[:1], "answer": "ignore"}
    bare = {"text": "Anna sang", "answer": "accept"}
    oslo = {
        "text": "Oslo",
        "spans": [{"start": 0, "end": 4, "token_start": 0, "token_end": 0, "label": "LOC"}],
        "answer": "accept",
    }
    records = (rained, rejected, bare, oslo, ignored)
    assert read(*records) == [("It rained", "O O"), ("", ""), ("Anna sang", "O O"), ("Oslo", "B-LOC"), ("", "")]
    assert notes(*records) == [
        "left out (answer other than accept): reject",
        "left out (answer other than accept): ignore",
    ]
    assert read(rejected, text="text") == read(rejected, text="1") == [("", "")]


def test_prodigys_classifications_are_refused():
    for extra in ({"label": "NEWS"}, {"options": [{"id": "A", "text": "a"}], "accept": ["A"]}):
        fails("f:1: it is a classification of the whole text by Prodigy", {"text": "Hm", "answer": "accept"} | extra)


def test_an_answer_of_another_data_set_is_no_prodigy():
    assert read({"tokens": ["a"], "ner_tags": ["B-X"], "answer": "reject"}) == [("a", "B-X")]
    assert read({"text": "a b", "label": [[0, 1, "X"]], "answer": "yes"}) == [("a b", "B-X O")]
    fails("f:1: no column 'ner_tags'", {"text": "a b", "answer": "42"})


def test_words_with_tags_are_read_beside_a_text_with_spans():
    record = {"text": "a b", "tokens": ["a", "b"], "ner_tags": ["O", "B-X"], "spans": []}
    assert read(record) == [("a b", "O B-X")]


# ---- Label Studio


def region(start, end, text=None, label="PER", control="labels") -> dict:
    return {"start": start, "end": end, control: [label]} | ({} if text is None else {"text": text})


def task(text: str, *regions: dict, kind="labels", name="annotations") -> dict:
    results = [{"id": "x", "from_name": "label", "to_name": "text", "type": kind, "value": value} for value in regions]
    results.append({"type": "choices", "from_name": "c", "value": {"choices": ["news"]}})
    results.append({"type": "relation", "from_id": "x", "to_id": "x", "direction": "right", "labels": ["of"]})
    results.append({"type": "textarea", "value": {"start": 0, "end": 4, "text": ["Anna!"]}})
    return {"id": 1, "data": {"text": text, "tags": "a b"}, name: [{"id": 2, "result": results}], "predictions": []}


def test_json_min_without_regions():
    anna = {"text": "Anna sang", "id": 1, "label": [region(0, 4, "Anna")], "annotator": 1}
    rained = {"text": "It rained", "id": 2, "annotator": 1}
    for records in ((anna, rained), (rained, anna)):
        assert sorted(read(*records)) == [("Anna sang", "B-PER O"), ("It rained", "O O")]
        assert notes(*records) == ["read as without entities, as it has no regions: 'It rained'"]
    fails("f:1: no column 'ner_tags'", rained)
    fails("f:2: no column 'ner_tags'", {"text": "Anna sang", "label": [[0, 4, "PER"]]}, rained)
    fails("f:2: no column 'ner_tags'", {"text": "a", "label": [{"start": 0, "end": 1, "label": "X"}]}, rained)
    fails("f:2: no column 'tokens'", anna, {"id": 2})
    assert facts(anna).regions == "label" and facts(rained).regions is None
    named = {"text": "Anna", "who": [region(0, 4)]}
    assert read(named, {"text": "a"}, labels="who") == [("Anna", "B-PER"), ("a", "O")]
    assert read(anna | {"tags": "of two"}) == [("Anna sang", "B-PER O")]  # a column of the data


def test_csv_of_label_studio():
    cell = json.dumps([region(0, 4, "Anna")])
    rows = [
        {"text": "Anna sang", "id": "1", "label": cell, "annotator": "1"},
        {"text": "It rained", "id": "2", "label": "", "annotator": "1"},
    ]
    assert read(*rows) == [("Anna sang", "B-PER O"), ("It rained", "O O")]
    assert len(notes(*rows)) == 1
    fails("f:1: 2 words but 0 tags", rows[1])
    assert read({"text": "Anna sang", "label": '[[0, 4, "PER"]]'}) == [("Anna sang", "B-PER O")]
    assert read({"text": "[Anna] sang", "label": "[(1, 5, 'PER')]"}) == [("[ Anna ] sang", "O B-PER O O")]


@pytest.mark.parametrize(
    ("text", "span", "tags"),
    [
        ("Bank  of Oslo opened", region(0, 13, "Bank of Oslo"), "B-PER I-PER I-PER O"),
        ("Bank\nof Oslo", region(0, 12, "Bank\\nof Oslo"), "B-PER I-PER I-PER"),
        ("Bank of\u00a0Oslo", region(0, 12, "Bank\t of Oslo "), "B-PER I-PER I-PER"),
        ("Anna Berg sang", region(1, 8, "Anna Berg"), "B-PER I-PER O"),  # the offsets cut two words
        ("Anna Berg sang", region(0, 9, "nna Ber"), "B-PER I-PER O"),  # the text does
    ],
)
def test_quoted_text_that_differs_in_blanks_or_granularity(text, span, tags):
    assert [found for _, found in read(task(text, span))] == [tags]
    assert notes(task(text, span)) == []


@pytest.mark.parametrize(
    ("start", "end", "quoted"), [(0, 4, "Berg"), (0, 9, "Anna"), (0, 4, "Anna Berg"), (5, 9, ""), (0, 4, "anna")]
)
def test_quoted_text_of_other_words_is_an_error(start, end, quoted):
    fails(f"f:1: span {start}-{end} PER is ", task("Anna Berg sang", region(start, end, quoted)))


def test_a_span_and_its_text_that_both_cut_a_word():
    fails("f:1: span 1-3 PER 'nn' cuts the word 'Anna'", task("Anna", region(1, 3, "nna")))
    assert read(task("Anna", region(1, 3, "nna")), widen_spans=True) == [("Anna", "B-PER")]


def test_completions_of_old_versions():
    old = task("Anna sang", region(0, 4, "Anna"), name="completions")
    for key in ("was_cancelled", "skipped"):
        skipped = old | {"completions": [{key: True, "result": []}]}
        assert read(old, skipped) == [("Anna sang", "B-PER O"), ("", "")]
        assert read(old | {"completions": skipped["completions"] + old["completions"]}) == [("Anna sang", "B-PER O")]


XPATH = {"start": "/div[1]/p[2]/text()[1]", "end": "/div[1]/p[4]/text()[3]", "startOffset": 2, "endOffset": 81}


def test_other_controls_are_read_or_refused_by_name():
    assert read(task("Anna sang", region(0, 4, "Anna", control="hypertextlabels"), kind="hypertextlabels")) == [
        ("Anna sang", "B-PER O")
    ]
    assert read({"text": "Anna sang", "label": [region(0, 4, control="namelabels")]}) == [("Anna sang", "B-PER O")]
    cases = {
        "hypertextlabels marks places in HTML by XPaths": XPATH | {"hypertextlabels": ["Car"]},
        "labels marks places in HTML by XPaths": XPATH | {"labels": ["Car"]},
        "paragraphlabels marks parts of a dialogue": {
            "start": "0",
            "end": "0",
            "startOffset": 1,
            "endOffset": 2,
            "paragraphlabels": ["A"],
        },
        "paragraphlabels marks parts": {
            "start": 0,
            "end": 0,
            "startOffset": 1,
            "endOffset": 2,
            "paragraphlabels": ["A"],
        },
        "timeserieslabels marks times": {"start": 0, "end": 4, "instant": False, "timeserieslabels": ["Run"]},
        "labels marks times": {"start": 0, "end": 3, "channel": 0, "labels": ["Speech"]},
        "rectanglelabels marks regions of an image": {
            "x": 1.5,
            "y": 2,
            "width": 3,
            "height": 4,
            "rectanglelabels": ["Car"],
        },
    }
    for message, value in cases.items():
        kind = message.split()[0]
        fails(f"f:1: {message}", task("Anna sang", value, kind=kind))
        fails(f"f:1: {message}", task("Anna sang", value, kind=kind) | {"data": {"html": "<p>Anna</p>"}})
        fails(f"f:1: {message}", {"text": "Anna sang", "label": [value]})
    fails("f:1: its region", task("Anna", {"start": 0, "end": 4, "text": "Anna"}))
    fails("f:1: no text: ", task("", region(0, 1)) | {"data": {"tokens": ["a"]}})


# ---- UTF-16

SMILE = "\U0001f600"
CHINESE = {"text": SMILE + "王小明在北京。", "label": [[2, 5, "PER"], [6, 8, "LOC"]]}


def test_offsets_that_both_counts_allow_need_the_flag():
    way_out = "pass --span_offsets characters or --span_offsets utf16"
    fails(
        f"f:2: span 2-5 PER is '小明在' in characters and '王小明' in UTF-16 units; {way_out}",
        {"text": "a", "label": []},
        CHINESE,
    )
    words = f"{SMILE} 王 小 明 在 北 京 。"
    assert read(CHINESE, span_offsets="utf16") == [(words, "O B-PER I-PER I-PER O B-LOC I-LOC O")]
    assert read(CHINESE, span_offsets="characters") == [(words, "O O B-PER I-PER I-PER O B-LOC I-LOC")]


def test_spans_that_fit_in_one_count_decide_for_the_file():
    in_utf16 = {"text": f"{SMILE} Anna sang", "label": [[3, 7, "PER"]]}
    in_characters = {"text": f"{SMILE} Anna sang", "label": [[2, 6, "PER"]]}
    plain = {"text": "Oslo", "label": [[0, 4, "LOC"]]}
    assert read(plain, CHINESE, in_utf16)[1] == (f"{SMILE} 王 小 明 在 北 京 。", "O B-PER I-PER I-PER O B-LOC I-LOC O")
    assert read(CHINESE, in_characters)[0][1] == "O O B-PER I-PER I-PER O B-LOC I-LOC"
    assert notes(plain, in_utf16) == ["spans counted in UTF-16 units: 'Anna'"] and notes(in_characters) == []
    assert facts(plain).span_offsets is None and facts(in_utf16).span_offsets == "utf16"
    fails("f:3: span 2-6 PER ' Ann' cuts the word 'Anna'", in_utf16, in_utf16, in_characters)
    fails("f:1: spans that fit the words: 1 only in characters, 1 only in UTF-16 units; pass", in_characters, in_utf16)
    outside = {"text": f"{SMILE}Anna", "label": [[2, 6, "PER"]]}
    assert read(outside) == [(f"{SMILE} Anna", "O B-PER")]
    fails("f:2: span 2-7 PER lies outside the text of 6 UTF-16 units", outside, outside | {"label": [[2, 7, "PER"]]})
    fails("f:2: span 1-6 PER cuts a character", outside, outside | {"label": [[1, 6, "PER"]]})


def test_quoted_text_decides_the_count():
    text = CHINESE["text"]
    assert facts(task(text, region(2, 5, "王小明"))).span_offsets == "utf16"
    assert facts(task(text, region(2, 5, "小明在"))).span_offsets == "characters"
    assert facts(task(f"{SMILE} Anna sang", region(3, 7, "Anna"))).span_offsets == "utf16"
    assert facts(task(f"{SMILE} Bank  of Oslo", region(3, 16, "Bank of Oslo"))).span_offsets == "utf16"
    repeated = task(f"{SMILE}天天天", region(2, 3, "天"))
    fails("f:1: span 2-3 PER is '天' in characters and '天' in UTF-16 units", repeated)


def test_invalid_records_are_skipped_until_they_are_read():
    good = {"text": f"{SMILE} Anna", "label": [[3, 7, "PER"]]}
    assert (
        facts({"text": SMILE}, {"text": SMILE, "label": [3]}, {"text": SMILE, "label": [[0]]}, {}, good).span_offsets
        == "utf16"
    )


def test_the_facts_are_found_without_reading_further_than_needed():
    def endless(record):
        while True:
            yield [1], record

    spans = {"text": f"{SMILE} Anna", "label": [[3, 7, "PER"]]}
    assert file_facts(endless(spans), Columns(), "f").span_offsets == "utf16"
    words = {"tokens": [SMILE], "tags": ["O"]}
    assert file_facts(endless(words), Columns(), "f") == Columns()
    tagged = {"text": f"{SMILE} Anna", "label": [[3, 7, "PER"]], "topics": ["a"]}
    assert facts(*[{"text": "a", "label": [[0, 1, "X"]], "topics": ["a"]}] * 2000, tagged).span_offsets == "utf16"


# Words that begin and end with a letter, so that most shifts by one cut a word; some Han, in which none does.
WORDS = strategies.sampled_from(
    ["Anna", "Berg", "x", SMILE, "\U00020000", "\U0001d41a\U0001d41b", "王", "Oslo", ".", "\U0001f1f3\U0001f1f4"]
)
ENTITIES = strategies.lists(
    strategies.tuples(strategies.lists(WORDS, min_size=1, max_size=3), strategies.sampled_from(["", "PER", "LOC"])),
    min_size=1,
    max_size=6,
)


def annotate(parts, separator: str, utf16: bool) -> dict:
    text, spans = "", []
    for words, kind in parts:
        text += separator if text else ""
        start = len(text)
        text += separator.join(words)
        if kind:
            spans.append([start, len(text), kind])
    if utf16:
        units = {character: unit for unit, character in utf16_offsets(text).items()}
        spans = [[units[start], units[end], kind] for start, end, kind in spans]
    return {"text": text, "label": spans}


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(
    corpus=strategies.lists(
        strategies.tuples(ENTITIES, strategies.sampled_from([" ", "  ", "\n"])), min_size=1, max_size=4
    )
)
def test_utf16_offsets_are_read_as_characters_are_or_refused(corpus):
    expected = list(sentences([([1], annotate(*one, utf16=False)) for one in corpus], "f", None, Columns()))
    outcomes = set()
    for utf16 in (False, True):
        records = [annotate(*one, utf16=utf16) for one in corpus]
        for flag in (None, "utf16" if utf16 else "characters"):
            try:
                found = read_all(*records, span_offsets=flag)
            except ValueError as error:
                assert flag is None and "--span_offsets" in str(error)
                outcomes.add("refused")
                continue
            assert [(s["tokens"], s["tags"]) for s in found] == [(s["tokens"], s["tags"]) for s in expected]
            outcomes.add("read")
    assert "read" in outcomes


def test_utf16_offsets_of_a_text():
    assert utf16_offsets(f"a{SMILE}b") == {0: 0, 1: 1, 3: 2, 4: 3}
    assert split_words(f"{SMILE}王b") == [(0, 1), (1, 2), (2, 3)]


# ---- spans under other names


@pytest.mark.parametrize("kind", ["label", "type", "tag", "entity", "entity_group", "entity_type", "category"])
@pytest.mark.parametrize(
    ("start", "end"), [("start", "end"), ("start_offset", "end_offset"), ("start_char", "end_char"), ("begin", "end")]
)
def test_names_of_the_keys_of_a_span(start, end, kind):
    assert read({"text": "in Oslo", "entities": [{start: 3, end: 7, kind: "LOC"}]}) == [("in Oslo", "O B-LOC")]


def test_spans_that_would_be_misread_are_refused():
    token = {"start": 1, "end": 2, "start_char": 3, "end_char": 7, "label": "LOC"}  # of spaCy: start counts words
    assert read({"text": "in Oslo", "entities": [token]}) == [("in Oslo", "O B-LOC")]
    fails("f:1: {", {"text": "Oslo", "entities": [{"entity": "B-LOC", "word": "Oslo", "start": 0, "end": 4}]})
    fails("f:1: {", {"text": "Oslo", "entities": [{"entity": "Oslo", "start": 0, "end": 4}]})
    assert read({"text": "Oslo", "entities": [{"entity": "Oslo", "type": "LOC", "start": 0, "end": 4}]}) == [
        ("Oslo", "B-LOC")
    ]
    fails(
        'f:1: ["T1", "LOC", [[0, 4]]] is an entity as brat writes it',
        {"text": "Oslo", "entities": [["T1", "LOC", [[0, 4]]]]},
    )


# ---- spaCy, GLiNER, SpERT and others


def test_spacy():
    assert read(as_record(["Anna sang", {"entities": [[0, 4, "PER"]]}])) == [("Anna sang", "B-PER O")]
    assert read(as_record(["It rained", {"entities": []}])) == [("It rained", "O O")]
    assert as_record({"tokens": []}) == {"tokens": []}
    for value in (1, "a", [1, 2], ["a"], ["a", {"cats": {}}], ["a", {"entities": 1}], ["a", {"entities": []}, 1], None):
        with pytest.raises(ValueError, match=re.escape(f"{json.dumps(value)} is not an object with columns")):
            as_record(value)
    doc = {
        "text": "Anna sang",
        "ents": [{"start": 0, "end": 4, "label": "PER"}],
        "tokens": [{"id": 0, "start": 0, "end": 4}, {"id": 1, "start": 5, "end": 9}],
    }
    assert read(doc, doc | {"ents": []}) == [("Anna sang", "B-PER O"), ("Anna sang", "O O")]
    fails(
        'f:1: its "paragraphs" are nested JSON as spaCy 2', {"id": 0, "paragraphs": [{"raw": "Anna", "sentences": []}]}
    )


def test_token_spans():
    gliner = {"tokenized_text": ["Anna", "Berg", "sang"], "ner": [[0, 1, "person"], [2, 2, "act"]]}
    assert read(gliner, gliner | {"text": "Anna Berg sang", "ner": []}) == [
        ("Anna Berg sang", "B-person I-person B-act"),
        ("Anna Berg sang", "O O O"),
    ]
    fails('f:1: span 1-2 X ["Berg", "sang"] overlaps another one', gliner | {"ner": [[0, 1, "X"], [1, 2, "X"]]})
    for span in ([2, 3, "X"], [-1, 0, "X"], [1, 0, "X"]):
        fails(f"f:1: span {span[0]}-{span[1]} X lies outside the 3 words", gliner | {"ner": [span]})
    spert = {
        "tokens": ["Anna", "Berg", "sang"],
        "entities": [{"type": "Peop", "start": 0, "end": 2}],
        "relations": [],
        "orig_id": 7,
    }
    assert read(spert, spert | {"entities": []}) == [("Anna Berg sang", "B-Peop I-Peop O"), ("Anna Berg sang", "O O O")]
    fails("f:1: span 2-4 X lies outside", spert | {"entities": [{"type": "X", "start": 2, "end": 4}]})
    fails('f:1: a tag is [0, 4, "LOC"]', {"tokens": ["Oslo"], "label": [[0, 4, "LOC"]]})
    fails("f:1: a tag is {", {"tokens": ["Oslo"], "entities": [{"type": "LOC", "start": 0, "end": 0}]})
    fails(
        'f:1: its "ner" has the "index" of every word, as W2NER',
        {"sentence": ["a", "b"], "ner": [{"index": [0], "type": "X"}], "word": []},
    )
    fails(
        'f:1: its "sentences" with "ner" are a document as DyGIE',
        {"doc_key": "a", "sentences": [["a"]], "ner": [[[0, 0, "X"]]]},
    )


# ---- lists in cells


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("['Anna', 'sang']", ["Anna", "sang"]),
        ('["Anna", "sang"]', ["Anna", "sang"]),
        ("['Anna' 'sang']", ["Anna", "sang"]),
        ("['Anna'\n 'sang']", ["Anna", "sang"]),
        ("[0, 1]", [0, 1]),
        ("[ 0 10]", [0, 10]),
        ("[]", []),
        ("""["it's" 'a]b' '[c' '"']""", ["it's", "a]b", "[c", '"']),
        (r"['it\'s', 'a\\b', '\u00e9', '...']", ["it's", "a\\b", "é", "..."]),
        ("[np.str_('Anna'), np.str_('sang')]", ["Anna", "sang"]),
        ("[np.int64(3), np.int64(0)]", [3, 0]),
        ('[{"start": 0}]', [{"start": 0}]),
        ("[{'start': 0}]", [{"start": 0}]),
        ("[(0, 4, 'PER')]", [(0, 4, "PER")]),
        ("[['a' 'b']]", None),
        ("['a''b']", None),
        ("['a', b]", None),
        ("[a, b]", None),
        ("['a'", None),
        ("a", None),
    ],
)
def test_parse_list(cell, values):
    assert parse_list(cell) == values


def test_cells_of_lists():
    assert read({"tokens": "['Anna' 'sang']", "tags": "['B-PER' 'O']"}) == [("Anna sang", "B-PER O")]
    assert read({"tokens": '["Anna", "sang"]', "tags": "[1, 0]"}) == [("Anna sang", "1 0")]
    assert read({"tokens": "['Anna', 'sang']", "tags": "B-PER O"}) == [("Anna sang", "B-PER O")]
    assert read({"Sentence": "Anna sang .", "POS": "['A', 'B', 'C']", "Tag": "['B-PER', 'O', 'O']"}) == [
        ("Anna sang .", "B-PER O O")
    ]
    assert read({"tokens": "[ Music ]", "tags": "O O O"}) == [("[ Music ]", "O O O")]
    assert read({"text": "[laughter]", "tags": ["O"]}) == [("[laughter]", "O")]
    assert read({"tokens": "[ NN ]", "tags": "[ NN ]"}, task="pos") == [("[ NN ]", "[ NN ]")]
    fails("f:1: ['a' ... 'b'] is a list that numpy shortened", {"tokens": "['a' ... 'b']", "tags": "['O' 'O']"})
    fails("f:1: [0 0 ... 0] is a list that numpy shortened", {"tokens": "a b", "tags": "[0 0 ... 0]"})
    fails("f:1: [B-PER, O] looks like a list", {"tokens": "[Anna, sang]", "tags": "[B-PER, O]"})
    fails("f:1: ['it''s', 'b'] looks like a list", {"tokens": "['it''s', 'b']", "tags": "['O', 'O']"})
    fails("f:1: [Anna, sang] looks like a list", {"tokens": "[Anna, sang]", "tags": ["O", "O"]})
    fails("f:1: 2 words but 1 tags", {"tokens": "['a', 'b']", "tags": "['O']"})


# ---- columns


def test_columns_named_after_the_task_are_first():
    header = ["Sentence #", "Word", "POS", "Tag"]
    for task_name, expected in (("pos", "POS"), ("ner", "Tag")):
        columns = Columns(task=task_name)
        assert pick_column(header, "", label_columns(columns)) == expected
        assert pick_column(header, "", text_columns(columns)) == "Word"
    assert pick_column(["word", "tag", "ner"], "", label_columns(Columns())) == "ner"
    assert pick_column(["id", "upos", "tags"], "", label_columns(Columns(task="pos"))) == "upos"
    assert pick_column(["a", "b", "b"], "", ["a"]) == "a"
    with pytest.raises(ValueError, match="duplicate column 'b'"):
        pick_column(["a", "b", "b"], "", ["b"])


def test_the_flag():
    assert data.columns_of(data_args(span_offsets="utf16")) == Columns(span_offsets="utf16")
    assert data.columns_of(data_args()) == Columns()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"tokens": ["a"], "ner_tags": ["O"]}, "words 'tokens', tags 'ner_tags'"),
        ({"Sentence": "a b", "Tag": "['O', 'O']"}, "words 'Sentence' split at blanks, tags 'Tag'"),
        ({"text": "a", "label": [[0, 1, "X"]]}, "text 'text', spans 'label'"),
        ({"text": "a", "answer": "accept"}, "text and spans of Prodigy"),
        (task("Anna", region(0, 4)), "text 'text', regions of Label Studio"),
        ({"text": "Anna", "label": [region(0, 4)]}, "text 'text', regions of Label Studio 'label'"),
        ({"text": f"{SMILE} a", "label": [[3, 4, "X"]]}, "text 'text', spans 'label', counted in UTF-16 units"),
        ({"tokenized_text": ["a"], "ner": []}, "words 'tokenized_text', token spans 'ner' (GLiNER)"),
        ({"tokens": ["a"], "entities": [], "relations": []}, "words 'tokens', token spans 'entities' (SpERT)"),
    ],
)
def test_how_a_record_is_described(record, expected):
    assert describe_record(record, facts(record)) == expected


# ---- several columns that may hold the tags or the spans of a text

PER = [{"start": 0, "end": 4, "label": "PER"}]
FLAIR = [{"text": "Anna", "start_pos": 0, "end_pos": 4, "labels": [{"value": "PER", "confidence": 0.9}]}]


@pytest.mark.parametrize(
    ("columns", "tags"),
    [
        ({"labels": [], "entities": FLAIR}, "B-PER O"),
        ({"labels": [{"value": "NEWS", "confidence": 1.0}], "entities": FLAIR}, "B-PER O"),
        ({"tags": [], "entities": PER}, "B-PER O"),
        ({"ner": [], "entities": PER}, "B-PER O"),
        ({"tags": ["music", "news"], "entities": PER}, "B-PER O"),
        ({"tags": ["music", "news"], "entities": []}, "O O"),
        ({"tags": ["B-PER", "O"], "spans": []}, "B-PER O"),
        ({"tags": "B-PER O", "entities": []}, "B-PER O"),
        ({"tags": ["music"], "spans": PER, "answer": "accept"}, "B-PER O"),
        ({"label": PER, "entities": PER}, "B-PER O"),
        ({"entities": ["B-PER", "O"]}, "B-PER O"),
    ],
)
def test_the_column_that_is_filled_counts(columns, tags):
    assert read({"text": "Anna sang"} | columns) == [("Anna sang", tags)]


def test_two_filled_columns_need_the_flag():
    both = {"text": "Anna sang", "tags": ["B-PER", "O"], "entities": [[5, 9, "ACT"]]}
    fails("f:1: 'entities' holds spans and 'tags' holds tags of the text; choose one with --label_column_name", both)
    assert read(both, labels="tags") == [("Anna sang", "B-PER O")]
    assert read(both, labels="entities") == [("Anna sang", "O B-ACT")]
    fails("f:1: 'entities' holds spans and 'label' holds spans", {"text": "Anna", "label": PER, "entities": FLAIR})
    fails("f:1: 'labels' is empty, but 'annotations' holds spans", {"text": "a", "labels": [], "annotations": PER})
    pos = {"text": "Anna sang", "pos_tags": "NNP VBD", "entities": PER}
    assert read(pos, task="pos") == [("Anna sang", "NNP VBD")]


@pytest.mark.parametrize("values", [["Anna", "Oslo"], "Anna Oslo"])
def test_texts_are_no_spans(values):
    fails("f:1: 'entities' holds texts without offsets (\"Anna\")", {"text": "Anna Oslo", "entities": values})


def test_null_is_not_annotated():
    assert read({"text": "Anna", "spans": None, "answer": "accept"}) == [("Anna", "O")]
    fails("f:2: 'label' is null: not annotated", {"text": "Anna", "label": [[0, 4, "X"]]}, {"text": "a", "label": None})


def test_spacys_json_has_other_spans_and_tokens():
    tokens = [{"id": 0, "start": 0, "end": 4, "tag": "NNP"}, {"id": 1, "start": 5, "end": 9, "tag": "VBD"}]
    groups = {"sc": [{"start": 5, "end": 9, "label": "ACT"}]}
    doc = {"text": "Anna sang", "ents": PER, "sents": [{"start": 0, "end": 9}], "tokens": tokens, "spans": groups}
    assert read(doc, doc | {"ents": []}, doc | {"spans": {}}) == [
        ("Anna sang", "B-PER O"),
        ("Anna sang", "O O"),
        ("Anna sang", "B-PER O"),
    ]


# ---- spans


def test_lists_of_starts_ends_and_types():
    spans = {"start": [0], "end": [4], "label": ["PER"]}
    empty = {"start": [], "end": [], "label": []}
    records = [{"text": "Anna sang", "spans": value} for value in (spans, empty, repr(spans))]
    assert [tags for _, tags in read(*records)] == ["B-PER O", "O O", "B-PER O"]
    fails("f:1: {", {"text": "Anna", "spans": spans | {"end": []}})


def test_types_of_spans():
    text = {"text": "Anna sang"}
    assert read(text | {"label": [[0, 4, "PER"], [5, 9, "O"]]}) == [("Anna sang", "B-PER O")]
    assert read(text | {"label": [[0, 4, "E-MAIL"]]}) == [("Anna sang", "B-E-MAIL O")]
    fails('f:1: [0, 4, "B-PER"] is a span with the prefix of a tag', text | {"label": [[0, 4, "B-PER"]]})
    fails('f:1: [5, 9, "S-PER"] is a span with the prefix of a tag', text | {"label": [[5, 9, "S-PER"]]})
    fails("f:1: [0, 4, 3] is not a span: its type is a number, as of a ClassLabel", text | {"label": [[0, 4, 3]]})
    for labels in (["A", "B"], []):
        span = {"start": 0, "end": 4, "labels": labels}
        fails(f"f:1: {json.dumps(span)} is not a span: it has {len(labels)} types", task("Anna", span))


@pytest.mark.parametrize("key", ["text", "word", "mention", "quote", "surface", "value"])
def test_quoted_text_under_other_keys(key):
    span = {"start": 2, "end": 5, "type": "PER", key: "王小明"}
    assert read(CHINESE | {"label": [span]})[0][1] == "O B-PER I-PER I-PER O O O O"
    other = {"text": "Anna sang", "label": [{"start": 0, "end": 4, "type": "PER", key: "sang"}]}
    if key == "value":  # a synonym
        assert read(other) == [("Anna sang", "B-PER O")]
    else:
        fails("f:1: span 0-4 PER is 'Anna' in the text, but annotated as 'sang'", other)


def test_words_of_a_tokenizer_are_normalized():
    span = {"start": 0, "end": 7, "entity_group": "PER", "word": "\u2581rene b"}
    assert read({"text": "Ren\u00e9  B", "label": [span]}) == [("Ren\u00e9 B", "B-PER I-PER")]


def test_the_better_reading_of_offsets_counts():
    exact = {"text": f"{SMILE} 王 小 明", "label": [[3, 4, "PER"]]}  # the other reading is a blank
    assert read(exact) == [(f"{SMILE} 王 小 明", "O B-PER O O")]
    blanks = {"text": f"{SMILE}王 小明", "label": [[3, 5, "PER"]]}  # the other reading begins with a blank
    assert read(blanks) == [(f"{SMILE} 王 小 明", "O O B-PER I-PER")]
    one_cut = {"text": f"{SMILE} Anna sang", "label": [[3, 9, "PER"]]}  # "nna sa" or "Anna s"
    assert facts(one_cut, widen_spans=True).span_offsets == "utf16"
    assert facts(one_cut).span_offsets is None
    equal = {"text": f"{SMILE} Annax", "label": [[3, 7, "PER"]]}
    fails("f:1: span 3-7 PER is 'nnax' in characters and 'Anna' in UTF-16 units; pass", equal, widen_spans=True)


# ---- Label Studio: several annotations, none, choices


def annotated(*annotations: dict, **columns) -> dict:
    return {"id": 1, "data": {"text": "Anna sang"}, "annotations": list(annotations)} | columns


def annotation(*regions: dict, **columns) -> dict:
    return {"result": [{"type": "labels", "value": value} for value in regions]} | columns


def test_several_annotations():
    anna, sang = region(0, 4, "Anna"), region(5, 9, "sang", "ACT")
    cases = [
        (annotated(annotation(anna), annotation(sang)), "B-PER O", "the first"),
        (annotated(annotation(anna), annotation(sang, ground_truth=True)), "O B-ACT", "the ground truth"),
        (annotated(annotation(), annotation(sang)), "O B-ACT", "the first with regions"),
        (annotated(annotation(), annotation(sang), annotation(ground_truth=True)), "O O", "the ground truth"),
    ]
    for record, tags, which in cases:
        assert read(record) == [("Anna sang", tags)]
        (note,) = notes(record)
        assert note.startswith(f"tasks have several annotations, of which {which} is read: ")
    assert notes(annotated(annotation(anna, was_cancelled=True), annotation(sang))) == []


def test_files_without_an_annotated_task():
    anna = annotation(region(0, 4, "Anna"))
    cancelled = annotated(anna | {"was_cancelled": True})
    fails("f: none of its 2 tasks of Label Studio has an annotation that was not cancelled", annotated(), cancelled)
    predicted = {"id": 1, "data": {"text": "Anna"}, "predictions": [anna]}
    for record in (predicted, annotated(predictions=[anna])):
        fails("f: none of its 1 tasks of Label Studio has an annotation", record)
        assert "predictions are not read" in facts(record).refusal
    choices = annotated({"result": [{"type": "choices", "value": {"choices": ["news"]}}]})
    fails("f: its annotations by Label Studio are classifications of whole texts", choices)
    assert [tags for _, tags in read(choices, annotated(anna))] == ["O O", "B-PER O"]
    assert facts(annotated(annotation())).refusal is None  # without entities


def test_regions_after_many_tasks():
    tasks = [([i], {"text": "It rained", "id": i}) for i in range(1, 1006)]
    last = ([1006], {"text": "Anna sang", "id": 0, "label": [region(0, 4)]})
    assert file_facts(iter([*tasks, last]), Columns(), "f", may_have_astral=False).regions == "label"
    plain = {"text": "a", "id": 1, "label": [[0, 1, "X"]]}
    endless = (([1], plain) for _ in iter(int, 1))
    assert file_facts(endless, Columns(), "f", may_have_astral=False) == Columns()


def test_regions_without_a_text_are_refused_by_name():
    fails("f:1: hypertextlabels marks places in HTML", {"html": "<p>", "label": [XPATH | {"hypertextlabels": ["A"]}]})
    fails(
        "f:1: rectanglelabels marks regions of an image", {"image": "a", "box": '[{"x": 1, "rectanglelabels": ["A"]}]'}
    )


# ---- nested and other formats


@pytest.mark.parametrize(
    ("message", "record"),
    [
        ("its 'annotatable' is nested JSON as tagtog", {"annotatable": {"parts": ["s1h1"]}, "entities": []}),
        ("its 'examples' is nested JSON as LightTag", {"examples": [{"content": "Anna", "annotations": []}]}),
        ("its 'fields' is nested JSON as Argilla", {"fields": {"text": "Anna"}, "responses": {}}),
        ("its 'classes' is nested JSON as NER Annotator", {"classes": ["A"], "annotations": [["a", {"entities": []}]]}),
        ("its 'rasa_nlu_data' is nested JSON as Rasa", {"rasa_nlu_data": {"common_examples": []}}),
        ("its 'passages' is nested JSON as BigBio", {"passages": [{"text": ["a"]}], "entities": []}),
        ("its 'annotation' is nested JSON as Dataturks", {"content": "Anna", "annotation": [{"label": ["A"]}]}),
        ("it is a whole table, as pandas", {"columns": ["text"], "index": [0], "data": [["a"]]}),
        ("it is a whole table, as pandas", {"schema": {}, "data": [{"text": "a"}]}),
        ("'tokens' is a whole column, as pandas", {"tokens": {"0": ["a"]}, "tags": {"0": ["O"]}}),
        ("its 'data' is nested JSON (1 values)", {"data": [{"text": "a", "label": []}]}),
        ("its 'train' is nested JSON (1 values)", {"train": [{"text": "a"}], "test": []}),
        ("its 'a' is nested JSON", {"a": {"text": "a", "entities": []}}),
        (
            'a tag is {"type": "A", "start": 0, "end": 1}; spans beside words are read as GLiNER',
            {"tokens": ["a", "b"], "entities": [{"type": "A", "start": 0, "end": 1}]},
        ),
    ],
)
def test_other_formats_are_refused_by_name(message, record):
    fails(f"f:1: {message}", record)


def test_half_of_a_surrogate_pair():
    with pytest.raises(ValueError, match=r"f:1: 'utf-8' codec can't encode .* half of a surrogate pair \(\\ud83d\)"):
        read({"tokens": ["\ud83d"], "tags": ["O"]})


def test_one_word_per_record():
    words = [{"sentence_id": 1, "word": "Anna", "tag": "B-PER"}, {"sentence_id": 1, "word": "sang", "tag": "O"}]
    fails("f: it has one word per record", *words)
    fails("f: it has one word per record", {"text": "Anna", "tags": "B-PER"}, {"text": "Berg", "tags": "I-PER"})
    assert read({"text": "Hi", "tags": "O"}, {"text": "Ho", "tags": "O"}) == [("Hi", "O"), ("Ho", "O")]


# ---- cells


def test_cells_of_other_lists():
    def cells(tokens, tags):
        return {"tokens": tokens, "ner_tags": tags}

    assert read(cells("[]", "[]"), cells("['Anna']", "['O']")) == [("", ""), ("Anna", "O")]
    assert read({"text": "[]", "label": []}) == [("[ ]", "O O")]  # a text
    assert read(cells("('Anna', 'sang')", "('B-PER', 'O')")) == [("Anna sang", "B-PER O")]
    assert read(cells("Anna", "B-PER|B-LOC"), cells("and/or", "CC"), cells("a , b", "NN , NN")) == [
        ("Anna", "B-PER|B-LOC"),
        ("and/or", "CC"),
        ("a , b", "NN , NN"),
    ]
    array = "array(['Anna'], dtype=object)"
    fails(f"f:1: {array} is a list as numpy or R writes it", cells(array, array))
    fails('f:1: c("O", "O") is a list as numpy or R writes it', cells('c("a", "b")', 'c("O", "O")'))
    fails("f:1: {B-PER,O} is an array as PostgreSQL writes it", cells("{Anna,sang}", "{B-PER,O}"))
    for separator in ("|", ",", ";", ", "):
        joined = cells(separator.join(["Anna", "sang"]), separator.join(["B-PER", "O"]))
        fails(f"f:1: words and tags look joined by {separator.strip()!r}", joined)
    fails("f:1: the cells 'nan' and 'nan' are missing values", cells("nan", "nan"))


def test_cells_of_numpys_objects():
    cell = """[{'start': 0, 'end': 4, 'label': 'PER', 'score': nan}
 {'start': 5, 'end': 9, 'label': '} {nan'}]"""
    assert read_all({"text": "Anna sang", "label": cell})[0]["tags"] == ["B-PER", "B-} {nan"]
    cell = "[{'start': np.int64(0), 'end': np.int64(4), 'labels': array(['PER'], dtype=object)}]"
    assert read({"text": "Anna sang", "label": cell}) == [("Anna sang", "B-PER O")]


def test_words_of_ascii_text_are_those_of_any_text():
    """Every pair of ASCII characters, once alone and once beside a character that is not ASCII."""
    for first in map(chr, range(128)):
        for second in map(chr, range(128)):
            text = f"{first}{second}"
            assert split_words(text) == [span for span in split_words(f"{text} é") if span[0] < 2], ascii(text)
