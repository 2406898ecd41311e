"""Decides which fast paths a run takes: packed batches, 16-bit weights, CUDA graphs.

Each is tried before the first step and compared with the plain path on the run's own device and in its precision,
since no test may have run its kernels on this hardware. If a trial fails, the run takes the plain path, and one log
line says why. Trials need no lists of names and versions, which go out of date.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from util.cuda_graphs import GraphedModel
from util.device import to_device
from util.distributed import all_reduce_sum, get_ranks, on_rank0
from util.half_weights import HalfWeights
from util.packed import Packing, make_packing_plan, packed_collate
from util.partial_embedding import trained_token_ids
from util.sharding import local_tensor
from util.vocabulary import text_config

TRIAL_LENGTHS = [180, 180, 180, 5, 3]  # in subwords: more tokens than most encoders' limit of 512
VERIFIED_LENGTHS = {"cpu": [37, 20, 9, 3], "cuda": [180, 70, 9, 3]}  # on a GPU: several blocks of a kernel, windows
FSDP_ROUNDING = {"fp32": 0.0, "bf16": 0.05}  # relative rounding error that is assumed


def choose_packing(
    switch: str, model: PreTrainedModel, max_length: int, group_by_length: bool, device: torch.device, log
) -> Packing | None:
    """--packing auto, on or off -> how to pack, or None for padded batches. One log line tells why auto is off.

    The model is still on the CPU. All ranks call it; rank 0 decides. Raises ValueError if packing is on and not
    supported.
    """
    if switch == "off":
        return None
    packing, reason = on_rank0(enable_packing, model, max_length)
    if packing is None:
        _switch_off(switch, reason, log)
        return None
    model.set_attn_implementation("packed_sdpa")
    # Every T needs kernels of its own on a CPU, a CUDA graph on a GPU. Batches of similar length have more values of T.
    length_steps = 16 if group_by_length else 64
    return packing._replace(length_steps=12 if device.type == "cuda" else length_steps)


def _switch_off(switch: str, reason: str, log) -> None:
    if switch == "on":
        raise ValueError(f"--packing on: {reason}; use --packing off")
    log(f"note: packing is off, batches are padded: {reason}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ----------------------------------------------------------------------------------------------------------------------
# Before training: does the encoder support packed batches? In fp32, on the CPU of rank 0.


@torch.no_grad()
def enable_packing(model: PreTrainedModel, max_length: int) -> tuple[Packing | None, str]:
    """Switches the model to packed attention if that computes the logits of a padded batch.

    Returns (None, the reason) and leaves the model as it was where the logits differ or the encoder raises: if its
    attention is its own (DeBERTa, XLNet), if it computes positions itself, or if a module after the encoder mixes
    tokens (a CRF, an LSTM), which would then mix sentences.
    """
    implementation, was_training = model.config._attn_implementation, model.training
    originals = _randomize_head(model)
    try:
        model.eval()
        packing, reason = _try_packing(model, np.minimum(TRIAL_LENGTHS, max_length))
    except Exception as error:  # whatever an encoder raises for arguments that it does not know
        packing, reason = None, _one_line(error)
    finally:
        for parameter, value in originals:
            parameter.copy_(value)
        model.train(was_training)
    if packing is None:
        model.set_attn_implementation(implementation)
    return packing, reason


def _randomize_head(model: PreTrainedModel) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Draws new values for everything after the encoder and for what is almost zero. Returns the old values.

    A new module is often initialized so that it has no effect (transitions of 0). The trial must see its effect.
    """
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    generator = torch.Generator().manual_seed(0)
    originals = []
    for parameter in model.parameters():
        if id(parameter) not in encoder or not (parameter.abs() > 0.01).any():
            originals.append((parameter, parameter.clone()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return originals


def _make_rows(model: PreTrainedModel, lengths: np.ndarray) -> list[torch.Tensor]:
    """Sentences of these lengths, of all ids that may occur in training but that of padding."""
    ids = trained_token_ids(model)
    ids = ids[ids != _pad_token_id(model)]
    return list(ids[torch.arange(int(lengths.sum())) % len(ids)].split(lengths.tolist()))


def _pad(model: PreTrainedModel, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    pad = nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": pad(rows, batch_first=True, padding_value=_pad_token_id(model)),
        "attention_mask": mask,
    }


def _try_packing(model: PreTrainedModel, lengths: np.ndarray) -> tuple[Packing | None, str]:
    """Compares packed and padded logits of sentences of these lengths."""
    rows = _make_rows(model, lengths)
    padded = _pad(model, rows)
    expected = model(**padded).logits[padded["attention_mask"].bool()]  # [T, C]

    model.set_attn_implementation("packed_sdpa")
    plan, difference = make_packing_plan(lengths), float("nan")
    for first_position in (0, _pad_token_id(model) + 1):
        if first_position > 0 and first_position + lengths.max() > _num_positions(model):
            break  # not RoBERTa, whose table of positions is longer than its longest input
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()]) + first_position
        packed = {"input_ids": torch.cat(rows)[None], "position_ids": positions[None], "packing_plan": plan}
        logits = model(**packed).logits[0]
        if logits.shape == expected.shape:
            if torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return Packing(first_position), ""
            difference = (logits - expected).abs().max().item()
    return None, f"packed and padded logits differ by up to {difference:.2g}"


