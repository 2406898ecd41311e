"""Whether a file to tag is plain text, JSON Lines, or a corpus that is read as in training.

The content of a file decides, since .txt, .data or no suffix may be anything. In doubt a file is text: a poem must not
become columns. Flags that name the columns, and the files of the training run, need no such guess.
"""

import csv
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from util.annotations import Columns, label_columns, text_columns
from util.column_choice import choose_columns, first_records
from util.format_detection import choose_reader
from util.formats import (
    BETWEEN_VALUES,
    Reader,
    conll_layout,
    read_conll,
    read_conllu,
    read_csv,
    read_json_array,
    read_parquet,
)
from util.lines import IOB_TAG, beginning_of, check_encoding, is_border, split_columns, word_columns
from util.plausibility import kind
from util.tables import KNOWN_NAMES, uses_quotes

JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}
CORPUS_SUFFIXES = {".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv", ".csv", ".parquet", ".json"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BEGINNING_SIZE = 1 << 20  # bytes


def choose_input(path: str, columns: Columns, is_corpus: bool) -> tuple[str, Reader | None, Columns]:
    """A file -> its format ("text", "json", "corpus"), and the reader and the columns of a corpus.

    is_corpus: known to be one. Raises ValueError for an encoding that is not UTF-8, where the beginning shows it, and
    for a corpus that training refuses.
    """
    with open(path, "rb") as file:
        beginning = file.read(BEGINNING_SIZE)
    if not beginning:
        return "text", None, columns
    check_encoding(path, beginning[: 1 << 16])
    suffix = Path(path).suffix.lower()
    is_json = suffix in JSON_SUFFIXES or begins_with_json(beginning)
    if is_json:
        reader = choose_reader(path, text_columns(columns), label_columns(columns))
        if reader.function is not read_json_array or (suffix != ".json" and _is_array(beginning.partition(b"\n")[0])):
            return "json", None, columns
    else:
        has_known_format = is_corpus or suffix in CORPUS_SUFFIXES
        found = _choose_reader(path, beginning, suffix, columns, has_known_format)
        if found is None or not (has_known_format or looks_like_corpus(path, found)):
            return "text", None, columns
        reader = found
    if reader.function is read_conll:
        reader.options["labeled"] = False  # words may stand alone
    reader = _with_texts_per_row(reader, columns)
    reader, columns, _ = choose_columns(path, reader, columns, only_words=True)
    return "corpus", reader, columns


def _choose_reader(path: str, beginning: bytes, suffix: str, columns: Columns, has_known_format: bool) -> Reader | None:
    """The reader of a file whose content and suffix are not JSON. None: it is text."""
    if beginning.startswith(b"PAR1") and suffix != ".parquet" and not _ends_with(path, b"PAR1"):
        return None
    one_column = _one_column(path, suffix, columns) if has_known_format else None
    if one_column:
        return one_column
    try:
        reader = choose_reader(path, text_columns(columns), label_columns(columns))
    except ValueError:
        first_line = beginning.lstrip().partition(b"\n")[0]
        if has_known_format or b"\t" in first_line:
            raise
        return None  # a sentence that seems to be a header: "Word by word, tag by tag"
    begins_like_json = reader.description in ("JSON array", "JSON Lines")
    return None if begins_like_json and not has_known_format else reader


def _ends_with(path: str, ending: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(ending), os.path.getsize(path)), os.SEEK_END)
        return file.read() == ending


# --------------------------------------------------------------------------------------------------
# JSON

# An object with a key, or spaCy's ["text", {...}]; also within arrays.
_LIKE_JSON = re.compile(r'[\[\s]*(\{\s*"(?:[^"\\\n]|\\.)*"\s*:|\[\s*"(?:[^"\\\n]|\\.)*"\s*,\s*\{)')
_decode = json.JSONDecoder().raw_decode


def begins_with_json(beginning: bytes) -> bool:
    """Whether a file begins with a record of JSON. A text may begin with [ or {, too."""
    text = beginning.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").lstrip()
    if not _LIKE_JSON.match(text):
        return False
    is_cut = len(beginning) == BEGINNING_SIZE and "\n" not in text
    if is_cut or _first_value_is_json(text):
        return True
    return any(_is_object(line) for line in text.split("\n", 20)[1:20])  # only the first line is invalid


