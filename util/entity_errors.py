"""Where a model errs: gold and predicted entities, paired and counted.

    gold         Maria Santos PER   saw   New York LOC   and   Oslo LOC
    predicted    Maria PER Santos   saw   New York PER   and   Oslo
                 boundary                 type                 missed

Entities are rows of an array [E, 3]: first word, the word after the last, type number. They are sorted and
do not overlap. `split` is a data.Split, and `predicted` [W] holds the predicted label ids of its words.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CORRECT = "correct"
ERROR_KINDS = ("missed", "spurious", "type", "boundary")  # report.html explains them
NO_ENTITY = "(none)"  # in confusion tables
UNDEFINED = "-"  # in place of a number


class Match(NamedTuple):
    """A gold entity and the predicted one that it is paired with, by their row numbers. -1 if there is none."""

    kind: str  # CORRECT or one of ERROR_KINDS
    gold: int
    predicted: int


def match_spans(gold: np.ndarray, predicted: np.ndarray) -> list[Match]:
    """gold [G, 3], predicted [P, 3] -> matches; every entity of both sides is in exactly one.

    Entities of the same words are paired first. The remaining ones are paired if they overlap: the same type
    before different types, then the most words in common first.
    """
    matches = []
    predicted_with_words = {(start, end): p for p, (start, end, _) in enumerate(predicted.tolist())}
    unpaired_gold, paired_predicted = [], set()
    for g, (start, end, entity_type) in enumerate(gold.tolist()):
        p = predicted_with_words.get((start, end))
        if p is None:
            unpaired_gold.append(g)
        else:
            matches.append(Match(CORRECT if predicted[p, 2] == entity_type else "type", g, p))
            paired_predicted.add(p)

    candidates = []  # tuples that sort by preference: False before True, then the largest overlap
    for g in unpaired_gold:
        start, end, entity_type = gold[g].tolist()
        # The first prediction that can overlap is the last one that starts at or before this entity.
        p = max(0, int(np.searchsorted(predicted[:, 0], start, side="right")) - 1)
        while p < len(predicted) and predicted[p, 0] < end:
            overlap = min(end, predicted[p, 1]) - max(start, predicted[p, 0])
            if overlap > 0 and p not in paired_predicted:
                candidates.append((predicted[p, 2] != entity_type, -overlap, g, p))
            p += 1
    paired_gold = set()
    for different_type, _, g, p in sorted(candidates):
        if g not in paired_gold and p not in paired_predicted:
            matches.append(Match("type" if different_type else "boundary", g, p))
            paired_gold.add(g)
            paired_predicted.add(p)

    matches += [Match("missed", g, -1) for g in unpaired_gold if g not in paired_gold]
    matches += [Match("spurious", -1, p) for p in range(len(predicted)) if p not in paired_predicted]
    return matches


@dataclass
class Errors:
    gold: np.ndarray  # [G, 3]
    predicted: np.ndarray  # [P, 3]
    types: list[str]  # names by type number
    matches: list[Match]

    def paired(self) -> tuple[np.ndarray, np.ndarray]:
        """The gold and the predicted entity of every match, [M, 3] each; -1 in all columns if absent."""
        none = np.full((1, 3), -1)  # appended as the last row, which the row number -1 selects
        gold = np.concatenate([self.gold, none])[[match.gold for match in self.matches]]
        predicted = np.concatenate([self.predicted, none])[[match.predicted for match in self.matches]]
        return gold, predicted

    def counted(self) -> np.ndarray:
        """[M, 3] the entity under which a match is counted: the gold one, else the predicted one."""
        gold, predicted = self.paired()
        return np.where(gold >= 0, gold, predicted)

    def is_correct(self, side: str) -> np.ndarray:
        """side: "gold" or "predicted" -> [G] or [P], whether each entity of that side is matched exactly."""
        correct = np.zeros(len(getattr(self, side)), bool)
        correct[[getattr(match, side) for match in self.matches if match.kind == CORRECT]] = True
        return correct

    def confusion(self) -> tuple[list[str], np.ndarray]:
        """Names of the types that occur, then NO_ENTITY; and [gold, predicted] how often a pair occurs."""
        gold, predicted = self.paired()
        counts = np.zeros((len(self.types) + 1, len(self.types) + 1), int)
        np.add.at(counts, (gold[:, 2], predicted[:, 2]), 1)  # type -1: the last row or column
        occurs = (counts.sum(0) + counts.sum(1)) > 0
        occurs[-1] = True
        names = [name for name, keep in zip([*self.types, NO_ENTITY], occurs) if keep]
        return names, counts[occurs][:, occurs]


def find_errors(split, predicted: np.ndarray) -> Errors:
    gold_spans, types = split.spans(split.tags)
    predicted_spans, _ = split.spans(predicted)
    return Errors(gold_spans, predicted_spans, types, match_spans(gold_spans, predicted_spans))


def sentence_numbers(split, words: np.ndarray) -> np.ndarray:
    """Word numbers -> the numbers of their sentences."""
    return np.searchsorted(np.cumsum(split.lengths), words, side="right")


class CalibrationBin(NamedTuple):
    scores: str  # "0.9 to 1.0"
    count: int
    mean_score: float
    accuracy: float


def calibration(scores: np.ndarray, correct: np.ndarray) -> tuple[list[CalibrationBin], float]:
    """Scores of predicted entities [P] and whether they are correct [P] -> ten bins, without empty ones, and
    the expected calibration error (Guo et al., arXiv 1706.04599)."""
    bin_of_score = np.minimum((scores * 10).astype(int), 9)
    bins, error = [], 0.0
    for i in np.unique(bin_of_score):
        inside = bin_of_score == i
        mean_score, accuracy = float(scores[inside].mean()), float(correct[inside].mean())
        label = f"{i / 10:.1f} to {(i + 1) / 10:.1f}"
        bins.append(CalibrationBin(label, int(inside.sum()), mean_score, accuracy))
        error += inside.mean() * abs(mean_score - accuracy)
    return bins, float(error)
