"""Subwords of words.

    words       rejects  lamb
    subwords    rejects  la    ##mb
    input_ids   22961    2495  12913
    word_ids    0        1     1

input_ids and word_ids do not include special tokens here.
"""

import itertools
import weakref
from typing import NamedTuple

import numpy as np


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
