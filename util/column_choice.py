"""Which columns of a file hold the words and the tags: by the flags, by their names, or by what they look like."""

import contextlib
import dataclasses
import itertools
import re

from util.annotations import Columns, describe_record, label_columns, text_columns
from util.columns import pick_columns
from util.file_facts import file_facts, has_no_spans
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
from util.plausibility import SAMPLE_SIZE, check_plausible, is_chunks, kind


def first_records(reader: Reader, size: int) -> list[tuple[list[int], dict]]:
    """The first (lines, record) of a source, up to the first error, which reading the whole source raises again."""
    found = []
    with contextlib.suppress(ValueError):
        for entry in itertools.islice(reader.read(), size):
            found.append(entry)
    return found


def choose_columns(
    name: str, reader: Reader, columns: Columns, preferred: str | None = None, only_words: bool = False
) -> tuple[Reader, Columns, list[str]]:
    """Replaces the flags by the names of columns, and checks the first sentences. Returns notes for the log, too.

    name: of the source, for messages. preferred: the column of tags that another split of the corpus has.
    only_words: the tags are not used, and not checked.
    Raises ValueError if the columns have an unknown meaning, or look wrong.
    """
    notes: list[str] = []
    chosen = columns
    if reader.function is read_conllu:
        reader, chosen = _choose_conllu(reader, columns)
    entries = first_records(reader, SAMPLE_SIZE)
    if not entries:
        return reader, chosen, notes
    if reader.function not in (read_conll, read_conllu):
        has_spans = not all(has_no_spans(record, columns) for _, record in entries)
        if has_spans or not all(any(isinstance(v, list) for v in record.values()) for _, record in entries):
            may_have_astral = has_spans and _may_have_astral(reader)
            chosen = file_facts(reader.read(), columns, name, may_have_astral=may_have_astral)
    lines, first = entries[0]
    records = [record for _, record in entries]
    has_names = reader.function is not read_conll and not reader.options.get("names")
    try:
        if reader.function is read_csv and has_names and not columns.labels:
            chosen = _choose_by_content(records, chosen, preferred)
        if not has_names and columns.task != "ner" and len(first) >= 5 and not columns.labels:
            raise ValueError(
                f"--task_name {columns.task}: the columns have no names; choose one with --label_column_name: "
                + ", ".join(f"{i} {values[0]!r}" for i, values in enumerate(first.values(), 1))
            )
        named = dataclasses.replace(columns, labels="any") if only_words else columns
        notes += check_plausible(records, chosen, has_names, named)
    except ValueError as error:
        position = f"{name}:{lines[0]}" if lines else f"{name}: row 1"
        raise ValueError(f"{position}: {error}") from None
    return _describe(reader, chosen, columns, records), chosen, notes


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


def _describe(reader: Reader, chosen: Columns, named: Columns, records: list[dict]) -> Reader:
    """With how the records are read, where the names of the columns do not tell it."""
    description = reader.description
    if reader.function is read_conll:
        if named.text or named.labels or named.task != "ner":
            names = list(records[0])
            with contextlib.suppress(ValueError):
                text, label = (names.index(name) + 1 for name in pick_columns(tuple(names), chosen))
                description += f"; words: column {text}, tags: column {label}"
        return dataclasses.replace(reader, description=description)
    if reader.options.get("names") and not (named.text or named.labels):
        return reader
    for record in records:
        with contextlib.suppress(ValueError):
            return dataclasses.replace(reader, description=f"{description}; {describe_record(record, chosen)}")
    return reader


def _choose_conllu(reader: Reader, columns: Columns) -> tuple[Reader, Columns]:
    """The numbers of columns are those of CoNLL-U (4 is UPOS). An attribute of MISC is a column, too."""
    numbers = {str(number): name for number, name in enumerate(CONLLU_COLUMNS, 2)}
    text, labels = (numbers.get(name or "", name) for name in (columns.text, columns.labels))
    for number in (text, labels):
        if number and number.isdigit():
            raise ValueError(f"{reader.source}: column {number}: words and tags of CoNLL-U are in columns 2 to 10")
    if text and text.lower() == "form":
        text = "tokens"
    entries = first_records(reader, SAMPLE_SIZE)
    if not labels and columns.task == "ner":
        _refuse_without_entities(reader.source, entries)
    if labels and labels.lower() not in CONLLU_COLUMNS:
        if _has_attribute(reader.source, labels):
            reader = dataclasses.replace(reader, options={"misc": labels})
        else:
            found: set[str] = set()
            for _, record in entries:
                found.update(*map(misc_attributes, record["misc"]))
            attributes = f", nor in MISC, which has {', '.join(sorted(found))}" if found else ""
            raise ValueError(f"{reader.source}: no column {labels!r} among {', '.join(CONLLU_COLUMNS)}{attributes}")
    return reader, dataclasses.replace(columns, text=text, labels=labels)


def _refuse_without_entities(path: str, entries: list[tuple[list[int], dict]]) -> None:
    """Raises ValueError if MISC has tags of entities, since no column is named after them."""
    for lines, record in entries:
        for line, text in zip(lines, record["misc"]):
            for name, value in misc_attributes(text).items():
                if len(value) > 1 and kind([value]) == "tags":
                    advice = f"MISC has {name}={value}: pass --label_column_name {name}"
                    raise ValueError(f"{path}:{line}: no column 'ner_tags' or 'tags'; {advice}")


def _has_attribute(path: str, name: str) -> bool:
    pattern = re.compile(rb"[\t|]" + re.escape(name.encode()) + rb"=[^\t\n]*$", re.MULTILINE)
    with open(path, "rb") as file:
        return any(name.encode() in line and pattern.search(line.rstrip()) for line in file)


def _choose_by_content(records: list[dict], columns: Columns, preferred: str | None) -> Columns:
    """Of a table whose header names no column of tags: the first one that holds tags such as B-PER."""
    names = {name.lower() for name in records[0]}
    if any(name.lower() in names for name in label_columns(columns)) or columns.task != "ner":
        return columns
    if not any(name.lower() in names for name in text_columns(columns)):
        return columns
    if preferred in records[0]:
        return dataclasses.replace(columns, labels=preferred)
    values = {
        name: [value for record in records for value in record[name] if isinstance(record[name], list)]
        for name in records[0]
    }
    found = [name for name in values if values[name] and kind(values[name]) == "tags"]
    found.sort(key=lambda name: is_chunks(values[name]))  # entities before chunks
    return dataclasses.replace(columns, labels=found[0]) if found else columns
