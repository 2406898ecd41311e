"""Labeled words in, padded batches of subwords out.

    words      EU     rejects  German  call  to  boycott  British  lamb      .
    tags       B-ORG  O        B-MISC  O     O   O        B-MISC   O         O

    subwords   [CLS] EU rejects German call to boycott British la   ##mb . [SEP]
    labels     -100  3  0       7      0    0  0       7       0    -100 0 -100

The label of a word is the id of its tag, on the word's first subword. -100 is ignored by the loss. A sentence that is
longer than the encoder's limit is cut between words into overlapping windows; every word is labeled in exactly one.

python data.py train.conll                     # how the file is read, and statistics; takes the data flags of train.py
python data.py --train_file export.jsonl --validation_split 0.1 --model_name_or_path bert-base-cased
"""

import argparse
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock

from util import arguments, data_report, sources, tag_schemes
from util.annotations import Columns
from util.arguments import add_switch
from util.code_digest import code_digest
from util.corpus_scan import TagStatistics, map_in_parts, refuse_stray_tags, tag_statistics, window_statistics
from util.distributed import exit_on_error, quiet
from util.pretrained import load_encoder
from util.sources import Source
from util.split import Split, fields_of_tags
from util.tokenizer import encode, special_tokens
from util.windows import Windows, arrow_column

EVAL_TOKENS = 2**15  # of an evaluation batch, padding included: 64 rows of 512
IGNORED = -100  # the label of a position that counts neither in the loss nor in the scores
TOKEN_COLUMNS = ("input_ids", "labels")  # a second label column is named here and filled in tokenize_batch
SENTENCE_COLUMNS = ("subwords", "unknown_words", "dropped_words", "truncated_words")

# ----------------------------------------------------------------------------------------------------------------------
# Flags of the data, to which train.py adds its own. Names are those of run_ner.py and TrainingArguments.


def add_data_flags(parser: argparse.ArgumentParser) -> dict[str, argparse._ArgumentGroup]:
    """Adds the flags of the data and the groups that they belong to. Returns the groups by name."""
    groups = {name: parser.add_argument_group(name) for name in ("data", "model", "optimization")}
    add = groups["data"].add_argument
    add("--dataset_name", help="Hub id, or a folder written by save_to_disk")
    add("--dataset_config_name", help="configuration of the Hub set")
    add("--train_file", help="CoNLL, CoNLL-U, JSON, CSV or Parquet, recognized by its content")
    add("--validation_file", help="selects the best model; without it the last one is kept")
    add("--test_file", help="scored once, with the best model")
    add("--validation_split", type=arguments.fraction, default=0.0, help="share of train used for validation, 0: off")
    add("--text_column_name", help="column of words or text, by name or number (tokens, ...)")
    add("--label_column_name", help="column of tags or spans (<task>_tags, tags, spans, ...)")
    add("--task_name", choices=("ner", "pos", "chunk"), default="ner", help="selects the column of tags")
    add("--tag_scheme", choices=tag_schemes.FLAG_VALUES, help="scheme of the tags (recognized); plain: no entities")
    add_switch(groups["data"], "--widen_spans", "widen spans that cut a word to the whole word; else an error")
    add("--span_offsets", choices=("characters", "utf16"), help="what spans count, where the data do not show it")
    add_switch(groups["data"], "--label_all_tokens", "train on all subwords of a word, not only the first")
    add("--max_seq_length", type=arguments.positive_int, help="subwords in a window (the encoder's limit)")
    add("--stride", type=arguments.non_negative_int, default=64, help="subwords by which windows of a sentence overlap")
    groups["model"].add_argument("--model_name_or_path", help="Hub id or folder (the packaged MiniLM)")
    add = groups["optimization"].add_argument
    add("--per_device_train_batch_size", type=arguments.positive_int, default=16, help="sentences")
    add("--seed", type=arguments.non_negative_int, default=42, help="new head, order, dropout, validation split")
    return groups


