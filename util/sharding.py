"""Tensors between ranks and disk, whether each rank holds all of a tensor (DDP) or a part of it (FSDP).

The functions are collectives: all ranks call them. `torch.distributed.checkpoint.state_dict` is not used, because it
creates missing optimizer state with a step of its own: parameters that were frozen so far would not resume exactly.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, of which FSDP keeps a part on each rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor under FSDP, else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_on_rank0(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On rank 0 the whole tensors on the CPU, without copies of what is there already; {} on other ranks."""
    is_rank0 = not dist.is_initialized() or dist.get_rank() == 0
    gathered = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if is_rank0:
            gathered[name] = tensor.cpu().contiguous()
    return gathered


@torch.no_grad()  # a copy of a parameter on a GPU would be part of autograd's graph, which distribute_tensor refuses
def send_from_rank0(targets: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    """Copies rank 0's values into the targets of all ranks. Other ranks may pass no values."""
    for name, target in targets.items():
        value = values.get(name)
        if dist.is_initialized():
            if dist.get_rank() == 0:
                value = value.to(target.device, target.dtype).contiguous()
            else:
                value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            dist.broadcast(value, src=0)
        if isinstance(target, DTensor):
            shard = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().data.copy_(shard.to_local())
        else:
            target.data.copy_(value)


def parameters_and_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """By name; a tied parameter is listed once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def tied_parameters(model: nn.Module) -> list[tuple[str, str]]:
    """Further names of parameters that have several, each with the first one."""
    first: dict[nn.Parameter, str] = {}
    names = [(name, first.setdefault(p, name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return [(name, original) for name, original in names if name != original]


def tie_parameters(model: nn.Module, tied: list[tuple[str, str]]) -> None:
    """The inverse of tied_parameters: `to` and `to_empty` make a parameter of its own for every name."""
    for name, original in tied:
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, model.get_parameter(original))