def _first_value_is_json(text: str) -> bool:
    """Whether the first value, or the first object in an array, is valid, and followed by others on its line."""
    for start in (0, text.index("{")):
        try:
            _, end = _decode(text, start)
        except (ValueError, RecursionError):
            continue
        rest = text[end:].partition("\n")[0].strip()
        return not rest or rest[0] in ",{[]"
    return False


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(_decode(line)[0], dict)
    except (ValueError, RecursionError):
        return False


def _is_array(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.removeprefix(BYTE_ORDER_MARK)), list)
    except (ValueError, RecursionError):
        return False


def split_values(line: bytes) -> list[bytes]:
    """A line of JSON Lines -> its records: one, or more, or one with a comma. An invalid line stays as it is."""
    is_usual = line.startswith(b"{") and line.endswith(b"}") and not re.search(rb"\}\s*,?\s*\{", line)
    if is_usual:
        return [line]
    values, end = [], 0
    try:
        text = line.decode()
        while True:
            start = BETWEEN_VALUES.match(text, end).end()
            if start == len(text):
                return values
            value, end = _decode(text, start)
            if not isinstance(value, (dict, list)):
                return [line]
            values.append(text[start:end].encode())
    except (ValueError, RecursionError):
        return [line]


# --------------------------------------------------------------------------------------------------
# Tables


def _one_column(path: str, suffix: str, columns: Columns) -> Reader | None:
    """The reader of a table of one column: documents below the name of the column, or words without a header."""
    lines = [line.strip("\r\n") for line in beginning_of(path)]
    lines_of_words = [line for line in lines if line.strip()]
    if suffix not in (".csv", ".tsv") or not lines_of_words:
        return None
    name = lines_of_words[0].strip(' "')
    # Without a known name, a header of one word above texts: its name is in the error of the first text.
    is_header = len(split_columns(name)) == 1 and not set(name) & set(",;\t") and any(" " in line for line in lines)
    if is_header or name.lower() in [column.lower() for column in text_columns(columns) if not column.isdigit()]:
        delimiter = "\t" if suffix == ".tsv" else ","
        quoted = delimiter == "," or uses_quotes(path, lines_of_words, delimiter)
        is_column_of_words = name.lower() not in ("text", "sentence") and _are_words(lines)
        options = {"delimiter": delimiter, "quoted": quoted, "word_per_row": is_column_of_words}
        return Reader(read_csv, path, options, description=f"a table of one column: {name}")
    if all(len(split_columns(line)) <= 1 and not set(line) & set('",;') for line in lines):
        return Reader(read_conll, path, conll_layout(path), block_ends_at="empty line", description="words")
    return None


def _are_words(lines: list[str]) -> bool:
    """Whether the lines below a header hold a word each, and empty lines end sentences."""
    rows = [line.strip() for line in lines[1:]]
    has_borders = "" in "\n".join(rows).strip("\n").split("\n")
    return has_borders and not any(" " in row or row.startswith(("[", '"[')) for row in rows)


def _with_texts_per_row(reader: Reader, columns: Columns) -> Reader:
    """With a text in every row, if most texts have blanks, or if the column of tags is empty.

    Such a table without tags (pandas, Label Studio, classes of texts) looks as if a row had a word and a tag.
    """
    if reader.function is not read_csv or reader.options.get("names") or not reader.options.get("word_per_row"):
        return reader
    by_row = dataclasses.replace(reader, options=reader.options | {"word_per_row": False})
    texts, labels = [], []
    for _, record in first_records(by_row, 200):
        cells = {name.lower(): cell for name, cell in record.items()}
        for names, values in ((text_columns(columns), texts), (label_columns(columns), labels)):
            cell = next((cells[name.lower()] for name in names if name.lower() in cells), "")
            values.append(cell.strip())
    num_with_blanks = sum(" " in text for text in texts)
    is_text = 2 * num_with_blanks > len(texts) or (num_with_blanks > 0 and not any(labels))
    return by_row if is_text else reader