def get_args(argv: list[str]) -> argparse.Namespace:
    """The flags of the data alone. Raises ValueError for an invalid flag."""
    parser = arguments.make_parser(__doc__ or "")
    add_data_flags(parser)
    return parser.parse_args(arguments.expand_flag_file(argv))


# ----------------------------------------------------------------------------------------------------------------------
# Words -> subwords -> windows -> labels


class Window(NamedTuple):
    """A window reads the subwords [token_start, token_end) and labels the words [word_start, word_end)."""

    token_start: int
    token_end: int
    word_start: int
    word_end: int


def windows(word_ids: np.ndarray, size: int, stride: int) -> list[Window]:
    """Cuts a sentence between words into windows of at most `size` subwords that overlap by at most `stride`.

    word_ids [T] -> windows. Every word is labeled by one window. A word in the overlap of two windows is labeled by
    the one that shows more context around it. A word of more than `size` subwords keeps its first ones.

    Example: six words of one subword each, size 4, stride 2. The windows read the words 0-3 and 2-5. In the overlap,
    word 2 has one subword after it in the first window and none before it in the second: the first labels it.
    Word 3 has none after it and one before it: the second labels it. So the windows label 0-2 and 3-5.
    """
    if len(word_ids) == 0:
        return []
    if len(word_ids) <= size:
        return [Window(0, len(word_ids), 0, int(word_ids[-1]) + 1)]
    # starts[i]: the first subword of word i (encode() gives every word one); the last entry is the number of subwords.
    starts = np.append(np.flatnonzero(np.diff(word_ids, prepend=-1)), len(word_ids))  # [words + 1]
    num_words = len(starts) - 1
    stride = min(stride, size // 2)

    spans, begin = [], 0  # the words that each window reads
    while True:
        # The first word that does not fit as a whole. A window takes at least one word.
        end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + size, side="right")) - 1)
        spans.append((begin, end))
        if end == num_words:
            break
        begin = max(begin + 1, int(np.searchsorted(starts, starts[end] - stride)))
        # The next window must reach at least one word further than this one, or no progress is made.
        while begin < end and starts[end + 1] - starts[begin] > size:
            begin += 1

    borders = [0]  # the first word that each window labels
    for (_, end), (begin, _) in itertools.pairwise(spans):
        word = begin  # the first word with more context before it in the next window than after it in this one
        while word < end and starts[word] - starts[begin] <= starts[end] - starts[word + 1]:
            word += 1
        borders.append(word)
    borders.append(num_words)

    found = []
    for i, (begin, end) in enumerate(spans):
        if borders[i] < borders[i + 1]:
            token_end = int(min(starts[end], starts[begin] + size))
            found.append(Window(int(starts[begin]), token_end, borders[i], borders[i + 1]))
    return found


def cut(input_ids: np.ndarray, word_ids: np.ndarray, special, size: int, stride: int) -> Iterator[tuple]:
    """Yields (input_ids [L], word_ids [L]) of every window of a sentence [T], special tokens included.

    special: the token ids before and after a window. word_ids is -1 for what this window does not label: special
    tokens, and words that another window labels.
    """
    before, after = special
    for window in windows(word_ids, size - len(before) - len(after), stride):
        inside = word_ids[window.token_start : window.token_end]
        labeled = (inside >= window.word_start) & (inside < window.word_end)
        ids = np.full(len(before) + len(inside) + len(after), -1, np.int32)
        ids[len(before) : len(before) + len(inside)] = np.where(labeled, inside, -1)
        yield np.concatenate([before, input_ids[window.token_start : window.token_end], after]), ids


def first_subwords(word_ids: np.ndarray) -> np.ndarray:
    """word_ids [L] (-1: no word) -> bool [L], True at the subword that represents its word.

    Training, evaluation and tagging all ask this function. Every word must have exactly one such subword.
    """
    return (word_ids >= 0) & (np.diff(word_ids, prepend=-1) != 0)


