"""train.py, which also records how much this rank holds: python tests/sharded.py LOG [flags]

LOG.RANK gets the bytes of parameters, gradients and moments, and the devices on which models were loaded.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

import model  # noqa: E402
import train  # noqa: E402

log, rank = sys.argv.pop(1), int(os.environ["RANK"])
adamw = torch.optim.AdamW
held: dict = {"loaded": []}


def held_bytes(tensors) -> int:
    tensors = [tensor for tensor in tensors if tensor is not None]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def recorded(load):
    def call(*arguments, **options):
        loaded = load(*arguments, **options)
        held["loaded"].append(loaded.device.type)
        Path(f"{log}.{rank}").write_text(json.dumps(held))
        return loaded

    return call


class RecordedAdamW(adamw):
    def step(self, *arguments):
        super().step(*arguments)
        parameters = [p for group in self.param_groups for p in group["params"]]
        moments = [self.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        held["bytes"] = [held_bytes(tensors) for tensors in (parameters, [p.grad for p in parameters], moments)]
        Path(f"{log}.{rank}").write_text(json.dumps(held))


model.from_pretrained = recorded(model.from_pretrained)
torch.optim.AdamW = RecordedAdamW
train.record(train.main)()
