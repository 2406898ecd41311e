"""The simulated GPU: it raises what a GPU raises, records where the host waits, and computes what a CPU computes.

Every scenario runs in a process of its own, since it patches torch: python tests/test_simulated_gpu.py check_waits
"""

import copy
import json
import os
import sys

import pytest
import simulated_gpu
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

SUPPORTED, REASON = simulated_gpu.is_supported()
pytestmark = pytest.mark.skipif(not SUPPORTED, reason=REASON)
LENGTHS = [3, 0, 9, 1]  # of packed sentences; a batch may have fewer than its cu_seqlens


# ----------------------------------------------------------------------------------------------------------------------
# Scenarios. The first argument is the recorder.


def waits_of(recorder, function) -> list[str]:
    recorder.reset()
    function()
    return [wait["what"] for wait in recorder.host_waits]


def check_waits(recorder):
    x, mask = torch.arange(4.0, device="cuda"), torch.tensor([True, False, True, True]).cuda()
    repeats, index = torch.tensor([1, 2, 3, 4]).cuda(), torch.tensor([0, 1])
    pageable, pinned = torch.ones(2, 3), torch.ones(2, 3).pin_memory()
    target = torch.zeros(2, 3, device="cuda")
    event = torch.cuda.Event()
    cases = {
        "item": [lambda: x.sum().item(), lambda: bool(x[0] < 1), lambda: int(x[1]), lambda: f"{x[1]:.2f}"],
        "nonzero": [lambda: x.nonzero(), lambda: x.argwhere(), lambda: torch.where(mask)],
        "masked_select": [lambda: x.masked_select(mask)],
        "equal": [lambda: torch.equal(x, x)],
        "unique": [lambda: x.unique(), lambda: x.unique_consecutive()],
        "repeat_interleave": [lambda: x.repeat_interleave(repeats)],
        "index with a boolean mask": [lambda: x[mask]],
        "index_put with a boolean mask": [lambda: x.index_put_((mask,), torch.ones(3, device="cuda"))],
        "copy to the CPU": [lambda: x.cpu(), lambda: pageable.copy_(target, non_blocking=True)],
        "copy from pageable memory": [
            lambda: pageable.cuda(),
            lambda: target.copy_(pageable),
            lambda: torch.tensor(1.0, device="cuda"),
            lambda: x[index],
        ],
        "copy from unpinned memory": [lambda: pageable.to("cuda", non_blocking=True)],
        "copy from pinned memory without non_blocking": [lambda: pinned.cuda()],
        "synchronize": [torch.cuda.synchronize],
        "Event.synchronize": [event.synchronize],
        "tolist": [x.tolist],
    }
    for what, functions in cases.items():
        for function in functions:
            assert waits_of(recorder, function) == [what]
    asynchronous = [
        lambda: pinned.to("cuda", non_blocking=True),
        lambda: pinned[1:].to("cuda", non_blocking=True),
        lambda: x.to("cpu", non_blocking=True),
        lambda: x.repeat_interleave(repeats, output_size=10),
        lambda: x.masked_fill_(mask, 0.0),
        lambda: x.__setitem__(mask, 0.0),  # executed by masked_fill_
        lambda: x[repeats - 1],
        lambda: torch.full((), 1.0, device="cuda"),
    ]
    for function in asynchronous:
        assert waits_of(recorder, function) == []
    recorder.reset()
    assert [x.cpu(), pageable.cuda(), x.sum().item()] and {copied["what"] for copied in recorder.copies} == {
        "copy to the CPU",
        "copy from pageable memory",
    }
    (wait,) = [wait for wait in recorder.host_waits if wait["what"] == "item"]
    assert wait["function"] == "check_waits" and not wait["in_step"] and wait["count"] == 1
    assert wait["where"].startswith("test_simulated_gpu.py:")
    torch.cuda.set_sync_debug_mode("error")
    assert torch.cuda.get_sync_debug_mode() == 2
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        x.sum().item()
    torch.cuda.set_sync_debug_mode(0)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()


