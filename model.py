"""The network: a pretrained encoder under transformers' own token-classification head, and what a step needs of it.

raw_model = load_model("bert-base-cased", ["O", "B-PER", "I-PER"])
optimizer = torch.optim.AdamW(parameter_groups(raw_model, 0.01), lr=5e-5)
logits = raw_model(input_ids, attention_mask).logits   # [B, L] -> [B, L, C]
"""

import atexit
import contextlib
import ctypes
import gc
import hashlib
import json
import math
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
import uuid
from concurrent.futures import Future
from datetime import timedelta
from typing import NamedTuple

import huggingface_hub
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def load(name: str | None, config=None, **options) -> PreTrainedModel:
    """An encoder with its token-classification head in fp32: a folder, a Hub id, or (None) random weights. All that
    train.py and infer.py compute with comes from here."""
    if name is None:
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    else:  # transformers 5 would take the type that was saved; AdamW wants fp32, autocast does the rest
        model = AutoModelForTokenClassification.from_pretrained(name, config=config, dtype=torch.float32, **options)
    return model


def load_model(name: str, labels: list[str], gradient_checkpointing=False, values=True) -> PreTrainedModel:
    """The encoder `name` (a folder or a Hub id) in fp32, with a head of one logit a label. values=False: on meta.

    A head that was trained for the very same labels is kept. Any other one starts anew, also where its size happens
    to fit: its rows would mean other labels.
    """
    before = AutoConfig.from_pretrained(name)
    config = AutoConfig.from_pretrained(
        name,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    with contextlib.nullcontext() if values else torch.device("meta"):
        model = load(name if values else None, config, ignore_mismatched_sizes=True)
    trained = any("ForTokenClassification" in architecture for architecture in before.architectures or [])
    if trained and [before.id2label[i] for i in sorted(before.id2label)] != labels:
        encoder = set(model.base_model.modules())
        for module in model.modules():
            if module not in encoder and hasattr(module, "reset_parameters"):
                module.reset_parameters()
    if gradient_checkpointing:
        new = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.17 has the old name alone
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model


def unused(model: PreTrainedModel) -> list[str]:
    """Parameters that tagging never reaches (XLNet's mask_emb): DDP would wait for their gradients."""
    model(input_ids=torch.ones(1, 4, dtype=torch.long, device=model.device)).logits.sum().backward()
    names = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return names


def freeze(model: PreTrainedModel, names: list[str]) -> None:
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def check_labels(model: PreTrainedModel, largest: int) -> None:
    """ValueError before the first step instead of an assert on the device in the midst of it."""
    if largest >= model.config.num_labels:
        raise ValueError(f"label id {largest} where the head has {model.config.num_labels} labels")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and embeddings; none on vectors, that is on biases and norms (as in BERT)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def pick_precision(requested: str, device: torch.device) -> str:
    """auto -> bf16 where the hardware computes in it, else fp16 on a GPU, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if requested == "auto":
        return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise ValueError("--precision fp16 needs a GPU: use bf16 or fp32")
    if requested == "bf16" and device.type == "cuda" and not has_bf16:
        raise ValueError(f"--precision bf16: {torch.cuda.get_device_name(device)} has none; use fp16 or fp32")
    return requested


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Matrix products in 16 bits, norms, softmax and loss in fp32; switched off for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


# ----------------------------------------------------------------------------------------------------------------------
# The fast path (figures: tests/benchmarks/NOTES.md). AdamW sees only the word embeddings in use. On a CPU the sentences
# of a batch lie end to end, [1, T], padded inside attention alone, and dropout draws 16 bits a number.


class Vocabulary(nn.Embedding):
    """Word embeddings of which `rows` alone is trained: those of the subwords that occur in training.

    The rest has no gradient ever; all that it is spared is weight decay. Saved and loaded as nn.Embedding's weight.
    """

    def use(self, ids: np.ndarray) -> None:
        order = np.append(ids, np.setdiff1d(np.arange(self.num_embeddings), ids))
        at = torch.from_numpy(np.argsort(order)).to(self.weight.device)  # [V] where a subword's row is now
        self.register_buffer("at", at, persistent=False)
        rows, rest = self._parameters.pop("weight")[torch.from_numpy(order)].tensor_split([len(ids)])
        self.rows = nn.Parameter(rows.detach().clone(), rows.requires_grad)  # [U, H]
        self.rest = nn.Parameter(rest.detach().clone(), False)  # [V - U, H]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # [V, H]
        return torch.cat([whole(self.rows), whole(self.rest)])[self.at]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        at, number = self.at[input_ids], len(self.rows)
        if self.training or not len(self.rest):
            return F.embedding(at, self.rows)
        rare = F.embedding((at - number).clamp(min=0), self.rest)
        return torch.where((at < number)[..., None], F.embedding(at.clamp(max=number - 1), self.rows), rare)

    def split(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """weight [V, H] -> rows, rest."""
        rows, rest = weight[self.at.argsort().to(weight.device)].tensor_split([len(self.rows)])
        return {"rows": rows, "rest": rest}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.weight.detach()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, value in self.split(state_dict.pop(prefix + "weight")).items():
            state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def train_only(model: PreTrainedModel, ids: np.ndarray) -> None:
    """Of the word embeddings, the rows `ids`, padding's among them: optimizer and all-reduce never see the rest."""
    embedding = model.get_input_embeddings()
    if type(embedding) is nn.Embedding:
        embedding.__class__ = Vocabulary
        embedding.use(np.unique(ids).astype(np.int64))


def _kept(shape: torch.Size, p: float) -> torch.Tensor:
    """int16 [shape]: 0 where dropped, else 1. Four of each draw, since the generator is what dropout waits for."""
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[:size].view(shape).ge_(round(p * 2**16) - 2**15)


def _scale(p: float) -> float:
    """What is kept grows by this: p is a multiple of 2^-16 in _kept."""
    return 1 / (1 - round(p * 2**16) / 2**16)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        kept = _kept(x.shape, p)
        ctx.save_for_backward(kept)
        ctx.scale = _scale(p)
        return (x * kept.to(x.dtype)).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * ctx.saved_tensors[0].to(gradient.dtype)).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """nn.Dropout on a CPU, in a fifth of its time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Drop.apply(x, self.p) if self.training and 0 < self.p < 1 else super().forward(x)


class Layout(NamedTuple):
    """Where T tokens, sentences end to end, stand in attention's padded pieces of [n, H, L], one after the other."""

    pieces: list[tuple[slice, int, torch.Tensor]]  # the positions (of all P), the longest L, bias [n, 1, 1, L]
    gather: torch.Tensor  # [P] position -> (token, head) in [T, H]
    scatter: torch.Tensor  # [T H] (token, head) -> position
    padding: torch.Tensor  # the positions that hold none


