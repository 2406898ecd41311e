"""Large corpora: blocks, parts and processes change no result, and what is finished is not repeated after a kill."""

import contextlib
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import copies
import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT, flat, load, read, results, run, train, weights, write_conll

import data
from util import blocks, corpus_scan, data_report
from util.split import Split
from util.workers import exit_with_parent

SETTINGS = {
    "small blocks": {"block_size": 300},
    "small parts": {"part_size": 9},
    "small batches": {"scan_batch_size": 4},
    "three processes": {"large": 5, "cores": 3},
    "all": {"block_size": 300, "part_size": 40, "scan_batch_size": 4, "large": 5, "cores": 2},
}


@contextlib.contextmanager
def settings(cache, block_size=None, part_size=None, scan_batch_size=None, large=None, cores=None):
    """Other sizes of blocks, parts and batches than those for files of gigabytes, with a separate cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        if block_size:
            patch.setattr(blocks, "BLOCK_SIZE", block_size)
            patch.setattr(blocks, "ROWS_PER_BLOCK", 9)
        if part_size:
            patch.setattr(corpus_scan, "PART_SIZE", part_size)
        if scan_batch_size:
            patch.setattr(corpus_scan, "SCAN_BATCH_SIZE", scan_batch_size)
        if large:
            patch.setattr(corpus_scan, "MULTIPROCESS_ABOVE", large)
        if cores:
            patch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        yield


def load_with(cache, encoder: str, changed: dict, **flags) -> dict[str, Split]:
    with settings(cache, **changed):
        splits, _ = load(encoder, **flags)
        return splits


def num_cached(cache) -> int:
    return len(list(Path(cache).rglob("*.arrow")))


def assert_same_windows(one: Split, other: Split) -> None:
    assert len(one.windows) == len(other.windows)
    for row in range(len(one.windows)):
        assert one.windows[row].keys() == other.windows[row].keys()
        for name, values in one.windows[row].items():
            assert values.tolist() == other.windows[row][name].tolist()
        assert one.window_position(row) == other.window_position(row)


def assert_same_split(one: Split, other: Split) -> None:
    assert_same_windows(one, other)
    names = ("name", "label_list", "scheme", "iob1", "num_violations", "first_violations", "notes", "fingerprint")
    for name in (*names, "num_sentences", "num_words", "entities"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("label_counts", "token_ids", "lengths", "tags"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    for name in ("lengths", "num_labels", "subwords"):
        assert getattr(one.windows, name).tolist() == getattr(other.windows, name).tolist(), name
    for name in ("unknown_words", "truncated_words"):
        assert one.windows.total(name) == other.windows.total(name), name
    for mine, theirs in zip(one.windows.dropped_words(), other.windows.dropped_words()):
        assert mine.tolist() == theirs.tolist()


@pytest.fixture
def odd_corpus(corpus, tmp_path) -> dict[str, str]:
    """The corpus with unknown words, words without subwords, long words, and tags that break their scheme."""
    sentences = read(corpus["--train_file"])
    odd = {"tokens": ["\u4f60", "\u200e", "x" * 200, "Oslo", "\u200e"], "tags": ["B-PER", "O", "O", "I-LOC", "I-LOC"]}
    write_conll(tmp_path / "odd.conll", [odd, *sentences[:20], odd, *sentences[20:], odd])
    return corpus | {"--train_file": str(tmp_path / "odd.conll")}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", pytest.param("unigram", marks=pytest.mark.slow)])
def test_blocks_parts_batches_and_processes_change_nothing(kind, encoders, odd_corpus, tmp_path):
    flags = {"size": 20, "stride": 6} | {name[2:]: value for name, value in odd_corpus.items()}  # many windows
    expected = load_with(tmp_path / "one part", encoders[kind], {}, **flags)
    assert len(expected["train"].windows) > 64 and expected["train"].num_violations == 3
    assert len(expected["train"].windows.dropped_words()[0]) == (6 if kind == "wordpiece" else 0)
    num_files = num_cached(tmp_path / "one part")
    for name, changed in SETTINGS.items() if kind == "wordpiece" else [("all", SETTINGS["all"])]:
        splits = load_with(tmp_path / name, encoders[kind], changed, **flags)
        assert list(splits) == list(expected)
        assert name == "small batches" or num_cached(tmp_path / name) > num_files
        for split in splits:
            assert_same_split(splits[split], expected[split])
        assert data_report.checks(splits, 20) == data_report.checks(expected, 20)


def test_changed_sizes_do_not_read_parts_of_other_sizes_from_the_cache(encoders, corpus, tmp_path):
    flags = {"train_file": corpus["--train_file"]}
    expected = load_with(tmp_path, encoders["wordpiece"], {}, **flags)
    for part_size in (20, 9):
        splits = load_with(tmp_path, encoders["wordpiece"], {"part_size": part_size}, **flags)
        assert_same_split(splits["train"], expected["train"])


def test_training_does_not_depend_on_parts_and_processes(encoders, corpus, tmp_path):
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--max_steps", 9, "--precision", "fp32"]
    for name, changed in (("one part", {}), ("all", SETTINGS["all"])):
        with settings(tmp_path / f"{name} cache", **changed):
            train(*flags, "--output_dir", tmp_path / name)
    one, other = weights(tmp_path / "one part"), weights(tmp_path / "all")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for name in ("train_loss", "eval_f1", "test_f1", "eval_words", "fingerprint"):
        assert results(tmp_path / "one part")[name] == results(tmp_path / "all")[name]


def test_python_data_py_prints_the_same_whatever_the_parts(encoders, corpus, tmp_path, capsys, monkeypatch):
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_seq_length", "20"]
    monkeypatch.setattr(sys, "argv", ["data.py", *flat(corpus), *flags])
    printed = []
    for name, changed in (("one part", {}), ("all", SETTINGS["all"])):
        with settings(tmp_path / name, **changed):
            data.main()
        lines = capsys.readouterr().out.splitlines()  # three sources, and "... sentences ready in ... s"
        printed.append([*lines[:3], *lines[4:]])
    words = sum(len(sentence["tokens"]) for sentence in read(corpus["--train_file"]))
    assert printed[0][3:5] == [f"train: {corpus['--train_file']}", f"  61 sentences, {words:,} words, IOB2 tags"]
    assert printed[0] == printed[1]


def test_labels_are_those_of_all_blocks(encoders, tmp_path):
    rows = [{"tokens": ["Peter", "sleeps"], "tags": [f"B-{kind}", "O"]} for kind in ["Z"] * 9 + ["A"] * 9 + ["M"] * 3]
    write_conll(tmp_path / "x.conll", rows)
    changed = {"block_size": 100, "part_size": 9}
    train_set = load_with(tmp_path, encoders["wordpiece"], changed, train_file=tmp_path / "x.conll")["train"]
    assert train_set.label_list == ["O", "B-A", "B-M", "B-Z"]
    labels = [window["labels"] for window in train_set.windows]
    found = [train_set.label_list[row[row >= 0][0]] for row in labels]
    assert found == ["B-Z"] * 9 + ["B-A"] * 9 + ["B-M"] * 3


def test_iob1_is_recognized_from_all_parts_and_converted_in_all(encoders, tmp_path):
    """Only the last part has a tag that IOB2 does not allow."""
    rows = [{"tokens": ["Peter", "Miller", "Oslo"], "tags": ["O", "O", "O"]}] * 12
    last = {"tokens": ["Peter", "Miller", "Oslo"], "tags": ["I-PER", "I-PER", "B-PER"]}
    write_conll(tmp_path / "x.conll", [*rows, last, {"tokens": ["Oslo"], "tags": ["I-PER"]}])
    changed = {"block_size": 100, "part_size": 9}
    train_set = load_with(tmp_path, encoders["wordpiece"], changed, train_file=tmp_path / "x.conll")["train"]
    assert train_set.label_list == ["O", "B-PER", "I-PER"] and train_set.scheme == "IOB2"
    labels = [window["labels"] for window in train_set.windows]
    assert [row[row >= 0].tolist() for row in labels][-3:] == [[0, 0, 0], [1, 2, 1], [1]]
    assert [str(note) for note in train_set.notes] == ["2 IOB1 tags converted to IOB2"]


@pytest.mark.parametrize("name", ["array.json", "x.parquet", "saved"])
def test_sources_without_lines_have_parts_too(name, encoders, corpus, tmp_path):
    rows = read(corpus["--train_file"])
    table = datasets.Dataset.from_list(rows)
    if name == "array.json":
        (tmp_path / name).write_text(json.dumps(rows))  # one line, without a line feed at its end
    elif name == "x.parquet":
        table.to_parquet(tmp_path / name, batch_size=5)
    else:
        table.save_to_disk(tmp_path / name)
    flag = "dataset_name" if name == "saved" else "train_file"
    flags = {flag: tmp_path / name, "size": 128}
    expected = load_with(tmp_path / "one part", encoders["wordpiece"], {}, **flags)["train"]
    train_set = load_with(tmp_path / "all", encoders["wordpiece"], SETTINGS["all"], **flags)["train"]
    assert len(expected.windows) == 61 and num_cached(tmp_path / "all") > 8
    assert_same_split(train_set, expected)


def test_a_bad_line_is_named_and_finished_blocks_stay(encoders, corpus, tmp_path):
    good = Path(corpus["--train_file"]).read_text(encoding="utf-8")
    (tmp_path / "x.conll").write_text(good + "\n\nalone\n")
    bad_line = good.count("\n") + 3
    with pytest.raises(ValueError, match=rf"x.conll:{bad_line}: 'alone' has no tag"):
        load_with(tmp_path, encoders["wordpiece"], {"block_size": 300}, train_file=tmp_path / "x.conll")
    assert num_cached(tmp_path) >= 5


# ---- kills

START = """
import os, signal, sys
import datasets
import data
from util import blocks, corpus_scan
datasets.config.HF_DATASETS_CACHE = {cache!r}
blocks.BLOCK_SIZE, corpus_scan.PART_SIZE = 4000, 200
corpus_scan.MULTIPROCESS_ABOVE, corpus_scan.SCAN_BATCH_SIZE = 10, 50
os.sched_getaffinity = lambda pid: {{0, 1}}
"""


@pytest.fixture
def flags(encoders, tmp_path) -> list[str]:
    write_conll(tmp_path / "x.conll", read(ROOT / "samples" / "train.conll")[:800])
    return ["--train_file", str(tmp_path / "x.conll"), "--model_name_or_path", encoders["wordpiece"]]


@pytest.fixture
def command(flags, tmp_path):
    """Starts `python data.py` with small blocks and parts: command(cache, code that is executed before main)."""
    numbers = itertools.count()

    def start(cache, code: str = "") -> copies.Command:
        before = START.format(cache=str(cache)) + code
        return copies.start(ROOT, tmp_path / f"printed{next(numbers)}", "data.py", *flags, before=before)

    return start


def finished_files(cache) -> dict[str, int]:
    """The files of finished blocks and parts in a cache -> when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(cache).rglob("nanotagger/*.arrow")}


