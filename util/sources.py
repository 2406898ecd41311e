"""Files, folders of save_to_disk and datasets of the Hub become Datasets of sentences, cached on disk."""

import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, field
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from datasets import Dataset, Features
from datasets.fingerprint import Hasher
from datasets.table import MemoryMappedTable, concat_tables

from util.annotations import Columns, label_columns, pick_column, text_columns
from util.blocks import BlockTask, cut_into_blocks, row_blocks, row_group_blocks, write_blocks
from util.column_choice import choose_columns
from util.distributed import tell_if_slow
from util.format_detection import choose_reader
from util.formats import Reader, read_dataset, read_parquet
from util.lines import Block

SPLITS = ("train", "validation", "test")
# Copies of well-known datasets, since datasets >= 4 does not run their loading scripts.
PARQUET_REVISION = "refs/convert/parquet"  # the Hub's own conversion of a dataset
ALIASES = {"conll2003": ("lhoestq/conll2003", None), "wnut_17": ("leondz/wnut_17", PARQUET_REVISION)}


@dataclass
class Source:
    """Something that sentences can be read from."""

    name: str  # in messages
    reader: Reader
    blocks: list[Block]
    features: Features | None  # of its columns, where the format has types
    digest: str  # of its content; names the cache
    columns: Columns  # by their names in this source
    read_as: str  # "CoNLL, 2 columns: tokens, tags"
    notes: list[str] = field(default_factory=list)  # for the log


def open_sources(
    files: dict[str, str | None], dataset_name: str | None, dataset_config_name: str | None, columns: Columns
) -> dict[str, Source]:
    """The data flags -> a source for every split. files: split -> path. Without any flag: samples/."""
    if dataset_name and any(files.values()):
        raise ValueError("--dataset_name and --train_file, --validation_file, --test_file exclude each other")
    if dataset_name:
        sources = _open_dataset(dataset_name, dataset_config_name, columns)
    else:
        if not any(files.values()):
            samples = Path(__file__).parent.parent / "samples"
            files = {split: os.path.relpath(samples / f"{split}.conll") for split in SPLITS}
        sources, preferred = {}, None
        for split, path in files.items():
            if path:
                sources[split] = open_file(path, columns, preferred)
                preferred = preferred or sources[split].columns.labels
    if "train" not in sources:
        raise ValueError(f"nothing to train on: {dataset_name or '--train_file is missing'}")
    return sources


def _open_dataset(name: str, config: str | None, columns: Columns) -> dict[str, Source]:
    sources = {}
    for split, dataset in read_named(name, config).items():
        split = {"dev": "validation", "valid": "validation"}.get(split, split)
        if split in SPLITS:
            blocks = row_blocks(len(dataset))
            reader, digest = Reader(read_dataset, dataset, description="dataset"), dataset._fingerprint
            full_name = f"{name} ({split})"
            reader, chosen, notes = choose_columns(full_name, reader, columns)
            features, read_as = dataset.features, reader.description
            sources[split] = Source(full_name, reader, blocks, features, digest, chosen, read_as, notes)
    return sources


def open_file(path: str, columns: Columns, preferred: str | None = None) -> Source:
    """Recognizes the format of a file, and reads it once for its checksum and its blocks.

    preferred: the column of tags that another split of the corpus has.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file")
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a folder (a folder written by save_to_disk belongs to --dataset_name)")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: is empty")
    reader = choose_reader(path, text_columns(columns), label_columns(columns))
    blocks, digest = cut_into_blocks(path, reader.block_ends_at)
    if reader.function is read_parquet:
        return _open_parquet(path, reader, columns, digest)
    reader, columns, notes = choose_columns(path, reader, columns, preferred)
    return Source(path, reader, blocks, None, digest, columns, reader.description, notes)


def _open_parquet(path: str, reader: Reader, columns: Columns, digest: str) -> Source:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        features = Features.from_arrow_schema(file.schema_arrow)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    blocks = row_group_blocks([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    reader, columns, notes = choose_columns(path, reader, columns)
    return Source(path, reader, blocks, features, digest, columns, reader.description, notes)


# --------------------------------------------------------------------------------------------------
# Sources -> sentences


def cached(fingerprint: str) -> dict:
    """Arguments of Dataset.map. The result lies in datasets' cache, not in a folder of save_to_disk."""
    folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "nanotagger")
    os.makedirs(folder, exist_ok=True)
    return {"new_fingerprint": fingerprint, "cache_file_name": os.path.join(folder, f"{fingerprint}.arrow")}


