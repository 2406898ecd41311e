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
    if not is_word:
        raise ValueError("the tokenizer has no subword for the word a, and no unknown token")
    input_ids = np.asarray(encoding["input_ids"], np.int32)
    return input_ids[: is_word[0]], input_ids[is_word[-1] + 1 :]


# Words and signs of which tokenizers make different subwords at the beginning of a text and after a blank.
TRIAL = "the town of San José ( Peru ) , 1,204 people in 2024 ; Москва , 東京 and New-York are larger ."
BLANKS = ("", " ", "\u2581")  # "": the tokenizer itself puts a blank before every word, or ignores blanks


def _blank_before(tokenizer) -> str:
    """What to put before a word that is not the first, for the subwords that it has after a blank in a text.

    Tokenizers that are given words know no blanks between them. Some add one (XLM-R), some do so at the beginning of
    a text only, and some never do (Gemma, Llama 3). This is a function of the tokenizer alone, found by trial, so
    that training and tagging agree.
    """
    words = TRIAL.split()
    in_text = tokenizer(TRIAL, add_special_tokens=False, verbose=False)["input_ids"]

    def num_equal(blank: str) -> int:
        """The number of leading subwords, and of trailing ones, that are equal to those of the text."""
        subwords = _tokenize([_with_blanks(words, blank)], tokenizer)["input_ids"][0]
        if subwords == in_text:
            return 2 * len(in_text) + 1
        ends = [zip(subwords, in_text), zip(reversed(subwords), reversed(in_text))]
        return sum(len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))) for pairs in ends)

    return max(BLANKS, key=num_equal)  # of equal ones the first


def _with_blanks(words: list[str], blank: str) -> list[str]:
    """The texts whose subwords are those of the words: the first begins a text, the others follow a blank."""
    return [*words[:1], *(blank + word for word in words[1:])] if blank else words


def _tokenize(texts: list[list[str]], tokenizer):
    """The BatchEncoding of lists of texts, each text by itself, without special tokens."""
    return tokenizer(texts, is_split_into_words=True, add_special_tokens=False, verbose=False)


class WordCache:
    """The subword ids of words that one tokenizer has seen.

    A tokenizer that is given words tokenizes each by itself, and corpora repeat their words, so only new words
    need the tokenizer. The keys are the words with the blank before them, if any. Several threads may share a cache:
    a full dict is replaced, not cleared.
    """

    MAX_WORDS = 2**18  # about 100 MB

    def __init__(self, tokenizer):
        self.blank = _blank_before(tokenizer)
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


def _word_cache(tokenizer) -> WordCache:
    if tokenizer not in _word_caches:
        _word_caches[tokenizer] = WordCache(tokenizer)
    return _word_caches[tokenizer]


class Encoded(NamedTuple):
    """A sentence of W words and T subwords, without special tokens."""

    input_ids: np.ndarray  # [T] int32
    word_ids: np.ndarray  # [T] int32, 0 to W - 1, ascending
    dropped: np.ndarray  # int32, the words for which the tokenizer returns no subword


def encode(sentences: list[list[str]], tokenizer) -> list[Encoded]:
    """Words -> the subwords that they have in a text, where one blank stands between words.

    A word without subwords (for example U+FE0F) gets the unknown token.
    """
    cache = _word_cache(tokenizer)
    sentences = [_with_blanks(words, cache.blank) for words in sentences]
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
    blank = _word_cache(tokenizer).blank
    encoding = _tokenize([_with_blanks(words, blank) for words in sentences], tokenizer)
    for i, words in enumerate(sentences):
        offsets: list[list[tuple[int, int]]] = [[] for _ in words]
        for word_id, (start, end) in zip(encoding.word_ids(i), encoding.encodings[i].offsets):
            added = len(blank) if word_id > 0 else 0
            offsets[word_id].append((max(0, start - added), max(0, end - added)))
        # A dropped word has one subword, the unknown token, which stands for all of it.
        yield [pieces or [(0, len(word))] for pieces, word in zip(offsets, words)]
