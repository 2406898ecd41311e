"""Which columns of a file hold the words and the tags: by the flags, by their names, or by what they look like."""

import dataclasses
import itertools

from util.annotations import Columns, label_columns, text_columns
from util.formats import CONLLU_COLUMNS, Reader, misc_attributes, read_conll, read_conllu, read_csv
from util.plausibility import SAMPLE_SIZE, check_plausible, kind


def first_records(reader: Reader) -> list[tuple[list[int], dict]]:
    """The first (lines, record) of a source, up to the first error, which reading the whole source raises again."""
    found = []
    try:
        for entry in itertools.islice(reader.read(), SAMPLE_SIZE):
            found.append(entry)
    except ValueError:
        pass
    return found


def choose_columns(name: str, reader: Reader, columns: Columns) -> tuple[Reader, Columns, list[str]]:
    """Replaces the flags by names of columns, and checks the first sentences. Returns notes for the log.

    name: of the source, for messages. Raises ValueError if the columns have an unknown meaning, or look wrong.
    """
    notes: list[str] = []
    chosen = columns
    if reader.function is read_conllu:
        reader, chosen = _choose_conllu(reader, columns)
    entries = first_records(reader)
    if not entries:
        return reader, chosen, notes
    lines, first = entries[0]
    records = [record for _, record in entries]
    has_names = reader.function is not read_conll and not reader.options.get("names")
    try:
        if reader.function is read_csv and has_names and not columns.labels:
            chosen, notes = _choose_by_content(records, columns)
        if not has_names and columns.task != "ner" and len(first) >= 5 and not columns.labels:
            raise ValueError(
                f"--task_name {columns.task}: the columns have no names; choose one with --label_column_name: "
                + ", ".join(f"{i} {values[0]!r}" for i, values in enumerate(first.values(), 1))
            )
        # What a flag names is not checked.
        notes += check_plausible(records, columns if chosen.labels == columns.labels else chosen, has_names)
    except ValueError as error:
        position = f"{name}:{lines[0]}" if lines else f"{name}: row 1"
        raise ValueError(f"{position}: {error}") from None
    return reader, chosen, notes


def _choose_conllu(reader: Reader, columns: Columns) -> tuple[Reader, Columns]:
    """The numbers of columns are those of CoNLL-U (4 is UPOS). An attribute of MISC is a column, too."""
    numbers = {str(number): name for number, name in enumerate(CONLLU_COLUMNS, 2)}
    text, labels = (numbers.get(name or "", name) for name in (columns.text, columns.labels))
    if text and text.lower() == "form":
        text = "tokens"
    if labels and labels.lower() not in CONLLU_COLUMNS:
        rows = (record["misc"] for _, record in first_records(reader))
        if any(labels in misc_attributes(value) for row in rows for value in row):
            reader = dataclasses.replace(reader, options={"misc": labels})
    return reader, dataclasses.replace(columns, text=text, labels=labels)


def _choose_by_content(records: list[dict], columns: Columns) -> tuple[Columns, list[str]]:
    """Of a table whose header names no column of tags: the first one that holds tags such as B-PER."""
    names = {name.lower() for name in records[0]}
    if any(name.lower() in names for name in label_columns(columns)) or columns.task != "ner":
        return columns, []
    if not any(name.lower() in names for name in text_columns(columns)):
        return columns, []
    values = {
        name: [value for record in records for value in record[name] if isinstance(record[name], list)]
        for name in records[0]
    }
    found = [name for name in values if values[name] and kind(values[name]) == "tags"]
    if not found:
        return columns, []
    others = f", but {', '.join(found[1:])} could be; --label_column_name chooses" if found[1:] else ""
    return dataclasses.replace(columns, labels=found[0]), [f"column {found[0]!r} is read as tags{others}"]
