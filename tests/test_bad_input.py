# ruff: noqa: E501 - one broken file per line
"""Invalid input ends as one line on stderr and exit code 2, before any training; nothing is overwritten."""

import json

import pytest
from conftest import flat, run

import train
from util import pretrained

GOOD = "EU B-ORG\nsays O\n"


def check(message: str, stdout: str, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in lines[0], stderr
    assert "step" not in stdout
    return lines[0]


@pytest.fixture
def fails(monkeypatch, capsys, encoders):
    """Runs main() in this process: fails("message", "--seed", 1) -> the line on stderr.

    The default encoder is a small one, since it is loaded and tried before the data are read.
    """
    monkeypatch.setattr(pretrained, "packaged_encoder", lambda: encoders["wordpiece"])

    def fails(message: str, *flags) -> str:
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            train.main()
        printed = capsys.readouterr()
        assert ended.value.code == 2 and printed.err.count("\n") == 1, printed.err
        return check(message, printed.out, printed.err)

    return fails


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_real_command_ends_with_one_line_whatever_the_ranks(tmp_path, ranks):
    (tmp_path / "x.conll").write_text(GOOD + "x\n")
    done = run("train.py", "--train_file", tmp_path / "x.conll", "--output_dir", tmp_path / "out", ranks=ranks)
    check("x.conll:3: 'x' has no tag", done.stdout, done.stderr)
    if ranks == 1:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
    else:  # torchrun adds a summary and exits with 1
        assert done.returncode != 0


WORDS = '{"tokens": ["a"], "tags": ["O"]}\n'
TEXT = '{"text": "in Oslo", "label": [[3, 7, "LOC"]]}\n'
FILES = {  # what is wrong -> (file name, content, the line on stderr, flags)
    "missing": ("train.conll", None, "train.conll: no such file"),
    "empty": ("train.conll", "", "train.conll: is empty"),
    "blank": ("train.conll", " \n\t\n", "train.conll: no sentences"),
    "no sentence": ("train.conll", "\n\n-DOCSTART- O\n\n", "train.conll: no sentences"),
    "short line": ("train.conll", GOOD + "alone\n", "train.conll:3: 'alone' has no tag"),
    "short line of three": ("train.conll", "EU NNP B-ORG\nsays O\n", "train.conll:2: 2 columns where the lines above have 3"),
    "long line": ("train.conll", GOOD + "\nEU NNP B-ORG\n", "train.conll:4: 3 columns where the lines above have 2"),
    "blanks in a file of tabs": ("train.conll", "EU\tB-ORG\nNew York B-LOC\n", "train.conll:2: 3 columns where the lines above have 2"),
    "a tab in a file of blanks": ("train.conll", "EU NNP B-ORG\nsays\tVBZ O\n", "train.conll:2: 2 columns where the lines above have 3"),
    "empty tag": ("train.conll", "EU\t\tO\nx\t\t\t\n", "train.conll:2: 'x' has no tag"),
    "empty tag between": ("train.conll", "EU\tB-ORG\tx\nsays\t\tx\n", "train.conll:2: a tag is \"\"", "--label_column_name", "2"),
    "no such column number": ("train.conll", GOOD, "train.conll:1: no column '3' among tokens, tags", "--label_column_name", "3"),
    "words are tags": ("train.conll", GOOD, "train.conll:1: column 'tags' cannot be both", "--text_column_name", "tags"),
    "latin-1": ("train.conll", GOOD.encode() + "café O\n".encode("latin-1"), "train.conll:3: not UTF-8"),
    "utf-16": ("train.conll", GOOD.encode("utf-16"), "train.conll:1: not UTF-8"),
    "binary": ("train.conll", bytes(range(256)) * 4, "train.conll:"),
    "gzip": ("train.conll.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "train.conll.gz:1: not UTF-8"),
    "prose": ("train.txt", "This is not a file of columns.\nNor is this.\n", "train.txt:2: 3 columns where the lines above have 7"),
    "conllu cut off": ("train.conllu", "1\tEU" + "\t_" * 8 + "\n2\tsays\t_\n", "train.conllu:2: not a line of CoNLL-U: 3 columns"),
    "conllu without ner": ("train.conllu", "1\tEU" + "\t_" * 8 + "\n", "train.conllu:1: no column 'ner_tags'"),
    "unequal": ("train.jsonl", WORDS + '{"tokens": ["a", "b"], "tags": ["O"]}\n', "train.jsonl:2: 2 words but 1 tags"),
    "null tag": ("train.jsonl", WORDS + '{"tokens": ["a"], "tags": [null]}\n', "train.jsonl:2: a tag is null"),
    "null word": ("train.jsonl", WORDS + '{"tokens": [null], "tags": ["O"]}\n', "train.jsonl:2: a word is null"),
    "null list": ("train.jsonl", WORDS + '{"tokens": null, "tags": ["O"]}\n', "train.jsonl:2: no words: null"),
    "null tags": ("train.jsonl", WORDS + '{"tokens": ["a"], "tags": null}\n', "train.jsonl:2: no tags: null"),
    "no tags": ("train.jsonl", '{"tokens": ["a"], "x": ["O"]}\n', "train.jsonl:1: no column 'ner_tags' or 'tags'"),
    "no words": ("train.jsonl", WORDS + '{"x": ["a"], "tags": ["O"]}\n', "train.jsonl:2: no column 'tokens' or 'words'"),
    "float tags": ("train.jsonl", '{"tokens": ["a"], "tags": [0.5]}\n', "train.jsonl:1: a tag is 0.5"),
    "nan": ("train.jsonl", '{"tokens": ["a"], "tags": [NaN]}\n', "train.jsonl:1: a tag is NaN"),
    "true": ("train.jsonl", '{"tokens": ["a"], "tags": [true]}\n', "train.jsonl:1: a tag is true"),
    "nested tags": ("train.jsonl", '{"tokens": ["a"], "tags": [["O"]]}\n', "train.jsonl:1: a tag is [\"O\"]"),
    "negative id": ("train.jsonl", '{"tokens": ["a"], "tags": [-100]}\n', "train.jsonl:1: a tag is -100"),
    "empty tag of json": ("train.jsonl", '{"tokens": ["a"], "tags": [""]}\n', 'train.jsonl:1: a tag is ""'),
    "numbers as words": ("train.jsonl", WORDS + '{"tokens": [1], "tags": ["O"]}\n', "train.jsonl:2: a word is 1"),
    "half a character": ("train.jsonl", '{"tokens": ["\\ud83d"], "tags": ["O"]}\n', "train.jsonl:1: 'utf-8' codec can't encode"),
    "truncated line": ("train.jsonl", WORDS + '{"tokens": ["a"], "ta', "train.jsonl:2: not JSON: Unterminated string"),
    "truncated array": ("train.json", "[\n" + WORDS, "train.json:2: the array is not closed"),
    "array broken later": ("train.json", "[\n" + WORDS + ",\n{]", "train.json:4: not JSON"),
    "array of numbers": ("train.json", "[1, 2]", "train.json:1: 1 is not an object with columns"),
    "not json": ("train.json", GOOD, "train.json:1: not JSON"),
    "too deep": ("train.jsonl", WORDS + '{"tokens": ' + "[" * 100_000, "train.jsonl:2: not JSON: maximum recursion depth"),
    "column twice in json": ("train.jsonl", '{"tokens": ["a"], "tags": ["O"], "tags": ["O"]}\n', "train.jsonl:1: not JSON: duplicate column 'tags'"),
    "span outside": ("train.jsonl", TEXT + '{"text": "Oslo", "label": [[0, 5, "LOC"]]}\n', "train.jsonl:2: span 0-5 LOC lies outside the text of 4 characters"),
    "span before": ("train.jsonl", '{"text": "Oslo", "label": [[-1, 3, "LOC"]]}\n', "train.jsonl:1: span -1-3 LOC lies outside"),
    "span backwards": ("train.jsonl", '{"text": "Oslo", "label": [[3, 0, "LOC"]]}\n', "train.jsonl:1: span 3-0 LOC lies outside"),
    "span of nothing": ("train.jsonl", '{"text": "a  b", "label": [[1, 2, "LOC"]]}\n', "train.jsonl:1: span 1-2 LOC holds no word"),
    "span cuts a word": ("train.jsonl", '{"text": "in Oslo", "label": [[3, 5, "LOC"]]}\n', "train.jsonl:1: span 3-5 LOC 'Os' cuts the word 'Oslo'"),
    "overlapping spans": ("train.jsonl", '{"text": "New York", "label": [[0, 8, "LOC"], [4, 8, "ORG"]]}\n', "train.jsonl:1: span 4-8 ORG 'York' overlaps"),
    "span of floats": ("train.jsonl", '{"text": "Oslo", "label": [[0.0, 4.0, "LOC"]]}\n', 'train.jsonl:1: [0.0, 4.0, "LOC"] is not a span'),
    "span without a type": ("train.jsonl", '{"text": "Oslo", "spans": [{"start": 0, "end": 4}]}\n', 'train.jsonl:1: {"start": 0, "end": 4} is not a span'),
    "span of two": ("train.jsonl", '{"text": "Oslo", "label": [[0, 4]]}\n', "train.jsonl:1: [0, 4] is not a span"),
    "span of two types": ("train.jsonl", '{"text": "Oslo", "label": [{"start": 0, "end": 4, "labels": ["A", "B"]}]}\n', "is not a span"),
    "span of another text": ("train.json", '[{"data": {"text": "Oslo"}, "annotations": [{"result": [{"value": {"start": 0, "end": 4, "text": "Rome", "labels": ["LOC"]}}]}]}]',
                             "train.json:1: span 0-4 LOC is 'Oslo' in the text, but annotated as 'Rome'"),
    "broken annotations": ("train.jsonl", '{"data": {"text": "Oslo"}, "annotations": [[]]}\n', "train.jsonl:1: its annotations are not as Label Studio"),
    "spans over words": ("train.jsonl", '{"tokens": ["Oslo"], "label": [[0, 4, "LOC"]]}\n', "train.jsonl:1: a tag is [0, 4, \"LOC\"]"),
    "unequal csv": ("train.csv", "tokens,tags\na b,O\n", "train.csv:2: 2 words but 1 tags"),
    "short csv row": ("train.csv", "tokens,tags\na,O\na\n", "train.csv:3: 1 cells under 2 column names"),
    "long csv row": ("train.csv", "tokens,tags\na,O\na,O,O\n", "train.csv:3: 3 cells under 2 column names"),
    "csv with an open quote": ("train.csv", 'tokens,tags\na,O\n"a,O\n', "train.csv:3: unexpected end of data"),
    "csv column twice": ("train.csv", "tokens,tags,tags\na,O,O\n", "train.csv:1: duplicate column 'tags'"),
    "csv without a header": ("train.csv", "a b,O O\nc,O\n", "train.csv:2: no column 'tokens'"),
    "csv, only a header": ("train.csv", "tokens,tags\n", "train.csv: no sentences"),
    "csv, a word a row without sentences": ("train.csv", "word,tag\na,O\nb,O\n", "train.csv: one word a row, but neither"),
    "csv, a word without a tag": ("train.csv", "sentence_id,word,tag\n1,a,O\n1,b,\n", "train.csv:3: a tag is \"\""),
    "not parquet": ("train.parquet", "abc", "train.parquet: "),
    "parquet cut off": ("train.parquet", b"PAR1\x15\x04", "train.parquet: "),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(fails, case, tmp_path):
    name, content, message, *flags = FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(message, "--train_file", tmp_path / name, *flags, "--output_dir", tmp_path / "out")
    assert str(tmp_path / name) in line
    assert not (tmp_path / "out").exists()


def test_a_bad_validation_file_is_found_before_training_too(fails, corpus, tmp_path):
    (tmp_path / "bad.conll").write_text(GOOD + "x\n")
    flags = flat(corpus | {"--validation_file": tmp_path / "bad.conll"})
    fails("bad.conll:3: 'x' has no tag", *flags, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_file", "samples"], "samples: is a folder"),
        (["--validation_file", "samples/test.conll"], "--train_file is missing"),
        (["--dataset_name", "samples"], "not a folder written by datasets' save_to_disk"),
        (["--dataset_name", "x", "--train_file", "y"], "exclude each other"),
        (["--dataset_name", "nobody/nothing"], "the Hub cannot be reached"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
        (["--model_name_or_path", "samples"], "samples"),
        (["--max_seq_length", "129"], "this encoder reads 128 subwords at most"),
        (["--max_seq_length", "2"], "leaves no room beside 2 special tokens"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--precision", "fp8"], "--precision"),
        (["--strict", "--task_name", "pos"], "--strict needs tags of one scheme: "),
        (["--validation_split", "0.1"], "there is a validation split already"),
        (["--validation_split", "1.5"], "between 0 and 1"),
        (["--learning_rat", "1"], "--learning_rat"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--learning_rate", "-1"], "has to be 0 or more"),
        (["--per_device_train_batch_size", "0"], "has to be above 0"),
        (["--warmup_ratio", "1.5"], "between 0 and 1"),
        (["none.yaml"], "none.yaml: No such file"),
        (["README.md/x.json"], "README.md/x.json"),
        (["--text_column_name", "nope"], "no column 'nope' among"),
        (["--early_stopping_patience", "2", "--train_file", "samples/train.conll"], "needs a validation split"),
    ],
)
def test_a_bad_flag(fails, flags, message, tmp_path):
    fails(message, *flags, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "no_such_flag: 1\n"])
def test_a_bad_file_of_flags(fails, content, tmp_path):
    (tmp_path / "run.yaml").write_text(content)
    fails("run.yaml" if content[0] != "n" else "no_such_flag", tmp_path / "run.yaml", "--output_dir", tmp_path / "out")


def test_a_folder_that_cannot_be_written(fails, corpus, encoders, tmp_path):
    (tmp_path / "file").write_text("mine")
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"]]
    fails("file", *flags, "--output_dir", tmp_path / "file")
    fails("file", *flags, "--output_dir", tmp_path / "file" / "out")
    fails("/proc", *flags, "--output_dir", "/proc/nanotagger")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_slow_tokenizer(fails, encoders, tmp_path):
    import shutil

    shutil.copytree(encoders["wordpiece"], tmp_path / "slow")
    (tmp_path / "slow" / "tokenizer.json").unlink()
    (tmp_path / "slow" / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1}))
    config = json.loads((tmp_path / "slow" / "tokenizer_config.json").read_text())
    config = {"tokenizer_class": "CanineTokenizer"}
    (tmp_path / "slow" / "tokenizer_config.json").write_text(json.dumps(config))
    fails("fast tokenizer", "--model_name_or_path", tmp_path / "slow", "--output_dir", tmp_path / "out")


def test_data_of_two_splits_with_other_label_names(fails, tmp_path):
    import datasets

    def split(*names):
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string"))})
        features["ner_tags"] = datasets.List(datasets.ClassLabel(names=list(names)))
        return datasets.Dataset.from_list([{"tokens": ["a"], "ner_tags": [1]}], features=features)

    datasets.DatasetDict(train=split("O", "B-X"), test=split("O", "B-Y")).save_to_disk(str(tmp_path / "set"))
    fails(
        "(test): its labels, O, B-Y, are not those of another split, O, B-X",
        "--dataset_name",
        tmp_path / "set",
        "--output_dir",
        tmp_path / "out",
    )


def test_an_id_that_no_label_has(fails, tmp_path):
    import datasets
    import pyarrow as pa

    features = datasets.Features({"tokens": datasets.List(datasets.Value("string"))})
    features["ner_tags"] = datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    ids = pa.array([[0], [-1]], pa.list_(pa.int64()))
    table = pa.table({"tokens": [["a"], ["b"]], "ner_tags": ids})
    datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(str(tmp_path / "set"))
    fails(
        "(train): row 2: a tag is -1",
        "--dataset_name",
        tmp_path / "set",
        "--output_dir",
        tmp_path / "out",
    )