def children_of(pid: int) -> list[int]:
    """The running child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_killed_command_continues_and_ends_like_one_that_was_not_killed(command, tmp_path):
    """SIGKILL at several moments: no worker survives, no finished file is written again, all files are the same."""
    code, expected, errors = command(tmp_path / "whole").wait()
    assert code == 0, errors
    num_files, cache = len(finished_files(tmp_path / "whole")), tmp_path / "killed"
    finished, kills = {}, 0
    while True:
        running = command(cache)
        (process,) = running.processes
        goal = len(finished) + num_files // 6
        while process.exitcode is None and len(finished_files(cache)) < goal:
            time.sleep(0.01)
        if process.exitcode is not None:
            break
        workers = children_of(process.pid)
        process.kill()
        process.join()
        kills += 1
        deadline = time.monotonic() + 10
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker survived its parent"
            time.sleep(0.05)
        now = finished_files(cache)
        assert {name: now[name] for name in finished} == finished
        finished = now
    code, printed, errors = running.wait()
    assert code == 0 and kills >= 3, errors
    assert printed.splitlines()[2:] == expected.splitlines()[2:]  # behind "... sentences ready in ... s"
    now = finished_files(cache)
    assert {name: now[name] for name in finished} == finished
    assert now.keys() == finished_files(tmp_path / "whole").keys()
    for path in (tmp_path / "whole").rglob("nanotagger/*.arrow"):
        assert path.read_bytes() == (cache / path.relative_to(tmp_path / "whole")).read_bytes(), path.name


KILLED_WORKERS = {
    "reading": ("blocks._write_block", "{source}"),
    "counting tags": ("corpus_scan._scan_tags", "counting tags"),
    "tokenizing": ("data.tokenize_batch", "tokenizing"),
}


@pytest.mark.parametrize("where", ["reading", pytest.param("counting tags", marks=pytest.mark.slow), "tokenizing"])
def test_a_killed_worker_ends_the_command_with_one_line_and_the_next_one_continues(where, command, tmp_path):
    function, place = KILLED_WORKERS[where]
    code = f"""
