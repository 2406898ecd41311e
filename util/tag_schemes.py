"""Tag schemes (IOB1, IOB2, BIOES, BILOU) and the entities that their tags mark.

    words   Peter   met  Maria   Silva   Li      .        Peter is a person; so are Maria Silva and Li.
    IOB1    I-PER   O    I-PER   I-PER   B-PER   O        B- only directly after an entity of the same type
    IOB2    B-PER   O    B-PER   I-PER   B-PER   O        B- on the first word of every entity
    BIOES   S-PER   O    B-PER   E-PER   S-PER   O        E- on the last word, S- on a single word
    BILOU   U-PER   O    B-PER   L-PER   U-PER   O        the same with L- (last) and U- (unit)

Functions take flat arrays: tags [W] holds the label id of every word, and lengths [S] the number of words of
every sentence. No entity extends over a sentence border.
"""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

NUM_EXAMPLES = 3  # positions that are kept for messages


def prefix(label: str) -> str:
    """B-PER -> B. A tag without prefix (O, NOUN) has the empty string."""
    return label[0] if label[:1] in set("BIESLU") and label[1:2] == "-" else ""


def entity_type(label: str) -> str:
    """B-PER -> PER. A tag without prefix (O, NOUN) is its own type."""
    return label[2:] if prefix(label) else label


def make_label_list(tags: set[str], names: tuple[str, ...] | None = None) -> list[str]:
    """The label names by id: the names of the source in their order, else the tags, O first, then by type."""
    labels = set(names or tags)
    if all(label.isdigit() for label in labels):  # ids without names
        return list(names) if names else sorted(labels, key=int)
    # IOB1 may contain I-X without B-X, but its conversion to IOB2 needs B-X.
    missing = {f"B-{label[2:]}" for label in labels if label.startswith("I-")} - labels
    if names:
        return [*names, *sorted(missing)]
    return sorted(labels | missing, key=lambda label: (label != "O", label.partition("-")[2] or label, label))


def continuation_ids(label_list: list[str]) -> np.ndarray:
    """[C] the label of a word's later subwords with --label_all_tokens: I-X for B-X by name, else the same."""
    ids = {label: i for i, label in enumerate(label_list)}
    names = [f"I-{entity_type(label)}" if prefix(label) == "B" else label for label in label_list]
    return np.array([ids.get(name, i) for i, name in enumerate(names)])


class _Context(NamedTuple):
    prefixes: np.ndarray  # [W] one letter per word; O for tags without prefix
    prev_prefixes: np.ndarray  # [W] of the word before; O at the start of a sentence
    same_type_as_prev: np.ndarray  # [W] whether the word before has the same entity type


