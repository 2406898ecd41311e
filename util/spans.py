"""Spans of a text, as annotation tools write them, and the words that they cover.

    [3, 7, "LOC"]                                   Doccano, spaCy
    {"start": 3, "end": 7, "label": "LOC"}          Prodigy; other tools have other names for the keys
    {"start": 3, "end": 7, "text": "Oslo", "labels": ["LOC"]}       Label Studio, with the text as a check

Offsets count characters. Tools that run in a browser may count UTF-16 units instead, in which a character above
U+FFFF, such as an emoji, counts twice.
"""

import bisect
import json
import operator
import re
import unicodedata
from typing import NamedTuple

import regex


class Span(NamedTuple):
    """A span as it is in the file."""

    start: int
    end: int
    type: str
    quoted: str | None  # its text, where the tool writes it
    quoted_by: str = "text"  # the key of the text


Range = tuple[int, int]  # characters from the first one to before the second one


def shown(value) -> str:
    return json.dumps(value, default=repr)[:80]


# --------------------------------------------------------------------------------------------------
# Words


# Every punctuation mark, symbol and Han character is a word. Han is written as ranges, since \p{Han} contains
# marks of repetition too, which belong to the word before. \x1c-\x1f are white space for str, not for regex.
_ALONE = r"\p{P}\p{S}\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_WORD = regex.compile(rf"[{_ALONE}]|[^\s\x1c-\x1f{_ALONE}]+")


