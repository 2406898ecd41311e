"""Records with annotations of any tool become sentences: lists of words and tags.

    {"tokens": ["in", "Oslo"], "tags": ["O", "B-LOC"]}      words and tags, as lists or separated by blanks
    {"text": "in Oslo", "label": [[3, 7, "LOC"]]}           a text and spans of its characters
    {"tokenized_text": ["in", "Oslo"], "ner": [[1, 1, "LOC"]]}      words and spans of words: GLiNER, SpERT

Spans are read as Prodigy, Doccano, Label Studio and spaCy write them (util/spans.py).
"""

import functools

import regex
from datasets import Features, List, Value

from util.annotation_tools import find_annotations
from util.columns import Columns, label_columns, pick_column, pick_columns, text_columns  # noqa: F401 - part of
from util.spans import Annotated, shown, spans_to_tags, split_words, token_spans_to_tags  # noqa: F401 - the interface

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


@functools.lru_cache
def _plain_columns(names: tuple[str, ...], columns: Columns) -> tuple[str, str] | None:
    """The columns of words and of tags. None: it depends on more than their names, see find_annotations.

    Cached, since all records of a file have the same columns.
    """
    if columns.regions or not _OF_TOOLS.isdisjoint(names):
        return None
    try:
        return pick_columns(names, columns)
    except ValueError:
        return None


def words_and_tags(record: dict, columns: Columns) -> Annotated:
    """Converts one record. Raises ValueError without its position."""
    utf16 = columns.span_offsets == "utf16"
    plain = _plain_columns(tuple(record), columns)
    if plain is not None:  # the usual records, without a search
        text, labels = record[plain[0]], record[plain[1]]
        if type(text) is type(labels) is list:
            if len(text) == len(labels) and not (text and type(text[0]) is dict):
                return Annotated(text, labels, [])
        elif type(text) is str and type(labels) is list:
            if labels and type(labels[0]) in (list, dict):
                return spans_to_tags(text, labels, columns.widen_spans, utf16)
        elif type(text) is type(labels) is str and "[" not in text and "[" not in labels:
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
        raise ValueError(f"{len(words)} words but {len(tags)} tags")
    return Annotated(words, tags, [])


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
    """Returns the name of the tag. Raises ValueError; str.encode does so for half of a surrogate pair."""
    if not isinstance(token, str):
        raise ValueError(f"a word is {shown(token)}")
    token.encode()
    if type(tag) is int and tag >= 0:
        if names and tag >= len(names):
            raise ValueError(f"tag {tag} is none of the {len(names)} labels")
        tag = names[tag] if names else str(tag)
    elif not isinstance(tag, str) or not tag:
        raise ValueError(f"a tag is {shown(tag)}")
    tag.encode()
    return tag
