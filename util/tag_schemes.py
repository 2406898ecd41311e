"""Tag schemes (IOB1, IOB2, BIOES, BILOU, IOE1, IOE2) and the entities that their tags mark.

    words   Peter   met  Maria   Silva   Li      .        Peter is a person; so are Maria Silva and Li.
    IOB1    I-PER   O    I-PER   I-PER   B-PER   O        B- only directly after an entity of the same type
    IOB2    B-PER   O    B-PER   I-PER   B-PER   O        B- on the first word of every entity
    BIOES   S-PER   O    B-PER   E-PER   S-PER   O        E- on the last word, S- on a single word
    BILOU   U-PER   O    B-PER   L-PER   U-PER   O        the same with L- (last) and U- (unit)
    IOE1    I-PER   O    I-PER   E-PER   I-PER   O        E- only directly before an entity of the same type
    IOE2    E-PER   O    I-PER   E-PER   E-PER   O        E- on the last word of every entity

Functions take flat arrays: tags [W] holds the label id of every word, and lengths [S] the number of words of
every sentence. No entity extends over a sentence border. A label_list may have any spelling of util/tag_spelling.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from util.tag_spelling import canonical, entity_type, may_have_prefix, missing_b_labels, prefix

NUM_EXAMPLES = 3  # positions that are kept for messages
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES", "BILOU": "BILU", "IOE1": "IE", "IOE2": "IE"}
PLAIN = "plain"  # no scheme: every tag is scored for itself
FLAG_VALUES = ("IOB1", "IOB2", "BIOES", "BILOU", PLAIN)  # of --tag_scheme


def make_label_list(tags: set[str], names: tuple[str, ...] | None = None) -> list[str]:
    """The label names by id: the names of the source in their order, else the tags, O first, then by type."""
    labels = list(names or sorted(tags))
    if all(label.isdigit() for label in labels):  # ids without names
        return labels if names else sorted(labels, key=int)
    # IOB1 may contain I-X without B-X, but its conversion to IOB2 needs B-X.
    labels += missing_b_labels(labels)
    if names:
        return labels
    keys = {}
    for label, name in zip(labels, canonical(labels)):
        keys[label] = (name != "O", name.partition("-")[2] or name, label)
    return sorted(labels, key=keys.__getitem__)


def continuation_ids(label_list: list[str]) -> np.ndarray:
    """[C] the label of a word's later subwords with --label_all_tokens: I-X for B-X by name, else the same."""
    return _with_prefix("I", "B", canonical(label_list))


def _with_prefix(new: str, old: str, names: list[str]) -> np.ndarray:
    """[C] the label id of every label with one prefix replaced by another; its own id where there is no such label."""
    ids = {name: i for i, name in enumerate(names)}
    replaced = [f"{new}-{entity_type(name)}" if prefix(name) == old else name for name in names]
    return np.array([ids.get(name, i) for i, name in enumerate(replaced)])


# --------------------------------------------------------------------------------------------------
# Entities, and conversions between IOB1 and IOB2


class _Context(NamedTuple):
    prefixes: np.ndarray  # [W] one letter per word; O for tags without prefix
    prev_prefixes: np.ndarray  # [W] of the word before; O at the start of a sentence
    same_type_as_prev: np.ndarray  # [W] whether the word before has the same entity type

    @property
    def after_same_type(self) -> np.ndarray:
        """[W] whether the word before belongs to an entity of the same type."""
        return self.same_type_as_prev & (self.prev_prefixes != b"O")


def _context(tags: np.ndarray, lengths: np.ndarray, names: list[str]) -> _Context:
    prefix_of_label = np.array([prefix(name) or "O" for name in names], "S1")
    types = [entity_type(name) if prefix(name) else "" for name in names]
    type_of_label = np.unique(types, return_inverse=True)[1]
    prefixes, type_ids = prefix_of_label[tags], type_of_label[tags]
    # np.roll moves the last word to the front, but the first word of every sentence is set to O below.
    prev_prefixes = np.roll(prefixes, 1)
    sentence_starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    prev_prefixes[sentence_starts] = b"O"
    return _Context(prefixes, prev_prefixes, type_ids == np.roll(type_ids, 1))


