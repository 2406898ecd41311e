"""Is this the vocabulary of the encoder? transformers makes an empty one where the files of a tokenizer are missing."""

import json

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedConfig

from util.tokenizer import TRIAL


def text_config(config):
    """The configuration of the part that reads text. Most models have one configuration, composite ones several."""
    encoder = getattr(config, "encoder", None)  # T5Gemma has one of the decoder as well
    return (encoder if isinstance(encoder, PreTrainedConfig) else config).get_text_config()


def check_vocabulary(name: str, tokenizer) -> None:
    """Raises ValueError if the vocabulary consists of special tokens."""
    special = {*map(str, tokenizer.added_tokens_decoder.values()), *tokenizer.all_special_tokens, "▁", ""}
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if not vocabulary.keys() - special:
        files = "no tokenizer files (tokenizer.json, vocab.txt, ...) that transformers can read"
        raise ValueError(f"{name}: {files}; copy those of the encoder into it")


def check_merges(name: str, tokenizer) -> None:
    """Raises ValueError if most of the vocabulary cannot be reached: words would be split into characters."""
    if not isinstance(tokenizer.backend_tokenizer.model, BPE):
        return
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.get_added_vocab())
    num_merged = sum(len(token) > 1 and token[0] != "<" and token not in special for token in model["vocab"])
    if len(model["merges"]) < num_merged / 2:  # each makes one subword of two
        reason = f"{len(model['merges'])} merges for {num_merged} subwords: merges.txt is incomplete"
        raise ValueError(f"{name}: the tokenizer has {reason}; download it again")


def describe(tokenizer) -> list[int]:
    """The ids of a trial text, which differ between tokenizers. train.py saves them with the model."""
    return tokenizer(TRIAL, verbose=False)["input_ids"]


def check_trained(name: str, tokenizer, config) -> None:
    """Raises ValueError if train.py trained the model with another tokenizer."""
    trained = getattr(config, "trial_subwords", None)
    if trained and trained != describe(tokenizer):
        raise ValueError(f"{name}: its tokenizer is not the one that it was trained with; copy the files of train.py")


def check_rows(name: str, tokenizer, config) -> None:
    """Raises ValueError if the tokenizer returns ids for which the encoder has no embedding.

    Special tokens that were added and that no text is given, such as [MASK], are removed: a text that contains one of
    them is split like any other.
    """
    num_rows = getattr(text_config(config), "vocab_size", None)
    backend = tokenizer.backend_tokenizer
    if not num_rows or backend.get_vocab_size() <= num_rows and max(backend.get_vocab().values()) < num_rows:
        return
    beyond = {token: i for token, i in backend.get_vocab().items() if i >= num_rows}
    in_use = {*tokenizer("a")["input_ids"], tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder
    for token, i in sorted(beyond.items(), key=lambda item: item[1]):
        if i in in_use or i not in added or not added[i].special:
            raise ValueError(
                f"{name}: the tokenizer has {len(beyond)} ids above the {num_rows} rows of the encoder's embedding, "
                f"such as {i} for {token!r}; copy the encoder's own tokenizer files, or resize the embedding"
            )
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in beyond]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
