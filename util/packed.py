"""Packed batches: all sentences of a batch in one row [1, T] without padding, for encoders on a CPU.

Only attention needs to know where sentences begin and end. It works on chunks of eight sentences of similar length,
padded to the longest of the chunk; every other layer computes on T tokens.

    packing, reason = enable_packing(model, max_length=512)   # None if the encoder does not support it
    batch = packed_collate(features, pad_values, packing)     # input_ids, position_ids, labels [1, T], packing_plan
    logits = model(**inputs).logits                           # [1, T, C]

`sliding_window` and other arguments of the attention are those of transformers' AttentionInterface.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from util.distributed import on_rank0
from util.fast_dropout import keep_mask, keep_scale

CHUNK_SIZE = 8  # sentences
MASKED = -1e9  # added to the attention score of a padded position


class Packing(NamedTuple):
    """How an encoder reads packed batches."""

    num_heads: int
    first_position: int  # position id of the first token of a sentence: RoBERTa's count from pad_token_id + 1
    length_steps: int = 64  # T is rounded up by less than 1/length_steps


class Chunk(NamedTuple):
    positions: slice  # of all P padded positions
    length: int  # L, of the longest sentence
    bias: torch.Tensor  # [n, 1, 1, L]: 0 at tokens, MASKED at padding


class PackingPlan(NamedTuple):
    """Maps T tokens x H heads to P positions in the chunks, which are laid out as [n, H, L] one after the other.

    Example: two sentences of 2 and 1 tokens, one head. Tokens 0 1 2 take the positions 0 1 2 of [2, 1, 2]; position 3
    is padding. gather = [0, 1, 2, 0] (padding reads token 0, and is masked), scatter = [0, 1, 2], padding = [3].
    """

    chunks: list[Chunk]
    gather: torch.Tensor  # [P] position -> row of [T * H] (token * H + head)
    scatter: torch.Tensor  # [T * H] row -> position
    padding: torch.Tensor  # positions without a token


def plan_packing(lengths: np.ndarray, num_heads: int) -> PackingPlan:
    """lengths [B] of the sentences in their order in the row. Longest first makes the chunks narrow."""
    starts = np.cumsum(lengths) - lengths
    chunks, gathers, is_token, position = [], [], [], 0
    for first in range(0, len(lengths), CHUNK_SIZE):
        rows = slice(first, first + CHUNK_SIZE)
        length = int(lengths[rows].max())
        column = np.arange(length)
        inside = column < lengths[rows, None]  # [n, L]
        token = np.where(inside, starts[rows, None] + column, 0)  # [n, L]
        gather = token[:, None] * num_heads + np.arange(num_heads)[:, None]  # [n, H, L]
        gathers.append(gather.ravel())
        is_token.append(np.repeat(inside[:, None], num_heads, axis=1).ravel())
        bias = np.where(inside, 0, MASKED).astype(np.float32)[:, None, None]
        chunks.append(Chunk(slice(position, position + gather.size), length, torch.from_numpy(bias)))
        position += gather.size
    gather, is_token = np.concatenate(gathers), np.concatenate(is_token)
    scatter = np.empty(num_heads * int(lengths.sum()), np.int64)
    scatter[gather[is_token]] = np.flatnonzero(is_token)
    padding = np.flatnonzero(~is_token)
    return PackingPlan(chunks, torch.from_numpy(gather), torch.from_numpy(scatter), torch.from_numpy(padding))


def packed_collate(features: list[dict], pad_values: dict[str, int], packing: Packing) -> dict:
    """Windows -> one row, the longest window first: input_ids, position_ids, labels [1, T], and a packing_plan.

    T is rounded up with one more window of padding, to a multiple of 8 and by less than 1/length_steps: oneDNN compiles
    its kernels anew for every T.
    """
    features = sorted(features, key=lambda feature: -len(feature["input_ids"]))
    num_tokens = sum(len(feature["input_ids"]) for feature in features)
    multiple = 8
    while multiple * 2 * packing.length_steps <= num_tokens:
        multiple *= 2
    missing = -num_tokens % multiple if features else multiple
    if missing:
        features.append({name: np.full(missing, value) for name, value in pad_values.items()})
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    batch = {}
    for name in pad_values:
        batch[name] = torch.from_numpy(np.concatenate([feature[name] for feature in features])).long()[None]
    positions = np.concatenate([np.arange(length) for length in lengths]) + packing.first_position
    batch["position_ids"] = torch.from_numpy(positions)[None]
    batch["packing_plan"] = plan_packing(lengths, packing.num_heads)
    return batch


# ----------------------------------------------------------------------------------------------------------------------
# Attention


class _PackedAttention(torch.autograd.Function):
    """dropout(softmax(Q K^T * scale + bias)) V in fp32. q, k, v [1, H, T, D] -> [1, T, H, D].

    The backward pass is written out: autograd would make a gradient of all T tokens for every chunk. With the
    probabilities S, the keep mask M (0 or 1), c = 1 / (1 - p) and O = c (S * M) V:

        dV = (S * M)^T (c dO)
        dS = (c dO) V^T * M,   dZ = softmax_backward(dS, S),   dQ = dZ K * scale,   dK = dZ^T (Q * scale)
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, p, window, plan):
        _, heads, tokens, width = q.shape
        ctx.plan, ctx.scale, ctx.p, ctx.dtype = plan, scale, p, q.dtype
        q, k, v = (_to_positions(x, plan) for x in (q, k, v))  # [P, D]
        q.mul_(scale)
        out = torch.empty_like(v)
        probabilities, masks = [], []
        for positions, length, bias in plan.chunks:
            q_chunk, k_chunk, v_chunk = (x[positions].view(-1, length, width) for x in (q, k, v))  # [n*H, L, D]
            scores = torch.bmm(q_chunk, k_chunk.transpose(1, 2)).view(len(bias), heads, length, length)
            scores.add_(bias)
            if window and length > window:
                distance = torch.arange(length)[:, None] - torch.arange(length)
                scores.masked_fill_(distance.abs() >= window, MASKED)
            probabilities.append(scores.softmax(-1))
            kept = probabilities[-1]
            if p:
                masks.append(keep_mask(kept.shape, p))
                kept = kept * masks[-1].to(torch.float32)
            torch.bmm(kept.view(-1, length, length), v_chunk, out=out[positions].view(-1, length, width))
        ctx.save_for_backward(q, k, v, *probabilities, *masks)
        out = out.index_select(0, plan.scatter).mul_(keep_scale(p)).to(ctx.dtype)
        return out.view(1, tokens, heads, width)

    @staticmethod
    def backward(ctx, grad_out):
        _, tokens, heads, width = grad_out.shape
        plan, (q, k, v, *saved) = ctx.plan, ctx.saved_tensors
        probabilities, masks = saved[: len(plan.chunks)], saved[len(plan.chunks) :]
        # c dO. Padding is an output that nobody reads: its gradient is 0, not that of token 0 which gather puts there.
        grad_out = grad_out.reshape(-1, width).index_select(0, plan.gather).to(torch.float32)
        grad_out.index_fill_(0, plan.padding, 0).mul_(keep_scale(ctx.p))
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for i, (positions, length, _) in enumerate(plan.chunks):
            q_chunk, k_chunk, v_chunk, grad_chunk = (x[positions].view(-1, length, width) for x in (q, k, v, grad_out))
            grad_q, grad_k, grad_v = (x[positions].view(-1, length, width) for x in grads)
            softmax = probabilities[i].view(-1, length, length)
            kept = softmax
            grad_scores = torch.bmm(grad_chunk, v_chunk.transpose(1, 2))
            if ctx.p:
                mask = masks[i].view(-1, length, length).to(torch.float32)
                grad_scores.mul_(mask)
                kept = mask.mul_(softmax)  # in place: the mask is not needed again
            torch.bmm(kept.transpose(1, 2), grad_chunk, out=grad_v)
            grad_scores = torch._softmax_backward_data(grad_scores, softmax, -1, torch.float32)
            torch.bmm(grad_scores, k_chunk, out=grad_q)
            torch.bmm(grad_scores.transpose(1, 2), q_chunk, out=grad_k)
        grads[0].mul_(ctx.scale)
        grads = [x.index_select(0, plan.scatter).to(ctx.dtype).view(tokens, heads, width) for x in grads]
        grad_q, grad_k, grad_v = (x.transpose(0, 1)[None] for x in grads)
        return grad_q, grad_k, grad_v, None, None, None, None


