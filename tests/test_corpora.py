"""tests/benchmarks/corpora.py: both contestants train, the tables hold their scores, a second call repeats nothing."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, results


def run(*command, timeout: int) -> subprocess.CompletedProcess:
    """A process of its own: the script starts others, which import it by its path."""
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
@pytest.mark.parametrize("with_validation", [True, False])
def test_both_contestants_on_a_corpus(with_validation, corpus, encoders, tmp_path):
    (tmp_path / "data").mkdir()
    for flag, path in corpus.items():
        split = flag[2:].removesuffix("_file")
        if with_validation or split != "validation":
            shutil.copy(path, tmp_path / "data" / f"{split}.conll")
    command = ["tests/benchmarks/corpora.py", tmp_path / "data", "--model_name_or_path", encoders["wordpiece"]]
    command += ["--seeds", 1, 2, "--epochs", 2, "--output_dir", tmp_path / "out", "--markdown", tmp_path / "table.md"]
    done = run(*command, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = {path.name: results(path) for path in sorted((tmp_path / "out").iterdir())}
    assert list(runs) == ["Trainer-1", "Trainer-2", "nanotagger-1", "nanotagger-2"]
    assert len({scores["test_words"] for scores in runs.values()}) == 1
    table = (tmp_path / "table.md").read_text()
    for name, scores in runs.items():
        assert scores["train_runtime"] > 0 and "eval_f1" in scores
        row = next(line for line in table.splitlines() if line.startswith(f"| {name.split('-')[0]} |"))
        assert f"| {scores['test_f1']:.4f} ± " in row
    assert table in done.stdout

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/all_results.json")}
    again = run(*command, timeout=100)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/all_results.json")} == written
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == rows
