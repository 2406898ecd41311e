"""How many entities are correct, predicted and gold, by sentence and type. Precision, recall and F1 follow from sums.

Functions take flat arrays, as in util/tag_schemes.py: label ids [W] of all words, and the words per sentence [S].
With plain tags (scheme None), every word counts as an entity of one word, and its tag as the type.
"""

from typing import NamedTuple

import numpy as np
from seqeval.scheme import BILOU, IOB2, IOBES, IOE1, IOE2, Entities

from util.tag_schemes import entity_spans
from util.tag_spelling import canonical, entity_type, prefix

MAX_GROUPS = 5000  # a larger split is counted in groups of consecutive sentences, which bounds the memory
STRICT_SCHEMES = {"IOB2": IOB2, "BIOES": IOBES, "BILOU": BILOU, "IOE1": IOE1, "IOE2": IOE2}  # of seqeval


class Counts(NamedTuple):
    """G sentences, or groups of sentences, and T types. The last axis is correct, predicted, gold."""

    types: list[str]  # the T types that occur, in gold or predicted entities
    entities: np.ndarray  # [G, T, 3]
    words: np.ndarray  # [G, 1, 3]; the last two numbers are equal
    is_plain: bool  # the overall score is the macro average of the types, else the micro average


def count(
    gold: np.ndarray, predicted: np.ndarray, lengths: np.ndarray, label_list: list[str], scheme: str | None,
    strict: bool = False,
) -> Counts:  # fmt: skip
    """gold [W] and predicted [W] label ids, words per sentence [S] -> Counts, whose sums are those of seqeval."""
    types, _ = _types(label_list, scheme)
    num_groups, num_types = min(len(lengths), MAX_GROUPS), len(types)
    group_of_sentence = np.arange(len(lengths)) * num_groups // max(1, len(lengths))
    group = np.repeat(group_of_sentence, lengths)  # [W]

    def by_group_and_type(entities: np.ndarray) -> np.ndarray:
        cells = group[entities[:, 0]] * num_types + entities[:, 2]
        return np.bincount(cells, minlength=num_groups * num_types).reshape(num_groups, num_types)

    of_gold, of_predicted = (typed_spans(tags, lengths, label_list, scheme, strict)[0] for tags in (gold, predicted))
    predicted_at = np.zeros((len(gold), 2), np.int64)  # end and type of the predicted entity that starts at a word
    predicted_at[of_predicted[:, 0]] = of_predicted[:, 1:]
    correct = of_gold[(predicted_at[of_gold[:, 0]] == of_gold[:, 1:]).all(axis=1)]
    entities = np.stack([by_group_and_type(side) for side in (correct, of_predicted, of_gold)], axis=2)
    occurs = entities.any(axis=(0, 2))
    num_words = np.bincount(group, minlength=num_groups)
    num_correct_words = np.bincount(group[gold == predicted], minlength=num_groups)
    words = np.stack([num_correct_words, num_words, num_words], axis=1)[:, None]
    return Counts([name for name, keep in zip(types, occurs) if keep], entities[:, occurs], words, not scheme)


def typed_spans(
    tags: np.ndarray, lengths: np.ndarray, label_list: list[str], scheme: str | None, strict: bool = False
) -> tuple[np.ndarray, list[str]]:
    """tags [W] -> entities [E, 3]: first word, the word after the last, type; and the names of the types."""
    types, type_of_label = _types(label_list, scheme)
    if not scheme:
        words = np.arange(len(tags))
        spans = np.stack([words, words + 1], axis=1)
    elif strict:
        spans = _strict_spans(tags, lengths, label_list, scheme)
    else:
        spans = entity_spans(tags, lengths, label_list)
    return np.column_stack([spans, type_of_label[tags[spans[:, 0]]]]), types


def _types(label_list: list[str], scheme: str | None) -> tuple[list[str], np.ndarray]:
    """The names of all types, sorted (plain tags: in the order of the labels); and [C] the type number of a label."""
    if not scheme:
        return list(label_list), np.arange(len(label_list))
    names = canonical(label_list)
    types = sorted({entity_type(name) for name in names if prefix(name)})
    numbers = {name: i for i, name in enumerate(types)}
    return types, np.array([numbers[entity_type(name)] if prefix(name) else -1 for name in names])


def _strict_spans(tags: np.ndarray, lengths: np.ndarray, label_list: list[str], scheme: str) -> np.ndarray:
    """tags [W] -> [E, 2] the first word of every entity and the word after its last, by seqeval's strict mode."""
    names = np.array(canonical(label_list), dtype=object)
    ends = np.cumsum(lengths)
    sentences = [part.tolist() for part in np.split(names[tags], ends[:-1])]
    spans = []
    for start, found in zip((ends - lengths).tolist(), Entities(sentences, STRICT_SCHEMES[scheme]).entities):
        spans += [(start + entity.start, start + entity.end) for entity in found]
    return np.array(spans, np.int64).reshape(-1, 2)


def tag_scores(gold: np.ndarray, predicted: np.ndarray, label_list: list[str]) -> dict[str, dict]:
    """Precision, recall and F1 of every tag that occurs; 0 where nothing is predicted or nothing is gold."""
    size = len(label_list)
    correct = np.bincount(gold[gold == predicted], minlength=size)
    num_predicted = np.bincount(predicted, minlength=size)
    support = np.bincount(gold, minlength=size)
    columns = {
        "precision": correct / np.maximum(num_predicted, 1),
        "recall": correct / np.maximum(support, 1),
        "f1": 2 * correct / np.maximum(num_predicted + support, 1),
        "support": support,
    }
    occurring = np.flatnonzero(num_predicted + support)
    return {label_list[i]: {key: column[i] for key, column in columns.items()} for i in occurring}
