"""Kills, signals, full disks, broken checkpoints, NaN: every fault in real processes with a time limit."""

import argparse
import ctypes
import json
import math
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, flat, load, read, results, run_python, train, weights, write_conll
from copies import start
from faults import consumed, install
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model as modeling
import train as script
from util import checkpoint, encoder_check
from util.distributed import leave_process_group


def forked(fault: str, log, flags, ranks: int = 1, killed_after: float = math.inf, timeout: float = 400):
    """Runs train.main() in forks of this process, which saves the imports.

    Returns the exit code of the first rank that failed, or 0, and the output of all. Like torchrun, it ends all ranks
    when one has failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = Path(f"{log}.out")
    printed.write_text("")
    children = {}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with open(printed, "a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            code = 99
            try:
                sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
                install(fault, str(log))
                sys.argv = ["train.py", *map(str, flags)]
                script.main()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException as error:
                print(repr(error))
            if dist.is_initialized() and code == 0:
                leave_process_group()
            os._exit(code)
        children[child] = rank
    start, worst = time.monotonic(), 0
    while children:
        child, status = os.waitpid(-1, os.WNOHANG) if len(children) > 1 else os.waitpid(*children, os.WNOHANG)
        if children.pop(child, None) is not None:
            code = os.waitstatus_to_exitcode(status)
            if code and not worst:
                worst = code
                for other in children:
                    os.kill(other, signal.SIGTERM)
        if time.monotonic() - start > min(killed_after, timeout):
            for other in children:
                os.kill(other, signal.SIGKILL)
            assert time.monotonic() - start < timeout, f"hangs: {printed.read_text()[-2000:]}"
        time.sleep(0.005)
    return worst, printed.read_text()


# ---- layouts


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> dict[str, str]:
    """163 sentences: 20 steps of 8 and a last one of 3."""
    folder = tmp_path_factory.mktemp("forty")
    flags = {}
    for split, limit in (("train", 163), ("validation", 23)):
        path = folder / f"{split}.txt"
        write_conll(path, read(ROOT / "samples" / f"{split}.conll")[:limit])
        flags[f"--{split}_file"] = str(path)
    return flags


LAYOUTS = {"1x8": (8, 1, 1), "1x(2x4)": (4, 2, 1), "2x4": (4, 1, 2), "4x2": (2, 1, 4), "2x(2x2)": (2, 2, 2)}


def losses(folder) -> list[float]:
    events = EventAccumulator(str(Path(folder) / "runs")).Reload()
    return [event.value for event in events.Scalars("train/loss")]


def test_gradients_and_losses_do_not_depend_on_the_layout(forty, still, tmp_path):
    command = [*flat(forty), "--model_name_or_path", still, "--precision", "fp32", "--num_train_epochs", 1]
    gradients, curves = {}, {}
    for name, (batch, accumulation, ranks) in LAYOUTS.items():
        sizes = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        flags = [*command, *sizes, "--logging_steps", 1, "--output_dir", tmp_path / name]
        code, printed = forked("none", tmp_path / f"{name}.log", flags, ranks)
        assert code == 0, printed
        gradients[name] = torch.cat([g.flatten() for g in torch.load(tmp_path / f"{name}.log.grads")]).double()
        curves[name] = losses(tmp_path / name)
    assert len(curves["1x8"]) == 21 and curves["1x8"][-1] < curves["1x8"][0]
    for name in LAYOUTS:
        difference = (gradients[name] - gradients["1x8"]).norm() / gradients["1x8"].norm()
        assert difference < 1e-6, (name, difference)
        assert curves[name] == pytest.approx(curves["1x8"], rel=1e-5), name


# ---- evaluation


def evaluate_on_ranks(rank: int, world_size: int, folder: str, encoder: str, files: dict[int, str]) -> None:
    """Writes what rank 0 returns for every number of sentences and every batch size to FOLDER/WORLD_SIZE.json."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        dist.init_process_group("gloo", f"file://{folder}/store{world_size}", rank=rank, world_size=world_size)
    found = {}
    for number, path in files.items():
        splits, label_list = load(encoder, size=32, train_file=path)
        split = splits["train"]
        torch.manual_seed(0)
        model = modeling.load_model(encoder, label_list)
        autocast = modeling.make_autocast("fp32", torch.device("cpu"))
        for batch_size in (1, 8):
            args = argparse.Namespace(per_device_eval_batch_size=batch_size, strict=False)
            scores, predictions = script.evaluate(model, split, args, split.windows.pad_values(0), autocast)
            found[f"{number} {batch_size}"] = {name: value for name, value in scores.items() if name != "runtime"}
            if rank == 0:
                found[f"{number} {batch_size}"]["predicted"] = predictions[0].tolist()
    if rank == 0:
        (Path(folder) / f"{world_size}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.destroy_process_group()


def test_evaluation_is_the_same_for_any_number_of_ranks_and_any_batch(encoders, tmp_path):
    sentences = read(ROOT / "samples" / "validation.conll")
    sentences = [s for s in sentences if len(s["tokens"]) < 100]
    files = {}
    for number in (1, 7, 101):
        files[number] = str(tmp_path / f"{number}.conll")
        write_conll(files[number], sentences[:number])
    found = {}
    for world_size in (1, 2, 3, 4):
        torch.multiprocessing.start_processes(
            evaluate_on_ranks,
            (world_size, str(tmp_path), encoders["wordpiece"], files),
            world_size,
            start_method="fork",
        )
        found[world_size] = json.loads((tmp_path / f"{world_size}.json").read_text())
    assert len(found[1]) == 6 and found[1]["101 8"]["words"] == sum(len(s["tokens"]) for s in sentences[:101])
    assert len(set(found[1]["101 8"]["predicted"])) > 2
    for world_size in (2, 3, 4):
        assert found[world_size] == found[1]  # bit for bit, including the loss
    for number in files:
        one, eight = found[1][f"{number} 1"], found[1][f"{number} 8"]
        assert one.pop("loss") == pytest.approx(eight.pop("loss"), rel=1e-5)  # padding changes the last bits
        assert one == eight


# ---- kills


@pytest.fixture(scope="module")
def long_run(forty, encoders) -> list:
    command = [*flat(forty), "--model_name_or_path", encoders["wordpiece"], "--per_device_train_batch_size", 4]
    return command + ["--max_seq_length", 32, "--save_steps", 7, "--eval_steps", 50, "--logging_steps", 50]


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_run(kills, long_run, tmp_path):
    steps = 40 if kills < 50 else 300
    command = [*long_run, "--max_steps", steps, "--output_dir"]
    start = time.monotonic()
    assert forked("none", tmp_path / "whole.log", [*command, tmp_path / "whole"])[0] == 0
    duration = time.monotonic() - start
    choose = random.Random(kills)
    ended, inside = [], 0
    while len(ended) < 20 * kills:
        (tmp_path / "killed.log.killed").unlink(missing_ok=True)
        fault, killed_after = "none", math.inf
        if sum(code == -9 for code in ended) < kills:
            if len(ended) % 2:
                killed_after = choose.uniform(0.1, 0.6) * duration * 40 / steps
            else:
                fault = f"save {choose.randint(1, 2)} {choose.randint(1, 14)}"
        flags = [*command, tmp_path / "killed"]
        code, printed = forked(fault, tmp_path / "killed.log", flags, killed_after=killed_after)
        ended.append(code)
        inside += (tmp_path / "killed.log.killed").exists()
        assert code in (0, -9), printed
        if ended[-1] == 0 and sum(code == -9 for code in ended) >= kills:
            break
        if ended[-1] == 0:  # it came through before enough kills: once more from the start
            shutil.rmtree(tmp_path / "killed")
    print(f"{sum(code == -9 for code in ended)} kills, {inside} inside a save, {len(ended)} runs")
    assert sum(code == -9 for code in ended) == kills and inside >= kills / 2
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    last = checkpoint.checkpoints(str(tmp_path / "whole"))[-1]
    for name in ("model.safetensors", "optimizer.safetensors"):
        other = str(tmp_path / "killed" / Path(last).relative_to(tmp_path / "whole") / name)
        assert Path(last, name).read_bytes() == Path(other).read_bytes()
    assert consumed(tmp_path / "whole.log") == consumed(tmp_path / "killed.log")
    assert len(consumed(tmp_path / "whole.log")) == steps
    both = [results(tmp_path / run) for run in ("whole", "killed")]
    both = [{k: v for k, v in found.items() if "second" not in k and "runtime" not in k} for found in both]
    assert both[0] == both[1]
    assert not list((tmp_path / "killed").rglob("*.partial"))


@pytest.fixture(scope="module")
def two_ranks(long_run, tmp_path_factory):
    """A run on two ranks that nothing happened to: (flags, folder, log)."""
    folder = tmp_path_factory.mktemp("two")
    flags = [*long_run, "--max_steps", 16]
    code, printed = forked("none", folder / "log", [*flags, "--output_dir", folder / "out"], ranks=2)
    assert code == 0, printed
    return flags, folder / "out", folder / "log"


def same_weights(one, other) -> bool:
    one, other = weights(one), weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_torchrun_restarts_from_the_newest_checkpoint_when_a_rank_is_killed(two_ranks, tmp_path):
    flags, whole, log = two_ranks
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*launch, "tests/faults.py", "kill 10 1", tmp_path / "log", *flags, "--output_dir", tmp_path / "out"]
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout and "step-00000007" in done.stdout
    assert same_weights(tmp_path / "out", whole) and consumed(tmp_path / "log") == consumed(log)


