"""Records with annotations of any tool become sentences: lists of words and tags.

    {"tokens": ["in", "Oslo"], "tags": ["O", "B-LOC"]}      words and tags, as lists or separated by blanks
    {"text": "in Oslo", "label": [[3, 7, "LOC"]]}           a text and spans of its characters

Spans are read as Prodigy, Doccano and Label Studio write them.
"""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import regex
from datasets import Features, List, Value

FEATURES = Features(
    {
        "tokens": List(Value("string")),
        "tags": List(Value("string")),
        "lines": List(Value("int32")),  # of the source: one per word, or one for all words, or none
        "notes": List(Value("string")),  # "what was done: to what"
    }
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a record hold the words and the tags."""

    text: str | None = None  # --text_column_name
    labels: str | None = None  # --label_column_name
    task: str = "ner"  # --task_name
    widen_spans: bool = False  # --widen_spans


def text_columns(columns: Columns) -> list[str]:
    if columns.text:
        return [columns.text]
    return ["tokens", "words", "token", "word", "text", "sentence"]


def label_columns(columns: Columns) -> list[str]:
    if columns.labels:
        return [columns.labels]
    names = [f"{columns.task}_tags", "tags", "labels", "tag", columns.task, "spans", "entities", "label"]
    return [*names, "upos"] if columns.task == "pos" else names


def pick_column(columns: Iterable[str], flag: str, names: list[str]) -> str:
    """The first of the names that is a column (case is ignored). A column number, from 1, is also a name."""
    columns = list(columns)
    lower = [column.lower() for column in columns]
    for name in names:
        if name.lower() in lower:
            return columns[lower.index(name.lower())]
    if names[0].isdigit() and 1 <= int(names[0]) <= len(columns):
        return columns[int(names[0]) - 1]
    wanted, existing = " or ".join(map(repr, names)), ", ".join(columns)
    raise ValueError(f"no column {wanted} among {existing}; name it with {flag}")


@functools.lru_cache
def _pick_columns(names: tuple[str, ...], columns: Columns, is_prodigy: bool) -> tuple[str, str]:
    """The columns of words and of tags. Cached, since all records of a file have the same columns."""
    # The tokens of Prodigy are objects, from another tokenizer.
    text_column = pick_column(names, "--text_column_name", ["text"] if is_prodigy else text_columns(columns))
    label_column = pick_column(names, "--label_column_name", label_columns(columns))
    if text_column == label_column:
        raise ValueError(f"column {text_column!r} cannot be both words and tags")
    return text_column, label_column


def as_record(value) -> dict:
    raise ValueError(f"{json.dumps(value)[:40]} is not an object with columns")


class Annotated(NamedTuple):
    """A sentence. Its tags may be ids. Without words: a record that is left out."""

    words: list
    tags: list
    notes: list[str]


def words_and_tags(record: dict, columns: Columns) -> Annotated:
    """Converts one record. Raises ValueError without its position."""
    if "annotations" in record and isinstance(record.get("data"), dict):
        annotation = _label_studio_spans(record["annotations"])
        if annotation is None:
            return Annotated([], [], ["left out, as it has no annotation: a task of Label Studio"])
        record = record["data"] | {"spans": annotation}
    is_prodigy = isinstance(record.get("spans"), list) and "text" in record and not columns.text
    if is_prodigy and record.get("answer", "accept") != "accept":
        return Annotated([], [], [f"left out, as its answer is not accept: {record['answer']}"])
    text_column, label_column = _pick_columns(tuple(record), columns, is_prodigy)
    text, labels = record[text_column], record[label_column]
    if isinstance(text, str) and isinstance(labels, list):
        if not any(isinstance(label, (str, int)) for label in labels):
            return spans_to_tags(text, [_span(label, text) for label in labels], columns.widen_spans)
    words = _split_at_blanks(text)
    tags = _split_at_blanks(labels)
    for values, what in ((words, "words"), (tags, "tags")):
        if not isinstance(values, list):
            raise ValueError(f"no {what}: {_shown(values)} where a list should be")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words but {len(tags)} tags")
    return Annotated(words, tags, [])


_NO_BLANKS = regex.compile(r"[^ \t\r\n]+")  # words may hold other white space, such as no-break spaces


def _split_at_blanks(values):
    return _NO_BLANKS.findall(values) if isinstance(values, str) else values


def _shown(value) -> str:
    return json.dumps(value, default=repr)[:80]


# --------------------------------------------------------------------------------------------------
# Spans of characters


def _label_studio_spans(annotations) -> list[dict] | None:
    """The spans of a task's first annotation that was not cancelled. None: it has none."""
    try:
        valid = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        if not valid:
            return None
        values = [result.get("value", {}) for result in valid[0]["result"]]
        return [value for value in values if "labels" in value]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its annotations are not as Label Studio writes them") from None


def _span(span, text: str) -> tuple[int, int, str]:
    """A span in the format of any of the tools -> (start, end, type). Raises ValueError if it is invalid."""
    start, end, label, quoted = None, None, None, None
    if isinstance(span, list) and len(span) == 3:  # Doccano
        start, end, label = span
    elif isinstance(span, dict):  # Prodigy, Label Studio, Doccano with relations
        start = span.get("start", span.get("start_offset"))
        end = span.get("end", span.get("end_offset"))
        label = span.get("label", span.get("labels"))
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        quoted = span.get("text")
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
        raise ValueError(f"{_shown(span)} is not a span: [start, end, label]")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"span {start}-{end} {label} lies outside the text of {len(text)} characters")
    covered = text[start:end]
    if quoted is not None and quoted != covered:
        raise ValueError(f"span {start}-{end} {label} is {covered!r} in the text, but annotated as {quoted!r}")
    return start, end, label