def align(word_ids: np.ndarray, tags: np.ndarray, continuation: np.ndarray | None = None) -> np.ndarray:
    """word_ids [L] (-1: no word) and the tags of all words of the sentence [W] -> labels [L].

    The subword that represents a word gets the word's tag. The others get -100, or with --label_all_tokens the
    continuation of the tag.
    """
    others = IGNORED if continuation is None else continuation[tags[word_ids]]
    labels = np.where(first_subwords(word_ids), tags[word_ids], others)
    return np.where(word_ids < 0, IGNORED, labels)


def tokenize(
    sentences: Dataset, label_list: list[str], tokenizer, stride: int, iob1: bool, label_all_tokens: bool
) -> Windows:
    """Sentences -> windows of at most tokenizer.model_max_length subwords, in the order of the file. Cached on disk.

    iob1: the tags are IOB1 and are converted to IOB2. Raises ValueError if no subword fits into a window.
    """
    special, size = special_tokens(tokenizer), tokenizer.model_max_length
    if size <= sum(map(len, special)):
        raise ValueError(f"--max_seq_length {size} leaves no room beside {sum(map(len, special))} special tokens")
    settings = {"label_list": label_list, "special": special, "size": size, "stride": stride, "iob1": iob1}
    settings["continuation"] = tag_schemes.continuation_ids(label_list) if label_all_tokens else None
    util = Path(__file__).parent / "util"
    used = ("tokenizer", "tag_schemes", "tag_spelling", "windows")
    code = code_digest(Path(__file__), *(util / f"{name}.py" for name in used))
    key = Hasher.hash((sentences._fingerprint, tokenizer.backend_tokenizer.to_str(), settings, code))
    return Windows(map_in_parts(sentences, tokenize_batch, key, 1000, "tokenizing", tokenizer=tokenizer, **settings))


