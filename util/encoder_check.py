"""Passes through an encoder before a run: does it work on this device, in this precision, with windows of this length?

Each answer is measured, since lists of names and versions go out of date. check_encoder uses a model that is then
thrown away. check_windows uses the one that is trained, and restores the state of the random numbers.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from util.device import pick_precision, to_device
from util.distributed import all_reduce_sum, broadcast
from util.partial_embedding import trained_token_ids
from util.sharding import local_tensor
from util.split import Split
from util.tokenizer import special_tokens

FIRST_LENGTH = 1024  # of the longest window that is tried before the data are read
SHORT_LENGTHS = (9, 23)  # of a padded batch
PADDED_LENGTHS = (40, 53)  # of one whose logits are compared with those of its first sentence alone; also the longest
ROUNDING = 1e-4  # of logits in fp32, relative to the largest one; where logits depend on padding, 1e-3 and more
FSDP_ROUNDING = 2e-2  # there may be no weights in fp32 to compute with


class Windows(NamedTuple):
    """How to make windows like those of the data: random subwords between the tokenizer's special tokens."""

    special: tuple[torch.Tensor, torch.Tensor]
    subwords: torch.Tensor
    pad_token_id: int

    def batch(self, lengths) -> dict[str, torch.Tensor]:
        """Windows of these lengths, padded on the right to the longest."""
        generator = torch.Generator().manual_seed(0)
        rows = []
        for length in lengths:
            room = length - sum(map(len, self.special))
            chosen = torch.randint(len(self.subwords), (max(0, room),), generator=generator)
            rows.append(torch.cat([self.special[0], self.subwords[chosen], self.special[1]])[:length])
        pad = nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": pad(rows, True, self.pad_token_id), "attention_mask": mask}


def _windows(tokenizer) -> Windows:
    special = tuple(torch.as_tensor(ids, dtype=torch.long) for ids in special_tokens(tokenizer))
    excluded = torch.tensor([i for i in tokenizer.all_special_ids if i is not None], dtype=torch.long)
    ids = torch.arange(len(tokenizer))
    subwords = ids[~torch.isin(ids, excluded)]
    return Windows(special, subwords, tokenizer.pad_token_id or 0)


# ----------------------------------------------------------------------------------------------------------------------
# One pass


def _failure(model: PreTrainedModel, batch: dict, autocast, backward: bool) -> str:
    """Why a pass through the model fails, or "". A GPU without memory raises torch.OutOfMemoryError."""
    try:
        with autocast, torch.set_grad_enabled(backward):
            logits = model(**to_device(batch, model.device)).logits
        results = [logits]
        if backward:
            logits.float().square().mean().backward()
            results += [local_tensor(p.grad) for p in model.parameters() if p.grad is not None]
        finite = torch.stack([result.isfinite().all() for result in results]).tolist()  # a GPU raises its errors here
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an encoder or a kernel raises
        text = " ".join(str(error).split())
        if "can't allocate memory" in text:  # a CPU without memory raises RuntimeError
            raise MemoryError(text[-200:]) from None
        return f"{type(error).__name__}: {text[-200:]}"
    finally:
        model.zero_grad(set_to_none=True)
    if not finite[0]:
        return "its logits are not finite"
    return "" if all(finite) else "its gradients are not finite"


class _LongestWindow(NamedTuple):
    longest: int  # in subwords; 0: not even short windows work
    reason: str  # why longer ones do not work


def _longest_window(model: PreTrainedModel, windows: Windows, longest: int, autocast, backward: bool) -> _LongestWindow:
    """Tries a padded batch, the shortest window, and one of `longest` subwords. If only that fails: bisects.

    On a CPU, where the longest window takes most of the time, it only passes forward.
    """
    shortest = min(longest, sum(map(len, windows.special)) + 1)

    def failure(length: int) -> str:
        return _failure(model, windows.batch([length]), autocast, backward and model.device.type == "cuda")

    reason_of_longest = failure(longest)
    short_batch = windows.batch([min(length, longest) for length in SHORT_LENGTHS])
    reason = failure(shortest) or _failure(model, short_batch, autocast, backward)
    if reason or not reason_of_longest:
        return _LongestWindow(0 if reason else longest, reason)
    works, fails = shortest, longest
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (works, middle) if failure(middle) else (middle, fails)
    return _LongestWindow(works, reason_of_longest)


# ----------------------------------------------------------------------------------------------------------------------
# What the logits of a word depend on: in fp32, without dropout


@torch.no_grad()
def refuse_without_context(model: PreTrainedModel, windows: Windows, length: int) -> None:
    """Raises ValueError if no logit depends on the other words: MRA attends to nothing without its CUDA kernel."""
    batch = windows.batch([length])
    changed = dict(batch, input_ids=batch["input_ids"].clone())
    position = len(windows.special[0])  # of the first subword
    other_subwords = windows.subwords[windows.subwords != changed["input_ids"][0, position]]
    if not len(other_subwords):
        return
    changed["input_ids"][0, position] = other_subwords[0]
    first, second = (model(**to_device(inputs, model.device)).logits[0] for inputs in (batch, changed))
    others = torch.arange(len(first), device=first.device) != position
    # A head of zeros shows nothing.
    if first.any() and others.any() and torch.equal(first[others], second[others]):
        raise ValueError(
            f"{type(model).__name__}: its logits do not depend on the other words of a sentence on this device"
        )


