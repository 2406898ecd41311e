"""Checks and measurements on one NVIDIA GPU. They need no network.

python tests/benchmarks/gpu.py prove        # 7 minutes: the fast paths compute what the plain ones do; runs, resume
python tests/benchmarks/gpu.py measure      # 9 minutes: throughput and launches, beside what was predicted
python tests/benchmarks/gpu.py versus       # 7 minutes: Trainer and accelerate, F1 of whole runs, profiler traces
python tests/benchmarks/gpu.py prove --only attention encoder/bert       # the checks whose names begin like this
python tests/simulated_gpu.py tests/benchmarks/gpu.py prove --quick      # tries the script itself, without a GPU

A check prints one line, PASS, FAIL or SKIP, and appends a JSON object to OUT/gpu.jsonl. The exit code is 1 if one
failed. An error such as an illegal memory access leaves no usable GPU to the process, which then starts itself again
with the next check.
"""

import argparse
import functools
import gc
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import data  # noqa: E402
import model as modeling  # noqa: E402
import train  # noqa: E402
from util import fast_paths, packed, throughput  # noqa: E402
from util.device import Timestamp, synchronize, to_device  # noqa: E402
from util.distributed import quiet  # noqa: E402
from util.half_weights import HalfWeights  # noqa: E402
from util.nonfinite import NonFiniteGuard  # noqa: E402
from util.partial_embedding import train_used_embeddings  # noqa: E402
from util.pretrained import load_encoder, load_tokenizer, packaged_encoder  # noqa: E402

DEVICE = torch.device("cuda")
# tests/simulated_gpu.py stands in for a GPU on a build of torch for CPUs. Subprocesses then need it as well.
SIMULATED = torch.cuda.is_available() and not (torch.version.cuda or torch.version.hip)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VARIANTS = {  # flags of train.py
    "padded": ["--packing", "off"],
    "packed": ["--packing", "on"],
    "graphs": ["--packing", "on", "--cuda_graphs"],
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
ENCODERS = {  # random weights; arguments of their configurations
    "bert": SMALL,
    "roberta": SMALL | {"max_position_embeddings": 514},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128},
    "electra": SMALL | {"embedding_size": 32},
    "albert": SMALL | {"embedding_size": 32},
    "modernbert": SMALL | {"num_hidden_layers": 3, "local_attention": 64, "global_attn_every_n_layers": 2},
    "eurobert": SMALL | {"max_position_embeddings": 512},
}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LENGTHS = [150, 71, 70, 33, 20, 9, 9, 8, 5, 3, 2]  # of sentences; a window of 64 does not cover the longest

# ----------------------------------------------------------------------------------------------------------------------
# Checks are functions. They return whether they passed (None: they cannot run here), and their figures by name.


class Session:
    """The flags of this run, its encoders and data, and the results of its checks so far."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder  # folder: temporary
        self.runs: dict[str, dict] = {}  # of train.py: name -> all_results.json
        # Start time, lines by name of the check, and values by "check/figure"; from before a restart if there was one.
        self.start, self.lines, self.numbers = json.loads(os.environ.pop("GPU_CHECKS", "null")) or (time.time(), {}, {})

    def check(self, name: str, function, *arguments, seconds: float = 0) -> None:
        """Calls the function, unless --only or --deadline forbid it. seconds: what it takes on an H100."""
        if name in self.lines or (self.args.only and not name.startswith(tuple(self.args.only))):
            return
        begin, details = time.time(), ""
        try:
            passed, figures = None, {"reason": "too late to start before the deadline"}
            if begin + seconds <= self.start + self.args.deadline:
                passed, figures = function(self, *arguments)
        except (Exception, SystemExit) as error:
            passed, figures = False, {type(error).__name__: " ".join(str(error).split())[-300:]}
            details = traceback.format_exc()
        self.report(passed, name, figures, time.time() - begin, details)
        torch.cuda.set_sync_debug_mode("default")
        gc.collect()
        try:
            torch.cuda.empty_cache()
            torch.ones(1, device=DEVICE).item()
        except RuntimeError:  # no operation of this process works any more
            shutil.rmtree(self.folder)
            os.environ["GPU_CHECKS"] = json.dumps([self.start, self.lines, self.numbers])
            os.execv(sys.executable, sys.orig_argv)

    def report(self, passed: bool | None, name: str, figures: dict, seconds: float, details: str = "") -> None:
        status = {True: "PASS", False: "FAIL", None: "SKIP"}[passed]
        shown = {key: value for key, value in figures.items() if value != ""}
        texts = [f"{key} {f'{value:,.4g}' if isinstance(value, float) else value}" for key, value in shown.items()]
        is_timing = self.args.command != "prove" or name.startswith(("machine", "graphs"))
        note = " (not a measurement)" if self.args.quick and is_timing else ""
        self.lines[name] = f"{status} {name}: {', '.join(texts)}{note}"
        print(self.lines[name], flush=True)
        self.numbers |= {f"{name}/{key}": value for key, value in figures.items()}
        entry = {"status": status, "name": name, "figures": figures, "seconds": seconds, "details": details}
        entry |= {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "gpu": torch.cuda.get_device_name()}
        entry |= {"torch": torch.__version__, "transformers": transformers.__version__, "quick": self.args.quick}
        self.args.out.mkdir(parents=True, exist_ok=True)
        with open(self.args.out / "gpu.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def data_flags(self, encoder: str = "MiniLM") -> list[str]:
        files = [[f"--{name}_file", str(self.args.data / f"{name}.conll")] for name in ("train", "validation", "test")]
        return [*sum(files, []), "--model_name_or_path", self.encoder(encoder)]

    @functools.cached_property
    def splits(self) -> dict[str, data.Split]:
        args = data.get_args(self.data_flags())
        _, tokenizer = load_encoder(args.model_name_or_path, args.max_seq_length)
        return data.load_splits(args, tokenizer)

    def batches(self, size: int, number: int) -> list[list[dict]]:
        """Windows of the training split, in the batches of train.py's first epoch, again from its start if need be."""
        windows = self.splits["train"].windows
        batches = data.EpochBatches(windows.lengths, size, seed=42, epoch=0)
        return [[windows[row] for row in batches[step % len(batches)]] for step in range(number)]

    def encoder(self, name: str) -> str:
        """The folder of MiniLM, or of an encoder with BERT's shape and random weights, which is made when needed."""
        folder = self.folder / name
        if name != "MiniLM" and not folder.exists():
            tokenizer = load_tokenizer(self.args.encoder)
            shape = SMALL if self.args.quick else {"BERT-base": {}, "BERT-large": LARGE}[name]
            torch.manual_seed(0)
            encoder = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **shape))
            encoder.to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return self.args.encoder if name == "MiniLM" else str(folder)

    def model(self, name: str) -> transformers.PreTrainedModel:
        """One of ENCODERS with a head of five labels, or another encoder with one for the data. On the CPU, in fp32."""
        torch.manual_seed(0)
        if name not in ENCODERS:
            return modeling.load_model(self.encoder(name), self.splits["train"].label_list)
        config = transformers.AutoConfig.for_model(name, num_labels=5, **ENCODERS[name])
        return modeling.from_pretrained(None, config)


