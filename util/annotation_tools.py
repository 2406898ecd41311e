"""Where a record has its words, or its text, and its tags, or spans: a tool for annotation is known by its keys."""

from typing import Any, NamedTuple

from util.columns import Columns, label_columns, pick_column, pick_columns, refuse_nested, text_columns
from util.lines import IOB_TAG
from util.list_cells import parse_list, split_cells
from util.spans import is_control, list_of_spans, looks_like_span, parse_span, shown

OF_SPANS = ("spans", "entities", "ents")  # columns that never hold the tags of words, unless these look like tags


class Found(NamedTuple):
    """The annotations of a record, before they are checked."""

    kind: str  # "tags", "spans", "GLiNER", "SpERT", "left out"
    description: str
    text: Any = None  # a text, or words
    labels: Any = None  # tags, or spans
    notes: tuple[str, ...] | list[str] = ()


def find_annotations(record: dict, columns: Columns) -> Found:
    """Which values of a record are its words, or its text, and its tags, or spans."""
    if is_task(record):
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
    try:
        text_column, label_column = pick_columns(tuple(record), columns)
    except ValueError:
        refuse_nested(record, columns)
        raise
    if (text_column, label_column) == ("tokens", "entities") and "relations" in record:
        description = "words 'tokens', token spans 'entities' (SpERT)"
        return Found("SpERT", description, _list_of(record, "tokens"), _list_of(record, "entities"))
    if not columns.text and _are_objects(record[text_column]) and "text" in record:
        text_column = "text"  # the tokens of spaCy are objects, from another tokenizer
    if isinstance(record[text_column], str) and not columns.labels:
        label_column = _choose_labels(record, text_column, label_column, columns)
    return _text_or_words(record, text_column, label_column, is_named=bool(columns.labels))


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


def _text_or_words(record: dict, text_column: str, label_column: str, is_named: bool = True) -> Found:
    """A text and its spans, or words and tags. A string holds a list, or values separated by blanks.

    is_named: a flag names the column of tags.
    """
    text, labels = split_cells(record[text_column], record[label_column])
    labels = list_of_spans(labels)
    if isinstance(text, dict) and "0" in text:
        way_out = 'to_json(path, orient="records", lines=True)'
        raise ValueError(f"{text_column!r} is a whole column, as pandas' to_json writes it; write {way_out}")
    if isinstance(text, str) and labels is None:
        raise ValueError(
            f"{label_column!r} is null: not annotated; remove the record, or write [] for no tags or spans"
        )
    if isinstance(text, str) and label_column.lower() in OF_SPANS and not is_named:
        values = labels.split() if isinstance(labels, str) else labels
        if values and _are_strings(values) and not _look_like_tags(values):
            raise ValueError(f"{label_column!r} holds texts without offsets ({shown(values[0])}), not spans")
    if isinstance(text, str) and isinstance(labels, list):
        if not any(isinstance(label, (str, int)) for label in labels):
            return Found("spans", f"text {text_column!r}, spans {label_column!r}", text, labels)
    split = " split at blanks" if isinstance(text, str) else ""
    return Found("tags", f"words {text_column!r}{split}, tags {label_column!r}", text, labels)


# --------------------------------------------------------------------------------------------------
# A text with several columns that may hold its tags or its spans


def _choose_labels(record: dict, text_column: str, label_column: str, columns: Columns) -> str:
    """The column that holds spans, or tags that fit the text, among those with a usual name.

    label_column: the first of them. Raises ValueError if two hold spans, or if one holds spans and one tags.
    """
    usual = [name.lower() for name in label_columns(columns)]
    if columns.task != "ner" and label_column.lower() in usual[: usual.index("tags")]:
        return label_column  # named after the task
    names = sorted((name for name in record if name.lower() in usual), key=lambda name: usual.index(name.lower()))
    with_spans = [name for name in names if _holds_spans(record[name])]
    num_words = len(record[text_column].split())
    with_tags = [name for name in names if name not in with_spans and _holds_tags(record[name], num_words)]
    different = with_spans[:1] + [name for name in with_spans[1:] if record[name] != record[with_spans[0]]]
    if len(different) > 1 or (with_spans and with_tags):
        first, second = (different + with_tags)[:2]
        what = "spans" if second in with_spans else "tags"
        problem = f"{first!r} holds spans and {second!r} holds {what} of the text"
        raise ValueError(f"{problem}; choose one with --label_column_name")
    if with_spans:
        return with_spans[0]
    if with_tags:
        return label_column if label_column in with_tags else with_tags[0]
    empty = [name for name in names if _is_empty_list(record[name])]
    # Tags beside an empty list of spans are topics of the text.
    chosen = next((name for name in empty if name.lower() in OF_SPANS), label_column)
    if _is_empty_list(record[chosen]):
        _refuse_hidden_spans(record, chosen, {*names, *text_columns(columns)})
    return chosen


def _holds_spans(values) -> bool:
    if isinstance(values, str) and values.lstrip()[:1] in ("[", "("):
        try:
            values = parse_list(values)
        except ValueError:
            return False
    if isinstance(values, dict):
        return looks_like_span(values) and all(isinstance(column, list) and column for column in values.values())
    return isinstance(values, list) and any(map(looks_like_span, values))


def _holds_tags(values, num_words: int) -> bool:
    values = values.split() if isinstance(values, str) else values
    return _are_strings(values) and len(values) == num_words > 0 and _look_like_tags(values)