def check_devices(recorder):
    x = torch.ones(4, device="cuda")
    assert recorder.tensors_before_set_device and x.device == torch.device("cuda", 0)
    for function in (
        lambda: x + torch.ones(4),
        lambda: torch.ones(4) * x.sum(),
        lambda: torch.ones(4)[torch.tensor([0]).cuda()],
        lambda: x.index_put_((torch.tensor([0]).cuda(),), torch.ones(1)),
        lambda: x.to("cuda:1"),
    ):
        with pytest.raises(RuntimeError, match="device"):
            function()
    assert (x + torch.tensor(1.0)).tolist() == [2.0] * 4  # a CPU scalar is allowed
    recorder.reset()
    torch.cuda.set_device(0)
    assert torch.ones(2, device="cuda").sum() == 2 and recorder.set_device_calls == [0]
    assert not recorder.tensors_before_set_device
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(), end.record()
    assert start.elapsed_time(end) > 0
    assert torch.cuda.get_device_capability() == (8, 0) and torch.cuda.get_device_properties(0).major == 8
    batches = torch.utils.data.DataLoader(torch.arange(8.0), batch_size=4, pin_memory=True)
    assert all(batch.is_pinned() for batch in batches)
    os.environ["SIMULATED_GPU_MAX_ELEMENTS"] = "99"
    with pytest.raises(torch.OutOfMemoryError, match="simulated"):
        torch.ones(100, device="cuda")
    assert torch.ones(1, device="cuda").expand(100).shape == (100,)  # allocates nothing
    del os.environ["SIMULATED_GPU_MAX_ELEMENTS"]
    with pytest.raises(RuntimeError, match="device-side assert"):
        F.embedding(torch.tensor([4]).cuda(), torch.ones(4, 2, device="cuda"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        x + 1  # the device is lost


def packed_inputs(dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(sum(LENGTHS), 2, 8).to(dtype).cuda().requires_grad_() for _ in range(3)]


def packed_attention(query, key, value, p: float = 0.0, window=None) -> torch.Tensor:
    """[T, H, D] -> [T, H, D] by the kernel for this dtype."""
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int().cuda()
    bounds = (cu_seqlens, cu_seqlens, 16, 16)
    if query.dtype == torch.float32:
        op = torch.ops.aten._efficient_attention_forward
        return op(query[None], key[None], value[None], None, *bounds, p, 0, True)[0][0]
    op = torch.ops.aten._flash_attention_forward
    return op(query, key, value, *bounds, p, False, False, window_size_left=window, window_size_right=window)[0]


def check_attention(recorder):
    for dtype, window, tolerance in ((torch.float32, None, 1e-6), (torch.bfloat16, None, 2e-2), (torch.half, 1, 2e-3)):
        inputs = packed_inputs(dtype)
        out = packed_attention(*inputs, window=window)
        upstream = torch.randn_like(out)
        gradients = torch.autograd.grad(out, inputs, upstream)
        references = [tensor.detach().cpu().float().requires_grad_() for tensor in inputs]
        expected = []
        for sentence in zip(*(tensor.split(LENGTHS) for tensor in references)):
            position = torch.arange(len(sentence[0]))
            mask = (position - position[:, None]).abs() <= (16 if window is None else window)
            rows = F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in sentence), mask)
            expected.append(rows.transpose(0, 1))
        expected = torch.cat(expected)
        expected_gradients = torch.autograd.grad(expected, references, upstream.cpu().float())
        for result, reference in zip((out, *gradients), (expected, *expected_gradients)):
            torch.testing.assert_close(result.cpu().float(), reference, rtol=tolerance, atol=tolerance)
    # The backward pass has the dropout mask of the forward pass: the numerical derivative agrees.
    query, key, value = packed_inputs(torch.float32)

    def loss(query):
        torch.manual_seed(1)
        return packed_attention(query, key, value, p=0.5).square().sum()

    (gradient,) = torch.autograd.grad(loss(query), query)
    direction = torch.randn_like(query)
    with torch.no_grad():
        difference = (loss(query + 1e-3 * direction) - loss(query - 1e-3 * direction)) / 2e-3
    assert difference.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-2)
    # PyTorch's own attention, with a mask
    for p in (0.0, 0.5):
        q, k, v = (torch.randn(2, 2, 5, 8, device="cuda", requires_grad=True) for _ in range(3))
        mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
        mask[1, ..., 3:] = False
        gpu_mask = mask.cuda()
        recorder.reset()
        out = F.scaled_dot_product_attention(q, k, v, gpu_mask, dropout_p=p)
        assert recorder.launches == 4  # three make a bias of the mask
        if p == 0:
            (gradient,) = torch.autograd.grad(out.square().sum(), q)
            references = [x.detach().cpu().requires_grad_() for x in (q, k, v)]
            expected = F.scaled_dot_product_attention(*references, mask)
            torch.testing.assert_close(out.cpu(), expected)
            torch.testing.assert_close(gradient.cpu(), torch.autograd.grad(expected.square().sum(), references[0])[0])
    # Conditions of the kernels
    with pytest.raises(RuntimeError, match="fp16 and bf16"):
        torch.ops.aten._flash_attention_forward(*packed_inputs(torch.float32), None, None, 1, 1, 0.0, False, False)
    short = torch.tensor([0, 5]).int().cuda()
    with pytest.raises(AssertionError):
        torch.ops.aten._flash_attention_forward(*packed_inputs(torch.half), short, short, 16, 16, 0.0, False, False)


