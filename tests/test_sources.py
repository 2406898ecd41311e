# ruff: noqa: E501 - one format, or one note, per line
"""A corpus in any format gives the same tensors; annotations, notes and statistics before training."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import datasets
import hypothesis
import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
from conftest import CACHE, ROOT, load, read, results, run, train, write_conll
from hypothesis import strategies

import metrics
from util import blocks, data_report, sources
from util.annotations import FEATURES, Columns, sentences
from util.blocks import Block, cut_into_blocks
from util.format_detection import choose_reader
from util.formats import Reader, conll_layout, read_conll, read_conllu, read_csv, read_json_array, read_json_lines
from util.tag_schemes import entity_starts

# Words as split_words finds them, so that formats of text and formats of words can hold the same corpus.
SENTENCES = [
    {"tokens": ["EU", "rejects", "German", "call", "."], "tags": ["B-ORG", "O", "B-MISC", "O", "O"]},
    {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    {"tokens": ["\U0001f600", "from", '"', "New", "York", "City", '"', ",", "New", "Delhi"],
     "tags": ["O", "O", "O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "B-LOC", "I-LOC"]},
    {"tokens": ["Geneva", "1996"], "tags": ["B-LOC", "O"]},
]  # fmt: skip
NAMES = ["O", "B-LOC", "I-LOC", "B-MISC", "B-ORG", "B-PER", "I-PER"]


def spans(sentence: dict) -> tuple[str, list[tuple[int, int, str]]]:
    """The words joined by single blanks, and their entities as spans of characters."""
    text, found = "", []
    for word, tag in zip(sentence["tokens"], sentence["tags"]):
        start = len(text)
        text += word + " "
        if tag[0] == "B":
            found.append([start, start + len(word), tag[2:]])
        elif tag[0] == "I":
            found[-1][1] = start + len(word)
    return text[:-1], found


def jsonl(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def label_studio(sentence: dict) -> dict:
    text, found = spans(sentence)
    results = [
        {"type": "labels", "value": {"start": start, "end": end, "text": text[start:end], "labels": [kind]}}
        for start, end, kind in found
    ]
    results.append({"type": "choices", "value": {"choices": ["news"]}})
    cancelled = {"was_cancelled": True, "result": []}
    return {"id": 1, "data": {"text": text}, "annotations": [cancelled, {"result": results}], "predictions": []}


def words_in_rows(separator: str, quote=str) -> str:
    return "".join(
        f"{number}{separator}{quote(word)}{separator}{tag}\n"
        for number, s in enumerate(SENTENCES)
        for word, tag in zip(s["tokens"], s["tags"])
    )


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def sentence_rows(separator: str) -> str:
    rows = [f"{quoted(' '.join(s['tokens']))}{separator}{' '.join(s['tags'])}\n" for s in SENTENCES]
    return f"tokens{separator}ner_tags\n" + "".join(rows)


def columns(*between: str, separator=" ") -> str:
    rows = ["".join(separator.join([w, *between, t]) + "\n" for w, t in zip(s["tokens"], s["tags"])) for s in SENTENCES]
    return "\n".join(rows)


def conllu() -> str:
    lines = []
    for number, sentence in enumerate(SENTENCES):
        lines += [f"# sent_id = {number}", f"# text = {' '.join(sentence['tokens'])}", "1-2\tab" + "\t_" * 8]
        for i, (word, tag) in enumerate(zip(sentence["tokens"], sentence["tags"]), 1):
            lines += [f"{i}\t{word}\t_\tNOUN\t{tag}\t_\t0\troot\t_\t_", f"{i}.1\tx" + "\t_" * 8]
        lines.append("")
    return "\n".join(lines)


as_spans = [spans(s) for s in SENTENCES]
TEXTS = {  # kind -> (file name, content, further flags); without a telling suffix where the content decides
    "conll": ("a.txt", columns(), {}),
    "conll of four": ("a.conll", "-DOCSTART- -X- -X- O\n\n" + columns("NNP", "B-NP"), {}),
    "conll of five, tabs, crlf, bom": ("a", "\ufeff" + columns("x", "y", "z", separator="\t").replace("\n", "\r\n"), {}),
    "conll by column": ("a.bio", "".join(f"{i} {w} {t} x\n" for s in SENTENCES for i, (w, t) in enumerate(zip(s["tokens"], s["tags"]))).replace("0 ", "\n0 "), {"text_column_name": "2", "label_column_name": "3"}),
    "conllu": ("a.conllu", conllu(), {"label_column_name": "xpos"}),
    "conllu by content": ("a.txt", conllu(), {"label_column_name": "xpos"}),
    "jsonl": ("a.jsonl", jsonl(SENTENCES), {}),
    "jsonl by content": ("a.txt", "\ufeff\n" + jsonl({"id": 1, "words": s["tokens"], "ner_tags": s["tags"]} for s in SENTENCES), {}),
    "jsonl of ids": ("a.jsonl", jsonl({"tokens": s["tokens"], "tags": [NAMES.index(t) for t in s["tags"]]} for s in SENTENCES), {}),
    "json array": ("a.json", json.dumps(SENTENCES), {}),
    "json array over lines": ("a", json.dumps(SENTENCES, indent=2), {}),
    "doccano": ("a.jsonl", jsonl({"id": 7, "text": t, "label": s} for t, s in as_spans), {}),
    "doccano labels": ("a.jsonl", jsonl({"text": t, "labels": s, "meta": {}} for t, s in as_spans), {}),
    "doccano with relations": ("a.jsonl", jsonl(
        {"text": t, "entities": [{"id": 0, "label": k, "start_offset": a, "end_offset": b} for a, b, k in s], "relations": []}
        for t, s in as_spans), {}),
    "prodigy": ("a.jsonl", jsonl(
        {"text": t, "tokens": [{"text": t, "start": 0, "end": len(t), "id": 0}], "answer": "accept",
         "spans": [{"start": a, "end": b, "label": k, "token_start": 0} for a, b, k in s]} for t, s in as_spans), {}),
    "label studio": ("a.json", json.dumps(list(map(label_studio, SENTENCES)), indent=1), {}),
    "label studio, lines": ("a.jsonl", jsonl(map(label_studio, SENTENCES)), {}),
    "label studio, short": ("a.json", json.dumps([
        {"id": 1, "text": t, "label": [{"start": a, "end": b, "text": t[a:b], "labels": [k]} for a, b, k in s]} for t, s in as_spans]), {}),
    "csv, a word a row": ("a.csv", "sentence_id,word,tag\n" + words_in_rows(",", quoted), {}),
    "csv, a word a row, semicolons": ("a.txt", "Tag;Sentence #;Word\n" + "".join(
        f"{t};{f'Sentence: {n}' * (i == 0)};{quoted(w)}\n" for n, s in enumerate(SENTENCES)
        for i, (w, t) in enumerate(zip(s["tokens"], s["tags"]))), {}),
    "csv, empty lines": ("a.csv", "word,tag\n" + columns(separator=",").replace('",', '"""",').replace(",,", '",",'), {}),
    "tsv, a word a row": ("a.tsv", "sentence_id\tword\tner\n" + words_in_rows("\t"), {}),
    "tsv, empty lines": ("a.txt", "Token\tTag\n" + columns(separator="\t"), {}),
    "csv, a sentence a row": ("a.csv", sentence_rows(","), {}),
    "csv, a sentence a row with its id": ("a.csv", "sent_id," + sentence_rows(",").replace('\n"', '\n1,"').replace("1,", "", 1), {}),
    "csv by content": ("a", sentence_rows(";"), {}),
    "csv, other columns": ("a.csv", sentence_rows(",").replace("tokens,ner_tags", "W,T"), {"text_column_name": "w", "label_column_name": "2"}),
}  # fmt: skip
TEXTS["csv, a sentence a row with its id"] = (
    "a.csv",
    "sent_id,tokens,ner_tags\n" + "".join(f"{i},{row}\n" for i, row in enumerate(sentence_rows(",").splitlines()[1:])),
    {},
)