# ----------------------------------------------------------------------------------------------------------------------
# Before the first step: does packing compute the same on this device and in this precision?


def verify_packing(
    packing: Packing | None, switch: str, model, precision: str, autocast: torch.autocast, log
) -> Packing | None:
    """Compares logits and gradients of packed and padded batches. Returns `packing`, or None and logs why.

    All ranks call it and return the same.
    """
    if packing is None:
        return None
    was_training = model.training
    model.eval()
    reason = _reason_against(lambda: _try_packing_on_device(model, packing, precision, autocast), model)
    model.train(was_training)
    if reason:
        _switch_off(switch, reason, log)
    return None if reason else packing


def _reason_against(trial: Callable[[], str], model: PreTrainedModel) -> str:
    """The result of a trial: why a fast path must not be taken, or "". The same on all ranks."""
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        try:
            reason = trial()
        except Exception as error:  # whatever a kernel raises
            reason = _one_line(error)
    if reason:
        model.state_dict()  # under FSDP: shards again what a pass that was interrupted had gathered
    model.zero_grad(set_to_none=True)
    (num_failed,) = all_reduce_sum([float(bool(reason))], model.device)
    return (reason or "it failed on another rank") if num_failed else ""


def _try_packing_on_device(model, packing: Packing, precision: str, autocast: torch.autocast) -> str:
    """The reference is a padded batch in fp32. A packed batch may be three times as far from it as a padded batch in
    the run's precision is. FSDP has no weights in fp32 to compute with: the reference is then in the run's precision.
    """
    rows = _make_rows(model, _verified_lengths(model))
    padded, packed = _pad(model, rows), _pack(model, rows, packing)
    is_token = padded["attention_mask"].flatten().nonzero()[:, 0]
    packed_results = _logits_and_gradients(model, model, packed, torch.arange(len(is_token)), autocast)
    padded_results = _logits_and_gradients(model, model, padded, is_token, autocast)
    if isinstance(model, FSDPModule):
        error, rounding = _relative_error(packed_results, padded_results), FSDP_ROUNDING[precision]
    else:
        fp32 = torch.autocast(model.device.type, enabled=False)
        reference = _logits_and_gradients(model, model, padded, is_token, fp32)
        error, rounding = (_relative_error(results, reference) for results in (packed_results, padded_results))
    if error <= 3 * rounding + 1e-3:  # False if a value is NaN
        model.train()  # a kernel may support dropout in one of its passes only
        logits, gradients = _logits_and_gradients(model, model, packed, torch.arange(len(is_token)), autocast)
        is_finite = torch.stack([tensor.isfinite().all() for tensor in (logits, *gradients)]).all().item()
        return "" if is_finite else "its results with dropout are not finite"
    return f"its results differ by {error:.2g} on this device, those of padded batches by {rounding:.2g}"


def _verified_lengths(model) -> np.ndarray:
    return np.minimum(VERIFIED_LENGTHS[model.device.type], _num_positions(model) - 2).astype(
        int
    )  # RoBERTa: two positions have no token


def _pad_token_id(model) -> int:
    return text_config(model.config).pad_token_id or 0


def _num_positions(model) -> float:
    num_positions = getattr(text_config(model.config), "max_position_embeddings", None)
    return num_positions if num_positions and num_positions > 0 else math.inf  # XLNet: -1


def _pack(model, rows: list[torch.Tensor], packing: Packing) -> dict:
    pad_values = {"input_ids": _pad_token_id(model)}
    return packed_collate([{"input_ids": row.numpy()} for row in rows], pad_values, packing)