@pytest.mark.parametrize("to", [pytest.param("torchrun", marks=pytest.mark.slow), "one rank", "a single process"])
def test_a_signal_stops_all_ranks_at_one_step_and_the_same_command_resumes(to, two_ranks, long_run, tmp_path):
    flags, whole, log = two_ranks
    ranks = 1 if to == "a single process" else 2
    command = [*flags, "--output_dir", tmp_path / "out"]
    with_log = ["tests/faults.py", "none", tmp_path / "log", *command]

    def has_trained() -> bool:
        return (tmp_path / "log").exists() and len(consumed(tmp_path / "log")) > 3

    if to == "one rank":
        code, printed = forked("term 9 1", tmp_path / "log", command, ranks=2)
        assert code == 143
    elif to == "torchrun":
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        process = subprocess.Popen([*launch, *map(str, with_log)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        wait_for(has_trained)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=400)
        assert process.returncode == 1, printed
    else:
        running = start(ROOT, tmp_path / "printed", *with_log, before=None)
        wait_for(has_trained)
        os.kill(running.processes[0].pid, signal.SIGINT)
        code, printed, stderr = running.wait()
        assert code == 130, printed + stderr
    assert "stopped by SIG" in printed and "the same command resumes from" in printed
    (saved,) = {line.rsplit(" ", 1)[1] for line in printed.splitlines() if "the same command resumes from" in line}
    assert checkpoint.read_state(saved)["step"] and not (tmp_path / "out" / "all_results.json").exists()
    code, printed = forked("none", tmp_path / "log", command, ranks)
    assert code == 0 and f"resumed from {saved}" in printed
    if ranks == 2:
        assert same_weights(tmp_path / "out", whole) and consumed(tmp_path / "log") == consumed(log)


def wait_for(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_moves_from_two_ranks_to_one_and_back(forty, still, tmp_path):
    flags = [*flat(forty), "--model_name_or_path", still, "--precision", "fp32", "--max_steps", 15]
    flags += ["--save_steps", 5, "--eval_steps", 5, "--logging_steps", 1]
    for name, sizes in (("stayed", [(2, 4, -1)]), ("moved", [(2, 4, 5), (1, 8, 10), (2, 4, -1)])):
        for ranks, batch, stop in sizes:
            command = [*flags, "--per_device_train_batch_size", batch, "--output_dir", tmp_path / name]
            code, printed = forked(f"term {stop} 0", tmp_path / f"{name}.log", command, ranks)
            assert code == (0 if stop < 0 else 143), printed
    both = [rows_by_step(tmp_path / f"{name}.log") for name in ("stayed", "moved")]
    assert both[0] == both[1] and len(both[0]) == 15
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "stayed"), rel=1e-5)
    assert len(losses(tmp_path / "moved")) == 15


