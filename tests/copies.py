"""A copy of the project that a test edits and then runs.

Its commands run in processes that are forked from one process with all libraries loaded: a run of a few steps takes
about a second. The forked process imports the scripts and util/ from the copy.
"""

import gc
import importlib
import multiprocessing
import os
import re
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARIES = ["datasets", "peft", "seqeval.metrics", "torch.utils.tensorboard", "torch.distributed.fsdp", "transformers"]
LIBRARIES += ["transformers.models.bert.modeling_bert"]

# Python code for `before`: the process kills itself before the step of this index.
KILL = """
import signal, train
original_seed = train.dropout_seed
def dropout_seed(seed, step, rank):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original_seed(seed, step, rank)
train.dropout_seed = dropout_seed
"""


@dataclass
class Finished:
    """A command that has ended. With several ranks: the code of the first that failed, the output of all."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Command:
    """A command that runs."""

    output: Path
    processes: list = field(default_factory=list)

    def wait(self, timeout: float = 100) -> Finished:
        """Kills what still runs after the timeout, which is a failure."""
        try:
            for process in self.processes:
                process.join(timeout)
            codes = [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        texts = {}
        for name in ("stdout", "stderr"):
            files = sorted(self.output.glob(f"{name}.*"))
            texts[name] = "".join(file.read_text() for file in files)
        assert None not in codes, f"{codes}: did not end in {timeout} s\n{texts}"
        return Finished(next((code for code in codes if code), 0), **texts)


class Project:
    """The scripts and util/, copied into a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.num_commands = 0
        folder.mkdir(exist_ok=True)
        for path in ROOT.glob("*.py"):
            shutil.copy(path, folder)
        shutil.copytree(ROOT / "util", folder / "util", ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def edit(self, file: str, *edits: tuple[str, str]) -> None:
        """Replaces texts, each of which has to occur once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        for old, new in edits:
            assert text.count(old) == 1, f"{file}: {old!r} occurs {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def patch(self, file: str, diff: str) -> int:
        """Applies a diff whose places are separated by @@. Returns the number of its + lines that are not blank."""
        for place in diff.strip("\n").split("\n@@\n"):
            lines = [(line[0], line[1:]) for line in place.split("\n")]
            old = "".join(f"{line}\n" for mark, line in lines if mark in " -")
            new = "".join(f"{line}\n" for mark, line in lines if mark in " +")
            self.edit(file, (old, new))
        return len(re.findall(r"^\+.*\S", diff, re.MULTILINE))

    def start(self, script: str, *flags, ranks: int = 1, before: str = "") -> Command:
        """Starts a command. before: Python code that runs in its process before main()."""
        self.num_commands += 1
        command = Command(self.folder / f"command-{self.num_commands}")
        command.output.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for rank in range(ranks):
            environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            environ = {name: str(value) for name, value in (environ | {"MASTER_PORT": port}).items()}
            arguments = (self.folder, script, [*map(str, flags)], environ if ranks > 1 else {}, before, command.output)
            process = _context().Process(target=_run, args=arguments)
            process.start()
            command.processes.append(process)
        return command

    def run(self, script: str, *flags, ranks: int = 1, before: str = "") -> str:
        """Runs a command, which has to succeed. Returns its standard output."""
        finished = self.start(script, *flags, ranks=ranks, before=before).wait()
        assert finished.code == 0, finished.stdout + finished.stderr
        return finished.stdout


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _run(folder: Path, script: str, flags: list[str], environ: dict, before: str, output: Path) -> None:
    """In the forked process."""
    rank = environ.get("RANK", "0")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / f"{name}.{rank}", os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(environ)
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    sys.argv = [script, *flags]
    try:
        exec(before, {"os": os})
        importlib.import_module(Path(script).stem).main()
    finally:
        if environ and "util.distributed" in sys.modules:
            gc.collect()
            sys.modules["util.distributed"].leave_process_group()
