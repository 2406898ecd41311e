"""The network: a pretrained encoder under transformers' own token-classification head, and what a step needs of it.

raw_model = load_model("bert-base-cased", ["O", "B-PER", "I-PER"])
optimizer = torch.optim.AdamW(parameter_groups(raw_model, 0.01), lr=5e-5)
logits = raw_model(input_ids, attention_mask).logits   # [B, L] -> [B, L, C]
"""

import hashlib
import json
import os
import resource
import shutil
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel


def load_model(name: str, labels: list[str], gradient_checkpointing: bool = False) -> PreTrainedModel:
    """The encoder `name` (a folder or a Hub id) in fp32, with a head of one logit a label.

    A head that was trained for the very same labels is kept. Any other one starts anew, also where its size happens
    to fit: its rows would mean other labels.
    """
    before = AutoConfig.from_pretrained(name)
    config = AutoConfig.from_pretrained(
        name,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    # transformers 5 would load weights in the type they were saved in; AdamW wants fp32 ones, autocast does the rest.
    model = AutoModelForTokenClassification.from_pretrained(
        name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    trained = any("ForTokenClassification" in architecture for architecture in before.architectures or [])
    if trained and [before.id2label[i] for i in sorted(before.id2label)] != labels:
        encoder = set(model.base_model.modules())
        for module in model.modules():
            if module not in encoder and hasattr(module, "reset_parameters"):
                module.reset_parameters()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def freeze_unused(model: PreTrainedModel) -> None:
    """Parameters that tagging never reaches (XLNet's mask_emb) stay out: DDP would wait for their gradients."""
    model(input_ids=torch.ones(1, 4, dtype=torch.long, device=model.device)).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad(set_to_none=True)


def check_labels(model: PreTrainedModel, largest: int) -> None:
    """ValueError before the first step instead of an assert on the device in the midst of it."""
    if largest >= model.config.num_labels:
        raise ValueError(f"label id {largest} where the head has {model.config.num_labels} labels")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and embeddings; none on vectors, that is on biases and norms (as in BERT)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def pick_precision(requested: str, device: torch.device) -> str:
    """auto -> bf16 where the hardware computes in it, else fp16 on a GPU, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if requested == "auto":
        return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise ValueError("--precision fp16 needs a GPU: use bf16 or fp32")
    if requested == "bf16" and device.type == "cuda" and not has_bf16:
        raise ValueError(f"--precision bf16: {torch.cuda.get_device_name(device)} has none; use fp16 or fp32")
    return requested


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Matrix products in 16 bits, norms, softmax and loss in fp32; switched off for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


# ----------------------------------------------------------------------------------------------------------------------
# What the machine could do, for --benchmark


def _fastest(function, device: torch.device, times: int = 8) -> float:
    """Seconds of the fastest of several calls, the first one not counted."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def step_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """Of forward and backward over rows of these lengths [R]: 6 N T + 12 layers width sum(L^2), N the weights of the
    Linear layers (Kaplan et al., arXiv 2001.08361, and attention's two products)."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config = model.config
    return 6 * weights * lengths.sum() + 12 * config.num_hidden_layers * config.hidden_size * (lengths**2.0).sum()


def utilisation(model: PreTrainedModel, precision: str, steps: list[tuple[float, np.ndarray]], world_size: int) -> dict:
    """steps: (seconds, lengths of the global batch). Measures this device's peak of matrix products and its memory's
    bandwidth -> share of that peak, and the step that both allow: the products, and 28 bytes a parameter for AdamW."""
    if model.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(model.device)
    else:
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device, size = model.device, 4096 if model.device.type == "cuda" else 1536
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix, block = torch.randn(size, size, device=device, dtype=dtype), torch.empty(2**26, device=device)
    peak = 2 * size**3 / _fastest(lambda: matrix @ matrix, device) * world_size
    bandwidth = 2 * block.numel() * block.element_size() / _fastest(block.clone, device)
    flops = sum(step_flops(model, lengths) for _, lengths in steps) / len(steps)
    seconds = sum(seconds for seconds, _ in steps) / len(steps)
    moments = 28 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "peak_memory_gib": memory / 2**30,
        "matmul_peak_tflops": peak / 1e12,
        "mfu": flops / seconds / peak,
        "floor_ms": 1e3 * (flops / peak + moments / bandwidth),
    }


def save_model(model: PreTrainedModel, tokenizer, folder: str) -> None:
    """config.json, model.safetensors and the tokenizer's files, each swapped in whole: `folder` always loads."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for name in sorted(os.listdir(beside)):
            os.replace(os.path.join(beside, name), os.path.join(folder, name))


def load_best(model: PreTrainedModel, folder: str, rank: int, world_size: int) -> None:
    """Weights that save_model wrote, read by rank 0 and sent to the others: they may not share its disk."""
    if rank == 0:
        safetensors.load_model(model, os.path.join(folder, "model.safetensors"), strict=False)
    if world_size > 1:
        _send([*model.parameters(), *model.buffers()])


def _send(tensors: list[torch.Tensor]) -> None:
    """Rank 0's to all ranks."""
    for tensor in tensors:
        dist.broadcast(tensor.data, src=0)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: output_dir/checkpoints/step-00000123/ holds weights and moments as safetensors, the rest as JSON, and a
# manifest of their SHA-256 sums that was written last. A folder without a manifest that fits is no checkpoint.


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state under the parameters' names: "classifier.weight/exp_avg", ..."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = optimizer.state.items()
    return {f"{names[parameter]}/{key}": value for parameter, values in state for key, value in values.items()}


def _to_disk(path: str) -> None:
    """Waits until a file, or a folder's list of files, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(folder: str) -> list[str]:
    """Those of an output folder, the oldest first."""
    folder = os.path.join(folder, "checkpoints")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.startswith("step-") and name[5:].isdigit()]


def save_checkpoint(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, limit: int) -> str:
    """Writes it beside, renames it when it is whole, and only then removes those beyond the newest `limit`."""
    path = os.path.join(folder, "checkpoints", f"step-{state['step']:08}")
    beside = path + ".partial"
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside)
    try:
        safetensors.save_model(model, os.path.join(beside, "model.safetensors"))
        safetensors.save_file(_moments(model, optimizer), os.path.join(beside, "optimizer.safetensors"))
        _write_whole(os.path.join(beside, "state.json"), json.dumps(state))
        sums = {name: _sha256(os.path.join(beside, name)) for name in sorted(os.listdir(beside))}
        _write_whole(os.path.join(beside, "manifest.json"), json.dumps(sums, indent=2))
        for name in [*sums, "."]:
            _to_disk(os.path.join(beside, name))
        if os.path.isdir(path):  # a broken one, or one of the future of the checkpoint that we went back to
            shutil.rmtree(path)
        os.rename(beside, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{path}: cannot be saved: {error}") from None
    _to_disk(os.path.dirname(path))
    for old in checkpoints(folder)[:-limit]:
        shutil.rmtree(old)
    return path


def read_state(path: str) -> dict:
    """A checkpoint's state.json. ValueError if any of its files is not the one that was saved."""
    try:
        with open(os.path.join(path, "manifest.json"), encoding="utf-8") as file:
            sums = json.load(file)
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            if _sha256(os.path.join(path, name)) != sums[name]:
                raise ValueError(f"{path}: {name} is not the file that was saved")
        for name in ("model.safetensors", "optimizer.safetensors"):
            safe_open(os.path.join(path, name), "pt")
        with open(os.path.join(path, "state.json"), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {os.path.basename(error.filename or '')}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def find_checkpoint(folder: str, which: str, identity: dict, log) -> str | None:
    """The one to go on from: for "auto" the newest valid one in the output folder, for "never" none, or the folder
    that is named. ValueError if it is of another run, or named and invalid."""
    candidates = {"auto": checkpoints(folder)[::-1], "never": []}.get(which, [which])
    for path in candidates:
        try:
            state = read_state(path)
        except ValueError as problem:
            if path == which:
                raise ValueError(f"--resume_from_checkpoint {problem}") from None
            log(f"skipped {problem}")
            continue
        refuse_another_run(path, state["identity"], identity)
        return path
    return None


def load_checkpoint(path: str, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world_size: int) -> dict:
    """Fills model and optimizer on all ranks with what rank 0 reads (they may not share its disk) -> the state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state, keys = [None], ("step", "exp_avg", "exp_avg_sq")
    if rank == 0:
        safetensors.load_model(model, os.path.join(path, "model.safetensors"))
        moments = safetensors.load_file(os.path.join(path, "optimizer.safetensors"))
        with open(os.path.join(path, "state.json"), encoding="utf-8") as file:
            state = [json.load(file)]
    else:  # room for what rank 0 sends
        shapes = {f"{names[p]}/{key}": () if key == "step" else p.shape for p in parameters for key in keys}
        moments = {name: torch.zeros(shape) for name, shape in shapes.items()}
    held = {i: {key: moments[f"{names[p]}/{key}"] for key in keys} for i, p in enumerate(parameters)}
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
    if world_size > 1:
        dist.broadcast_object_list(state, src=0)
        _send([*model.parameters(), *model.buffers(), *_moments(model, optimizer).values()])
    return state[0]


# ----------------------------------------------------------------------------------------------------------------------
# The output folder: the same command again is safe

RUN_FILES = ["train_config.yaml", "all_results.json", "config.json", "model.safetensors", "runs", "checkpoints"]
ADVICE = "choose another --output_dir, or --overwrite_output_dir"
# Flags that change no result. Of the sizes of batches only their product with the ranks does: it is in the identity.
NO_MATTER = ["output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "save_steps"]
NO_MATTER += ["save_total_limit", "per_device_train_batch_size", "gradient_accumulation_steps"]
NO_MATTER += ["per_device_eval_batch_size"]


def refuse_another_run(where: str, before: dict, now: dict) -> None:
    """ValueError that names the first difference between what a run was and what it would be now."""
    for name, value in now.items():
        if name not in NO_MATTER and before.get(name) != value:
            short = len(f"{before.get(name)}{value}") < 80
            what = f"its {name} is {before.get(name)}, not {value}" if short else f"its {name} differ"
            raise ValueError(f"{where}: holds another run: {what}; {ADVICE}")


def open_run(folder: str, settings: dict, identity: dict) -> dict | None:
    """Returns this very run's results if the folder holds them. ValueError if it holds another run or a model.

    settings: the flags. identity: what else makes a run this one: labels, data, sentences a step.
    """
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # OSError where nothing can be written
    config, results, *_ = paths = [os.path.join(folder, name) for name in RUN_FILES]
    there = [path for path in paths if os.path.exists(path)]
    if settings["overwrite_output_dir"] or not there:
        return None
    if config not in there:
        raise ValueError(f"{there[0]}: not from a run of train.py; {ADVICE}")
    with open(config, encoding="utf-8") as file:
        before = yaml.safe_load(file)
    flags = {f"--{name}": value for name, value in settings.items() if name not in NO_MATTER}
    refuse_another_run(folder, {f"--{name}": value for name, value in before.items()}, flags)
    if results not in there:
        return None
    with open(results, encoding="utf-8") as file:
        finished = json.load(file)
    refuse_another_run(folder, finished["identity"], identity)
    return finished


def begin_run(folder: str, settings: dict, goes_on: bool) -> None:
    """Clears what an older run left, and nothing else; train_config.yaml then says whose folder it is."""
    for name in RUN_FILES if not goes_on else []:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)
    _write_whole(os.path.join(folder, RUN_FILES[0]), yaml.safe_dump(settings, sort_keys=False))


def finish_run(folder: str, results: dict) -> None:
    """all_results.json comes last: a folder that has it holds a finished run."""
    _write_whole(os.path.join(folder, RUN_FILES[1]), json.dumps(results, indent=2) + "\n")


def _write_whole(path: str, text: str) -> None:
    """Never leaves half a file behind."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
