"""Two hosts: network namespaces with separate addresses, names, caches and disks, and a link that is cut."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from conftest import ROOT, flat, results, run, weights

import model as modeling
from util.pretrained import load_tokenizer

HOSTS = ("first-host", "second-host")
ENDPOINT = ["--rdzv-backend=c10d", "--rdzv-endpoint=first-host:29500"]
TIMEOUT = 8  # seconds of a collective, in the test that cuts the link


def ip(*words) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts():
    """Yields the names of two namespaces that a pair of virtual cards joins. Kills their processes at the end."""
    names = [f"nano-{uuid.uuid4().hex[:6]}" for _ in HOSTS]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "card", "netns", names[0], "type", "veth", "peer", "name", "card", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "card")
            for card in ("lo", "card"):
                ip("-n", name, "link", "set", card, "up")
            hosts = Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{i} {h}\n" for i, h in enumerate(HOSTS, 1)))
        subprocess.run(["ip", "netns", "exec", names[0], "unshare", "--uts", "--mount", "true"], check=True)
        yield names
    finally:
        for name in names:
            _kill(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


@pytest.fixture(scope="module")
def link():
    with contextlib.ExitStack() as stack:
        try:
            names = stack.enter_context(two_hosts())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs root, and Debian's iproute2, to make two hosts: {error}")
        yield names


def _inside(name: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def _kill(name: str) -> None:
    for pid in _inside(name):
        os.kill(pid, signal.SIGKILL)


def start(link, folder: Path, *command) -> list[subprocess.Popen]:
    """Starts a command on both hosts in `folder`. On the second one, folder/shared is a separate disk."""
    processes = []
    for number, name in enumerate(link):
        own = f"hostname {HOSTS[number]}; cd {folder}; "
        own += "mount --make-rprivate /; mount -t tmpfs none shared; " if number else ""
        cache = folder / f"cache{number}"
        shell = f'{own} HF_HOME={cache} exec "$@"'
        words = [*map(str, command)]
        launch = ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "bash", "-ec", shell, "bash", *words]
        log = open(folder / f"log{number}", "w")
        processes.append(subprocess.Popen(launch, stdout=log, stderr=subprocess.STDOUT))
    return processes


def finish(processes, link, folder: Path, seconds: float) -> list[tuple[int, str]]:
    """Returns exit codes and outputs. Asserts that all end in time and that no process is left."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logs = [(folder / f"log{number}").read_text()[-2000:] for number in range(2)]
            raise AssertionError(f"still running after {seconds} s\n{logs[0]}\n{logs[1]}") from None
    for name in link:
        for _ in range(100):
            if not _inside(name):
                break
            time.sleep(0.1)
        assert not _inside(name)
    return [(p.returncode, (folder / f"log{number}").read_text()) for number, p in enumerate(processes)]


