"""train.py with a fault built in and a log of what it read: python tests/faults.py "FAULT" LOG flags of train.py.

FAULT: none
       kill STEP RANK     SIGKILL to itself before this step, if the file LOG.killed is not there yet
       save SAVE CALL     SIGKILL inside the SAVE-th save of a checkpoint, before its CALL-th touch of the disk
       term STEP RANK     SIGTERM to itself before this step
       nan STEP RANK      the loss of this step is not a number
LOG:   gets a line "step rank rows" for every batch read in training, and LOG.grads the first step's gradient
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

import data  # noqa: E402
import model  # noqa: E402
import train  # noqa: E402


def install(fault: str, log: str) -> None:
    rank_here = int(os.environ.get("RANK", 0))
    kind, first, second = (fault.split() + ["-1", "-1"])[:3]
    first, second = int(first), int(second)
    now = {"step": -1, "saves": 0, "calls": 0}
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def die(marker: str) -> None:
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    dropout_seed = train.dropout_seed

    def at_step(seed, step, rank):
        now["step"] = step
        if (kind, first, second) == ("kill", step, rank_here) and not os.path.exists(f"{log}.killed"):
            die(f"{log}.killed")
        if (kind, first, second) == ("term", step, rank_here):
            os.kill(os.getpid(), signal.SIGTERM)
        return dropout_seed(seed, step, rank)

    class Logged(list):
        def __iter__(self):
            for rows in super().__iter__():
                os.write(file, f"{now['step']} {rank_here} {rows}\n".encode())
                yield rows

    micro_batches = data.micro_batches
    cross_entropy = train.F.cross_entropy

    def broken_cross_entropy(logits, labels, reduction):
        loss = cross_entropy(logits, labels, reduction=reduction)
        broken = (kind, first, second) == ("nan", now["step"], rank_here) and reduction == "sum"
        return loss * float("nan") if broken else loss

    def counted(function):
        def call(*arguments, **options):
            now["calls"] += 1
            if (kind, first, second) == ("save", now["saves"], now["calls"]):
                die(f"{log}.killed")
            return function(*arguments, **options)

        return call

    save_checkpoint = model.save_checkpoint

    def save(*arguments):
        now["saves"] += 1
        now["calls"] = 0
        path = save_checkpoint(*arguments)
        now["calls"] = -1_000_000
        return path

    clip = torch.nn.utils.clip_grad_norm_

    def keep_first_gradient(parameters, limit):
        parameters = list(parameters)
        if rank_here == 0 and not os.path.exists(f"{log}.grads"):
            torch.save([parameter.grad for parameter in parameters if parameter.grad is not None], f"{log}.grads")
        return clip(parameters, limit)

    train.dropout_seed = at_step
    data.micro_batches = lambda *arguments: Logged(micro_batches(*arguments))
    train.F.cross_entropy = broken_cross_entropy
    torch.nn.utils.clip_grad_norm_ = keep_first_gradient
    model.save_checkpoint = save
    if kind == "save":
        for module, name in (
            (model, "_to_disk"),
            (model, "write_whole"),
            (model, "_sha256"),
            (model.os, "rename"),
            (model.safetensors, "save_file"),
            (model.shutil, "rmtree"),
        ):
            setattr(module, name, counted(getattr(module, name)))


def consumed(log) -> dict[int, set[str]]:
    """The log -> what each step read on each rank; a step that was run again has to have read the same."""
    steps = {}
    for line in Path(log).read_text().splitlines():
        step, read = line.split(" ", 1)
        steps.setdefault(int(step), set()).add(read)
    return steps


if __name__ == "__main__":
    fault, log = sys.argv[1:3]
    sys.argv[1:3] = []
    install(fault, log)
    train.record(train.main)()
