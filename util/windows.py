"""Tokenized windows as numpy views into memory-mapped Arrow files: a corpus of any size takes little memory."""

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from util.corpus_scan import column


def arrow_column(values: list, is_list: bool) -> pa.Array:
    """Numbers, or lists of numbers of unequal length as their values and the offset at which each list begins."""
    if not is_list:
        return pa.array(values, pa.int32())
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([*values, np.empty(0, np.int32)]).astype(np.int32))


class Windows(torch.utils.data.Dataset):
    """[i] -> {"input_ids": [L], "labels": [L]}, and any other column with one value per subword.

    dataset: the result of data.tokenize_batch, which describes its columns.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        table = dataset.with_format("arrow")[:]
        self.columns = [f.name for f in table.schema if pa.types.is_list(f.type) and f.name != "dropped_words"]
        self.chunks = []  # of every chunk of the table: column -> (values, offsets)
        for i in range(table["input_ids"].num_chunks):
            chunk = {name: table[name].chunk(i) for name in self.columns}
            self.chunks.append({name: (c.values.to_numpy(), c.offsets.to_numpy()) for name, c in chunk.items()})
        sizes = [np.diff(chunk["input_ids"][1]) for chunk in self.chunks]
        self.first_row = np.cumsum([0, *map(len, sizes)])
        self.lengths = np.concatenate([np.empty(0, np.int32), *sizes])  # [R] subwords, special tokens included
        self.num_labels = table["num_labels"].to_numpy()  # [R] words that the window labels
        self.subwords = table["subwords"].to_numpy()  # [R] of the whole sentence; 0 in its further windows

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        i = np.searchsorted(self.first_row, row, side="right") - 1
        row -= self.first_row[i]
        return {name: values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in self.chunks[i].items()}

    def pad_values(self, pad_token_id: int) -> dict[str, int]:
        """The value that pads each column."""
        return {name: pad_token_id if name == "input_ids" else -100 for name in self.columns}

    def total(self, name: str) -> int:
        """The sum of a column that describes sentences, such as "unknown_words"."""
        return pc.sum(column(self.dataset, name)).as_py() or 0

    def windows_per_sentence(self) -> np.ndarray:
        """[S'] of the sentences that have words."""
        return np.diff(np.append(np.flatnonzero(self.subwords), len(self)))

    def dropped_words(self) -> tuple[np.ndarray, np.ndarray]:
        """For every word that the tokenizer drops: its sentence among those that have words, and its index there."""
        dropped = column(self.dataset, "dropped_words")
        rows = np.repeat(np.arange(len(self)), pc.list_value_length(dropped).to_numpy())
        return np.cumsum(self.subwords > 0)[rows] - 1, pc.list_flatten(dropped).to_numpy()

    @functools.cached_property
    def first_word(self) -> np.ndarray:
        """[R] the position in the file of the first word that a window labels."""
        return np.cumsum(self.num_labels, dtype=np.int64) - self.num_labels

    def word_positions(self, rows: np.ndarray) -> np.ndarray:
        """rows -> positions in the file of the words that they label, in order."""
        positions = [self.first_word[row] + np.arange(self.num_labels[row]) for row in rows]
        return np.concatenate([np.empty(0, np.int64), *positions])


class RelabeledWindows(Windows):
    """Windows whose words have other labels. tags [W]: of the words in the order of the file."""

    def __init__(self, windows: Windows, tags: np.ndarray):
        super().__init__(windows.dataset)
        self.tags = tags

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        window = super().__getitem__(row)
        labels = window["labels"].copy()
        labels[labels >= 0] = self.tags[self.word_positions([row])]
        return window | {"labels": labels}
