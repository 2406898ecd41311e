"""What only a whole file shows: how its spans are counted, and whether a missing column means no entities."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from util.annotation_tools import find_annotations
from util.annotations import source_position
from util.columns import Columns, label_columns, pick_column
from util.list_cells import parse_list
from util.spans import ASTRAL, Span, TextOfSpans, is_region, parse_span

ENOUGH_VOTES = 1000  # spans that have only one reading
ENOUGH_WORDS = 1000  # records of words at the beginning of a file, after which no spans are expected

Record = tuple[list[int], dict]  # the numbers of its lines, and its columns


def file_facts(records: Iterable[Record], columns: Columns, source_name: str, first_row: int = 0) -> Columns:
    """Returns columns with what the records show about the file: span_offsets, regions.

    records: of the file, from its first record on. It stops early where it can. A file without characters above
    U+FFFF (in UTF-8, bytes from 0xF0; in JSON also surrogates as escapes, such as \\ud83d) needs only some records,
    up to the first one with regions of Label Studio. Any other file needs all of them.
    first_row: the number of records before these, for messages.

    Records that are invalid are skipped, since their error is raised when they are read. Raises ValueError if the
    spans of the file can be counted in two ways.
    """
    regions, spans, of_words = columns.regions, _SpanReadings(), 0
    for number, (lines, record) in enumerate(records):
        if spans.num_decisive >= ENOUGH_VOTES or of_words == ENOUGH_WORDS:
            break
        regions = regions or _regions_column(record, columns)
        if columns.span_offsets is None:
            position = source_position(source_name, lines, first_row + number)
            spans.add(record, replace(columns, regions=regions) if regions else columns, position)
        elif regions:
            break
        of_words += of_words == number and has_no_spans(record, columns)
    return replace(columns, regions=regions, span_offsets=columns.span_offsets or spans.majority())


def has_no_spans(record: dict, columns: Columns) -> bool:
    """Whether a record has words and tags. False for a record that cannot be understood."""
    try:
        return find_annotations(record, columns).kind not in ("spans", "left out")
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------
# Regions of Label Studio


def _regions_column(record: dict, columns: Columns) -> str | None:
    """The column that holds regions as Label Studio's JSON-MIN and CSV have them."""
    for name in _candidates(tuple(record), columns):
        regions = record[name]
        if isinstance(regions, str):
            regions = _parse_regions(regions)
        if isinstance(regions, list) and regions and all(map(is_region, regions)):
            return name
    return None


@functools.lru_cache
def _candidates(names: tuple[str, ...], columns: Columns) -> list[str]:
    """The columns that can hold tags or spans."""
    if "data" in names and ("annotations" in names or "completions" in names):
        return []  # a whole task: it has its regions, or was not annotated
    found = []
    for name in label_columns(columns):
        try:
            found.append(pick_column(names, "", [name]))
        except ValueError:
            continue
    return found


def _parse_regions(cell: str) -> list | None:
    if not cell.lstrip().startswith("[{"):
        return None
    try:
        return parse_list(cell)
    except ValueError:
        return None


# --------------------------------------------------------------------------------------------------
# Characters or UTF-16 units


class _Open(NamedTuple):
    """A span with two possible readings."""

    position: str
    span: Span
    in_characters: str
    in_utf16: str


class _SpanReadings:
    """Counts the spans that are possible only in characters, and those only in UTF-16 units.

    Only spans after a character of two units count, since the others have one reading. A reading is possible if the
    span covers whole words, or the text that it quotes.
    """

    def __init__(self) -> None:
        self.num_characters = self.num_utf16 = 0
        self.first_open: _Open | None = None
        self.first_decisive = ""

    @property
    def num_decisive(self) -> int:
        return self.num_characters + self.num_utf16

    def add(self, record: dict, columns: Columns, position: str) -> None:
        if not any(map(_is_astral, _texts(record))):
            return
        try:
            found = find_annotations(record, columns)
            spans = list(map(parse_span, found.labels)) if found.kind == "spans" else []
        except ValueError:
            return
        source = TextOfSpans(found.text) if spans else None
        for span in filter(source.has_two_readings, spans) if source else ():
            in_characters, in_utf16 = source.fits(span, utf16=False), source.fits(span, utf16=True)
            self.num_characters += in_characters and not in_utf16
            self.num_utf16 += in_utf16 and not in_characters
            if in_characters and in_utf16 and self.first_open is None:
                plain = span._replace(quoted=None)
                texts = [source.text[slice(*source.locate(plain, utf16))] for utf16 in (False, True)]
                self.first_open = _Open(position, span, *texts)
            elif in_characters != in_utf16:
                self.first_decisive = self.first_decisive or position

    def majority(self) -> str | None:
        """None: no span has a possible reading that differs. Raises ValueError if there is no majority."""
        if self.num_characters != self.num_utf16:
            return "utf16" if self.num_utf16 > self.num_characters else "characters"
        way_out = "pass --span_offsets characters or --span_offsets utf16"
        if self.num_decisive:
            counts = f"{self.num_characters} only in characters, {self.num_utf16} only in UTF-16 units"
            raise ValueError(f"{self.first_decisive}: spans that fit the words: {counts}; {way_out}")
        if self.first_open:
            position, span, in_characters, in_utf16 = self.first_open
            readings = f"is {in_characters!r} in characters and {in_utf16!r} in UTF-16 units"
            raise ValueError(f"{position}: span {span.start}-{span.end} {span.type} {readings}; {way_out}")
        return None


def _texts(record: dict) -> Iterator[str]:
    data = record.get("data")  # of a task of Label Studio
    for value in (*record.values(), *(data.values() if isinstance(data, dict) else ())):
        if isinstance(value, str):
            yield value


def _is_astral(text: str) -> bool:
    return not text.isascii() and ASTRAL.search(text) is not None
