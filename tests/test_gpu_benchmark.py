"""tests/benchmarks/gpu.py runs to completion on the simulated GPU. No time that it prints there is one of a GPU."""

import json
import shutil

import pytest
from conftest import run
from simulated_gpu import is_supported

pytestmark = pytest.mark.skipif(not is_supported()[0], reason=is_supported()[1])


@pytest.fixture
def results(corpus, encoders, tmp_path):
    """Runs a command with tiny settings. Returns name -> the JSON object of a check, and what was printed."""
    (tmp_path / "data").mkdir()
    for flag, path in corpus.items():
        shutil.copy(path, tmp_path / "data" / f"{flag[2:].removesuffix('_file')}.conll")

    def results_of(command: str, *flags) -> tuple[dict[str, dict], str]:
        files = ["--encoder", encoders["wordpiece"], "--data", tmp_path / "data", "--out", tmp_path / "out"]
        script = ["tests/simulated_gpu.py", "tests/benchmarks/gpu.py", command, "--quick", "--deadline", 3000]
        done = run(*script, *files, *flags, timeout=900)
        checks = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
        lines, _, table = done.stdout.partition("Results\n")
        assert [check["name"] for check in checks if check["status"] == "FAIL"] == [], done.stdout + done.stderr
        assert done.returncode == 0, done.stdout + done.stderr
        for check in checks:
            assert {"date", "gpu", "torch", "transformers", "seconds", "figures"} <= check.keys()
            line = f"{check['status']} {check['name']}: "
            assert line in lines and line in table
        assert len(table.splitlines()) == len(checks)
        return {check["name"]: check for check in checks}, done.stdout

    return results_of


@pytest.mark.slow
def test_some_checks_of_prove(results):
    only = ["machine", "attention", "encoder/roberta", "graphs/fp32", "no-wait/distilbert"]
    checks, printed = results("prove", "--only", *only)
    assert len(checks) == 13
    assert {check["status"] for check in checks.values()} == {"PASS"}
    assert checks["machine"]["gpu"] == "simulated GPU"
    assert checks["attention/fp32/64"]["figures"]["dq"] < 1e-6 < checks["attention/bf16/64"]["figures"]["dq"]
    assert checks["encoder/roberta/fp32"]["figures"]["error"] < 1e-5
    graphs = checks["graphs/fp32"]["figures"]
    assert graphs["bitwise"] and 5 < graphs["graphs"] <= 20
    assert "(not a measurement)" in printed


@pytest.mark.slow
def test_prove(results):
    checks, _ = results("prove")
    skipped = [] if shutil.which("compute-sanitizer") else ["memcheck"]
    assert [name for name, check in checks.items() if check["status"] == "SKIP"] == skipped
    assert checks["encoder/modernbert/fp32"]["figures"].keys() == {"refused"}
    for name in ("SIGKILL", "SIGTERM"):
        assert checks[f"train/{name}"]["figures"]["difference"] == 0
    for name in ("cuda_graphs", "torchrun", "fsdp"):
        assert checks[f"train/{name}"]["figures"]["difference"] == 0


@pytest.mark.slow
def test_measure(results):
    checks, printed = results("measure")
    assert "SKIP" not in {check["status"] for check in checks.values()}
    padded, packed, graphs = (
        checks[f"cell/MiniLM/4/{variant}"]["figures"] for variant in ("padded", "packed", "graphs")
    )
    assert padded["padding"] > 0.1 > packed["padding"] == graphs["padding"]
    launches = checks["launches/MiniLM"]["figures"]
    assert launches["padded, autocast"] > launches["packed, autocast"] > launches["packed, 16-bit weights"] + 30
    assert launches["packed step"] > 3 * launches["graphs step"] and 0 < launches["graphs"] <= 9
    assert checks["evaluation"]["figures"]["same labels"] and checks["evaluation"]["figures"]["sentences"] == 23
    assert "655" in printed.partition("predicted")[2]


@pytest.mark.slow
def test_versus(results, tmp_path):
    checks, _ = results("versus")
    assert checks.keys() == {"versus/base/32", "f1", "trace/packed", "trace/padded"}
    assert all(name in checks["versus/base/32"]["figures"] for name in ("ours", "guide", "best", "accelerate"))
    assert len(checks["f1"]["figures"]["default test"]) == 1
    for variant in ("packed", "padded"):
        assert 1e4 < (tmp_path / "out" / f"trace-{variant}.json.gz").stat().st_size < 16 * 2**20


@pytest.mark.slow
def test_no_check_is_started_after_the_deadline(results):
    checks, _ = results("prove", "--only", "attention", "train", "--deadline", 0)
    assert len(checks) > 10 and {check["status"] for check in checks.values()} == {"SKIP"}
