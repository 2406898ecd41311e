"""Parameters that have no gradient in some or all passes. Every rank must have gradients for the same parameters."""

import re

import torch
from transformers import PreTrainedModel

from util.distributed import on_rank0

LAYERDROP = re.compile("(encoder_|decoder_)?layer_?drop")


def disable_layerdrop(model: PreTrainedModel, log) -> None:
    """Sets the probability of leaving out a whole layer to 0, in the model and in its config.

    A layer that one rank leaves out has no gradient there, and DDP waits for it. The gradient would also depend on
    the number of ranks.
    """
    found = {}
    for holder in (model.config, *model.modules()):
        for name, value in vars(holder).items():
            if LAYERDROP.fullmatch(name) and isinstance(value, (int, float)) and value > 0:
                found[name] = value
                setattr(holder, name, 0.0)
    for name, value in found.items():
        log(f"note: {name} is 0 instead of {value:g}: every step trains all layers")


def _has_gradient(model: PreTrainedModel, input_ids: torch.Tensor, autocast) -> set[str]:
    input_ids = input_ids.to(model.device)
    with autocast:  # packed_sdpa needs a mask where a sliding window is shorter than the input
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits.float().square().mean().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return names


def unreached_parameters(model: PreTrainedModel, max_length: int, autocast) -> tuple[list[str], bool]:
    """Names of the encoder's parameters that no logit depends on, such as XLNet's mask_emb.

    Also returns whether the parameters with a gradient depend on the input, as for experts that get no subword of a
    short batch. Then no names are returned: any parameter may get a gradient from another input.
    """
    was_training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(vocabulary)[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))]
    rows = [torch.ones(1, 4, dtype=torch.long), ids[None, :64]]
    reached = [_has_gradient(model, row[:, :max_length], autocast) for row in rows]
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad and id(p) in encoder]
    model.train(was_training)
    if reached[0] != reached[1]:
        return [], True
    return [name for name in trained if name not in reached[0]], False


def freeze_unreached_parameters(model: PreTrainedModel, max_length: int, autocast, log) -> bool:
    """Freezes the encoder's parameters that no logit depends on, since DDP would wait for their gradients.

    Parameters outside the encoder are not frozen: a head that is attached for an auxiliary loss is to be trained,
    although no logit depends on it. Returns whether DDP has to look for parameters without a gradient at every step.
    max_length: of the windows, in subwords.
    """
    names, varies = on_rank0(unreached_parameters, model, max_length, autocast)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    if names:
        log(f"note: frozen, since no logit depends on them: {', '.join(names)}")
    if varies:
        log("note: some parameters have a gradient for some inputs only: DDP looks for them at every step")
    return varies
