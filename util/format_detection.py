"""The format of a file is recognised by its content."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from util.formats import (
    Reader,
    conll_layout,
    conll_names,
    read_conll,
    read_conllu,
    read_csv,
    read_json_array,
    read_json_lines,
    read_parquet,
)
from util.lines import IOB_TAG, beginning_of, check_encoding, is_border, split_columns
from util.tables import SENTENCE_ID, column_names, is_header, uses_quotes


def choose_reader(path: str, text_columns: list[str], label_columns: list[str]) -> Reader:
    """The reader for a file, by its content. A suffix such as .json also counts if the content is invalid.

    text_columns, label_columns: names that identify the header of a table.
    """
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if suffix == ".parquet" or start.startswith(b"PAR1"):
        return Reader(read_parquet, path, description="Parquet")
    check_encoding(path, start)
    beginning = start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    # An object, or an array of objects, of arrays or of nothing. "[ O" is a word and its tag.
    if suffix in (".json", ".jsonl", ".ndjson") or re.match(r'\{\s*["}]|\[\s*[\]{]|\[\s*\[?\s*"', beginning):
        if beginning.startswith("[") and not re.match(r'\[\s*"', beginning):
            return Reader(read_json_array, path, description="JSON array")
        return Reader(read_json_lines, path, block_ends_at="line", description="JSON Lines")
    lines = [line.rstrip("\r\n") for line in beginning_of(path) if not is_border(split_columns(line))]
    words = [line for line in lines if not line.startswith("#")]
    if words and is_conllu(words[0]):
        return Reader(read_conllu, path, block_ends_at="empty line", description="CoNLL-U")
    table = _detect_table(path, suffix, words, text_columns, label_columns)
    if table:
        return table
    width = len(split_columns(words[0])) if words else 0
    description = f"CoNLL, {width} columns: {', '.join(conll_names(width))}"
    return Reader(read_conll, path, conll_layout(path), block_ends_at="empty line", description=description)


def is_conllu(line: str) -> bool:
    columns = split_columns(line)
    return len(columns) == 10 and columns[0][:1].isdigit()


def _detect_table(
    path: str, suffix: str, lines: list[str], text_columns: list[str], label_columns: list[str]
) -> Reader | None:
    """The reader of a table, or None for columns without a header that tabs or blanks separate.

    lines: the first lines that are neither empty nor comments.
    """
    if not lines:
        return None
    known = [name.lower() for name in (*text_columns, *label_columns) if not name.isdigit()]
    delimiter = _delimiter(suffix, lines, text_columns, label_columns)
    quoted = delimiter in (",", ";") or (delimiter == "\t" and uses_quotes(lines, delimiter))
    rows = _rows(lines, delimiter, quoted)
    has_names = _names_both(rows[0], text_columns, label_columns)
    if not has_names and delimiter == "\t" and _is_sentence_per_line(rows):
        names = ["tokens", "tags", *map(str, range(3, len(rows[0]) + 1))]
        options = {"quoted": quoted, "names": names, "word_per_row": False}
        description = "a sentence a line, 2 columns: tokens, tags"
        return Reader(read_csv, path, {"delimiter": delimiter} | options, description=description)
    if has_names or is_header(rows[0], rows[1:], known, expected=suffix in (".csv", ".tsv")):
        names = column_names(rows[0])
        _check_repeated(path, rows[0], text_columns, label_columns)
        options = {"quoted": quoted, "word_per_row": _is_word_per_row(names, rows[1:], label_columns)}
        description = f"{_KIND[delimiter]}, {len(names)} columns: {', '.join(names)}"
        return Reader(read_csv, path, {"delimiter": delimiter} | options, description=description)
    if quoted:
        names = conll_names(len(rows[0]))
        options = {"quoted": quoted, "names": names, "word_per_row": True}
        description = f"{_KIND[delimiter]} without a header, {len(names)} columns: {', '.join(names)}"
        return Reader(read_csv, path, {"delimiter": delimiter} | options, description=description)
    return None


_KIND = {",": "CSV", ";": "CSV (;)", "\t": "TSV", " ": "columns with a header"}


def _delimiter(suffix: str, lines: list[str], text_columns: list[str], label_columns: list[str]) -> str:
    """What separates the columns: a comma or a semicolon, a tab, or blanks."""
    header = lines[0]
    for delimiter in ",;\t":
        if _names_both(header.split(delimiter), text_columns, label_columns):
            return delimiter
    if suffix in (".csv", ".tsv") and any(delimiter in header for delimiter in ",;\t"):
        return max("\t,;" if suffix == ".tsv" else ",;\t", key=header.count)
    # "Anna,B-PER" in every line, where neither tabs nor blanks separate anything.
    for delimiter in ",;":
        if all(" " not in line and IOB_TAG.fullmatch(line.rpartition(delimiter)[2]) for line in lines):
            return delimiter
    return "\t" if "\t" in header else " "


def _names_both(header: list[str], text_columns: list[str], label_columns: list[str]) -> bool:
    """Whether a row names a column of words and one of tags."""
    names = {name.strip(' "\r').lower() for name in header}
    names -= {name for name in names if name.isdigit()}  # a flag may give the number of a column
    return all(any(name.lower() in names for name in wanted) for wanted in (text_columns, label_columns))


def _rows(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    """The rows of the first lines. With quotes, the last one may be cut off."""
    if delimiter == " ":
        return [split_columns(line) for line in lines]
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, quoting=quoting)
    try:
        return [row for row in rows if any(map(str.strip, row))]
    except csv.Error:
        return [line.split(delimiter) for line in lines]


def _check_repeated(path: str, header: Sequence[str], text_columns: list[str], label_columns: list[str]) -> None:
    """Raises ValueError if the column of words, or that of tags, occurs twice in the header."""
    lower = [name.strip().lower() for name in header]
    for wanted in (text_columns, label_columns):
        used = next((name for name in wanted if name.lower() in lower), None)
        if used and lower.count(used.lower()) > 1:
            raise ValueError(f"{path}:1: duplicate column {used!r}")


def _is_word_per_row(names: list[str], rows: list[list[str]], label_columns: list[str]) -> bool | None:
    """Whether a row holds one word, by its cells. None: the names of the columns decide."""
    lower = [name.lower() for name in names]
    label = next((lower.index(name.lower()) for name in label_columns if name.lower() in lower), None)
    if label is None and label_columns[0].isdigit():
        label = int(label_columns[0]) - 1
    if label is None or not rows:
        return None
    cells = [row[label].strip() for row in rows if len(row) == len(names)]
    if any(" " in cell or cell.startswith("[") for cell in cells):
        return False
    has_id = any(name in SENTENCE_ID for name in lower)
    return True if has_id or {"word", "token"} & set(lower) or len(rows) > 1 else None


def _is_sentence_per_line(rows: list[list[str]]) -> bool:
    """Whether each row has as many words in the first cell as tags in the second, and some row has several."""
    counts = [[len(split_columns(cell)) for cell in row[:2]] for row in rows]
    if not all(len(count) == 2 and count[0] == count[1] > 0 for count in counts) or max(map(max, counts)) < 2:
        return False
    return max(counts[0]) > 1 or IOB_TAG.fullmatch(rows[0][1]) is not None  # else a header