def layout(lengths: np.ndarray, heads: int) -> Layout:
    """lengths [R] of the rows in their order, the longest first, so that pieces of eight rows are narrow."""
    starts = np.cumsum(lengths) - lengths
    pieces, gather, real, position = [], [], [], 0
    for first in range(0, len(lengths), 8):
        rows = slice(first, first + 8)
        longest = int(lengths[rows].max())
        column = np.arange(longest)
        inside = column < lengths[rows, None]  # [n, L]
        token = np.where(inside, starts[rows, None] + column, 0)
        gather.append((token[:, None] * heads + np.arange(heads)[:, None]).ravel())  # [n, H, L]
        real.append(np.repeat(inside[:, None], heads, axis=1).ravel())
        bias = torch.from_numpy(np.where(inside, 0, -1e9).astype(np.float32))[:, None, None]
        pieces.append((slice(position, position + len(gather[-1])), longest, bias))
        position += len(gather[-1])
    gather, real = np.concatenate(gather), np.concatenate(real)
    scatter = np.empty(heads * int(lengths.sum()), np.int64)
    scatter[gather[real]] = np.flatnonzero(real)
    return Layout(pieces, *map(torch.from_numpy, (gather, scatter, np.flatnonzero(~real))))


class _Attend(torch.autograd.Function):
    """softmax(Q K' scale + bias) V with dropout, in fp32; q, k, v [1, H, T, D] -> [1, T, H, D].

    Backward by hand: autograd would make a gradient of all T tokens for every piece of them.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, p, window, layout):
        _, heads, tokens, width = q.shape
        ctx.layout, ctx.scale, ctx.p, ctx.dtype = layout, scale, p, q.dtype
        q, k, v = (
            x[0].transpose(0, 1).reshape(-1, width).index_select(0, layout.gather).to(torch.float32) for x in (q, k, v)
        )
        q.mul_(scale)
        out, saved = torch.empty_like(v), []  # [P, D]
        for where, length, bias in layout.pieces:
            q_, k_, v_, out_ = (x[where].view(-1, length, width) for x in (q, k, v, out))  # [n H, L, D]
            scores = torch.bmm(q_, k_.transpose(1, 2)).view(len(bias), heads, length, length).add_(bias)
            if window and length > window:
                at = torch.arange(length)
                scores.masked_fill_((at[:, None] - at).abs() >= window, -1e9)
            saved.append(scores.softmax(-1))
            weights = saved[-1]
            if p:
                saved.append(_kept(weights.shape, p))
                weights = weights * saved[-1].to(torch.float32)
            torch.bmm(weights.view(-1, length, length), v_, out=out_)
        ctx.save_for_backward(q, k, v, *saved)
        out = out.index_select(0, layout.scatter).mul_(_scale(p)).to(ctx.dtype)
        return out.view(1, tokens, heads, width)

    @staticmethod
    def backward(ctx, gradient):
        _, tokens, heads, width = gradient.shape
        layout, (q, k, v, *saved) = ctx.layout, ctx.saved_tensors
        out = gradient.reshape(-1, width).index_select(0, layout.gather).to(torch.float32)
        out.index_fill_(0, layout.padding, 0).mul_(_scale(ctx.p))
        gradients, saved = [torch.empty_like(x) for x in (q, k, v)], iter(saved)
        for where, length, _ in layout.pieces:
            q_, k_, v_, out_ = (x[where].view(-1, length, width) for x in (q, k, v, out))
            to_q, to_k, to_v = (x[where].view(-1, length, width) for x in gradients)
            probabilities = weights = next(saved).view(-1, length, length)
            scores = torch.bmm(out_, v_.transpose(1, 2))
            if ctx.p:
                kept = next(saved).view(-1, length, length).to(torch.float32)
                scores.mul_(kept)
                weights = kept.mul_(probabilities)
            scores = torch._softmax_backward_data(scores, probabilities, -1, torch.float32)
            torch.bmm(weights.transpose(1, 2), out_, out=to_v)
            torch.bmm(scores, k_, out=to_q)
            torch.bmm(scores.transpose(1, 2), q_, out=to_k)
        gradients[0].mul_(ctx.scale)
        back = (x.index_select(0, layout.scatter).to(ctx.dtype).view(tokens, heads, width) for x in gradients)
        return *(x.transpose(0, 1)[None] for x in back), None, None, None, None


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, sentences=None, **kwargs):
    """As transformers calls it: by the Layout of sentences end to end, or PyTorch's own on a padded batch."""
    if sentences is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    with torch.autocast("cpu", enabled=False):
        out = _Attend.apply(query, key, value, scaling, dropout, kwargs.get("sliding_window"), sentences)
    return out, None