# The same for ASCII text. re is twice as fast as regex.
_ASCII_WORD = re.compile(r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+")


def split_words(text: str) -> list[Range]:
    """Text -> (start, end) of its words. "in 東京!" has the words "in", "東", "京", "!"."""
    pattern = _ASCII_WORD if text.isascii() else _WORD
    return [match.span() for match in pattern.finditer(text)]


# --------------------------------------------------------------------------------------------------
# One span

# start_char is before start, which is the index of a word where both are given.
_OFFSETS = (
    ("start_char", "end_char"),
    ("start_offset", "end_offset"),
    ("start_position", "end_position"),
    ("start_pos", "end_pos"),
    ("start", "end"),
    ("begin", "end"),
)
_TYPES = ("label", "labels", "type", "tag", "entity_group", "entity_type", "category", "entity")
# "word" may be normalized by a tokenizer. "value" may also be something else, such as a synonym.
_QUOTED = ("text", "mention", "quote", "surface", "word", "value")
# A type such as B-PER is that of a tag. E-MAIL is a type.
_PREFIXED = re.compile(r"[BI]-.|[ESLUMW]-(?i:per|pers|person|loc|location|org|organi[sz]ation|misc|gpe)$")
_TIMES = ("timeserieslabels", "timelinelabels", "videolabels", "audiolabels")  # controls of Label Studio


def parse_span(value) -> Span:
    """A span in the format of any of the tools. Raises ValueError if it is invalid."""
    start, end, label, quoted_by = None, None, None, ""
    if isinstance(value, (list, tuple)) and len(value) == 3:
        start, end, label = value
        if type(start) is type(end) is int and type(label) is str and label and label[1:2] != "-":
            return Span(start, end, label, None)
        if isinstance(end, str) and isinstance(label, list):
            problem = "is an entity as brat writes it, [id, type, [[start, end]]]"
            raise ValueError(f"{shown(value)} {problem}; write [start, end, type]")
    elif isinstance(value, dict):
        name = _type_key(value)
        start, end = _offsets(value)
        label = value.get(name)
        if is_control(name):
            _check_region(name, value, start, end)
        label = _only_type(label, value) if isinstance(label, list) else label
        quoted_by = next((key for key in _QUOTED if isinstance(value.get(key), str)), "")
        if name == "entity" and re.match("[BIESLUO]-", str(label)):
            raise ValueError(f"{shown(value)} tags a piece of a word; group them, aggregation_strategy='simple'")
    if type(label) is int and type(start) is type(end) is int:
        problem = "its type is a number, as of a ClassLabel, whose names are unknown; write the name"
        raise ValueError(f"{shown(value)} is not a span: {problem}")
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
        raise ValueError(f"{shown(value)} is not a span: [start, end, label]")
    if label[1:2] == "-" and _PREFIXED.match(label):
        way_out = f"write one span per entity, with the type {label[2:]!r}"
        raise ValueError(f"{shown(value)} is a span with the prefix of a tag, {label[:2]!r}; {way_out}")
    return Span(start, end, label, value[quoted_by] if quoted_by else None, quoted_by)


def _offsets(value: dict) -> tuple:
    return next(((value[a], value[b]) for a, b in _OFFSETS if a in value and b in value), (None, None))


def _only_type(types: list, value: dict):
    """The type of a list of one. Flair writes it as {"value": type, "confidence": ...}."""
    if len(types) != 1:
        raise ValueError(f"{shown(value)} is not a span: it has {len(types)} types, not one")
    return types[0].get("value") if isinstance(types[0], dict) else types[0]


def looks_like_span(value) -> bool:
    """Whether a value has offsets, and perhaps a type."""
    if isinstance(value, dict):
        return _offsets(value) != (None, None)
    is_triple = isinstance(value, (list, tuple)) and len(value) == 3
    return is_triple and type(value[0]) is type(value[1]) is int


def list_of_spans(values):
    """{"start": [0], "end": [4], "label": ["PER"]}, as datasets has a sequence of spans -> a list of spans."""
    if not (isinstance(values, dict) and _offsets(values) != (None, None)):
        return values
    if not all(isinstance(column, list) for column in values.values()):
        return values
    if len(set(map(len, values.values()))) > 1:
        raise ValueError(f"{shown(values)}: its lists of starts, ends and types are of different lengths")
    return [dict(zip(values, row)) for row in zip(*values.values())]


def _type_key(value: dict) -> str:
    """The key of the type: one of _TYPES, or the name of a control of Label Studio, such as hypertextlabels."""
    return next((name for name in _TYPES if name in value), next(filter(is_control, value), ""))


def is_control(key) -> bool:
    return isinstance(key, str) and key.endswith("labels")


def _check_region(control: str, region: dict, start, end) -> None:
    """Raises ValueError for a region of Label Studio that is not a range of characters."""
    if control in _TIMES or "channel" in region:
        kind = "times"
    elif isinstance(start, str) and "/" in start:
        kind = "places in HTML by XPaths"
    elif "startOffset" in region:
        kind = "parts of a dialogue by the number of the paragraph"
    elif control == "labels" or type(start) is type(end) is int:
        return
    else:
        kind = "regions of an image or a recording"
    example = "" if start is None else f" ({shown(start)})"
    way_out = "label plain text with <Labels> and <Text>, or convert it to [start, end, type]"
    raise ValueError(f"{control} marks {kind}{example}, not characters of a text; {way_out}")


def is_region(value) -> bool:
    """Whether a span is a region as Label Studio writes it."""
    return (
        isinstance(value, dict)
        and "start" in value
        and any(is_control(key) and isinstance(labels, list) for key, labels in value.items())
    )


# --------------------------------------------------------------------------------------------------
# Characters and UTF-16 units

ASTRAL = re.compile("[\U00010000-\U0010ffff]")  # characters of two UTF-16 units


def utf16_offsets(text: str) -> dict[int, int]:
    """UTF-16 offset -> character offset, for every border between two characters.

    "😀a" has the borders 0, 2, 3, which are the characters 0, 1, 2.
    """
    offsets, unit = {}, 0
    for i, character in enumerate(text):
        offsets[unit] = i
        unit += 2 if character > "\uffff" else 1
    return offsets | {unit: len(text)}


class TextOfSpans:
    """A text with what is needed to read its spans."""

    def __init__(self, text: str):
        self.text, self.words = text, split_words(text)
        self.from_utf16 = utf16_offsets(text) if not text.isascii() and ASTRAL.search(text) else None

    def words_inside(self, start: int, end: int) -> range:
        """The numbers of the words that a range covers or cuts."""
        first = bisect.bisect_right(self.words, start, key=operator.itemgetter(1))
        return range(first, bisect.bisect_left(self.words, end, first, key=operator.itemgetter(0)))

    def whole_words(self, start: int, end: int) -> Range | None:
        """The range of the words that a range covers or cuts. None: there are none."""
        inside = self.words_inside(start, end)
        return (self.words[inside[0]][0], self.words[inside[-1]][1]) if inside else None

    def locate(self, span: Span, utf16: bool) -> Range:
        """The characters of a span. Raises ValueError if it lies outside, or is another text than it quotes."""
        start, end = span.start, span.end
        if utf16 and self.from_utf16:
            start, end = self._from_utf16(span, self.from_utf16)
        if not 0 <= start < end <= len(self.text):
            raise ValueError(f"{name_of(span)} lies outside the text of {len(self.text)} characters")
        if span.quoted is None or not self._is_checked(span):
            return start, end
        found = self._match(start, end, span)
        if found is None:
            problem = f"is {self.text[start:end]!r} in the text, but annotated as {span.quoted!r}"
            raise ValueError(f"{name_of(span)} {problem}")
        return found

    @staticmethod
    def _from_utf16(span: Span, borders: dict[int, int]) -> Range:
        length = max(borders)
        if not 0 <= span.start < span.end <= length:
            raise ValueError(f"{name_of(span)} lies outside the text of {length} UTF-16 units")
        if span.start not in borders or span.end not in borders:
            raise ValueError(f"{name_of(span)} cuts a character of two UTF-16 units")
        return borders[span.start], borders[span.end]

    def _is_checked(self, span: Span) -> bool:
        """Whether the text that a span quotes has to agree with its offsets. "value" is a text if it does so."""
        if span.quoted_by != "value":
            return True
        borders = self.from_utf16 or {}
        ranges = [(span.start, span.end), (borders.get(span.start, 0), borders.get(span.end, 0))]
        return any(_is_quoted(span, self.text[slice(*found)]) for found in ranges)

    def _match(self, start: int, end: int, span: Span) -> Range | None:
        """The span that a quoted text and its offsets agree on. None: they disagree.

        They may differ in white space, and in parts of words: an editor can extend a selection to whole words in
        one of them, "nna" to "Anna". The one that does not cut a word counts.
        """
        if _is_quoted(span, self.text[start:end]):
            return start, end
        whole = self.whole_words(start, end)
        pieces = (span.quoted or "").split()
        if whole is None or not pieces:
            return None
        pattern = re.compile(r"\s+".join(map(re.escape, pieces)))
        for match in pattern.finditer(self.text, *whole):
            if self.whole_words(*match.span()) == whole:
                offsets_cut = whole[0] < start or end < whole[1]
                return match.span() if offsets_cut and match.span() == whole else (start, end)
        return None

    def plausibility(self, span: Span, utf16: bool) -> int:
        """4: a reading covers the text that the span quotes, or else whole words. 3: so it does, with blanks.

        2: it cuts one word. 1: it cuts two. 0: it is impossible.
        """
        try:
            start, end = self.locate(span._replace(quoted=None), utf16)
        except ValueError:
            return 0
        if span.quoted is not None and self._is_checked(span):
            if _is_quoted(span, self.text[start:end]):
                return 4
            return 0 if self._match(start, end, span) is None else 3
        whole = self.whole_words(start, end)
        if whole is None:
            return 0
        num_cut = (whole[0] < start) + (end < whole[1])
        return 3 - num_cut if num_cut else 3 + (whole == (start, end))

    def has_two_readings(self, span: Span) -> bool:
        """Whether an offset means another character if it counts UTF-16 units."""
        borders = self.from_utf16
        return bool(borders) and (borders.get(span.start) != span.start or borders.get(span.end) != span.end)


def name_of(span: Span) -> str:
    return f"span {span.start}-{span.end} {span.type}"


def _is_quoted(span: Span, covered: str) -> bool:
    """Whether a span quotes the text that it covers."""
    if span.quoted == covered:
        return True
    normal = _of_tokenizer if span.quoted_by == "word" else _without_blanks
    return normal(covered) == normal(span.quoted or "")


def _of_tokenizer(text: str) -> str:
    """Without blanks, case and accents, which tokenizers remove, and without their marks of words."""
    letters = unicodedata.normalize("NFKD", re.sub(r"\s|##|[\u2581\u0120]", "", text))
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _without_blanks(text: str) -> str:
    return re.sub(r"\\[nrt]|\s", "", text)  # line ends are also written as a backslash and an n
