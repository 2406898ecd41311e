"""The format of a file is recognized by its content."""

import csv
import re
import shlex
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
from util.lines import IOB_TAG, PROBABLY_COMMENT, beginning_of, check_encoding, is_border, split_columns
from util.tables import SENTENCE_ID, clean_name, column_names, header_evidence, uses_quotes

# The beginning of a JSON value. "{} O", "[] O" and "[ O" are words and their tags.
_JSON = re.compile(r'\{\s*("|\}\s*$)|\[\s*(\{\s*["}]|\]\s*$|\[?\s*"(?:[^"\\]|\\.)*"\s*,)')


def choose_reader(path: str, text_columns: list[str], label_columns: list[str]) -> Reader:
    """The reader for a file, by its content. A suffix such as .json also counts if the content is invalid.

    text_columns, label_columns: names that identify the header of a table.
    """
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    beginning = start.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if suffix == ".parquet" or beginning.startswith("PAR1"):
        return Reader(read_parquet, path, description="Parquet")
    check_encoding(path, start)
    if suffix in (".json", ".jsonl", ".ndjson") or _JSON.match(beginning):
        if beginning.startswith("[") and not re.match(r'\[\s*"', beginning):
            return Reader(read_json_array, path, description="JSON array")
        return Reader(read_json_lines, path, block_ends_at="line", description="JSON Lines")
    lines = [line.rstrip("\r\n") for line in beginning_of(path) if not is_border(split_columns(line))]
    lines = _without_comments(lines)
    _refuse_by_name(path, beginning, lines)
    if _is_conllu(lines):
        return Reader(read_conllu, path, block_ends_at="empty line", description="CoNLL-U")
    table = _detect_table(path, suffix, lines, text_columns, label_columns)
    if table:
        return table
    width = len(split_columns(lines[0])) if lines else 0
    description = f"CoNLL, {width} columns: {', '.join(conll_names(width))}"
    return Reader(read_conll, path, conll_layout(path), block_ends_at="empty line", description=description)


def _without_comments(lines: list[str]) -> list[str]:
    """The lines that are no comments. A line that begins with # is a row if it has the separators of the others."""
    others = [line for line in lines if not line.startswith("#")] or [line for line in lines if "\t" in line]
    if not others:
        return []
    separators = [separator for separator in "\t,;" if separator in others[0]]
    counts = {separator: others[0].count(separator) for separator in separators}

    def is_row(line: str) -> bool:
        is_sentence = not line.startswith("# ") and not PROBABLY_COMMENT.match(line)
        return is_sentence and any(line.count(separator) == counts[separator] for separator in separators)

    return [line for line in lines if not line.startswith("#") or is_row(line)] or others


def _refuse_by_name(path: str, beginning: str, lines: list[str]) -> None:
    """Raises ValueError for formats whose lines could be taken for columns."""
    if beginning.startswith("#FORMAT=WebAnno"):
        raise ValueError(f"{path}:1: WebAnno TSV is not read; export CoNLL 2002 from INCEpTION or WebAnno")
    if not lines:
        return
    if re.match(r"T\d+\t\S+ \d+ \d+", lines[0]):
        advice = "convert them to CoNLL (docs/formats.md)"
        raise ValueError(f"{path}:1: the words are ids ({lines[0].split()[0]!r}) of annotations of brat; {advice}")
    if all(" ||| " in line for line in lines):
        command = f"sed 's/ ||| /\\t/' {shlex.quote(path)} > {shlex.quote(path)}.tsv"
        raise ValueError(f"{path}:1: words and tags separated by |||; separate them with a tab: {command}")
    pieces = [split_columns(line) for line in lines]
    for mark in "/|":
        joined = all(0 < piece.rfind(mark) < len(piece) - 1 for row in pieces for piece in row)
        if joined and "\t" not in lines[0] and max(map(len, pieces)) > 1:
            advice = "write one word and its tag a line, separated by a tab"
            raise ValueError(f"{path}:1: words and tags joined by {mark} ({pieces[0][0]!r}); {advice}")


def _is_conllu(lines: list[str]) -> bool:
    """Whether the lines of ten columns begin with the number of a word, a range or an empty node."""
    rows = [line.split("\t") if "\t" in line else split_columns(line) for line in lines]
    ids = [row[0] for row in rows if len(row) == 10]
    return len(rows) > 0 and len(rows[0]) == 10 and all(re.fullmatch(r"\d+([-.]\d+)?", number) for number in ids)


# --------------------------------------------------------------------------------------------------
# Tables


