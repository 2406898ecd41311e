"""BigBird: sparse or full attention by the length of the batch alone.

transformers switches from sparse to full attention at the first short batch, for good: results would depend on the
order of the batches, and a resumed run would differ from one that was never stopped.
"""

import torch
from torch import nn
from transformers import PreTrainedModel


def choose_attention_by_length(model: PreTrainedModel) -> None:
    """Attaches the choice to the encoder before each of its passes. Does nothing for other encoders."""
    config = model.config
    if getattr(config, "attention_type", None) != "block_sparse" or not hasattr(model.base_model, "set_attention_type"):
        return
    variants: list[tuple[nn.Module, dict[str, nn.Module]]] = []  # both share the weights of their layer
    for module in model.modules():
        if hasattr(module, "set_attention_type") and hasattr(module, "self"):
            both = {"block_sparse": module.self}
            with torch.device("meta"):  # new weights are not drawn, since those of the layer replace them
                module.set_attention_type("original_full")
            variants.append((module, both | {"original_full": module.self}))
    switched = [module for module in model.modules() if hasattr(module, "attention_type")]

    def choose(encoder: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs_embeds"))
        # The limit is that of BigBirdModel.forward.
        is_short = inputs.shape[1] <= (5 + 2 * config.num_random_blocks) * config.block_size
        chosen = "original_full" if is_short else "block_sparse"
        for module in switched:
            module.attention_type = chosen
        for module, both in variants:
            module.self = both[chosen].train(module.training)

    model.base_model.register_forward_pre_hook(choose, with_kwargs=True)
