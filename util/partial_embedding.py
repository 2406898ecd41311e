"""Word embeddings of which only the rows in use are trained: most of a small encoder's weights are in this matrix."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from util.sharding import full_tensor


class PartiallyTrainedEmbedding(nn.Module):
    """Word embeddings [V, H] of which only the rows of some subwords are trained.

    The optimizer and the all-reduce never see the other rows: these have no gradient, and are spared weight decay.
    Checkpoints hold `trained` and `frozen`; merge_embeddings restores `weight` for the saved model.
    """

    def __init__(self, embedding: nn.Embedding, token_ids: np.ndarray):
        super().__init__()
        weight = embedding.weight.detach()
        frozen_ids = np.setdiff1d(np.arange(len(weight)), token_ids)
        order = torch.from_numpy(np.append(token_ids, frozen_ids)).to(weight.device)
        trained, frozen = weight[order].tensor_split([len(token_ids)])
        self.trained = nn.Parameter(trained.clone(), embedding.weight.requires_grad)  # [U, H]
        self.frozen = nn.Parameter(frozen.clone(), requires_grad=False)  # [V - U, H]
        self.register_buffer("row_of_id", order.argsort(), persistent=False)  # [V] in [trained; frozen]

    @property
    def weight(self) -> torch.Tensor:  # [V, H]
        return torch.cat([full_tensor(self.trained), full_tensor(self.frozen)])[self.row_of_id]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        row, num_trained = self.row_of_id[input_ids], len(self.trained)  # [B, L]
        if self.training or len(self.frozen) == 0:
            return F.embedding(row, self.trained)
        frozen = F.embedding((row - num_trained).clamp(min=0), self.frozen)
        trained = F.embedding(row.clamp(max=num_trained - 1), self.trained)
        return torch.where((row < num_trained)[..., None], trained, frozen)


def train_used_embeddings(model: PreTrainedModel, token_ids: np.ndarray) -> None:
    """Trains only the word embeddings of these subwords: those of the training split, and padding.

    T5 has several embeddings that share one weight: all of them become one module. If the weight is also used
    otherwise, as in an output layer, all of it is trained.
    """
    weight = getattr(model.get_input_embeddings(), "weight", None)
    places = []  # where a module with this weight is attached
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if weight is not None and any(parameter is weight for parameter in module.parameters(recurse=False)):
                places.append((parent, name, module))
    if not all(type(module) is nn.Embedding for _, _, module in places):
        return
    replacement = None
    for parent, name, module in places:
        replacement = replacement or PartiallyTrainedEmbedding(module, np.unique(token_ids).astype(np.int64))
        setattr(parent, name, replacement)


def trained_token_ids(model: PreTrainedModel) -> torch.Tensor:
    """The ids of the subwords that may occur in training."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, PartiallyTrainedEmbedding):
        return embedding.row_of_id.argsort()[: len(embedding.trained)].cpu()
    return torch.arange(len(embedding.weight))


def merge_embeddings(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A gathered state_dict -> the same with `weight` in place of `trained` and `frozen`. {} stays {}."""
    weights = dict(weights)
    for name, module in model.named_modules():  # of several names of a module, the first
        if weights and isinstance(module, PartiallyTrainedEmbedding):
            rows = torch.cat([weights.pop(f"{name}.trained"), weights.pop(f"{name}.frozen")])
            weights[f"{name}.weight"] = rows[module.row_of_id.cpu()]
    return weights
