"""Lines of text files, and what a line of a column file is: a word, a comment, or the border of two sentences."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLANKS = "\r\n\t "  # words may hold other white space, such as no-break spaces


class Block(NamedTuple):
    """A part of a source that is read by itself. It begins and ends between two sentences."""

    start: int  # bytes; row groups of Parquet; rows of a Dataset
    end: int
    first_line: int = 1
    first_row: int = 0  # sentences before it, where the format has no lines


def text_lines(path: str, block: Block | None = None) -> Iterator[tuple[int, str]]:
    """Yields (number, line). Raises ValueError for a line that is not UTF-8."""
    block = block or Block(0, os.path.getsize(path))
    number, num_bytes = block.first_line, block.end - block.start
    with open(path, "rb") as file:
        file.seek(block.start)
        while num_bytes > 0:
            raw_lines = file.readlines(min(num_bytes, 1 << 15))  # whole lines, as many as fit into the CPU's cache
            if not raw_lines:
                return
            size = sum(map(len, raw_lines))
            if size > num_bytes:  # readlines reads on at the very end of a block
                size -= len(raw_lines.pop())
            num_bytes -= size
            try:
                lines = list(map(bytes.decode, raw_lines))
            except UnicodeDecodeError:
                lines = list(_lines_before_error(raw_lines))
            if number == 1 and lines:
                lines[0] = lines[0].lstrip("\ufeff")
            yield from enumerate(lines, number)
            number += len(lines)
            if len(lines) < len(raw_lines):
                raise ValueError(f"{path}:{number}: not UTF-8{how_to_convert(path)}")


def _lines_before_error(raw_lines: list[bytes]) -> Iterator[str]:
    with contextlib.suppress(UnicodeDecodeError):
        yield from map(bytes.decode, raw_lines)


# --------------------------------------------------------------------------------------------------
# Encodings

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32LE", b"\0\0\xfe\xff": "UTF-32BE", b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE",
}  # fmt: skip
_ARCHIVES = {b"\x1f\x8b": "gunzip -k", b"PK\x03\x04": "unzip", b"\xfd7zXZ\0": "unxz -k"}
_ARCHIVES |= {b"BZh%d1AY&SY" % level: "bunzip2 -k" for level in range(1, 10)}


def check_encoding(path: str, beginning: bytes) -> None:
    """Raises ValueError for files that are valid UTF-8, but whose lines are not text.

    English text in UTF-16 without a byte order mark is valid UTF-8: every other character is NUL.
    """
    if _utf16_by_zeros(beginning) or beginning.startswith(tuple(_ARCHIVES)):
        raise ValueError(f"{path}:1: not UTF-8{how_to_convert(path)}")
    if b"\r" in beginning and b"\n" not in beginning:
        name = shlex.quote(path)
        raise ValueError(rf"{path}:1: lines end with CR only; convert it: tr '\r' '\n' < {name} > {name}.lf")


def _utf16_by_zeros(beginning: bytes) -> str | None:
    zeros = [beginning[i::2].count(0) for i in (0, 1)]
    if len(beginning) < 4 or max(zeros) < len(beginning) / 8 or max(zeros) < 8 * min(zeros):
        return None
    return "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"


def how_to_convert(path: str) -> str:
    """The end of an error message: what the file probably is, and the command that converts it to UTF-8."""
    with open(path, "rb") as file:
        content = file.read(1 << 26)
    beginning = content[: 1 << 20]
    for magic, command in _ARCHIVES.items():
        if beginning.startswith(magic):
            return f", but compressed; unpack it: {command} {shlex.quote(path)}"
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if beginning.startswith(mark)), None)
    encoding = encoding.removesuffix("LE").removesuffix("BE") if encoding else _utf16_by_zeros(beginning)
    if encoding:
        return _command(path, encoding)
    # Lines that are UTF-8, and hold more than ASCII.
    lines = content.split(b"\n")
    num_utf8 = sum(not line.isascii() and _decodes(line, "utf-8") for line in lines)
    num_others = sum(not _decodes(line, "utf-8") for line in lines)
    if num_utf8 > num_others:
        return f", but other lines are; fix this line ({num_others:,} in all)"
    return _other_encoding(path, content)


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _command(path: str, encoding: str) -> str:
    name = shlex.quote(path)
    return f", but probably {encoding}; convert it: iconv -f {encoding} -t UTF-8 {name} > {name}.utf8"


def _other_encoding(path: str, content: bytes) -> str:
    """The encoding of Western European text, or several candidates for other text."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    if counts[:9].sum() + counts[14:27].sum():  # control characters
        return ": no text; binary files are not read"
    candidates = [name for name in ("GB18030", "BIG5", "SHIFT_JIS", "EUC-KR") if _is_east_asian(content, name)]
    is_high = np.frombuffer(content, np.uint8) >= 0x80
    in_runs = np.count_nonzero(is_high[1:] & is_high[:-1])
    if not candidates and 2 * in_runs <= counts[0x80:].sum():  # single letters within ASCII words
        return _command(path, "WINDOWS-1252" if counts[0x80:0xA0].any() else "ISO-8859-1")
    name, options = shlex.quote(path), " or ".join(candidates or ["WINDOWS-1251", "KOI8-R"])
    return f"; convert it: iconv -f ENCODING -t UTF-8 {name} > {name}.utf8, where ENCODING may be {options}"


