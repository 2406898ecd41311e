"""Records with annotations of any tool become sentences: lists of words and tags.

    {"tokens": ["in", "Oslo"], "tags": ["O", "B-LOC"]}      words and tags, as lists or separated by blanks
    {"text": "in Oslo", "label": [[3, 7, "LOC"]]}           a text and spans of its characters
    {"tokenized_text": ["in", "Oslo"], "ner": [[1, 1, "LOC"]]}      words and spans of words: GLiNER, SpERT

Spans are read as Prodigy, Doccano, Label Studio and spaCy write them (util/spans.py).
"""

import functools
import operator
from typing import NamedTuple

import regex
from datasets import Features, List, Value

from util.annotation_tools import OF_SPANS, find_annotations
from util.columns import Columns, label_columns, pick_column, pick_columns, text_columns  # noqa: F401 - part of
from util.list_cells import are_plain
from util.spans import TextOfSpans, looks_like_span, name_of, parse_span, shown, split_words  # noqa: F401 - the interface


class Annotated(NamedTuple):
    """A sentence. Its tags may be ids. Without words: a record that is left out."""

    words: list
    tags: list
    notes: list[str]


FEATURES = Features(
    {
        "tokens": List(Value("string")),
        "tags": List(Value("string")),
        "lines": List(Value("int32")),  # of the source: one per word, or one for all words, or none
        "notes": List(Value("string")),  # "what was done: to what"
    }
)


# Columns of annotation tools, in which words and tags are not simply two lists.
_OF_TOOLS = {"annotations", "completions", "spans", "answer", "tokenized_text", "relations", "sentences", "paragraphs"}


class _Plain(NamedTuple):
    """The columns of a record whose names tell what they hold."""

    text: str
    labels: str
    is_only: bool  # no other column may hold the tags or the spans of a text


@functools.lru_cache
def _plain_columns(names: tuple[str, ...], columns: Columns) -> _Plain | None:
    """The columns of words and of tags. None: it depends on more than their names, see find_annotations.

    Cached, since all records of a file have the same columns.
    """
    if columns.regions or not _OF_TOOLS.isdisjoint(names):
        return None
    try:
        text, labels = pick_columns(names, columns)
    except ValueError:
        return None
    usual = {name.lower() for name in label_columns(columns)}
    return _Plain(text, labels, bool(columns.labels) or sum(name.lower() in usual for name in names) == 1)


def words_and_tags(record: dict, columns: Columns) -> Annotated:
    """Converts one record. Raises ValueError without its position."""
    utf16 = columns.span_offsets == "utf16"
    plain = _plain_columns(tuple(record), columns)
    if plain is not None:  # the usual records, without a search
        text, labels = record[plain.text], record[plain.labels]
        if type(text) is type(labels) is list:
            if len(text) == len(labels) and not (text and type(text[0]) is dict):
                return Annotated(text, labels, [])
        elif type(text) is str and type(labels) is list and plain.is_only:
            if labels and type(labels[0]) in (list, dict):
                return spans_to_tags(text, labels, columns.widen_spans, utf16)
        elif type(text) is type(labels) is str and plain.is_only and are_plain(text, labels):
            if plain.labels.lower() not in OF_SPANS:
                return _same_number(_split_at_blanks(text), _split_at_blanks(labels))
    found = find_annotations(record, columns)
    if found.kind == "left out":
        return Annotated([], [], list(found.notes))
    if found.kind == "spans":
        annotated = spans_to_tags(found.text, found.labels, columns.widen_spans, utf16)
        return annotated._replace(notes=[*found.notes, *annotated.notes])
    if found.kind in ("GLiNER", "SpERT"):
        return token_spans_to_tags(found.text, found.labels, end_is_inclusive=found.kind == "GLiNER")
    words, tags = _split_at_blanks(found.text), _split_at_blanks(found.labels)
    for values, what in ((words, "words"), (tags, "tags")):
        if not isinstance(values, list):
            raise ValueError(f"no {what}: {shown(values)} where a list should be")
    return _same_number(words, tags)


def _same_number(words: list, tags: list) -> Annotated:
    if len(words) != len(tags):
        if tags and isinstance(tags[0], (list, dict)):
            raise ValueError(_no_tag(tags[0]))
        raise ValueError(f"{len(words)} words but {len(tags)} tags")
    return Annotated(words, tags, [])


def _no_tag(value) -> str:
    problem = f"a tag is {shown(value)}"
    if not looks_like_span(value):
        return problem
    gliner = 'as GLiNER writes them, {"tokenized_text": [words], "ner": [[first, last, type]]}'
    spert = '{"tokens", "entities", "relations"} as SpERT does'
    return f"{problem}; spans beside words are read {gliner}, or {spert}; spans of characters need the text"


