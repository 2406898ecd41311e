"""What train.py prints before the first step and while it trains, on a pipe and on a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from conftest import ROOT, write_conll

from util import header


def split(name: str, sentences: int, words: int, read_as: str = "CoNLL, 2 columns: tokens, tags"):
    return SimpleNamespace(
        name=name, num_sentences=sentences, num_words=words, read_as=read_as, read_scheme="IOB2", label_list=["O"]
    )


def test_splits_that_were_read_alike_share_a_line():
    splits = {"train": split("a.conll", 2400, 36739), "test": split("b.conll", 1, 3)}
    assert header.describe_data(splits) == [
        "train 2,400 sentences of 36,739 words, test 1 of 3 | CoNLL, 2 columns: tokens, tags; IOB2"
    ]


def test_splits_that_were_read_differently_name_their_files():
    splits = {"train": split("a.conll", 5, 9), "validation": split("b.jsonl", 2, 3, "JSON"), "test": split("c", 1, 1)}
    assert header.describe_data(splits) == [
        "train (a.conll) 5 sentences of 9 words, test (c) 1 of 1 | CoNLL, 2 columns: tokens, tags; IOB2",
        "validation (b.jsonl) 2 sentences of 3 words | JSON; IOB2",
    ]


@pytest.mark.parametrize(
    "seconds, steps, total, expected",
    [(10, 10, 10, "0:00 left"), (1, 1, 66, "1:05 left"), (3600, 1, 3, "2:00:00 left"), (0.5, 2, 3, "0:01 left")],
)
def test_time_left(seconds, steps, total, expected):
    assert header.time_left(seconds, steps, total) == expected


def test_a_terminal_has_a_progress_bar_with_time_left_and_the_same_lines(encoders, tmp_path):
    rows = [{"tokens": ["of", "Maria"], "tags": ["O", "B-PER"]}, {"tokens": ["in", "Oslo"], "tags": ["O", "B-LOC"]}]
    write_conll(tmp_path / "x.conll", rows * 8)
    command = [sys.executable, "train.py", "--train_file", tmp_path / "x.conll", "--validation_file"]
    command += [tmp_path / "x.conll", "--model_name_or_path", encoders["wordpiece"], "--max_steps", 4]
    command += ["--eval_steps", 2, "--output_dir", tmp_path / "out"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        printed = process.stdout.read()
    assert process.returncode == 0
    written = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert re.search(r"training: 100%.* 4/4 \[\d\d:\d\d<00:00", written)
    assert "\r" not in printed and "\x1b" not in printed  # stdout is a pipe
    assert len(re.findall(r"^step [24]/4 \| eval loss .*$", printed, re.MULTILINE)) == 2
    assert "tokens/s |" not in printed  # the bar shows it
