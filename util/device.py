"""The device of a rank, its precision, copies to it, points in time. Only synchronize makes the host wait."""

import time

import torch

from util.distributed import get_ranks


def pick_device() -> torch.device:
    """This rank's GPU, which becomes the current one, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", get_ranks().local_rank)
    torch.cuda.set_device(device)  # before anything else asks for a GPU, which would be GPU 0
    return device


def pick_precision(requested: str, device: torch.device) -> str:
    """auto -> bf16 where the hardware computes in it, else fp16 on a GPU, else fp32. Raises ValueError."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if requested == "auto":
        if has_bf16:
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise ValueError("--precision fp16 needs a GPU; use bf16 or fp32")
    if requested == "bf16" and device.type == "cuda" and not has_bf16:
        raise ValueError(f"--precision bf16: {torch.cuda.get_device_name(device)} has none; use fp16 or fp32")
    return requested


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch from the CPU on the device. Only from pinned memory does a copy not make the host wait."""
    if device.type == "cpu":
        return batch
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timestamp:
    """A point in time: on a GPU when all work that was queued before is done, which the host does not wait for."""

    def __init__(self, device: torch.device):
        self.host_time = time.perf_counter()
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def seconds_since(self, earlier: "Timestamp") -> float:
        """On a GPU, both points must have been reached: call synchronize before."""
        if self.event is None:
            return self.host_time - earlier.host_time
        return earlier.event.elapsed_time(self.event) / 1e3