_NO_BLANKS = regex.compile(r"[^ \t\r\n]+")  # words may hold other white space, such as no-break spaces


def _split_at_blanks(values):
    return _NO_BLANKS.findall(values) if isinstance(values, str) else values


def as_record(value) -> dict:
    """A value of a JSON file -> a record. spaCy's [text, {"entities": [...]}] becomes {"text", "entities"}.

    Raises ValueError if it has no columns.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        if isinstance(value[1].get("entities"), list):
            return {"text": value[0], "entities": value[1]["entities"]}
    raise ValueError(f"{shown(value)[:40]} is not an object with columns")


def describe_record(record: dict, columns: Columns) -> str:
    """How a record is read, for a log line: "words 'tokens', tags 'ner_tags'". Raises ValueError."""
    found = find_annotations(record, columns)
    counted = found.kind == "spans" and columns.span_offsets == "utf16"
    return found.description + (", counted in UTF-16 units" if counted else "")


# --------------------------------------------------------------------------------------------------
# Spans -> tags


def spans_to_tags(text: str, spans: list, widen: bool, utf16: bool) -> Annotated:
    """A text and its spans as they are in the file -> words and IOB2 tags.

    widen: a span that cuts a word is extended to the whole word, with a note. Otherwise it is an error.
    utf16: offsets count UTF-16 units.
    """
    source, notes, located = TextOfSpans(text), [], []
    for value in spans:
        span = parse_span(value)
        if span.type == "O":  # marks nothing
            continue
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
            raise ValueError(f"{name_of(span)} holds no word")
        first, last = words[inside[0]], words[inside[-1]]
        if first[0] < start or end < last[1]:
            if not widen:
                cut_start, cut_end = first if first[0] < start else last
                problem = f"{name_of(span)} {text[start:end]!r} cuts the word {text[cut_start:cut_end]!r}"
                raise ValueError(f"{problem}; fix it, or pass --widen_spans")
            notes.append(f"spans widened to whole words: {text[start:end]!r} to {text[first[0] : last[1]]!r}")
        if inside.start < free:
            raise ValueError(f"{name_of(span)} {text[start:end]!r} overlaps another one")
        _tag(tags, inside, label)
        free = inside.stop
    return Annotated([text[start:end] for start, end in words], tags, notes)


def token_spans_to_tags(words: list, spans: list, end_is_inclusive: bool) -> Annotated:
    """Words and spans of their numbers, from 0 -> words and IOB2 tags."""
    tags = ["O"] * len(words)
    for value in spans:
        start, end, label, *_ = parse_span(value)
        if label == "O":
            continue
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


# --------------------------------------------------------------------------------------------------
# Records -> sentences


def source_position(source_name: str, lines: list[int], row: int, word: int = 0) -> str:
    """The position of a word in messages: "file.conll:12", or "name: row 7" for row=6 of a format without lines."""
    if not lines:
        return f"{source_name}: row {row + 1}"
    return f"{source_name}:{lines[min(word, len(lines) - 1)]}"


def sentences(records, source_name: str, names: tuple[str, ...] | None, columns: Columns, first_row: int = 0):
    """Yields a dict with the keys of FEATURES for every (lines, record). Raises ValueError with a position.

    names: the label names by id, if the source has them. first_row: the number of records before these.
    """
    if columns.refusal:
        raise ValueError(f"{source_name}: {columns.refusal}")
    for row, (lines, record) in enumerate(records, first_row):
        word = 0
        try:
            words, tags, notes = words_and_tags(record, columns)
            if not (_is_text(words) and _is_text(tags) and "" not in tags):
                for word, (token, tag) in enumerate(zip(words, tags)):
                    tags[word] = _check_word(token, tag, names)
        except ValueError as error:
            raise ValueError(f"{source_position(source_name, lines, row, word)}: {error}") from None
        yield {"tokens": words, "tags": tags, "lines": lines, "notes": notes}


def _is_text(values: list) -> bool:
    """Whether all values are strings that UTF-8 can encode. Faster than _check_word for every word."""
    try:
        "".join(values).encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return True


def _check_word(token, tag, names: tuple[str, ...] | None) -> str:
    """Returns the name of the tag. Raises ValueError."""
    if not isinstance(token, str):
        raise ValueError(f"a word is {shown(token)}")
    _check_encodes(token)
    if type(tag) is int and tag >= 0:
        if names and tag >= len(names):
            raise ValueError(f"tag {tag} is none of the {len(names)} labels")
        tag = names[tag] if names else str(tag)
    elif not isinstance(tag, str) or not tag:
        raise ValueError(_no_tag(tag))
    _check_encodes(tag)
    return tag


def _check_encodes(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        problem = f"{shown(text)} has half of a surrogate pair ({half}), which is no character"
        raise ValueError(f"{error}: {problem}") from None
