"""Training and tagging on a simulated GPU: no host wait in a step, the results of a CPU, fast paths that fail."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import simulated_gpu
from conftest import ROOT, flat, results, run

SUPPORTED, REASON = simulated_gpu.is_supported()
pytestmark = pytest.mark.skipif(not SUPPORTED, reason=REASON)
SIMULATOR = "tests/simulated_gpu.py"
PACKABLE = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert", "eurobert"}
MAX_FP32_ERROR = 1e-5
MAX_BF16_ERROR = 3e-2


class Run(NamedTuple):
    code: int
    stdout: str
    stderr: str
    reports: list[dict]  # of each rank


def on_gpu(report_folder: Path, *command, ranks: int = 1, **env) -> Run:
    """Runs a script on the simulated GPU: on_gpu(tmp_path, "train.py", "--max_steps", 2)."""
    report_folder.mkdir(parents=True, exist_ok=True)
    path = report_folder / "report.json"
    done = run(SIMULATOR, *command, ranks=ranks, SIMULATED_GPU_REPORT=path, **env)
    paths = [Path(f"{path}.{rank}") for rank in range(ranks)] if ranks > 1 else [path]
    reports = [json.loads(path.read_text()) for path in paths if path.exists()]
    return Run(done.returncode, done.stdout, done.stderr, reports)


@pytest.fixture
def flags(corpus, still) -> list:
    """A run of 6 steps without dropout."""
    return [
        *flat(corpus), "--model_name_or_path", still, "--max_steps", 6, "--logging_steps", 3, "--eval_steps", 3,
        "--save_steps", 3, "--learning_rate", 1e-3,
    ]  # fmt: skip


def trained(tmp_path, name: str, *flags, ranks: int = 1, **env) -> tuple[dict, Run]:
    """The results of a run of train.py on the simulated GPU that has to succeed."""
    folder = tmp_path / name
    done = on_gpu(tmp_path / f"{name}-report", "train.py", *flags, "--output_dir", folder, ranks=ranks, **env)
    assert done.code == 0, done.stdout + done.stderr
    return results(folder), done


def waits_in_steps(done: Run) -> list[str]:
    return [
        f"{wait['what']} in {wait['where']}"
        for report in done.reports
        for wait in report["host_waits"]
        if wait["in_step"]
    ]


# ---- encoders


@pytest.fixture(scope="module")
def examined(tmp_path_factory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("encoders") / "results.json"
    done = run(SIMULATOR, "tests/gpu_encoders.py", path)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_dropout_of_attention_keeps_the_mean_and_follows_the_seed(examined):
    for name, result in examined["dropout"].items():
        assert result["standard errors"] < 5 and result["reproducible"], name


def test_ten_encoders_give_the_logits_and_gradients_of_a_cpu(examined):
    encoders = {name: result for name, result in examined.items() if name != "dropout"}
    assert len(encoders) == 10
    for name, result in encoders.items():
        assert result["fp32 padded"] < MAX_FP32_ERROR and result["bf16 padded"] < MAX_BF16_ERROR, name
        assert result["packing"] == (name in PACKABLE), name
        if result["packing"]:
            assert result["bf16 packed"] < MAX_BF16_ERROR, name
        if result["packing"] and name != "modernbert":
            assert result["fp32 packed"] < MAX_FP32_ERROR and not result["lines"], name


def test_a_sliding_window_is_padded_in_fp32(examined):
    (line,) = examined["modernbert"]["lines"]
    expected = "ValueError: dropout of attention and sliding windows need FlashAttention, that is 16 bits and an A100"
    assert line == f"note: packing is off, batches are padded: {expected}"
    assert "fp32 packed" not in examined["modernbert"] and "bf16 packed" in examined["modernbert"]


def test_no_encoder_makes_the_host_wait(examined):
    waits = {(name, key): value for name, result in examined.items() for key, value in result.items() if "waits" in key}
    assert len(waits) == 20 + 2 * 8 - 1 and not any(waits.values())


def test_16_bit_weights_give_the_numbers_of_autocast(examined):
    assert all(examined[name]["half weights are bitwise equal"] for name in PACKABLE)


# ---- whole runs

# What makes the host wait in a run of 6 steps that logs, evaluates and saves after steps 3 and 6: (what, the project's
# functions on the stack): how often. Without copies of weights, which are made a tensor at a time.
HOST_WAITS = {
    ("item", "main > verify_packing > _reason_against > _try_packing_on_device > _relative_error"): 2,
    ("item", "main > verify_packing > _reason_against > _try_packing_on_device"): 1,
    ("tolist", "main > verify_packing > _reason_against > all_reduce_sum"): 1,
    ("item", "main > with_fewer_launches > choose_half_weights > _reason_against > _try_call > _relative_error"): 2,
    ("tolist", "main > with_fewer_launches > choose_half_weights > _reason_against > all_reduce_sum"): 1,
    ("synchronize", "main > end_step > synchronize"): 3,  # step 4 ends an epoch
    ("item", "main > raise_if_nonfinite"): 3,
    ("item", "main"): 2,  # grad_norm of the log line
    ("tolist", "main > scalars > all_reduce_sum"): 2,
    ("tolist", "main > total_loss > all_reduce_sum"): 3,  # two checkpoints, and the end
    ("synchronize", "main > evaluate > predict > synchronize"): 3,  # validation twice, test once
    ("synchronize", "main > evaluate > predict > predict_ties_again > synchronize"): 3,
}


def test_a_run_waits_for_the_gpu_at_known_places_only(flags, tmp_path):
    _, done = trained(tmp_path, "run", *flags)
    (report,) = done.reports
    assert waits_in_steps(done) == []
    assert "packing is off" not in done.stdout and "layer by layer" not in done.stdout
    assert report["set_device_calls"] == [0] and not report["tensors_before_set_device"]
    waits: dict = {}
    for wait in report["host_waits"]:
        tries_encoder = re.search("> check_(precision|windows)", wait["function"])  # before the first step
        if not wait["what"].startswith("copy") and not tries_encoder:
            key = (wait["what"], wait["function"])
            waits[key] = waits.get(key, 0) + wait["count"]
    assert waits == HOST_WAITS
    copies = [
        wait for wait in report["host_waits"] if "evaluate" in wait["function"] and wait["what"].startswith("copy")
    ]
    assert copies == []


CHANGES = (
    ["--packing", "off"],
    ["--gradient_checkpointing"],
    ["--cuda_graphs"],
    ["--group_by_length", "--precision=fp32"],
)


@pytest.mark.parametrize(
    "change", [pytest.param(c, marks=[pytest.mark.slow] if i else []) for i, c in enumerate(CHANGES)], ids=" ".join
)
def test_no_step_waits_for_the_gpu(flags, change, tmp_path):
    """Not even a step with padded batches. Capturing a graph waits, once for each shape."""
    _, done = trained(tmp_path, "run", *flags, *change)
    assert [wait for wait in waits_in_steps(done) if not wait.startswith("capture")] == []
    assert len(done.reports[0]["step_launches"]) == 6


@pytest.mark.slow
def test_packed_batches_train_like_padded_ones_and_like_a_cpu(flags, tmp_path):
    """In fp32 and without dropout, to 1e-6: on a CPU, packed, padded, and with CUDA graphs."""
    fp32 = [*flags, "--precision", "fp32"]
    run("train.py", *fp32, "--output_dir", tmp_path / "cpu")
    expected = results(tmp_path / "cpu")
    for name, change in (("packed", []), ("padded", ["--packing", "off"]), ("graphs", ["--cuda_graphs"])):
        scores, done = trained(tmp_path, name, *fp32, *change)
        assert "are off" not in done.stdout and "packing is off" not in done.stdout
        for key in ("train_loss", "eval_loss", "test_loss"):
            assert scores[key] == pytest.approx(expected[key], rel=1e-5), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_rank_two_ranks_fsdp_and_graphs_train_alike(flags, precision, tmp_path):
    flags = [*flags, "--precision", precision]
    halves = ["--per_device_train_batch_size", 8]
    expected, _ = trained(tmp_path, "one", *flags)
    runs = {
        "accumulation": trained(tmp_path, "accumulation", *flags, *halves, "--gradient_accumulation_steps", 2),
        "two": trained(tmp_path, "two", *flags, *halves, ranks=2),
        "graphs": trained(tmp_path, "graphs", *flags, *halves, "--cuda_graphs", ranks=2),
        "fsdp": trained(tmp_path, "fsdp", *flags, *halves, "--fsdp", ranks=2),
    }
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for name, (scores, done) in runs.items():
        # Known waits: a graph is captured once for each shape, and DDP rebuilds its buckets in the second step.
        waits = [wait for wait in waits_in_steps(done) if not wait.startswith("capture")]
        assert waits == [] or (name == "two" and len(waits) == 2 * 2), (name, waits)
        for key in ("train_loss", "eval_loss", "test_loss"):
            assert scores[key] == pytest.approx(expected[key], rel=tolerance), (name, key)
    gradient_bytes = [report["all_reduced_bytes"] for report in runs["two"][1].reports]
    assert gradient_bytes[0] == gradient_bytes[1] > 0


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bytes(corpus, encoders, tmp_path):
    """With dropout. Half of the steps in one process, the others in a second one."""
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--max_steps", 6, "--save_steps", 3]
    for change in ([], ["--cuda_graphs"], ["--packing", "off", "--precision", "fp16"]):
        name = "-".join(change) or "default"
        trained(tmp_path, f"{name}-whole", *flags, *change)
        folder = tmp_path / f"{name}-resumed"
        stop = tmp_path / "stop.py"
        stop.write_text(STOP_AFTER_CHECKPOINT.format(root=str(ROOT)))
        stopped = on_gpu(tmp_path, stop, *flags, *change, "--output_dir", folder)
        assert stopped.code != 0 and not (folder / "all_results.json").exists()
        _, done = trained(tmp_path, f"{name}-resumed", *flags, *change)
        assert "resumed from" in done.stdout
        whole = (tmp_path / f"{name}-whole" / "model.safetensors").read_bytes()
        assert whole == (folder / "model.safetensors").read_bytes(), name


STOP_AFTER_CHECKPOINT = """
import os, sys
sys.path.insert(0, {root!r})
import train
save = train.save
def save_and_stop(*args):
    save(*args)
    os._exit(9)
