"""Packed batches: all sentences of a batch in one row [1, T] without padding.

Only attention needs to know where sentences begin and end; every other layer computes on T tokens. On a GPU, attention
is PyTorch's FlashAttention, in fp32 its memory-efficient kernel. On a CPU, attention works on chunks of eight sentences
of similar length, padded to the longest of the chunk.

    packing = fast_paths.choose_packing(...)               # None: the encoder does not support it
    batch = packed_collate(features, pad_values, packing)  # input_ids, position_ids, labels [1, T], packing_plan
    logits = model(**inputs).logits                        # [1, T, C]

`sliding_window` and other arguments of the attention are those of transformers' AttentionInterface.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from util.fast_dropout import keep_mask, keep_scale

CHUNK_SIZE = 8  # sentences
MASKED = -1e9  # added to the attention score of a padded position


class Packing(NamedTuple):
    """How an encoder reads packed batches."""

    first_position: int  # position id of the first token of a sentence: RoBERTa's count from pad_token_id + 1
    length_steps: int = 64  # T is rounded up by less than 1/length_steps


@dataclass
class PackingPlan:
    """Where the sentences of a packed row begin and end. It moves to a device like a tensor."""

    lengths: np.ndarray  # [B + 1] of the sentences, and of the padding
    cu_seqlens: torch.Tensor  # [B + 2] int32: 0, the end of each sentence, and T, the end of the padding
    max_seqlen: int  # no sentence is longer. A power of 2, so that few values occur
    layout: "ChunkLayout | None" = None  # on a CPU, made by the first layer for all others

    def to(self, device: torch.device, non_blocking: bool = False) -> "PackingPlan":
        return PackingPlan(self.lengths, self.cu_seqlens.to(device, non_blocking=non_blocking), self.max_seqlen)

    def clone(self) -> "PackingPlan":
        return PackingPlan(self.lengths, self.cu_seqlens.clone(), self.max_seqlen)

    def pin_memory(self) -> "PackingPlan":
        return PackingPlan(self.lengths, self.cu_seqlens.pin_memory(), self.max_seqlen)


def packed_collate(features: list[dict], pad_values: dict[str, int], packing: Packing) -> dict:
    """Windows -> one row, the longest window first: input_ids, position_ids, labels [1, T], and a packing_plan.

    T is rounded up with one more window of padding, to a multiple of 8 and by less than 1/length_steps: for every T,
    oneDNN compiles its kernels, and a CUDA graph is captured.
    """
    features = sorted(features, key=lambda feature: -len(feature["input_ids"]))
    num_tokens = sum(len(feature["input_ids"]) for feature in features)
    multiple = 8
    while multiple * 2 * packing.length_steps <= num_tokens:
        multiple *= 2
    num_padding = -num_tokens % multiple if features else multiple
    features.append({name: np.full(num_padding, value) for name, value in pad_values.items()})  # may be of length 0
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    batch = {}
    for name in pad_values:
        batch[name] = torch.from_numpy(np.concatenate([feature[name] for feature in features])).long()[None]
    positions = np.concatenate([np.arange(length) for length in lengths]) + packing.first_position
    batch["position_ids"] = torch.from_numpy(positions)[None]
    batch["packing_plan"] = make_packing_plan(lengths)
    return batch


def make_packing_plan(lengths: np.ndarray) -> PackingPlan:
    """lengths [B + 1] of the sentences in their order in the row, and of the padding, which may be 0."""
    cu_seqlens = torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32))
    return PackingPlan(lengths, cu_seqlens, max_seqlen=max(64, 1 << (int(lengths.max()) - 1).bit_length()))


# ----------------------------------------------------------------------------------------------------------------------
# Attention on a GPU


def _gpu_attention(q, k, v, scale: float, p: float, window: int | None, plan: PackingPlan) -> torch.Tensor:
    """dropout(softmax(Q K^T * scale)) V of every sentence. q, k, v [1, H, T, D] -> [1, T, H, D].

    The kernels of torch.nn.attention.varlen and scaled_dot_product_attention are called directly: varlen_attn has no
    dropout, scaled_dot_product_attention no cu_seqlens. Autocast has no rule for them, hence the casts.
    """
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [1, T, H, D]
    if q.dtype == torch.float32 or torch.cuda.get_device_capability(q.device) < (8, 0):
        if window or p:  # with cu_seqlens, forward and backward of this kernel drop different weights (torch 2.13)
            raise ValueError(
                "dropout of attention and sliding windows need FlashAttention, that is 16 bits and an A100"
            )
        kernel = torch.ops.aten._efficient_attention_forward
        max_seqlen = min(plan.max_seqlen, q.shape[1])  # its backward refuses more
        bounds = (plan.cu_seqlens, plan.cu_seqlens, max_seqlen, max_seqlen)
        no_bias, no_causal_mask, keep_logsumexp = None, 0, True
        return kernel(q, k, v, no_bias, *bounds, p, no_causal_mask, keep_logsumexp, scale=scale)[0]
    q, k, v = (x.squeeze(0) for x in (q, k, v))
    side = window - 1 if window else None
    bounds = (plan.cu_seqlens, plan.cu_seqlens, plan.max_seqlen, plan.max_seqlen)
    is_causal, return_debug_mask = False, False
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, *bounds, p, is_causal, return_debug_mask, scale=scale, window_size_left=side, window_size_right=side
    )[0]
    return out.unsqueeze(0)


# ----------------------------------------------------------------------------------------------------------------------
# Attention on a CPU


class Chunk(NamedTuple):
    positions: slice  # of all P padded positions
    length: int  # L, of the longest sentence
    bias: torch.Tensor  # [n, 1, 1, L]: 0 at tokens, MASKED at padding


class ChunkLayout(NamedTuple):
    """Maps T tokens x H heads to P positions in the chunks, which are laid out as [n, H, L] one after the other.

    Example: two sentences of 2 and 1 tokens, one head. Tokens 0 1 2 take the positions 0 1 2 of [2, 1, 2]; position 3
    is padding. gather = [0, 1, 2, 0] (padding reads token 0, and is masked), scatter = [0, 1, 2], padding = [3].
    """

    chunks: list[Chunk]
    gather: torch.Tensor  # [P] position -> row of [T * H] (token * H + head)
    scatter: torch.Tensor  # [T * H] row -> position
    padding: torch.Tensor  # positions without a token


def chunk_layout(lengths: np.ndarray, num_heads: int) -> ChunkLayout:
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
    return ChunkLayout(chunks, torch.from_numpy(gather), torch.from_numpy(scatter), torch.from_numpy(padding))


class _PackedAttention(torch.autograd.Function):
    """dropout(softmax(Q K^T * scale + bias)) V in fp32. q, k, v [1, H, T, D] -> [1, T, H, D].

    The backward pass is written out: autograd would make a gradient of all T tokens for every chunk. With the
    probabilities S, the keep mask M (0 or 1), c = 1 / (1 - p) and O = c (S * M) V:

        dV = (S * M)^T (c dO)
        dS = (c dO) V^T * M,   dZ = softmax_backward(dS, S),   dQ = dZ K * scale,   dK = dZ^T (Q * scale)
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, p, window, layout):
        _, heads, tokens, width = q.shape
        ctx.layout, ctx.scale, ctx.p, ctx.dtype = layout, scale, p, q.dtype
        q, k, v = (_to_positions(x, layout) for x in (q, k, v))  # [P, D]
        q.mul_(scale)
        out = torch.empty_like(v)
        probabilities, masks = [], []
        for positions, length, bias in layout.chunks:
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
        out = out.index_select(0, layout.scatter).mul_(keep_scale(p)).to(ctx.dtype)
        return out.view(1, tokens, heads, width)

    @staticmethod
    def backward(ctx, grad_out):
        _, tokens, heads, width = grad_out.shape
        layout, (q, k, v, *saved) = ctx.layout, ctx.saved_tensors
        probabilities, masks = saved[: len(layout.chunks)], saved[len(layout.chunks) :]
        # c dO. Padding is an output that nobody reads: its gradient is 0, not that of token 0 which gather puts there.
        grad_out = grad_out.reshape(-1, width).index_select(0, layout.gather).to(torch.float32)
        grad_out.index_fill_(0, layout.padding, 0).mul_(keep_scale(ctx.p))
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for i, (positions, length, _) in enumerate(layout.chunks):
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
        grads = [x.index_select(0, layout.scatter).to(ctx.dtype).view(tokens, heads, width) for x in grads]
        grad_q, grad_k, grad_v = (x.transpose(0, 1)[None] for x in grads)
        return grad_q, grad_k, grad_v, None, None, None, None