def check_faults(recorder):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = packed_inputs(dtype)

        def results(inputs=inputs):
            out = packed_attention(*inputs)
            return out, torch.autograd.grad(out.float().square().sum(), inputs)[0]

        out, gradient = results()
        os.environ["SIMULATED_GPU_FAULT"] = "wrong"
        assert (results()[0] - out).abs().max() > 0.1
        os.environ["SIMULATED_GPU_FAULT"] = "wrong_gradient"
        assert torch.equal(results()[0], out) and (results()[1] - gradient).abs().max() > 0.1
        os.environ["SIMULATED_GPU_FAULT"] = "nan"
        assert results()[0].isnan().all()
        os.environ["SIMULATED_GPU_FAULT"] = "raises"
        with pytest.raises(RuntimeError, match="no kernel image is available"):
            results()
        del os.environ["SIMULATED_GPU_FAULT"]


def check_graphs(recorder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1)).cuda()
    static, total = torch.zeros(3, 4, device="cuda"), torch.zeros((), device="cuda")

    def step():
        model.zero_grad(set_to_none=False)
        loss = model(static).sum()
        loss.backward()
        total.add_(loss.detach())
        return loss.detach()

    step()
    total.zero_()
    state = torch.cuda.get_rng_state()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=None, capture_error_mode="thread_local"):
        loss = step()
        assert torch.cuda.is_current_stream_capturing()
    assert loss.isnan() and total == 0 and torch.equal(torch.cuda.get_rng_state(), state)  # a capture computes nothing
    losses = []
    for seed in (1, 2, 2, 3):
        static.copy_(torch.full((3, 4), float(seed)))
        torch.manual_seed(seed)
        recorder.reset()
        graph.replay()
        assert recorder.launches == 1 and recorder.host_waits == []
        replayed = loss.item(), model[0].weight.grad.tolist()
        torch.manual_seed(seed)
        assert (step().item(), model[0].weight.grad.tolist()) == replayed
        losses.append(replayed[0])
    assert len(set(losses)) == 3 and losses[1] == losses[2]
    torch.manual_seed(5)
    graph.replay()
    first = loss.item()
    graph.replay()
    assert loss.item() != first
    for function in (lambda: static.sum().item(), torch.cuda.synchronize, torch.cuda.get_rng_state):
        with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            function()
    assert not torch.cuda.is_current_stream_capturing()


def check_random_numbers(recorder):
    torch.manual_seed(0)
    first = torch.rand(3, device="cuda").tolist()
    torch.rand(3)  # on the CPU
    second = torch.rand(3, device="cuda").tolist()
    torch.manual_seed(0)
    with torch.random.fork_rng([torch.device("cuda", 0)]):
        assert torch.rand(3, device="cuda").tolist() == first
    assert torch.rand(3, device="cuda").tolist() == first
    state = torch.cuda.get_rng_state()
    assert torch.rand(3, device="cuda").tolist() == second
    torch.cuda.set_rng_state(state)
    assert torch.rand(3, device="cuda").tolist() == second


def tiny_bert(**options):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=100, num_labels=5, **sizes, **options)
    return transformers.BertForTokenClassification(config)


def check_training(recorder):
    """fp32 training gives the CPU's numbers. fp16 with a scaler, and checkpointing with dropout, work."""
    ids = torch.randint(1, 100, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0

    def train(model, device, scaler, **autocast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)  # before .to(): parameters stay the same
        model.to(device)
        losses = []
        for step in range(3):
            torch.manual_seed(step)
            with torch.autocast(device, **autocast):
                logits = model(ids.to(device), mask.to(device)).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), (ids % 5).flatten().to(device))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, fp32 = tiny_bert(**off), {"dtype": torch.bfloat16, "enabled": False}
    no_scaler = torch.amp.GradScaler("cuda", enabled=False)
    reference = copy.deepcopy(model)
    expected = train(reference, "cpu", no_scaler, **fp32)
    assert train(model, "cuda", no_scaler, **fp32) == pytest.approx(expected, abs=1e-6)
    assert all(parameter.is_cuda for parameter in copy.deepcopy(model).parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), reference.state_dict()[name], rtol=1e-5, atol=1e-6)
    reference.load_state_dict(model.state_dict())  # onto the CPU
    scaler = torch.amp.GradScaler("cuda")
    losses = train(tiny_bert(**off), "cuda", scaler, dtype=torch.float16)
    assert losses == pytest.approx(expected, abs=2e-2) and scaler.get_scale() == 2**16
    plain, checkpointed = tiny_bert(), tiny_bert()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert train(checkpointed, "cuda", no_scaler, **fp32) == train(plain, "cuda", no_scaler, **fp32)


