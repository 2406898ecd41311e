"""Tables (CSV, TSV, columns with a header): rows of cells, names of columns, and which rows make a sentence."""

import csv
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter

from util.lines import IOB_TAG, is_border, split_columns, text_lines

csv.field_size_limit(2**31 - 1)  # a cell may hold a document and its annotations
SENTENCE_ID = ("sentence_id", "sent_id", "sentence_idx", "sentence id", "sentence #")
DOCUMENT_ID = ("doc_id", "document_id", "doc", "document", "docid", "file", "filename")  # sentence ids may recur
# Names of columns in the headers of tagging corpora, in lower case.
KNOWN_NAMES = {
    *SENTENCE_ID, "word", "words", "token", "tokens", "form", "text", "sentence", "id", "tag", "tags", "label",
    "labels", "ner", "ner_tag", "ner_tags", "pos", "pos_tag", "pos_tags", "upos", "xpos", "chunk", "chunk_tag",
    "chunk_tags", "lemma", "entity", "entities", "spans", "iob", "bio", "iob_tag", "bio_tag", "misc", "feats", "head",
    "deprel",
}  # fmt: skip


def table_rows(
    path: str, delimiter: str, quoted: bool, width: int = 0, skip_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, cells) for every row, header included. A border of sentences has no cells.

    delimiter: " " splits as the columns of CoNLL do. Borders are empty lines, rows of empty cells and -DOCSTART-.
    Comments are skipped: rows of one cell that begin with #, or of another number of cells that begin with "# ".
    width: the number of cells; 0: that of the first row. skip_blanks: cells begin with a blank that is not theirs.
    """
    lines = map(itemgetter(1), text_lines(path))
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = None
    if delimiter != " " or quoted:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=skip_blanks)
    line = 1
    try:
        for row in reader or map(split_columns, lines):
            may_be_special = not row or len(row) != width or row[0][:1] in _FIRST_OF_OTHERS or line == 1
            if may_be_special:
                if is_border(row) or not any(map(str.strip, row)):
                    row = []
                elif _is_comment(row, width) or (line == 1 and re.fullmatch("sep=.?", row[0])):  # of Excel
                    line = reader.line_num + 1 if reader else line + 1
                    continue
                width = width or len(row)
                if row and len(row) != width:
                    raise csv.Error(f"{len(row)} cells under {width} column names")
            yield line, row
            line = reader.line_num + 1 if reader else line + 1  # a quoted cell may extend over several lines
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: {error}") from None


# Characters with which a row may begin that holds no word: a blank, an empty cell, a comment, -DOCSTART-.
_FIRST_OF_OTHERS = frozenset(("", " ", "\t", "\r", "#", "-", "D", "d"))


def _is_comment(row: list[str], width: int) -> bool:
    if not row[0].startswith("#") or width == 1:
        return False
    if len(row) != width:
        return len(row) == 1 or row[0].startswith("# ")
    return row[0].startswith("# ") and not any(row[1:])


def clean_name(name: str) -> str:
    """'"Word"' -> "Word", "#word" -> "word", "#" -> "#"."""
    name = name.strip(' "\r')
    return name.lstrip("#").strip() or name


def column_names(header: Sequence[str]) -> list[str]:
    """Unique names: a column without a name, or with the name of an earlier one, is named by its number: (3)."""
    names = [clean_name(name) for name in header]
    return [name if name and name not in names[:i] else f"({i + 1})" for i, name in enumerate(names)]


def uses_quotes(path: str, lines: list[str], delimiter: str) -> bool:
    """Whether the writer of a file that tabs or blanks separate quotes cells. lines: the first ones.

    Such a writer quotes cells that hold quotes, which it doubles, or tabs; or it quotes every cell that is no number.
    In other files, quotes are words, or parts of words.
    """
    plain = [line.split(delimiter) for line in lines]
    if not any(cell.startswith('"') for row in plain for cell in row):
        return delimiter == "\t" and _has_quoted_quote(path)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    if len(rows) != len(lines):  # a lone quote would swallow the lines up to the next one
        return False
    if delimiter == "\t":
        changed = (cell for cells, row in zip(plain, rows) if cells != row for cell in row)
        if any('"' in cell or delimiter in cell for cell in changed):
            return True
    return all(cell.startswith('"') or cell.isdigit() for row in plain for cell in row if cell)


_QUOTED_QUOTE = re.compile(rb'(?m)(?:^|\t)"[^"\t\n]*""[^\t\n]*"(?=\t|\r?$)')


def _has_quoted_quote(path: str) -> bool:
    """Whether a file has a quoted cell with doubled quotes inside, which only writers that quote make."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            if b'""' in piece and _QUOTED_QUOTE.search(piece):
                return True
    return False


def header_evidence(rows: list[list[str]], names: Sequence[str]) -> float:
    """Whether the first row of a table names its columns: 1 yes, 0 no, 0.5 it cannot be told, 0.75 it seems so.

    names: further names of columns than KNOWN_NAMES, in lower case.
    """
    first, others = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not others or len(first) < 2 or any(_is_tag(cell) for cell in first):
        return 0
    num_known = sum(clean_name(name).lower() in KNOWN_NAMES.union(names) for name in first)
    if num_known >= 2:
        return 1
    recurs = any(cell and any(row[i] == cell for row in others) for i, cell in enumerate(first))
    if recurs:
        return 0
    # Below a name, tags are B-PER or O, and numbers are numbers. A name in capitals may be a wrong tag.
    columns = list(zip(*others))
    for i, (cell, column) in enumerate(zip(first, columns)):
        are_tags = all(map(_is_tag, column)) and (num_known or len(set(column)) < len(column))
        are_numbers = i > 0 and all(map(str.isdigit, column)) and not cell.isdigit()
        if (are_tags or are_numbers) and (num_known or not (cell.isascii() and cell.isupper())):
            return 1 if num_known else 0.75
    has_lower = [has_small_letters(text) for text in (first[-1], "".join(columns[-1]))]
    if num_known:
        return 1 if has_lower[0] != has_lower[1] else 0
    # Tags of parts of speech have capitals only (NNP); a name has others.
    return 0 if has_lower == [False, False] else 0.75 if has_lower == [True, False] else 0.5


def has_small_letters(text: str) -> bool:
    """Whether a text has letters that are no ASCII capitals."""
    return any(c.isalpha() and not "A" <= c <= "Z" for c in text)


def _is_tag(cell: str) -> bool:
    """Whether a cell is a tag such as B-PER or O. A single letter may be a name (W for words), too."""
    parts = cell.split() or [""]
    return all(part == "O" or (len(part) > 1 and IOB_TAG.fullmatch(part) is not None) for part in parts)
