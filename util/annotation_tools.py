"""Where a record has its words, or its text, and its tags, or spans: a tool for annotation is known by its keys."""

from typing import Any, NamedTuple

from util.columns import Columns, label_columns, pick_column, pick_columns, text_columns
from util.list_cells import split_cells
from util.spans import is_control, parse_span, shown


class Found(NamedTuple):
    """The annotations of a record, before they are checked."""

    kind: str  # "tags", "spans", "GLiNER", "SpERT", "left out"
    description: str
    text: Any = None  # a text, or words
    labels: Any = None  # tags, or spans
    notes: tuple[str, ...] | list[str] = ()


def find_annotations(record: dict, columns: Columns) -> Found:
    """Which values of a record are its words, or its text, and its tags, or spans."""
    if isinstance(record.get("data"), dict) and ("annotations" in record or "completions" in record):
        return _label_studio_task(record, columns)
    _refuse_by_name(record)
    if isinstance(record.get("text"), str) and (not columns.text or _is_text_column("text", record, columns)):
        found = _prodigy_task(record, columns)
        if found:
            return found
    if "tokenized_text" in record and "ner" in record and columns.labels in (None, "ner"):
        description = "words 'tokenized_text', token spans 'ner' (GLiNER)"
        return Found("GLiNER", description, _list_of(record, "tokenized_text"), _list_of(record, "ner"))
    if columns.regions:
        return _short_label_studio_task(record, columns)
    text_column, label_column = pick_columns(tuple(record), columns)
    if (text_column, label_column) == ("tokens", "entities") and "relations" in record:
        description = "words 'tokens', token spans 'entities' (SpERT)"
        return Found("SpERT", description, _list_of(record, "tokens"), _list_of(record, "entities"))
    if not columns.text and _are_objects(record[text_column]) and "text" in record:
        text_column = "text"  # the tokens of spaCy are objects, from another tokenizer
    return _text_or_words(record, text_column, label_column)


def _is_text_column(name: str, record: dict, columns: Columns) -> bool:
    return pick_column(record, "--text_column_name", text_columns(columns)) == name


def _list_of(record: dict, column: str) -> list:
    if not isinstance(record[column], list):
        raise ValueError(f"{column} is {shown(record[column])} where a list should be")
    return record[column]


def _are_objects(values) -> bool:
    return isinstance(values, list) and len(values) > 0 and isinstance(values[0], dict)


