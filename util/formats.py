"""File formats: CoNLL columns, CoNLL-U, JSON, CSV and Parquet files become records.

A reader is a generator. For every sentence it yields (lines, record):

    lines   numbers of the lines that hold the sentence: one per word, or one for all words, or none (Parquet)
    record  its columns by name, for example {"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}

Readers raise ValueError("FILE:LINE: reason"). A large file is read in blocks, by several processes.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from util.annotations import as_record
from util.lines import Block, Layout, detect_layout, is_border, split_columns, text_lines, word_columns
from util.tables import DOCUMENT_ID, SENTENCE_ID, column_names, table_rows


@dataclass(frozen=True)
class Reader:
    """A source and the function that reads it."""

    function: Callable[..., Iterator[tuple[list[int], dict]]]
    source: Any  # a path, or a Dataset
    options: dict = field(default_factory=dict)
    block_ends_at: str | None = None  # "line", "empty line", or None: the file is one block
    description: str = ""  # of the format, such as "CoNLL, 2 columns: tokens, tags"

    def read(self, block: Block | None = None) -> Iterator[tuple[list[int], dict]]:
        """Yields (lines, record). Without a block: of the whole file."""
        return self.function(self.source, block, **self.options)


def sentence_lines(path: str, block: Block | None = None) -> Iterator[list[tuple[int, list[str]]]]:
    """Yields the lines of every sentence as [(number, columns)]."""
    sentence: list[tuple[int, list[str]]] = []
    for number, line in text_lines(path, block):
        columns = split_columns(line)
        if not is_border(columns):
            if len(columns) == 9 and line.rstrip("\r\n").count("\t") == 9:
                columns.append("")  # an empty MISC
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
    """The options of read_conll."""
    return {"layout": detect_layout(path)}


def conll_names(width: int) -> list[str]:
    """Words first, tags last. Columns between them are pos_tags, chunk_tags, "4", "5" ..."""
    middle = ["pos_tags", "chunk_tags", *map(str, range(4, width))][: max(0, width - 2)]
    return ["tokens", *middle, "tags"][:width]


def read_conll(path: str, block: Block | None, layout: Layout, labeled: bool = True):
    """CoNLL columns, separated by tabs or blanks. An empty line ends a sentence; comments begin with #.

    labeled: a line of one column is an error. Otherwise, words may stand alone.
    """
    names, width = conll_names(layout.width), layout.width
    numbers: list[int] = []
    words: list[list[str]] = []
    for number, line in text_lines(path, block):
        columns = split_columns(line)
        if is_border(columns):
            if words:
                yield numbers, _by_column(names, words)
                numbers, words = [], []
            continue
        if len(columns) != width or columns[0].startswith("#") or (width == 1 and labeled):
            try:
                regular = word_columns(line, columns, layout, at_start=not words)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            if regular is None:
                continue
            columns = regular
            if len(columns) == 1 and labeled:
                raise ValueError(f"{path}:{number}: {columns[0]!r} has no tag")
        numbers.append(number)
        words.append(columns)
    if words:
        yield numbers, _by_column(names, words)


# Columns 2 to 10 of https://universaldependencies.org/format.html
CONLLU_COLUMNS = ("tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def read_conllu(path: str, block: Block | None, misc: str | None = None):
    """CoNLL-U. Ranges (3-4, the surface form of two syntactic words) and empty nodes (8.1) are skipped.

    misc: an attribute of the last column that becomes a column: "name" for name=B-PER. Words without it have O.
    """
    for sentence in sentence_lines(path, block):
        numbers, words = [], []
        for number, columns in sentence:
            if columns[0].startswith("#"):
                continue
            if len(columns) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", columns[0]):
                raise ValueError(f"{path}:{number}: not a line of CoNLL-U: {len(columns)} columns, expected 10")
            if columns[0].isdigit():
                numbers.append(number)
                words.append(columns[1:])
        if words:
            record = _by_column(CONLLU_COLUMNS, words)
            if misc:
                record[misc] = [misc_attributes(text).get(misc, "O") for text in record["misc"]]
            yield numbers, record


def misc_attributes(text: str) -> dict[str, str]:
    """ "SpaceAfter=No|name=B-PER" -> {"SpaceAfter": "No", "name": "B-PER"}"""
    pairs = (pair.partition("=") for pair in text.split("|"))
    return {name: value for name, _, value in pairs if value}


def _check_unique(names: list[str], position: str = "") -> None:
    """Raises ValueError for a duplicate column, since json and csv would silently keep its last value."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{position}duplicate column {name!r}")


