# ruff: noqa: E501 - one file per line
"""The files that infer.py tags: a corpus is read as in training, and plain text stays plain text."""

import contextlib
import io
import json
import re

import pytest
from conftest import read, train

import infer
from util import documents
from util.annotations import Columns
from util.documents import Document
from util.tag_spelling import check_same_spelling

NO_NAMES = Columns()
BY_NUMBER = Columns("2", "3")
NUMBERED = "1\tAnna\tB-PER\tO\n2\tsang\tO\tO\n"


def opened(folder, name: str, content: str | bytes, columns: Columns = NO_NAMES, **options) -> documents.Input:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return documents.open_input(str(path), columns, **options)


def found(source: documents.Input) -> list[Document]:
    return [source.parse(raw) for chunk in source.chunks() for raw in chunk]


def words(document: Document) -> list[str]:
    return [document.text[start:end] for start, end in document.words]


CORPORA = {  # name -> (file name, content, words of every sentence, columns)
    "columns by number": ("x.txt", NUMBERED, [["Anna", "sang"]], BY_NUMBER),
    "a column of words by number": ("x", NUMBERED, [["Anna", "sang"]], Columns("2")),
    "prefixes and O, tabs": ("x.txt", "Anna\tB-PER\nsang\tO\n", [["Anna", "sang"]], NO_NAMES),
    "prefixes and O, blanks": ("x.data", "Anna B-PER\nsang O\n\nOslo B-LOC\n", [["Anna", "sang"], ["Oslo"]], NO_NAMES),
    "no suffix": ("x", "Anna NNP B-PER\nsang VBD O\n", [["Anna", "sang"]], NO_NAMES),
    "a dot in the name": ("x.en.v2", "Anna NNP B-PER\nsang VBD O\n", [["Anna", "sang"]], NO_NAMES),
    "types without a prefix": ("x.txt", "Anna\tperson-actor\nsang\tO\n\nOslo\tlocation-GPE\n", [["Anna", "sang"], ["Oslo"]], NO_NAMES),
    "one odd tag": ("x.txt", "Anna\tB-PER\nsang\tO\nx\tUNK\n", [["Anna", "sang", "x"]], NO_NAMES),
    "one odd tag, blanks": ("x.txt", "Anna B-PER\nsang O\nx UNK\n", [["Anna", "sang", "x"]], NO_NAMES),
    "an empty word": ("x.txt", "Anna B-PER\n O\nsang O\n", [["Anna", "", "sang"]], NO_NAMES),
    "an empty word, tabs": ("x.txt", "Anna\tB-PER\n\tO\nsang\tO\n", [["Anna", "", "sang"]], NO_NAMES),
    "parts of speech": ("x.txt", "The\tDT\ncat\tNN\nsat\tVBD\n\nA\tDT\ndog\tNN\nran\tVBD\n", [["The", "cat", "sat"], ["A", "dog", "ran"]], NO_NAMES),
    "without O": ("x.txt", "Anna\tB-PER\nBerg\tI-PER\n", [["Anna", "Berg"]], NO_NAMES),
    "without entities": ("x.txt", "it\tO\nrained\tO\n", [["it", "rained"]], NO_NAMES),
    "BMES": ("x.txt", "王 B-PER\n小 M-PER\n明 E-PER\n在 O\n", [["王", "小", "明", "在"]], NO_NAMES),
    "other separators": ("x.txt", "Anna B_PER\nsang O\n", [["Anna", "sang"]], NO_NAMES),
    "suffixes": ("x.txt", "Anna PER-B\nsang O\n", [["Anna", "sang"]], NO_NAMES),
    "lower case": ("x.txt", "Anna b-per\nsang o\n", [["Anna", "sang"]], NO_NAMES),
    "comments": ("x.txt", "# id 0a1b\tdomain=en\nanna _ _ B-PER\nsang _ _ O\n", [["anna", "sang"]], NO_NAMES),
    "CoNLL-U": ("x.txt", "# text = x\n1\tAnna" + "\t_" * 8 + "\n2\tsang" + "\t_" * 8 + "\n", [["Anna", "sang"]], NO_NAMES),
    "a header": ("x.txt", "word\ttag\nAnna\tB-PER\nsang\tO\n\nOslo\tB-LOC\n", [["Anna", "sang"], ["Oslo"]], NO_NAMES),
    "a header, blanks": ("x.txt", "Token Tag\nAnna B-PER\nsang O\n\nOslo B-LOC\n", [["Anna", "sang"], ["Oslo"]], NO_NAMES),
    "commas": ("x.txt", "Anna,B-PER\nsang,O\n", [["Anna", "sang"]], NO_NAMES),
    "ATIS": ("x.txt", "BOS anna flew EOS\tO B-name O atis_flight\n", [["BOS", "anna", "flew", "EOS"]], NO_NAMES),
    # tables without tags
    "one column": ("x.csv", "text\nAnna sang.\nBo ran.\n", [["Anna", "sang", "."], ["Bo", "ran", "."]], NO_NAMES),
    "one column, a comma": ("x.csv", 'text\n"Anna, sang"\nBo\n', [["Anna", ",", "sang"], ["Bo"]], NO_NAMES),
    "one column, a line end": ("x.csv", 'text\n"Anna\nsang"\nBo\n', [["Anna", "sang"], ["Bo"]], NO_NAMES),
    "one column of lists": ("x.csv", "tokens\n\"['Anna', 'sang']\"\n", [["Anna", "sang"]], NO_NAMES),
    "one column, tsv": ("x.tsv", "text\nAnna sang.\n", [["Anna", "sang", "."]], NO_NAMES),
    "one column, capitals": ("x.csv", '"Text"\r\n"Anna sang."\r\n', [["Anna", "sang", "."]], NO_NAMES),
    "one column by its name": ("x.csv", "review\nAnna sang.\n", [["Anna", "sang", "."]], Columns("Review")),
    "one column of words": ("x.csv", "tokens\nAnna\nsang\n\nBo\n", [["Anna", "sang"], ["Bo"]], NO_NAMES),
    "words": ("x.tsv", "Anna\nsang\n\nBo\n", [["Anna", "sang"], ["Bo"]], NO_NAMES),
    "words, conll": ("x.conll", "Anna\nsang\n\nBo\n", [["Anna", "sang"], ["Bo"]], NO_NAMES),
    "empty labels": ("x.csv", "id,text,label\n1,It rained.,\n2,Bo ran.,\n", [["It", "rained", "."], ["Bo", "ran", "."]], NO_NAMES),
    "empty labels, commas": ("x.csv", 'id,text,label\n1,"It rained, and",\n2,Bo,\n', [["It", "rained", ",", "and"], ["Bo"]], NO_NAMES),
    "classes": ("x.csv", "text,label\nIt rained.,pos\nBo ran.,neg\n", [["It", "rained", "."], ["Bo", "ran", "."]], NO_NAMES),
    "an id and a list": ("x.csv", "id,tokens\n1,\"['Anna', 'sang']\"\n", [["Anna", "sang"]], NO_NAMES),
    "a list, and tags that are none": ("x.csv", "id,tokens,tags\n1,\"['Anna', 'sang']\",?\n", [["Anna", "sang"]], NO_NAMES),
    "id and text": ("x.csv", "id,text\n1,Anna sang.\n2,Bo.\n", [["Anna", "sang", "."], ["Bo", "."]], NO_NAMES),
    # JSON that is no object a line
    "an array": ("x.jsonl", '[\n{"text": "Anna"},\n{"text": "Bo"}\n]\n', [["Anna"], ["Bo"]], NO_NAMES),
    "an array, pretty": ("x.txt", json.dumps([{"text": "Anna", "id": 1}, {"text": "Bo"}], indent=2), [["Anna"], ["Bo"]], NO_NAMES),
    "tuples of spaCy": ("x.json", '[["Anna sang", {"entities": [[0, 4, "PER"]]}], ["Bo", {"entities": []}]]', [["Anna", "sang"], ["Bo"]], NO_NAMES),
    "GLiNER": ("x.json", '[{"tokenized_text": ["Anna", "sang"], "ner": [[0, 0, "PER"]]}]', [["Anna", "sang"]], NO_NAMES),
    "SpERT": ("x.json", '[{"tokens": ["Anna", "sang"], "entities": [{"type": "PER", "start": 0, "end": 1}], "relations": []}]', [["Anna", "sang"]], NO_NAMES),
    "JSON-MIN": ("x.json", '[{"text": "Anna sang", "id": 1, "label": [{"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}]}, {"text": "It rained", "id": 2}]', [["Anna", "sang"], ["It", "rained"]], NO_NAMES),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_has_its_words(name, tmp_path):
    file_name, content, expected, columns = CORPORA[name]
    source = opened(tmp_path, file_name, content, columns)
    assert [words(document) for document in found(source)] == expected
    assert source.format == "corpus"


TEXTS = {  # name -> content
    "ends with I": "Anna and I\nBo and I\n",
    "one line": "so am I\n",
    "ends with B": "Plan B\n",
    "sizes": "size L\nsize M\nsize S\n",
    "E-mail": "send E-mail\nread E-mail\n",
    "roads": "take I-95\ntake I-80\n",
    "planes": "a B-52\nthe B-52\n",
    "vitamins": "take O\ntake B-12\n",
    "initials": "John W\nMary M\n",
    "letters": "B\nI\nO\n",
    "parallel text": "the cat\tdie Katze\na dog\tein Hund\n",
    "parallel text in groups": "the cat\tdie Katze\n\na dog\tein Hund\n",
    "parallel words": "cat\tKatze\ndog\tHund\n\nbird\tVogel\n",
    "blood groups": "Anna\tA\nBo\tO\nCy\tB\n",
    "ten words, a number": "2020 was a bad year for all of the arts.\n1999 was a good year for all of the arts.\n",
    "ten words, a list": "1. Go to the shop and buy some fresh milk\n",
    "a box": "[ ] buy milk\n[x] call Bo\n",
    "an empty list": "[] is a list\n[ ]\n",
    "a footnote": "[1] See there.\n[2] See here.\n",
    "only a footnote": "[1]\n[2]\n",
    "a quote in brackets": '["Hello," she said.]\nBo\n',
    "a name in braces": "{Anna} flew.\nBo.\n",
    "a template": "{name} flew to {city}\n",
    "braces": "{} is an object\n",
    "an object in a sentence": '{"a": 1} is an object\nBo\n',
    "a set": '{"a": b} is a mapping\nBo\n',
    "Parquet": "PAR1 is a word\nx\n",
    "a sentence of names": "Word by word, tag by tag\nline by line\n",
    "prose": "It rained.\n\nAnna sang, and Bo ran.\n",
    "a poem": "the fog comes\non little cat feet\n\nit sits looking\n",
    "numbers": "1 2 3\n4 5 6\n",
    "numbers and tabs": "1\t2\t3\n4\t5\t6\n\n4\t5\t6\n7\t5\t6\n",
    "lines with a tab": "Name:\tAnna\nTown:\tOslo\n",
    "words": "Anna\nsang\n\nBo\n",
    "markdown": "# Title\n\n- one\n- two\n\n| a | b |\n|---|---|\n",
    "commas": "Anna, Bo\nCy, Di\n",
    "names of columns": "Word\tTag\n",
    "names of columns, a comma": "text,tags\n",
    "names of columns, a semicolon": "text;tags\nAnna sang\n",
    "blank lines": "\n\nAnna\n\n",
}


@pytest.mark.parametrize("suffix", [".txt", ".md", ""])
@pytest.mark.parametrize("name", TEXTS)
def test_plain_text_has_a_document_a_line(name, suffix, tmp_path):
    source = opened(tmp_path, "x" + suffix, TEXTS[name])
    assert source.format == "text"
    assert [document.text for document in found(source)] == TEXTS[name].removesuffix("\n").split("\n")


def test_flags_of_training_do_not_make_a_text_a_corpus(tmp_path):
    source = opened(tmp_path, "x.txt", "Anna sang.\nBo ran.\n", BY_NUMBER, is_named=False)
    assert source.format == "text" and len(found(source)) == 2
    assert opened(tmp_path, "x.txt", "Anna\tx\nBo\ty\n", is_named=True).format == "corpus"  # a file of the run


JSON_LINES = {  # name -> (content, words of every document, columns)
    "a list in a string": ("{\"tokens\": \"['Anna', 'sang']\"}\n", [["Anna", "sang"]], NO_NAMES),
    "commas": ('{"text": "Anna"},\n{"text": "Bo"},\n', [["Anna"], ["Bo"]], NO_NAMES),
    "two on a line": ('{"text": "Anna"} {"text": "Bo"}\n{"text": "Cy"}\n', [["Anna"], ["Bo"], ["Cy"]], NO_NAMES),
    "an array on a line": ('[{"text": "Anna"}, {"text": "Bo"}]\n', [["Anna"], ["Bo"]], NO_NAMES),
    "tuples of spaCy": ('["Anna sang", {"entities": [[0, 4, "PER"]]}]\n', [["Anna", "sang"]], NO_NAMES),
    "tasks of Label Studio": ('{"id": 1, "data": {"body": "Anna sang", "text": "zz"}, "annotations": [{"result": []}]}\n', [["Anna", "sang"]], Columns("body")),
    "case": ('{"Body": "Anna sang", "text": "zz"}\n', [["Anna", "sang"]], Columns("body")),
    "a number": ('{"id": "a", "body": "Anna sang", "text": "zz"}\n', [["Anna", "sang"]], Columns("2")),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
@pytest.mark.parametrize("name", JSON_LINES)
def test_json_lines(name, suffix, tmp_path):
    content, expected, columns = JSON_LINES[name]
    source = opened(tmp_path, "x" + suffix, content, columns)
    documents_ = found(source)
    assert [words(document) for document in documents_] == expected
    assert source.format == "json" and all(document.record for document in documents_)


def test_a_column_of_training_that_is_not_there_is_not_used(tmp_path):
    source = opened(tmp_path, "x.jsonl", '{"text": "Anna"}\n', Columns("body"), is_named=False)
    assert [words(document) for document in found(source)] == [["Anna"]]
    source = opened(tmp_path, "x.jsonl", '{"text": "Anna", "id": 3}\n', Columns("2"), is_named=False)
    assert [words(document) for document in found(source)] == [["Anna"]]
    with pytest.raises(ValueError, match="no column 'body' among text"):
        found(opened(tmp_path, "x.jsonl", '{"text": "Anna"}\n', Columns("body")))


def test_a_column_that_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="among name; name it with --text_column_name"):
        found(opened(tmp_path, "x.csv", "name\nAnna sang.\n"))
    (document,) = found(opened(tmp_path, "x.conll", "Anna\tB-PER\t_\nsang\tO\t_\n"))  # tags are not used
    assert words(document) == ["Anna", "sang"]
    with pytest.raises(ValueError, match="x.txt:1: the words are numbers"):
        opened(tmp_path, "x.txt", NUMBERED)


def test_a_value_that_is_no_word_is_named(tmp_path):
    source = opened(tmp_path, "x.csv", "tokens,ner_tags\n\"['Anna', None]\",\"['B-PER', 'O']\"\n")
    with pytest.raises(ValueError, match="a word is null"):
        found(source)
    with pytest.raises(ValueError, match="x.csv:2: a word is null"):
        read(tmp_path / "x.csv")


# --------------------------------------------------------------------------------------------------
# Real commands


@pytest.fixture(scope="module")
def model(encoders, tmp_path_factory) -> str:
    """Trained on columns 2 and 3 of a .txt file, which has no tag such as B-PER."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.txt").write_text("1\tAnna\tPER\tx\n2\tsang\tO\tx\n\n1\tBo\tPER\tx\n")
    flags = ["--train_file", folder / "train.txt", "--text_column_name", 2, "--label_column_name", 3]
    train("--output_dir", folder / "out", "--model_name_or_path", encoders["wordpiece"], "--max_steps", 1, *flags)
    return str(folder / "out")


@pytest.fixture(scope="module")
def ner_model(encoders, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("trained") / "out")
    train("--output_dir", folder, "--model_name_or_path", encoders["wordpiece"], "--max_steps", 1)
    return folder


def tag(*flags) -> str:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["infer.py", *map(str, flags)])
        infer.main()
    return printed.getvalue()


def refused(capsys, *flags) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        tag(*flags)
    return capsys.readouterr().err.splitlines()[-1]


def words_of(printed: str) -> list[str]:
    return [line.partition("\t")[0] for line in printed.splitlines()]


def test_a_file_of_the_run_is_read_as_training_read_it(model, tmp_path):
    trained_on = model.removesuffix("out") + "train.txt"
    assert words_of(tag(model, "--input_file", trained_on, "--format", "conll")) == ["Anna", "sang", "", "Bo", ""]
    assert "3 words" in tag(model, "--input_file", trained_on, "--evaluate")
    (tmp_path / "x.txt").write_text("Anna sang\nBo ran\n")
    printed = tag(model, "--input_file", tmp_path / "x.txt", "--format", "conll")
    assert words_of(printed) == ["Anna", "sang", "", "Bo", "ran", ""]


def test_flags_make_a_file_a_corpus(ner_model, tmp_path):
    (tmp_path / "x.txt").write_text(NUMBERED)
    flags = ["--text_column_name", 2, "--label_column_name", 3, "--format", "conll"]
    assert words_of(tag(ner_model, "--input_file", tmp_path / "x.txt", *flags)) == ["Anna", "sang", ""]


ENCODINGS = {  # name -> (content, what the error says)
    "latin-1": ("Malmö\n".encode("latin-1"), ":1: not UTF-8, but probably ISO-8859-1; convert it: iconv -f ISO-8859-1"),
    "utf-16": ("Anna sang in Malmö\n".encode("utf-16"), ":1: not UTF-8, but probably UTF-16; convert it: iconv -f UTF-16"),
    "carriage returns": (b"Anna\rsang\r", ":1: lines end with CR only; convert it: tr"),
    "one line": ("Malmö\nMalmö\n".encode() + b"Malm\xf6\n", ":3: not UTF-8, but other lines are; fix this line (1 in all)"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_another_encoding_is_refused_with_its_command(name, suffix, ner_model, tmp_path, capsys):
    path = tmp_path / f"x{suffix}"
    content, expected = ENCODINGS[name]
    if suffix == ".jsonl" and name in ("latin-1", "one line"):
        content = b"".join(b'{"text": "%s"}\n' % line for line in content.splitlines())
    path.write_bytes(content)
    assert refused(capsys, ner_model, "--input_file", path).startswith(f"error: {path}{expected}")


def test_single_bad_lines_are_skipped(ner_model, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"Anna\nMalm\xf6\nBo\n")
    out = tmp_path / "out.conll"
    tag(ner_model, "--input_file", tmp_path / "x.txt", "--output_file", out, "--skip_bad_lines")
    assert words_of(out.read_text()) == ["Anna", "", "Bo", ""]
    assert [json.loads(line)["line"] for line in (tmp_path / "out.conll.errors").read_text().splitlines()] == [2]


def test_evaluation_prints_the_notes_of_training(ner_model, tmp_path, capsys):
    expected = {
        "Anna 1\nsang 0\n": "tags are numbers without names: entities cannot be scored",
        "Anna\tO\nsang\tO\n": "every tag is O",
        "Anna\tB-PER\tO\nOslo\tO\tB-LOC\n": "column 3 is read as tags, but column 2 (B-PER) could be",
        "Anna B-PER\nsang O\n": "the only entity type is PER",
    }
    for content, note in expected.items():
        (tmp_path / "x.conll").write_text(content)
        capsys.readouterr()
        tag(ner_model, "--input_file", tmp_path / "x.conll", "--evaluate")
        assert re.search(rf"^(note|warning): {re.escape(note)}", capsys.readouterr().err, re.MULTILINE)


def test_another_spelling_than_the_models_is_refused(ner_model, tmp_path, capsys):
    (tmp_path / "x.conll").write_text("Anna B_PER\nsang O\n")
    error = refused(capsys, ner_model, "--input_file", tmp_path / "x.conll", "--evaluate")
    assert (
        f"{tmp_path}/x.conll: tags such as B_PER are spelled otherwise than the labels of the model, such as" in error
    )


@pytest.mark.parametrize(
    ("tags", "labels", "is_same"),
    [
        (["B-PER", "O"], ["O", "B-PER", "I-PER"], True),
        (["B-ODD"], ["O", "B-PER"], True),
        (["O"], ["O", "B-PER"], True),
        (["B_PER"], ["O", "B_PER", "I_PER"], True),
        (["B_PER"], ["O", "B-PER"], False),
        (["PER-B", "O"], ["O", "B-PER"], False),
        (["B-PER", "M-PER", "E-PER", "O"], ["O", "B-PER", "I-PER"], False),
        (["B", "I", "O"], ["O", "B-PER", "I-PER"], False),
        (["NOUN", "VERB"], ["O", "B-PER"], True),  # noted otherwise
        (["B-PER", "O"], ["NOUN", "VERB"], True),
    ],
)
def test_spellings_of_a_file_and_of_a_model(tags, labels, is_same):
    with contextlib.nullcontext() if is_same else pytest.raises(ValueError, match="f: tags such as"):
        check_same_spelling("f", tags, labels)