parent, original = os.getpid(), {function}
calls = os.path.join({str(tmp_path)!r}, "calls")
def killed_from_third_call_on(*arguments, **options):
    with open(calls, "a") as file:
        file.write(".")
    if os.getpid() != parent and os.path.getsize(calls) >= 3:  # 4 if two workers write before either reads
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
{function} = killed_from_third_call_on
"""
    exit_code, _, errors = command(tmp_path / "cache", code).wait()
    place = place.format(source=tmp_path / "x.conll")
    expected = f"error: {place}: a process was killed (out of memory?); the same command continues\n"
    assert (exit_code, errors) == (2, expected)
    finished = finished_files(tmp_path / "cache")
    assert finished
    exit_code, _, errors = command(tmp_path / "cache").wait()
    assert exit_code == 0, errors
    now = finished_files(tmp_path / "cache")
    assert {name: now[name] for name in finished} == finished and len(now) > len(finished)


def test_ctrl_c_does_not_wait_for_blocks_that_are_being_read(flags, tmp_path):
    code = (
        START.format(cache=str(tmp_path / "cache"))
        + f"""
import time
def slow(task):
    open(os.path.join({str(tmp_path)!r}, "reading"), "w").close()
    time.sleep(60)
blocks._write_block = slow
data.main()
"""
    )
    process = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "reading").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGINT and errors.endswith("KeyboardInterrupt\n")
    assert workers and not any(is_running(worker) for worker in workers)


# ---- order and memory


@pytest.mark.slow
def test_an_epoch_reads_each_of_a_million_sentences_once_whatever_the_ranks_and_resumes(encoders, tmp_path):
    with open(tmp_path / "x.conll", "w", encoding="utf-8") as file:
        for number in range(1_000_000):
            file.write(f"call B-X\n{number} O\n\n")
    split = load_with(tmp_path / "cache", encoders["wordpiece"], {}, train_file=tmp_path / "x.conll")["train"]
    lengths = split.windows.lengths
    assert len(split.windows) == split.num_sentences == 1_000_000
    for row in (0, 1, 123_456, 999_999):
        assert split.window_position(row) == f"{tmp_path / 'x.conll'}:{1 + 3 * row}"
        assert split.sentence(row)[1] == ["call", str(row)]
    for ranks, group_by_length in ((1, False), (2, False), (2, True), (3, False)):
        seen = np.zeros(1_000_000, np.int64)
        resumed = 7_000  # a first process makes this many steps, a second one the others
        for first_step, num_steps in ((0, resumed), (resumed, None)):
            for rank in range(ranks):
                order = data.EpochBatches(lengths, 96, 42, 3, group_by_length)
                for number, rows in enumerate(data.micro_batches(order, first_step, 2, rank, ranks)):
                    if num_steps and number >= 2 * num_steps:
                        break
                    seen[rows] += 1
        assert (seen == 1).all(), (ranks, group_by_length)


PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("peak", max(usage) // 1024)
"""


