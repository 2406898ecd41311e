"""The forward and backward pass of the model as CUDA graphs (--cuda_graphs).

A step of BERT-base launches some 700 kernels. At small batches, a host takes longer to launch them than a GPU to run
them (an estimate, from 5 to 10 us per launch). A graph launches all of them at once. It always works on the same
memory, so there is one pair of graphs for every shape of a batch: packed batches have few.
"""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from util.distributed import get_ranks
from util.sharding import parameters_and_buffers, send_from_rank0

NO_GRAPHS = "--cuda_graphs cannot compute this step, train without the flag"


class _Replay(torch.autograd.Function):
    """Replays the forward graph, and in the backward pass the backward graph, which leaves all gradients in `flat`."""

    @staticmethod
    def forward(ctx, anchor, graphed, graphs):
        ctx.graphed, ctx.graphs = graphed, graphs
        graphs.forward.replay()
        return graphs.logits.detach()

    @staticmethod
    def backward(ctx, grad_logits):
        ctx.graphs.grad_logits.copy_(grad_logits)
        ctx.graphs.backward.replay()
        ctx.graphed.set_gradients(ctx.graphs)
        return None, None, None


class GraphedModel:
    """model(**inputs).logits of packed batches. The other outputs of the model are not available.

    call: the model, or what calls it in its place (HalfWeights). With several ranks it replaces DDP: gradients are
    averaged by one all-reduce after the backward pass. A step has one forward and one backward pass, and no other
    gradients: set_gradients raises ValueError. What Python decides in the forward pass is decided when a graph is
    captured.

    Random numbers are drawn by the generator when a graph is replayed: dropout depends on the seed of the step, as
    without graphs.
    """

    def __init__(self, model: nn.Module, call):
        self.world_size = get_ranks().world_size
        if self.world_size > 1:
            tensors = parameters_and_buffers(model)
            send_from_rank0(tensors, tensors)
        self.call = call
        self.frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.flat = torch.zeros(sum(sizes), device=model.device)  # all gradients of all graphs
        self.gradients = [part.view_as(p) for part, p in zip(self.flat.split(sizes), self.parameters)]
        self.anchor = torch.zeros((), requires_grad=True)  # makes autograd call the backward pass
        self.graphs: dict[tuple, SimpleNamespace] = {}  # by the shapes of the batch
        self.pool = None  # of memory, shared by all graphs: two graphs never run at the same time

    def __call__(self, **inputs) -> SimpleNamespace:
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        is_changed = any(p.requires_grad for p in self.frozen) or not all(p.requires_grad for p in self.parameters)
        if is_changed or inputs.keys() - {"input_ids", "position_ids", "packing_plan"}:
            raise ValueError(
                f"{NO_GRAPHS}: parameters are frozen or unfrozen, or the model has other inputs or outputs"
            )
        plan = inputs["packing_plan"]
        key = (plan.max_seqlen, plan.cu_seqlens.shape, *(tensor.shape for tensor in tensors.values()))
        if key not in self.graphs:
            with torch.random.fork_rng([self.flat.device]):  # capturing draws no random numbers of the step
                self.graphs[key] = self._capture(inputs)
        graphs = self.graphs[key]
        for name, tensor in tensors.items():
            graphs.inputs[name].copy_(tensor)
        graphs.inputs["packing_plan"].cu_seqlens.copy_(plan.cu_seqlens)
        return SimpleNamespace(logits=_Replay.apply(self.anchor, self, graphs))

    def set_gradients(self, graphs: SimpleNamespace) -> None:
        if any(parameter.grad is not None for parameter in self.parameters):
            raise ValueError(f"{NO_GRAPHS}: the step has gradients from elsewhere, or a second pass")
        if self.world_size > 1:
            dist.all_reduce(self.flat)
            self.flat.div_(self.world_size)
        for i in graphs.has_gradient:
            self.parameters[i].grad = self.gradients[i]

    def _capture(self, inputs: dict) -> SimpleNamespace:
        """Records the kernels that the model launches for inputs of these shapes."""
        # Weights must be cast in the graph: a cast that autocast has cached would never be made again.
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            graphs = SimpleNamespace(forward=torch.cuda.CUDAGraph(), backward=torch.cuda.CUDAGraph())
            graphs.inputs = {name: value.clone() for name, value in inputs.items()}
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(2):  # libraries choose kernels and allocate workspaces outside the graph
                    logits = self.call(**graphs.inputs).logits
                    torch.autograd.grad(logits, self.parameters, torch.zeros_like(logits), allow_unused=True)
            torch.cuda.current_stream().wait_stream(side_stream)
            graphs.grad_logits = torch.zeros_like(logits)
            # thread_local: calls of other threads, such as NCCL's, do not end the capture.
            with torch.cuda.graph(graphs.forward, pool=self.pool, capture_error_mode="thread_local"):
                graphs.logits = self.call(**graphs.inputs).logits
            self.pool = self.pool or graphs.forward.pool()
            with torch.cuda.graph(graphs.backward, pool=self.pool, capture_error_mode="thread_local"):
                self._capture_backward(graphs)
            graphs.logits = graphs.logits.detach()  # frees autograd's graph
        return graphs

    def _capture_backward(self, graphs: SimpleNamespace) -> None:
        gradients = torch.autograd.grad(graphs.logits, self.parameters, graphs.grad_logits, allow_unused=True)
        graphs.has_gradient = [i for i, gradient in enumerate(gradients) if gradient is not None]
        targets = [self.gradients[i] for i in graphs.has_gradient]
        torch._foreach_copy_(targets, [gradients[i] for i in graphs.has_gradient])