@torch.no_grad()
def depends_on_padding(model: PreTrainedModel, tokenizer, longest: int = FIRST_LENGTH) -> bool:
    """Whether a sentence has other logits in a batch with a longer one: FNet, Funnel, YOSO and others.

    With one of `longest` subwords: BigBird's attention and the positions of LongRoPE are chosen by the longest one.
    """
    windows, limit = _windows(tokenizer), tokenizer.model_max_length
    rounding = FSDP_ROUNDING if isinstance(model, FSDPModule) else ROUNDING
    length = max(sum(map(len, windows.special)) + 1, min(PADDED_LENGTHS[0], limit - 1))
    for padded_length in sorted({min(PADDED_LENGTHS[1], limit), min(longest, limit)}):
        batch = windows.batch([length, max(length, padded_length)])
        alone = {name: values[:1, :length] for name, values in batch.items()}
        if padded_length > PADDED_LENGTHS[1]:  # the long row itself would double the time
            batch = {name: values[:1] for name, values in batch.items()}
        padded, single = (model(**to_device(inputs, model.device)).logits[0, :length] for inputs in (batch, alone))
        if (padded - single).abs().max() > rounding * single.abs().max():
            return True
    return False


# ----------------------------------------------------------------------------------------------------------------------
# Before training and before tagging


def _log_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def check_encoder(
    model: PreTrainedModel, tokenizer, requested: str, make_autocast, max_seq_length: int | None = None,
    log: Callable[[str], None] = _log_to_stderr,
) -> str:  # fmt: skip
    """Tries an encoder before the data are read, and before tagging: a model in training mode also passes backward.

    Returns the precision to use, fp32 where 16 bits do not work. Lowers tokenizer.model_max_length where the encoder
    reads less. Raises ValueError if it does not work, or not as a flag asks for. model: on its device; its buffers may
    change. requested: --precision. make_autocast: precision, device -> autocast. max_seq_length: the flag.
    """
    precision = pick_precision(requested, model.device)
    name, windows, backward = type(model).__name__, _windows(tokenizer), model.training
    limit = min(tokenizer.model_max_length, FIRST_LENGTH)

    def try_precision(precision: str) -> _LongestWindow:
        return _longest_window(model, windows, limit, make_autocast(precision, model.device), backward)

    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        found = try_precision(precision)
        if found.longest < limit and precision != "fp32":
            in_fp32 = try_precision("fp32")
            if in_fp32.longest > found.longest:
                if requested != "auto":
                    raise ValueError(f"--precision {precision}: {name} fails: {found.reason}; use --precision fp32")
                log(f"warning: computing in fp32, since {name} fails in {precision}: {found.reason}")
                precision, found = "fp32", in_fp32
        fp32 = torch.autocast(model.device.type, enabled=False)
        reason = "" if found.longest else found.reason
        lengths = np.minimum(SHORT_LENGTHS, found.longest).tolist()
        reason = reason or _failure(model.eval(), windows.batch(lengths), fp32, backward=False)
        if reason:
            remedy = "; try a smaller --max_seq_length" if "device-side assert" in reason else ""  # of an index
            raise ValueError(f"{name} cannot be used: {reason}{remedy}")
        refuse_without_context(model, windows, lengths[0])
    if found.longest < limit:
        if max_seq_length:
            raise ValueError(f"--max_seq_length {max_seq_length}: {name} reads {found.longest} subwords at most")
        log(f"note: windows have {found.longest} subwords, since {name} fails with {limit}: {found.reason}")
        tokenizer.model_max_length = found.longest
    return precision


def check_windows(model: PreTrainedModel, tokenizer, splits: dict[str, Split], autocast, log) -> None:
    """Tries what check_encoder cannot: windows longer than those it tries, and a model under FSDP.

    All ranks call it. Raises ValueError: an error instead of a fallback. Sets config.depends_on_padding where
    evaluation is to use batches of one length.
    """
    name = type(model).__name__.removeprefix("FSDP")
    longest = max(int(split.windows.lengths.max(initial=1)) for split in splits.values())
    all_lengths = [[longest]] if longest > FIRST_LENGTH else []
    if isinstance(model, FSDPModule):  # no single device may hold the model
        all_lengths = [np.minimum(SHORT_LENGTHS, longest).tolist(), [longest]]
    # Other subwords have no rows in the embedding while it is trained.
    windows = _windows(tokenizer)._replace(subwords=trained_token_ids(model))
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for lengths in all_lengths:
            reason = _failure(model, windows.batch(lengths), autocast, backward=True)
            (num_failed,) = all_reduce_sum([float(bool(reason))], model.device)
            if num_failed:
                what = f"{name} fails with a window of {max(lengths)} subwords: {reason or 'on another rank'}"
                other = ", or no --fsdp" if isinstance(model, FSDPModule) else ""
                raise ValueError(f"{what}; use a smaller --max_seq_length or --precision fp32{other}")
        model.eval()
        model.config.depends_on_padding = broadcast(depends_on_padding(model, tokenizer, longest))  # also for infer.py
        if model.config.depends_on_padding:
            log(
                f"warning: the logits of {name} depend on padding: training pads its batches, evaluation and infer.py "
                "use batches of windows of one length"
            )
        model.train()
    model.state_dict()  # under FSDP: shards again what the last pass has gathered, for the optimizer
