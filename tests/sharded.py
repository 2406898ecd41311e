"""train.py, which also writes what this rank holds of parameters, gradients, moments: tests/sharded.py LOG [flags]"""

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
clip, load, adamw = torch.nn.utils.clip_grad_norm_, model.load, torch.optim.AdamW
held: dict = {"loaded": []}


def held_bytes(tensors) -> int:
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors if tensor is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def noted_load(*arguments, **options):
    found = load(*arguments, **options)
    held["loaded"].append(found.device.type)
    Path(f"{log}.{rank}").write_text(json.dumps(held))
    return found


class NotedAdamW(adamw):
    def step(self, *arguments):
        super().step(*arguments)
        parameters = [p for group in self.param_groups for p in group["params"]]
        moments = [self.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        held["bytes"] = [*map(held_bytes, (parameters, [p.grad for p in parameters], moments))]
        Path(f"{log}.{rank}").write_text(json.dumps(held))


model.load = noted_load
torch.optim.AdamW = NotedAdamW
train.record(train.main)()
