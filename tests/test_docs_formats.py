"""docs/formats.md: every example is read with the flags below it, or refused as it says; every conversion runs.

In a block ```console, "$ cat FILE" is followed by the file, "$ python train.py ..." by nothing, or by its error.
"""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, data_args, load, read, write_conll

import data
import infer
import train
from util import documents, sources
from util.columns import label_columns, text_columns

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# (command, what is below it), in the order of the page.
STEPS = [part.split("\n", 1) for block in BLOCKS for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
TRAIN = "python train.py --train_file "
ERRORS = {command.removeprefix(TRAIN): below.strip() for command, below in STEPS if below.startswith("error: ")}
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CONLL_2003 = "CoNLL, 4 columns: tokens, pos_tags, chunk_tags, tags"
REGIONS = "text 'text', regions of Label Studio"

# What a careful reader sees in the example: how the file is read (the beginning of the line), and its sentences as
# "word/tag word/tag". A word "␣" is a blank. An empty sentence is a record that is left out. The key is the command,
# from the name of the file on.
EXPECTED = {
    "two.conll": ("CoNLL, 2 columns: tokens, tags", ["Anna/B-PER sang/O", "Oslo/B-LOC"]),
    "eng.train": (CONLL_2003, ["EU/I-ORG rejects/O"]),
    "eng.train --task_name pos": (CONLL_2003, ["EU/NNP rejects/VBZ"]),
    "comments.tsv": ("CoNLL, 2 columns: tokens, tags", ["We/O are/O #/B-RANK 1/I-RANK ␣/O"]),
    "en_ewt-ud-train.iob2 --text_column_name 2 --label_column_name 3": ("CoNLL, 5 columns", ["In/O Oslo/B-LOC"]),
    "NER-de-train.tsv --text_column_name 2 --label_column_name 3": ("CoNLL, 4 columns", ["Uni/B-ORG Oslo/I-ORG"]),
    "en_train.conll": (CONLL_2003, ["anna/B-PER sang/O"]),
    "train.char.bmes": ("CoNLL, 2 columns: tokens, tags", ["王/B-PER 小/M-PER 明/E-PER 在/O"]),
    "wikiann.conll": ("CoNLL, 2 columns: tokens, tags", ["Anna/B-PER sang/O"]),
    "atis.txt": (
        "a sentence a line, 2 columns: tokens, tags",
        ["BOS/O fly/O to/O new/B-toloc.city_name york/I-toloc.city_name EOS/O"],
    ),
    "es-ud-train.conllu --task_name pos": ("CoNLL-U; words 'tokens', tags 'upos'", ["a/ADP el/DET Prado/PROPN"]),
    "es-ud-train.conllu --label_column_name xpos": (
        "CoNLL-U; words 'tokens', tags 'xpos'",
        ["a/sps00 el/da0ms0 Prado/np00000"],
    ),
    "es-ud-train.conllu --label_column_name name": (
        "CoNLL-U; words 'tokens', tags 'name'",
        ["a/O el/O Prado/B-LOC"],
    ),
    "HIPE-2022-train-en.tsv --label_column_name NE-COARSE-LIT": (
        "TSV, 4 columns: TOKEN, NE-COARSE-LIT, NE-FINE-LIT, MISC; words 'TOKEN', tags 'NE-COARSE-LIT'",
        ["Anna/B-pers sang/O", "Oslo/B-loc"],
    ),
    "words.csv": ("CSV, 3 columns: sentence_id, word, tag", ["EU/B-ORG rejects/O", "Peter/B-PER"]),
    "sentences.csv": ("CSV, 2 columns: tokens, ner_tags", ["EU/B-ORG rejects/O", "Peter/B-PER Blackburn/I-PER"]),
    "kaggle.csv": ("CSV, 4 columns: Sentence #, Word, POS, Tag", ["Anna/B-per sang/O", "Oslo/B-geo"]),
    "kaggle.csv --task_name pos": ("CSV, 4 columns: Sentence #, Word, POS, Tag", ["Anna/NNP sang/VBD", "Oslo/NNP"]),
    "ner.csv": ("CSV, 6 columns: (1), sentence_idx, (3), word, tag, (6)", ["Anna/B-PER sang/O"]),
    "pandas.csv": ("CSV, 3 columns: (1), tokens, tags", ["Anna/B-PER sang/O", "It/O didn't/O rain/O"]),
    "train.jsonl": ("JSON Lines; words 'tokens', tags 'ner_tags'", ["Anna/B-PER sang/O"]),
    "array.json --text_column_name form --label_column_name ne": (
        "JSON array; words 'form', tags 'ne'",
        ["Anna/B-PER sang/O"],
    ),
    "prodigy.jsonl": ("JSON Lines; text and spans of Prodigy", ["Anna/B-PER sang/O", "It/O rained/O", ""]),
    "all.jsonl": ("JSON Lines; text 'text', spans 'label'", ["Anna/B-PER sang/O in/O Oslo/B-LOC"]),
    "relations.jsonl": ("JSON Lines; text 'text', spans 'entities'", ["Anna/B-PER sang/O"]),
    "project.json": (f"JSON array; {REGIONS}", ["Anna/B-PER sang/O"]),
    "min.json": (f"JSON array; {REGIONS} 'label'", ["Anna/B-PER sang/O", "It/O rained/O"]),
    "project.csv": ("CSV, 4 columns: id, label, lead_time, text", ["Anna/B-PER sang/O", "It/O rained/O"]),
    "project.conll": (CONLL_2003, ["Anna/B-PER sang/O"]),
    "gliner.json": (
        "JSON array; words 'tokenized_text', token spans 'ner' (GLiNER)",
        ["Anna/B-person Berg/I-person sang/O"],
    ),
    "conll04_train.json": (
        "JSON array; words 'tokens', token spans 'entities' (SpERT)",
        ["Anna/B-Peop Berg/I-Peop sang/O"],
    ),
    "tuples.json": ("JSON array; text 'text', spans 'entities'", ["Anna/B-PER sang/O", "It/O rained/O"]),
    "anntoconll.conll --text_column_name 4 --label_column_name 1": ("CoNLL, 4 columns", ["Anna/B-PER sang/O"]),
    "emoji.jsonl": (
        "JSON Lines; text 'text', spans 'label', counted in UTF-16 units",
        ["😀/O Anna/B-PER sang/O in/O Oslo/B-LOC"],
    ),
    "both.jsonl --span_offsets utf16": (
        "JSON Lines; text 'text', spans 'label', counted in UTF-16 units",
        ["😀/O 王/B-PER 小/O 明/O"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the examples, after the commands that convert them."""
    folder = tmp_path_factory.mktemp("examples")
    for command, below in STEPS:
        if command.startswith("cat "):
            (folder / command.removeprefix("cat ")).write_text(below, encoding="utf-8")
        elif not command.startswith(TRAIN):
            subprocess.run(["bash", "-ec", command], cwd=folder, check=True)
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def arguments_of(example: str):
    return data.get_args(["--train_file", *shlex.split(example)])


def as_text(sentence: dict) -> str:
    return " ".join(f"{word.replace(' ', '␣')}/{tag}" for word, tag in zip(sentence["tokens"], sentence["tags"]))


def run_python(code: str, folder) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def the_python_with(text: str) -> str:
    (code,) = [code for code in PYTHON if text in code]
    return code


# ---- examples


def test_every_command_of_the_page_has_an_expected_result():
    commands = [command for command, _ in STEPS]
    examples = [command.removeprefix(TRAIN) for command in commands if command.startswith(TRAIN)]
    assert sorted(examples) == sorted([*EXPECTED, *ERRORS])
    others = [command for command in commands if not command.startswith((TRAIN, "cat "))]
    assert {command.split()[0] for command in others} == {"sed", "iconv"}
    assert len(ERRORS) == 3 and len(PYTHON) == 3


@pytest.mark.parametrize("example", EXPECTED)
def test_an_example_is_read_as_a_reader_sees_it(example, in_folder):
    args = arguments_of(example)
    source = sources.open_file(args.train_file, data.columns_of(args))
    sentences, _ = sources.read_source(source)
    description, expected = EXPECTED[example]
    assert list(map(as_text, sentences)) == expected
    assert source.read_as.startswith(description)


@pytest.mark.parametrize("example", ERRORS)
def test_an_example_is_refused_as_printed(example, in_folder):
    args = arguments_of(example)
    with pytest.raises(ValueError) as error:
        sources.read_source(sources.open_file(args.train_file, data.columns_of(args)))
    assert f"error: {error.value}".startswith(ERRORS[example])


@pytest.mark.parametrize("example", EXPECTED)
def test_infer_reads_the_words_that_training_reads(example, in_folder):
    args = arguments_of(example)
    texts = documents.open_input(args.train_file, data.columns_of(args))
    found = [texts.parse(raw) for chunk in texts.chunks() for raw in chunk]
    words = [[document.text[start:end] for start, end in document.words] for document in found]
    expected = [[pair.rpartition("/")[0].replace("␣", " ") for pair in text.split()] for text in EXPECTED[example][1]]
    if example == "prodigy.jsonl":
        expected[-1] = ["Hm"]  # rejected: nothing to train on, but a text to tag
    assert words == expected


def test_formats_are_refused_by_name(tmp_path):
    table = PAGE[PAGE.index("| tool | one record | error |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| [^|{]+ \| `(\{.*\})` \| `([^`]+)` \|$", table, re.MULTILINE)
    assert len(rows) == 7 == table.count("\n") - 1
    for record, quoted in rows:
        (tmp_path / "refused.jsonl").write_text(record)
        with pytest.raises(ValueError, match=re.escape(quoted)):
            read(tmp_path / "refused.jsonl")


def test_what_the_page_recommends_for_any_tool_is_read(tmp_path):
    paragraph = PAGE[PAGE.index("Some formats are refused by name") :].partition("\n\n")[0]
    records = re.findall(r"`(\{.*?\})`", paragraph)
    assert len(records) == 2
    for record in records:
        (tmp_path / "train.jsonl").write_text(record)
        assert list(map(as_text, read(tmp_path / "train.jsonl"))) == ["Anna/B-PER sang/O"]


# ---- conversions


def test_parquet_and_save_to_disk(tmp_path, monkeypatch):
    run_python(the_python_with("to_parquet"), tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = ["Anna/B-PER sang/O", "It/O rained/O"]
    sentences, names = sources.read_file("train.parquet", data.columns_of(data_args()))
    assert (list(map(as_text, sentences)), names) == (expected, ("O", "B-PER", "I-PER"))
    opened = sources.open_sources({}, "my_set", None, data.columns_of(data_args()))
    sentences, names = sources.read_source(opened["train"])
    assert (list(map(as_text, sentences)), names) == (expected, ("O", "B-PER", "I-PER"))


SPACY = """
class Entity:
    start_char, end_char, label_ = 5, 11, "LOC"

class Doc:
    text, ents = "Café Müller 😀", [Entity]

class DocBin:
    def from_disk(self, path):
        assert path == "train.spacy"
        return self

    def get_docs(self, vocab):
        return iter([Doc])

class blank:
    vocab = None

    def __init__(self, language):
        pass
"""


def test_spacy_files_are_converted(tmp_path):
    """With a substitute for spaCy, whose objects have these attributes."""
    (tmp_path / "spacy").mkdir()
    (tmp_path / "spacy" / "__init__.py").write_text(SPACY, encoding="utf-8")
    (tmp_path / "spacy" / "tokens.py").write_text("from spacy import DocBin")
    run_python(the_python_with("DocBin"), tmp_path)
    assert list(map(as_text, read(tmp_path / "spacy.jsonl"))) == ["Café/O Müller/B-LOC 😀/O"]


def test_folders_of_brat_are_converted(tmp_path):
    folder = tmp_path / "brat"
    folder.mkdir()
    (folder / "b.txt").write_text("It rained.\n", encoding="utf-8")
    (folder / "b.ann").write_text("", encoding="utf-8")
    (folder / "a.txt").write_bytes("Anna Müller sang.\r\n\r\n  In Oslo, Anna slept.\r\n".encode())
    lines = [
        "T1\tPER 0 11\tAnna Müller",
        "T2\tLOC 26 30\tOslo",
        "T3\tPER 32 36;43 44\tAnna .",  # of two parts
        "T4\tTEXT 12 25\tsang.  In",  # extends over two lines
        "A1\tNegation T1",
        "R1\tlives_in Arg1:T1 Arg2:T2",
    ]
    (folder / "a.ann").write_text("\n".join(lines), encoding="utf-8")
    run_python(the_python_with("brat.jsonl"), tmp_path)
    assert list(map(as_text, read(tmp_path / "brat.jsonl"))) == [
        "Anna/B-PER Müller/I-PER sang/O ./O",
        "In/O Oslo/B-LOC ,/O Anna/O slept/O ./O",
        "It/O rained/O ./O",
    ]


def test_the_error_for_latin_1_holds_a_command_that_converts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.conll").write_bytes("Anna B-PER\nMüller I-PER\n".encode("latin-1"))
    (printed,) = re.findall(r"`(not UTF-8, [^`]*)`", PAGE)
    with pytest.raises(ValueError) as error:
        read("old.conll")
    assert str(error.value) == f"old.conll:2: {printed}"
    subprocess.run(["bash", "-ec", printed.partition("convert it: ")[2]], check=True)
    assert list(map(as_text, read("old.conll.utf8"))) == ["Anna/B-PER Müller/I-PER"]


# ---- tables, names and flags


@pytest.mark.parametrize(
    ("tags", "scheme", "num_entities"),
    [
        ("B-PER I-PER O B-PER", "IOB2", 2),
        ("I-PER I-PER O I-PER", "IOB1", 2),
        ("B-PER E-PER O S-PER", "BIOES", 2),
        ("B-PER L-PER O U-PER", "BILOU", 2),
        ("B-PER E-PER O W-PER", "BMEOW", 2),
        ("NOUN NOUN VERB NOUN", "plain tags", 4),
    ],
)
def test_the_tags_of_the_table_of_schemes_have_that_scheme(tags, scheme, num_entities, encoders, tmp_path):
    assert f"`{tags}`" in PAGE[PAGE.index("| scheme |") :].partition("\n\n")[0]
    write_conll(tmp_path / "train.conll", [{"tokens": ["Anna", "Berg", "met", "Li"], "tags": tags.split()}])
    split = load(encoders["wordpiece"], train_file=tmp_path / "train.conll")[0]["train"]
    assert (split.read_scheme, len(split.entities)) == (scheme, num_entities)


def test_the_names_of_columns_are_those_that_are_searched():
    words, _, tags = PAGE[PAGE.index("Words: `tokens`") : PAGE.index("`<task>` is `--task_name`")].partition("Tags:")
    columns = data.columns_of(data_args(task_name="pos"))
    assert re.findall(r"`(\w+)`", words) == text_columns(columns)
    names = [name.replace("<task>", "pos") for name in re.findall(r"`([<>\w]+)`", tags)]
    names.remove("pos")  # of "`upos` for `pos`", or of `<task>`
    assert sorted(names) == sorted(label_columns(columns))


def test_every_flag_of_the_page_exists(monkeypatch, capsys):
    flags = set(re.findall(r"--[a-z_]\w+", PAGE)) - {"--export"}  # of label-studio
    known = {f"--{name}" for name in vars(train.get_args([]))}
    monkeypatch.setattr("sys.argv", ["infer.py", "outputs", "text"])
    known |= {f"--{name}" for name in vars(infer.get_args())}
    assert flags - known == set()
