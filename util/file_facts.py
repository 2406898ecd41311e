"""What only a whole file shows: how its spans are counted, whether a missing column means no entities, and whether
its records are annotated sentences at all.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from util.annotation_tools import find_annotations, is_task, task_regions
from util.annotations import source_position
from util.columns import Columns, label_columns, pick_column, pick_columns
from util.list_cells import parse_list
from util.spans import ASTRAL, Span, TextOfSpans, is_region, parse_span
from util.tables import SENTENCE_ID

ENOUGH_VOTES = 1000  # spans that have only one reading
ENOUGH_RECORDS = 1000  # at the beginning of a file: words, after which no spans are expected; or anything annotated

Record = tuple[list[int], dict]  # the numbers of its lines, and its columns


def file_facts(
    records: Iterable[Record],
    columns: Columns,
    source_name: str,
    first_row: int = 0,
    may_have_astral: bool = True,
) -> Columns:
    """Returns columns with what the records show about the file: span_offsets, regions, refusal.

    records: all of the file, from its first record on, not only some of them: they are read up to the first error,
    and only as far as needed. Usually, 1000 are enough. Tasks of Label Studio are read up to the first regions.
    first_row: the number of records before these, for messages.
    may_have_astral: whether the file may have characters above U+FFFF (in UTF-8, bytes from 0xF0; in JSON also
    surrogates as escapes, such as \\ud83d). If so, up to all records are needed.

    Records that are invalid are skipped, since their error is raised when they are read. Raises ValueError if the
    spans of the file can be counted in two ways.
    """
    regions, spans, contents, of_words = columns.regions, _SpanReadings(), _Contents(columns), 0
    counts_units = may_have_astral and columns.span_offsets is None
    is_complete = False
    for number, (lines, record) in enumerate(_with_end(records)):
        if record is None:
            is_complete = True
            break
        if spans.num_decisive >= ENOUGH_VOTES or of_words == ENOUGH_RECORDS:
            break
        if not counts_units and (regions or number >= ENOUGH_RECORDS) and contents.is_annotated:
            break
        regions = regions or _regions_column(record, columns)
        contents.add(record, has_regions=regions is not None)
        if counts_units:
            position = source_position(source_name, lines, first_row + number)
            spans.add(record, replace(columns, regions=regions) if regions else columns, position)
        of_words += of_words == number and has_no_spans(record, columns)
    offsets = columns.span_offsets or spans.majority(columns.widen_spans)
    return replace(columns, regions=regions, span_offsets=offsets, refusal=contents.refusal(is_complete))


def _with_end(records: Iterable[Record]) -> Iterator[tuple[list[int], dict | None]]:
    """The records up to the first error, which reading the file raises again. None follows the last one."""
    try:
        yield from records
    except ValueError:
        return
    yield [], None


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
    if "data" in names and not {"annotations", "completions", "predictions"}.isdisjoint(names):
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
# Whether the records are annotated sentences


class _Contents:
    """Counts records that hold no annotated sentence. A file of nothing else is refused."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.num_records = self.num_tasks = self.num_annotated = self.num_words = 0
        self.has_choices = self.has_predictions = self.has_names_of_words = False
        self.is_annotated = False  # whether a record is no task without regions

    def add(self, record: dict, has_regions: bool) -> None:
        self.num_records += 1
        if is_task(record):
            self.num_tasks += 1
            self.has_predictions = self.has_predictions or bool(record.get("predictions"))
            self._add_task(record)
        elif has_regions or not _may_lack_regions(record, self.columns):
            self.is_annotated = True
        if self.num_words == self.num_records - 1:
            self.num_words += self._is_word(record)

    def _add_task(self, record: dict) -> None:
        try:
            regions, _ = task_regions(record)
            if regions is not None:
                self.num_annotated += 1
                annotations = record.get("annotations") or record.get("completions")
                results = [result for annotation in annotations for result in annotation["result"]]
                self.has_choices = self.has_choices or any(result.get("type") == "choices" for result in results)
            self.is_annotated = self.is_annotated or bool(regions) or self.columns.labels is not None
        except ValueError:
            self.is_annotated = True  # the error is raised when it is read

    def _is_word(self, record: dict) -> bool:
        """Whether a record is one word and its tag, perhaps with a name that tells it."""
        try:
            text, label = pick_columns(tuple(record), self.columns)
        except ValueError:
            return False
        if not (_is_single(record[text]) and _is_single(record[label])):
            return False
        names = {name.lower() for name in record}
        if text.lower() in ("word", "token", "form") or not names.isdisjoint(SENTENCE_ID):
            self.has_names_of_words = True
        if record[label].startswith("I-"):
            self.has_names_of_words = True
        return True

    def refusal(self, is_complete: bool) -> str | None:
        """Why the file cannot be read. is_complete: the records are all of the file."""
        is_named = self.columns.text is not None and self.columns.labels is not None
        if self.num_words == self.num_records > 1 and self.has_names_of_words and not is_named:
            return "it has one word per record; write one sentence per record, or CSV or CoNLL with one word a line"
        if not is_complete or self.num_tasks < self.num_records or not self.num_tasks or self.is_annotated:
            return None
        if not self.num_annotated:
            problem = f"none of its {self.num_tasks:,} tasks of Label Studio has an annotation that was not cancelled"
            note = (
                "; predictions are not read: make annotations of them in Label Studio" if self.has_predictions else ""
            )
            return problem + note
        if self.has_choices:
            return "its annotations by Label Studio are classifications of whole texts (choices), without regions"
        return None