def check_collectives(recorder):
    rank = int(os.environ["RANK"])
    assert torch.cuda.device_count() == 2
    torch.cuda.set_device(rank)
    store, _, _ = next(dist.rendezvous("env://"))
    for backend in ("nccl", "cpu:gloo,cuda:nccl"):
        recorder.reset()
        keys = dist.PrefixStore(backend, store)  # else the second group finds the addresses of the first one
        dist.init_process_group(backend, store=keys, rank=rank, world_size=2)
        assert dist.get_backend() == backend
        x = torch.full((2,), float(rank + 1), device="cuda")
        assert x.device == torch.device("cuda", rank)
        dist.all_reduce(x, async_op=True).wait()
        assert x.tolist() == [3.0, 3.0] and recorder.all_reduced_bytes == 8
        received = [torch.empty_like(x) for _ in range(2)] if rank == 0 else None
        dist.gather(x * rank, received)
        assert rank == 1 or [part.tolist() for part in received] == [[0.0, 0.0], [3.0, 3.0]]
        objects = [{"rank": rank}]
        dist.broadcast_object_list(objects, src=1)
        assert objects == [{"rank": 1}]
        y = torch.ones(2)
        if backend == "nccl":
            with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
                dist.all_reduce(y)
        else:
            dist.all_reduce(y)
            assert y.tolist() == [2.0, 2.0]
        dist.barrier()
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1).cuda(), gradient_as_bucket_view=True)
        for _ in range(2):  # buckets are rebuilt before the second step
            model.zero_grad()
            model(x + rank).sum().backward()
            assert model.module.weight.grad.tolist() == [[3.5, 3.5]]  # the mean of 3 and 4
        sharded = fully_shard(nn.Linear(2, 2).cuda())
        sharded(x + rank).sum().backward()
        assert sharded.weight.grad.full_tensor().tolist() == [[3.5, 3.5]] * 2
        del model
        dist.destroy_process_group()


if __name__ == "__main__":
    with simulated_gpu.simulated_gpu() as the_recorder:
        for name in sys.argv[1:]:
            globals()[name](the_recorder)
    sys.exit()

# ----------------------------------------------------------------------------------------------------------------------
# Tests. conftest is imported here: the scenarios do not need it.

from conftest import ROOT, run  # noqa: E402

SCENARIOS = {
    "waits and graphs": ["check_waits", "check_random_numbers", "check_graphs"],
    "attention and errors": ["check_attention", "check_faults", "check_devices"],  # the last one loses the device
    "training": ["check_training"],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_gpu(name):
    done = run(__file__, *SCENARIOS[name])
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_gpus():
    done = run(__file__, "check_collectives", ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_missing_compiler_is_a_reason_and_an_error(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert simulated_gpu.is_supported() == (False, "the simulated GPU needs g++")
    with pytest.raises(RuntimeError, match="the simulated GPU needs g"):
        simulated_gpu.load_library()


def test_a_failed_compilation_is_an_error_with_the_message_of_the_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(simulated_gpu, "SOURCE", "no C++")
    with pytest.raises(RuntimeError, match="could not compile the device guard:\n.*error"):
        simulated_gpu.load_library()


def test_train_py_runs_and_writes_a_report(tmp_path):
    flags = ["--max_steps", 2, "--packing", "off", "--precision", "fp32", "--output_dir", tmp_path / "run"]
    for split in ("train", "validation"):  # the beginning of the samples; the encoder is the default one
        lines = (ROOT / "samples" / f"{split}.conll").read_text().splitlines(keepends=True)
        (tmp_path / split).write_text("".join(lines[:400]))
        flags += [f"--{split}_file", tmp_path / split]
    report = tmp_path / "report.json"
    done = run("tests/simulated_gpu.py", "train.py", *flags, SIMULATED_GPU_REPORT=report)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["exit_code"] == 0 and len(found["step_launches"]) == 2
    assert found["launches"] > sum(found["step_launches"]) and min(found["step_launches"]) > 100
    assert found["host_waits"] and all(wait["function"].startswith("main") for wait in found["host_waits"])
    assert found["set_device_calls"] == [0] and not found["tensors_before_set_device"]


def test_the_exit_code_is_that_of_the_program(tmp_path):
    program, report = tmp_path / "program.py", tmp_path / "report.json"
    program.write_text("def main():\n    raise SystemExit(3)\n")
    done = run("tests/simulated_gpu.py", program, SIMULATED_GPU_REPORT=report)
    assert done.returncode == 3, done.stderr
    assert json.loads(report.read_text())["exit_code"] == 3
