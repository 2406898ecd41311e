r"""The predictions of a run: eval_predictions.conll and test_predictions.conll in its output folder.

    Maria   0.999134  B-PER  B-PER    one line per word: the word, the probability of the predicted tag, gold, predicted
    Santos  0.842310  I-PER  O        an empty line after every sentence

Columns are separated by tabs. The last two are those that conlleval reads (conlleval -d '\t'). Words are written as
`infer.py --format conll` writes them: a tab or a line end in a word becomes a space.
"""

import os
import re
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from util.corpus_scan import column
from util.lines import conll_word
from util.run_dir import atomic_write_text

NUMBER = re.compile(r"[0-9.]+")  # as write_predictions writes it


class Predictions(NamedTuple):
    """W words in S sentences. Sentences without words are left out."""

    words: list[str]
    probabilities: np.ndarray  # [W]
    gold: list[str]
    predicted: list[str]
    lengths: np.ndarray  # [S] words of every sentence

    def of_split(self, split) -> tuple[np.ndarray, np.ndarray]:
        """The predicted label ids [W] and their probabilities [W], as they were written.

        Raises ValueError if the number of words or a label is not that of the split.
        """
        ids = {conll_word(label): i for i, label in enumerate(split.label_list)}
        if len(self.predicted) != len(split.tags) or not ids.keys() >= set(self.predicted):
            raise ValueError(f"not the predictions of {split.name}")
        return np.array([ids[tag] for tag in self.predicted], np.int64), self.probabilities


def predictions_path(folder: str, name: str) -> str:
    """name: "eval" or "test", as in all_results.json."""
    return os.path.join(folder, f"{name}_predictions.conll")


def write_predictions(folder: str, name: str, split, predictions: tuple[np.ndarray, np.ndarray]) -> None:
    """split: a data.Split. predictions: predicted label ids [W] and their probabilities [W]."""
    labels = [conll_word(label) for label in split.label_list]
    words = map(conll_word, pc.list_flatten(column(split.sentences, "tokens")).to_pylist())
    predicted, probabilities = (numbers.tolist() for numbers in predictions)
    lines = [
        f"{word}\t{probability:.6f}\t{labels[gold]}\t{labels[found]}\n"
        for word, probability, gold, found in zip(words, probabilities, split.tags.tolist(), predicted, strict=True)
    ]
    for end in np.cumsum(split.lengths[split.lengths > 0]) - 1:
        lines[end] += "\n"
    atomic_write_text(predictions_path(folder, name), "".join(lines))


def read_predictions(path: str) -> Predictions:
    """Raises ValueError for a line that does not have four columns."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        lines = file.read().split("\n")
    rows, lengths, start = [], [], 0
    for number, line in enumerate(lines, 1):
        if line:
            rows.append(line.split("\t"))
            if len(rows[-1]) != 4:
                raise ValueError(f"{path}:{number}: {len(rows[-1])} columns, expected 4; run train.py again")
        elif len(rows) > start:
            lengths.append(len(rows) - start)
            start = len(rows)
    if len(rows) > start:
        lengths.append(len(rows) - start)
    if not rows:
        raise ValueError(f"{path}: no words; run train.py again")
    words, probabilities, gold, predicted = ([row[i] for row in rows] for i in range(4))
    if not all(NUMBER.fullmatch(text) for text in probabilities):
        raise ValueError(f"{path}: a probability is not a number; run train.py again")
    return Predictions(words, np.array(probabilities, np.float64), gold, predicted, np.array(lengths, np.int64))
