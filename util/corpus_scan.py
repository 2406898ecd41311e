"""Passes over a corpus of any size, in batches: nothing is held per word, and results are cached on disk.

Every pass is one `Dataset.map`. The statistics of a batch of sentences or windows are one row of a small table, so
that the whole corpus is described by adding up its rows.
"""

import dataclasses
import functools
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import Hasher

from util.annotations import source_position
from util.code_digest import code_digest
from util.sources import cached
from util.tag_schemes import NUM_EXAMPLES, SchemeEvidence, scheme_evidence
from util.tag_spelling import may_have_prefix
from util.workers import forks_exit_with_this_process

MULTIPROCESS_ABOVE = 100_000  # rows; fewer are mapped in one process
PART_SIZE = 1_000_000  # rows that are cached together; an interrupted pass keeps its finished parts
SCAN_BATCH_SIZE = 10_000


def num_processes(num_rows: int) -> int:
    """One process for small corpora, since starting others takes longer; else one per usable core."""
    return len(os.sched_getaffinity(0)) if num_rows > MULTIPROCESS_ABOVE else 1


def map_in_parts(dataset: Dataset, function, key: str, batch_size: int, desc: str, **fn_kwargs) -> Dataset:
    """Maps `function(table: pa.Table, first_row: int, **fn_kwargs) -> pa.Table` over batches of rows, with a cache.

    key: names the cache; a checksum of everything that the result depends on, including the function's code.
    Raises OSError if a worker process is killed. The same command then continues after the last finished part.
    """
    parts = []
    for start in range(0, max(1, len(dataset)), PART_SIZE):
        part = dataset.select(range(start, min(start + PART_SIZE, len(dataset))))
        processes = num_processes(len(part))
        try:
            with forks_exit_with_this_process():
                mapped = part.with_format("arrow").map(
                    _map_batch,
                    with_indices=True,
                    batched=True,
                    batch_size=batch_size,
                    writer_batch_size=batch_size,
                    remove_columns=dataset.column_names,
                    fn_kwargs={"function": function, "first_row": start, **fn_kwargs},
                    num_proc=processes if processes > 1 else None,
                    desc=desc,
                    **cached(Hasher.hash((key, start, len(part)))),
                )
        except RuntimeError as error:
            if "abruptly died" not in str(error):
                raise
            raise OSError(f"{desc}: a process was killed (out of memory?); the same command continues") from None
        parts.append(mapped.with_format(None))
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _map_batch(table: pa.Table, indices: list[int], function, first_row: int, **fn_kwargs) -> pa.Table:
    return function(table, first_row + indices[0], **fn_kwargs)