def entity_starts(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] -> [W] whether an entity starts at the word, as seqeval counts entities."""
    context = _context(tags, lengths, canonical(label_list))
    inside = np.isin(context.prefixes, [b"I", b"E", b"L"])
    continues = inside & np.isin(context.prev_prefixes, [b"B", b"I"]) & context.same_type_as_prev
    return (context.prefixes != b"O") & ~continues


def entity_spans(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] -> [E, 2] the first word of every entity and the word after its last."""
    outside = np.array([not prefix(name) for name in canonical(label_list)])
    starts = entity_starts(tags, lengths, label_list)
    # An entity ends at the next start or at the next O: B I O B -> borders 0 2 3, spans (0, 2) and (3, 4).
    borders = np.flatnonzero(starts | outside[tags])
    ends = np.append(borders, len(tags))[1:]
    is_entity = starts[borders]
    return np.stack([borders[is_entity], ends[is_entity]], axis=1)


def iob1_to_iob2(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] in IOB1 -> [W] in IOB2: B- on the first word of every entity. label_list has B-X for I-X."""
    names = canonical(label_list)
    context = _context(tags, lengths, names)
    is_start = (context.prefixes == b"I") & ~context.after_same_type
    return np.where(is_start, _with_prefix("B", "I", names)[tags], tags)


def iob2_to_iob1(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] in IOB2 -> [W] in IOB1: B- only directly after an entity of the same type."""
    names = canonical(label_list)
    context = _context(tags, lengths, names)
    is_start = (context.prefixes == b"B") & ~context.after_same_type
    return np.where(is_start, _with_prefix("I", "B", names)[tags], tags)


# --------------------------------------------------------------------------------------------------
# The scheme of a corpus: a function of how often each tag occurs between which others


@dataclass
class SchemeEvidence:
    """What decides the scheme of a corpus. The evidence of parts of a corpus, or of splits, is added with +.

    The keys are "tag before, tag, tag after" of the words whose tag may have a prefix, joined by BETWEEN. All other
    tags, and the borders of sentences, are empty. Keys are names, since label ids differ between parts.
    """

    num_words: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    positions: dict[str, list[int]] = field(default_factory=dict)  # of the first words, ascending

    def __add__(self, other: "SchemeEvidence") -> "SchemeEvidence":
        total = SchemeEvidence(self.num_words + other.num_words, dict(self.counts), dict(self.positions))
        for key, count in other.counts.items():
            following = [self.num_words + position for position in other.positions[key]]
            total.counts[key] = total.counts.get(key, 0) + count
            total.positions[key] = (total.positions.get(key, []) + following)[:NUM_EXAMPLES]
        return total


BETWEEN = "\x1f"  # the unit separator