def _is_single(value) -> bool:
    return isinstance(value, str) and len(value.split()) == 1


def _may_lack_regions(record: dict, columns: Columns) -> bool:
    """Whether a record may be a task of Label Studio's JSON-MIN or CSV without regions."""
    if not {"id", "annotation_id", "annotator"} & set(record) or "answer" in record:
        return False
    return all(record[name] in (None, "", []) for name in _candidates(tuple(record), columns))


# --------------------------------------------------------------------------------------------------
# Characters or UTF-16 units

_FITS = 3  # the least plausibility of a reading that cuts no word


class _Open(NamedTuple):
    """A span with two possible readings."""

    position: str
    span: Span
    in_characters: str
    in_utf16: str


class _SpanReadings:
    """Counts the spans that are possible only in characters, and those only in UTF-16 units.

    Only spans after a character of two units count, since the others have one reading. A reading is possible if the
    span covers whole words, or the text that it quotes. With --widen_spans, readings that cut words are possible,
    too. They count only if there are no others, and the one that cuts fewer words counts.
    """

    def __init__(self) -> None:
        self.num_characters = self.num_utf16 = 0
        self.num_cut_characters = self.num_cut_utf16 = 0
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
            readings = [source.plausibility(span, utf16) for utf16 in (False, True)]
            if max(readings) >= _FITS or columns.widen_spans:
                self._add_span(span, readings, source, position)

    def _add_span(self, span: Span, readings: list[int], source: TextOfSpans, position: str) -> None:
        in_characters, in_utf16 = readings
        if in_characters == in_utf16:
            if in_characters and self.first_open is None:
                plain = span._replace(quoted=None)
                texts = [source.text[slice(*source.locate(plain, utf16))] for utf16 in (False, True)]
                self.first_open = _Open(position, span, *texts)
        elif max(readings) >= _FITS:
            self.num_characters += in_characters > in_utf16
            self.num_utf16 += in_utf16 > in_characters
            self.first_decisive = self.first_decisive or position
        else:
            self.num_cut_characters += in_characters > in_utf16
            self.num_cut_utf16 += in_utf16 > in_characters

    def majority(self, widen: bool) -> str | None:
        """None: no span has a possible reading that differs. Raises ValueError if there is no majority.

        widen: --widen_spans.
        """
        if self.num_characters != self.num_utf16:
            return "utf16" if self.num_utf16 > self.num_characters else "characters"
        way_out = "pass --span_offsets characters or --span_offsets utf16"
        if self.num_decisive:
            counts = f"{self.num_characters} only in characters, {self.num_utf16} only in UTF-16 units"
            raise ValueError(f"{self.first_decisive}: spans that fit the words: {counts}; {way_out}")
        if widen and self.num_cut_characters != self.num_cut_utf16:
            return "utf16" if self.num_cut_utf16 > self.num_cut_characters else "characters"
        if self.first_open:
            position, span, in_characters, in_utf16 = self.first_open
            readings = f"is {in_characters!r} in characters and {in_utf16!r} in UTF-16 units"
            raise ValueError(f"{position}: span {span.start}-{span.end} {span.type} {readings}; {way_out}")
        if self.num_cut_utf16:
            raise ValueError(f"spans that cut fewer words: as many in characters as in UTF-16 units; {way_out}")
        return None


def _texts(record: dict) -> Iterator[str]:
    data = record.get("data")  # of a task of Label Studio
    for value in (*record.values(), *(data.values() if isinstance(data, dict) else ())):
        if isinstance(value, str):
            yield value


def _is_astral(text: str) -> bool:
    return not text.isascii() and ASTRAL.search(text) is not None
