"""Commands in processes that are forked from one process with all libraries loaded, and copies of the project.

Loading the libraries takes 5 s, and a forked command of a few steps about a second. The forked process imports the
scripts and util/ itself: those of the project, or those of a copy that a test has edited.
"""

import atexit
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import re
import runpy
import shutil
import signal
import socket
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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


class Finished(NamedTuple):
    """A command that has ended. With several ranks: the code of the first that failed, the output of all."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Command:
    """A command that runs."""

    output: Path
    processes: list = field(default_factory=list)

    def wait(self, timeout: float = 600) -> Finished:
        """Kills what still runs after the timeout, which is a failure. Like torchrun, ends all ranks if one fails."""
        deadline, running = time.monotonic() + timeout, [*self.processes]
        try:
            while running and time.monotonic() < deadline:
                sentinels = [process.sentinel for process in running]
                multiprocessing.connection.wait(sentinels, deadline - time.monotonic())
                if any(process.exitcode for process in running):
                    for process in running:
                        process.terminate()
                running = [process for process in running if process.exitcode is None]
            codes = [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        texts = {}
        for name in ("stdout", "stderr"):
            files = sorted(self.output.glob(f"{name}.*"))
            texts[name] = "".join(file.read_text() for file in files)
        assert None not in codes, f"{codes}: did not end in {timeout} s\n{texts}"
        failed = [code for code in codes if code not in (0, -signal.SIGTERM)]
        return Finished(next(iter(failed), max(codes, key=abs)), **texts)


def start(folder: Path, output: Path, script: str, *flags, ranks: int = 1, before: str | None = "", **env) -> Command:
    """Starts a command in `folder`. Its stdout and stderr are files in `output`.

    before: Python code that runs in the process before main(). None: the script runs as `python SCRIPT` runs it.
    """
    command = Command(output)
    command.output.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for rank in range(ranks):
        environ = {name: str(value) for name, value in env.items()}
        if ranks > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = (folder, script, [*map(str, flags)], environ, before, command.output)
        process = _context().Process(target=_run, args=arguments)
        process.start()
        command.processes.append(process)
    return command


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
        output = self.folder / f"command-{self.num_commands}"
        return start(self.folder, output, script, *flags, ranks=ranks, before=before)

    def run(self, script: str, *flags, ranks: int = 1, before: str = "") -> str:
        """Runs a command, which has to succeed. Returns its standard output."""
        finished = self.start(script, *flags, ranks=ranks, before=before).wait()
        assert finished.code == 0, finished.stdout + finished.stderr
        return finished.stdout


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _run(folder: Path, script: str, flags: list[str], environ: dict, before: str | None, output: Path) -> None:
    """In the forked process."""
    gc.freeze()  # the objects of the libraries stay in memory that all forked processes share
    rank = environ.get("RANK", "0")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / f"{name}.{rank}", os.O_CREAT | os.O_WRONLY), number)
    multiprocessing.set_start_method("fork", force=True)  # as in any new process
    os.environ.update(environ)
    os.chdir(folder)
    others = (path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests"))
    sys.path[:] = [str((folder / script).parent), *others]
    sys.argv = [script, *flags]
    try:
        if before is None:
            runpy.run_path(str(folder / script), run_name="__main__")
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")  # what it defines can be pickled
            sys.modules["__main__"].os = os
            exec(before, vars(sys.modules["__main__"]))
            importlib.import_module(Path(script).stem).main()
    finally:
        gc.collect()
        atexit._run_exitfuncs()  # multiprocessing does not
