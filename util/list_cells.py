"""Cells of tables that hold a list, as Python, JSON or numpy write it.

['Anna', 'sang']      pandas.DataFrame.to_csv of a column of lists
['Anna' 'sang']       the same of a column of numpy arrays
["Anna", "sang"]      JSON
('Anna', 'sang')      Python's tuples

Lists of other languages, and values that something else than blanks joins, are refused.
"""

import ast
import json
import re

from util.lines import IOB_TAG

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# A value of a flat list and what separates it from the next one. numpy 2 writes np.str_('Anna').
_ITEM = re.compile(rf"(?:np\.\w+\()?({_STRING}|-?\d+)\)?(?:\s*,\s*|\s+|(?=\]))", re.DOTALL)
_ANY_STRING = re.compile(_STRING, re.DOTALL)
_LIKE_A_LIST = re.compile(r"\[\S.*\]$|\[\s*['\"{\[(]", re.DOTALL)  # [B-PER, O]; but "[ NN ]" may be three tags
_LIKE_WORDS = re.compile(r"\[\S.*,.*\]$|\[\s*['\"]", re.DOTALL)  # [Anna, sang]; but "[laughter]" may be a text
_FIRST_STRING = re.compile(rf"\[\s*(?:np\.\w+\()?(?:{_STRING})", re.DOTALL)


_OTHER_LISTS = re.compile(r"(?:(?:np\.|numpy\.)?array\(\s*\[|c\(\s*['\"]|list\(\s*['\"\[(]).*\)$", re.DOTALL)
_IN_BRACES = re.compile(r"\{[^{}:]*\}")  # of PostgreSQL
_IN_PARENTHESES = re.compile(rf"\(\s*(?:{_STRING}|\d+|[(\[{{]).*\)$", re.DOTALL)
# What numpy and pandas write within a list, and the strings in between, which stay as they are.
_OF_NUMPY = re.compile(
    rf"({_STRING})|\b(nan)\b|np\.\w+\(([^()'\"]*)\)|array\((\[[^][()]*\])(?:,\s*dtype=\w+)?\)|(\}})\s*(?=\{{)",
    re.DOTALL,
)


def parse_list(cell: str) -> list | None:
    """The list that a cell holds. None: it is not a list. Raises ValueError if numpy shortened it."""
    cell = cell.strip()
    if _IN_PARENTHESES.match(cell):
        values = _literal(cell)
        return list(values) if isinstance(values, tuple) else None
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        return json.loads(cell)  # whatever is between [ and ] is a list
    except (ValueError, RecursionError):
        pass
    values = _flat_list(cell)
    if values is not None:
        return values
    without_strings = _ANY_STRING.sub("\0", cell)
    if re.match(r"\[\s*(?:\0|-?\d)", without_strings) and "..." in without_strings:
        way_out = "write the lists with tolist(), or set numpy.printoptions(threshold=sys.maxsize)"
        raise ValueError(f"{_shown(cell)} is a list that numpy shortened to its ends; {way_out}")
    if re.search("\0\\s*\0", without_strings):
        return None  # Python would join the strings: ['a' 'b'] is ['ab']
    values = _literal(cell)
    return _literal(_OF_NUMPY.sub(_as_python, cell)) if values is None else values


def _literal(cell: str):
    try:
        return ast.literal_eval(cell)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _as_python(match: re.Match) -> str:
    string, nan, number, values, end_of_object = match.groups()
    if end_of_object:  # of an object in an array, where no comma follows
        return "},"
    return "None" if nan else string or number or values or "None"


def _flat_list(cell: str) -> list | None:
    """A list of strings and integers, separated by commas or white space."""
    cell = "[" + cell[1:].lstrip()
    values, position = [], 1
    while position < len(cell) - 1:
        item = _ITEM.match(cell, position)
        if item is None:
            return None
        try:
            values.append(ast.literal_eval(item[1]))
        except (ValueError, SyntaxError):  # an escape such as \x without digits, a number such as 007
            return None
        position = item.end()
    return values


