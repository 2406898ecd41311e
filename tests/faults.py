"""train.py with one fault, and a log of the rows it trains on: python tests/faults.py "FAULT" LOG [flags]

FAULT: none
       kill STEP RANK     SIGKILL to itself before this step, unless the file LOG.killed exists
       save SAVE CALL     SIGKILL during the SAVE-th save of a checkpoint, before its CALL-th access to the disk
       term STEP RANK     SIGTERM to itself before this step
       nan STEP RANK      the loss of this step is NaN
LOG:   gets a line "step rank rows" for every training batch; LOG.grads gets the gradients of the first step
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
from util import checkpoint  # noqa: E402

DISK_ACCESSES = (
    (checkpoint, "_flush_to_disk"),
    (checkpoint, "atomic_write_text"),
    (checkpoint, "sha256"),
    (checkpoint, "save_file"),
    (checkpoint.os, "rename"),
    (checkpoint.shutil, "rmtree"),
)


def install(fault: str, log: str) -> None:
    this_rank = int(os.environ.get("RANK", 0))
    kind, first, second = (fault.split() + ["-1", "-1"])[:3]
    first, second = int(first), int(second)
    now = {"step": -1, "saves": 0, "calls": 0}
    log_file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def die(marker: str) -> None:
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def is_due(*fault_here) -> bool:
        return (kind, first, second) == fault_here

    dropout_seed = train.dropout_seed

    def dropout_seed_with_fault(seed, step, rank):
        now["step"] = step
        if is_due("kill", step, this_rank) and not os.path.exists(f"{log}.killed"):
            die(f"{log}.killed")
        if is_due("term", step, this_rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return dropout_seed(seed, step, rank)

    micro_batches = data.micro_batches

    def logged_micro_batches(*arguments):
        for rows in micro_batches(*arguments):
            os.write(log_file, f"{now['step']} {this_rank} {rows}\n".encode())
            yield rows

    token_loss = model.token_loss

    def token_loss_with_fault(logits, labels, reduction):
        loss = token_loss(logits, labels, reduction=reduction)
        is_broken = is_due("nan", now["step"], this_rank) and reduction == "sum"
        return loss * float("nan") if is_broken else loss

    def counted(function):
        def call(*arguments, **options):
            now["calls"] += 1
            if is_due("save", now["saves"], now["calls"]):
                die(f"{log}.killed")
            return function(*arguments, **options)

        return call

    save_checkpoint = train.save_checkpoint

    def counted_save_checkpoint(*arguments):
        now["saves"] += 1
        now["calls"] = 0
        path = save_checkpoint(*arguments)
        now["calls"] = -1_000_000  # outside a save, accesses to the disk do not count
        return path

    clip_grad_norm = torch.nn.utils.clip_grad_norm_

    def keep_first_gradients(parameters, limit):
        parameters = list(parameters)
        if this_rank == 0 and not os.path.exists(f"{log}.grads"):
            torch.save([parameter.grad for parameter in parameters if parameter.grad is not None], f"{log}.grads")
        return clip_grad_norm(parameters, limit)

    train.dropout_seed = dropout_seed_with_fault
    data.micro_batches = logged_micro_batches
    model.token_loss = token_loss_with_fault
    torch.nn.utils.clip_grad_norm_ = keep_first_gradients
    train.save_checkpoint = counted_save_checkpoint
    if kind == "save":
        for module, name in DISK_ACCESSES:
            setattr(module, name, counted(getattr(module, name)))


def consumed(log) -> dict[int, set[str]]:
    """The log -> the rows of each step and rank. A step that was repeated must have had the same rows."""
    steps = {}
    for line in Path(log).read_text().splitlines():
        step, rows = line.split(" ", 1)
        steps.setdefault(int(step), set()).add(rows)
    return steps


if __name__ == "__main__":
    fault, log = sys.argv[1:3]
    sys.argv[1:3] = []
    install(fault, log)
    train.record(train.main)()