def _logits_and_gradients(call, model, batch: dict, is_token: torch.Tensor, autocast) -> tuple[torch.Tensor, list]:
    """Logits [T, C] of the tokens at these positions of the flattened batch, and this rank's gradients."""
    inputs = to_device(batch, model.device)
    torch.manual_seed(0)  # for dropout
    with autocast:
        logits = call(**inputs).logits
    logits = logits.flatten(0, 1).index_select(0, is_token.to(model.device)).float()
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    logits.backward(upstream.to(model.device))
    gradients = [local_tensor(p.grad).float().clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return logits.detach().clone(), gradients


def _relative_error(results: tuple[torch.Tensor, list], reference: tuple[torch.Tensor, list]) -> float:
    """The largest difference of the logits of a token, or of the gradients of a parameter, in units of their norm.

    Parameters whose gradient is rounding error alone, such as the bias of the keys, do not count: a norm counts as at
    least 1 % of the largest one.
    """
    (logits, gradients), (reference_logits, reference_gradients) = results, reference
    logit_error = (logits - reference_logits).norm(dim=1).max() / reference_logits.norm(dim=1).mean()
    norms = torch.stack(torch._foreach_norm(reference_gradients))
    errors = torch.stack(torch._foreach_norm(torch._foreach_sub(gradients, reference_gradients)))
    gradient_error = (errors / norms.clamp(min=0.01 * norms.max())).max()
    return torch.stack([logit_error, gradient_error]).max().item()


# ----------------------------------------------------------------------------------------------------------------------
# Before the first step: fewer kernel launches on a GPU


def with_fewer_launches(model, args, packing: Packing | None, precision: str, autocast: torch.autocast, log):
    """Returns what computes the same as the model with fewer kernel launches on a GPU, or the model.

    args: the flags of train.py. Several ranks need DDP, unless the result is a GraphedModel.
    """
    is_distributed = get_ranks().world_size > 1
    if model.device.type != "cuda" or args.fsdp or (is_distributed and not args.cuda_graphs):
        return model
    call = model
    # Not with checkpointing: it calls a layer again in the backward pass, when functional_call has ended.
    if precision != "fp32" and not args.gradient_checkpointing:
        call = choose_half_weights(model, autocast, packing, log)
    if args.cuda_graphs:
        return choose_cuda_graphs(model, call, autocast, packing, log) or (model if is_distributed else call)
    return call


def choose_half_weights(model, autocast: torch.autocast, packing: Packing | None, log):
    """Returns what calls the model with fewer kernels, or the model, and logs why."""
    with autocast:
        half_weights = HalfWeights(model, torch.get_autocast_dtype(model.device.type))
    reason = _reason_against(lambda: _try_call(half_weights, model, packing, autocast), model)
    if reason:
        log(f"note: weights are cast layer by layer: {reason}")
        return model
    return half_weights


def choose_cuda_graphs(model, call, autocast: torch.autocast, packing: Packing | None, log) -> GraphedModel | None:
    """Returns the model as CUDA graphs, or None and logs why. call: the model, or what calls it in its place."""
    reason = "they need packed batches, whose shapes are few"
    if packing is not None:
        reason = _reason_against(lambda: _try_graphs(model, call, packing, autocast), model)
    if reason:
        log(f"note: CUDA graphs are off: {reason}")
        return None
    return GraphedModel(model, call)


def _try_graphs(model, call, packing: Packing, autocast: torch.autocast) -> str:
    batch = _pack(model, _make_rows(model, _verified_lengths(model)), packing)
    torch.cuda.set_sync_debug_mode("error")  # raises where the host waits for the device, which a graph cannot
    try:
        with autocast:
            call(**to_device(batch, model.device)).logits.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.zero_grad(set_to_none=True)
    return _try_call(GraphedModel(model, call), model, packing, autocast)


def _try_call(fast, model, packing: Packing | None, autocast: torch.autocast) -> str:
    """Compares what calls the model in its place with the model, dropout included. Twice: a graph is then replayed."""
    rows = _make_rows(model, _verified_lengths(model))
    batch = _pad(model, rows) if packing is None else _pack(model, rows, packing)
    tokens = torch.arange(batch["input_ids"].numel())
    expected = _logits_and_gradients(model, model, batch, tokens, autocast)
    with autocast:  # Not 0: the backward pass of attention may add up its terms in another order each time.
        tolerance = 1e-2 if torch.is_autocast_enabled(model.device.type) else 1e-4
    for _ in range(2):
        error = _relative_error(_logits_and_gradients(fast, model, batch, tokens, autocast), expected)
        if not error <= tolerance:  # True if a value is NaN
            return f"the results differ by {error:.2g}"
    return ""