def peak_memory(printed: str) -> int:
    """In MiB, of the largest process."""
    return int(re.search(r"^peak (\d+)$", printed, re.MULTILINE)[1])


def write_numbered_sentences(path, number: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for i in range(number):
            file.write(f"call O\n{i} O\nin O\nNew B-LOC\nYork I-LOC\n" + "again O\n" * 3 + ". O\n\n")


@pytest.mark.slow
def test_training_on_a_large_corpus_takes_little_memory_and_resumes_on_two_ranks(encoders, tmp_path):
    """At most 250 bytes a sentence of 9 words, of which most are pages of memory-mapped files."""
    peaks, cache, large = {}, tmp_path / "cache", 1_200_000
    write_numbered_sentences(tmp_path / "validation.conll", 100)
    for number in (50_000, large):
        write_numbered_sentences(tmp_path / "x.conll", number)
        flags = ["--train_file", tmp_path / "x.conll", "--validation_file", tmp_path / "validation.conll"]
        flags += ["--model_name_or_path", encoders["wordpiece"], "--precision", "fp32"]
        flags += ["--save_steps", 10, "--eval_steps", 40, "--output_dir", tmp_path / f"{number}"]
        sizes = ["--max_steps", 40, "--per_device_train_batch_size", 8]
        done = run("-c", PEAK, "train.py", *flags, *sizes, timeout=500, HF_HOME=cache)
        assert done.returncode == 0, done.stderr
        assert f"{number:,} sentences, {9 * number:,} words, 3 labels in IOB2" in done.stdout
        assert results(tmp_path / f"{number}")["epoch"] == pytest.approx(40 * 8 / number)
        peaks[number] = peak_memory(done.stdout)
    print(peaks)
    assert peaks[large] - peaks[50_000] < 250 * large / 2**20

    leave = shutil.ignore_patterns("all_results.json", "step-00000040", "runs")  # as after a kill
    shutil.copytree(tmp_path / f"{large}", tmp_path / "two", ignore=leave)
    sizes = ["--max_steps", 40, "--per_device_train_batch_size", 4]
    printed = train(*flags[:-1], tmp_path / "two", *sizes, ranks=2, HF_HOME=cache)
    assert "resumed from" in printed and "step-00000030" in printed
    assert results(tmp_path / "two")["world_size"] == 2
    assert weights(tmp_path / "two").keys() == weights(tmp_path / f"{large}").keys()


def test_the_number_of_processes_follows_the_cores_and_the_corpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    assert corpus_scan.num_processes(corpus_scan.MULTIPROCESS_ABOVE) == 1
    assert corpus_scan.num_processes(corpus_scan.MULTIPROCESS_ABOVE + 1) == 7


def test_workers_end_with_their_parent(tmp_path):
    """A worker that waits for work, and one that works, when their parent is killed."""
    code = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from util.workers import exit_with_parent
pool = ProcessPoolExecutor(2, get_context("fork"), exit_with_parent, (os.getpid(),))
pool.submit(os.getpid).result()
pool.submit(time.sleep, 60)
pool.submit(os.getpid).result()
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    workers = children_of(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Ring:
    """Only the garbage collector destroys it, in whichever process it runs next."""

    destroyed_in: list[int] = []

    def __init__(self):
        self.itself = self

    def __del__(self):
        self.destroyed_in.append(os.getpid())


def destroyed_here(_) -> list[int]:
    gc.collect()
    return Ring.destroyed_in


def test_workers_do_not_destroy_objects_of_the_process_that_started_them():
    Ring()
    with ProcessPoolExecutor(1, get_context("fork"), exit_with_parent, (os.getpid(),)) as pool:
        assert pool.submit(destroyed_here, None).result() == []
    gc.collect()
    assert os.getpid() in Ring.destroyed_in