def _to_positions(x: torch.Tensor, plan: PackingPlan) -> torch.Tensor:
    """[1, H, T, D] -> [P, D] in fp32."""
    by_token = x[0].transpose(0, 1).reshape(-1, x.shape[-1])  # [T * H, D]
    return by_token.index_select(0, plan.gather).to(torch.float32)


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, packing_plan=None, **kwargs):
    """Called by transformers in every layer. Without a plan, the batch is padded and PyTorch's attention is used."""
    if packing_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    with torch.autocast("cpu", enabled=False):
        window = kwargs.get("sliding_window")
        out = _PackedAttention.apply(query, key, value, scaling, dropout, window, packing_plan)
    return out, None


def _mask(*args, attention_mask=None, **kwargs):
    """A packed batch has no attention mask."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register("packed_sdpa", _attention)
AttentionMaskInterface.register("packed_sdpa", _mask)


# ----------------------------------------------------------------------------------------------------------------------
# The trial that decides whether an encoder supports packing


@torch.no_grad()
def enable_packing(model: PreTrainedModel, max_length: int) -> tuple[Packing | None, str]:
    """Switches the model to packed attention if that computes the logits of a padded batch.

    Returns (None, the reason) and leaves the model as it was where the logits differ or the encoder raises: if its
    attention is its own (DeBERTa, XLNet), if it computes positions itself, or if a module after the encoder mixes
    tokens (a CRF, an LSTM), which would then mix sentences. A trial needs no list of names that goes out of date.
    """
    implementation, was_training = model.config._attn_implementation, model.training
    originals = _randomize_head(model)
    try:
        model.eval()
        packing, reason = _try_packing(model, np.minimum([180, 180, 180, 5, 3], max_length))
    except Exception as error:  # whatever an encoder raises for arguments that it does not know
        packing, reason = None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        for parameter, value in originals:
            parameter.copy_(value)
        model.train(was_training)
    if packing is None:
        model.set_attn_implementation(implementation)
    return packing, reason


def choose_packing(
    switch: str, model: PreTrainedModel, max_length: int, group_by_length: bool, device: torch.device, log
) -> Packing | None:
    """--packing auto, on or off -> how to pack, or None for padded batches. One log line tells why auto is off.

    All ranks call it; rank 0 decides. Raises ValueError if packing is on and not supported.
    """
    if switch == "off":
        return None
    packing, reason = None, "it needs a CPU"
    if device.type == "cpu":
        packing, reason = on_rank0(enable_packing, model, max_length)
    if packing is None:
        if switch == "on":
            raise ValueError(f"--packing on: {reason}; use --packing off")
        log(f"packing is off, batches are padded: {reason}")
        return None
    model.set_attn_implementation("packed_sdpa")
    # Batches of similar length have very different T: fewer values of T mean fewer kernels to compile.
    return packing._replace(length_steps=16) if group_by_length else packing


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


def _try_packing(model: PreTrainedModel, lengths: np.ndarray) -> tuple[Packing | None, str]:
    """Compares packed and padded logits of sentences of these lengths, with more tokens than most encoders' limit."""
    pad = model.config.pad_token_id or 0
    ids = torch.arange(int(lengths.sum())) % (model.config.vocab_size - 1)
    ids += ids >= pad  # all ids but that of padding
    rows = ids.split(lengths.tolist())
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    expected = model(input_ids=padded, attention_mask=mask).logits[mask.bool()]  # [T, C]

    model.set_attn_implementation("packed_sdpa")
    num_heads = model.config.num_attention_heads
    plan, difference = plan_packing(lengths, num_heads), float("nan")
    num_positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    for first_position in (0, pad + 1):
        if first_position > 0 and first_position + lengths.max() > num_positions:
            break  # not RoBERTa, whose table of positions is longer than its longest input
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()]) + first_position
        logits = model(input_ids=ids[None], position_ids=positions[None], packing_plan=plan).logits[0]
        if logits.shape == expected.shape:
            if torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return Packing(num_heads, first_position), ""
            difference = (logits - expected).abs().max().item()
    return None, f"packed and padded logits differ by up to {difference:.2g}"