def script(path: str, *flags, torchrun: bool = False, on_cpu: bool = False) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"] if torchrun else []
    simulator = [ROOT / "tests" / "simulated_gpu.py"] if SIMULATED and not on_cpu else []
    return [sys.executable, *map(str, (*launch, *simulator, ROOT / path, *flags))]


def start(command: list[str], **env: str) -> subprocess.Popen:
    """In a process group of its own, which also has the ranks that torchrun starts."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=env, start_new_session=True, **pipes)


def run(command: list[str], timeout: float = 200, **env: str) -> str:
    """Returns what the command prints. Raises RuntimeError if its exit code is not 0."""
    process = start(command, **env)
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {printed[-2000:]}")
    return printed


def refusals(lines: list[str]) -> str:
    """What train.py logs about fast paths that it does not take."""
    beginnings = ("note: packing is off", "note: CUDA graphs are off", "note: weights are cast layer by layer")
    return "; ".join(line for line in lines if line.startswith(beginnings))


# ----------------------------------------------------------------------------------------------------------------------
# The optimizer step of train.py in this process


def switch_dropout_off(model) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class Steps:
    """Trains a model, which is on the CPU at first. Raises ValueError if a fast path of the variant is refused.

    token_ids: the only subwords whose embeddings are trained; None: all.
    """

    def __init__(self, model, variant: str, precision: str = "bf16", token_ids: np.ndarray | None = None):
        args, logged = train.get_args(VARIANTS[variant]), []
        if precision == "fp32":  # only FlashAttention drops weights of attention, and it does not compute in fp32
            switch_dropout_off(model)
        self.model, self.autocast = model.train(), modeling.make_autocast(precision, DEVICE)
        self.longest = min(512, model.config.max_position_embeddings - 2)  # RoBERTa has 2 positions without a token
        packing = fast_paths.choose_packing(args.packing, model, self.longest, False, DEVICE, logged.append)
        model.to(DEVICE)
        if token_ids is not None:
            train_used_embeddings(model, np.append(token_ids, model.config.pad_token_id))
        self.packing = fast_paths.verify_packing(packing, args.packing, model, precision, self.autocast, logged.append)
        self.optimizer = torch.optim.AdamW(modeling.parameter_groups(model, 0.01), lr=5e-5, fused=True)
        self.guard = NonFiniteGuard(self.optimizer, DEVICE)
        self.call = fast_paths.with_fewer_launches(model, args, self.packing, precision, self.autocast, logged.append)
        if refusals(logged):
            raise ValueError(refusals(logged))

    def collate(self, features: list[dict]) -> dict:
        pad_values = {"input_ids": self.model.config.pad_token_id or 0, "labels": data.IGNORED}
        if self.packing:
            return packed.packed_collate(features, pad_values, self.packing)
        return data.collate(features, pad_values)

    def rows(self, lengths) -> list[torch.Tensor]:
        """The subwords of sentences of these lengths, or shorter if the encoder's limit is."""
        return fast_paths._make_rows(self.model, np.minimum(lengths, self.longest))

    def collate_rows(self, lengths) -> dict:
        number = self.model.config.num_labels
        return self.collate([{"input_ids": row.numpy(), "labels": row.numpy() % number} for row in self.rows(lengths)])

    def backward(self, batch: dict, step: int = 0) -> torch.Tensor:
        """The forward and backward pass of a batch that is on the CPU. Returns the mean loss of its labels."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(train.dropout_seed(42, step, rank=0))
        num_labels = int((batch["labels"] != data.IGNORED).sum())
        inputs, labels = data.split_labels(to_device(batch, DEVICE))
        with self.autocast:
            logits = self.call(**inputs).logits
        loss = modeling.token_loss(logits, labels["labels"]) / num_labels
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.guard.allows_step(grad_norm, step=0):
            self.optimizer.step()

    def step(self, batch: dict, step: int = 0) -> torch.Tensor:
        loss = self.backward(batch, step)
        self.update()
        return loss

    def steps(self, batches: list[dict]) -> torch.Tensor:
        """Returns the losses."""
        return torch.stack([self.step(batch, i) for i, batch in enumerate(batches)])


def seconds_of(function, calls: int) -> float:
    """Seconds of a call, until its work on the device is done."""
    synchronize(DEVICE)
    begin = Timestamp(DEVICE)
    for _ in range(calls):
        function()
    end = Timestamp(DEVICE)
    synchronize(DEVICE)
    return end.seconds_since(begin) / calls


def profile(function, calls: int = 5) -> torch.profiler.profile:
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
        seconds_of(function, calls)
    return profiler


def launches_of(function, calls: int = 5) -> tuple[float, float]:
    """Of a call: launches (kernels, graphs, copies, fills), and the milliseconds for which they keep the GPU busy."""
    if SIMULATED:
        recorder = sys.modules["simulated_gpu"].State.recorder
        before = recorder.launches
        seconds_of(function, calls)
        return (recorder.launches - before) / calls, 0.0
    events = profile(function, calls).events()
    is_launch = re.compile(r"(cudaLaunch|cuLaunch|cudaGraphLaunch|cudaMemcpy|cudaMemset)\w*")
    number = sum(bool(is_launch.fullmatch(event.name)) for event in events)
    # The annotation of optimizer.step() is an event of the device too, and spans kernels.
    on_device = [e for e in events if e.device_type.name == "CUDA" and not e.name.startswith("Optimizer.")]
    return number / calls, sum(event.time_range.elapsed_us() for event in on_device) / 1e3 / calls


# ----------------------------------------------------------------------------------------------------------------------
# prove: the machine and the attention kernels


def check_machine(session: Session) -> tuple:
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    figures = {"gpu": torch.cuda.get_device_name(), "capability": str(torch.cuda.get_device_capability())}
    figures |= {"torch": torch.__version__, "cuda": str(torch.version.cuda), "transformers": transformers.__version__}
    if shutil.which("nvidia-smi"):
        figures["driver"] = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).strip()
    size = 128 if session.args.quick else throughput.MATMUL_SIZE["cuda"]
    matrix = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    block = torch.empty(2**16 if session.args.quick else 2**28, device=DEVICE)
    figures |= {"free GiB": free, "GiB": total}
    figures["bf16 TFLOP/s"] = 2 * size**3 / 1e12 / throughput._seconds(lambda: matrix @ matrix, DEVICE)
    figures["copy GB/s"] = 2 * 4 * block.numel() / 1e9 / throughput._seconds(block.clone, DEVICE)  # read and written
    return True, figures


def draw_inputs(lengths: list[int], width: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], packed.PackingPlan]:
    """q, k, v and a gradient, [1, 12, T, width]. The plan ends with two empty sentences. Free memory becomes NaN."""
    # A kernel that does not write all of its output then returns NaN. There are pools of small and of large blocks.
    sizes = [2**17] * 64 + [2**20 if SIMULATED else 2**27]
    blocks = [torch.full((size,), math.nan, device=DEVICE) for size in sizes]
    del blocks
    shape, generator = (4, 1, 12, sum(lengths), width), torch.Generator().manual_seed(width)
    inputs = torch.randn(shape, generator=generator).to(DEVICE, dtype).unbind()
    plan = packed.make_packing_plan(np.array([*lengths, 0, 0]))
    return [x.detach().requires_grad_() for x in inputs], plan.to(DEVICE)


def formula(q, k, v, scale: float, window: int | None, lengths: list[int]) -> torch.Tensor:
    """softmax(Q K^T * scale) V of every sentence. q, k, v [1, H, T, D] -> [1, T, H, D]."""
    outputs = []
    for q_row, k_row, v_row in zip(*(x.split(lengths, dim=2) for x in (q, k, v))):
        scores = q_row @ k_row.transpose(-1, -2) * scale
        position = torch.arange(scores.shape[-1], device=DEVICE)
        is_far = (position[:, None] - position).abs() >= (window or math.inf)
        outputs.append(scores.masked_fill(is_far, -math.inf).softmax(-1) @ v_row)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def check_attention(session: Session, precision: str, width: int, window: int | None) -> tuple:
    """Output and gradients against the formula in fp64, on the same rounded inputs: errors relative to the norm."""
    number, longest = (6, 96) if session.args.quick else (24, 512)
    lengths = [1, 2, longest, *np.random.default_rng(width).integers(1, longest + 1, number).tolist()]
    (*inputs, upstream), plan = draw_inputs(lengths, width, DTYPES[precision])
    upstream = upstream.detach().transpose(1, 2)  # [1, T, H, D]
    out = packed._gpu_attention(*inputs, width**-0.5, 0.0, window, plan)
    results = [out, *torch.autograd.grad(out, inputs, upstream)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = formula(*exact, width**-0.5, window, lengths)
    references = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    errors = [((x.double() - reference).norm() / reference.norm()).item() for x, reference in zip(results, references)]
    limit = {"bf16": 1e-2, "fp32": 1e-5}[precision]
    return all(error < limit for error in errors), dict(zip(("out", "dq", "dk", "dv"), errors))


def check_attention_dropout(session: Session, precision: str) -> tuple:
    """p = 0.1: the mean over seeds, the same bits for the same seed, and the same mask in the backward pass.

    Beyond four standard errors lie 6e-5 of a normal distribution, and 8e-4 of Student's t of 20 seeds.
    FlashAttention rounds p to 1/256, which changes the scale of the output by 0.2 %.
    """
    seeds, lengths, limit = 200, [512, 256, 256, 128, 64, 64], 1e-3
    if session.args.quick:
        seeds, lengths, limit = 20, [64, 40], 2e-2
    (*inputs, _), plan = draw_inputs(lengths, 32, DTYPES[precision])

    def attend(seed: int, p: float = 0.1) -> torch.Tensor:
        torch.manual_seed(seed)
        return packed._gpu_attention(*inputs, 32**-0.5, p, None, plan)

    samples = torch.stack([attend(seed).detach().float() for seed in range(seeds)])
    expected, mean, out = attend(0, p=0.0).detach().float(), samples.mean(0), attend(0)
    is_beyond = (mean - expected).abs() > 4 * samples.std(0) / seeds**0.5 + 1e-6
    (grad_v,) = torch.autograd.grad(out, inputs[2:], out.detach())
    # The output M V is linear in V: <M^T M V, V> = <M V, M V>. Another mask in the backward pass would give 10 % less.
    same_mask = ((grad_v.double() * inputs[2].double()).sum() / out.double().square().sum()).item()
    scale, beyond = ((mean * expected).sum() / expected.square().sum()).item(), is_beyond.double().mean().item()
    figures = {"beyond 4 standard errors": beyond, "scale": scale, "same bits": torch.equal(out, attend(0))}
    is_right = beyond < limit and abs(scale - 1) < 1e-2 and abs(same_mask - 1) < 1e-2 and figures["same bits"]
    return is_right, figures | {"backward mask": same_mask}


# ----------------------------------------------------------------------------------------------------------------------
# prove: encoders


def check_packing(session: Session, name: str, precision: str) -> tuple:
    """Loss, logits and gradients of a packed batch without dropout, against those of a padded batch in fp32.

    Errors are relative to the norm. In bf16, a padded batch of MiniLM is off by 4 %: a packed one may be by twice that.
    HalfWeights must compute the logits of autocast bit by bit, with dropout.
    """
    try:
        steps = Steps(session.model(name), "packed", precision)
    except ValueError as error:  # only FlashAttention knows a window, and it does not compute in fp32
        return name == "modernbert" and precision == "fp32", {"refused": str(error)}
    model, rows = steps.model.eval(), steps.rows(LENGTHS)
    labels, padded = torch.cat(rows).to(DEVICE) % model.config.num_labels, fast_paths._pad(model, rows)
    is_token = padded["attention_mask"].flatten().nonzero()[:, 0]
    batch, tokens = fast_paths._pack(model, rows, steps.packing), torch.arange(len(labels))
    results = fast_paths._logits_and_gradients(model, model, batch, tokens, steps.autocast)
    rounded = fast_paths._logits_and_gradients(model, model, padded, is_token, steps.autocast)
    fp32 = modeling.make_autocast("fp32", DEVICE)
    reference = fast_paths._logits_and_gradients(model, model, padded, is_token, fp32)
    error, padded_error = (fast_paths._relative_error(found, reference) for found in (results, rounded))
    loss, expected_loss = (modeling.token_loss(logits, labels).item() for logits, _ in (results, reference))
    figures = {"error": error, "padded error": padded_error, "loss error": abs(loss / expected_loss - 1)}
    limit = max({"fp32": 1e-5, "bf16": 2e-2}[precision], 2 * padded_error)
    is_close = error <= limit and figures["loss error"] <= limit
    if precision == "bf16":
        calls = (model.train(), HalfWeights(model, torch.bfloat16))
        logits = [fast_paths._logits_and_gradients(f, model, batch, tokens, steps.autocast)[0] for f in calls]
        figures["16-bit weights bitwise"] = torch.equal(*logits)
    return is_close and figures.get("16-bit weights bitwise", True), figures


def check_graphs(session: Session, precision: str) -> tuple:
    """20 steps on mixed shapes, in bf16 with dropout: twice without graphs, once with them. Differences are relative.

    The backward pass of attention may add in another order each time. The two runs without graphs show how much.
    """
    losses, seconds, mib = [], [], []
    for variant in ("packed", "packed", "graphs"):
        steps, random = Steps(session.model("MiniLM"), variant, precision), np.random.default_rng(0)
        batches = [steps.collate_rows(random.integers(2, random.integers(10, 90), 16)) for _ in range(20)]
        reserved, begin = torch.cuda.memory_reserved(), time.perf_counter()
        losses.append(steps.steps(batches).double().cpu())
        seconds.append(time.perf_counter() - begin)
        mib.append((torch.cuda.memory_reserved() - reserved) / 2**20)
    again, difference = ((other / losses[0] - 1).abs().max().item() for other in losses[1:])
    figures = {"bitwise": torch.equal(losses[2], losses[0]), "difference": difference}
    figures |= {"difference of two runs without graphs": again}
    figures |= {"first loss equal": bool(losses[2][0] == losses[0][0]), "graphs": len(steps.call.graphs)}
    figures |= {"capture seconds": seconds[2] - seconds[1], "capture MiB": mib[2] - mib[1]}
    return difference <= 3 * again + {"fp32": 1e-5, "bf16": 1e-3}[precision], figures


def check_no_wait(session: Session, name: str, variant: str) -> tuple:
    """PyTorch raises an error where the host waits for the device in a step."""
    steps = Steps(session.model(name), variant)
    batches = [steps.collate_rows(LENGTHS[skipped:]) for skipped in (0, 2, 5)]
    steps.step(batches[0])  # loads libraries, and allocates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    steps.steps(batches)
    return True, {"steps": len(batches)}


# ----------------------------------------------------------------------------------------------------------------------
# prove: whole runs

# Runs of train.py without dropout: flags, the run that must have the same train_loss, and the relative tolerance.
FP32 = ["--precision", "fp32"]
RUNS = {
    "cpu": (FP32, "cpu", 0.0),
    "fp32": (FP32, "cpu", 1e-4),
    "bf16": (["--precision", "bf16"], "cpu", 1e-2),
    "cuda_graphs": (["--cuda_graphs"], "bf16", 1e-2),
    "torchrun": (FP32, "fp32", 1e-4),
    "fsdp": ([*FP32, "--fsdp"], "fp32", 1e-4),
    "gradient_checkpointing": (["--gradient_checkpointing"], "bf16", 1e-2),
    "fp16": (["--precision", "fp16"], "cpu", 0.2),  # the first steps overflow and are skipped
}


def trained(session: Session, name: str) -> dict:
    """all_results.json of a run, which is made when needed."""
    encoder = session.folder / "without dropout"
    if not encoder.exists():
        shutil.copytree(session.args.encoder, encoder)
        config = json.loads((encoder / "config.json").read_text())
        config |= {key: 0.0 for key, value in config.items() if "dropout" in key and value}
        (encoder / "config.json").write_text(json.dumps(config))
    if name not in session.runs:
        flags = [*session.data_flags(), *RUNS[name][0], "--max_steps", 6 if session.args.quick else 60]
        flags += ["--model_name_or_path", encoder, "--output_dir", session.folder / name]
        command = script("train.py", *flags, torchrun=name in ("torchrun", "fsdp"), on_cpu=name == "cpu")
        printed = run(command, **({"CUDA_VISIBLE_DEVICES": ""} if name == "cpu" else {}))
        results = json.loads((session.folder / name / "all_results.json").read_text())
        session.runs[name] = results | {"refused": refusals(printed.splitlines())}
    return session.runs[name]


def check_training(session: Session, name: str) -> tuple:
    _, reference, tolerance = RUNS[name]
    results, expected = trained(session, name), trained(session, reference)
    difference = abs(results["train_loss"] / expected["train_loss"] - 1)
    figures = {"difference": difference} | {key: results[key] for key in ("train_loss", "eval_f1", "refused")}
    return difference <= tolerance and not results["refused"], figures


def check_resume(session: Session, number: signal.Signals) -> tuple:
    """Sends a signal after the first checkpoint, and resumes: are the weights those of a run without interruption?"""
    steps, save_steps = (8, 3) if session.args.quick else (60, 20)
    flags, folder = [*session.data_flags(), "--max_steps", steps, "--save_steps", save_steps], session.folder
    names = ("whole", "again", number.name)
    command = {name: script("train.py", *flags, "--output_dir", folder / name) for name in names}

    def difference(first: str, second: str) -> float:
        weights, others = (load_file(folder / name / "model.safetensors") for name in (first, second))
        return max((weights[name] - others[name]).abs().max().item() for name in weights | others)

    if not (folder / "whole").exists():
        run(command["whole"])
    process, begin = start(command[number.name]), time.perf_counter()
    checkpoint = folder / number.name / "checkpoints" / f"step-{save_steps:08}"
    try:
        while not checkpoint.exists() and process.poll() is None and time.perf_counter() - begin < 120:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    is_resumed = "resumed from" in run(command[number.name])
    figures = {"exit code": process.returncode, "resumed": is_resumed, "difference": difference("whole", number.name)}
    if figures["difference"]:  # the backward pass of attention may add in another order each time
        run(command["again"])
        figures["difference of two runs without interruption"] = difference("whole", "again")
    code = {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    return process.returncode == code and is_resumed and figures["difference"] == 0, figures


def check_infer(session: Session, what: str) -> tuple:
    """Tags a text or a file, or prints the scores of the validation split, which must be those of training."""
    results, file, out = trained(session, "bf16"), session.args.data / "validation.conll", session.folder / "tagged"
    flags = {"text": ["Maria lives in Oslo ."], "file": ["--input_file", file, "--output_file", out]}
    flags["evaluate"] = ["--input_file", file, "--evaluate"]
    printed = run(script("infer.py", session.folder / "bf16", *flags[what]))
    if what != "evaluate":
        number = len((out.read_text() if what == "file" else printed).splitlines())
        return number > 0, {"lines": number}
    scores = re.search(r"loss ([\d.]+), accuracy ([\d.]+)(?:.*\n)*all +[\d.]+ +[\d.]+ +([\d.]+)", printed).groups()
    figures = dict(zip(("loss", "accuracy", "f1"), map(float, scores)))
    errors = {key: abs(value - results[f"eval_{key}"]) for key, value in figures.items()}
    return errors["loss"] < 2e-3 and max(errors["accuracy"], errors["f1"]) < 1e-4, figures


def check_memory_accesses(session: Session) -> tuple:
    """Packed steps of a small encoder under memcheck, without PyTorch's memory pool."""
    if not shutil.which("compute-sanitizer"):
        return None, {"reason": "compute-sanitizer is not installed"}
    checks = ["--out", session.folder, "--only", "no-wait/bert/packed", "encoder/bert/fp32"]
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *script(__file__, "prove", *checks)]
    printed = run(command, timeout=100, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return True, {"result": re.search(r"ERROR SUMMARY: .*", printed).group()}


def prove(session: Session, flags: list[str]) -> None:
    check = session.check
    check("machine", check_machine)
    for precision in DTYPES:
        for width in (32, 64):
            check(f"attention/{precision}/{width}", check_attention, precision, width, None)
    check("attention/bf16/dropout", check_attention_dropout, "bf16")
    for width in (32, 64):
        check(f"attention/bf16/{width}/window", check_attention, "bf16", width, 64)
    encoders = [*ENCODERS, "MiniLM"] + ([] if session.args.quick else ["BERT-base"])
    for name in encoders:
        for precision in DTYPES:
            check(f"encoder/{name}/{precision}", check_packing, name, precision)
    for precision in DTYPES:
        check(f"graphs/{precision}", check_graphs, precision)
    for name in encoders:
        for variant in ("packed", "padded"):
            check(f"no-wait/{name}/{variant}", check_no_wait, name, variant)
    for name in list(RUNS)[1:]:
        check(f"train/{name}", check_training, name, seconds=15)
    for number in (signal.SIGKILL, signal.SIGTERM):
        check(f"train/{number.name}", check_resume, number, seconds=30)
    for what in ("evaluate", "text", "file"):
        check(f"infer/{what}", check_infer, what, seconds=15)
    check("memcheck", check_memory_accesses, seconds=80)


# ----------------------------------------------------------------------------------------------------------------------
# measure

# (encoder, sentences a batch), the most valuable first; other measurements come between the two lists
GRID = [("BERT-base", 32), ("MiniLM", 32), ("BERT-base", 256), ("MiniLM", 16), ("MiniLM", 256), ("BERT-base", 16)]
GRID_LAST = [("BERT-base", 64), ("MiniLM", 64), ("BERT-large", 32)]
# Predictions for an H100 of before anything had run on a GPU: figure, lowest, highest, section of the GPU plan.
PREDICTIONS = [
    ("launches/BERT-base/padded, autocast", 1032, 1032, "B0"),
    ("launches/BERT-base/packed, autocast", 947, 947, "B0"),
    ("launches/BERT-base/packed, 16-bit weights", 655, 655, "B0, B4"),
    ("launches/MiniLM/padded, autocast", 540, 540, "B0"),
    ("launches/MiniLM/packed, autocast", 491, 491, "B0"),
    ("launches/MiniLM/packed, 16-bit weights", 343, 343, "B0, B4"),
    ("launches/BERT-base/clip and AdamW ms", 0.8, 1.0, "B0: AdamW alone"),
    ("launches/MiniLM/graphs", 13, 18, "B3"),
    ("cell/BERT-base/16/packed/step_ms_p50", 7, 11, "B0: the host's launches"),
    ("cell/MiniLM/16/packed/step_ms_p50", 4, 6, "B0: the host's launches"),
    ("host/32/packed collate ms", 0.04, 0.04, "B0"),
    ("host/256/packed collate ms", 0.23, 0.23, "B0"),
    ("cell/MiniLM/16/padded/padding", 0.42, 0.62, "B2: WNUT-17, B0: CoNLL"),
    ("cell/MiniLM/32/packed/padding", 0.034, 0.05, "B2"),
    *((f"cell/{name}/256/packed/speedup", 1.7, 3.0, "B2") for name in ("BERT-base", "MiniLM")),
    *((f"cell/BERT-base/{size}/graphs/speedup", 2.5, 3.5, "B3") for size in (16, 32, 64)),
    *((f"cell/MiniLM/{size}/graphs/speedup", 3.0, 5.0, "B3") for size in (16, 32, 64)),
]


def time_cell(session: Session, flags: list[str]) -> None:
    """train.py --benchmark with 20 steps of warm-up instead of 10."""
    train.BENCHMARK_WARMUP_STEPS = 2 if session.args.quick else 20
    if session.args.quick:
        throughput.MATMUL_SIZE["cuda"], throughput.CALLS_PER_TIMING["cuda"] = 64, 1
    sys.argv = ["train.py", *flags]
    train.main()


def run_cells(session: Session, encoder: str, size: int) -> tuple:
    """Runs the variants in turns, twice, in a process each. Reports a line for each: medians of train.py's figures.

    The speedup is that of the median step. The tokens per second with graphs include the time of captures.
    """
    printed, errors, name = dict.fromkeys(VARIANTS, ""), {}, f"cell/{encoder}/{size}"
    flags = [*session.data_flags(encoder), "--per_device_train_batch_size", size, "--precision", "bf16"]
    flags += ["--benchmark", 4, "--quick"] if session.args.quick else ["--benchmark", 100]
    for variant in [*VARIANTS] * 2:
        try:
            printed[variant] += run(script(__file__, "cell", *flags, *VARIANTS[variant]))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            printed[variant] += f"{error}\n"
    for variant, text in printed.items():
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        keys = ("tokens_per_second", "step_ms_p50", "step_ms_p95", "padding", "mfu", "peak_memory_gib")
        figures = {key: statistics.median(f[key] for f in found) for key in keys if found}
        if found and f"{name}/padded/step_ms_p50" in session.numbers:
            figures["speedup"] = session.numbers[f"{name}/padded/step_ms_p50"] / figures["step_ms_p50"]
        errors[variant] = refusals(text.splitlines()) or ("" if len(found) == 2 else " ".join(text.split())[-300:])
        session.report(not errors[variant], f"{name}/{variant}", figures | {"error": errors[variant]}, 0.0)
    return not any(errors.values()), {"runs": 2 * len(VARIANTS)}


def check_launches(session: Session, encoder: str) -> tuple:
    """Launches of a step, the share of it for which the GPU is busy, and launches of its forward and backward pass."""
    figures, (size, calls) = {}, (4, 3) if session.args.quick else (32, 20)
    for variant in VARIANTS:
        steps = Steps(session.model(encoder), variant, token_ids=session.splits["train"].token_ids)
        batches = list(map(steps.collate, session.batches(size, 3 * calls)))
        first, second = (seconds_of(functools.partial(steps.steps, batches), 1) for _ in range(2))
        step, backward = functools.partial(steps.step, batches[0]), functools.partial(steps.backward, batches[0])
        step_ms = 1e3 * seconds_of(step, calls)
        figures[f"{variant} step"], busy_ms = launches_of(step)
        figures[f"{variant} busy"] = busy_ms / step_ms
        if variant == "graphs":
            figures |= {"graphs": len(steps.call.graphs), "capture seconds": first - second}
            continue
        if variant == "packed":
            figures["packed, 16-bit weights"] = launches_of(backward)[0]
            figures["clip and AdamW ms"] = 1e3 * seconds_of(steps.update, calls)
        steps.call = steps.model
        figures[f"{variant}, autocast"] = launches_of(backward)[0]
    return True, figures


def check_host(session: Session, size: int) -> tuple:
    """Of the host: milliseconds to collate a batch and to start its copy, microseconds of manual_seed."""
    figures, calls = {}, 3 if session.args.quick else 50
    for variant in ("packed", "padded"):
        steps, times = Steps(session.model("bert"), variant), []
        for features in session.batches(size, calls):
            times.append([time.perf_counter()])
            batch = steps.collate(features)
            times[-1].append(time.perf_counter())
            to_device(batch, DEVICE)
            times[-1].append(time.perf_counter())
        collate_ms, copy_ms = 1e3 * np.median(np.diff(times), axis=0)
        figures |= {f"{variant} collate ms": float(collate_ms), f"{variant} to_device ms": float(copy_ms)}
    begin = time.perf_counter()
    for seed in range(calls):
        torch.manual_seed(seed)
    return True, figures | {"manual_seed us": 1e6 * (time.perf_counter() - begin) / calls}


def check_evaluation(session: Session) -> tuple:
    """Seconds for the validation split; whether the results of batches of 32 and 64 are the same bits."""
    steps = Steps(session.model("MiniLM"), "packed", token_ids=session.splits["train"].token_ids)
    steps.steps(list(map(steps.collate, session.batches(16, 3 if session.args.quick else 60))))
    pad_values, split = {"input_ids": steps.model.config.pad_token_id, "labels": -100}, session.splits["validation"]
    figures, predictions = {}, []
    for size in (64, 32, 64):  # the first one loads libraries
        args = train.get_args(["--per_device_eval_batch_size", str(size)])
        scores, found = train.evaluate(steps.model, split, args, pad_values, steps.autocast)
        figures[f"seconds, batch {size}"] = scores["runtime"]
        predictions.append(found)
    same = [bool(np.array_equal(*pair)) for pair in zip(*predictions[1:])]
    figures |= {"sentences": split.num_sentences, "same labels": same[0], "same probabilities": same[1]}
    return same[0], figures


def measure(session: Session, flags: list[str]) -> None:
    for encoder, size in [("MiniLM", 4)] if session.args.quick else GRID:
        session.check(f"cell/{encoder}/{size}", run_cells, encoder, size, seconds=60)
    for encoder in ("BERT-base", "MiniLM"):
        session.check(f"launches/{encoder}", check_launches, encoder, seconds=20)
    for size in (32, 256):
        session.check(f"host/{size}", check_host, size, seconds=5)
    session.check("evaluation", check_evaluation, seconds=10)
    for encoder, size in [] if session.args.quick else GRID_LAST:
        session.check(f"cell/{encoder}/{size}", run_cells, encoder, size, seconds=60 + 30 * (encoder == "BERT-large"))
    print(f"\n{'predicted':>15} {'measured':>10}{' (not a measurement)' if session.args.quick else ''}")
    for name, low, high, source in PREDICTIONS:
        predicted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        print(f"{predicted:>15} {session.numbers.get(name, math.nan):10,.4g} {name} ({source})")


# ----------------------------------------------------------------------------------------------------------------------
# versus


def check_versus(session: Session, model: str, size: int, steps: int) -> tuple:
    """Median tokens per second of versus.py's contestants, each in its own processes."""
    if not importlib.util.find_spec("accelerate"):
        return None, {"reason": "accelerate is not installed"}
    contestants = ["ours", "guide", "best", "accelerate"]
    files = session.data_flags()[:4]  # train and validation
    flags = [*files, "--model", model, "--batch_size", size, "--steps", steps, "--only", *contestants]
    printed = run(script("tests/benchmarks/versus.py", *flags, "--repeat", 1 if session.args.quick else 2), timeout=300)
    rates = {name: [] for name in contestants}
    for name, figures in re.findall(r"^seed \d+, (\w+): (\{.*\})$", printed, re.MULTILINE):
        rates[name].append(json.loads(figures)["tokens_per_second"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return True, medians | {f"times {name}": medians["ours"] / medians[name] for name in contestants[1:]}


def check_f1(session: Session) -> tuple:
    """F1 of the default and of padded fp32 after three epochs. It passes if the means differ by at most 0.02."""
    length = ["--max_steps", 4] if session.args.quick else ["--num_train_epochs", 3]
    figures, means = {}, []
    for name, flags in (("default", []), ("padded-fp32", ["--packing", "off", "--precision", "fp32"])):
        scores = []
        for seed in (42,) if session.args.quick else (42, 43, 44):
            folder = session.folder / f"{name}-{seed}"
            run(script("train.py", *session.data_flags(), *flags, *length, "--seed", seed, "--output_dir", folder))
            results = json.loads((folder / "all_results.json").read_text())
            scores.append([results["eval_f1"], results["test_f1"]])
        means.append(np.mean(scores, axis=0))
        figures |= {f"{name} eval": [f1 for f1, _ in scores], f"{name} test": [f1 for _, f1 in scores]}
    difference = np.abs(means[0] - means[1]).max()
    return bool(difference <= 0.02), figures | {"difference": float(difference)}


def check_trace(session: Session, variant: str) -> tuple:
    """Writes a trace of five steps, which chrome://tracing and Perfetto show."""
    steps, path = Steps(session.model("MiniLM"), variant), session.args.out / f"trace-{variant}.json.gz"
    batches = list(map(steps.collate, session.batches(4 if session.args.quick else 32, 5)))
    steps.steps(batches)  # loads libraries
    session.args.out.mkdir(parents=True, exist_ok=True)
    profile(lambda: steps.steps(batches), calls=1).export_chrome_trace(str(path))
    size = path.stat().st_size / 2**20
    return size < 16, {"file": str(path), "MiB": size}


def versus(session: Session, flags: list[str]) -> None:
    model, steps = (session.args.encoder, 2) if session.args.quick else ("base", 100)
    session.check("versus/base/32", check_versus, model, 32, steps, seconds=105)
    session.check("f1", check_f1, seconds=110)
    for variant in ("packed", "padded"):
        session.check(f"trace/{variant}", check_trace, variant, seconds=10)
    if not session.args.quick:
        session.check("versus/base/256", check_versus, "base", 256, 40, seconds=125)
        session.check("versus/MiniLM/16", check_versus, session.args.encoder, 16, 100, seconds=85)


# ----------------------------------------------------------------------------------------------------------------------

# Seconds after which no check is started that would take longer than the minutes above.
COMMANDS = {"prove": (prove, 410), "measure": (measure, 530), "versus": (versus, 410), "cell": (time_cell, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, metavar="prove | measure | versus")
    parser.add_argument("--out", type=Path, default="gpu-results", help="folder of gpu.jsonl and traces")
    parser.add_argument("--encoder", type=os.path.abspath, help="folder of MiniLM (the packaged one)")
    parser.add_argument("--data", type=Path, default=ROOT / "samples", help="folder of train, validation, test .conll")
    parser.add_argument("--deadline", type=float, help="seconds in which all checks must end (410, 530, 410)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the checks whose names begin like this")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for the simulated GPU")
    args, flags = parser.parse_known_args()
    if flags and args.command != "cell":
        parser.error(f"unknown arguments: {' '.join(flags)}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU")
    quiet(progress=False)
    function, seconds = COMMANDS[args.command]
    args.encoder, args.data, args.out = args.encoder or packaged_encoder(), args.data.resolve(), args.out.resolve()
    args.deadline = seconds if args.deadline is None else args.deadline
    with tempfile.TemporaryDirectory() as folder:
        session = Session(args, Path(folder))
        function(session, flags)
    if args.command != "cell":
        print("\n" + "\n".join(["Results", *session.lines.values()]))
    sys.exit(any(line.startswith("FAIL") for line in session.lines.values()))


if __name__ == "__main__":
    main()