def rows_by_step(log) -> dict[int, list[int]]:
    """The rows of each step, over all ranks, in their order."""
    found = consumed(log)
    return {step: [row for share in sorted(shares) for row in json.loads(share[2:])] for step, shares in found.items()}


# ---- broken checkpoints


@pytest.fixture(scope="module")
def stopped(long_run, tmp_path_factory) -> tuple[list, Path]:
    """A run of 20 steps that was killed behind step 17: it has checkpoints of steps 7 and 14."""
    folder = tmp_path_factory.mktemp("stopped")
    flags = [*long_run, "--max_steps", 20]
    assert forked("kill 17 0", folder / "log", [*flags, "--output_dir", folder / "out"])[0] == -9
    names = [Path(path).name for path in checkpoint.checkpoints(str(folder / "out"))]
    assert names == ["step-00000007", "step-00000014"]
    return flags, folder / "out"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["PAYLOAD"]),)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink, as_pickle])
def test_a_broken_checkpoint_is_skipped_with_a_message_or_refused_by_name(harm, file, stopped, tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "payload"))
    shutil.copytree(stopped[1], tmp_path / "out")
    broken = tmp_path / "out" / "checkpoints" / "step-00000014"
    harm(broken / file)
    log = []
    fingerprint = json.loads((broken.parent / "step-00000007" / "state.json").read_text())["fingerprint"]
    found = checkpoint.find_checkpoint(str(tmp_path / "out"), "auto", fingerprint, log.append)
    assert found == str(broken.parent / "step-00000007")
    named = "" if file == "manifest.json" else file  # it may still be readable, but with the checksums of other files
    assert len(log) == 1 and log[0].startswith(f"warning: skipped {broken}: {named}"), log
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint {broken}: {named}"):
        checkpoint.find_checkpoint(str(tmp_path / "out"), str(broken), fingerprint, log.append)
    assert not (tmp_path / "payload").exists()


