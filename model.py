"""The network: a pretrained encoder under transformers' own token-classification head, and what a step needs of it.

raw_model = load_model("bert-base-cased", ["O", "B-PER", "I-PER"])
optimizer = torch.optim.AdamW(parameter_groups(raw_model, 0.01), lr=5e-5)
logits = raw_model(input_ids, attention_mask).logits   # [B, L] -> [B, L, C]
"""

import json
import os
import shutil
import tempfile

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
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
        model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")), strict=False)
    if world_size > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, src=0)


# ----------------------------------------------------------------------------------------------------------------------
# The output folder: the same command again is safe

RUN_FILES = ["train_config.yaml", "all_results.json", "config.json", "model.safetensors", "runs"]
NO_MATTER = ["output_dir", "overwrite_output_dir", "logging_steps"]  # settings that change no result


def open_run(folder: str, settings: dict, fingerprints: dict[str, str]) -> dict | None:
    """Returns this very run's results if the folder holds them. ValueError if it holds another run or a model."""
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # OSError where nothing can be written
    config, results, *_ = paths = [os.path.join(folder, name) for name in RUN_FILES]
    there = [path for path in paths if os.path.exists(path)]
    if settings["overwrite_output_dir"] or not there:
        return None
    advice = "choose another --output_dir, or --overwrite_output_dir"
    if config not in there:
        raise ValueError(f"{there[0]}: not from a run of train.py; {advice}")
    with open(config, encoding="utf-8") as file:
        before = yaml.safe_load(file)
    for name, value in settings.items():
        if name not in NO_MATTER and before.get(name) != value:
            raise ValueError(f"{folder}: holds another run: its --{name} is {before.get(name)}, not {value}; {advice}")
    if results not in there:
        return None
    with open(results, encoding="utf-8") as file:
        finished = json.load(file)
    for split, fingerprint in fingerprints.items():
        if finished["fingerprints"].get(split) != fingerprint:
            raise ValueError(f"{folder}: holds a run on other {split} data; {advice}")
    return finished


def begin_run(folder: str, settings: dict) -> None:
    """Clears what an older run left, and nothing else; train_config.yaml then says whose folder it is."""
    for name in RUN_FILES:
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
    os.replace(path + ".new", path)