# --------------------------------------------------------------------------------------------------
# Columns, or lines of text?

# A prefix and a type of letters, as B-PER, b_per or PER-B. "I-95" and "B-52" are words, and so is "E-mail".
_REAL_TAG = re.compile(r"[BIbi][-_:./|][^\W\d]\S*|[MESUL][-_:][A-Z]{2,}\S*|[A-Z]{2,}[-_][BI]")


def looks_like_corpus(path: str, reader: Reader) -> bool:
    """Whether a file whose name does not tell its format is something else than lines of text."""
    lines = [line for line in beginning_of(path) if not is_border(split_columns(line))]
    words = [line for line in lines if not line.startswith("#") or "\t" in line]
    if reader.function is read_parquet:
        return True
    if reader.function is read_conllu:
        return any("\t" in line for line in words[:1])  # a sentence may have ten words, the first one a number
    if reader.function is read_csv:
        return _is_table(words, reader)
    return _are_columns(path, reader)


def _is_table(lines: list[str], reader: Reader) -> bool:
    delimiter, names = reader.options["delimiter"], reader.options.get("names")
    if delimiter == " ":  # a header such as "Token Tag"
        return _are_tags([split_columns(line)[-1] for line in lines[1:]])
    if names and reader.options["word_per_row"] is False:  # a sentence and its tags in a line, or its translation
        return _are_tags([tag for line in lines for tag in split_columns(line)[1].split()])
    if names:  # quoted cells, or a tag behind a comma in every line
        rows = csv.reader(lines, delimiter=delimiter)
        return len(names) > 1 and _are_entities([row[-1] for row in rows if row])
    quoting = csv.QUOTE_MINIMAL if reader.options["quoted"] else csv.QUOTE_NONE
    header, *rows = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    num_regular = sum(len(row) == len(header) for row in rows)
    has_known_names = sum(name.strip().lower() in KNOWN_NAMES for name in header) >= 2
    return has_known_names and bool(rows) and 10 * num_regular >= 9 * len(rows)


def _are_columns(path: str, reader: Reader) -> bool:
    """Whether most lines have the same columns, and the last one holds tags."""
    layout, at_start, num_others = reader.options["layout"], True, 0
    rows: list[list[str]] = []
    lines = beginning_of(path)
    for line in lines:
        columns = split_columns(line)
        if is_border(columns):
            at_start = True
            continue
        try:
            row = word_columns(line, columns, layout, at_start)
        except ValueError:
            num_others += 1
            continue
        if row is not None:
            rows.append(row)
            at_start = False
    if layout.width < 2 or not rows or num_others > len(rows) / 10:
        return False
    tags = [row[-1] for row in rows]
    if not layout.has_tabs:
        return _are_tags(tags)
    has_borders = not all(line.strip() for line in "".join(lines).strip().split("\n"))
    # Training refuses a file whose tags are not in the last column, and names the flags that read it.
    return any(map(_are_tags, list(zip(*rows))[1:])) or _are_labels(rows, has_borders)


def _are_tags(tags: Sequence[str]) -> bool:
    """Whether most values are such as B-PER and O, and both occur."""
    num_tags = sum(IOB_TAG.fullmatch(tag) is not None for tag in tags)
    has_outside = "O" in tags or "o" in tags
    return has_outside and any(map(_REAL_TAG.fullmatch, tags)) and 2 * num_tags >= len(tags)


def _are_entities(tags: list[str]) -> bool:
    """Whether all values are such as B-PER or O."""
    return all(tag in ("O", "o") or _REAL_TAG.fullmatch(tag) for tag in tags)


def _are_labels(rows: list[list[str]], has_borders: bool) -> bool:
    """Whether the last column of a file with tabs holds tags, though not B-PER and O."""
    tags = [row[-1] for row in rows]
    if any(" " in cell.strip() for cell in tags) or kind(tags) == "numbers":
        return False
    if _are_entities(tags):
        return True
    num_tags, num_words = len(set(tags)), len({row[0] for row in rows})
    varies_little = num_tags < num_words and 2 * num_tags <= len(tags)
    return has_borders and not any(" " in row[0].strip() for row in rows) and ("O" in tags or varies_little)
