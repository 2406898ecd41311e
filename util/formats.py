"""File formats: CoNLL columns, CoNLL-U, JSON, CSV and Parquet files become records.

A reader is a generator. For every sentence it yields (lines, record):

    lines   numbers of the lines that hold the sentence: one per word, or one for all words, or none (Parquet)
    record  its columns by name, for example {"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}

Readers raise ValueError("FILE:LINE: reason"). A large file is read in blocks, by several processes.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.parquet

BLANKS = "\r\n\t "  # words may hold other white space, such as no-break spaces


class Block(NamedTuple):
    """A part of a source that is read by itself. It begins and ends between two sentences."""

    start: int  # bytes; row groups of Parquet; rows of a Dataset
    end: int
    first_line: int = 1
    first_row: int = 0  # sentences before it, where the format has no lines


@dataclass(frozen=True)
class Reader:
    """A source and the function that reads it."""

    function: Callable[..., Iterator[tuple[list[int], dict]]]
    source: Any  # a path, or a Dataset
    options: dict = field(default_factory=dict)
    block_ends_at: str | None = None  # "line", "empty line", or None: the file is one block

    def read(self, block: Block | None = None) -> Iterator[tuple[list[int], dict]]:
        """Yields (lines, record). Without a block: of the whole file."""
        return self.function(self.source, block, **self.options)


# --------------------------------------------------------------------------------------------------
# Lines


def text_lines(path: str, block: Block | None = None) -> Iterator[tuple[int, str]]:
    """Yields (number, line). Raises ValueError for a line that is not UTF-8."""
    block = block or Block(0, os.path.getsize(path))
    position = block.start
    with open(path, "rb") as file:
        file.seek(position)
        for number, raw in enumerate(file, block.first_line):
            if position >= block.end:
                return
            position += len(raw)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason})") from None
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def split_columns(line: str) -> list[str]:
    """Splits a line at tabs, or at blanks if it has no tab. An empty line has no columns."""
    line = line.strip(BLANKS)
    if "\t" in line:
        return line.split("\t")
    columns = line.split(" ")  # str.split() without arguments would also split at no-break spaces
    return [column for column in columns if column] if "" in columns else columns


def is_border(columns: list[str]) -> bool:
    """Whether a line separates sentences: an empty line, or -DOCSTART- of CoNLL-2003."""
    return not columns or columns[0] == "-DOCSTART-"


def is_comment(columns: list[str], width: int | None, at_start: bool) -> bool:
    """Whether a line of CoNLL that begins with # is a comment, not a word.

    width: the number of columns of the file's words; None before the first word.
    at_start: no word of the sentence stands above the line.
    """
    if not at_start or not columns[0].startswith("#"):
        return False
    if width is None:
        return columns[0] == "#" and len(columns) > 2
    return len(columns) != width


def sentence_lines(path: str, block: Block | None = None) -> Iterator[list[tuple[int, list[str]]]]:
    """Yields the lines of every sentence as [(number, columns)]."""
    sentence: list[tuple[int, list[str]]] = []
    for number, line in text_lines(path, block):
        columns = split_columns(line)
        if not is_border(columns):
            sentence.append((number, columns))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


# --------------------------------------------------------------------------------------------------
# Readers


def _by_column(names: Sequence[str], rows: list[list[str]]) -> dict[str, list[str]]:
    """[["EU", "B-ORG"], ["says", "O"]] -> {"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}"""
    return {name: list(column) for name, column in zip(names, zip(*rows))}


def conll_layout(path: str) -> dict:
    """The options of read_conll: the number of columns, and the line of the file's first word."""
    for number, line in text_lines(path):
        columns = split_columns(line)
        if not is_border(columns) and not is_comment(columns, None, at_start=True):
            return {"width": len(columns), "first_word": number}
    return {"width": 0, "first_word": 0}


def read_conll(path: str, block: Block | None, width: int, first_word: int):
    """CoNLL columns: words first, tags last. Columns between them are pos_tags, chunk_tags, "4", "5" ...

    Lines above a sentence that begin with # and have another number of columns are comments.
    width, first_word: see conll_layout.
    """
    middle = ["pos_tags", "chunk_tags", *map(str, range(4, width))][: max(0, width - 2)]
    names = ("tokens", *middle, "tags")
    for sentence in sentence_lines(path, block):
        numbers, words = [], []
        for number, columns in sentence:
            if number < first_word or is_comment(columns, width, at_start=not words):
                continue
            if len(columns) == 1:
                raise ValueError(f"{path}:{number}: {columns[0]!r} has no tag")
            if len(columns) != width:
                raise ValueError(f"{path}:{number}: {len(columns)} columns where the lines above have {width}")
            numbers.append(number)
            words.append(columns)
        if words:
            yield numbers, _by_column(names, words)


# Columns 2 to 8 of https://universaldependencies.org/format.html
CONLLU_COLUMNS = ("tokens", "lemma", "upos", "xpos", "feats", "head", "deprel")


def read_conllu(path: str, block: Block | None):
    """CoNLL-U. Ranges (3-4, the surface form of two syntactic words) and empty nodes (8.1) are skipped."""
    for sentence in sentence_lines(path, block):
        numbers, words = [], []
        for number, columns in sentence:
            if columns[0].startswith("#"):
                continue
            if len(columns) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", columns[0]):
                raise ValueError(f"{path}:{number}: not a line of CoNLL-U: {len(columns)} columns, expected 10")
            if columns[0].isdigit():
                numbers.append(number)
                words.append(columns[1:8])
        if words:
            yield numbers, _by_column(CONLLU_COLUMNS, words)


def _check_unique(names: list[str], position: str = "") -> None:
    """Raises ValueError for a duplicate column, since json and csv would silently keep its last value."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{position}duplicate column {name!r}")


def _json_object(pairs: list[tuple]) -> dict:
    _check_unique([name for name, _ in pairs])
    return dict(pairs)


_decode_json = json.JSONDecoder(object_pairs_hook=_json_object).raw_decode
_BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")


def _json_objects(path: str, number: int, text: str):
    """Yields ([line number], object) for every object of a text. Returns the number of the last line read."""
    end = 0
    while True:
        start = _BETWEEN_OBJECTS.match(text, end).end()
        if start == len(text):
            return number
        number += text.count("\n", end, start)
        try:
            record, end = _decode_json(text, start)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON: {getattr(error, 'msg', error)}") from None
        if not isinstance(record, dict):
            shown = text[start : min(end, start + 40)]
            raise ValueError(f"{path}:{number}: {shown} is not an object with columns")
        yield [number], record
        number += text.count("\n", start, end)


def read_json_lines(path: str, block: Block | None):
    """JSON Lines: one object a line."""
    for number, line in text_lines(path, block):
        yield from _json_objects(path, number, line)


def read_json_array(path: str, block: Block | None):
    """JSON: one array of objects, over any number of lines. Reads the whole file into memory."""
    text = "".join(line for _, line in text_lines(path))
    last_line = yield from _json_objects(path, 1, text)
    if not text.rstrip().endswith("]"):
        raise ValueError(f"{path}:{last_line}: the array is not closed")


SENTENCE_ID = ("sentence_id", "sent_id", "sentence_idx", "sentence id", "sentence #")


def read_csv(path: str, block: Block | None, delimiter: str):
    """CSV with a header: one sentence a row (words and tags separated by blanks), or one word a row.

    With one word a row, a sentence ends at an empty line or at a new value in the column of sentence ids. An
    empty id repeats the id above.
    """
    rows = _csv_rows(path, delimiter)
    line, header = next(((line, row) for line, row in rows if row), (1, []))
    names = [name.strip() for name in header]
    _check_unique(names, f"{path}:{line}: ")
    lower = [name.lower() for name in names]
    id_columns = [i for i, name in enumerate(lower) if name in SENTENCE_ID]
    word_per_row = bool(id_columns) or "word" in lower or "token" in lower
    sentence, last_id, num_borders = [], "", 0
    for line, row in rows:
        row_id = row[id_columns[0]] if row and id_columns else ""
        if not row or not word_per_row or row_id not in ("", last_id):
            num_borders += 1
            if sentence:
                yield _csv_sentence(names, sentence)
            sentence = []
        last_id = row_id or last_id
        if row:
            sentence.append((line, row))
    if sentence:
        yield _csv_sentence(names, sentence)
    if word_per_row and num_borders == 0:
        missing = "neither a column sentence_id nor an empty line ends a sentence"
        raise ValueError(f"{path}: one word a row, but {missing}")


def _csv_rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, cells) for every row, header and empty lines included."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = (line for _, line in text_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    line, width = 1, 0
    try:
        for row in rows:
            width = width or len(row)  # of the header
            if row and len(row) != width:
                raise csv.Error(f"{len(row)} cells under {width} column names")
            yield line, row
            line = rows.line_num + 1  # a quoted cell may extend over several lines
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: {error}") from None


def _csv_sentence(names: list[str], rows: list[tuple[int, list[str]]]) -> tuple[list[int], dict]:
    """Rows of one word each, or one row that holds the sentence, as (lines, record)."""
    lines, cells = [line for line, _ in rows], [row for _, row in rows]
    return lines, (_by_column(names, cells) if len(rows) > 1 else dict(zip(names, cells[0])))


def read_parquet(path: str, block: Block | None):
    """Parquet. A block is a range of row groups."""
    file = pyarrow.parquet.ParquetFile(path)
    groups = list(range(block.start, block.end)) if block else None
    for batch in file.iter_batches(batch_size=1000, row_groups=groups):
        for record in batch.to_pylist():
            yield [], record


def read_dataset(dataset, block: Block | None):
    """A Dataset of the Hub or of save_to_disk. A block is a range of rows."""
    for record in dataset.select(range(block.start, block.end)) if block else dataset:
        yield [], record