@functools.cache
def _scan_digest() -> str:
    """Part of the cache keys of this file."""
    names = ("corpus_scan", "tag_schemes", "tag_spelling")
    return code_digest(*(Path(__file__).with_name(f"{name}.py") for name in names))


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column as it lies in the memory-mapped file, without a copy."""
    return dataset.with_format("arrow")[:][name]


# ----------------------------------------------------------------------------------------------------------------------
# Sentences -> distinct tags, evidence for their scheme, notes of the reader


@dataclass
class TagStatistics:
    """The tags of a split, and what its reader noted."""

    counts: dict[str, int] = field(default_factory=dict)  # tag -> words
    evidence: SchemeEvidence = field(default_factory=SchemeEvidence)
    notes: dict[str, tuple[int, list[str]]] = field(default_factory=dict)  # text -> (how often, first examples)


def tag_statistics(sentences: Dataset, source_name: str) -> TagStatistics:
    """sentences: {"tokens", "tags", "lines", "notes"} of util/annotations.py. source_name: for the notes."""
    key = Hasher.hash((sentences._fingerprint, source_name, _scan_digest()))
    rows = map_in_parts(sentences, _scan_tags, key, SCAN_BATCH_SIZE, "counting tags", source_name=source_name)
    total = TagStatistics()
    for text in rows["statistics"]:
        row = json.loads(text)
        for tag, count in row["counts"].items():
            total.counts[tag] = total.counts.get(tag, 0) + count
        total.evidence = total.evidence + SchemeEvidence(**row["evidence"])
        for what, (count, examples) in row["notes"].items():
            before, shown = total.notes.get(what, (0, []))
            total.notes[what] = (before + count, (shown + examples)[:NUM_EXAMPLES])
    return total


def _scan_tags(table: pa.Table, first_row: int, source_name: str) -> pa.Table:
    lengths = pc.list_value_length(table["tags"]).to_numpy().astype(np.int64)
    words = pc.list_flatten(table["tags"]).combine_chunks().dictionary_encode()
    if isinstance(words, pa.ChunkedArray):  # of a table without rows
        words = words.combine_chunks()
    labels = words.dictionary.to_pylist()
    tags = words.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    statistics = {
        "counts": _count(tags, labels),
        "evidence": dataclasses.asdict(scheme_evidence(tags, lengths, labels)),
        "notes": _count_notes(table, first_row, source_name),
    }
    return pa.table({"statistics": [json.dumps(statistics)]})


def _count(tags: np.ndarray, labels: list[str]) -> dict[str, int]:
    counts = np.bincount(tags, minlength=len(labels)).tolist()
    return {label: count for label, count in zip(labels, counts) if count > 0}


def _count_notes(table: pa.Table, first_row: int, source_name: str) -> dict[str, tuple[int, list[str]]]:
    """A note reads "what was done: to what". Counts them by what was done."""
    notes: dict[str, tuple[int, list[str]]] = {}
    for i in np.flatnonzero(pc.list_value_length(table["notes"]).to_numpy()).tolist():
        position = source_position(source_name, table["lines"][i].as_py(), first_row + i)
        for note in table["notes"][i].as_py():
            what, _, example = note.partition(": ")
            count, examples = notes.get(what, (0, []))
            notes[what] = (count + 1, (examples + [f"{position} {example}"])[:NUM_EXAMPLES])
    return notes


def refuse_stray_tags(found: dict, statistics: dict[str, TagStatistics], scheme: str | None) -> None:
    """Raises ValueError, with the position of the first, for a few tags without prefix where nearly all have one.

    They would make all tags plain, which are not scored as entities.
    found: split -> (its source, its sentences). statistics: of the splits. scheme: --tag_scheme, which decides.
    """
    counts: Counter[str] = Counter()
    for of_split in statistics.values():
        counts.update(of_split.counts)
    outside = "o" if counts["o"] > counts["O"] else "O"
    stray = [tag for tag in counts if tag != outside and (tag in "oO" or not may_have_prefix(tag))]
    num_stray = sum(counts[tag] for tag in stray)
    num_prefixed = sum(counts[tag] for tag in counts.keys() - {*stray, outside})
    if scheme or num_stray == 0 or 20 * num_stray > num_prefixed:
        return
    split = next(split for split in found if any(tag in statistics[split].counts for tag in stray))
    source, sentences = found[split]
    is_stray = pc.is_in(pc.list_flatten(column(sentences, "tags")), value_set=pa.array(stray))
    word = pc.index(is_stray, True).as_py()
    ends = np.cumsum(pc.list_value_length(column(sentences, "tags")).to_numpy())
    row = int(np.searchsorted(ends, word, side="right"))
    sentence = sentences[row]
    index = word - int(ends[row]) + len(sentence["tags"])
    position, tag = source_position(source.name, sentence["lines"], row, index), sentence["tags"][index]
    others = f"{num_prefixed:,} tags have; {num_stray:,} have none"
    raise ValueError(f"{position}: tag {tag!r} has no prefix, as {others}; correct them, or pass --tag_scheme plain")


# ----------------------------------------------------------------------------------------------------------------------
# Windows -> the subwords in use, and a checksum of what training sees


@dataclass
class WindowStatistics:
    token_ids: np.ndarray  # [U] the subwords that occur, ascending
    checksum: int  # of input_ids and labels of all windows, in order


def window_statistics(windows: Dataset) -> WindowStatistics:
    key = Hasher.hash((windows._fingerprint, _scan_digest()))
    rows = map_in_parts(windows, _scan_windows, key, SCAN_BATCH_SIZE, "checksum")
    token_ids = [np.asarray(ids, np.int64) for ids in rows["token_ids"]]
    checksum = sum(int(text, 16) for text in rows["checksum"]) % 2**64
    return WindowStatistics(np.unique(np.concatenate([np.empty(0, np.int64), *token_ids])), checksum)


def _scan_windows(table: pa.Table, first_row: int) -> pa.Table:
    token_ids = pc.unique(pc.list_flatten(table["input_ids"])).to_pylist()
    checksum = (_checksum(table["input_ids"], first_row, 1) + _checksum(table["labels"], first_row, 2)) % 2**64
    return pa.table(
        {
            "token_ids": pa.array([sorted(token_ids)], pa.list_(pa.int32())),
            "checksum": pa.array([f"{checksum:x}"]),
        }
    )


def _checksum(rows: pa.ChunkedArray, first_row: int, column_number: int) -> int:
    """The sum over all values of a hash of (value, position in its row, row, column).

    A sum, so that it does not depend on how the corpus was cut into batches: the number of processes differs between
    machines. The hash is the finalizer of splitmix64 (Steele, Lea and Flood, 2014).
    """
    lengths = pc.list_value_length(rows).to_numpy().astype(np.int64)
    values = pc.list_flatten(rows).to_numpy().astype(np.uint64)
    starts = np.cumsum(lengths) - lengths
    position = (np.arange(len(values)) - np.repeat(starts, lengths)).astype(np.uint64)
    row = np.repeat(np.arange(first_row, first_row + len(lengths)), lengths).astype(np.uint64)
    x = values * np.uint64(0x9E3779B97F4A7C15) + position * np.uint64(0xC2B2AE3D27D4EB4F)
    x += row * np.uint64(0x165667B19E3779F9) + np.uint64(column_number)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return int((x ^ (x >> np.uint64(31))).sum(dtype=np.uint64))
