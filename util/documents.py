"""Documents: read from lines of text, JSON Lines, or sentences of CoNLL; written with their entities."""

import colorsys
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from util import report
from util.annotations import split_words
from util.lines import is_border, split_columns

CHUNK_SIZE = 1024  # documents
FORMAT_OF_SUFFIX = {".jsonl": "json", ".ndjson": "json", ".json": "json"}
FORMAT_OF_SUFFIX |= dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv"), "conll")
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
    """A document before it is parsed. Bytes, so that invalid UTF-8 is an error of one document only."""

    line_number: int
    lines: list[bytes]


def detect_format(name: str, beginning: bytes) -> str:
    """text, json or conll: by the suffix of the name, else by whether the content begins with an object."""
    is_json = beginning.lstrip(BYTE_ORDER_MARK + b" \t\r\n").startswith(b"{")
    return FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), "json" if is_json else "text")


def read_documents(stream: Iterable[bytes], input_format: str) -> Iterator[RawDocument]:
    """An empty line is an empty document of a text. JSON Lines skips it, and in CoNLL it ends a sentence."""
    number, sentence = 0, []
    for number, line in enumerate(stream, 1):
        line = line.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if input_format != "conll":
            if line.strip() or input_format == "text":
                yield RawDocument(number, [line])
        elif not is_border(split_columns(line.decode("utf-8", "replace"))):
            sentence.append(line)
        elif sentence:
            yield RawDocument(number - len(sentence), sentence)
            sentence = []
    if sentence:
        yield RawDocument(number - len(sentence) + 1, sentence)


def read_chunks(stream: Iterable[bytes], input_format: str) -> Iterator[list[RawDocument]]:
    """Yields CHUNK_SIZE documents at a time, so that memory does not grow with the input."""
    documents = read_documents(stream, input_format)
    while True:
        chunk = list(itertools.islice(documents, CHUNK_SIZE))
        if not chunk:
            return
        yield chunk


def chunks_of_texts(texts: list[str]) -> list[list[RawDocument]]:
    """One chunk. Command-line arguments that are not UTF-8 become errors, as lines of a file do."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return [[RawDocument(i, [text]) for i, text in enumerate(encoded, 1)]]


def open_chunks(path: str) -> tuple[str, Iterator[list[RawDocument]]]:
    """The format of a file, or of standard input for "-", and its chunks."""
    stream = sys.stdin.buffer if path == "-" else open(path, "rb")
    input_format = detect_format(path, stream.peek())
    return input_format, read_chunks(stream, input_format)


def parse_document(input_format: str, lines: list[bytes]) -> Document:
    """Raises ValueError for an invalid document."""
    decoded = [line.decode("utf-8") for line in lines]
    if input_format == "json":
        return _parse_json(decoded[0])
    if input_format == "text":
        return Document.from_text(decoded[0])
    rows = [split_columns(line) for line in decoded]
    # The last line of a sentence is a word. Its columns tell words from comments.
    while len(rows) > 1 and is_comment(rows[0], len(rows[-1]), at_start=True):
        del rows[0]
    if len(rows[0]) == 10 and rows[0][0][:1].isdigit():  # CoNLL-U: without ranges (1-2) and empty nodes (8.1)
        rows = [row[1:] for row in rows if row[0].isdigit()]
    return Document.from_words([row[0] for row in rows])


def _parse_json(line: str) -> Document:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(record, dict) or not {"text", "tokens"} & record.keys():
        raise ValueError('not an object with "text" or "tokens"')
    json.dumps(record, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which is not text
    text, tokens = record.get("text"), record.get("tokens")
    if isinstance(text, str):
        return Document.from_text(text, record)
    if "text" not in record and isinstance(tokens, list) and all(isinstance(word, str) for word in tokens):
        return Document.from_words(tokens, record)
    raise ValueError('"text" must be a string, and "tokens" a list of strings')


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
