"""The model: a pretrained encoder with transformers' token-classification head, and what a training step needs of it.

model = load_model("bert-base-cased", ["O", "B-PER", "I-PER"])
optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=5e-5)
logits = model(input_ids, attention_mask).logits     # [B, L] -> [B, L, C]
loss = token_loss(logits, labels, reduction="sum")   # labels [B, L], -100: ignored
"""

import contextlib
import os
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from util import packed  # noqa: F401 - registers "packed_sdpa"
from util.attention_type import choose_attention_by_length
from util.device import pick_precision
from util.distributed import on_rank0
from util.encoder_check import check_encoder
from util.partial_embedding import merge_embeddings
from util.pretrained import encoder_layers, labels_of, load_config, load_encoder_model, load_trained_model, new_model
from util.sharding import gather_on_rank0, parameters_and_buffers, send_from_rank0, tie_parameters, tied_parameters

# ----------------------------------------------------------------------------------------------------------------------
# Encoder, head and loss


def from_pretrained(name: str | None, config=None, log=None) -> PreTrainedModel:
    """A folder or a Hub id -> the model in fp32. With a config: the encoder, and a head for the labels of the config.

    Without: the trained model. name=None: random weights, or none under `torch.device("meta")`.
    """
    if name is None:
        model = new_model(config)
    elif config is None:
        model = load_trained_model(name)
    else:
        model = load_encoder_model(name, config, log)
    if torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("packed_sdpa")  # the same for padded batches, without waiting for the GPU
    choose_attention_by_length(model)
    # All models of train.py and infer.py are made here: attach what both of them compute, such as a CRF.
    return model


def load_model(
    name: str, label_list: list[str], gradient_checkpointing: bool = False, load_weights: bool = True, log=None
) -> PreTrainedModel:
    """The encoder `name` (a folder or a Hub id) with a head of one logit a label.

    A head that was trained for the same labels in the same order is kept. load_weights=False: on the meta device.
    log: gets a warning if the file lacks weights of the encoder.
    """
    config = load_config(name, label_list)
    with contextlib.nullcontext() if load_weights else torch.device("meta"):
        model = from_pretrained(name if load_weights else None, config, log)
    assert model.config.num_labels == len(label_list), (model.config.num_labels, len(label_list))
    if gradient_checkpointing:
        # transformers 5.17 knows only the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def token_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
    """logits [..., C], labels [...] -> the summed cross-entropy of the labels that are not -100.

    With reduction="none": the losses of all positions, 0 where the label is -100.

    The only definition of the loss: training minimizes it, evaluation reports its mean.
    """
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction)


# ----------------------------------------------------------------------------------------------------------------------
# What is trained, and how


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and embeddings, none for vectors, that is biases and norms (as in BERT).

    A group may have "lr" or, as a factor of --learning_rate, "lr_scale": for a rate of its own for the head, or one a
    layer. The schedule multiplies it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """Matrix products in 16 bits; norms, softmax and loss in fp32. Disabled for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def check_precision(name: str, tokenizer, args, device: torch.device, log) -> str:
    """--precision, or fp32 where the encoder `name` does not work in 16 bits. Errors are those of check_encoder."""
    if args.fsdp:  # no single device may hold the model: check_windows tries it once it is sharded
        return pick_precision(args.precision, device)
    model = load_model(name, labels_of(load_config(name)), args.gradient_checkpointing, log=log)
    model.to(device).train()
    return check_encoder(model, tokenizer, args.precision, make_autocast, args.max_seq_length, log)


# ----------------------------------------------------------------------------------------------------------------------
# Several ranks. Under --fsdp each rank holds a part of every tensor.


def shard(model: PreTrainedModel, precision: str, device: torch.device) -> None:
    """Shards rank 0's model over all ranks in place: each encoder layer, then the rest (FSDP2).

    The other ranks pass a model on the meta device; only rank 0 ever holds all weights. Matrix products and
    communication use `precision`, sums of gradients and the optimizer fp32.
    """
    values, tied = parameters_and_buffers(model) if dist.get_rank() == 0 else {}, tied_parameters(model)
    model.to("meta")
    tie_parameters(model, tied)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    options = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    }
    for layer in encoder_layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    model.to_empty(device=device)
    tie_parameters(model, tied)
    send_from_rank0(parameters_and_buffers(model), values)


def sync_gradients(model: nn.Module, enabled: bool) -> None:
    """Whether the next backward pass sums gradients over ranks: only the last one of an optimizer step must."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = enabled  # as its no_sync() does


# ----------------------------------------------------------------------------------------------------------------------
# The saved model


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """On rank 0 what save_pretrained expects, under the names of the unmodified architecture; {} on other ranks.

    A tied weight is saved once, under its first name.
    """
    further_names = {name for name, _ in tied_parameters(model)}
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in further_names}
    return merge_embeddings(model, gather_on_rank0(weights))


def save_model(model: PreTrainedModel, tokenizer, folder: str) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files. All ranks call it; rank 0 writes."""
    on_rank0(_write_model, model, full_state_dict(model), tokenizer, folder)


def _write_model(model: PreTrainedModel, weights: dict[str, torch.Tensor], tokenizer, folder: str) -> None:
    """Every file is replaced as a whole: the folder can be loaded at any time."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as tmp_dir:
        model.save_pretrained(tmp_dir, state_dict=weights)
        tokenizer.save_pretrained(tmp_dir)
        for name in sorted(os.listdir(tmp_dir)):
            os.replace(os.path.join(tmp_dir, name), os.path.join(folder, name))


def load_best(folder: str, model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """The model that save_model wrote, loaded by rank 0 and sent to the others, which may not share its disk.

    model: the trained one, for its config, its device, and whether it is sharded.
    """
    is_sharded = isinstance(model, FSDPModule)
    if not dist.is_initialized() or dist.get_rank() == 0:
        best = from_pretrained(folder)
    else:
        with torch.device("meta") if is_sharded else contextlib.nullcontext():
            best = from_pretrained(None, model.config)
    if is_sharded:
        shard(best, precision, model.device)
    else:
        best.to(model.device)
        tensors = parameters_and_buffers(best)
        send_from_rank0(tensors, tensors)  # from rank 0 to the same tensors of the others
    return best
