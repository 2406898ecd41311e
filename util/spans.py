"""Spans of a text, as annotation tools write them, become tags of its words.

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
from typing import NamedTuple

import regex


class Annotated(NamedTuple):
    """A sentence. Its tags may be ids. Without words: a record that is left out."""

    words: list
    tags: list
    notes: list[str]


class Span(NamedTuple):
    """A span as it is in the file."""

    start: int
    end: int
    type: str
    quoted: str | None  # its text, where the tool writes it


Range = tuple[int, int]  # characters from the first one to before the second one


def shown(value) -> str:
    return json.dumps(value, default=repr)[:80]


# --------------------------------------------------------------------------------------------------
# Words


# Every punctuation mark, symbol and Han character is a word. Han is written as ranges, since \p{Han} contains
# marks of repetition too, which belong to the word before. \x1c-\x1f are white space for str, not for regex.
_ALONE = r"\p{P}\p{S}\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_WORD = regex.compile(rf"[{_ALONE}]|[^\s\x1c-\x1f{_ALONE}]+")


def split_words(text: str) -> list[Range]:
    """Text -> (start, end) of its words. "in 東京!" has the words "in", "東", "京", "!"."""
    return [match.span() for match in _WORD.finditer(text)]


# --------------------------------------------------------------------------------------------------
# One span

# start_char is before start, which is the index of a word where both are given.
_OFFSETS = (
    ("start_char", "end_char"),
    ("start_offset", "end_offset"),
    ("start_position", "end_position"),
    ("start", "end"),
    ("begin", "end"),
)
_TYPES = ("label", "labels", "type", "tag", "entity_group", "entity_type", "category", "entity")

_TIMES = ("timeserieslabels", "timelinelabels", "videolabels", "audiolabels")  # controls of Label Studio


def parse_span(value) -> Span:
    """A span in the format of any of the tools. Raises ValueError if it is invalid."""
    start, end, label, quoted = None, None, None, None
    if isinstance(value, (list, tuple)) and len(value) == 3:
        start, end, label = value
        if type(start) is type(end) is int and type(label) is str and label:
            return Span(start, end, label, None)
        if isinstance(end, str) and isinstance(label, list):
            problem = "is an entity as brat writes it, [id, type, [[start, end]]]"
            raise ValueError(f"{shown(value)} {problem}; write [start, end, type]")
    elif isinstance(value, dict):
        name = _type_key(value)
        start, end = next(((value[a], value[b]) for a, b in _OFFSETS if a in value and b in value), (None, None))
        label, quoted = value.get(name), value.get("text")
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if is_control(name):
            _check_region(name, value, start, end)
        if name == "entity" and re.match("[BIESLUO]-", str(label)):
            raise ValueError(f"{shown(value)} tags a piece of a word; group them, aggregation_strategy='simple'")
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
        raise ValueError(f"{shown(value)} is not a span: [start, end, label]")
    return Span(start, end, label, quoted if isinstance(quoted, str) else None)


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

    def cuts_a_word(self, start: int, end: int) -> bool:
        whole = self.whole_words(start, end)
        return whole is not None and (whole[0] < start or end < whole[1])

    def locate(self, span: Span, utf16: bool) -> Range:
        """The characters of a span. Raises ValueError if it lies outside, or is another text than it quotes."""
        start, end, _, quoted = span
        if utf16 and self.from_utf16:
            start, end = self._from_utf16(span, self.from_utf16)
        if not 0 <= start < end <= len(self.text):
            raise ValueError(f"{_name(span)} lies outside the text of {len(self.text)} characters")
        if quoted is None:
            return start, end
        found = self._match(start, end, quoted)
        if found is None:
            problem = f"is {self.text[start:end]!r} in the text, but annotated as {quoted!r}"
            raise ValueError(f"{_name(span)} {problem}")
        return found

    @staticmethod
    def _from_utf16(span: Span, borders: dict[int, int]) -> Range:
        length = max(borders)
        if not 0 <= span.start < span.end <= length:
            raise ValueError(f"{_name(span)} lies outside the text of {length} UTF-16 units")
        if span.start not in borders or span.end not in borders:
            raise ValueError(f"{_name(span)} cuts a character of two UTF-16 units")
        return borders[span.start], borders[span.end]

    def _match(self, start: int, end: int, quoted: str) -> Range | None:
        """The span that a quoted text and its offsets agree on. None: they disagree.

        They may differ in white space, and in parts of words: an editor can extend a selection to whole words in
        one of them, "nna" to "Anna". The one that does not cut a word counts.
        """
        covered = self.text[start:end]
        if quoted == covered or _without_blanks(quoted) == _without_blanks(covered):
            return start, end
        whole = self.whole_words(start, end)
        pieces = quoted.split()
        if whole is None or not pieces:
            return None
        pattern = re.compile(r"\s+".join(map(re.escape, pieces)))
        for match in pattern.finditer(self.text, *whole):
            if self.whole_words(*match.span()) == whole:
                offsets_cut = self.cuts_a_word(start, end)
                return match.span() if offsets_cut and match.span() == whole else (start, end)
        return None

    def fits(self, span: Span, utf16: bool) -> bool:
        """Whether offsets are plausible: they cover the text that the span quotes, or else whole words."""
        try:
            start, end = self.locate(span._replace(quoted=None), utf16)
        except ValueError:
            return False
        if span.quoted is not None:
            return _without_blanks(span.quoted) == _without_blanks(self.text[start:end])
        return bool(self.words_inside(start, end)) and not self.cuts_a_word(start, end)

    def has_two_readings(self, span: Span) -> bool:
        """Whether an offset means another character if it counts UTF-16 units."""
        borders = self.from_utf16
        return bool(borders) and (borders.get(span.start) != span.start or borders.get(span.end) != span.end)


def _name(span: Span) -> str:
    return f"span {span.start}-{span.end} {span.type}"


def _without_blanks(text: str) -> str:
    return re.sub(r"\\[nrt]|\s", "", text)  # line ends are also written as a backslash and an n


# --------------------------------------------------------------------------------------------------
# All spans of a text or of its words


def spans_to_tags(text: str, spans: list, widen: bool, utf16: bool) -> Annotated:
    """A text and its spans as they are in the file -> words and IOB2 tags.

    widen: a span that cuts a word is extended to the whole word, with a note. Otherwise it is an error.
    utf16: offsets count UTF-16 units.
    """
    source, notes, located = TextOfSpans(text), [], []
    for value in spans:
        span = parse_span(value)
        start, end = source.locate(span, utf16)
        if isinstance(value, dict) and value.get("entity") == span.type == text[start:end]:
            raise ValueError(f"{shown(value)} has no type: its entity is its text")
        if utf16 and source.has_two_readings(span):
            notes.append(f"spans counted in UTF-16 units: {text[start:end]!r}")
        located.append((start, end, span.type, span))
    words = source.words
    tags = ["O"] * len(words)
    free = 0  # the first word after the spans so far
    if len(located) > 1:
        located.sort(key=operator.itemgetter(0, 1, 2))
    for start, end, label, span in located:
        inside = source.words_inside(start, end)
        if not inside:
            raise ValueError(f"{_name(span)} holds no word")
        first, last = words[inside[0]], words[inside[-1]]
        if first[0] < start or end < last[1]:
            if not widen:
                cut_start, cut_end = first if first[0] < start else last
                problem = f"{_name(span)} {text[start:end]!r} cuts the word {text[cut_start:cut_end]!r}"
                raise ValueError(f"{problem}; fix it, or pass --widen_spans")
            notes.append(f"spans widened to whole words: {text[start:end]!r} to {text[first[0] : last[1]]!r}")
        if inside.start < free:
            raise ValueError(f"{_name(span)} {text[start:end]!r} overlaps another one")
        _tag(tags, inside, label)
        free = inside.stop
    return Annotated([text[start:end] for start, end in words], tags, notes)


def token_spans_to_tags(words: list, spans: list, end_is_inclusive: bool) -> Annotated:
    """Words and spans of their numbers, from 0 -> words and IOB2 tags."""
    tags = ["O"] * len(words)
    for value in spans:
        start, end, label, _ = parse_span(value)
        what, end = f"span {start}-{end} {label}", end + end_is_inclusive
        if not 0 <= start < end <= len(words):
            raise ValueError(f"{what} lies outside the {len(words)} words")
        inside = range(start, end)
        if any(tags[i] != "O" for i in inside):
            raise ValueError(f"{what} {shown(words[start:end])} overlaps another one")
        _tag(tags, inside, label)
    return Annotated(list(words), tags, [])


def _tag(tags: list[str], inside: range, label: str) -> None:
    tags[inside.start] = f"B-{label}"
    if len(inside) > 1:
        tags[inside.start + 1 : inside.stop] = [f"I-{label}"] * (len(inside) - 1)