train.save = save_and_stop
main = train.main
"""

# ---- fast paths that fail

FAULTS = {
    "wrong": "its results differ by ",
    "wrong_gradient": "its results differ by ",
    "nan": "its results differ by nan ",
    "raises": "RuntimeError: CUDA error: no kernel image is available",
}


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.slow] if f != "wrong" else []) for f in FAULTS])
def test_a_kernel_that_fails_leads_to_padded_batches(fault, flags, tmp_path):
    """One line says so, and the results are those of --packing off."""
    flags = [*flags, "--max_steps", 2]
    scores, done = trained(tmp_path, "run", *flags, SIMULATED_GPU_FAULT=fault)
    assert done.stdout.count("packing is off, batches are padded: ") == 1
    assert f"packing is off, batches are padded: {FAULTS[fault]}" in done.stdout
    padded, done = trained(tmp_path, "off", *flags, "--packing", "off", SIMULATED_GPU_FAULT=fault)
    assert "packing is off" not in done.stdout
    for key in ("train_loss", "eval_loss", "test_loss", "eval_f1"):
        assert scores[key] == padded[key]
    required = on_gpu(
        tmp_path, "train.py", *flags, "--packing", "on", "--output_dir", tmp_path / "on", SIMULATED_GPU_FAULT=fault
    )
    assert required.code == 2 and FAULTS[fault] in required.stderr
    assert required.stderr.startswith("error: --packing on: ") and required.stderr.count("\n") == 1
    assert not any((tmp_path / "on").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_kernel_that_fails_under_fsdp_leads_to_padded_batches(fault, corpus, tmp_path):
    flags = [*flat(corpus), "--max_steps", 2, "--fsdp", "--per_device_train_batch_size", 8]
    scores, done = trained(tmp_path, "run", *flags, ranks=2, SIMULATED_GPU_FAULT=fault)
    assert done.stdout.count("packing is off, batches are padded: ") == 1
    padded, _ = trained(tmp_path, "off", *flags, "--packing", "off", ranks=2, SIMULATED_GPU_FAULT=fault)
    for key in ("train_loss", "eval_loss", "test_loss", "eval_f1"):
        assert scores[key] == padded[key]


@pytest.mark.slow
def test_flags_that_exclude_cuda_graphs_are_an_error(flags, tmp_path):
    changes = ["--gradient_accumulation_steps 2", "--gradient_checkpointing", "--precision fp16", "--packing off"]
    for change in map(str.split, changes):
        done = on_gpu(tmp_path, "train.py", *flags, "--cuda_graphs", *change, "--output_dir", tmp_path / "run")
        assert done.code == 2 and done.stderr.startswith("error: --cuda_graphs needs a GPU, bf16 or fp32, no ")
    done = run("train.py", *flags, "--cuda_graphs", "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.startswith("error: --cuda_graphs needs a GPU")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fp32_with_dropout_of_attention_is_padded(corpus, encoders, tmp_path):
    """The memory-efficient kernel would drop other weights in the backward pass. CUDA graphs then are off."""
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--max_steps", 2, "--precision", "fp32"]
    _, done = trained(tmp_path, "run", *flags, "--cuda_graphs")
    assert done.stdout.count("packing is off, batches are padded: ValueError: dropout of attention") == 1
    assert done.stdout.count("CUDA graphs are off: they need packed batches, whose shapes are few") == 1


# ---- launches

LAUNCHES_WITH_GRAPHS = 50


@pytest.mark.slow
def test_a_step_with_cuda_graphs_has_few_launches(flags, tmp_path):
    _, done = trained(tmp_path, "run", *flags, "--cuda_graphs", "--max_steps", 12)
    launches = done.reports[0]["step_launches"]
    assert len(launches) == 12 and min(launches) <= LAUNCHES_WITH_GRAPHS < max(launches)


# ---- memory


@pytest.mark.parametrize("script", ["train.py", pytest.param("infer.py", marks=pytest.mark.slow)])
def test_a_lack_of_memory_is_one_line_that_names_a_flag(script, flags, tmp_path):
    if script == "train.py":
        done = on_gpu(tmp_path, script, *flags, "--output_dir", tmp_path / "run", SIMULATED_GPU_MAX_ELEMENTS=30_000)
        flag = "--per_device_train_batch_size"
    else:
        trained(tmp_path, "run", *flags)
        text = " ".join(["word"] * 100)
        done = on_gpu(tmp_path, script, tmp_path / "run", text, SIMULATED_GPU_MAX_ELEMENTS=30_000)
        flag = "--batch_size"
    assert done.code in (1, 2), done.stderr
    assert done.stderr.startswith("error: CUDA out of memory. ") and done.stderr.count("\n") == 1
    assert f"Use a smaller {flag}" in done.stderr


# ---- tagging


@pytest.mark.slow
def test_tagging_waits_once_for_a_chunk_and_evaluation_reproduces_the_scores_of_training(flags, corpus, tmp_path):
    scores, _ = trained(tmp_path, "run", *flags)
    done = on_gpu(tmp_path / "tag", "infer.py", tmp_path / "run", "Maria lives in Oslo.", "Karl does not.")
    assert done.code == 0
    waits = [
        wait
        for wait in done.reports[0]["host_waits"]
        if "Tagger.tag" in wait["function"] or "tag >" in wait["function"]
    ]
    assert [(wait["what"], wait["count"]) for wait in waits] == [("synchronize", 1)]
    evaluated = on_gpu(
        tmp_path / "evaluate", "infer.py", tmp_path / "run", "--input_file", corpus["--test_file"], "--evaluate"
    )
    assert (
        evaluated.code == 0
        and f"loss {scores['test_loss']:.4f}, accuracy {scores['test_accuracy']:.4f}" in evaluated.stdout
    )