def test_a_pickle_with_a_valid_checksum_is_refused_too(stopped, tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "payload"))
    shutil.copytree(stopped[1], tmp_path / "out")
    broken = tmp_path / "out" / "checkpoints" / "step-00000014"
    for file in FILES[:2]:
        as_pickle(broken / file)
    checksums = {name: checkpoint.sha256(str(broken / name)) for name in FILES[:3]}
    (broken / "manifest.json").write_text(json.dumps(checksums))
    code, printed = forked("none", tmp_path / "log", [*stopped[0], "--output_dir", tmp_path / "out"])
    assert code == 0 and f"skipped {broken}: cannot be read: " in printed and not (tmp_path / "payload").exists()
    assert min(consumed(tmp_path / "log")) == 7


def test_auto_resumes_from_the_older_checkpoint_with_the_same_result(stopped, tmp_path):
    flags = stopped[0]
    assert forked("none", tmp_path / "log", [*flags, "--output_dir", tmp_path / "whole"])[0] == 0
    for name, further in (
        ("auto", []),
        ("named", ["--resume_from_checkpoint", tmp_path / "named/checkpoints/step-00000007"]),
    ):
        shutil.copytree(stopped[1], tmp_path / name)
        if name == "auto":
            flip(tmp_path / name / "checkpoints" / "step-00000014" / "optimizer.safetensors")
        assert forked("none", tmp_path / name / "log", [*flags, *further, "--output_dir", tmp_path / name])[0] == 0
        assert min(consumed(tmp_path / name / "log")) == 7
        assert same_weights(tmp_path / name, tmp_path / "whole")
        assert checkpoint.read_state(str(tmp_path / name / "checkpoints" / "step-00000014"))["step"] == 14


