"""The clock of the training step, and the numbers that the log reports: loss, throughput, time without data."""

import time

import numpy as np
import torch

from util.distributed import all_reduce_sum
from util.throughput import StepStats, throughput


class StepMeter:
    """Times steps. Evaluation, checkpoints and logging happen between steps and are not counted.

    loss_sum, step: of the run so far, from a checkpoint. The loss stays on the device until it is logged.
    """

    def __init__(self, device: torch.device, loss_sum: float, step: int, rank: int):
        self.device = device
        self.loss_sum = torch.tensor(loss_sum if rank == 0 else 0.0, dtype=torch.float64, device=device)  # of this rank
        self.logged_loss, self.logged_step = loss_sum, step
        self.steps: list[StepStats] = []  # since the last log line

    def start_step(self) -> None:
        self.step_start, self.data_wait, self.padded_tokens = time.perf_counter(), 0.0, 0

    def fetch(self, loader) -> dict:
        """The next batch, on the device. Waiting for the loader counts as data wait."""
        start = time.perf_counter()
        batch = next(loader)
        self.data_wait += time.perf_counter() - start
        self.padded_tokens += batch["input_ids"].numel()
        if self.device.type == "cpu":
            return batch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def add_loss(self, loss: torch.Tensor) -> None:
        self.loss_sum += loss.detach()

    def end_step(self, lengths: np.ndarray, sync: bool) -> StepStats:
        """lengths: real tokens of every window of the global batch. sync: wait for the device, so that the clock
        counts finished work."""
        if sync and self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.step_start
        self.steps.append(StepStats(seconds, self.data_wait, lengths, self.padded_tokens))
        return self.steps[-1]

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
