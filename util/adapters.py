"""Adapters of PEFT (LoRA and others): they are merged into the encoder that they name."""

import contextlib
import importlib
import importlib.util
import json
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForTokenClassification
from transformers.utils import cached_file

from util.loading_errors import folder_of, one_line_errors

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether it has an adapter and no model. Raises ValueError if it has both, or if peft is missing."""
    path = Path(name) / ADAPTER_CONFIG
    if Path(name).is_dir():
        if not path.is_file():
            return False
        if any(any(path.parent.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin")):
            raise ValueError(f"{name}: has a model and an adapter; remove {ADAPTER_CONFIG} if the adapter is merged")
    elif folder_of(name) or not _file(name, ADAPTER_CONFIG):
        return False
    base_of(name)
    return True


def base_of(name: str) -> str:
    """The encoder that the adapter is for."""
    base = _read(name).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{name}: {ADAPTER_CONFIG} names no base_model_name_or_path; merge the adapter with peft")
    if (Path(base) / ADAPTER_CONFIG).is_file() and not (Path(base) / "config.json").is_file():
        raise ValueError(f"{name}: an adapter for {base}, which is an adapter; merge that one first")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{name}: an adapter of PEFT for {base}; pip install peft, or merge it and pass the result")
    return base


def adapter_config(name: str, **labels):
    """The encoder's configuration with these labels, else with as many labels as the adapter's head has."""
    base, num_labels = base_of(name), _num_labels(name)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, **labels)
    if _file(name, "config.json"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **labels)
    if num_labels and not labels and config.num_labels != num_labels:
        config.num_labels = num_labels  # named LABEL_0, LABEL_1, ...
    is_tagger = _read(name).get("task_type") == "TOKEN_CLS" and num_labels
    config.architectures = ["AutoModelForTokenClassification" if is_tagger else "AutoModel"]
    return config


def merged_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of the encoder and of the adapter's head, with the adapter merged."""
    peft = importlib.import_module("peft")  # not a requirement
    base, config = base_of(name), adapter_config(name)
    model = AutoModelForTokenClassification.from_pretrained(
        base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys")  # they would be left at zero
        # An adapter of the encoder alone (AutoModel) has names without its prefix. Both are merged in place.
        has_prefix = any(f".{model.base_model_prefix}." in key for key in _shapes(name))
        peft.PeftModel.from_pretrained(model if has_prefix else model.base_model, name).merge_and_unload()
    weights = model.state_dict()
    if not _num_labels(name):  # the head is the encoder's, or drawn at random
        in_encoder = {id(parameter) for parameter in model.base_model.parameters()}
        head = {key for key, parameter in model.named_parameters() if id(parameter) not in in_encoder}
        weights = {key: weight for key, weight in weights.items() if key not in head}
    return weights


def _num_labels(name: str) -> int:
    """The rows of the head that was saved with the adapter, or 0."""
    modules = _read(name).get("modules_to_save") or []
    for key, shape in _shapes(name).items():
        if key.endswith(".weight") and any(f".{module}." in key for module in modules):
            return shape[0]
    return 0


def _shapes(name: str) -> dict[str, list[int]]:
    """The weights of the adapter, in either of its formats."""
    path = _file(name, "adapter_model.safetensors")
    if path:
        with safe_open(path, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}
    path = _file(name, "adapter_model.bin")
    tensors = torch.load(path, map_location="cpu", weights_only=True) if path else {}
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


def _read(name: str) -> dict:
    with one_line_errors(name):
        content = json.loads(Path(_file(name, ADAPTER_CONFIG) or "").read_text(encoding="utf-8"))
        return dict(content)


def _file(name: str, file: str) -> str | None:
    """The path of a file of a folder or a Hub id."""
    with contextlib.suppress(Exception):  # there is none, or no such id
        return cached_file(name, file)
    return None
