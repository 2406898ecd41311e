"""Checks that words have the subwords of running text: in training, and with the saved tokenizer in other programs.

Encoders are pretrained on running text. Here it is the words of a sentence joined by one blank.
"""

import tempfile
from collections import Counter
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from util.loading_errors import folder_of, one_line_errors
from util.tokenizer import TRIAL, encode

NUM_SENTENCES, NUM_WORDS = 1000, 20_000  # of a corpus that are compared with running text
CAPITALS = 0.05  # share of the subwords with capitals, above which a vocabulary is cased
ENOUGH = 0.99  # share of words with the subwords of running text


def prepare(tokenizer) -> None:
    """Turns off truncation and padding, also in the saved files.

    Byte-level tokenizers with the setting add_prefix_space (RoBERTa, GPT-2, DeBERTa) put a blank before the first
    word too. It then has the same subwords wherever it stands in a sentence.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.pre_tokenizer, ByteLevel):
        backend.pre_tokenizer.add_prefix_space = True
        if hasattr(backend.post_processor, "add_prefix_space"):  # it removes the blank from the offsets
            backend.post_processor.add_prefix_space = True
        # Classes such as RobertaTokenizer ignore the saved pre_tokenizer and make one from tokenizer_config.json.
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def check_file(name: str, tokenizer) -> None:
    """Raises ValueError if tokenizer.json describes another tokenizer than the one that was made from the folder.

    Some classes take only the vocabulary from tokenizer.json, and the rest from tokenizer_config.json: BertTokenizer
    lowercases where that file is missing. Where it is present, its settings count, and only few subwords may differ.
    """
    folder = folder_of(name)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return
    has_settings = (folder / "tokenizer_config.json").is_file()
    ids = tokenizer(TRIAL, add_special_tokens=False, verbose=False)["input_ids"]
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    in_file = raw.encode(TRIAL, add_special_tokens=False).ids
    ids, in_file = (tokenizer.convert_ids_to_tokens(pieces) for pieces in (ids, in_file))
    num_equal = sum((Counter(ids) & Counter(in_file)).values())
    most = max(len(ids), len(in_file))
    if num_equal < most / 2 or not has_settings and num_equal < most - 4:  # the first word may follow a blank
        reason = (
            f"{type(tokenizer).__name__} makes other subwords than tokenizer.json: {ids[4:12]}, not {in_file[4:12]}"
        )
        remedy = "correct tokenizer_class in" if has_settings else "copy"
        raise ValueError(f"{name}: {reason}; {remedy} tokenizer_config.json")


def check_reloaded(name: str, tokenizer, config) -> None:
    """Saves the tokenizer to a temporary folder and loads it as users of the trained model do.

    Raises ValueError if it then makes other subwords: infer.py would tag with them. Some classes make their parts
    from tokenizer_config.json, not from what was saved. config: of the encoder, which selects the class.
    """
    special = set(tokenizer.all_special_tokens)
    added = [token for token in tokenizer.get_added_vocab() if token not in special][:100]  # words of the user
    texts = [TRIAL, f" {TRIAL.upper()}  \u00e9\ufb01\u2167", " ".join(added)]
    with one_line_errors(name), tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reloaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in texts:
        before, after = (t(text)["input_ids"] for t in (tokenizer, reloaded))
        if before != after:
            before, after = tokenizer.convert_ids_to_tokens(before), reloaded.convert_ids_to_tokens(after)
            raise ValueError(
                f"{name}: its tokenizer ({type(tokenizer).__name__}) makes other subwords when it is saved and loaded "
                f"again: {after[:8]}, not {before[:8]}; a tokenizer.json of PreTrainedTokenizerFast is needed"
            )


class Comparison(NamedTuple):
    """Of the subwords of words with those of running text."""

    num_words: int
    num_equal: int
    example: str  # of a word that differs: "'word' is a b, in running text a"

    @property
    def share(self) -> float:
        return self.num_equal / max(1, self.num_words)

    def __str__(self) -> str:
        return f"{self.share:.1%} of words are split into subwords as in running text"


def compare(sentences: list[list[str]], tokenizer) -> Comparison:
    """Compares the subwords of every word with those of the sentence's words joined by one blank.

    A word without subwords in running text, which training replaces by the unknown token, counts as equal.
    """
    texts = [" ".join(words) for words in sentences]
    in_text = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    num_words, num_equal, example = sum(map(len, sentences)), 0, ""
    for i, (words, ours) in enumerate(zip(sentences, encode(sentences, tokenizer))):
        kept = ~np.isin(ours.word_ids, ours.dropped)
        input_ids = np.array(in_text["input_ids"][i], np.int32)
        if np.array_equal(ours.input_ids[kept], input_ids):
            num_equal += len(words)
            continue
        # A subword belongs to the word of its last character, a blank to the word after it.
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        last = np.array([end - 1 for _, end in in_text["offset_mapping"][i]])
        word_ids = np.searchsorted(ends, last, side="right")
        for j, word in enumerate(words):
            pair = ours.input_ids[kept & (ours.word_ids == j)], input_ids[word_ids == j]
            if np.array_equal(*pair):
                num_equal += 1
            elif not example:
                ids = (" ".join(tokenizer.convert_ids_to_tokens(subwords.tolist())) for subwords in pair)
                example = "{!r} is {}, in running text {}".format(word, *(text or "nothing" for text in ids))
    return Comparison(num_words, num_equal, example)


def compare_sample(split, tokenizer) -> Comparison:
    """compare() for up to NUM_SENTENCES sentences, evenly spaced in the split, and up to NUM_WORDS words of them."""
    rows = np.unique(np.linspace(0, len(split.sentences) - 1, NUM_SENTENCES).astype(int))
    most = max(20, NUM_WORDS // len(rows))  # words of a sentence
    return compare([words[:most] for words in split.sentences[rows.tolist()]["tokens"] if words], tokenizer)


def warn_of_other_subwords(split, tokenizer, log) -> None:
    """Logs a warning if words of the corpus do not have the subwords that the encoder was pretrained on.

    Without tokenizer_config.json, BertTokenizer lowercases, also with the vocabulary of a cased encoder.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer and normalizer.normalize_str("A") == "a":
        words = [token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens]
        share = sum(token.lower() != token for token in words) / max(1, len(words))
        if share > CAPITALS:
            remedy = "if the encoder is cased, set do_lower_case to false in tokenizer_config.json"
            log(f"warning: the tokenizer lowercases, but {share:.0%} of its vocabulary has capitals: {remedy}")
    found = compare_sample(split, tokenizer)
    if found.num_words and found.share < ENOUGH:
        log(
            f"warning: {split.name}: only {found} ({found.example}); the encoder was pretrained on running text, and "
            "transformers' pipeline reads it: expect lower scores, and others from the pipeline than from infer.py"
        )
