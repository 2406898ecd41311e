"""Documents: read from lines of text, JSON Lines, or any file that training reads; written with their entities."""

import colorsys
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from util import report
from util.annotations import Columns, as_record, label_columns, pick_column, split_words, text_columns, words_and_tags
from util.column_choice import choose_columns
from util.format_detection import choose_reader
from util.formats import Reader, read_conll, read_csv
from util.lines import beginning_of, is_border, split_columns
from util.plausibility import kind

CHUNK_SIZE = 1024  # documents
FORMAT_OF_SUFFIX = {".jsonl": "json", ".ndjson": "json", ".json": "json"}  # of the output
FORMAT_OF_SUFFIX |= dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv"), "conll")
CORPUS_SUFFIXES = {".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv", ".csv", ".parquet", ".json"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Document(NamedTuple):
    text: str
    words: list[tuple[int, int]]  # (start, end) in the text
    record: dict  # the JSON object that it came in

    @classmethod
    def from_text(cls, text: str, record: dict | None = None):
        return cls(text, split_words(text), record or {})

    @classmethod
    def from_words(cls, words: list[str], record: dict | None = None):
        spans, start = [], 0
        for word in words:
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
            if line.strip() or self.format == "text":
                yield RawDocument(number, line)

    def _records(self) -> Iterator[RawDocument]:
        assert self.reader
        for row, (lines, record) in enumerate(self.reader.read(), 1):
            yield RawDocument(lines[0] if lines else row, record)

    def parse(self, raw: RawDocument) -> Document:
        """Raises ValueError for an invalid document."""
        if isinstance(raw.content, dict):
            return document_of_record(raw.content, self.columns)
        line = raw.content.decode("utf-8")
        return _parse_json(line, self.columns) if self.format == "json" else Document.from_text(line)


def open_texts(texts: list[str]) -> Input:
    """Command-line arguments. Those that are not UTF-8 become errors, as lines of a file do."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return Input("text", "text", lambda: encoded)


def open_input(path: str, columns: Columns) -> Input:
    """A file of any format, or standard input ("-") of text or JSON Lines. columns: see util/annotations.py."""
    if path == "-":
        stream = sys.stdin.buffer
        return Input("-", "json" if _begins_with_object(stream.peek()) else "text", lambda: stream)
    with open(path, "rb") as file:
        beginning = file.peek()
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson") or _begins_with_object(beginning):
        return Input(path, "json", lambda: open(path, "rb"), columns=columns)
    if not beginning:
        return Input(path, "text", lambda: open(path, "rb"))
    reader = choose_reader(path, text_columns(columns), label_columns(columns))
    if suffix not in CORPUS_SUFFIXES and not _is_corpus(path, reader):
        return Input(path, "text", lambda: open(path, "rb"))
    if reader.function is read_conll:
        reader.options["labelled"] = False  # words may stand alone
    reader, columns, _ = choose_columns(path, reader, columns)
    return Input(path, "corpus", reader=reader, columns=columns)


def _begins_with_object(beginning: bytes) -> bool:
    return beginning.lstrip(BYTE_ORDER_MARK + b" \t\r\n").startswith(b"{")


def _is_corpus(path: str, reader: Reader) -> bool:
    """Whether a file whose name does not tell its format is something else than lines of text."""
    if reader.function is not read_conll:
        return reader.function is not read_csv or reader.options["delimiter"] != " "
    rows = [columns for columns in map(split_columns, beginning_of(path)) if not is_border(columns)]
    rows = [columns for columns in rows if not columns[0].startswith("#")]
    widths = {len(columns) for columns in rows}
    return len(widths) == 1 and widths != {1} and kind([columns[-1] for columns in rows]) == "tags"


def document_of_record(record: dict, columns: Columns) -> Document:
    """The words that training reads. Of a record without tags: its text, or its words."""
    if isinstance(record.get("data"), dict):  # a task of Label Studio
        record = record["data"] | {name: record[name] for name in record.keys() - {"data"}}
    try:
        words = words_and_tags(record, columns).words
    except ValueError:
        words = []
    text = record.get(columns.text or "text")
    if not isinstance(text, str):
        text = record[pick_column(record, "--text_column_name", text_columns(columns))]
    if isinstance(text, str):
        document = Document.from_text(text)
        same = words == [text[start:end] for start, end in document.words]
        return document if same or not words else Document.from_words(words)
    if isinstance(text, list) and all(isinstance(word, str) for word in text):
        return Document.from_words(text)
    raise ValueError("neither a text nor a list of words")


def _parse_json(line: str, columns: Columns) -> Document:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from None
    record = record if isinstance(record, dict) else as_record(record)
    json.dumps(record, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which is not text
    if columns.text not in record:  # a model may be trained on a file of other columns
        columns = Columns(task=columns.task)
    return document_of_record(record, columns)._replace(record=record)


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
        fields = {"text": document.text} | document.record | {"entities": rounded}
        return json.dumps(fields, ensure_ascii=False) + "\n"
    if format == "conll":
        words = [document.text[start:end] for start, end in document.words]
        return "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tagged.tags)) + "\n"
    spans = [(e["start"], e["end"], e.get("entity_group") or e["entity"]) for e in tagged.entities]
    if format == "html":
        return report.article(document.text, spans, colors, [f"{e['score']:.4f}" for e in tagged.entities])
    lines = [_colored(document.text, spans, colors) if on_terminal else document.text]
    for entity, (start, end, name) in zip(tagged.entities, spans):
        lines.append(f"  {f'{start}-{end}':>13}  {name:8} {entity['score']:.4f}  {entity['word']}")
    return "\n".join(lines) + "\n"


def _colored(text: str, spans: list[tuple[int, int, str]], colors: dict[str, int]) -> str:
    """The text with its entities in bold color, by the escape sequences of terminals."""
    pieces, position = [], 0
    for start, end, name in spans:
        rgb = colorsys.hls_to_rgb(colors[name] / 360, 0.55, 0.8)
        red, green, blue = (round(255 * part) for part in rgb)
        pieces.append(f"{text[position:start]}\033[1;38;2;{red};{green};{blue}m{text[start:end]}\033[0m")
        position = end
    return "".join(pieces) + text[position:]