def _detect_table(
    path: str, suffix: str, lines: list[str], text_columns: list[str], label_columns: list[str]
) -> Reader | None:
    """The reader of a table, or None for columns without a header that tabs or blanks separate.

    lines: the first lines that are neither empty nor comments.
    """
    if lines and re.fullmatch(r"sep=.", lines[0]):  # of Excel
        lines = lines[1:]
    if not lines:
        return None
    delimiter = _delimiter(suffix, lines, text_columns, label_columns)
    quoted = delimiter in (",", ";") or uses_quotes(path, lines, delimiter)
    rows = _rows(lines, delimiter, quoted)
    if not rows:
        return None
    options = {"delimiter": delimiter, "quoted": quoted, "width": len(rows[0])}
    if delimiter in (",", ";") and all(cell[:1] in (" ", "") for row in rows for cell in row[1:]):
        options["skip_blanks"] = any(cell for row in rows for cell in row[1:])
    kind = _KIND[delimiter]
    has_names = _names_both(rows[0], text_columns, label_columns)
    known = [name.lower() for name in (*text_columns, *label_columns) if not name.isdigit()]
    evidence = 1.0 if has_names else header_evidence(rows, known)
    sentence_cells = None if has_names or delimiter == " " else _sentence_per_line(rows[:200])
    if sentence_cells and delimiter != "\t":
        evidence = 1.0  # sentences in CSV need names of columns
    elif sentence_cells and (evidence < 1 or " " in rows[0][sentence_cells[1]].strip()):
        names = [str(i) for i in range(1, len(rows[0]) + 1)]
        for cell, name in zip(sentence_cells, ("tokens", "tags")):
            names[cell] = name
        options |= {"names": names, "word_per_row": False}
        return Reader(read_csv, path, options, description="a sentence a line, 2 columns: tokens, tags")
    is_table = suffix in (".csv", ".tsv")
    by_number = text_columns[0].isdigit() and label_columns[0].isdigit()
    if (evidence == 0.5 and is_table and not by_number) or (evidence == 0.75 and not is_table):
        shown = ", ".join(map(repr, rows[0]))
        flags = f"--text_column_name {rows[0][0]} --label_column_name {rows[0][-1]}"
        advice = f"pass {flags} to read what is below a header; write tokens and tags above a word"
        raise ValueError(f"{path}:1: {shown} may be a header or a word; {advice}")
    if evidence == 1 or (evidence == 0.75 and is_table):
        names = column_names(rows[0])
        _check_repeated(path, rows[0], text_columns, label_columns)
        options["word_per_row"] = _is_word_per_row(names, rows[1:], label_columns)
        return Reader(read_csv, path, options, description=f"{kind}, {len(names)} columns: {', '.join(names)}")
    if quoted:
        names = conll_names(len(rows[0]))
        description = f"{kind} without a header, {len(names)} columns: {', '.join(names)}"
        return Reader(read_csv, path, options | {"names": names, "word_per_row": True}, description=description)
    return None


_KIND = {",": "CSV", ";": "CSV (;)", "\t": "TSV", " ": "Blank-separated"}


def _delimiter(suffix: str, lines: list[str], text_columns: list[str], label_columns: list[str]) -> str:
    """What separates the columns: a comma or a semicolon, a tab, or blanks."""
    for delimiter in ",;\t":
        if _names_both(lines[0].split(delimiter), text_columns, label_columns):
            return delimiter
    shares = {delimiter: sum(delimiter in line for line in lines) / len(lines) for delimiter in "\t,;"}
    if suffix in (".csv", ".tsv"):
        often = [delimiter for delimiter in ("\t,;" if suffix == ".tsv" else ",;\t") if shares[delimiter] > 0.9]
        if often:
            return max(often, key=lines[0].count)
        if shares[","] > 0.5 and suffix == ".csv":  # cells may extend over several lines
            return ","
    # "Anna,B-PER" in every line
    for delimiter in ",;":
        if all(IOB_TAG.fullmatch(line.rpartition(delimiter)[2].strip('"')) and delimiter in line for line in lines):
            return delimiter
    return "\t" if shares["\t"] > 0.5 else " "


def _names_both(header: list[str], text_columns: list[str], label_columns: list[str]) -> bool:
    """Whether a row names a column of words and one of tags."""
    names = {clean_name(name).lower() for name in header}
    names -= {name for name in names if name.isdigit()}  # a flag may give the number of a column
    return all(any(name.lower() in names for name in wanted) for wanted in (text_columns, label_columns))


def _rows(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    """The rows of the first lines. With quotes, the last one may be cut off."""
    if delimiter == " " and not quoted:
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
    if label is None and label_columns[0].isdigit() and int(label_columns[0]) <= len(names):
        label = int(label_columns[0]) - 1
    if label is None or not rows:
        return None
    cells = [row[label].strip() for row in rows if len(row) == len(names)]
    if any(" " in cell or cell.startswith("[") for cell in cells) or not any(cells):
        return False
    has_id = any(name in SENTENCE_ID for name in lower)
    return True if has_id or {"word", "token"} & set(lower) or len(rows) > 1 else None


def _sentence_per_line(rows: list[list[str]]) -> tuple[int, int] | None:
    """The cells that hold the words and the tags of a sentence, or None: most rows have as many of both.

    A row that has not is an error when it is read.
    """
    width = len(rows[0])
    for words, tags in ((0, 1), (1, 2), (0, width - 1)):
        if tags >= width or words == tags or any(len(row) != width for row in rows):
            continue
        counts = [(len(split_columns(row[words])), len(split_columns(row[tags]))) for row in rows]
        equal = [first for first, second in counts if first == second > 0]
        if 2 * len(equal) >= len(rows) and max(equal) > 1:
            return words, tags
    return None
