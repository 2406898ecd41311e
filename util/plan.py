"""Batch arithmetic: how many sentences a step has, how many steps a run has, and when it logs, evaluates and saves."""

import math
from dataclasses import dataclass
from typing import NamedTuple


class Due(NamedTuple):
    """What follows an optimizer step."""

    log: bool
    evaluate: bool
    save: bool
    sync_device: bool  # wait for the device, so that the clock counts finished work


@dataclass(frozen=True)
class Plan:
    """Batch arithmetic, in optimizer steps."""

    global_batch_size: int  # sentences a step, on all ranks
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int
    eval_every: int
    save_every: int
    patience: int  # steps without a better score after which training stops early; 0: never
    is_benchmark: bool
    untimed_steps: int  # of a benchmark, at its start

    def due(self, step: int, stop: bool) -> Due:
        """step: the number of steps done. stop: a signal asked the run to stop, which makes a save due."""
        is_last = step == self.total_steps
        if self.is_benchmark:  # the device is waited for before the first timed step and after the last one
            return Due(log=False, evaluate=False, save=False, sync_device=is_last or stop or step == self.untimed_steps)
        log = is_last or step % self.log_every == 0
        evaluate = is_last or step % self.eval_every == 0
        save = stop or step % self.save_every == 0
        ends_epoch = step % self.steps_per_epoch == 0
        return Due(log, evaluate, save, sync_device=log or evaluate or save or ends_epoch)

    def is_done(self, step: int, best_step: int) -> bool:
        """best_step: of the best evaluation so far."""
        stops_early = self.patience > 0 and step - best_step >= self.patience
        return step >= self.total_steps or stops_early


def make_plan(args, num_windows: int, world_size: int, benchmark_warmup_steps: int) -> Plan:
    """args: the flags of train.py. num_windows: of the training split."""
    global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
    steps_per_epoch = math.ceil(num_windows / global_batch_size)
    total_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if args.benchmark:
        total_steps = benchmark_warmup_steps + args.benchmark
    eval_every = args.eval_steps or steps_per_epoch
    return Plan(
        global_batch_size,
        steps_per_epoch,
        total_steps,
        warmup_steps=math.ceil(args.warmup_ratio * total_steps),
        log_every=args.logging_steps,
        eval_every=eval_every,
        save_every=args.save_steps or steps_per_epoch,
        patience=args.early_stopping_patience * eval_every,
        is_benchmark=args.benchmark > 0,
        untimed_steps=benchmark_warmup_steps,
    )