def _mask(*args, attention_mask=None, **kwargs):
    """None for sentences end to end, which come without a mask."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register("sentences", _attention)
AttentionMaskInterface.register("sentences", _mask)


@torch.no_grad()
def read_end_to_end(model: PreTrainedModel, longest: int) -> int | None:
    """Lets an encoder on a CPU read sentences end to end -> the position id of a sentence's first token.

    None, and a model as it was, where that gives other logits than a padded batch: in encoders whose attention is their
    own (DeBERTa, XLNet) or whose positions are not given to them. A trial, so that no list of names can be out of date.
    """
    before, was_training = model.config._attn_implementation, model.training
    lengths = np.minimum([180, 180, 180, 5, 3], longest)  # with more tokens than most encoders have positions
    pad = model.config.pad_token_id or 0
    ids = torch.arange(int(lengths.sum())) % (model.config.vocab_size - 1)
    ids += ids >= pad  # any but padding
    rows = ids.split(lengths.tolist())
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    expected = model.eval()(input_ids=padded, attention_mask=mask).logits[mask.bool()]
    try:
        model.set_attn_implementation("sentences")
        sentences = layout(lengths, model.config.num_attention_heads)
        for first in (0, pad + 1):  # RoBERTa's begin behind padding's
            at = torch.cat([torch.arange(first, first + length) for length in lengths.tolist()])[None]
            logits = model(input_ids=ids[None], position_ids=at, sentences=sentences).logits[0]
            if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return first
    except Exception:  # whatever an encoder does with arguments that it does not know
        pass
    finally:
        model.train(was_training)
    model.set_attn_implementation(before)
    return None


def swap_dropout(model: nn.Module) -> None:
    """nn.Dropout -> Dropout, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the system, which faults them in again at every step; elsewhere: nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing back
        mallopt(-2, 2**26)  # M_TOP_PAD: more at a time


