"""data.py --prepare: what is prepared trains as what is read, each sentence once, and no finished shard is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT, flat, load, read, results, run, train, weights, write_conll

import data


def prepare(folder, flags: dict, encoder: str, **more) -> list[str]:
    """In this process, as `python data.py ... --prepare folder`; what it says."""
    args = data.LookArguments(
        prepare=str(folder), model_name_or_path=encoder, **{name[2:]: value for name, value in flags.items()} | more
    )
    said = []
    data.write_prepared(args, said.append)
    return said


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(data, "SHARD", 9)


def prepared(folder, encoder: str, **flags):
    args = data.DataArguments(dataset_name=str(folder), model_name_or_path=encoder, **flags)
    _, _, splits, labels = data.load(args)
    return splits, labels


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_is_prepared_is_what_is_read(kind, small_shards, encoders, corpus, tmp_path):
    flags = {"max_seq_length": 20, "stride": 6}  # many windows
    said = prepare(tmp_path / "p", corpus, encoders[kind], **flags)
    assert len(said) == 7 and re.match(r"61 sentences \| 100% \| [\d,]+ sentences/s \| 0.0 min left", said[-1])
    ours, labels = prepared(tmp_path / "p", encoders[kind], **flags)
    theirs, expected = load(encoders[kind], size=20, stride=6, **{k[2:]: v for k, v in corpus.items()})
    assert labels == expected and list(ours) == list(theirs)
    one, other = ours["train"], theirs["train"]
    assert len(one.rows) == len(other.rows) > 61
    for (ids, tags), (other_ids, other_tags) in zip(one.rows, other.rows):
        assert ids.tolist() == other_ids.tolist() and tags.tolist() == other_tags.tolist()
    assert one.rows.num_labels.tolist() == other.rows.num_labels.tolist()
    assert [one.row_place(i) for i in range(len(one.rows))] == [other.row_place(i) for i in range(len(other.rows))]
    for name in ("scheme", "num_sentences", "num_words", "num_unknown", "where"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.vocabulary().tolist() == other.vocabulary().tolist() and one.used.tolist() == other.used.tolist()
    for split in ("validation", "test"):
        assert ours[split].fingerprint == theirs[split].fingerprint
    assert {*data.checks(ours, labels, 20)} <= {*data.checks(theirs, labels, 20)}


def test_what_is_prepared_trains_as_what_is_read(small_shards, encoders, corpus, tmp_path):
    model = ["--model_name_or_path", encoders["wordpiece"]]
    flags = [*model, "--max_steps", 9, "--precision", "fp32", "--per_device_train_batch_size", 16]
    prepare(tmp_path / "p", corpus, encoders["wordpiece"])
    train("--dataset_name", tmp_path / "p", *flags, "--output_dir", tmp_path / "a")
    train(*flat(corpus), *flags, "--output_dir", tmp_path / "b")
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("train_loss", "eval_f1", "test_f1", "eval_words"):
        assert results(tmp_path / "a")[name] == results(tmp_path / "b")[name]


def test_a_look_at_what_is_prepared(small_shards, encoders, corpus, tmp_path):
    prepare(tmp_path / "p", corpus, encoders["wordpiece"])
    args = data.LookArguments(dataset_name=str(tmp_path / "p"), model_name_or_path=encoders["wordpiece"])
    _, tokenizer, splits, labels = data.load(args)
    said = data.report(splits, labels, tokenizer, args).splitlines()
    words = sum(len(row["tokens"]) for row in read(corpus["--train_file"]))
    assert said[:2] == [f"train: {corpus['--train_file']}", f"  61 sentences, {words:,} words, IOB2 tags"]
    assert said[2].startswith("  prepared: 61 rows | words with an unknown subword: ")
    files = data.LookArguments(model_name_or_path=encoders["wordpiece"], **{k[2:]: v for k, v in corpus.items()})
    _, tokenizer, splits, labels = data.load(files)
    expected = data.report(splits, labels, tokenizer, files).splitlines()
    assert said[3:] and [line for line in said[3:] if line not in expected] == []


def test_labels_are_known_only_when_all_shards_are(small_shards, encoders, tmp_path):
    """A shard numbers the tags that it has; in training they are those of the whole corpus."""
    rows = [{"tokens": ["Peter", "sleeps"], "tags": [f"B-{kind}", "O"]} for kind in ["Z"] * 9 + ["A"] * 9 + ["M"] * 3]
    write_conll(tmp_path / "x.conll", rows)
    prepare(tmp_path / "p", {"--train_file": str(tmp_path / "x.conll")}, encoders["wordpiece"])
    splits, labels = prepared(tmp_path / "p", encoders["wordpiece"])
    assert labels == ["O", "B-A", "B-M", "B-Z"]
    found = [labels[tags[tags >= 0][0]] for _, tags in splits["train"].rows]
    assert found == ["B-Z"] * 9 + ["B-A"] * 9 + ["B-M"] * 3


def test_iob1_is_recognised_in_the_first_shard_and_read_as_iob2_in_all(small_shards, encoders, tmp_path):
    rows = [{"tokens": ["Peter", "Miller", "Oslo"], "tags": ["I-PER", "I-PER", "B-PER"]}] * 12
    write_conll(tmp_path / "x.conll", [*rows, {"tokens": ["Oslo"], "tags": ["I-PER"]}])
    prepare(tmp_path / "p", {"--train_file": str(tmp_path / "x.conll")}, encoders["wordpiece"])
    splits, labels = prepared(tmp_path / "p", encoders["wordpiece"])
    assert labels == ["B-PER", "I-PER"] and splits["train"].scheme == "IOB2"
    assert [tags[tags >= 0].tolist() for _, tags in splits["train"].rows][-2:] == [[0, 1, 0], [0]]
    assert [str(finding) for finding in splits["train"].findings] == ["13 tags of IOB1, read as IOB2"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"max_seq_length": 64}, "--max_seq_length"),
        ({"stride": 7}, "--stride"),
        ({"label_all_tokens": True}, "--label_all_tokens"),
    ],
)
def test_another_preparation_is_refused(flags, problem, encoders, corpus, tmp_path):
    prepare(tmp_path / "p", corpus, encoders["wordpiece"])
    with pytest.raises(ValueError, match=f"prepared with another {problem}; use that one, or prepare another folder"):
        prepared(tmp_path / "p", encoders["wordpiece"], **flags)
    with pytest.raises(ValueError, match=f"prepared with another {problem}; choose another folder, or remove it"):
        prepare(tmp_path / "p", corpus, encoders["wordpiece"], **flags)


@pytest.mark.parametrize("name", ["array.json", "x.parquet", "saved"])
def test_sources_without_lines_are_prepared_too(name, small_shards, encoders, corpus, tmp_path):
    rows = read(corpus["--train_file"])
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in ("tokens", "tags")})
    if name == "array.json":
        (tmp_path / name).write_text(json.dumps(rows))  # one line, without an end
    else:
        table.to_parquet(tmp_path / name) if name == "x.parquet" else table.save_to_disk(tmp_path / name)
    flag = "--dataset_name" if name == "saved" else "--train_file"
    said = prepare(tmp_path / "p", {flag: str(tmp_path / name)}, encoders["wordpiece"])
    assert said[-1].startswith("61 sentences | 100% ")
    one, _ = prepared(tmp_path / "p", encoders["wordpiece"])
    other, _ = load(encoders["wordpiece"], 128, **{flag[2:]: str(tmp_path / name)})
    assert len(one["train"].rows) == len(other["train"].rows)
    for (ids, tags), (other_ids, other_tags) in zip(one["train"].rows, other["train"].rows):
        assert ids.tolist() == other_ids.tolist() and tags.tolist() == other_tags.tolist()
    assert one["train"].row_place(40) == other["train"].row_place(40)


def test_another_tokenizer_corpus_or_folder_is_refused(encoders, corpus, tmp_path):
    prepare(tmp_path / "p", corpus, encoders["wordpiece"])
    with pytest.raises(ValueError, match="prepared with another tokenizer"):
        prepared(tmp_path / "p", encoders["bpe"], max_seq_length=128)
    assert prepare(tmp_path / "p", corpus, encoders["wordpiece"]) == []  # done already
    with pytest.raises(ValueError, match="prepared with another test data"):
        prepare(tmp_path / "p", corpus | {"--test_file": corpus["--train_file"]}, encoders["wordpiece"])
    with pytest.raises(ValueError, match="prepared with another train data"):
        prepare(tmp_path / "p", corpus | {"--train_file": corpus["--test_file"]}, encoders["wordpiece"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        prepare(tmp_path / "mine", corpus, encoders["wordpiece"])
    with pytest.raises(ValueError, match="give --validation_file"):
        prepare(tmp_path / "q", {"--train_file": corpus["--train_file"]}, encoders["wordpiece"], validation_split=0.1)
    assert not (tmp_path / "q").exists()


def test_a_bad_line_is_named_and_finished_shards_stay(small_shards, encoders, corpus, tmp_path):
    good = open(corpus["--train_file"], encoding="utf-8").read()
    (tmp_path / "x.conll").write_text(good + "\n\nalone\n")
    with pytest.raises(ValueError, match=rf"x.conll:{good.count(chr(10)) + 3}: 'alone' has no tag"):
        prepare(tmp_path / "p", {"--train_file": str(tmp_path / "x.conll")}, encoders["wordpiece"])
    assert len(list((tmp_path / "p" / "train").glob("*.json"))) >= 5
    with pytest.raises(ValueError, match="not prepared to its end; the command with --prepare goes on"):
        prepared(tmp_path / "p", encoders["wordpiece"])


SMALL_SHARDS = "import sys, data; data.SHARD = 40; sys.argv[0] = 'data.py'; data.main()"


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_ends_as_one_that_was_not(encoders, tmp_path):
    """kill -9 at several moments: no worker stays, no finished shard is written again, the folder is the same."""
    write_conll(tmp_path / "x.conll", read(ROOT / "samples" / "train.conll") * 2)
    flags = ["--train_file", tmp_path / "x.conll", "--model_name_or_path", encoders["wordpiece"], "--prepare"]
    command = [sys.executable, "-c", SMALL_SHARDS, *map(str, flags)]
    whole = subprocess.run([*command, tmp_path / "whole"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert whole.returncode == 0, whole.stderr
    seen, kills = {}, 0
    shards = tmp_path / "killed" / "train"
    while True:
        process = subprocess.Popen([*command, tmp_path / "killed"], cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(shards.glob("*.json"))) < len(seen) + 25:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        deadline = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{child}") and _lives(child) for child in children):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.05)
        for path in shards.glob("*.json"):
            made = seen.setdefault(path.name, path.stat().st_mtime_ns)
            assert made == path.stat().st_mtime_ns
    assert process.returncode == 0 and kills >= 2
    assert all((shards / name).stat().st_mtime_ns == made for name, made in seen.items())
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.slow
def test_an_interrupted_preparation_says_how_to_go_on(encoders, tmp_path):
    write_conll(tmp_path / "x.conll", read(ROOT / "samples" / "train.conll") * 8)
    flags = ["--train_file", tmp_path / "x.conll", "--model_name_or_path", encoders["wordpiece"], "--prepare"]
    command = [sys.executable, "-c", SMALL_SHARDS, *map(str, flags), tmp_path / "p"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("p/train/*.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and stderr == f"error: {tmp_path / 'p'}: stopped; the same command goes on\n"


def _lives(child: str) -> bool:
    try:
        return open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_real_commands(encoders, corpus, tmp_path):
    """Prepared once, trained on by one process, and from its checkpoint by two ranks."""
    model = ["--model_name_or_path", encoders["wordpiece"]]
    done = run("data.py", *flat(corpus), *model, "--prepare", tmp_path / "p")
    assert done.returncode == 0 and "is ready: train.py --dataset_name" in done.stdout, done.stderr
    flags = ["--dataset_name", tmp_path / "p", *model, "--max_steps", 12, "--precision", "fp32", "--save_steps", 3]
    train(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "one")
    leave = shutil.ignore_patterns("all_results.json", "step-00000012")
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=leave)
    said = train(*flags, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "two", ranks=2)
    assert "resumed from" in said and "step-00000009" in said  # in the midst of the second epoch of eight steps
    assert results(tmp_path / "two")["world_size"] == 2
    bad = run("train.py", "--dataset_name", tmp_path / "p", *model, "--stride", 3, "--output_dir", tmp_path / "bad")
    assert bad.returncode == 2 and re.fullmatch(r"error: .*prepared with another --stride; .*\n", bad.stderr)


@pytest.mark.slow
def test_an_epoch_over_a_million_prepared_sentences_reads_each_once_whatever_the_ranks_and_resumes(encoders, tmp_path):
    with open(tmp_path / "x.conll", "w", encoding="utf-8") as file:
        for number in range(1_000_000):
            file.write(f"call B-X\n{number} O\n\n")
    prepare(tmp_path / "p", {"--train_file": str(tmp_path / "x.conll")}, encoders["wordpiece"])
    splits, _ = prepared(tmp_path / "p", encoders["wordpiece"])
    rows = splits["train"].rows
    assert len(rows) == splits["train"].num_sentences == 1_000_000
    places = rows.table["place"].to_numpy()
    assert (places == 1 + 3 * np.arange(1_000_000)).all()
    for ranks in (1, 2, 3):
        for grouped in (False, True) if ranks == 2 else (False,):
            seen = np.zeros(1_000_000, np.int64)
            resumed = 7_000  # some ranks and steps before, the others by a process that begins here
            for first, last in ((0, resumed), (resumed, None)):
                for rank in range(ranks):
                    order = data.global_batches(rows.lengths, 96, 42, 3, grouped, first)
                    mine = data.micro_batches(order, 2, rank, ranks)
                    for number, batch in enumerate(mine):
                        if last is not None and number >= 2 * (last - first):
                            break
                        seen[batch] += 1
            assert (seen == 1).all(), (ranks, grouped)