def torchrun(script: str, *flags, each: int = 1) -> list:
    """The command of docs/scaling.md for several hosts."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={each}", *ENDPOINT]
    return [*launch, *map(str, [ROOT / script.split()[0], *script.split()[1:], *flags])]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path


@pytest.mark.parametrize("each", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_hosts_end_with_the_result_of_the_same_ranks_on_one(each, link, corpus, still, place):
    """The hosts have separate caches and disks. One rank of each host tokenizes."""
    flags = [*flat(corpus), "--model_name_or_path", still, "--precision", "fp32", "--max_steps", 6, "--eval_steps", 3]
    flags += ["--per_device_train_batch_size", 4 // each]
    command = torchrun("train.py", *flags, "--output_dir", "shared/out", each=each)
    done = finish(start(link, place, *command), link, place, 600)
    assert [code for code, _ in done] == [0, 0], done
    here = run("train.py", *flags, "--output_dir", place / "one", ranks=2 * each)
    assert here.returncode == 0, here.stderr
    assert sum("test: " in output for _, output in done) == 1
    one, two = weights(place / "one"), weights(place / "shared" / "out")  # rank 0 is on the host whose name sorts first
    assert all((one[name] - two[name]).abs().max() < 1e-6 for name in one)
    for name in ("eval_per_entity", "test_per_entity", "world_size"):
        assert results(place / "one")[name] == results(place / "shared" / "out")[name]
    assert results(place / "one")["train_loss"] == pytest.approx(results(place / "shared" / "out")["train_loss"])
    for number in range(2):  # three splits: sentences, tags, windows and their checksum, each made once
        assert len(list((place / f"cache{number}").rglob("nanotagger/*.arrow"))) == 12


@pytest.mark.slow
def test_a_file_is_tagged_by_two_hosts_that_share_no_disk(link, still, place):
    """The results of the second host are written by rank 0. The same command again finds them complete."""
    model = modeling.load_model(still, ["O", "B-X", "I-X"])
    model.save_pretrained(place / "model")
    load_tokenizer(still).save_pretrained(place / "model")
    with open(place / "texts.jsonl", "w", encoding="utf-8") as file:
        for number in range(3000):  # three chunks; the second one is tagged on the second host
            file.write(json.dumps({"text": f"call {number} Oslo\r of"}) + "\n" if number % 1000 else "broken\n")
    flags = [place / "model", "--input_file", place / "texts.jsonl", "--skip_bad_lines", "--precision", "fp32"]
    command = torchrun("infer.py", *flags, "--output_file", "shared/out.jsonl")
    for again in (False, True):
        done = finish(start(link, place, *command), link, place, 600)
        assert [code for code, _ in done] == [0, 0], done
        assert ("is complete already" in done[0][1]) == again
    here = run("infer.py", *flags, "--output_file", place / "one.jsonl")
    assert here.returncode == 0, here.stderr
    for suffix in ("", ".errors"):
        assert (place / f"one.jsonl{suffix}").read_bytes() == (place / "shared" / f"out.jsonl{suffix}").read_bytes()
    assert sorted(path.name for path in (place / "shared").iterdir()) == [
        "out.jsonl",
        "out.jsonl.errors",
        "out.jsonl.run.json",
    ]


@pytest.mark.slow
def test_the_command_of_the_docs_runs_as_printed(link, corpus, still, place):
    """Eight ranks a host."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^torchrun --nnodes.*$", page, re.MULTILINE)
    flags = f"{' '.join(flat(corpus))} --model_name_or_path {still} --max_steps 4 --output_dir shared/out"
    script = f"{ROOT / 'train.py'} {flags}"
    command = f"{Path(sys.executable).parent}/{line.replace('train.py ...', script)}"
    done = finish(start(link, place, *command.split()), link, place, 600)
    assert [code for code, _ in done] == [0, 0], done
    assert results(place / "shared" / "out")["world_size"] == 16


@pytest.mark.slow
def test_a_cut_link_ends_every_rank_in_time_and_the_same_command_resumes(link, corpus, still, place):
    flags = [
        *flat(corpus),
        "--model_name_or_path",
        still,
        "--precision",
        "fp32",
        "--max_steps",
        600,
        "--save_steps",
        20,
    ]
    flags += ["--per_device_train_batch_size", 4, "--eval_steps", 300, "--learning_rate", "1e-4"]
    command = torchrun(f"tests/impatient.py {TIMEOUT}", *flags, "--output_dir", "shared/out")
    checkpoints = place / "shared" / "out" / "checkpoints"
    processes = start(link, place, *command)
    deadline = time.monotonic() + 60
    while not (checkpoints / "step-00000040").exists():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.02)
    ip("-n", link[0], "link", "set", "card", "down")
    cut = time.monotonic()
    try:
        ranks = [pid for name in link for pid in _inside(name) if _is_rank(pid)]
        assert len(ranks) == 2
        while any(_is_rank(pid) for pid in ranks):
            assert time.monotonic() - cut < TIMEOUT + 7, "a rank waits longer than the collective's timeout"
            time.sleep(0.1)
        ended = time.monotonic() - cut
    finally:
        ip("-n", link[0], "link", "set", "card", "up")
    done = finish(processes, link, place, 600)
    for number, (code, output) in enumerate(done):
        assert code == 1
        assert f"on {HOSTS[number]} has lost the other ranks: " in output and "Timed out" in output, output
        assert "Traceback" not in output.partition("has lost")[0]
    saved = sorted(path.name for path in checkpoints.iterdir())[-1]
    print(f"ended {ended:.1f} s after the cut, newest checkpoint {saved}")

    done = finish(start(link, place, *command), link, place, 600)
    assert [code for code, _ in done] == [0, 0], done
    assert any(f"resumed from shared/out/checkpoints/{saved}" in output for _, output in done)
    here = run("train.py", *flags, "--output_dir", place / "one", ranks=2)
    assert here.returncode == 0, here.stderr
    one, two = weights(place / "one"), weights(place / "shared" / "out")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results(place / "one")["eval_per_entity"] == results(place / "shared" / "out")["eval_per_entity"]


def _is_rank(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return "torch.distributed.run" not in words and any(word.endswith(("impatient.py", "train.py")) for word in words)