# ----------------------------------------------------------------------------------------------------------------------
# Ranks


def join_process_group(backend: str, rank: int, world_size: int, timeout: timedelta) -> None:
    """init_process_group under a name that only the ranks alive now know.

    torchrun keeps its store over restarts, and ranks that find their predecessors' addresses there hang or fail
    (torch 2.13: 6 of 8 restarts on gloo). So every rank leaves a token, and goes on when rank 0 has shown it, beside
    its own, which is the name.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    token, name, waiting = uuid.uuid4().hex, None, set(range(1, world_size))
    store.set(f"rank {rank}", token)
    while rank == 0 and waiting:
        store.set("tokens", " ".join(store.get(f"rank {other}").decode() for other in range(world_size)))
        waiting = {other for other in waiting if not store.check([f"{token} seen by {other}"])}
        time.sleep(0.01)
    while rank > 0 and not name:
        time.sleep(0.01)
        tokens = store.get("tokens").decode().split()
        name = tokens[0] if token in tokens else None
    if rank > 0:
        store.set(f"{name} seen by {rank}", "")
    store = dist.PrefixStore(name or token, store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    atexit.register(leave_process_group)


def from_rank_0(function, *arguments):
    """Calls it on rank 0 alone; all ranks return what it returned, or raise what it raised: none runs ahead."""
    outcome = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome[0] = function(*arguments)
        except (OSError, ValueError) as error:
            outcome[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def lost_ranks_exit():
    """A collective that fails because other ranks, or the way to them, are gone ends as one line, with code 1."""
    try:
        yield
    except RuntimeError as error:  # gloo's are of this class, NCCL's of one below it
        text = " ".join(str(error).split())
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        where = f"rank {os.environ.get('RANK', 0)} on {socket.gethostname()}"
        print(f"error: {where} has lost the other ranks: {text[:300]}", file=sys.stderr)
        raise SystemExit(1) from None


def leave_process_group() -> None:
    """At the very end, after main has let go of DDP: were its reducer the last to hold the group, Gloo's destructor
    would wait for a thread that waits for the interpreter (pytorch/pytorch#56297; one run in three hung or crashed).
    """
    gc.collect()
    dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------------------------
# What the machine could do, for --benchmark


def _fastest(function, device: torch.device, times: int = 8) -> float:
    """Seconds of the fastest of several calls, the first one not counted."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def step_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """Of forward and backward over rows of these lengths [R]: 6 N T + 12 layers width sum(L^2), N the weights of the
    Linear layers (Kaplan et al., arXiv 2001.08361, and attention's two products)."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config = model.config
    return 6 * weights * lengths.sum() + 12 * config.num_hidden_layers * config.hidden_size * (lengths**2.0).sum()


def peak_memory(device: torch.device) -> float:
    """GiB of this process: on a GPU what PyTorch allocated there, else what was in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def utilisation(model: PreTrainedModel, precision: str, steps: list[tuple[float, np.ndarray]], world_size: int) -> dict:
    """steps: (seconds, lengths of the global batch). Measures this device's peak of matrix products and its memory's
    bandwidth -> share of that peak, and the step that both allow: the products, and 28 bytes a parameter for AdamW."""
    memory = peak_memory(model.device)  # before the measuring
    device, size = model.device, 4096 if model.device.type == "cuda" else 1536
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix, block = torch.randn(size, size, device=device, dtype=dtype), torch.empty(2**26, device=device)
    peak = 2 * size**3 / _fastest(lambda: matrix @ matrix, device) * world_size
    bandwidth = 2 * block.numel() * block.element_size() / _fastest(block.clone, device)
    flops = sum(step_flops(model, lengths) for _, lengths in steps) / len(steps)
    seconds = sum(seconds for seconds, _ in steps) / len(steps)
    moments = 28 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "peak_memory_gib": memory,
        "matmul_peak_tflops": peak / 1e12,
        "mfu": flops / seconds / peak,
        "floor_ms": 1e3 * (flops / peak + moments / bandwidth),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Weights between ranks and disk. Under --fsdp each rank holds a part of every tensor, and all of these are collectives.


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On rank 0 each of them once, whole, on the CPU; elsewhere nothing is kept. No copies where nothing is sharded."""
    keep, found = not dist.is_initialized() or dist.get_rank() == 0, {}
    for name, tensor in tensors.items():
        tensor = whole(tensor)
        if keep:
            tensor = tensor.cpu().contiguous()
            found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(found.values())


def _send(targets: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    """Rank 0's values into the targets of all ranks, a tensor at a time."""
    several = dist.is_initialized()
    for name, target in targets.items():
        if several and dist.get_rank() > 0:
            value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        else:
            value = values[name].to(target.device, target.dtype).contiguous()
        if several:
            dist.broadcast(value, src=0)
        if isinstance(target, DTensor):
            value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
            target = target.to_local()
        target.data.copy_(value)


def shard(model: PreTrainedModel, precision: str, device: torch.device) -> None:
    """Shards rank 0's model over all ranks, in place: each encoder layer, then what is left. The others come with its
    shape alone (on meta), and no rank but 0 ever holds it whole. Products and communication are in `precision`, sums of
    gradients and the optimizer in fp32."""
    values = dict(_tensors(model)) if dist.get_rank() == 0 else {}
    model.to("meta")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    options = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    }
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=[])
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    model.to_empty(device=device)
    _send(_tensors(model), values)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def synchronize_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward sums gradients over ranks: only an optimizer step's last one has to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now  # what its no_sync() does


def save_model(model: PreTrainedModel, weights: dict[str, torch.Tensor], tokenizer, folder: str) -> None:
    """config.json, model.safetensors and the tokenizer's files, each swapped in whole: `folder` always loads."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        model.save_pretrained(beside, state_dict=weights)
        tokenizer.save_pretrained(beside)
        for name in sorted(os.listdir(beside)):
            os.replace(os.path.join(beside, name), os.path.join(folder, name))


def load_best(folder: str, model: PreTrainedModel, rank: int, precision: str) -> PreTrainedModel:
    """What save_model wrote, loaded as anyone loads it, by rank 0, and sent to the others: they may not share its disk.

    model: the one trained, for its config, its device, and whether it is sharded.
    """
    sharded = isinstance(model, FSDPModule)
    with torch.device("meta") if sharded and rank > 0 else contextlib.nullcontext():
        best = load(folder) if rank == 0 else load(None, model.config)
    if sharded:
        shard(best, precision, model.device)
    else:
        best.to(model.device)
        _send(_tensors(best), _tensors(best))
    return best


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: output_dir/checkpoints/step-00000123/ holds weights and moments as safetensors, the rest as JSON, and a
# manifest of their SHA-256 sums that was written last. A folder without a manifest that fits is no checkpoint.


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state under the parameters' names: "classifier.weight/exp_avg", ..."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = optimizer.state.items()
    return {f"{names[parameter]}/{key}": value for parameter, values in state for key, value in values.items()}


def _to_disk(path: str) -> None:
    """Waits until a file, or a folder's list of files, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(folder: str) -> list[str]:
    """Those of an output folder, the oldest first."""
    folder = os.path.join(folder, "checkpoints")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.startswith("step-") and name[5:].isdigit()]