def _is_east_asian(content: bytes, encoding: str) -> bool:
    """Whether bytes are text in this encoding. Most characters of Western text would stand beside ASCII letters."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    num_others = sum(not character.isascii() for character in text)
    beside_letters = len(re.findall(r"[A-Za-z][^\x00-\x7f]|[^\x00-\x7f][A-Za-z]", text))
    return 2 * beside_letters < num_others


# --------------------------------------------------------------------------------------------------
# Columns, borders, comments


def split_columns(line: str) -> list[str]:
    """Splits a line at tabs, or at blanks if it has no tab. An empty line has no columns. A word may be blank."""
    stripped = line.rstrip(BLANKS)
    if not stripped:
        return []
    if "\t" in line:
        return stripped.split("\t")
    columns = stripped.split(" ")  # str.split() without arguments would also split at no-break spaces
    return [column for column in columns if column] if "" in columns else columns


# Of CoNLL-2003 (-DOCSTART-), and as others write it: -DOCSTART, --DOCSTART--, -docstart-, DOCSTART.
_DOCSTART = re.compile(r"(?i:-+docstart-*|docstart-+)|DOCSTART")


def is_border(columns: list[str]) -> bool:
    """Whether a line separates sentences: an empty line, or the beginning of a document."""
    if not columns:
        return True
    if columns[0][:1] not in ("-", "D", "d"):
        return False
    return _DOCSTART.fullmatch(columns[0].partition(" ")[0]) is not None


# Tabs, and all characters at which programs end a line.
_SEPARATORS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


def conll_word(word: str) -> str:
    """A word as the first column of a line.

    Tabs and line ends become spaces. A word that could be a comment or the border of documents begins with a space.
    """
    word = _SEPARATORS.sub(" ", word)
    is_like_comment = word.startswith("#") and " " in word
    return f" {word}" if is_like_comment or is_border([word]) else word


class Layout(NamedTuple):
    """What the beginning of a column file tells about its lines."""

    width: int  # columns of a word
    has_tabs: bool  # in every line that holds a word
    values: frozenset[str]  # of the last column, on lines that cannot be comments


# A tag with the position of its word in an entity: O, B-PER, b_per, PER-B, or B alone.
IOB_TAG = re.compile(r"[Oo]|[BIESLUMW]|[BIESLUMWbieslumw][-_:./|]\S+|[^\W\d]\S*[-_:./|][BIESLUMW]")
_KEY_AND_VALUE = re.compile(r"#+ +\S+ +=( |$)")  # "# sent_id = 2"
# "#begin document", "# id 0a1b domain=en", "###DOC:1"
PROBABLY_COMMENT = re.compile(r"#+ ?((begin|end|new)? ?(document|doc|par)|id)\b|#+ ?[\w.-]+ ?[:=]|# .*\w=\S", re.I)


def is_comment(line: str, columns: list[str], layout: Layout, at_start: bool) -> bool:
    """Whether a line of a column file that begins with # is a comment, not a word.

    It is if it does not have the shape of a word: another number of columns, or blanks where words have tabs. In the
    middle of a sentence, a comment begins with "# ". A line with the shape of a word may be a comment in front of
    a sentence, if it has blanks for separators. Raises ValueError if that cannot be decided.

    at_start: no word of the sentence stands above the line.
    """
    if not columns[0].startswith("#"):
        return False
    has_shape = len(columns) == layout.width and ("\t" in line or not layout.has_tabs)
    if not has_shape:
        return at_start or line.startswith("# ")
    if not at_start or ("\t" in line and " " not in columns[0]):
        return False
    if _KEY_AND_VALUE.match(line):
        return True
    tag = columns[-1]
    if tag in layout.values or tag == "O" or (len(tag) > 1 and IOB_TAG.fullmatch(tag)):
        return False
    if PROBABLY_COMMENT.match(line):
        return True
    shown = line.strip(BLANKS)
    raise ValueError(f"{shown!r} may be a comment or a word; separate columns with tabs, or remove the line")


def word_columns(line: str, columns: list[str], layout: Layout, at_start: bool) -> list[str] | None:
    """The columns of a line that is not shaped as most lines are, or None for a comment.

    Raises ValueError, without the position, for a line that is neither a word nor a comment.
    """
    if is_comment(line, columns, layout, at_start):
        return None
    if len(columns) == layout.width:
        return columns
    # Only the last columns are empty.
    if "\t" in line and len(columns) > 1 and line.rstrip("\r\n").count("\t") == layout.width - 1:
        return columns + [""] * (layout.width - len(columns))
    # " O" is an empty word and its tag, if columns are separated by blanks.
    if len(columns) == layout.width - 1 and line.startswith(" ") and columns[-1] in layout.values:
        return ["", *columns]
    if len(columns) == 1:
        raise ValueError(f"{columns[0]!r} has no tag")
    raise ValueError(f"{len(columns)} columns where the lines above have {layout.width}")


def detect_layout(path: str) -> Layout:
    """The layout of a column file, from its first lines."""
    words, possible_comments, at_start = [], [], True
    for line in beginning_of(path, 2000):
        columns = split_columns(line)
        if is_border(columns):
            at_start = True
        elif columns[0].startswith("#") and at_start:
            possible_comments.append((line, columns))
        elif columns[0] != "#" or len(columns) <= 2 or (words and len(columns) == len(words[0][1])):
            words.append((line, columns))
            at_start = False
    if not words:  # "# O" may be a word; "# a comment" is none
        words = [entry for entry in possible_comments if entry[1][0] != "#" or len(entry[1]) <= 2]
    if not words:
        return Layout(0, False, frozenset())
    # The first line decides, so that an error is found in the line that differs from those above it.
    width = len(words[0][1])
    words = [entry for entry in words if len(entry[1]) == width]
    values = {columns[-1] for _, columns in words if len(columns) > 1}
    return Layout(width, all("\t" in line for line, _ in words), frozenset(values))


def beginning_of(path: str, size: int = 1000) -> list[str]:
    """The first lines, up to one that is not UTF-8. size: how many of them are neither empty nor comments."""
    found: list[str] = []
    with contextlib.suppress(ValueError):  # reading the file raises it again
        for _, line in text_lines(path):
            found.append(line)
            size -= not line.startswith(("#", "\n", "\r"))
            if size == 0:
                break
    return found
