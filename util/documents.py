"""Documents: read from lines of text, JSON Lines, or any file that training reads; written with their entities."""

import colorsys
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from util import report
from util.annotations import Columns, as_record, pick_column, shown, split_words, text_columns, words_and_tags
from util.formats import Reader
from util.input_format import BYTE_ORDER_MARK, choose_input, split_values
from util.lines import conll_word, how_to_convert
from util.list_cells import split_cells

CHUNK_SIZE = 1024  # documents
FORMAT_OF_SUFFIX = {".jsonl": "json", ".ndjson": "json", ".json": "json"}  # of the output
FORMAT_OF_SUFFIX |= dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv"), "conll")


class Document(NamedTuple):
    text: str
    words: list[tuple[int, int]]  # (start, end) in the text
    record: dict  # the JSON object that it came in

    @classmethod
    def from_text(cls, text: str, record: dict | None = None):
        return cls(text, split_words(text), record or {})

    @classmethod
    def from_words(cls, words: list[str], record: dict | None = None):
        """Raises ValueError for a value that is no word, as training does."""
        spans, start = [], 0
        for word in words:
            if not isinstance(word, str):
                raise ValueError(f"a word is {shown(word)}")
            spans.append((start, start + len(word)))
            start += len(word) + 1  # the space
        return cls(" ".join(words), spans, record or {})


class Tagged(NamedTuple):
    """What a model finds in a document."""

    entities: list[dict]  # {"entity_group" or "entity", "score", "word", "start", "end"}
    tags: list[str]  # one per word


# ---------------------------------------------------------------------------------------------------------
# Input


class RawDocument(NamedTuple):
    """A document before it is parsed. An invalid line of text or JSON Lines is an error of one document only."""

    number: int  # of its line, or of its row in a format without lines
    content: bytes | dict  # a line, or a record of util/formats.py

    def as_bytes(self) -> bytes:
        return json.dumps(self.content).encode() if isinstance(self.content, dict) else self.content