def _look_like_tags(values: list[str]) -> bool:
    return "O" in values or all(map(IOB_TAG.fullmatch, values))


def _is_empty_list(values) -> bool:
    return values in ([], "[]")


def _refuse_hidden_spans(record: dict, chosen: str, others: set[str]) -> None:
    """Raises ValueError if a column of another name holds spans with types."""
    for name, values in record.items():
        if name not in others and _are_objects(values) and _holds_spans(values):
            try:
                parse_span(values[0])
            except ValueError:
                continue
            raise ValueError(f"{chosen!r} is empty, but {name!r} holds spans; choose one with --label_column_name")


# --------------------------------------------------------------------------------------------------
# Label Studio


def is_task(record: dict) -> bool:
    """Whether a record is a task of Label Studio's JSON. Without annotations, it may have predictions."""
    names = ("annotations", "completions", "predictions")
    return isinstance(record.get("data"), dict) and any(name in record for name in names)


def _label_studio_task(record: dict, columns: Columns) -> Found:
    """A task of Label Studio's JSON: data, and the regions in its first annotation that was not cancelled."""
    regions, notes = task_regions(record)
    if regions is None:
        task = f"task {shown(record['id'])}" if "id" in record else "a task"
        return Found("left out", "tasks of Label Studio", notes=[f"left out (no annotation): {task}"])
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
    return Found("spans", f"text {text_column!r}, regions of Label Studio", data[text_column], regions, notes)


def task_regions(record: dict) -> tuple[list[dict] | None, list[str]]:
    """The regions of a task, and notes. None: it has no annotation that was not cancelled.

    Of several annotations, the ground truth counts, or else the first one, or else the first one with regions.
    """
    name = "annotations" if "annotations" in record else "completions"  # before version 1.0
    try:
        valid = [a for a in record.get(name, []) if not (a.get("was_cancelled") or a.get("skipped"))]
        if not valid:
            return None, []
        truth = next((a for a in valid if a.get("ground_truth")), None)
        regions, which = _regions_of(truth or valid[0]), "the ground truth" if truth else "the first"
        if not regions and truth is None:
            others = next(filter(None, map(_regions_of, valid[1:])), None)
            regions, which = others or regions, "the first with regions" if others else which
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its annotations are not as Label Studio writes them") from None
    note = f"tasks have several annotations, of which {which} is read: {len(valid)} annotations"
    return regions, [note] if len(valid) > 1 else []


def _regions_of(annotation: dict) -> list[dict]:
    # Other results are choices, texts and relations.
    values = [(result.get("type"), result.get("value") or {}) for result in annotation["result"]]
    for kind, value in values:
        if is_control(kind) and not any(map(is_control, value)):
            raise ValueError(f"its region {shown(value)} has no {kind}")
    return [value for _, value in values if any(map(is_control, value))]


def _short_label_studio_task(record: dict, columns: Columns) -> Found:
    """A task of Label Studio's JSON-MIN, or a row of its CSV. Without regions, it has no column of labels."""
    try:
        text_column = pick_column(record, "--text_column_name", text_columns(columns))
    except ValueError:
        refuse_nested(record, columns)
        raise
    regions = record.get(columns.regions)
    is_empty = regions is None or (isinstance(regions, str) and not regions.strip())
    if isinstance(record[text_column], str) and is_empty:
        note = f"read as without entities, as it has no regions: {record[text_column][:40]!r}"
        return Found("spans", f"text {text_column!r}, no regions", record[text_column], [], [note])
    found = _text_or_words(record, text_column, columns.regions)
    return found._replace(description=f"text {text_column!r}, regions of Label Studio {columns.regions!r}")


# --------------------------------------------------------------------------------------------------
# Prodigy


def _prodigy_task(record: dict, columns: Columns) -> Found | None:
    """A text with spans, or with an answer and no spans, as it has no entity. None: not a task of Prodigy.

    Its tokens are objects, from another tokenizer, and not used.
    """
    answer, spans, names = record.get("answer", "accept"), record.get("spans"), label_columns(columns)
    others = [name for name in names if name in record and name != "spans"]
    others = [name for name in others if name != "label" or isinstance(record[name], list)]
    if isinstance(spans, list):
        if others and _are_strings(record.get("tokens")):
            return None  # words and their tags, beside the text
    elif not _is_answer_without_spans(record, columns) or others:
        return None
    if answer != "accept":
        return Found("left out", "tasks of Prodigy", notes=[f"left out (answer other than accept): {answer}"])
    if spans is not None and columns.labels:
        return _text_or_words(record, "text", pick_column(record, "--label_column_name", names))
    if others:
        return None  # see _choose_labels
    return Found("spans", "text and spans of Prodigy", record["text"], spans or [])


def _is_answer_without_spans(record: dict, columns: Columns) -> bool:
    if record.get("answer") not in ("accept", "reject", "ignore") or record.get("spans") is not None:
        return False
    if columns.labels not in (None, "spans") or isinstance(record.get("label"), list):  # spans of another tool
        return False
    if {"label", "options", "accept"} & set(record):
        problem = "it is a classification of the whole text by Prodigy"
        raise ValueError(f"{problem}; ner.manual and spans.manual write spans")
    return True


# --------------------------------------------------------------------------------------------------
# Formats that are recognized, but not read

_PER_SENTENCE = 'write one line {"tokenized_text": [words], "ner": [[first, last, type]]} per sentence'


def _refuse_by_name(record: dict) -> None:
    """Raises ValueError for formats that are recognized, but not read."""
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
