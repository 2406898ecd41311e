"""Tables (CSV, TSV, columns with a header): rows of cells, names of columns, and which rows make a sentence."""

import csv
from collections.abc import Iterator, Sequence
from operator import itemgetter

from util.lines import IOB_TAG, is_border, split_columns, text_lines

csv.field_size_limit(2**31 - 1)  # a cell may hold a document and its annotations
SENTENCE_ID = ("sentence_id", "sent_id", "sentence_idx", "sentence id", "sentence #")
# Names of columns in the headers of tagging corpora, in lower case.
KNOWN_NAMES = {
    *SENTENCE_ID, "word", "words", "token", "tokens", "form", "text", "sentence", "id", "tag", "tags", "label",
    "labels", "ner", "ner_tag", "ner_tags", "pos", "pos_tag", "pos_tags", "upos", "xpos", "chunk", "chunk_tag",
    "chunk_tags", "lemma", "entity", "entities", "spans", "iob", "bio", "iob_tag", "bio_tag", "misc", "feats", "head",
    "deprel",
}  # fmt: skip


def table_rows(path: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, cells) for every row, header included. A border of sentences has no cells.

    delimiter: " " splits as the columns of CoNLL do. Borders are empty lines, rows of empty cells and -DOCSTART-.
    Comments are skipped: rows of another number of cells that begin with "# ", or with # below a border.
    """
    lines = map(itemgetter(1), text_lines(path))
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = None if delimiter == " " else csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    line, width, at_start = 1, 0, True
    try:
        for row in reader or map(split_columns, lines):
            if len(row) != width or row[0][:1] in _FIRST_OF_OTHERS:
                if is_border(row) or not any(map(str.strip, row)):
                    row = []
                is_comment = bool(row) and len(row) != width and row[0].startswith("#")
                if is_comment and (at_start or row[0].startswith("# ")):
                    line += 1
                    continue
                width = width or len(row)  # of the header
                if row and len(row) != width:
                    raise csv.Error(f"{len(row)} cells under {width} column names")
            at_start = not row
            yield line, row
            line = reader.line_num + 1 if reader else line + 1  # a quoted cell may extend over several lines
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: {error}") from None


# Characters with which a row may begin that holds no word: a blank, an empty cell, a comment, -DOCSTART-.
_FIRST_OF_OTHERS = frozenset(("", " ", "\t", "\r", "#", "-", "D", "d"))


def column_names(header: Sequence[str]) -> list[str]:
    """Unique names: a column without a name, or with the name of an earlier one, is named by its number."""
    names = [name.strip() for name in header]
    return [name if name and name not in names[:i] else str(i + 1) for i, name in enumerate(names)]


def uses_quotes(lines: list[str], delimiter: str) -> bool:
    """Whether the writer of a TSV file quotes cells.

    Such a writer quotes cells that hold quotes, which it doubles, or tabs; or it quotes every cell. In other files,
    quotes are words, or parts of words.
    """
    plain = [line.split(delimiter) for line in lines]
    if not any(cell.startswith('"') for row in plain for cell in row):
        return False
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    if len(rows) != len(lines):  # a lone quote would swallow the lines up to the next one
        return False
    if any('"' in cell or delimiter in cell for cells, row in zip(plain, rows) if cells != row for cell in row):
        return True
    return all(cell.startswith('"') for row in plain for cell in row if cell)


def is_header(first: list[str], rows: list[list[str]], names: Sequence[str], expected: bool) -> bool:
    """Whether the first row of a table names its columns.

    rows: further rows. names: further names of columns, in lower case. expected: a table without a known name may
    have a header, too, since its name ends in .csv or .tsv.
    """
    # A single letter may be a name (W for words) as well as a tag.
    if not rows or any(cell == "O" or (len(cell) > 1 and IOB_TAG.fullmatch(cell)) for cell in first):
        return False
    num_known = sum(name.strip(' "').lower() in KNOWN_NAMES.union(names) for name in first)
    recurs = any(cell and any(row[i : i + 1] == [cell] for row in rows) for i, cell in enumerate(first))
    if num_known >= 2:
        return True
    return (num_known == 1 or expected) and not recurs
