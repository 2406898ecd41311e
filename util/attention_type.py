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
    for module in model.modules():
        if hasattr(module, "set_attention_type") and hasattr(module, "self"):
            variants = {"block_sparse": module.self}
            with torch.device("meta"):  # new weights are not drawn, since those of the layer replace them
                module.set_attention_type("original_full")
            variants["original_full"] = module.self
            module.attention_variants = variants  # a dict: the weights, which both share, keep their names
    model.base_model.register_forward_pre_hook(_choose_attention, with_kwargs=True)


def _choose_attention(encoder: nn.Module, args: tuple, kwargs: dict) -> None:
    config = encoder.config
    inputs = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs_embeds"))
    # The limit is that of BigBirdModel.forward.
    is_short = inputs.shape[1] <= (5 + 2 * config.num_random_blocks) * config.block_size
    chosen = "original_full" if is_short else "block_sparse"
    for module in encoder.modules():
        if hasattr(module, "attention_type"):
            module.attention_type = chosen
        if hasattr(module, "attention_variants"):
            module.self = module.attention_variants[chosen].train(module.training)
