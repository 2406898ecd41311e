# ruff: noqa: E501 - one broken file a line
"""What a user can get wrong ends as one line on stderr and exit code 2, before any training; nothing is overwritten."""

import json

import pytest
from conftest import flat, run

import train

GOOD = "EU B-ORG\nsays O\n"


def check(message: str, stdout: str, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in lines[0], stderr
    assert "step" not in stdout
    return lines[0]


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs main() here, with these flags: fails("what it says", "--seed", 1) -> the line."""

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
    else:  # torchrun adds its own summary and exits with 1
        assert done.returncode != 0


FILES = {
    "missing": ("train.conll", None, "train.conll: no such file"),
    "empty": ("train.conll", "", "train.conll: is empty"),
    "no sentence": ("train.conll", "\n\n-DOCSTART- O\n\n", "train.conll: no sentences"),
    "no tag": ("train.conll", GOOD + "alone\n", "train.conll:3: 'alone' has no tag"),
    "other width": ("train.conll", GOOD + "\nEU NNP B-ORG\n", "train.conll:4: 3 columns where the lines above have 2"),
    "empty tag": ("train.conll", "EU\t\tO\nx\t\t\t\n", "train.conll:2:"),
    "cut off conllu": ("train.conllu", "1\tEU" + "\t_" * 8 + "\n2\tsays\t_\n", "train.conllu:2: not a line of CoNLL-U: 3 columns"),
    "conllu without ner": ("train.conllu", "1\tEU" + "\t_" * 8 + "\n", "train.conllu: no column 'ner_tags'"),
    "latin-1": ("train.conll", GOOD.encode() + "café O\n".encode("latin-1"), "train.conll:3: not UTF-8"),
    "binary": ("train.conll", bytes(range(256)) * 4, "train.conll:"),
    "unequal": ("train.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n',
                "train.jsonl:2: 2 words but 1 tags"),
    "null": ("train.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"], "tags": [null]}\n', "train.jsonl:2: a tag is null"),
    "null list": ("train.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": null, "tags": ["O"]}\n', "train.jsonl:2: no words but 1 tags"),
    "no column": ("train.jsonl", '{"tokens": ["a"], "x": ["O"]}\n', "no column 'ner_tags' or 'tags'"),
    "floats": ("train.jsonl", '{"tokens": ["a"], "tags": [0.5]}\n', "column 'tags' holds"),
    "numbers as words": ("train.jsonl", '{"tokens": [1, 2], "tags": ["O", "O"]}\n', "column 'tokens' holds"),
    "cut off": ("train.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"], "ta', "train.jsonl: cannot be read"),
    "unequal csv": ("train.csv", "tokens,tags\na b,O\n", "train.csv: row 1: 2 words but 1 tags"),
    "not parquet": ("train.parquet", "abc", "train.parquet: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(fails, case, tmp_path):
    name, content, message = FILES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(message, "--train_file", tmp_path / name, "--output_dir", tmp_path / "out")
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
        (["--max_seq_length", "513"], "this encoder reads 512 subwords at most"),
        (["--max_seq_length", "2"], "leaves no room beside 2 special tokens"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--precision", "fp8"], "--precision"),
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
    fails("label names of test differ", "--dataset_name", tmp_path / "set", "--output_dir", tmp_path / "out")


def test_an_id_that_no_label_has(fails, tmp_path):
    import datasets
    import pyarrow as pa

    features = datasets.Features({"tokens": datasets.List(datasets.Value("string"))})
    features["ner_tags"] = datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    ids = pa.array([[0], [-1]], pa.list_(pa.int64()))
    table = pa.table({"tokens": [["a"], ["b"]], "ner_tags": ids})
    datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(str(tmp_path / "set"))
    fails(
        "(train): row 2: tag -1 is none of the 2 labels",
        "--dataset_name",
        tmp_path / "set",
        "--output_dir",
        tmp_path / "out",
    )