def fails(flags, tmp_path) -> str:
    code, printed = forked("none", tmp_path / "fails.log", flags)
    assert code == 2 and "| loss" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def test_checkpoints_of_another_run_are_refused_by_the_first_difference(stopped, forty, tmp_path):
    flags = [*stopped[0], "--output_dir", tmp_path / "out"]
    shutil.copytree(stopped[1], tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "its --seed is 42, not 43" in fails([*flags, "--seed", 43], tmp_path)
    assert "its global batch size is 4, not 5" in fails([*flags, "--per_device_train_batch_size", 5], tmp_path)
    write_conll(tmp_path / "edited", read(forty["--train_file"])[1:])
    edited = [tmp_path / "edited" if part == forty["--train_file"] else part for part in flags]
    assert "its --train_file differs" in fails(edited, tmp_path)
    named = ["--resume_from_checkpoint", tmp_path / "out/checkpoints/step-00000014", "--output_dir", tmp_path / "new"]
    assert "its train data differs" in fails([*edited, *named], tmp_path)
    state = tmp_path / "out/checkpoints/step-00000014/state.json"
    content = json.loads(state.read_text())
    content["fingerprint"]["label list"].reverse()
    state.write_text(json.dumps(content))
    checksums = {name: checkpoint.sha256(str(state.parent / name)) for name in FILES[:3]}
    (state.parent / "manifest.json").write_text(json.dumps(checksums))
    assert "its label list differs" in fails(flags, tmp_path)
    after = {path: path.read_bytes() for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"state.json", "manifest.json"}  # by this test


def test_never_ignores_the_checkpoints(stopped, tmp_path):
    shutil.copytree(stopped[1], tmp_path / "out")
    flags = [*stopped[0], "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "never"]
    assert forked("none", tmp_path / "log", flags)[0] == 0
    assert min(consumed(tmp_path / "log")) == 0


def test_save_total_limit_checkpoints_are_kept(long_run, tmp_path):
    flags = [*long_run, "--max_steps", 30, "--save_total_limit", 3, "--output_dir", tmp_path / "out"]
    assert forked("none", tmp_path / "log", flags)[0] == 0
    assert [Path(p).name[-2:] for p in checkpoint.checkpoints(str(tmp_path / "out"))] == ["14", "21", "28"]


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, or where it may not be mounted, a limit on the size of a file: (folder, code that sets it)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, b"size=2m") == 0:
        yield folder, ""
        libc.umount(str(folder).encode())
    else:
        yield folder, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_older_checkpoints(long_run, small_disk, tmp_path):
    folder, limit = small_disk
    command = [*long_run, "--max_steps", 60, "--save_total_limit", 9, "--output_dir", folder / "out"]
    done = start(ROOT, tmp_path / "printed", "train.py", *command, before=limit).wait()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and "cannot be saved: " in line and "Traceback" not in done.stderr
    left = checkpoint.checkpoints(str(folder / "out"))
    assert all(checkpoint.read_state(path)["step"] for path in left) and not list((folder / "out").rglob("*.partial"))
    if os.path.ismount(folder):
        assert left and "No space left" in line


def test_a_read_only_folder_is_an_error_before_training(long_run, small_disk, tmp_path):
    folder, _ = small_disk
    if os.path.ismount(folder):  # root may write to folders that are read-only by their mode alone
        MS_RDONLY, MS_REMOUNT = 1, 32
        ctypes.CDLL(None).mount(b"none", str(folder).encode(), b"tmpfs", MS_RDONLY | MS_REMOUNT, b"size=2m")
    elif os.geteuid() == 0:
        pytest.skip("root writes to a read-only folder, and no disk could be mounted")
    else:
        folder.chmod(0o500)
    code, printed = forked("none", tmp_path / "log", [*long_run, "--max_steps", 8, "--output_dir", folder / "out"])
    assert code == 2 and printed.count("error: ") == 1 and f"error: {folder / 'out'}: " in printed


def test_a_folder_that_cannot_hold_checkpoints_ends_the_run_with_one_line(long_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").write_text("in the way")
    code, printed = forked("none", tmp_path / "log", [*long_run, "--max_steps", 8, "--output_dir", tmp_path / "out"])
    assert (
        code == 2 and printed.count("error: ") == 1 and (tmp_path / "out" / "checkpoints").read_text() == "in the way"
    )


# ---- numbers that are not finite


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_nan_loss_stops_all_ranks_before_the_update(ranks, long_run, forty, tmp_path):
    flags = [*long_run, "--max_steps", 20, "--output_dir", tmp_path / "out"]
    code, printed = forked(f"nan 9 {ranks - 1}", tmp_path / "log", flags, ranks, timeout=55)
    assert code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert f"step 10: the loss or its gradient is not finite. Its sentences: {forty['--train_file']}:" in line
    assert line.count(".txt:") == 4 * ranks and max(consumed(tmp_path / "log")) == 9


def test_the_fused_optimizer_skips_steps_with_found_inf():
    """Training relies on it: the host learns of the gradient only after the step."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for broken, expected in ((0.0, 0.9), (1.0, 0.9), (0.0, 0.8)):
        weight.grad = torch.full((3,), float("nan") if broken else 1.0)
        optimizer.found_inf = torch.tensor(broken)
        optimizer.step()
        assert torch.allclose(weight, torch.tensor(expected), atol=2e-3)


def test_steps_that_the_scaler_skips_do_not_advance_the_schedule(long_run, tmp_path, monkeypatch):
    """fp16 on a CPU, which train.py refuses: the first loss scales overflow, and their steps are skipped."""
    monkeypatch.setattr(encoder_check, "pick_precision", lambda *_: "fp16")
    scaler_class = torch.amp.GradScaler

    def scaler_with_large_scale(*arguments, **options):
        return scaler_class(*arguments, init_scale=2.0**60, growth_interval=1000, **options)

    monkeypatch.setattr(torch.amp, "GradScaler", scaler_with_large_scale)
    schedule_steps, get_lr = [], script.get_lr

    def recorded_get_lr(step, *rest):
        schedule_steps.append(step)
        return get_lr(step, *rest)

    monkeypatch.setattr(script, "get_lr", recorded_get_lr)
    train(*long_run, "--max_steps", 100, "--output_dir", tmp_path / "out")
    assert schedule_steps[::2] == schedule_steps[1::2]  # of the two parameter groups
    taken = [after - before for before, after in zip(schedule_steps[::2], schedule_steps[2::2])]
    skipped = taken.count(0)
    assert 30 < skipped < 60 and set(taken) == {0, 1} and taken[:30] == [0] * 30
    assert all(value.isfinite().all() for value in weights(tmp_path / "out").values())