# Brackets, other separators than blanks, and a single value, such as nan.
_NOT_PLAIN = re.compile(r"[\[({|]|\S[,;]|[,;]\S|^\s*\S*\s*$")
_LISTS = ("(", "{", "array(", "np.array(", "numpy.array(", "c(", "list(")


def are_plain(text: str, labels: str) -> bool:
    """Whether the cells of words and of tags are values separated by blanks, by a fast check."""
    return "[" not in text and not text.startswith(_LISTS) and not _NOT_PLAIN.search(labels)


def split_cells(text, labels):
    """The cells of words and of tags as lists, where they hold lists. Other values stay as they are.

    A text may begin with "[" too. It is a list if the tags are one, or if it is a list of quoted strings.
    Raises ValueError for a cell that looks like a list but cannot be read as one.
    """
    if isinstance(text, str) and isinstance(labels, str):
        _refuse_other_lists(text.strip(), labels.strip())
    tags = _list_or_error(labels) if isinstance(labels, str) else labels
    if not isinstance(text, str) or ("[" not in text and "(" not in text):
        return text, tags
    if isinstance(tags, list) and not all(isinstance(tag, (str, int)) for tag in tags):
        return text, tags  # spans of the text, which is none of a list
    if tags == [] and isinstance(labels, str) and re.fullmatch(r"\s*(\[\s*\]|\(\s*\))\s*", text):
        return [], []
    if isinstance(tags, list) and tags and _LIKE_WORDS.match(text.strip()):
        return _list_or_error(text), tags
    if _FIRST_STRING.match(text.lstrip()) or (isinstance(labels, str) and _IN_PARENTHESES.match(text.strip())):
        words = parse_list(text)
        if words and all(isinstance(word, str) for word in words):
            return words, tags
    return text, tags


def _refuse_other_lists(text: str, labels: str) -> None:
    """Raises ValueError for cells that are lists of other languages, joined by separators, or missing."""
    way_out = "write lists as JSON, or values separated by blanks"
    for cell in (labels, text):
        if _OTHER_LISTS.match(cell):
            raise ValueError(f"{_shown(cell)} is a list as numpy or R writes it; {way_out}")
    if _IN_BRACES.fullmatch(text) and _IN_BRACES.fullmatch(labels):
        raise ValueError(f"{_shown(labels)} is an array as PostgreSQL writes it; {way_out}")
    missing = labels.lower()
    if missing in ("nan", "<na>") or (missing in ("none", "null", "na") and text.lower() == missing):
        raise ValueError(f"the cells {_shown(text)!r} and {labels!r} are missing values; remove the row")
    if labels.startswith(("[", "(", "{")):
        return
    for separator in "|,;/\t":
        pieces, words = (re.split(rf"\s*{re.escape(separator)}\s*", cell) for cell in (labels, text))
        if not 1 < len(pieces) == len(words) or not all(pieces) or any(" " in piece for piece in pieces):
            continue
        joined = separator in "|,;" and not re.search(r"\s", labels + text)
        if joined or all(map(IOB_TAG.fullmatch, pieces)):
            raise ValueError(f"words and tags look joined by {separator!r} ({_shown(labels)}); {way_out}")


def _list_or_error(cell: str) -> list | dict | str:
    """A cell as a list; as it is if it does not look like one. {"start": [0], ...} is a list of spans by columns."""
    values = parse_list(cell) if "[" in cell or "(" in cell else None
    if values is not None:
        return values
    stripped = cell.strip()
    if stripped in ("[]", "()"):
        return []
    if re.match(r"\{\s*['\"]\w+['\"]\s*:\s*(\[|array)", stripped):
        found = _literal(_OF_NUMPY.sub(_as_python, stripped))
        return found if isinstance(found, dict) else cell
    if _LIKE_A_LIST.match(stripped) and "[" in cell:
        raise ValueError(f"{_shown(stripped)} looks like a list, but cannot be read as one of Python or JSON")
    return cell


def _shown(cell: str) -> str:
    return cell if len(cell) <= 60 else cell[:60] + "..."
