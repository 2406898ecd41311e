"""The format of a file is recognised by its content."""

import re
from pathlib import Path

from util.formats import (
    Reader,
    conll_layout,
    is_border,
    read_conll,
    read_conllu,
    read_csv,
    read_json_array,
    read_json_lines,
    read_parquet,
    split_columns,
    text_lines,
)


def choose_reader(path: str, text_columns: list[str], label_columns: list[str]) -> Reader:
    """The reader for a file, by its content. A suffix such as .json also counts if the content is invalid.

    text_columns, label_columns: names that identify the header of a CSV file.
    """
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as file:
        beginning = file.read(1 << 16).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if suffix == ".parquet" or beginning.startswith("PAR1"):
        return Reader(read_parquet, path)
    if suffix in (".json", ".jsonl") or re.match(r'\{\s*["}]|\[\s*[\]{]', beginning):
        if beginning.startswith("["):
            return Reader(read_json_array, path)
        return Reader(read_json_lines, path, block_ends_at="line")
    delimiter = _csv_delimiter(suffix, beginning.partition("\n")[0], text_columns, label_columns)
    if delimiter:
        return Reader(read_csv, path, {"delimiter": delimiter})
    if _is_conllu(path):
        return Reader(read_conllu, path, block_ends_at="empty line")
    return Reader(read_conll, path, conll_layout(path), block_ends_at="empty line")


def _csv_delimiter(suffix: str, header: str, text_columns: list[str], label_columns: list[str]) -> str | None:
    """The delimiter of a CSV file. Its header names a column of words and one of tags. None: not CSV."""
    for delimiter in ",;\t":
        names = {name.strip(' "\r').lower() for name in header.split(delimiter)}
        has_text = any(name.lower() in names for name in text_columns)
        has_labels = any(name.lower() in names for name in label_columns)
        if has_text and has_labels:
            return delimiter
    return max(",;\t", key=header.count) if suffix in (".csv", ".tsv") else None


def _is_conllu(path: str) -> bool:
    for _, line in text_lines(path):
        columns = split_columns(line)
        if not is_border(columns) and not columns[0].startswith("#"):
            return len(columns) == 10 and columns[0][:1].isdigit()
    return False