def scheme_evidence(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> SchemeEvidence:
    """The evidence of whole sentences."""
    names = ["", *(label for label in label_list if may_have_prefix(label) and BETWEEN not in label)]
    ids = {name: i for i, name in enumerate(names)}
    number_of_label = np.array([ids.get(label, 0) for label in label_list], np.int64)
    numbers = number_of_label[tags]  # [W] into names
    words = np.flatnonzero(numbers)
    is_first = np.zeros(len(tags) + 1, bool)  # words of sentences; also the position after the last word
    is_first[np.cumsum(lengths)] = True
    is_first[0] = True
    before = np.where(is_first[words], 0, numbers[words - 1])
    after = np.where(is_first[words + 1], 0, np.append(numbers, 0)[words + 1])
    codes = (before * len(names) + numbers[words]) * len(names) + after
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.argsort(inverse.astype(np.uint16) if len(found) < 2**16 else inverse, kind="stable")
    ends = np.cumsum(counts)
    evidence = SchemeEvidence(len(tags))
    for code, count, end in zip(found.tolist(), counts.tolist(), ends.tolist()):
        rest, after_id = divmod(code, len(names))
        key = BETWEEN.join([names[rest // len(names)], names[rest % len(names)], names[after_id]])
        evidence.counts[key] = count
        evidence.positions[key] = words[order[end - count : end][:NUM_EXAMPLES]].tolist()
    return evidence


class _Word(NamedTuple):
    """A word with a prefix between two others, and the words that are like it."""

    key: str
    label: str  # as in the file
    prefix: str
    after_same_type: bool  # the word before belongs to an entity of the same type
    before_same_type: bool
    continues: bool  # the entity of the word before, as seqeval counts entities
    is_continued: bool
    num_words: int


def _words(evidence: SchemeEvidence, label_list: list[str]) -> Iterator[_Word]:
    names = dict(zip(label_list, canonical(label_list))) | {"": ""}
    for key, count in evidence.counts.items():
        label = key.split(BETWEEN)[1]
        before, name, after = (names[part] for part in key.split(BETWEEN))
        if prefix(name):
            same = [bool(prefix(other)) and entity_type(other) == entity_type(name) for other in (before, after)]
            continues = same[0] and prefix(name) in "IEL" and prefix(before) in "BI"
            is_continued = same[1] and prefix(name) in "BI" and prefix(after) in "IEL"
            yield _Word(key, label, prefix(name), same[0], same[1], continues, is_continued, count)


def _is_violation(word: _Word, scheme: str) -> bool:
    if word.prefix not in PREFIXES[scheme]:
        return True
    if scheme == "IOB1":
        return word.prefix == "B" and not word.after_same_type
    if scheme == "IOB2":
        return word.prefix == "I" and not word.continues
    if scheme == "IOE1":
        return word.prefix == "E" and not word.before_same_type
    if scheme == "IOE2":
        return word.prefix == "I" and not word.is_continued
    return (word.prefix in "IEL" and not word.continues) or (word.prefix in "BI" and not word.is_continued)


class Scheme(NamedTuple):
    name: str | None  # None: plain tags
    num_violations: int
    first_violations: list[int]  # word indices in the corpus


def decide_scheme(evidence: SchemeEvidence, label_list: list[str], name: str | None = None) -> Scheme:
    """The scheme of a corpus, by the majority of the evidence, and the words that violate it.

    name: the scheme, if it is known, or PLAIN. Tags are plain if a label has no prefix.
    """
    if name == PLAIN or not all(label == "O" or prefix(label) for label in canonical(label_list)):
        return Scheme(None, 0, [])
    words = list(_words(evidence, label_list))
    name = name or _majority(words, label_list)
    violations = [word for word in words if _is_violation(word, name)]
    positions = sorted(position for word in violations for position in evidence.positions[word.key])
    return Scheme(name, sum(word.num_words for word in violations), positions[:NUM_EXAMPLES])


def _majority(words: list[_Word], label_list: list[str]) -> str:
    def num_violations(scheme: str) -> int:
        return sum(word.num_words for word in words if _is_violation(word, scheme))

    letters = {prefix(name) for name in canonical(label_list)} - {""}
    if "E" in letters and letters <= {"I", "E"}:
        return min("IOE2", "IOE1", key=num_violations)
    used = {letter: sum(word.num_words for word in words if word.prefix == letter) for letter in "ESLU"}
    num_ends = used["E"] + used["S"] + used["L"] + used["U"]
    name = "BILOU" if used["L"] + used["U"] > used["E"] + used["S"] else "BIOES"
    iob = min("IOB2", "IOB1", key=num_violations)
    # An entity without its E- breaks BIOES at two words. A few S- in an IOB2 corpus are errors of that corpus.
    return name if num_ends and num_violations(name) <= 2 * num_violations(iob) else iob


def corpus_scheme(evidence: Iterable[SchemeEvidence], label_list: list[str], flag: str | None = None) -> str:
    """The scheme of all splits together, or that of --tag_scheme. Raises ValueError if the flag does not fit."""
    plain = [name for name in canonical(label_list) if name != "O" and not prefix(name)]
    if flag and flag != PLAIN and plain:
        raise ValueError(f"--tag_scheme {flag}: {plain[0]} is not a tag of {flag}")
    return flag or decide_scheme(sum(evidence, SchemeEvidence()), label_list).name or PLAIN


def counts_as_iob2(label_counts: np.ndarray, evidence: SchemeEvidence, label_list: list[str]) -> tuple[np.ndarray, int]:
    """label_counts [C] of tags in IOB1 and their evidence -> [C] after iob1_to_iob2, and how many words it changes."""
    label_counts, num_changed = label_counts.copy(), 0
    new_ids = _with_prefix("B", "I", canonical(label_list)).tolist()
    for word in _words(evidence, label_list):
        if word.prefix == "I" and not word.after_same_type:
            old_id = label_list.index(word.label)
            label_counts[old_id] -= word.num_words
            label_counts[new_ids[old_id]] += word.num_words
            num_changed += word.num_words
    return label_counts, num_changed
