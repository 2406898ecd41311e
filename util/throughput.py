"""Training throughput (--benchmark): real tokens per second, and the share of the device's peak in use.

Padding is never counted as work. The figures of a run with several ranks are those of all ranks together.
"""

import json
import resource
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from util.device import Timestamp, synchronize
from util.distributed import all_reduce_sum
from util.vocabulary import text_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MATMUL_SIZE = {"cuda": 8192, "cpu": 1536}  # rows and columns of the matrices that measure the matmul peak
CALLS_PER_TIMING = {"cuda": 10, "cpu": 1}  # on a GPU, launching one call would be part of its time
ADAMW_BYTES = 28  # per parameter: reads weight, gradient, two moments, writes all but the gradient; fp32


class StepStats(NamedTuple):
    """One optimizer step."""

    seconds: float
    data_wait: float  # seconds of these spent waiting for data
    lengths: np.ndarray  # [R] real tokens of every window of the global batch
    padded_tokens: int  # tokens that this rank computed, padding included


def throughput(steps: list[StepStats], padded_tokens: float) -> dict[str, float]:
    """Figures of these steps. padded_tokens: the sum over all steps and ranks."""
    total_seconds = sum(step.seconds for step in steps)
    real_tokens = sum(int(step.lengths.sum()) for step in steps)
    p50, p95 = np.quantile([step.seconds for step in steps], [0.5, 0.95])
    return {
        "tokens_per_second": real_tokens / total_seconds,
        "sentences_per_second": sum(len(step.lengths) for step in steps) / total_seconds,
        "step_ms_p50": 1e3 * float(p50),
        "step_ms_p95": 1e3 * float(p95),
        "data_wait": sum(step.data_wait for step in steps) / total_seconds,
        "padding": 1 - real_tokens / padded_tokens,
    }


def step_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """FLOPs of the forward and backward pass over windows of these lengths [R].

    6 N T + 12 layers width sum(L^2), with N weights in Linear layers and T tokens. Every weight costs a
    multiplication and an addition per token in the forward pass, and twice that in the backward pass
    (Kaplan et al., arXiv 2001.08361). Attention's two products are counted in the same way: 2 x 2 x 3 = 12.
    """
    linear_weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config = text_config(model.config)
    attention = 12 * config.num_hidden_layers * config.hidden_size * (lengths**2.0).sum()
    return 6 * linear_weights * lengths.sum() + attention


def utilization(model: PreTrainedModel, precision: str, steps: list[StepStats], world_size: int) -> dict:
    """Measures the device's matmul peak and returns the share that the steps reach: model FLOPs utilization.

    "floor_ms" is the roofline time of a step: its matrix products at that peak, plus the memory traffic of
    AdamW at the measured memory bandwidth.
    """
    device = model.device
    memory = peak_memory(device)  # before the measurements below allocate more
    size = MATMUL_SIZE[device.type]
    matrix = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    matmul_peak = world_size * 2 * size**3 / _seconds(lambda: matrix @ matrix, device)  # FLOP/s of all ranks
    block = torch.empty(2**26, device=device)
    copied_bytes = 2 * block.numel() * block.element_size()  # read and written
    bandwidth = copied_bytes / _seconds(block.clone, device)

    flops = sum(step_flops(model, step.lengths) for step in steps) / len(steps)
    seconds = sum(step.seconds for step in steps) / len(steps)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "peak_memory_gib": memory,
        "matmul_peak_tflops": matmul_peak / 1e12,
        "mfu": flops / seconds / matmul_peak,
        "floor_ms": 1e3 * (flops / matmul_peak + ADAMW_BYTES * trained / bandwidth),
    }


def _seconds(function: Callable, device: torch.device, repetitions: int = 9) -> float:
    """Seconds of a call: on a GPU the median over repetitions of ten calls between two events, on a CPU the minimum.

    The first repetition, which may compile or allocate, is not counted.
    """
    calls = CALLS_PER_TIMING[device.type]
    seconds = []
    for _ in range(repetitions):
        start = Timestamp(device)
        for _ in range(calls):
            function()
        end = Timestamp(device)
        synchronize(device)
        seconds.append(end.seconds_since(start) / calls)
    return statistics.median(seconds[1:]) if device.type == "cuda" else min(seconds[1:])


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: of PyTorch's allocator on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"cpu, {num_threads} thread" + ("s" if num_threads > 1 else "")


def print_summary(steps: list[StepStats], model, precision: str, device, world_size: int, log) -> None:
    """Prints the result of --benchmark: a line for every figure, then all as JSON. All ranks call it."""
    if not steps:  # stopped by a signal
        return
    (padded_tokens,) = all_reduce_sum([sum(step.padded_tokens for step in steps)], device)
    figures = throughput(steps, padded_tokens) | utilization(model, precision, steps, world_size)
    for name, value in figures.items():
        log(f"{name:22} {value:14,.4g}")
    run = {"world_size": world_size, "precision": precision, "device": device_name(device)}
    log(json.dumps(figures | run))