def _are_strings(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _text_or_words(record: dict, text_column: str, label_column: str) -> Found:
    """A text and its spans, or words and tags. A string holds a list, or values separated by blanks."""
    text, labels = split_cells(record[text_column], record[label_column])
    if isinstance(text, str) and isinstance(labels, list):
        if not any(isinstance(label, (str, int)) for label in labels):
            return Found("spans", f"text {text_column!r}, spans {label_column!r}", text, labels)
    split = " split at blanks" if isinstance(text, str) else ""
    return Found("tags", f"words {text_column!r}{split}, tags {label_column!r}", text, labels)


def _label_studio_task(record: dict, columns: Columns) -> Found:
    """A task of Label Studio's JSON: data, and the regions in its first annotation that was not cancelled."""
    name = "annotations" if "annotations" in record else "completions"  # before version 1.0
    regions = _label_studio_regions(record[name])
    if regions is None:
        return Found(
            "left out", "tasks of Label Studio", notes=["left out, as it has no annotation: a task of Label Studio"]
        )
    for region in regions:
        parse_span(region)  # a region that is not of a text is reported before the missing text
    data = record["data"] | {"spans": regions}
    names = label_columns(columns) if columns.labels else ["spans"]
    label_column = pick_column(data, "--label_column_name", names)
    text_column = pick_column(data, "--text_column_name", text_columns(columns))
    if label_column != "spans":
        return _text_or_words(data, text_column, label_column)
    if not isinstance(data[text_column], str):
        raise ValueError(f"no text: {shown(data[text_column])} where Label Studio has regions of a text")
    return Found("spans", f"text {text_column!r}, regions of Label Studio", data[text_column], regions)


def _label_studio_regions(annotations) -> list[dict] | None:
    """The regions of the first annotation that was not cancelled. None: there is none."""
    try:
        valid = [a for a in annotations if not (a.get("was_cancelled") or a.get("skipped"))]
        if not valid:
            return None
        # Other results are choices, texts and relations.
        values = [(result.get("type"), result.get("value") or {}) for result in valid[0]["result"]]
        for kind, value in values:
            if is_control(kind) and not any(map(is_control, value)):
                raise ValueError(f"its region {shown(value)} has no {kind}")
        return [value for _, value in values if any(map(is_control, value))]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its annotations are not as Label Studio writes them") from None


def _short_label_studio_task(record: dict, columns: Columns) -> Found:
    """A task of Label Studio's JSON-MIN, or a row of its CSV. Without regions, it has no column of labels."""
    text_column = pick_column(record, "--text_column_name", text_columns(columns))
    regions = record.get(columns.regions)
    is_empty = regions is None or (isinstance(regions, str) and not regions.strip())
    if isinstance(record[text_column], str) and is_empty:
        note = f"read as without entities, as it has no regions: {record[text_column][:40]!r}"
        return Found("spans", f"text {text_column!r}, no regions", record[text_column], [], [note])
    found = _text_or_words(record, text_column, columns.regions)
    return found._replace(description=f"text {text_column!r}, regions of Label Studio {columns.regions!r}")


def _prodigy_task(record: dict, columns: Columns) -> Found | None:
    """A text with spans, or with an answer and no spans, as it has no entity. None: not a task of Prodigy.

    Its tokens are objects, from another tokenizer, and not used.
    """
    answer, spans, names = record.get("answer", "accept"), record.get("spans"), label_columns(columns)
    others = [name for name in names if name in record and name not in ("spans", "label")]
    if isinstance(spans, list):
        if others and _are_strings(record.get("tokens")):
            return None  # words and their tags, beside the text
    elif not _is_answer_without_spans(record, columns) or others:
        return None
    if answer != "accept":
        return Found("left out", "tasks of Prodigy", notes=[f"left out, as its answer is not accept: {answer}"])
    if spans is not None and columns.labels:
        return _text_or_words(record, "text", pick_column(record, "--label_column_name", names))
    return Found("spans", "text and spans of Prodigy", record["text"], spans or [])


def _is_answer_without_spans(record: dict, columns: Columns) -> bool:
    if record.get("answer") not in ("accept", "reject", "ignore") or "spans" in record:
        return False
    if columns.labels not in (None, "spans") or isinstance(record.get("label"), list):  # spans of another tool
        return False
    if {"label", "options", "accept"} & set(record):
        problem = "it is a classification of the whole text by Prodigy"
        raise ValueError(f"{problem}; ner.manual and spans.manual write spans")
    return True


_PER_SENTENCE = 'write one line {"tokenized_text": [words], "ner": [[first, last, type]]} per sentence'


def _refuse_by_name(record: dict) -> None:
    """Raises ValueError for formats that are recognised, but not read."""
    if isinstance(record.get("paragraphs"), list):
        raise ValueError(
            'its "paragraphs" are nested JSON as spaCy 2 and SQuAD write it; '
            'write one line {"text": ..., "entities": [[start, end, type]]} per paragraph'
        )
    ner = record.get("ner")
    if isinstance(ner, list) and isinstance(record.get("sentences"), list):
        raise ValueError(f'its "sentences" with "ner" are a document as DyGIE writes it; {_PER_SENTENCE}')
    if _are_objects(ner) and "index" in ner[0]:
        raise ValueError(f'its "ner" has the "index" of every word, as W2NER writes it; {_PER_SENTENCE}')
