"""What `python data.py` prints about a corpus, and the notes on it that training logs before it starts.

Functions take the splits by name, {"train": data.Split, "validation": ..., "test": ...}.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from util import running_text
from util.corpus_scan import column
from util.tag_schemes import entity_starts
from util.tag_spelling import canonical, entity_type, prefix, spelling_example

NUM_EXAMPLES = 3
LARGE = 1_000_000  # sentences; of larger splits nothing is computed that needs all words in memory
LINE_WIDTH = 120  # of sentences that are printed above their tags


class Note(NamedTuple):
    """An observation about a split, and where it was made first."""

    count: int
    text: str  # follows the count: "words longer than a window"
    examples: list[str]

    def __str__(self) -> str:
        line = f"{self.count:,} {self.text}"
        if self.examples:
            line += f": {'; '.join(self.examples[:NUM_EXAMPLES])}"
            line += "; ..." if self.count > NUM_EXAMPLES else ""
        return line


# --------------------------------------------------------------------------------------------------
# Notes


def log_how_read(splits: dict, log) -> None:
    """A line for every source: "train.conll: CoNLL, 2 columns: tokens, tags; IOB1, 2 exceptions"."""
    for line in dict.fromkeys(f"{split.name}: {split.read_as}; {split.read_scheme}" for split in splits.values()):
        log(line)


def log_notes(splits: dict, tokenizer, log) -> None:
    """Logs what checks() returns, and a warning if words have other subwords than in running text."""
    for line in checks(splits, tokenizer.model_max_length):
        log(line)
    running_text.warn_of_other_subwords(splits["train"], tokenizer, log)


def checks(splits: dict, max_length: int) -> list[str]:
    """Lines on the data: "warning: ..." if the user should correct the data or use other data, else "note: ...".

    max_length: subwords in a window.
    """
    train, train_sentences = splits["train"], None
    label_list = train.label_list
    warnings, notes = _mixed_tags(label_list) + _numbers_as_tags(label_list), _labels(train)
    if len(splits) > 1:
        if train.num_sentences <= LARGE:
            train_sentences = _sentences_as_text(train)
        else:
            notes.append(f"{train.name}: over {LARGE:,} sentences; duplicates in other splits not counted")
    files = [split.name for split in splits.values()]
    for file in dict.fromkeys(files):  # --validation_split makes two splits of a file
        of_file = [split for split in splits.values() if split.name == file]
        notes += [f"{file}: {note}" for note in _merged(of_file, max_length)]
    for name, split in splits.items():
        found = []
        if len(split.label_ids) == 1:
            found.append(f"every tag is {label_list[split.label_ids[0]]}")
        new_tags = [label_list[i] for i in np.setdiff1d(split.label_ids, train.label_ids)]
        if new_tags:
            found.append(str(_note(len(new_tags), "tag", "not in train", new_tags)))
        if name != "train" and train_sentences is not None:
            found += _duplicates(split, train_sentences)
        unknown = _unknown_share(split)
        if unknown > 0.02:
            found.append(f"{unknown:.1%} of words contain a subword that the tokenizer does not know")
        title = split.name if files.count(split.name) == 1 else f"{name} split of {split.name}"
        warnings += [f"{title}: {warning}" for warning in found]
    return [*(f"warning: {warning}" for warning in warnings), *(f"note: {note}" for note in notes)]


def checks_of_file(split, max_length: int) -> list[str]:
    """The lines of checks() for a file alone, without its name. Labels that only the model knows do not count."""
    ids = split.label_ids
    labels = [split.label_list[i] for i in ids]
    split = dataclasses.replace(split, label_list=labels, label_counts=split.label_counts[ids])
    return [line.replace(f": {split.name}: ", ": ", 1) for line in checks({"train": split}, max_length)]


def _note(count: int, noun: str, text: str, examples: Iterable[str] = ()) -> Note:
    return Note(count, f"{noun} {text}" if count == 1 else f"{noun}s {text}", [*examples])


def _mixed_tags(label_list: list[str]) -> list[str]:
    names = canonical(label_list)
    prefixed = [name for name in names if prefix(name)]
    plain = [name for name in names if name != "O" and not prefix(name)]
    if not (prefixed and plain):
        return []
    example = f"{plain[0]} has no prefix, but {prefixed[0]} has one"
    return [f"{example}: all are scored as plain tags, not as entities"]


def _numbers_as_tags(label_list: list[str]) -> list[str]:
    if not all(label.isdigit() for label in label_list):
        return []
    return [
        "tags are numbers without names: entities cannot be scored; "
        "Parquet files and save_to_disk folders with ClassLabel columns have names"
    ]


def _labels(split) -> list[str]:
    """How labels are read that may be meant otherwise."""
    if not split.scheme:
        return []
    example = spelling_example(split.label_list)
    lines = ["tags such as {} are read as {}".format(*example)] if example else []
    types = {entity_type(name) for name in canonical(split.label_list) if prefix(name)} - {"_"}
    return lines + [f"the only entity type is {name}" for name in types if len(types) == 1]


def _notes(split, max_length: int) -> list[Note]:
    """Tags that break their scheme, and words and sentences that do not fit the tokenizer."""
    transitions = [_transition(split, position) for position in split.first_violations]
    # Of every word without subwords: its sentence, counted without empty ones, and its index there.
    sentences, indices = split.windows.dropped_words()
    first_words = (np.cumsum(split.lengths) - split.lengths)[split.lengths > 0]
    positions = first_words[sentences[:NUM_EXAMPLES]] + indices[:NUM_EXAMPLES]
    dropped = ["{} {!a}".format(*split.word(position)) for position in positions.tolist()]
    long, truncated = _num_long_sentences(split), split.windows.total("truncated_words")
    notes = [
        _note(split.num_violations, f"invalid {split.tag_scheme} transition", "kept as in the file", transitions),
        _note(len(indices), "word", "without subwords, replaced by the unknown token", dropped),
        _note(long, "sentence", f"of more than {max_length} subwords, in overlapping windows"),
        _note(truncated, "word", "longer than a window, tagged by the first subwords"),
    ]
    return [note for note in notes if note.count > 0]


def _merged(splits: list, max_length: int) -> list[Note | str]:
    """The notes of some splits. Those that differ only in count and examples are one."""
    merged: dict[str, Note | str] = {}
    for split in splits:
        for note in [*split.notes, *_notes(split, max_length)]:
            if isinstance(note, Note):
                before = merged.get(note.text, Note(0, note.text, []))
                merged[note.text] = Note(before.count + note.count, note.text, [*before.examples, *note.examples])
            else:
                merged[note] = note
    return [*merged.values()]


def _transition(split, position: int) -> str:
    """The word at this position of the split -> "dev.conll:5 'York' I-LOC after B-PER"."""
    row, index = split.locate(position)
    tags = split.sentences[row]["tags"]
    place, word = split.word(position)
    return f"{place} {word!r} {tags[index]} after {tags[index - 1] if index else 'the start'}"


def _duplicates(split, train_sentences: pa.ChunkedArray) -> list[str]:
    in_train = pc.is_in(_sentences_as_text(split), value_set=train_sentences).to_numpy()
    count = np.count_nonzero(in_train & (split.lengths > 0))
    if count == 0:
        return []
    return [f"{count:,} of {split.num_sentences:,} sentences also {'occurs' if count == 1 else 'occur'} in train"]


def _sentences_as_text(split) -> pa.ChunkedArray:
    """The words of every sentence, joined by the unit separator, which text files do not contain."""
    return pc.binary_join(column(split.sentences, "tokens"), "\x1f")


def _num_long_sentences(split) -> int:
    return int(np.count_nonzero(split.windows.windows_per_sentence() > 1))


def _unknown_share(split) -> float:
    return split.windows.total("unknown_words") / max(1, split.num_words)


# --------------------------------------------------------------------------------------------------
# The report of `python data.py`


def report(splits: dict, tokenizer, random_order, by_length) -> str:
    """Statistics of every split, the notes, and the first sentences of train above their tags and label ids.

    random_order, by_length: data.EpochBatches of train, for the share of padding in padded batches.
    """
    lines, train = [], splits["train"]
    for name, split in splits.items():
        lines += [f"{name}: {split.name}", *_statistics(split)]
    for batches, order in ((random_order, "in random order"), (by_length, "with --group_by_length")):
        share = padding_share(train.windows.lengths, batches)
        lines.append(f"padding in training batches of {batches.size} {order}: {share:.1%}")
    compared = running_text.compare_sample(train, tokenizer)
    lines.append(f"{compared} (of {compared.num_words:,} of {train.name})")
    log_notes(splits, tokenizer, lines.append)
    not_empty = (sentence for sentence in train.sentences if sentence["tokens"])
    for sentence in itertools.islice(not_empty, 2):
        lines += ["", *_aligned(sentence["tokens"], sentence["tags"])]
    for row in range(min(2, len(train.windows))):
        window = train.windows[row]
        subwords = tokenizer.convert_ids_to_tokens(window["input_ids"].tolist())
        lines += ["", *_aligned(subwords, [str(label) for label in window["labels"].tolist()])]
    lines += ["", "label ids: " + ", ".join(f"{i} {_shown(label)}" for i, label in enumerate(train.label_list))]
    return "\n".join(lines)


def _statistics(split) -> list[str]:
    subwords = split.windows.subwords
    return [
        f"  {split.num_sentences:,} sentences, {split.num_words:,} words, {split.scheme or 'plain'} tags",
        f"  {_count_types(split)}",
        f"  words per sentence: {_quantiles(split.lengths[split.lengths > 0])}",
        f"  subwords per sentence: {_quantiles(subwords[subwords > 0])}",
        f"  sentences in several windows: {_num_long_sentences(split):,}"
        f" | words without subwords: {len(split.windows.dropped_words()[1]):,}"
        f" | words with an unknown subword: {_unknown_share(split):.2%}",
    ]


def _count_types(split) -> str:
    """The number of entities by type. Of plain tags, and of large splits, the number of words by tag."""
    label_list = split.label_list
    if split.scheme and split.num_sentences <= LARGE:
        starts = entity_starts(split.tags, split.lengths, label_list)
        label_counts = np.bincount(split.tags[starts], minlength=len(label_list))
        title, names = "entities", [entity_type(name) for name in canonical(label_list)]
    else:
        label_counts, title, names = split.label_counts, "words by tag", label_list
    counts: collections.Counter = collections.Counter()
    for name, count in zip(names, label_counts.tolist()):
        counts[name] += count
    return f"{title}: " + ", ".join(f"{_shown(name)} {counts[name]:,}" for name in sorted(counts) if counts[name] > 0)


def _shown(name: str) -> str:
    """Tags such as "," are quoted, since commas separate them from others."""
    return name if any(map(str.isalnum, name)) else repr(name)


def padding_share(lengths: np.ndarray, batches: Iterable[np.ndarray]) -> float:
    """The share of padding in the first 1,000 padded batches. lengths [R]: subwords of every window."""
    sizes = [(lengths[rows].sum(), lengths[rows].max() * len(rows)) for rows in itertools.islice(batches, 1000)]
    tokens, padded = np.sum(sizes, axis=0)
    return 1 - tokens / padded


def _quantiles(lengths: np.ndarray) -> str:
    values = np.quantile(lengths, [0, 0.5, 0.95, 0.99, 1], method="lower")
    names = ("min", "median", "95 %", "99 %", "max")
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, values))


def _aligned(words: list[str], tags: list[str]) -> list[str]:
    """Two lines: words, and their tags below them, as many as fit."""
    widths = [max(len(word), len(tag)) for word, tag in zip(words, tags)]
    num_shown = np.count_nonzero(np.cumsum(widths) + np.arange(len(widths)) <= LINE_WIDTH)
    return [" ".join(map(str.ljust, row[:num_shown], widths)).rstrip() for row in (words, tags)]
