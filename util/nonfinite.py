"""Stops training before the update if a gradient is not finite, without asking the device at every step."""

from collections.abc import Callable

import torch


class NonFiniteGuard:
    """Decides whether an optimizer may step, and remembers the first step that had a non-finite gradient.

    Fused optimizers read `found_inf` on the device and then change no weight. For other optimizers the host looks at
    the gradient norm before the step, which waits for a GPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.is_fused = bool(optimizer.defaults.get("fused"))
        self.first_step = torch.full((), -1, device=device)  # -1: none

    def allows_step(self, grad_norm: torch.Tensor, step: int) -> bool:
        """grad_norm: of all gradients, summed over ranks. Once it is not finite, no later step changes weights."""
        is_first = (self.first_step < 0) & ~grad_norm.isfinite()
        self.first_step = torch.where(is_first, step, self.first_step)
        if self.is_fused:
            self.optimizer.found_inf = (self.first_step >= 0).float()  # type: ignore[attr-defined]
            return True
        return bool(self.first_step < 0)

    def observe_loss_scale(self, loss_scale: float, step: int) -> None:
        """fp16: the scaler skips steps with overflows and halves its scale. Below 1 it is no overflow but a NaN."""
        self.first_step.fill_(step if loss_scale < 1 else -1)

    def raise_if_nonfinite(self, batches_of: Callable, steps_per_epoch: int, window_position: Callable) -> None:
        """Raises ValueError that names the first step with a non-finite gradient and its sentences.

        batches_of: epoch -> the rows of each of its steps. window_position: row -> "file.conll:12". All ranks raise
        together, since they summed the same gradient. No weight has changed since. Waits for the device.
        """
        step = int(self.first_step)
        if step >= 0:
            epoch, i = divmod(step, steps_per_epoch)
            places = ", ".join(window_position(int(row)) for row in batches_of(epoch)[i][:16])
            raise ValueError(f"step {step + 1}: the loss or its gradient is not finite. Its sentences: {places}")
