"""The clock of the training step, and the numbers that the log reports: loss, throughput, time without data."""

import time

import numpy as np
import torch

from util.device import Timestamp, synchronize, to_device
from util.distributed import all_reduce_sum
from util.throughput import StepStats, throughput


class StepMeter:
    """Times steps. Evaluation, checkpoints and log lines are not counted.

    A step ends where the next one begins, so that nothing between two steps is left out. On a GPU these points are CUDA
    events: the host does not wait for them, and their times are known when it has waited for something else.

    loss_sum, step: of the run so far, from a checkpoint. The loss stays on the device until it is logged.
    """

    def __init__(self, device: torch.device, loss_sum: float, step: int, rank: int):
        self.device = device
        self.loss_sum = torch.tensor(loss_sum if rank == 0 else 0.0, dtype=torch.float64, device=device)  # of this rank
        self.logged_loss, self.logged_step = loss_sum, step
        self.steps: list[StepStats] = []  # since the last log line
        self.step_start: Timestamp | None = None  # None: the clock is stopped
        self.pending: list[tuple[Timestamp, Timestamp, StepStats]] = []  # steps whose time is not known yet

    def start_step(self) -> None:
        self.data_wait, self.padded_tokens = 0.0, 0
        if self.step_start is None:
            self.step_start = Timestamp(self.device)

    def fetch(self, loader) -> dict:
        """The next batch, on the device. Waiting for the loader counts as data wait."""
        start = time.perf_counter()
        batch = next(loader)
        self.data_wait += time.perf_counter() - start
        self.padded_tokens += batch["input_ids"].numel()
        return to_device(batch, self.device)

    def add_loss(self, loss: torch.Tensor) -> None:
        self.loss_sum += loss.detach()

    def end_step(self, lengths: np.ndarray, sync: bool) -> list[StepStats]:
        """lengths: real tokens of every window of the global batch.

        With sync, waits for the device, stops the clock and returns the steps since the last sync; else returns [].
        """
        end = Timestamp(self.device)
        stats = StepStats(np.nan, self.data_wait, lengths, self.padded_tokens)
        self.pending.append((self.step_start, end, stats))
        self.step_start = end
        if not sync:
            return []
        synchronize(self.device)
        finished = [stats._replace(seconds=end.seconds_since(start)) for start, end, stats in self.pending]
        self.steps += finished
        self.pending, self.step_start = [], None
        return finished

    def total_loss(self) -> float:
        """The loss of all steps and ranks. A collective."""
        return all_reduce_sum([self.loss_sum], self.device)[0]

    def scalars(self, step: int) -> dict[str, float]:
        """Mean loss and throughput since the last call. A collective."""
        padded_tokens = sum(stats.padded_tokens for stats in self.steps)
        total_loss, padded_tokens = all_reduce_sum([self.loss_sum, padded_tokens], self.device)
        loss = (total_loss - self.logged_loss) / (step - self.logged_step)
        scalars = {"loss": loss} | throughput(self.steps, padded_tokens)
        self.logged_loss, self.logged_step, self.steps = total_loss, step, []
        return scalars