def tokenize_batch(
    table: pa.Table, first_row: int, tokenizer, label_list, special, size: int, stride: int, iob1: bool, continuation
) -> pa.Table:
    """A batch of sentences {"tokens", "tags"} -> their windows, one per row.

    List columns of the result hold one value per subword: "input_ids", "labels", and any other that is added here.
    The other columns describe the whole sentence. Its first window has them, further windows have 0 or an empty list:
    "subwords", "unknown_words" (with a subword that the tokenizer does not know), "dropped_words" (indices of the
    words that the tokenizer drops), "truncated_words" (longer than a window).
    """
    lengths = pc.list_value_length(table["tags"]).to_numpy().astype(np.int64)
    tags = pc.index_in(pc.list_flatten(table["tags"]), value_set=pa.array(label_list)).to_numpy().astype(np.int64)
    if iob1:
        tags = tag_schemes.iob1_to_iob2(tags, lengths, label_list)
    ends = np.cumsum(lengths)
    unknown_id = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    room = size - len(special[0]) - len(special[1])

    columns: dict[str, list] = {name: [] for name in (*TOKEN_COLUMNS, *SENTENCE_COLUMNS)}
    for i, sentence in enumerate(encode(table["tokens"].to_pylist(), tokenizer)):
        sentence_tags = tags[ends[i] - lengths[i] : ends[i]]
        unknown_words = np.unique(sentence.word_ids[sentence.input_ids == unknown_id])
        of_sentence = {
            "subwords": len(sentence.input_ids),
            "unknown_words": len(unknown_words),
            "dropped_words": sentence.dropped,
            "truncated_words": int((np.bincount(sentence.word_ids) > room).sum()) if lengths[i] else 0,
        }
        for input_ids, word_ids in cut(sentence.input_ids, sentence.word_ids, special, size, stride):
            columns["input_ids"].append(input_ids)
            columns["labels"].append(align(word_ids, sentence_tags, continuation))
            for name, value in of_sentence.items():
                columns[name].append(value)
            # Counted once, in the first window of the sentence.
            of_sentence = {"subwords": 0, "unknown_words": 0, "dropped_words": [], "truncated_words": 0}
    columns["num_labels"] = [np.count_nonzero(labels != IGNORED) for labels in columns["labels"]]
    lists = (*TOKEN_COLUMNS, "dropped_words")
    return pa.table({name: arrow_column(values, is_list=name in lists) for name, values in columns.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Order, batches, padding: pure functions, so that a resumed run and any number of ranks see the same


def collate(features: list[dict[str, np.ndarray]], pad_values: dict[str, int]) -> dict[str, torch.Tensor]:
    """Windows of unequal length -> input_ids, attention_mask, labels [B, L], padded on the right to the longest.

    No windows at all (the share of a rank in a short last batch) give one row of padding, which has no label. It is
    as long as a word between two special tokens: Funnel reads no less.
    """
    if not features:
        features = [{name: np.full(3, value) for name, value in pad_values.items()}]
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    inside = np.arange(lengths.max()) < lengths[:, None]  # [B, L]
    batch = {"attention_mask": inside.astype(np.int64)}
    for name, value in pad_values.items():
        batch[name] = np.full(inside.shape, value, np.int64)
        batch[name][inside] = np.concatenate([feature[name] for feature in features])
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def split_labels(batch: dict) -> tuple[dict, dict]:
    """A batch -> the model's inputs, and the columns of labels ("labels" and others whose names end alike)."""
    labels = {name: values for name, values in batch.items() if name.endswith("labels")}
    inputs = {name: values for name, values in batch.items() if name not in labels}
    return inputs, labels


class EpochBatches:
    """The rows of every optimizer step of an epoch: [step] -> [size] row numbers, fewer in one step.

    A function of the arguments alone: ranks, accumulation and earlier steps have no influence. With group_by_length,
    rows are sorted by length within random pools of 50 batches, and the batches are shuffled.
    """

    def __init__(self, lengths: np.ndarray, size: int, seed: int, epoch: int, group_by_length: bool = False):
        random = np.random.default_rng([seed, epoch])
        self.lengths, self.size, self.group_by_length = lengths, size, group_by_length
        self.order = random.permutation(len(lengths))
        self.batch_order = random.permutation(-(-len(lengths) // size))

    def __len__(self) -> int:
        return len(self.batch_order)

    def __getitem__(self, step: int) -> np.ndarray:
        if not 0 <= step < len(self):
            raise IndexError(step)
        if not self.group_by_length:
            return self.order[step * self.size : (step + 1) * self.size]
        pool, batch = divmod(int(self.batch_order[step]), 50)
        rows = self.order[pool * 50 * self.size : (pool + 1) * 50 * self.size]
        longest_first = rows[np.argsort(-self.lengths[rows], kind="stable")]
        return longest_first[batch * self.size : (batch + 1) * self.size]


def micro_batches(batches: EpochBatches, first_step: int, accumulation: int, rank: int, world_size: int) -> Iterator:
    """Yields this rank's share of each global batch: `accumulation` lists of rows, some empty in a short batch."""
    for step in range(first_step, len(batches)):
        for share in np.array_split(batches[step], accumulation * world_size)[rank::world_size]:
            yield share.tolist()


def eval_batches(lengths: np.ndarray, size: int, one_length: bool = False) -> list[np.ndarray]:
    """All rows in batches of at most `size` rows and EVAL_TOKENS tokens, the longest first.

    A lack of memory thus shows at once. A row of less than half the length of its batch's longest row begins the next
    batch: a long document does not pad short sentences. one_length: no row is padded.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = lengths[order[start]]
        rows = order[start : start + max(1, min(size, EVAL_TOKENS // longest))]
        shortest = longest if one_length else longest / 2
        batches.append(rows[lengths[rows] >= shortest])
        start += len(batches[-1])
    return batches


# ----------------------------------------------------------------------------------------------------------------------
# The flags of the data -> splits, ready to train or to evaluate on


def make_split(
    source: Source, sentences: Dataset, tags: TagStatistics, label_list: list[str], scheme: str | None, tokenizer,
    stride: int, label_all_tokens: bool = False,
) -> Split:  # fmt: skip
    """Sentences and the statistics of their tags -> windows of at most tokenizer.model_max_length subwords.

    scheme: of the tags, "plain" for none; None: recognized from these tags.
    """
    of_tags = fields_of_tags(tags, label_list, scheme, source.notes)
    tokenized = tokenize(sentences, label_list, tokenizer, stride, of_tags["iob1"], label_all_tokens)
    statistics = window_statistics(tokenized.dataset)
    split = Split(
        source.name, source.read_as, sentences, label_list, **of_tags,
        windows=tokenized,
        fingerprint=hashlib.sha256(f"{label_list} {statistics.checksum}".encode()).hexdigest(),
        token_ids=statistics.token_ids,
    )  # fmt: skip
    num_labels = int(tokenized.num_labels.sum(dtype=np.int64))
    assert label_all_tokens or num_labels == split.num_words, (split.name, num_labels, split.num_words)
    return split


def columns_of(args: argparse.Namespace) -> Columns:
    return Columns(args.text_column_name, args.label_column_name, args.task_name, args.widen_spans, args.span_offsets)


def load_splits(args: argparse.Namespace, tokenizer) -> dict[str, Split]:
    """The flags of the data -> the splits by name, which share a label_list.

    The first process of a machine reads and tokenizes. The others wait at a file lock, since a collective would time
    out, and then find the result in the cache.
    """
    files = {split: getattr(args, f"{split}_file") for split in sources.SPLITS}
    os.makedirs(datasets.config.HF_DATASETS_CACHE, exist_ok=True)
    lock = Hasher.hash([*files.values(), args.dataset_name])
    with FileLock(os.path.join(datasets.config.HF_DATASETS_CACHE, f"nanotagger-{lock}.lock")):
        columns = columns_of(args)
        opened = sources.open_sources(files, args.dataset_name, args.dataset_config_name, columns)
        found, names = sources.read_splits(opened, columns, args.validation_split, args.seed)
        tags = {split: tag_statistics(sentences, source.name) for split, (source, sentences) in found.items()}
        for split, (source, _) in found.items():
            sources.check_same_label_names(source.name, names, None, tags[split].counts)
        refuse_stray_tags(found, tags, args.tag_scheme)
        label_list = tag_schemes.make_label_list(set().union(*(t.counts for t in tags.values())), names)
        scheme = tag_schemes.corpus_scheme([t.evidence for t in tags.values()], label_list, args.tag_scheme)
        splits = {}
        for split, (source, sentences) in found.items():
            options = {"label_all_tokens": args.label_all_tokens and split == "train", "stride": args.stride}
            splits[split] = make_split(source, sentences, tags[split], label_list, scheme, tokenizer, **options)
    return splits


@exit_on_error
def main() -> None:
    quiet(progress=sys.stderr.isatty())
    args = get_args(arguments.name_data_file(sys.argv[1:]))
    _, tokenizer = load_encoder(args.model_name_or_path, args.max_seq_length)
    start = time.perf_counter()
    splits = load_splits(args, tokenizer)
    data_report.log_how_read(splits, print)
    seconds, total = time.perf_counter() - start, sum(split.num_sentences for split in splits.values())
    print(f"{total:,} sentences ready in {seconds:.1f} s: {total / seconds:,.0f} sentences/s")
    lengths, size = splits["train"].windows.lengths, args.per_device_train_batch_size
    random_order, by_length = (EpochBatches(lengths, size, args.seed, 0, grouped) for grouped in (False, True))
    print(data_report.report(splits, tokenizer, random_order, by_length))


if __name__ == "__main__":
    main()