def _to_positions(x: torch.Tensor, layout: ChunkLayout) -> torch.Tensor:
    """[1, H, T, D] -> [P, D] in fp32."""
    by_token = x[0].transpose(0, 1).reshape(-1, x.shape[-1])  # [T * H, D]
    return by_token.index_select(0, layout.gather).to(torch.float32)


def _cpu_attention(q, k, v, scale: float, p: float, window: int | None, plan: PackingPlan) -> torch.Tensor:
    if plan.layout is None:
        plan.layout = chunk_layout(plan.lengths[plan.lengths > 0], num_heads=q.shape[1])
    with torch.autocast("cpu", enabled=False):
        return _PackedAttention.apply(q, k, v, scale, p, window, plan.layout)


# ----------------------------------------------------------------------------------------------------------------------
# The attention implementation "packed_sdpa" of transformers, which also takes padded batches


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, packing_plan=None, **kwargs):
    """Called by transformers in every layer. Without a plan, the batch is padded and PyTorch's attention is used."""
    if packing_plan is None:
        window = kwargs.get("sliding_window")
        if attention_mask is None and window and key.shape[2] > window:  # _mask took the batch for a packed one
            raise ValueError("an encoder with a sliding window needs an attention_mask")
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    attention = _gpu_attention if query.device.type == "cuda" else _cpu_attention
    return attention(query, key, value, scaling, dropout, kwargs.get("sliding_window"), packing_plan), None


def _mask(*args, attention_mask=None, **kwargs):
    """The mask of a padded batch; a packed batch has none.

    To leave out the mask of a batch without padding, transformers reads whether the mask is 1 everywhere. On a GPU, the
    host would wait for all queued work, so that the mask is always kept.
    """
    if attention_mask is None:
        return None
    if attention_mask.device.type == "cuda":
        kwargs |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register("packed_sdpa", _attention)
AttentionMaskInterface.register("packed_sdpa", _mask)
