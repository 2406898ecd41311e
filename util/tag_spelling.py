"""Spellings of tags: M-PER (BMES), B_PER, PER-B, b-per and B are read like B-PER, and written back as they are.

canonical(["O", "B_PER", "I_PER"])             -> ["O", "B-PER", "I-PER"]
canonical(["B-PER", "M-PER", "E-PER", "O"])    -> ["B-PER", "I-PER", "E-PER", "O"]
canonical(["B", "I", "O"])                     -> ["B-_", "I-_", "O"]         # _: the type that seqeval gives it
canonical(["NOUN", "VERB"])                    -> ["NOUN", "VERB"]
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple


def prefix(label: str) -> str:
    """A canonical label -> its prefix: B-PER -> B. A tag without prefix (O, NOUN) has the empty string."""
    return label[0] if label[:1] in set("BIESLU") and label[1:2] == "-" else ""


def entity_type(label: str) -> str:
    """A canonical label -> its type: B-PER -> PER. A tag without prefix (O, NOUN) is its own type."""
    return label[2:] if prefix(label) else label


class _Parts(NamedTuple):
    letter: str  # of the prefix, in upper case; M and W are those of BMES and BMEOW
    type: str

    @property
    def canonical(self) -> str:
        letter = {"M": "I", "W": "S"}.get(self.letter, self.letter)
        return f"{letter}-{self.type or '_'}"


class _Spelling(NamedTuple):
    pattern: re.Pattern  # with the groups letter and type
    outside: tuple[str, ...] = ("O",)
    needs_outside: bool = True  # without an O, tags of parts of speech may look alike


def _spellings() -> list[_Spelling]:
    found = []
    for letters, outside in (("[BIESLUMW]", ("O",)), ("[bieslumw]", ("o", "O"))):
        letter, kind = f"(?P<letter>{letters})", "(?P<type>.+)"
        found += [_Spelling(re.compile(letter + re.escape(sep) + kind), outside) for sep in "-_:./|"]
        found += [_Spelling(re.compile(kind + sep + letter), outside) for sep in "-_"]
    found[0] = found[0]._replace(needs_outside=False)
    return found


_STANDARD = _Spelling(re.compile("(?P<letter>[BIESLU])-(?P<type>.*)", re.DOTALL))
_BARE = _Spelling(re.compile("(?P<letter>[BIESLUMW])(?P<type>)"), needs_outside=False)
_BARE_LOWER = _Spelling(re.compile("(?P<letter>[bieslumw])(?P<type>)"), ("o",))
_SPELLINGS = [*_spellings(), _BARE, _BARE_LOWER]
_ANY_SPELLING = re.compile("[BIESLUMWbieslumw]|[BIESLUMWbieslumw][-_:./|].*|.+[-_][BIESLUMWbieslumw]", re.DOTALL)


def may_have_prefix(label: str) -> bool:
    """Whether a label has a prefix in any spelling. The other labels decide whether this is its spelling."""
    return _ANY_SPELLING.fullmatch(label) is not None


def canonical(label_list: Iterable[str]) -> list[str]:
    """The labels as B-PER, with the prefixes B I E S L U, whatever their spelling; O is O.

    Labels that do not all have the same spelling (plain tags such as NOUN, mixed tags) are returned as they are.
    """
    labels = tuple(label_list)
    parts = _parts(labels)
    return list(labels) if parts is None else [p.canonical if p else "O" for p in parts]


@functools.lru_cache(maxsize=1000)
def _parts(labels: tuple[str, ...]) -> tuple[_Parts | None, ...] | None:
    """The parts of every label, None for O. None if the labels do not have one spelling."""
    parts = _match(_STANDARD, labels)
    if parts is not None:
        return parts
    for spelling in _SPELLINGS:
        parts = _match(spelling, labels)
        if parts is not None and _is_plausible(spelling, parts):
            return parts
    return None


def _match(spelling: _Spelling, labels: tuple[str, ...]) -> tuple[_Parts | None, ...] | None:
    matches = [None if label in spelling.outside else spelling.pattern.fullmatch(label) for label in labels]
    if any(match is None and label not in spelling.outside for match, label in zip(matches, labels)):
        return None
    return tuple(_Parts(match["letter"].upper(), match["type"]) if match else None for match in matches)


def _is_plausible(spelling: _Spelling, parts: tuple[_Parts | None, ...]) -> bool:
    """Whether the letters are prefixes and no part of a plain tag."""
    letters = {p.letter for p in parts if p}
    if len({p and p.canonical for p in parts}) < len(parts):  # I-PER beside M-PER, o beside O
        return False
    if letters & set("MW") and not letters & set("BE"):
        return False
    if spelling in (_BARE, _BARE_LOWER):
        return "B" in letters and bool(letters & set("IME")) and (None in parts or not spelling.needs_outside)
    return bool(letters & set("BIM")) and (None in parts or not spelling.needs_outside)


# --------------------------------------------------------------------------------------------------
# What depends on the spelling of a file


def _letters(label_list: Iterable[str]) -> set[str]:
    return {p.letter for p in _parts(tuple(label_list)) or () if p}


def spelling_example(label_list: list[str]) -> tuple[str, str] | None:
    """A label in another spelling, and how it is read: (M-PER, I-PER). None if all labels are canonical."""
    pairs = [pair for pair in zip(label_list, canonical(label_list)) if pair[0] != pair[1] and pair[1] != "O"]
    return pairs[0] if pairs else None


def scheme_name(scheme: str, label_list: list[str]) -> str:
    """The name of a scheme with the letters of these labels: BIOES may be BMES or BMEOW."""
    letters = _letters(label_list)
    if scheme != "BIOES" or not letters & set("MW"):
        return scheme
    return "BMEOW" if "W" in letters else "BMES"


def missing_b_labels(label_list: list[str]) -> list[str]:
    """B-X, in the spelling of the labels, for every I-X without one: IOB1 files lack it where it does not occur.

    BMES, and schemes of I and E alone, lack nothing.
    """
    if "M" in _letters(label_list) or _letters(label_list) == {"I", "E"}:
        return []
    names = canonical(label_list)
    missing = [label for label, name in zip(label_list, names) if prefix(name) == "I" and f"B{name[1:]}" not in names]
    return sorted(map(_b_for_i, missing))


def _b_for_i(label: str) -> str:
    """I-PER, I_PER, PER-I, i-per -> B-PER, B_PER, PER-B, b-per."""
    is_first = re.match("[Ii][-_:./|]", label)
    position = 0 if is_first else len(label) - 1
    letter = "B" if label[position].isupper() else "b"
    return label[:position] + letter + label[position + 1 :]


def has_iob1_labels(label_list: list[str]) -> bool:
    """Whether the labels of a model are those of an IOB1 corpus: I-X without B-X, and no prefixes but B and I."""
    return _letters(label_list) <= {"B", "I"} and bool(missing_b_labels(label_list))


def check_same_spelling(source_name: str, tags: Iterable[str], model_labels: list[str]) -> None:
    """Raises ValueError if the tags of a file are entities, and so are the labels of a model, but not both together.

    They would be scored as plain tags, none of which the model predicts: B_PER in the file, B-PER in the model.
    """

    def are_entities(labels: Iterable[str]) -> bool:
        prefixes = [prefix(name) for name in canonical(labels) if name != "O"]
        return all(prefixes) and bool(prefixes)

    of_file = sorted({*tags} - {"O", "o"})
    if not (are_entities([*of_file, "O"]) and are_entities(model_labels)):
        return
    if not are_entities(dict.fromkeys([*model_labels, *of_file])):
        own, other = (next(label for label in labels if label not in ("O", "o")) for labels in (of_file, model_labels))
        raise ValueError(
            f"{source_name}: tags such as {own} are spelled otherwise than the labels of the model, such as {other}; "
            "replace them in the file"
        )
