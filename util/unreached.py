"""Freezes the parameters of an encoder that no logit depends on."""

import torch
from transformers import PreTrainedModel

from util.distributed import on_rank0


def unreached_parameters(model: PreTrainedModel, autocast) -> list[str]:
    """Names of the encoder's parameters that no logit depends on, such as XLNet's mask_emb."""
    was_training = model.training
    model.eval()
    with autocast:
        model(input_ids=torch.ones(1, 4, dtype=torch.long, device=model.device)).logits.sum().backward()
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    names = [name for name, p in model.named_parameters() if p.grad is None and p.requires_grad and id(p) in encoder]
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return names


def freeze_unreached_parameters(model: PreTrainedModel, autocast, log) -> None:
    """Freezes the encoder's parameters that no logit depends on, since DDP would wait for their gradients.

    Parameters outside the encoder are not frozen: a head that is attached for an auxiliary loss is to be trained,
    although no logit depends on it.
    """
    names = on_rank0(unreached_parameters, model, autocast)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    if names:
        log(f"frozen, since no logit depends on them: {', '.join(names)}")