def as_dataset(ids: bool) -> datasets.Dataset:
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string"))})
    features["tags"] = datasets.List(datasets.ClassLabel(names=NAMES) if ids else datasets.Value("string"))
    return datasets.Dataset.from_list(SENTENCES, features=features)


def write_format(kind: str, folder) -> dict:
    """SENTENCES in one of the formats -> the data flags that read them."""
    if kind in TEXTS:
        name, content, flags = TEXTS[kind]
        (folder / name).write_bytes(content.encode())
        return {"train_file": str(folder / name)} | flags
    if kind.startswith("parquet"):
        as_dataset(ids="ids" in kind).to_parquet(folder / "a.bin")
        return {"train_file": str(folder / "a.bin")}
    datasets.DatasetDict(train=as_dataset(ids="ids" in kind)).save_to_disk(str(folder / "saved"))
    return {"dataset_name": str(folder / "saved")}


KINDS = [*TEXTS, "parquet", "parquet of ids", "folder", "folder of ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_tensors(kind, encoders, tmp_path):
    splits, labels = load(encoders["wordpiece"], size=64, **write_format(kind, tmp_path))
    (tmp_path / "reference").write_text(columns(), encoding="utf-8")
    expected, expected_labels = load(encoders["wordpiece"], size=64, train_file=str(tmp_path / "reference"))
    found, expected = splits["train"], expected["train"]
    assert expected_labels == NAMES
    assert found.sentences["tokens"][:] == [s["tokens"] for s in SENTENCES]
    assert found.tags.tolist() == expected.tags.tolist() and found.lengths.tolist() == expected.lengths.tolist()
    for window, expected_window in zip(found.windows, expected.windows, strict=True):
        assert window.keys() == expected_window.keys()
        assert all(np.array_equal(window[name], expected_window[name]) for name in window)
    if kind != "jsonl of ids":  # they have no names
        assert labels == NAMES and found.fingerprint == expected.fingerprint
        (note,) = data_report.checks(splits, 64)  # of words like 1996
        assert note == f"warning: {found.name}: 10.5% of words contain a subword that the tokenizer does not know"


@pytest.mark.parametrize("kind", ["conllu", "doccano", "prodigy", "label studio", "csv, a word a row", "folder of ids"])
def test_a_format_trains_to_the_same_metrics(kind, encoders, tmp_path):
    found = []
    for one in (kind, "conll"):
        flags = [part for name, value in write_format(one, tmp_path).items() for part in (f"--{name}", value)]
        flags += ["--validation_split", 0.5, "--max_steps", 2, "--learning_rate", 0.01]
        train(*flags, "--model_name_or_path", encoders["wordpiece"], "--output_dir", tmp_path / "out" / one)
        measured = results(tmp_path / "out" / one)
        found.append({k: v for k, v in measured.items() if "second" not in k and "runtime" not in k})
    assert found[0] == found[1] and found[0]["eval_words"] > 5


def test_conll_columns_by_task(tmp_path):
    path = tmp_path / "four.conll"
    path.write_text("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n")
    tags = {task: [row["tags"] for row in read(path, task_name=task)] for task in ("ner", "pos", "chunk")}
    assert tags["ner"] == [["B-ORG", "O"], ["B-PER"]]
    assert tags["pos"] == [["NNP", "VBZ"], ["NNP"]]
    assert tags["chunk"] == [["B-NP", "B-VP"], ["B-NP"]]


@pytest.mark.parametrize(
    "text",
    [
        "EU\tB-ORG\nsays\tO\n\nhi\tO\n",
        "EU B-ORG\nsays O\n\nhi O",
        "EU   B-ORG\r\nsays O\r\n\r\n\r\nhi O\r\n",
        "\ufeffEU\tB-ORG\nsays\tO\n\t\nhi\tO\n",
        "\n\nEU B-ORG \nsays O\n   \n-DOCSTART- O\nhi O\n\n\n",
        "EU B-ORG\nsays\tO\n\nhi O\n",
    ],
)
@pytest.mark.parametrize("task", ["ner", "pos", "chunk"])
def test_two_columns_however_they_are_written(tmp_path, text, task):
    (tmp_path / "x.conll").write_bytes(text.encode())
    expected = [{"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}, {"tokens": ["hi"], "tags": ["O"]}]
    assert read(tmp_path / "x.conll", task_name=task) == expected


def test_comments_are_above_sentences_and_a_hash_may_be_a_word(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("# sent_id = 1\n# text = EU says\nEU B-ORG\n# O\n\n#nlp O\n#id 7 x\nhi O\n")
    with pytest.raises(ValueError, match="x.conll:7: 3 columns"):
        read(path)
    path.write_text("# sent_id = 1\n# text = EU says\nEU B-ORG\n# O\n\n# a b c\n#nlp O\nhi O\n")
    assert [row["tokens"] for row in read(path)] == [["EU", "#"], ["#nlp", "hi"]]


CONLLU = """\
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tvm\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tpp\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tsp\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tda\t_\t5\tdet\t_\t_
4.1\tvacío\t_\t_\t_\t_\t_\t_\t_\t_
5\tmar\tmar\tNOUN\tnc\t_\t1\tobl\t_\t_

# sent_id = 2
1\tNew York\t_\tPROPN\tnp\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("name", ["x.conllu", "x.txt"])
def test_conllu_by_its_content(tmp_path, name):
    path = tmp_path / name
    path.write_text(CONLLU, encoding="utf-8")
    found = read(path, task_name="pos")
    assert [s["tokens"] for s in found] == [["vamos", "nos", "a", "el", "mar"], ["New York"]]
    assert [s["tags"] for s in found] == [["VERB", "PRON", "ADP", "DET", "NOUN"], ["PROPN"]]
    assert read(path, label_column_name="xpos")[0]["tags"] == ["vm", "pp", "sp", "da", "nc"]
    with pytest.raises(ValueError, match="no column 'ner_tags'.*among tokens, lemma, upos"):
        read(path)


def test_words_may_contain_other_white_space(tmp_path):
    (tmp_path / "x.conll").write_text("10\u00a0000 O\n\u200d O\n\x1c O\n\ufeff O\na O\n")
    assert read(tmp_path / "x.conll")[0]["tokens"] == ["10\u00a0000", "\u200d", "\x1c", "\ufeff", "a"]


def test_quotes_and_line_ends_inside_a_csv_cell(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('tokens,tags\n"he said, ""no"" \nNA null",O O O O O\nOslo,B-LOC\n')
    assert [s["tokens"] for s in read(path)] == [["he", "said,", '"no"', "NA", "null"], ["Oslo"]]
    path.write_text('tokens,tags\n"he said, ""no""\nNA null",O O O O O\nOslo,B-LOC X\n')
    with pytest.raises(ValueError, match="x.csv:4: 1 words but 2 tags"):
        read(path)


def test_a_saved_folder_is_read_in_shuffled_order_and_not_changed(encoders, tmp_path):
    sentences = [{"tokens": [str(i)], "tags": ["O"]} for i in range(9)]
    shuffled = datasets.Dataset.from_list(sentences).shuffle(seed=3)
    datasets.DatasetDict(train=shuffled).save_to_disk(str(tmp_path / "saved"))
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    splits, _ = load(encoders["wordpiece"], dataset_name=str(tmp_path / "saved"))
    assert len(splits["train"].tags) == 9
    assert splits["train"].sentences["tokens"][:] == shuffled["tokens"][:]
    assert before == {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}


def test_a_saved_dev_split_is_the_validation_split(encoders, tmp_path):
    datasets.DatasetDict(train=as_dataset(True), dev=as_dataset(True)).save_to_disk(str(tmp_path / "saved"))
    assert list(load(encoders["wordpiece"], dataset_name=str(tmp_path / "saved"))[0]) == ["train", "validation"]


def test_a_test_file_of_names_goes_with_a_train_file_of_ids(encoders, tmp_path):
    as_dataset(ids=True).to_parquet(tmp_path / "train.parquet")
    write_conll(tmp_path / "test.conll", SENTENCES[:2])
    files = {f"{split.stem}_file": str(split) for split in (tmp_path / "train.parquet", tmp_path / "test.conll")}
    splits, labels = load(encoders["wordpiece"], **files)
    assert labels == NAMES and [labels[i] for i in splits["test"].tags[-2:]] == ["B-PER", "I-PER"]
    write_conll(tmp_path / "test.conll", [{"tokens": ["x"], "tags": ["B-LAW"]}])
    with pytest.raises(ValueError, match="test.conll: its labels, B-LAW, are not those of another split, O, B-LOC"):
        load(encoders["wordpiece"], **files)


def test_columns_by_flag_and_by_task(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"w": ["a", "b"], "pos_tags": ["X", "Y"], "t": [0, 1]}\n')
    assert read(path, text_column_name="w", task_name="pos")[0]["tags"] == ["X", "Y"]
    assert read(path, text_column_name="w", label_column_name="t")[0]["tags"] == ["0", "1"]
    assert read(path, text_column_name="w", label_column_name="2")[0]["tags"] == ["X", "Y"]


def test_an_edited_file_is_not_read_from_the_cache(tmp_path):
    path = tmp_path / "x.conll"
    for word in ("one", "two"):
        path.write_text(f"{word} O\n")
        assert read(path) == [{"tokens": [word], "tags": ["O"]}]


# ---- the Hub, by a cache made here


@pytest.mark.parametrize(("name", "cached"), [("conll2003", "lhoestq___conll2003"), ("wnut_17", "leondz___wnut_17")])
def test_a_well_known_set_is_found_in_the_datasets_cache_by_its_short_name(name, cached, tmp_path):
    as_dataset(ids=True).to_parquet(tmp_path / "x.parquet")
    built = datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "x.parquet")}, cache_dir=str(tmp_path))
    source = Path(built["train"].cache_files[0]["filename"]).parent
    target = Path(datasets.config.HF_DATASETS_CACHE) / cached / "default" / "0.0.0" / ("0" * 40)
    target.mkdir(parents=True)
    for file in source.iterdir():
        renamed = file.name.replace("parquet", cached.partition("___")[2])
        (target / renamed).write_bytes(file.read_bytes())
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"dataset_name": cached.partition("___")[2], "builder_name": "parquet", "config_name": "default"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    opened = sources.open_sources({}, name, None, Columns())
    found, names = sources.read_splits(opened, Columns(), validation_split=0.0, seed=1)
    assert names == tuple(NAMES)
    assert list(found["train"][1]["tokens"]) == [s["tokens"] for s in SENTENCES]


# ---- spans


def test_a_span_may_include_blanks(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "in New York .", "label": [[2, 12, "LOC"]]}\n')
    assert read(tmp_path / "x.jsonl") == [{"tokens": ["in", "New", "York", "."], "tags": ["O", "B-LOC", "I-LOC", "O"]}]


def test_a_span_that_cuts_a_word_is_an_error_or_widened_and_counted(encoders, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"text": "a b", "label": []}\n{"text": "Johnson left Oslo", "label": [[0, 4, "PER"], [15, 17, "LOC"]]}\n'
    )
    with pytest.raises(ValueError, match=r"x.jsonl:2: span 0-4 PER 'John' cuts the word 'Johnson'; .* --widen_spans"):
        read(path)
    splits, labels = load(encoders["wordpiece"], train_file=str(path), widen_spans=True)
    assert [labels[i] for i in splits["train"].tags] == ["O", "O", "B-PER", "O", "B-LOC"]
    (note,) = data_report.checks(splits, 16)
    assert (
        note == f"note: {path}: 2 spans widened to whole words: {path}:2 'John' to 'Johnson'; {path}:2 'lo' to 'Oslo'"
    )


def test_what_was_not_annotated_is_left_out_and_counted(encoders, tmp_path):
    path = tmp_path / "x.jsonl"
    rejected = {"text": "no", "spans": [], "answer": "reject"}
    path.write_text(jsonl([rejected, {"text": "Oslo", "spans": [{"start": 0, "end": 4, "label": "LOC"}]}, rejected]))
    splits, _ = load(encoders["wordpiece"], train_file=str(path))
    assert len(splits["train"].tags) == 1
    note = f"note: {path}: 2 left out (answer other than accept): {path}:1 reject; {path}:3 reject"
    assert note in data_report.checks(splits, 16)
    assert splits["train"].num_sentences == 1
    path.write_text(jsonl([label_studio(SENTENCES[0]), {"data": {"text": "x"}, "annotations": []}]))
    splits, _ = load(encoders["wordpiece"], train_file=str(path))
    note = f"note: {path}: 1 left out (no annotation): {path}:2 a task"
    assert note in data_report.checks(splits, 16)


def test_a_note_on_two_splits_of_a_file_is_logged_once(encoders, tmp_path):
    path = tmp_path / "x.jsonl"
    accepted = [{"text": f"Oslo {i}", "spans": [{"start": 0, "end": 4, "label": "LOC"}]} for i in range(6)]
    path.write_text(jsonl(accepted + [{"text": "no", "spans": [], "answer": "reject"}] * 6))
    splits, _ = load(encoders["wordpiece"], train_file=str(path), validation_split=0.5)
    counts = [note.count for split in splits.values() for note in split.notes]
    assert len(counts) == 2 and sum(counts) == 6
    lines = [line for line in data_report.checks(splits, 16) if "left out" in line]
    assert len(lines) == 1 and lines[0].startswith(f"note: {path}: 6 left out (answer other than accept): {path}:")


def test_a_warning_names_the_split_if_another_one_is_of_the_same_file(encoders, tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("Oslo B-LOC\n. O\n\n" * 6)
    splits, _ = load(encoders["wordpiece"], train_file=str(path), validation_split=0.5)
    line = f"warning: validation split of {path}: 3 of 3 sentences also occur in train"
    assert line in data_report.checks(splits, 16)


# ---- arbitrary bytes

PIECES = [b"EU B-ORG\n", b"a\tO\n", b"\n", b"{", b"}", b"[", b"]", b'"tokens": ', b'"tags": ', b'"text": "a b"', b'"label": ', b"[[0, 1, ",
          b'"x"]]', b'["a"]', b'["O"]', b", ", b"0", b"null", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\x00", b"tokens,tags\n", b"word,tag\n",
          b'"', b"1\ta" + b"\t_" * 8 + b"\n", b"# x\n", b"-DOCSTART- O\n", b"\\ud800", b'"data": ', b'"annotations": ', b'"result": ', b'"spans": ', b'"value": ', b'{"text": "a"}', b'"start": ', b'{"tokens": ["a"], "tags": ["O"]}\n']  # fmt: skip
BYTES = strategies.one_of(
    strategies.binary(max_size=200),
    strategies.lists(strategies.sampled_from(PIECES) | strategies.binary(max_size=3), max_size=15).map(b"".join),
)
CANDIDATES = [
    lambda path: choose_reader(path, ["tokens", "word", "text"], ["tags", "tag", "label"]),
    lambda path: Reader(read_conll, path, conll_layout(path)),
    lambda path: Reader(read_conllu, path),
    lambda path: Reader(read_json_lines, path),
    lambda path: Reader(read_json_array, path),
    *(lambda path, delimiter=delimiter: Reader(read_csv, path, {"delimiter": delimiter}) for delimiter in ",;\t"),
]


@hypothesis.settings(max_examples=1500, deadline=None, derandomize=True)
@hypothesis.given(content=BYTES)
def test_any_bytes_are_sentences_or_one_error_that_names_the_file(content):
    path = str(Path(CACHE.name) / "any")
    Path(path).write_bytes(content)
    for candidate in CANDIDATES:
        try:
            for sentence in sentences(candidate(path).read(), path, None, Columns()):
                assert len(sentence["tokens"]) == len(sentence["tags"])
                assert len(sentence["lines"]) in (1, len(sentence["tokens"]))
                assert all(type(tag) is str and tag for tag in sentence["tags"])
        except ValueError as error:
            assert str(error).startswith(path)


# ---- blocks of large files

LARGE_FILES = {
    "conll": "# a comment\n" + columns("NNP", "B-NP") + "\n-DOCSTART- O\n \t\n# id 7\n" + columns("NNP", "B-NP"),
    "conll, crlf, bom": "\ufeff" + columns("x", separator="\t").replace("\n", "\r\n"),
    "conllu": conllu() * 3,
    "jsonl": jsonl(SENTENCES * 2),
    "doccano": jsonl({"text": t, "label": s} for t, s in as_spans),
    "csv": sentence_rows(","),
    "json": json.dumps(SENTENCES, indent=1),
    "error in the last block": columns() + "\nalone\n\na b c\n",
    "errors in two blocks": "alone O\nb\n\n" + columns() + "\nalone\n",
    "comments only": "# a b\n\n# c d\n",
    "an error in bytes": "a O\n\nb \udcff\n",
}


def read_in_blocks(source: sources.Source, columns: Columns, file_blocks: list[Block]) -> list[dict] | str:
    """The sentences, or the text of the first error."""
    found = []
    try:
        for block in file_blocks:
            found += sentences(source.reader.read(block), source.name, None, columns, block.first_row)
    except ValueError as error:
        return str(error)
    return found


@pytest.mark.parametrize("kind", LARGE_FILES)
def test_blocks_of_any_size_give_the_same_sentences_lines_and_errors(kind, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(LARGE_FILES[kind].encode("utf-8", "surrogateescape"))
    options = Columns(labels="xpos" if kind == "conllu" else None)
    source = sources.open_file(str(path), options)
    assert len(source.blocks) == 1
    expected = read_in_blocks(source, options, source.blocks)
    assert isinstance(expected, str) == ("error" in kind)
    for size in (*range(1, 30), 100, 1000):
        small_blocks, digest = cut_into_blocks(str(path), source.reader.block_ends_at, size)
        assert digest == source.digest
        assert small_blocks[0].start == 0 and small_blocks[-1].end == path.stat().st_size
        assert all(a.end == b.start for a, b in zip(small_blocks, small_blocks[1:]))
        assert read_in_blocks(source, options, small_blocks) == expected


@pytest.mark.parametrize("num_proc", [1, 3])
def test_processes_keep_the_order_of_blocks_and_report_the_first_error(num_proc, tmp_path, monkeypatch):
    path, words = tmp_path / "x.conll", [f"w{i}" for i in range(3000)]
    write_conll(path, [{"tokens": [word], "tags": ["O"]} for word in words])
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 1000)
    dataset, _ = sources.read_source(sources.open_file(str(path), Columns()), Columns(), num_proc)
    assert [tokens for (tokens,) in dataset["tokens"][:]] == words and dataset.features == FEATURES
    assert len(dataset.cache_files) > 20
    with open(path, "a") as file:
        file.write("\nfirst\n" + "\na O\n" * 500 + "\nsecond\n")
    for _ in range(2):  # blocks without an error are in the cache the second time
        with pytest.raises(ValueError, match=f"^{path}:6001: 'first' has no tag$"):
            sources.read_source(sources.open_file(str(path), Columns()), Columns(), num_proc)
    assert not [name for name in os.listdir(Path(datasets.config.HF_DATASETS_CACHE) / "nanotagger") if "arrow." in name]


def test_row_groups_and_rows_of_datasets_are_blocks(tmp_path, monkeypatch):
    rows = [{"tokens": [f"w{i}"], "tags": ["O" if i != 2222 else ""]} for i in range(2500)]
    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 600)
    for last in (2222, 2500):
        dataset = datasets.Dataset.from_list(rows[:last])
        dataset.to_parquet(tmp_path / "x.parquet", batch_size=500)
        dataset.save_to_disk(str(tmp_path / f"saved{last}"))
        opened = [sources.open_file(str(tmp_path / "x.parquet"), Columns())]
        opened += sources.open_sources({}, str(tmp_path / f"saved{last}"), None, Columns()).values()
        for source in opened:
            assert len(source.blocks) > 2 and source.blocks[1].first_row >= 600
            if last == 2222:
                found, _ = sources.read_source(source, Columns())
                assert found.select_columns(["tokens", "tags"]).to_list() == rows[:last]
            else:
                with pytest.raises(ValueError, match=re.escape(f'{source.name}: row 2223: a tag is ""')):
                    sources.read_source(source, Columns())


# ---- validation by seed


def test_a_share_of_train_validates_by_seed(encoders, tmp_path):
    write_conll(tmp_path / "x", [{"tokens": [f"w{i}"], "tags": ["O"]} for i in range(50)])
    flags = {"train_file": str(tmp_path / "x"), "validation_split": 0.1}
    found = []
    for seed in (1, 1, 2):
        splits, _ = load(encoders["wordpiece"], seed=seed, **flags)
        words = {name: [s["tokens"][0] for s in split.sentences] for name, split in splits.items()}
        assert len(words["validation"]) == 5 and sorted(words["train"] + words["validation"]) == sorted(
            f"w{i}" for i in range(50)
        )
        found.append(words["validation"])
        assert splits["validation"].word(2) == (f"{tmp_path / 'x'}:{2 * int(found[-1][2][1:]) + 1}", found[-1][2])
    assert found[0] == found[1] != found[2]
    for share in (0.001, 0.999):
        with pytest.raises(ValueError, match="of 50 sentences leaves none"):
            load(encoders["wordpiece"], **flags | {"validation_split": share})
    with pytest.raises(ValueError, match="there is a validation split already"):
        load(encoders["wordpiece"], **flags, validation_file=str(tmp_path / "x"))


# ---- schemes on a real corpus


def in_scheme(tags: list[str], scheme: str) -> list[str]:
    """IOB2 -> another scheme, written independently of util/tag_schemes.py."""
    found = []
    for before, tag, after in zip(["O", *tags], tags, [*tags[1:], "O"]):
        if tag == "O":
            found.append("O")
            continue
        first, last = tag[0] == "B", after != f"I-{tag[2:]}"
        if scheme == "IOB1":
            prefix = "B" if first and before != "O" and before[2:] == tag[2:] else "I"
        elif scheme == "IOB2":
            prefix = tag[0]
        else:
            prefix = {(1, 1): "S", (1, 0): "B", (0, 1): "E", (0, 0): "I"}[first, last]
        found.append(f"{prefix if scheme != 'BILOU' else {'S': 'U', 'E': 'L'}.get(prefix, prefix)}-{tag[2:]}")
    return found


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU"])
def test_a_copy_in_another_scheme_has_the_same_entities_by_seqeval(scheme, encoders, tmp_path):
    original = read(ROOT / "samples" / "validation.conll")
    copy = [s | {"tags": in_scheme(s["tags"], scheme)} for s in original]
    write_conll(tmp_path / "x", copy)
    splits, labels = load(encoders["wordpiece"], train_file=str(tmp_path / "x"))
    split = splits["train"]
    gold = [s["tags"] for s in original]
    expected = seqeval.metrics.classification_report(gold, gold, output_dict=True)
    counts = {kind: row["support"] for kind, row in expected.items() if " avg" not in kind}
    assert split.scheme == ("IOB2" if scheme == "IOB1" else scheme)
    for strict in (False, True):
        scores = metrics.score(split.tags, split.tags, split.lengths, labels, split.scheme, strict)
        assert {kind: row["support"] for kind, row in scores["per_entity"].items()} == counts
        assert scores["f1"] == 1
    starts = entity_starts(split.tags, split.lengths, labels)
    kinds, numbers = np.unique([labels[i][2:] for i in split.tags[starts]], return_counts=True)
    assert dict(zip(kinds.tolist(), numbers.tolist())) == counts
    assert ("converted to IOB2" in " ".join(data_report.checks(splits, 512))) == (scheme == "IOB1")


def test_strict_scores_are_seqevals_strict_ones_and_fail_early_on_tags_without_a_scheme():
    labels = ["O", "B-X", "I-X", "E-X", "S-X"]
    random = np.random.default_rng(0)
    gold, predicted, lengths = random.integers(0, 5, 600), random.integers(0, 5, 600), np.full(60, 10)
    names = [[[labels[i] for i in part] for part in np.split(ids, 60)] for ids in (gold, predicted)]
    strict = metrics.score(gold, predicted, lengths, labels, "BIOES", strict=True)
    assert strict["f1"] == seqeval.metrics.f1_score(*names, mode="strict", scheme=seqeval.scheme.IOBES)
    assert strict["f1"] != metrics.score(gold, predicted, lengths, labels, "BIOES")["f1"]
    metrics.check_strict(labels, "BIOES")
    for labels, scheme in ((["O", "NOUN"], None), (["O", "B-X", "S-X"], "IOB2"), (["O", "U-X", "E-X"], "BILOU")):
        with pytest.raises(ValueError, match="--strict needs tags of one scheme"):
            metrics.check_strict(labels, scheme)


# ---- notes and statistics of the data


def test_checks_list_every_irregularity_and_nothing_else(encoders, tmp_path):
    short = [s for s in read(ROOT / "samples" / "train.conll") if len(s["tokens"]) < 8]
    write_conll(tmp_path / "train", short)
    odd = {"tokens": ["help", "\u200d", "the" * 30, "of"], "tags": ["B-LAW", "I-MISC", "O", "O"]}
    write_conll(
        tmp_path / "test",
        [SENTENCES[1], odd, {"tokens": ["of"] * 400, "tags": ["O"] * 400}, short[3]],
    )
    files = {f"{split}_file": str(tmp_path / split) for split in ("train", "test")}
    splits, _ = load(encoders["wordpiece"], size=32, **files)
    place = files["test_file"]
    assert data_report.checks(splits, 32) == [
        f"warning: {place}: 2 tags not in train: B-LAW; I-MISC",
        f"warning: {place}: 1 of 4 sentences also occurs in train",
        f"note: {place}: 1 invalid IOB2 transition kept as in the file: {place}:5 '\\u200d' I-MISC after B-LAW",
        f"note: {place}: 1 word without subwords, replaced by the unknown token: {place}:5 '\\u200d'",
        f"note: {place}: 2 sentences of more than 32 subwords, in overlapping windows",
        f"note: {place}: 1 word longer than a window, tagged by the first subwords",
    ]


def test_a_single_tag_is_noted(encoders, tmp_path):
    write_conll(tmp_path / "x", [{"tokens": ["a", "b"], "tags": ["O", "O"]}])
    splits, _ = load(encoders["wordpiece"], train_file=str(tmp_path / "x"))
    assert data_report.checks(splits, 16) == [f"warning: {tmp_path / 'x'}: every tag is O"]


def test_python_data_py_prints_statistics_and_the_first_sentences_aligned(encoders):
    done = run("data.py", "--model_name_or_path", encoders["wordpiece"], "--max_seq_length", 32)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    gold = [s["tags"] for s in read(ROOT / "samples" / "train.conll")]
    report = seqeval.metrics.classification_report(gold, gold, output_dict=True)
    counts = [f"{kind} {report[kind]['support']:,}" for kind in ("LOC", "MISC", "ORG", "PER")]
    assert "  entities: " + ", ".join(counts) in lines
    assert f"  2,400 sentences, {sum(map(len, gold)):,} words, IOB2 tags" in lines
    assert "Many thanks for your help , Maria ." in lines and "O    O      O   O    O    O B-PER O" in lines
    lengths = sorted(map(len, gold))
    assert f"  words per sentence: min {lengths[0]}, median {lengths[1199]}, " in done.stdout
    subwords = next(line for line in lines if line.startswith("[CLS] M"))
    ids = lines[lines.index(subwords) + 1]
    assert (
        subwords.split()[0] == "[CLS]"
        and ids.split()[:2] == ["-100", "0"]
        and len(ids.split()) == len(subwords.split())
    )
    starts = [[word.start() for word in re.finditer(r"\S+", line)] for line in (subwords, ids)]
    assert starts[0] == starts[1]
    assert "with --group_by_length: " in done.stdout and "sentences/s" in done.stdout
    assert any(line.startswith("note: ") and "in overlapping windows" in line for line in lines)


def test_python_data_py_takes_the_data_flags_of_train_py_and_ends_on_bad_input(tmp_path):
    done = run("data.py", "--train_file", tmp_path / "none")
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none'}: no such file\n" and not done.stdout
    assert run("data.py", "--help").returncode == 0


def on_a_terminal(*command) -> tuple[str, int]:
    """What a command writes if stderr is a terminal of 100 columns, and its peak memory in MiB."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    # Not ru_maxrss, which a new process takes over from the one that started it.
    code = r"""import re, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) // 1024)"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while some := os.read(ours, 1 << 16):
            written += some
    printed = process.communicate()[0]
    assert process.returncode == 0, written.decode()
    return written.decode() + printed, int(printed.rsplit("peak ", 1)[1])


def repeat_samples(path, sentences: int) -> None:
    block = "\n".join(
        "".join(f"{w} {t}\n" for w, t in zip(s["tokens"], s["tags"])) for s in read(ROOT / "samples" / "train.conll")
    )
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(sentences // 2400):
            file.write(block + "\n")


@pytest.mark.parametrize("sentences", [4800, pytest.param(1_000_800, marks=pytest.mark.slow)])
def test_reading_shows_its_progress_and_speed_in_little_memory(sentences, encoders, tmp_path):
    repeat_samples(tmp_path / "big.conll", sentences)
    written, peak = on_a_terminal("data.py", "--train_file", tmp_path / "big.conll")
    print(written)
    assert f"{sentences:,} sentences ready in " in written and "sentences/s" in written
    assert "reading: 100%" in written and "tokenizing: 100%" in written
    assert peak < 2048
    (tmp_path / "big.conll").unlink()
    for folder in Path(datasets.config.HF_DATASETS_CACHE).iterdir():  # a million sentences are half a gigabyte
        if sentences > 10_000 and folder.is_dir():
            shutil.rmtree(folder)
