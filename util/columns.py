"""Which columns of a record hold the words and the tags."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from util.list_cells import parse_list
from util.spans import is_control, is_region, parse_span


@dataclass(frozen=True)
class Columns:
    """How the words and the tags of a record are found."""

    text: str | None = None  # --text_column_name
    labels: str | None = None  # --label_column_name
    task: str = "ner"  # --task_name
    widen_spans: bool = False  # --widen_spans
    span_offsets: str | None = None  # --span_offsets: "characters" or "utf16"; None: see file_facts
    regions: str | None = None  # the column of Label Studio's regions, which is missing if a task has none
    refusal: str | None = None  # why no sentence can be read from the file, see file_facts


def text_columns(columns: Columns) -> list[str]:
    if columns.text:
        return [columns.text]
    return ["tokens", "words", "token", "word", "text", "sentence", "tokenized_text"]


def label_columns(columns: Columns) -> list[str]:
    """Columns that are named after the task are before those that may belong to another one."""
    if columns.labels:
        return [columns.labels]
    of_task = [f"{columns.task}_tags", columns.task, *(["upos"] if columns.task == "pos" else [])]
    return [*of_task, "tags", "labels", "tag", "spans", "entities", "ents", "label"]


def pick_column(columns: Iterable[str], flag: str, names: list[str]) -> str:
    """The first of the names that is a column (case is ignored). A column number, from 1, is also a name.

    Raises ValueError if there is none, or if it occurs twice.
    """
    columns = list(columns)
    lower = [column.lower() for column in columns]
    chosen = next((columns[lower.index(name.lower())] for name in names if name.lower() in lower), None)
    if chosen is None and names[0].isdigit() and 1 <= int(names[0]) <= len(columns):
        return columns[int(names[0]) - 1]
    if chosen is None:
        usual_first = sorted(names, key=lambda name: not name.endswith("tags"))
        wanted, existing = " or ".join(map(repr, usual_first)), ", ".join(columns)
        raise ValueError(f"no column {wanted} among {existing}; name it with {flag}")
    if columns.count(chosen) > 1:
        raise ValueError(f"duplicate column {chosen!r}")
    return chosen


@functools.lru_cache
def pick_columns(names: tuple[str, ...], columns: Columns) -> tuple[str, str]:
    """The columns of words and of tags. Cached, since all records of a file have the same columns."""
    text_column = pick_column(names, "--text_column_name", text_columns(columns))
    label_column = pick_column(names, "--label_column_name", label_columns(columns))
    if text_column == label_column:
        raise ValueError(f"column {text_column!r} cannot be both words and tags")
    return text_column, label_column


# --------------------------------------------------------------------------------------------------
# Records without such columns

_PER_TEXT = 'write one line {"text": ..., "entities": [[start, end, type]]} per text'
_TOOLS = {
    "annotatable": "tagtog",
    "rasa_nlu_data": "Rasa",
    "passages": "BigBio",
    "examples": "LightTag",
    "fields": "Argilla",
    "responses": "Argilla",
    "classes": "NER Annotator",
    "annotation": "Dataturks",
}  # a key -> the tool that writes it


def refuse_nested(record: dict, columns: Columns) -> None:
    """Raises ValueError if a record without the columns of words or tags holds other records, or annotations."""
    for values in map(_parsed, record.values()):
        for value in values if isinstance(values, list) else []:
            if isinstance(value, dict) and (is_region(value) or any(is_control(k) and k != "labels" for k in value)):
                parse_span(value)  # raises for regions of HTML, of a dialogue, of an image
    lower = _lower_keys(record)
    if {"columns", "data"} <= lower or {"schema", "data"} <= lower:
        problem = "it is a whole table, as pandas' to_json writes it"
        raise ValueError(f'{problem}; write to_json(path, orient="records", lines=True)')
    key = next((name for name in _TOOLS if isinstance(record.get(name), (list, dict))), None)
    if key:
        inclusive = ", where the end is the character after the span" if key == "annotation" else ""
        raise ValueError(f"its {key!r} is nested JSON as {_TOOLS[key]} writes it; {_PER_TEXT}{inclusive}")
    if lower & {name.lower() for name in text_columns(columns)}:
        return
    for name, values in record.items():
        items = list(values.values()) if isinstance(values, dict) else values
        if isinstance(items, list) and items and all(isinstance(item, (dict, list)) for item in items):
            raise ValueError(f"its {name!r} is nested JSON ({len(items)} values); write one record per line")
        if isinstance(values, dict) and _lower_keys(values) & {name.lower() for name in text_columns(columns)}:
            raise ValueError(f"its {name!r} is nested JSON; write one record per line, with its columns")


def _lower_keys(record: dict) -> set[str]:
    return {name.lower() for name in record}


def _parsed(values):
    try:
        return parse_list(values) if isinstance(values, str) and values.startswith("[{") else values
    except ValueError:
        return values