def save_checkpoint(folder: str, weights: dict, moments: dict, state: dict, limit: int) -> str:
    """Writes it beside, renames it when it is whole, and only then removes those beyond the newest `limit`."""
    path = os.path.join(folder, "checkpoints", f"step-{state['step']:08}")
    beside = path + ".partial"
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside)
    try:
        safetensors.save_file(weights, os.path.join(beside, "model.safetensors"))
        safetensors.save_file(moments, os.path.join(beside, "optimizer.safetensors"))
        write_whole(os.path.join(beside, "state.json"), json.dumps(state))
        sums = {name: _sha256(os.path.join(beside, name)) for name in sorted(os.listdir(beside))}
        write_whole(os.path.join(beside, "manifest.json"), json.dumps(sums, indent=2))
        for name in [*sums, "."]:
            _to_disk(os.path.join(beside, name))
        if os.path.isdir(path):  # a broken one, or one of the future of the checkpoint that we went back to
            shutil.rmtree(path)
        os.rename(beside, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{path}: cannot be saved: {error}") from None
    _to_disk(os.path.dirname(path))
    for old in checkpoints(folder)[:-limit]:
        shutil.rmtree(old)
    return path


def read_state(path: str) -> dict:
    """A checkpoint's state.json. ValueError if any of its files is not the one that was saved."""
    try:
        with open(os.path.join(path, "manifest.json"), encoding="utf-8") as file:
            sums = json.load(file)
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            if _sha256(os.path.join(path, name)) != sums[name]:
                raise ValueError(f"{path}: {name} is not the file that was saved")
        for name in ("model.safetensors", "optimizer.safetensors"):
            safe_open(os.path.join(path, name), "pt")
        with open(os.path.join(path, "state.json"), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {os.path.basename(error.filename or '')}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def find_checkpoint(folder: str, which: str, identity: dict, log) -> str | None:
    """The one to go on from: for "auto" the newest valid one in the output folder, for "never" none, or the folder
    that is named. ValueError if it is of another run, or named and invalid."""
    candidates = {"auto": checkpoints(folder)[::-1], "never": []}.get(which, [which])
    for path in candidates:
        try:
            state = read_state(path)
        except ValueError as problem:
            if path == which:
                raise ValueError(f"--resume_from_checkpoint {problem}") from None
            log(f"skipped {problem}")
            continue
        refuse_another_run(path, state["identity"], identity)
        return path
    return None


def load_checkpoint(path: str, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict:
    """Fills model and optimizer on all ranks with what rank 0 reads (they may not share its disk) -> the state."""
    weights, moments, state = {}, {}, [{}, []]  # type: tuple[dict, dict, list]
    if rank == 0:
        weights = safetensors.load_file(os.path.join(path, "model.safetensors"))
        moments = safetensors.load_file(os.path.join(path, "optimizer.safetensors"))
        for name, module in model.named_modules():
            if isinstance(module, Vocabulary):
                parts = module.split(weights.pop(f"{name}.weight"))
                weights |= {f"{name}.{part}": value for part, value in parts.items()}
        with open(os.path.join(path, "state.json"), encoding="utf-8") as file:
            state = [json.load(file), list(weights)]
    if dist.is_initialized():
        dist.broadcast_object_list(state, src=0)
    tensors, missing = _tensors(model), dict(model.named_parameters()).keys() - set(state[1])
    assert not missing, f"{path}: no values for {missing}"
    _send({name: tensors[name] for name in state[1] if name in tensors}, weights)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    empty = {
        i: {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for i, p in enumerate(parameters)
    }
    optimizer.load_state_dict({"state": empty, "param_groups": optimizer.state_dict()["param_groups"]})
    _send(moments_of(model, optimizer), moments)
    return state[0]


# ----------------------------------------------------------------------------------------------------------------------
# The output folder: the same command again is safe

MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # what data.packaged_encoder() is a copy of
RUN_FILES = ["train_config.yaml", "all_results.json", "config.json", "model.safetensors", "runs", "checkpoints"]
RUN_FILES += ["report.html", "README.md"]
ADVICE = "choose another --output_dir, or --overwrite_output_dir"
# Flags that change no result. Of the sizes of batches only their product with the ranks does: it is in the identity.
NO_MATTER = ["output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "save_steps"]
NO_MATTER += ["save_total_limit", "per_device_train_batch_size", "gradient_accumulation_steps"]
NO_MATTER += ["fsdp", "per_device_eval_batch_size", "push_to_hub", "hub_model_id", "hub_private_repo"]


def refuse_another_run(where: str, before: dict, now: dict) -> None:
    """ValueError that names the first difference between what a run was and what it would be now."""
    for name, value in now.items():
        if name not in NO_MATTER and before.get(name) != value:
            short = len(f"{before.get(name)}{value}") < 80
            what = f"its {name} is {before.get(name)}, not {value}" if short else f"its {name} differ"
            raise ValueError(f"{where}: holds another run: {what}; {ADVICE}")


def open_run(folder: str, settings: dict, identity: dict) -> dict | None:
    """Returns this very run's results if the folder holds them. ValueError if it holds another run or a model.

    settings: the flags. identity: what else makes a run this one: labels, data, sentences a step.
    """
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # OSError where nothing can be written
    config, results, *_ = paths = [os.path.join(folder, name) for name in RUN_FILES]
    there = [path for path in paths if os.path.exists(path)]
    if settings["overwrite_output_dir"] or not there:
        return None
    if config not in there:
        raise ValueError(f"{there[0]}: not from a run of train.py; {ADVICE}")
    with open(config, encoding="utf-8") as file:
        before = yaml.safe_load(file)
    flags = {f"--{name}": value for name, value in settings.items() if name not in NO_MATTER}
    refuse_another_run(folder, {f"--{name}": value for name, value in before.items()}, flags)
    if results not in there:
        return None
    with open(results, encoding="utf-8") as file:
        finished = json.load(file)
    refuse_another_run(folder, finished["identity"], identity)
    return finished


def begin_run(folder: str, settings: dict, goes_on: bool) -> None:
    """Clears what an older run left, and nothing else; train_config.yaml then says whose folder it is."""
    for name in os.listdir(folder):
        if name.startswith((".saving-", ".pushing-")):  # of a process that was killed
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    for name in RUN_FILES if not goes_on else []:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)
    write_whole(os.path.join(folder, RUN_FILES[0]), yaml.safe_dump(settings, sort_keys=False))


def finish_run(folder: str, results: dict) -> None:
    """all_results.json comes last: a folder that has it holds a finished run."""
    write_whole(os.path.join(folder, RUN_FILES[1]), json.dumps(results, indent=2) + "\n")


def write_whole(path: str, text: str) -> None:
    """Never leaves half a file behind."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


# ----------------------------------------------------------------------------------------------------------------------
# The Hub: the model card, and uploads that training does not wait for. The token is the environment's or the login's.


CARD = """---
{metadata}
---

# {name}

`{encoder}` with a head for token classification, fine-tuned on {dataset}.

{scores}

## Use

```python
from transformers import pipeline

tagger = pipeline("token-classification", "{name}", aggregation_strategy="simple")
```

or, for texts of any length and whole words,

```bash
python infer.py {name} "..."
```

## Training

{training}

## Limits

It knows the types above, and text like what it was trained on; on other text its scores say little.
"""


def _markdown(header: list[str], rows: list[list]) -> str:
    def cell(value) -> str:
        return f"{value:.4f}" if isinstance(value, float) and value < 1 else str(value).replace("|", "\\|")

    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in [header, ["---"] * len(header), *rows])


def model_card(name: str, settings: dict, scored: dict[str, dict], facts: dict) -> str:
    """README.md: what the Hub displays (model-index), scores by type, how it was made, how to use it.

    scored: split -> its scores. facts: what else there is to say, by name. Paths of this machine stay out of it.
    """
    encoder, dataset = settings["model_name_or_path"] or MINILM, settings["dataset_name"] or "samples/"
    on_hub = [not os.path.exists(encoder), not os.path.exists(dataset) and not settings["train_file"]]
    encoder, dataset = encoder.rstrip("/"), (settings["train_file"] or dataset).rstrip("/")
    encoder, dataset = (x if on else os.path.basename(x) for x, on in zip((encoder, dataset), on_hub))
    columns = ["precision", "recall", "f1", "support"]
    results, scores = [], []
    for split, found in scored.items():
        for metric in ("f1", "precision", "recall", "accuracy"):
            kind, config = dataset if on_hub[1] else "custom", settings["dataset_config_name"]
            result = EvalResult(
                "token-classification", kind, dataset, metric, round(found[metric], 6), None, config, split
            )
            results.append(result)
        rows = [[kind, *map(row.get, columns)] for kind, row in found["per_entity"].items()]
        rows.append(["all", *map(found.get, columns[:3]), sum(row[-1] for row in rows)])
        head = f"## Scores on {split}\n\n{found['words']:,} words, accuracy {found['accuracy']:.4f}."
        scores.append(f"{head}\n\n{_markdown(['', *columns], rows)}")
    metadata = ModelCardData(
        model_name=name,
        base_model=encoder if on_hub[0] else None,
        datasets=[dataset] if on_hub[1] else None,
        library_name="transformers",
        pipeline_tag="token-classification",
        metrics=["f1", "precision", "recall", "accuracy"],
        tags=["token-classification"],
        eval_results=results or None,
    )
    of_this_machine = {*NO_MATTER, "train_file", "validation_file", "test_file", "model_name_or_path", "dataset_name"}
    flags = settings.keys() - of_this_machine | {"per_device_train_batch_size", "gradient_accumulation_steps"}
    flags = [[f"`--{flag}`", str(settings[flag])] for flag in sorted(flags) if settings[flag] not in (None, False)]
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        encoder=encoder,
        dataset=dataset,
        scores="\n\n".join(scores),
        training=_markdown(["", ""], [*map(list, facts.items()), *flags]),
    )
    return str(ModelCard(card))


def open_repo(repo_id: str, private: bool) -> str:
    """Creates a model's repository, or finds it -> its full id. ValueError: no login, no right, no network."""
    try:
        return huggingface_hub.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    except Exception as error:  # the client's own, and those of the HTTP library below it
        raise ValueError(f"--push_to_hub: {repo_id}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def push(folder: str, repo_id: str, message: str, log, before: Future | None = None) -> Future | None:
    """Uploads an output folder without its checkpoints, in the background -> a future of the URL, or of None.

    What is uploaded is a snapshot of now: links, since every file of the model is only ever replaced. An upload that
    has not begun yet gives way to this newer one. A failure is said, and is no reason to stop training.
    """
    if before:
        before.cancel()

    def link(source: str, target: str) -> None:
        grows = os.path.basename(os.path.dirname(source)) == "runs"
        try:
            shutil.copy2(source, target) if grows else os.link(source, target)
        except OSError:  # a file system without links
            shutil.copy2(source, target)

    snapshot = tempfile.mkdtemp(dir=folder, prefix=".pushing-")
    try:
        leave = shutil.ignore_patterns("checkpoints", ".*", "*.new")
        shutil.copytree(folder, snapshot, copy_function=link, ignore=leave, dirs_exist_ok=True)
    except OSError as error:
        shutil.rmtree(snapshot, ignore_errors=True)
        log(f"not pushed to {repo_id}: {_reason(error)}")
        return None
    future = huggingface_hub.run_as_future(_upload, repo_id, snapshot, message, log)
    future.add_done_callback(lambda done: shutil.rmtree(snapshot) if done.cancelled() else None)
    return future


RETRY_AFTER = (1, 5, 25, 60)  # seconds


def _upload(repo_id: str, snapshot: str, message: str, log) -> str | None:
    for wait in (*RETRY_AFTER, None):
        try:
            huggingface_hub.upload_folder(repo_id=repo_id, folder_path=snapshot, commit_message=message)
        except Exception as error:  # the client's own, and those of the HTTP library below it
            hopeless = getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404)
            if hopeless or wait is None:
                log(f"not pushed to {repo_id}: {_reason(error)}")
                break
            log(f"push to {repo_id} failed, again in {wait} s: {_reason(error)}")
            time.sleep(wait)
        else:
            shutil.rmtree(snapshot)
            return f"{huggingface_hub.constants.ENDPOINT}/{repo_id}"
    shutil.rmtree(snapshot)
    return None
