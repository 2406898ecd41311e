"""Ranks, the process group, stop signals, how errors end a run, and what the libraries print."""

import atexit
import contextlib
import functools
import gc
import os
import signal
import socket
import sys
import threading
import time
import uuid
import warnings
from datetime import timedelta
from typing import NamedTuple

import datasets
import huggingface_hub
import torch
import torch.distributed as dist
import transformers


class Ranks(NamedTuple):
    rank: int
    local_rank: int
    world_size: int


def get_ranks() -> Ranks:
    """What torchrun set in the environment; a single process without torchrun."""
    return Ranks(
        rank=int(os.environ.get("RANK", 0)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )


def join_process_group(ranks: Ranks, timeout: timedelta) -> None:
    """init_process_group with keys that only the ranks of this start know.

    Tensors on a GPU travel by NCCL. Objects and tensors on the CPU travel by gloo, without occupying the GPUs, and gloo
    raises an error as soon as a rank is lost.

    torchrun keeps its key-value store when it restarts the ranks. Ranks that find the addresses of the previous start
    in it hang or fail (torch 2.13: 6 of 8 restarts on gloo). So all keys get a prefix that is new at every start:

    1. Every rank writes a random token. A rank that restarted overwrites its old one.
    2. Rank 0 publishes the tokens of all ranks. It repeats this until every rank has confirmed its own token.
    3. A rank confirms once the published list holds its token. Rank 0's token, the first in the list, is the prefix.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    token = uuid.uuid4().hex
    store.set(f"rank {ranks.rank}", token)
    if ranks.rank == 0:
        prefix = token
        missing = set(range(1, ranks.world_size))
        while missing:
            tokens = [store.get(f"rank {rank}").decode() for rank in range(ranks.world_size)]
            store.set("tokens", " ".join(tokens))
            missing = {rank for rank in missing if not store.check([f"{prefix} confirmed by {rank}"])}
            time.sleep(0.01)
    else:
        tokens = []
        while token not in tokens:
            time.sleep(0.01)
            tokens = store.get("tokens").decode().split()
        prefix = tokens[0]
        store.set(f"{prefix} confirmed by {ranks.rank}", "")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(prefix, store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """Leaves the group at exit, after DDP's reducer was collected.

    If the reducer were the last to hold the group, gloo's destructor would wait for a thread that waits for the
    interpreter (pytorch/pytorch#56297; one exit in three hung or crashed). After an error, ranks are at different
    places: destroy_process_group would wait for collectives that the others never join (pytorch/pytorch#141510).
    """
    gc.collect()
    if exit_on_error.failed and torch.cuda.is_available():
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def on_rank0(function, *args, **kwargs):
    """Calls the function on rank 0 only. All ranks return its result, or raise its OSError or ValueError."""
    result, error = None, None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            result = function(*args, **kwargs)
        except (OSError, ValueError) as raised:
            error = raised
    if dist.is_initialized():
        outcome = [result, error]
        dist.broadcast_object_list(outcome, src=0)
        result, error = outcome
    if error is not None:
        raise error
    return result


def broadcast(value):
    """Returns the value of rank 0 on all ranks."""
    return on_rank0(lambda: value)


def refuse_different(**values) -> None:
    """Raises ValueError on all ranks if they have different values: they would wait for each other."""
    if not dist.is_initialized():
        return
    of_ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, values)
    for name, value in values.items():
        found = [of_rank[name] for of_rank in of_ranks]
        if any(other != value for other in found):
            raise ValueError(f"--{name} has to be given: the ranks chose {', '.join(map(str, found))}")


def all_reduce_sum(values: list, device: torch.device) -> list[float]:
    """Sums numbers, or tensors of one element, over the ranks. Synchronizes with the device."""
    sums = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums.tolist()


class StopSignal:
    """SIGTERM or SIGINT requests a stop at the end of a step. A second signal ends the process at once."""

    def __init__(self):
        self.received = 0  # the signal that this process received; 0: none
        self.number = 0  # the signal that all ranks agreed on
        self.pending = None  # the all-reduce of the last step, and its result
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number, frame) -> None:
        self.received = number
        self.release()

    def release(self) -> None:
        """Restores the default handlers."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    def agreed(self) -> int:
        """The signal that any rank had received one step ago, the same on all ranks; 0: none.

        The all-reduce of a small CPU tensor runs during the next step, so that no rank waits for it.
        """
        if not dist.is_initialized():
            self.number = self.received
            return self.number
        if self.pending is not None:
            work, number = self.pending
            work.wait()
            self.number = int(number)
        number = torch.tensor([self.received])
        self.pending = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True), number
        return self.number


# ----------------------------------------------------------------------------------------------------------------------
# Errors


class _ExitOnError:
    """Decorates main: an error of the user or of a disk ends the process with one line on stderr.

    The exit code is 2, or 1 once `training_begins` was called.
    """

    def __init__(self):
        self.code = 2
        self.failed = False  # by an error, and not by a signal on which all ranks agreed
        self.batch_flag = "--per_device_train_batch_size"  # to lower if a GPU runs out of memory

    def training_begins(self) -> None:
        self.code = 1

    def __call__(self, main):
        @functools.wraps(main)
        def wrapped():
            self.code, self.failed = 2, True
            try:
                result = main()
            except SystemExit:  # the ranks agreed on it
                self.failed = False
                raise
            except (ValueError, OSError) as error:
                _report_on_rank0_first()
                rank = get_ranks().rank
                text = str(error)
                if getattr(error, "strerror", None):
                    text = f"{error.filename}: {error.strerror}"
                print(f"error: {' '.join(text.split())}" + (f" (rank {rank})" if rank else ""), file=sys.stderr)
                raise SystemExit(self.code) from None
            except (torch.OutOfMemoryError, MemoryError) as error:
                # "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
                reason = str(error).partition(" GPU ")[0].partition("\n")[0] or "out of memory."
                print(f"error: {reason} Use a smaller {self.batch_flag}", file=sys.stderr)
                raise SystemExit(self.code) from None
            except RuntimeError as error:
                text = " ".join(str(error).split())
                # gloo raises RuntimeError itself, NCCL a subclass of it.
                if not isinstance(error, dist.DistError) and "gloo" not in text:
                    raise
                place = f"rank {get_ranks().rank} on {socket.gethostname()}"
                print(f"error: {place} has lost the other ranks: {text[:300]}", file=sys.stderr)
                raise SystemExit(1) from None
            self.failed = False
            return result

        return wrapped


exit_on_error = _ExitOnError()


def _report_on_rank0_first() -> None:
    """All ranks raise the same error, and torchrun stops all of them once one has ended.

    The other ranks wait, so that rank 0 prints the line once. They print it after a minute if rank 0 does not end.
    """
    if get_ranks().rank > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(60)


def quiet(progress: bool) -> None:
    """Turns off log lines and warnings of the libraries, and without `progress` their bars.

    Errors are reported in one line.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    huggingface_hub.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # torch 2.11 does not have its replacement
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # not modified in place
    if not progress:
        datasets.disable_progress_bars()


@contextlib.contextmanager
def tell_if_slow(name: str, seconds: float = 5.0):
    """Prints a line on rank 0 if the block, which loads `name`, takes longer than `seconds`.

    The libraries ask the Hub again and again before they report that it cannot be reached.
    """
    if get_ranks().rank > 0 or os.path.isdir(name):
        yield
        return
    text = f"note: still loading {name}; without a network, set HF_HUB_OFFLINE=1 to read the cache at once"
    timer = threading.Timer(seconds, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