@functools.cache
def _readers_digest() -> str:
    """Part of the cache key: changed code must not return what older code has read. Of bytes, which is fast."""
    names = ("format_detection", "formats", "lines", "tables", "blocks", "sources", "column_choice", "columns")
    names += ("annotations", "annotation_tools", "spans", "list_cells", "file_facts")
    contents = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def read_source(
    source: Source, columns: Columns | None = None, num_proc: int | None = None
) -> tuple[Dataset, tuple[str, ...] | None]:
    """Reads a source -> its sentences (FEATURES), memory-mapped, and the label names by id if it has them.

    Every block becomes an Arrow file in datasets' cache, so that an interrupted command continues with the
    missing blocks. The files are named by the content of the source: an edited file is read again.
    columns: those of the source are used, in which flags are replaced by names. num_proc: (one per usable core).
    """
    columns = source.columns
    try:
        names = _label_names(source.features, columns)
        # The layout of columns follows from the content; its set of values has no fixed order.
        options = {name: value for name, value in source.reader.options.items() if name != "layout"}
        key = (source.digest, source.name, names, astuple(columns), options, _readers_digest())
        fingerprint = Hasher.hash(key)
        prefix = cached(fingerprint)["cache_file_name"].removesuffix(".arrow")
        paths = [f"{prefix}-{i:06}.arrow" for i in range(len(source.blocks))]
        tasks = [
            BlockTask(path, block, source.reader, source.name, names, columns)
            for path, block in zip(paths, source.blocks)
            if not os.path.exists(path)
        ]
        write_blocks(tasks, num_proc or len(os.sched_getaffinity(0)))
    except (ValueError, pa.ArrowException) as error:
        text = str(error)
        raise ValueError(text if text.startswith(source.name) else f"{source.name}: {text}") from None
    except BrokenProcessPool:
        text = "a process was killed (out of memory?); the same command continues"
        raise OSError(f"{source.name}: {text}") from None
    tables = [MemoryMappedTable.from_file(path) for path in paths]
    if not any(_has_words(table) for table in tables):
        raise ValueError(f"{source.name}: no sentences")
    return Dataset(concat_tables(tables), fingerprint=fingerprint), names


def _has_words(sentences: MemoryMappedTable) -> bool:
    return any(pc.max(pc.list_value_length(chunk)).as_py() for chunk in sentences["tokens"].chunks)


def _label_names(features: Features | None, columns: Columns) -> tuple[str, ...] | None:
    """The names of the ids in the column of tags. None: it has no ids, or they have no names."""
    if features is None:
        return None
    column = features.get(pick_column(features, "--label_column_name", label_columns(columns)))
    names = getattr(getattr(column, "feature", None), "names", None)
    return tuple(names) if names else None


def read_file(path: str, columns: Columns) -> tuple[Dataset, tuple[str, ...] | None]:
    """A file of any format -> its sentences, and the label names by id if a Parquet file has them."""
    return read_source(open_file(path, columns), columns)