def spans_to_tags(text: str, spans: list[tuple[int, int, str]], widen: bool) -> Annotated:
    """A text and its spans of characters (start, end, type) -> words and IOB2 tags.

    widen: a span that cuts a word is extended to the whole word, with a note. Otherwise it is an error.
    """
    words = split_words(text)
    tags, notes = ["O"] * len(words), []
    for start, end, label in sorted(spans):
        inside = [i for i, word in enumerate(words) if word[0] < end and word[1] > start]
        if not inside:
            raise ValueError(f"span {start}-{end} {label} holds no word")
        first, last = words[inside[0]], words[inside[-1]]
        if first[0] < start or end < last[1]:
            if not widen:
                cut_start, cut_end = first if first[0] < start else last
                problem = f"span {start}-{end} {label} {text[start:end]!r} cuts the word {text[cut_start:cut_end]!r}"
                raise ValueError(f"{problem}; fix it, or pass --widen_spans")
            notes.append(f"spans widened to whole words: {text[start:end]!r} to {text[first[0] : last[1]]!r}")
        if any(tags[i] != "O" for i in inside):
            raise ValueError(f"span {start}-{end} {label} {text[start:end]!r} overlaps another one")
        for i in inside:
            tags[i] = f"B-{label}" if i == inside[0] else f"I-{label}"
    return Annotated([text[start:end] for start, end in words], tags, notes)


# Every punctuation mark, symbol and Han character is a word. Han is written as ranges, since \p{Han} contains
# marks of repetition too, which belong to the word before. \x1c-\x1f are white space for str, not for regex.
_ALONE = r"\p{P}\p{S}\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_WORD = regex.compile(rf"[{_ALONE}]|[^\s\x1c-\x1f{_ALONE}]+")


def split_words(text: str) -> list[tuple[int, int]]:
    """Text -> (start, end) of its words. "in 東京!" has the words "in", "東", "京", "!"."""
    return [match.span() for match in _WORD.finditer(text)]


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
        raise ValueError(f"a word is {_shown(token)}")
    token.encode()
    if type(tag) is int and tag >= 0:
        if names and tag >= len(names):
            raise ValueError(f"tag {tag} is none of the {len(names)} labels")
        tag = names[tag] if names else str(tag)
    elif not isinstance(tag, str) or not tag:
        raise ValueError(f"a tag is {_shown(tag)}")
    tag.encode()
    return tag