def _json_object(pairs: list[tuple]) -> dict:
    _check_unique([name for name, _ in pairs])
    return dict(pairs)


_decode_json = json.JSONDecoder(object_pairs_hook=_json_object).raw_decode
BETWEEN_VALUES = re.compile(r'(?:[\s,\]]|\[(?!\s*"))*')  # ["text", {...}] is a record of spaCy


def _json_objects(path: str, number: int, text: str):
    """Yields ([line number], object) for every object of a text. Returns the number of the last line read."""
    end = 0
    while True:
        start = BETWEEN_VALUES.match(text, end).end()
        if start == len(text):
            return number
        number += text.count("\n", end, start)
        try:
            record, end = _decode_json(text, start)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON: {getattr(error, 'msg', error)}") from None
        try:
            yield [number], record if isinstance(record, dict) else as_record(record)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
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


def read_csv(
    path: str, block: Block | None, delimiter: str, names: list[str] | None = None, quoted: bool | None = None,
    word_per_row: bool | None = None, width: int = 0, skip_blanks: bool = False,
):  # fmt: skip
    """A table: one sentence a row (words and tags separated by blanks, or lists), or one word a row.

    With one word a row, a sentence ends at an empty line, at a row of empty cells, at "EndOfSentence" in a column
    "misc", at another header, or at a new value in the column of sentence ids. An empty id repeats the id above.

    names: of the columns, if the file has no header. quoted: whether cells may be quoted (not in TSV).
    word_per_row: if it is not known from the names. width, skip_blanks: see table_rows.
    """
    rows = table_rows(path, delimiter, delimiter != "\t" if quoted is None else quoted, width, skip_blanks)
    header = [] if names else next((row for _, row in rows if row), [])
    names = names or column_names(header)
    lower = [name.lower() for name in names]
    id_column = next((i for i, name in enumerate(lower) if name in SENTENCE_ID), None)
    document_column = next((i for i, name in enumerate(lower) if name in DOCUMENT_ID), None)
    misc_column = lower.index("misc") if "misc" in lower else None
    if word_per_row is None:
        word_per_row = id_column is not None or "word" in lower or "token" in lower
    lines: list[int] = []  # of the sentence
    cells: list[list[str]] = []
    last_id, num_borders, ended = "", 0, False
    for line, row in rows:
        row_id = row[id_column] if id_column is not None and row else ""
        if row_id and document_column is not None:
            row_id += f" {row[document_column]}"
        if row == header:
            row = []
        if not row or ended or not word_per_row or (row_id != last_id and row_id):
            num_borders += 1
            if cells:
                yield lines, _csv_sentence(names, cells, word_per_row)
                lines, cells = [], []
        last_id = row_id or last_id
        ended = misc_column is not None and len(row) > misc_column and "EndOfSentence" in row[misc_column]
        if row:
            lines.append(line)
            cells.append(row)
    if cells:
        yield lines, _csv_sentence(names, cells, word_per_row)
    if word_per_row and num_borders == 0 and header and not ended:
        missing = "neither a column sentence_id nor an empty line ends a sentence"
        raise ValueError(f"{path}: one word a row, but {missing}")


def _csv_sentence(names: list[str], rows: list[list[str]], word_per_row: bool) -> dict:
    """Rows of one word each, or one row that holds the sentence."""
    return _by_column(names, rows) if word_per_row or len(rows) > 1 else dict(zip(names, rows[0]))


def read_parquet(path: str, block: Block | None):
    """Parquet. A block is a range of row groups."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        groups = list(range(block.start, block.end)) if block else None
        for batch in file.iter_batches(batch_size=1000, row_groups=groups):
            for record in batch.to_pylist():
                yield [], record
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def read_dataset(dataset, block: Block | None):
    """A Dataset of the Hub or of save_to_disk. A block is a range of rows."""
    for record in dataset.select(range(block.start, block.end)) if block else dataset:
        yield [], record