def read_splits(
    sources: dict[str, Source],
    columns: Columns,
    validation_split: float,
    seed: int,
    num_proc: int | None = None,
) -> tuple[dict[str, tuple[Source, Dataset]], tuple[str, ...] | None]:
    """Reads all sources -> {split: (its source, sentences)}, and the label names by id if one has them.

    validation_split: the share of train that becomes the validation split.
    """
    if validation_split and "validation" in sources:
        raise ValueError("--validation_split: there is a validation split already")
    sentences_by_split: dict[str, tuple[Source, Dataset]] = {}
    label_names = None
    for split, source in sources.items():
        dataset, own_names = read_source(source, columns, num_proc)
        sentences_by_split[split] = (source, dataset)
        label_names = label_names or own_names
        check_same_label_names(source.name, label_names, own_names)
    if validation_split:
        source, dataset = sentences_by_split["train"]
        train, validation = split_off(dataset, validation_split, seed)
        sentences_by_split |= {"train": (source, train), "validation": (source, validation)}
    in_order = {split: sentences_by_split[split] for split in SPLITS if split in sentences_by_split}
    return in_order, label_names


def check_same_label_names(
    source_name: str,
    names: tuple[str, ...] | None,
    own_names: tuple[str, ...] | None,
    tags: Iterable[str] = (),
) -> None:
    """Raises ValueError if this source has labels other than `names`, the names by id of another split.

    own_names: the names by id of this source, if it has ids. tags: the tags that occur in it.
    """
    if not names:
        return
    unknown = set(tags).difference(names)
    if unknown or own_names not in (None, names):
        shown, expected = ", ".join(own_names or sorted(unknown)), ", ".join(names)
        raise ValueError(f"{source_name}: its labels, {shown}, are not those of another split, {expected}")


def split_off(dataset: Dataset, share: float, seed: int) -> list[Dataset]:
    """Sentences -> those that remain, and a random share of them. Both are in the order of the file."""
    number = round(share * len(dataset))
    if not 0 < number < len(dataset):
        raise ValueError(f"--validation_split {share} of {len(dataset)} sentences leaves none")
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = []
    for rows in (np.sort(order[number:]), np.sort(order[:number])):
        fingerprint = Hasher.hash((dataset._fingerprint, rows))
        parts.append(dataset.select(rows).flatten_indices(**cached(fingerprint)))
    return parts


# --------------------------------------------------------------------------------------------------
# The Hub


def read_named(name: str, config: str | None) -> dict[str, Dataset]:
    """A folder of save_to_disk, or a dataset of the Hub by its id -> its splits.

    A dataset with a loading script is read from its Parquet conversion. Offline, the cache is searched.
    """
    if os.path.isdir(name):
        try:
            found = datasets.load_from_disk(name)
        except FileNotFoundError:
            raise ValueError(f"{name}: not a folder written by datasets' save_to_disk") from None
        return {"train": found} if isinstance(found, Dataset) else found
    name, revision = ALIASES.get(name, (name, None))
    try:
        with tell_if_slow(name):
            try:
                return datasets.load_dataset(name, config, revision=revision)
            except RuntimeError as error:
                if "scripts are no longer supported" not in str(error):
                    raise
                return datasets.load_dataset(name, config, revision=PARQUET_REVISION)
    except ConnectionError as error:
        found = _read_downloaded(name, config, revision)
        if found is None:
            raise ValueError(f"{name}: not in the cache, and the Hub cannot be reached: {error}") from None
        return found
    except (FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"{name}: cannot be loaded from the Hub: {error}") from None


def _read_downloaded(name: str, config: str | None, revision: str | None) -> dict[str, Dataset] | None:
    """The dataset from the files of `hf download --repo-type dataset`, or None.

    Offline, load_dataset finds datasets that it has prepared before, but not files that were only downloaded.
    """
    for candidate in (revision,) if revision else (None, PARQUET_REVISION):
        try:
            folder = huggingface_hub.snapshot_download(
                name, repo_type="dataset", revision=candidate, local_files_only=True
            )
        except FileNotFoundError:
            continue
        if candidate == PARQUET_REVISION:  # a folder for every configuration
            return datasets.load_dataset(folder, data_dir=config or "default")
        return datasets.load_dataset(folder, name=config)
    return None
