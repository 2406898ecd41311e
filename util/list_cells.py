"""Cells of tables that hold a list, as Python, JSON or numpy write it.

['Anna', 'sang']      pandas.DataFrame.to_csv of a column of lists
['Anna' 'sang']       the same of a column of numpy arrays
["Anna", "sang"]      JSON
"""

import ast
import json
import re

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# A value of a flat list and what separates it from the next one. numpy 2 writes np.str_('Anna').
_ITEM = re.compile(rf"(?:np\.\w+\()?({_STRING}|-?\d+)\)?(?:\s*,\s*|\s+|(?=\]))", re.DOTALL)
_ANY_STRING = re.compile(_STRING, re.DOTALL)
_LIKE_A_LIST = re.compile(r"\[\S.*\]$|\[\s*['\"{\[(]", re.DOTALL)  # [B-PER, O]; but "[ NN ]" may be three tags
_LIKE_WORDS = re.compile(r"\[\S.*,.*\]$|\[\s*['\"]", re.DOTALL)  # [Anna, sang]; but "[laughter]" may be a text
_FIRST_STRING = re.compile(rf"\[\s*(?:np\.\w+\()?(?:{_STRING})", re.DOTALL)


def parse_list(cell: str) -> list | None:
    """The list that a cell holds. None: it is not a list. Raises ValueError if numpy shortened it."""
    cell = cell.strip()
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
    try:
        return ast.literal_eval(cell)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


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


def split_cells(text, labels):
    """The cells of words and of tags as lists, where they hold lists. Other values stay as they are.

    A text may begin with "[" too. It is a list if the tags are one, or if it is a list of quoted strings.
    Raises ValueError for a cell that looks like a list but cannot be read as one.
    """
    tags = _list_or_error(labels) if isinstance(labels, str) and "[" in labels else labels
    if not isinstance(text, str) or "[" not in text:
        return text, tags
    if isinstance(tags, list) and not all(isinstance(tag, (str, int)) for tag in tags):
        return text, tags  # spans of the text, which is none of a list
    if isinstance(tags, list) and tags and _LIKE_WORDS.match(text.strip()):
        return _list_or_error(text), tags
    if _FIRST_STRING.match(text.lstrip()):
        words = parse_list(text)
        if words and all(isinstance(word, str) for word in words):
            return words, tags
    return text, tags


def _list_or_error(cell: str) -> list | str:
    """A cell as a list; as it is if it does not look like one."""
    values = parse_list(cell)
    if values is not None:
        return values
    if _LIKE_A_LIST.match(cell.strip()):
        raise ValueError(f"{_shown(cell.strip())} looks like a list, but cannot be read as one of Python or JSON")
    return cell


def _shown(cell: str) -> str:
    return cell if len(cell) <= 60 else cell[:60] + "..."
