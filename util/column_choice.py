"""Which columns of a file hold the words and the tags: by the flags, by their names, or by what they look like."""

import contextlib
import dataclasses
import itertools
import re

from util.annotations import Columns, describe_record, label_columns, text_columns
from util.file_facts import file_facts
from util.formats import (
    CONLLU_COLUMNS,
    Reader,
    misc_attributes,
    read_conll,
    read_conllu,
    read_csv,
    read_dataset,
    read_parquet,
)
from util.plausibility import SAMPLE_SIZE, check_plausible, kind


def first_records(reader: Reader, size: int) -> list[tuple[list[int], dict]]:
    """The first (lines, record) of a source, up to the first error, which reading the whole source raises again."""
    found = []
    with contextlib.suppress(ValueError):
        for entry in itertools.islice(reader.read(), size):
            found.append(entry)
    return found


def choose_columns(name: str, reader: Reader, columns: Columns) -> tuple[Reader, Columns, list[str]]:
    """Replaces the flags by the names of columns, and checks the first sentences. Returns notes for the log, too.

    name: of the source, for messages. Raises ValueError if the columns have an unknown meaning, or look wrong.
    """
    notes: list[str] = []
    chosen = columns
    if reader.function is read_conllu:
        reader, chosen = _choose_conllu(reader, columns)
    has_values = reader.function not in (read_conll, read_conllu)  # which may be texts and their spans
    entries = first_records(reader, 1000 if has_values else SAMPLE_SIZE)
    if not entries:
        return reader, chosen, notes
    if has_values:
        chosen = file_facts(reader.read() if _may_have_astral(reader) else entries, columns, name)
    lines, first = entries[0]
    records = [record for _, record in entries[:SAMPLE_SIZE]]
    has_names = reader.function is not read_conll and not reader.options.get("names")
    try:
        if reader.function is read_csv and has_names and not columns.labels:
            chosen, notes = _choose_by_content(records, chosen)
        if not has_names and columns.task != "ner" and len(first) >= 5 and not columns.labels:
            raise ValueError(
                f"--task_name {columns.task}: the columns have no names; choose one with --label_column_name: "
                + ", ".join(f"{i} {values[0]!r}" for i, values in enumerate(first.values(), 1))
            )
        notes += check_plausible(records, chosen, has_names, named=columns)
    except ValueError as error:
        position = f"{name}:{lines[0]}" if lines else f"{name}: row 1"
        raise ValueError(f"{position}: {error}") from None
    return _describe(reader, chosen, records), chosen, notes


def _may_have_astral(reader: Reader) -> bool:
    """Whether a file may hold characters above U+FFFF, which UTF-16 counts twice. True if its bytes do not show it."""
    if reader.function in (read_parquet, read_dataset):
        return True
    with open(reader.source, "rb") as file:
        while piece := file.read(1 << 20):
            in_utf8 = any(byte in piece for byte in (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4"))
            in_escapes = b"\\u" in piece and re.search(rb"\\u[dD][89abAB]", piece)  # of JSON
            if in_utf8 or in_escapes or b"\\" in piece[-3:]:  # the next piece may continue an escape
                return True
    return False


def _describe(reader: Reader, columns: Columns, records: list[dict]) -> Reader:
    """With how the records are read, where the names of the columns do not tell it."""
    if ":" in reader.description and not (columns.text or columns.labels):
        return reader
    for record in records:
        try:
            description = f"{reader.description}; {describe_record(record, columns)}"
            return dataclasses.replace(reader, description=description)
        except ValueError:
            continue
    return reader


def _choose_conllu(reader: Reader, columns: Columns) -> tuple[Reader, Columns]:
    """The numbers of columns are those of CoNLL-U (4 is UPOS). An attribute of MISC is a column, too."""
    numbers = {str(number): name for number, name in enumerate(CONLLU_COLUMNS, 2)}
    text, labels = (numbers.get(name or "", name) for name in (columns.text, columns.labels))
    if text and text.lower() == "form":
        text = "tokens"
    if labels and labels.lower() not in CONLLU_COLUMNS:
        rows = (record["misc"] for _, record in first_records(reader, SAMPLE_SIZE))
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