@dataclass
class Input:
    """Documents to tag: lines of text, JSON Lines, or the sentences of any file that training reads."""

    name: str  # in messages
    format: str  # "text", "json", or "corpus"
    stream: Callable[[], Iterable[bytes]] | None = None  # opens the lines of text and JSON Lines
    reader: Reader | None = None  # of a corpus
    columns: Columns = field(default_factory=Columns)
    is_named: bool = False  # the columns are those of this input, not those of another file

    def chunks(self) -> Iterator[list[RawDocument]]:
        """Yields CHUNK_SIZE documents at a time, so that memory does not grow with the input."""
        documents = self._lines(self.stream()) if self.stream else self._records()
        while chunk := list(itertools.islice(documents, CHUNK_SIZE)):
            yield chunk

    def _lines(self, stream: Iterable[bytes]) -> Iterator[RawDocument]:
        """An empty line is an empty document of a text. JSON Lines skips it."""
        for number, line in enumerate(stream, 1):
            line = line.rstrip(b"\r\n")
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if self.format == "text":
                yield RawDocument(number, line)
            elif line.strip():
                for value in split_values(line.strip()):
                    yield RawDocument(number, value)

    def _records(self) -> Iterator[RawDocument]:
        assert self.reader
        for row, (lines, record) in enumerate(self.reader.read(), 1):
            yield RawDocument(lines[0] if lines else row, record)

    def parse(self, raw: RawDocument) -> Document:
        """Raises ValueError for an invalid document."""
        if isinstance(raw.content, dict):
            return document_of_record(raw.content, self.columns)
        line = raw.content.decode("utf-8")
        return self._parse_json(line) if self.format == "json" else Document.from_text(line)

    def _parse_json(self, line: str) -> Document:
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from None
        record = record if isinstance(record, dict) else as_record(record)
        json.dumps(record, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which is not text
        columns = self.columns
        if columns.text and not (self.is_named or _has_column(record, columns.text)):
            columns = Columns(task=columns.task)  # a model may be trained on a file of other columns
        return document_of_record(record, columns)._replace(record=record)

    def describe(self, error: ValueError) -> str:
        """The message of an error of parse(). For a file that is not UTF-8: with the command that converts it."""
        if isinstance(error, UnicodeDecodeError) and os.path.isfile(self.name):
            return f"not UTF-8{how_to_convert(self.name)}"
        return str(error)


def open_texts(texts: list[str]) -> Input:
    """Command-line arguments. Those that are not UTF-8 become errors, as lines of a file do."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return Input("text", "text", lambda: encoded)


def open_input(path: str, columns: Columns, is_named: bool | None = None) -> Input:
    """A file of any format, or standard input ("-") of text or JSON Lines. columns: see util/annotations.py.

    is_named: the columns are meant for this file, which is no plain text then. By default, if they have names.
    """
    if path == "-":
        stream = sys.stdin.buffer
        return Input("-", "json" if _begins_with_object(stream.peek()) else "text", lambda: stream)
    if is_named is None:
        is_named = bool(columns.text or columns.labels)
    format, reader, columns = choose_input(path, columns, is_corpus=is_named)
    if reader:
        return Input(path, format, reader=reader, columns=columns)
    return Input(path, format, lambda: open(path, "rb"), columns=columns, is_named=is_named)


def _begins_with_object(beginning: bytes) -> bool:
    return beginning.lstrip(BYTE_ORDER_MARK + b" \t\r\n").startswith(b"{")


def document_of_record(record: dict, columns: Columns) -> Document:
    """The words that training reads. Of a record without tags: its text, or its words."""
    try:
        words = words_and_tags(record, columns).words
    except ValueError:
        words = []
    values = _values(record)
    text = values.get("text")
    if columns.text or not isinstance(text, str):
        text = values[pick_column(values, "--text_column_name", text_columns(columns))]
    text = _list_of_words(text)
    if isinstance(text, str):
        document = Document.from_text(text)
        same = words == [text[start:end] for start, end in document.words]
        return document if same or not words else Document.from_words(words)
    if not isinstance(text, list):
        raise ValueError("neither a text nor a list of words")
    return Document.from_words(words or text)


def _values(record: dict) -> dict:
    """The columns of a record. Those of a task of Label Studio are in "data"."""
    data = record.get("data")
    return data | {name: record[name] for name in record if name != "data"} if isinstance(data, dict) else record


def _has_column(record: dict, column: str) -> bool:
    """Whether a column has this name. A number counts as one only where it is meant for this file."""
    return column.lower() in [name.lower() for name in _values(record)]


def _list_of_words(text):
    """The words of a text that is a list as Python, JSON or numpy write it; else the text."""
    try:
        return split_cells(text, None)[0]
    except ValueError:
        return text


def _refuse_constant(constant: str):
    raise ValueError(f"{constant} is not JSON")  # NaN and Infinity, which Python would read


# ---------------------------------------------------------------------------------------------------------
# Output

OUTPUT_FORMATS = ("text", "json", "conll", "html")


def output_format(path: str) -> str:
    """By the suffix of a path."""
    suffix = Path(path).suffix
    return "html" if suffix == ".html" else FORMAT_OF_SUFFIX.get(suffix, "text")


def format_document(
    document: Document, tagged: Tagged, format: str, colors: dict[str, int], on_terminal: bool = False
) -> str:
    """A document in one of OUTPUT_FORMATS. colors: hues by entity type (report.type_colors)."""
    if format == "json":
        rounded = [entity | {"score": round(entity["score"], 6)} for entity in tagged.entities]
        fields = {"text": document.text} | _other_fields(document) | {"entities": rounded}
        return json.dumps(fields, ensure_ascii=False) + "\n"
    if format == "conll":
        words = [conll_word(document.text[start:end]) for start, end in document.words]
        return "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tagged.tags)) + "\n"
    spans = [(e["start"], e["end"], e.get("entity_group") or e["entity"]) for e in tagged.entities]
    if format == "html":
        return report.article(document.text, spans, colors, [f"{e['score']:.4f}" for e in tagged.entities])
    lines = [_colored(document.text, spans, colors) if on_terminal else document.text]
    width = max([8, *(len(name) for _, _, name in spans)])
    for entity, (start, end, name) in zip(tagged.entities, spans):
        lines.append(f"  {f'{start}-{end}':>13}  {name:{width}} {entity['score']:.4f}  {entity['word']}")
    return "\n".join(lines) + "\n"


def _other_fields(document: Document) -> dict:
    """The fields of the input. Its own `entities`, and a `text` that is not the one tagged, are renamed."""
    fields = {}
    for name, value in document.record.items():
        new_name = name
        if name == "entities" or (name == "text" and value != document.text):
            while new_name in document.record:
                new_name += "_input"
        fields[new_name] = value
    return fields


def _colored(text: str, spans: list[tuple[int, int, str]], colors: dict[str, int]) -> str:
    """The text with its entities in bold color, by the escape sequences of terminals."""
    pieces, position = [], 0
    for start, end, name in spans:
        rgb = colorsys.hls_to_rgb(colors[name] / 360, 0.55, 0.8)
        red, green, blue = (round(255 * part) for part in rgb)
        pieces.append(f"{text[position:start]}\033[1;38;2;{red};{green};{blue}m{text[start:end]}\033[0m")
        position = end
    return "".join(pieces) + text[position:]