def _context(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> _Context:
    prefix_of_label = np.array([prefix(label) or "O" for label in label_list], "S1")
    types = [entity_type(label) if prefix(label) else "" for label in label_list]
    type_of_label = np.unique(types, return_inverse=True)[1]
    prefixes, type_ids = prefix_of_label[tags], type_of_label[tags]
    # np.roll moves the last word to the front, but the first word of every sentence is set to O below.
    prev_prefixes = np.roll(prefixes, 1)
    sentence_starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    prev_prefixes[sentence_starts] = b"O"
    return _Context(prefixes, prev_prefixes, type_ids == np.roll(type_ids, 1))


def _starts(context: _Context) -> np.ndarray:
    inside = np.isin(context.prefixes, [b"I", b"E", b"L"])
    continues = inside & np.isin(context.prev_prefixes, [b"B", b"I"]) & context.same_type_as_prev
    return (context.prefixes != b"O") & ~continues


def entity_starts(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] (not IOB1) -> [W] whether an entity starts at the word, as seqeval counts entities."""
    return _starts(_context(tags, lengths, label_list))


def entity_spans(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] (not IOB1) -> [E, 2] the first word of every entity and the word after its last."""
    outside = np.array([not prefix(label) for label in label_list])
    starts = entity_starts(tags, lengths, label_list)
    # An entity ends at the next start or at the next O: B I O B -> borders 0 2 3, spans (0, 2) and (3, 4).
    borders = np.flatnonzero(starts | outside[tags])
    ends = np.append(borders, len(tags))[1:]
    is_entity = starts[borders]
    return np.stack([borders[is_entity], ends[is_entity]], axis=1)


def iob1_to_iob2(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> np.ndarray:
    """tags [W] in IOB1 -> [W] in IOB2: B- on the first word of every entity. label_list has B-X for I-X."""
    context = _context(tags, lengths, label_list)
    after_same_type = context.same_type_as_prev & (context.prev_prefixes != b"O")
    b_labels = [f"B-{entity_type(label)}" if prefix(label) == "I" else label for label in label_list]
    b_ids = np.array([label_list.index(label) for label in b_labels])
    return np.where((context.prefixes == b"I") & ~after_same_type, b_ids[tags], tags)


@dataclass
class SchemeEvidence:
    """What decides the scheme of a corpus. The evidence of consecutive parts of a corpus is added with +."""

    num_words: int = 0
    prefixes: str = ""  # those in use, sorted; O for tags without prefix
    not_iob1: int = 0  # B- tags that do not follow an entity of the same type
    bad_starts: int = 0  # I-, E- or L- tags that start an entity
    bad_tags: int = 0  # these, and B- or I- tags that the next word does not continue (invalid in BIOES)
    first_bad_starts: list[int] = field(default_factory=list)  # word indices in the part, ascending
    first_bad_tags: list[int] = field(default_factory=list)

    def __add__(self, other: "SchemeEvidence") -> "SchemeEvidence":
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        total["prefixes"] = "".join(sorted(set(total["prefixes"])))
        for name in ("first_bad_starts", "first_bad_tags"):
            following = [self.num_words + index for index in getattr(other, name)]
            total[name] = (getattr(self, name) + following)[:NUM_EXAMPLES]
        return SchemeEvidence(**total)


def scheme_evidence(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> SchemeEvidence:
    """The evidence of whole sentences."""
    context = _context(tags, lengths, label_list)
    prefixes, starts = context.prefixes, _starts(context)
    bad_starts = np.isin(prefixes, [b"I", b"E", b"L"]) & starts
    continues = (prefixes != b"O") & ~starts
    continued_by_next = np.append(continues[1:], False)
    bad_tags = bad_starts | (np.isin(prefixes, [b"B", b"I"]) & ~continued_by_next)
    after_same_type = context.same_type_as_prev & (context.prev_prefixes != b"O")
    return SchemeEvidence(
        num_words=len(tags),
        prefixes=b"".join(np.unique(prefixes)).decode(),
        not_iob1=int(np.count_nonzero((prefixes == b"B") & ~after_same_type)),
        bad_starts=int(np.count_nonzero(bad_starts)),
        bad_tags=int(np.count_nonzero(bad_tags)),
        first_bad_starts=np.flatnonzero(bad_starts)[:NUM_EXAMPLES].tolist(),
        first_bad_tags=np.flatnonzero(bad_tags)[:NUM_EXAMPLES].tolist(),
    )


class Scheme(NamedTuple):
    name: str | None  # None: plain tags
    num_violations: int
    first_violations: list[int]  # word indices in the corpus


def decide_scheme(evidence: SchemeEvidence, label_list: list[str]) -> Scheme:
    """The scheme of a corpus, and the words that violate it. The labels alone decide that tags are plain."""
    if not all(label == "O" or prefix(label) for label in label_list):
        return Scheme(None, 0, [])
    if set(evidence.prefixes) & set("ESLU"):
        name = "BILOU" if set(evidence.prefixes) & set("LU") else "BIOES"
        return Scheme(name, evidence.bad_tags, evidence.first_bad_tags)
    if evidence.bad_starts and not evidence.not_iob1:
        return Scheme("IOB1", 0, [])
    return Scheme("IOB2", evidence.bad_starts, evidence.first_bad_starts)
