"""Where a model errs: gold and predicted entities compared, and the error report, one HTML page.

    gold         Maria Santos PER   saw   New York LOC   and   Oslo LOC
    predicted    Maria PER Santos   saw   New York PER   and   Oslo
                 boundary                 type                 missed

Entities are rows of an array [E, 3]: first word, the word after the last, type number. They are sorted and
do not overlap. `split` is a data.Split, and `predicted` [W] holds the predicted label ids of its words.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader

from util.run_dir import atomic_write_text

CORRECT = "correct"
ERROR_KINDS = ("missed", "spurious", "type", "boundary")  # report.html explains them
NO_ENTITY = "-"  # in confusion tables; also where a number is undefined


def format_cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.filters["cell"] = format_cell
# Macros return Markup, which escapes the strings that it is joined with; the functions below return str.
_macros: Any = _templates.get_template("report.html").module

# ---------------------------------------------------------------------------------------------------------
# Gold and predicted entities -> pairs


class Match(NamedTuple):
    """A gold entity and the predicted one that it is paired with, by their row numbers. -1: none."""

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


def _sentence_numbers(split, words: np.ndarray) -> np.ndarray:
    """Word numbers -> the numbers of their sentences."""
    return np.searchsorted(np.cumsum(split.lengths), words, side="right")


def span_sums(values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """values [W], spans [E, 2 or more columns] -> [E] the sums over the words of every span."""
    # reduceat sums from each index to the next: start to end, end to the next start, and so on. Every second
    # sum is wanted. The appended 0 makes the end of the last span a valid index.
    return np.add.reduceat(np.append(values, 0), spans[:, :2].ravel())[::2]


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


# ---------------------------------------------------------------------------------------------------------
# Markdown for TensorBoard


def confusion_table(split, predicted: np.ndarray) -> str:
    """How often a type (row) is predicted as a type (column)."""
    names, counts = find_errors(split, predicted).confusion()
    names = [name.replace("|", "\\|") for name in names]
    rows = [["gold / predicted", *names], ["---"] * (len(names) + 1)]
    for name, row in zip(names, counts.tolist()):
        rows.append([name, *map(format_cell, row)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sample_text(split, predicted: np.ndarray, max_sentences: int = 10) -> str:
    """The first sentences that have an entity, gold and predicted, with the entities in bold brackets."""
    sides = {"gold": split.spans(split.tags), "predicted": split.spans(predicted)}
    first_words = np.concatenate([spans[:, 0] for spans, _ in sides.values()])
    starts = np.cumsum(split.lengths) - split.lengths
    paragraphs = []
    for i in np.unique(_sentence_numbers(split, first_words))[:max_sentences].tolist():
        position, words = split.sentence(i)
        lines = [position]
        for side, (spans, types) in sides.items():
            marked = list(words)
            in_sentence = (spans[:, 0] >= starts[i]) & (spans[:, 0] < starts[i] + split.lengths[i])
            for start, end, type_number in (spans[in_sentence] - [starts[i], starts[i], 0]).tolist():
                marked[start] = "**[" + marked[start]
                marked[end - 1] += f"]** {types[type_number]}"
            lines.append(f"{side}: {' '.join(marked)}")
        paragraphs.append("  \n".join(lines))  # two spaces: a line break in Markdown
    return "\n\n".join(paragraphs)


# ---------------------------------------------------------------------------------------------------------
# HTML


class Highlight(NamedTuple):
    """An entity as the characters [start, end) of a text."""

    start: int
    end: int
    entity_type: str
    note: str  # the tooltip
    kind: str = ""  # of the entity's Match


def type_colors(types) -> dict[str, int]:
    """Hues in degrees. Neighbours in the alphabet get distant hues."""
    return {entity_type: i * 137 % 360 for i, entity_type in enumerate(sorted(types))}


def page_start(title: str) -> str:
    """The beginning of a page of articles, with buttons that filter them."""
    return str(_macros.page_start(title) + _macros.filter_bar())


def article(text: str, spans: list[tuple[int, int, str]], colors: dict[str, int], notes: list[str]) -> str:
    """A document with its entities (start, end, type), each with a note."""
    highlights = [Highlight(*span, note) for span, note in zip(spans, notes)]
    return str(_macros.document(text, highlights, colors))


def page_end() -> str:
    return str(_macros.page_end())


def render_report(
    title: str, scores: dict, split, predicted: np.ndarray, probabilities: np.ndarray,
    train_entities: set[tuple[str, str]] | None = None, max_sentences: int = 500,
) -> str:  # fmt: skip
    """The error report as HTML. It shows the sentences with the most errors.

    scores: of metrics.score. probabilities [W]: of the predicted labels. train_entities: (type, text) of the
    entities in the training split, to compare the recall of seen and unseen ones.
    """
    errors = find_errors(split, predicted)
    names, counts = errors.confusion()
    recall = None
    if train_entities is not None:
        gold_texts = split.entity_texts(errors.gold, errors.types)
        recall = _recall(errors, np.array([entity in train_entities for entity in gold_texts], bool))
    num_words = errors.predicted[:, 1] - errors.predicted[:, 0]
    entity_scores = span_sums(probabilities, errors.predicted) / np.maximum(1, num_words)

    num_errors = np.zeros(len(split.lengths), int)
    matches_of = defaultdict(list)
    for i, match in zip(_sentence_numbers(split, errors.counted()[:, 0]).tolist(), errors.matches):
        matches_of[i].append(match)
        num_errors[i] += match.kind != CORRECT
    worst = np.argsort(-num_errors, kind="stable")[: np.count_nonzero(num_errors)].tolist()
    page = _macros.report(
        title=title,
        scores=scores,
        num_sentences=len(split.lengths),
        error_counts=_error_counts(errors, names[:-1]),
        names=names,
        confusion=counts.tolist(),
        recall=recall,
        calibration=calibration(entity_scores, errors.is_correct("predicted")),
        num_wrong_sentences=len(worst),
        sentences=[_sentence(split, i, errors, matches_of[i], entity_scores) for i in worst[:max_sentences]],
        colors=type_colors(errors.types),
    )
    return str(page)


def write_report(folder: str, scores: dict, split, predictions: tuple, train_set) -> None:
    """Writes folder/report.html. predictions: predicted and probabilities, as for render_report."""
    title = f"{os.path.basename(os.path.abspath(folder))} on {split.name}"
    predicted, probabilities = predictions
    page = render_report(title, scores, split, predicted, probabilities, train_set.entities)
    atomic_write_text(os.path.join(folder, "report.html"), page)


def _error_counts(errors: Errors, types: list[str]) -> dict[str, dict[str, int]]:
    """kind -> type -> number of errors."""
    counts = {kind: dict.fromkeys(types, 0) for kind in ERROR_KINDS}
    for match, type_number in zip(errors.matches, errors.counted()[:, 2]):
        if match.kind != CORRECT:
            counts[match.kind][errors.types[type_number]] += 1
    return counts


def _recall(errors: Errors, seen: np.ndarray) -> dict[str, dict]:
    """seen [G]: whether a gold entity occurs in the training split."""
    found, recall = errors.is_correct("gold"), {}
    for name, group in (("seen in train", seen), ("unseen", ~seen)):
        share = float(found[group].mean()) if group.any() else NO_ENTITY
        recall[name] = {"number": int(group.sum()), "recall": share}
    return recall


def _sentence(split, i: int, errors: Errors, matches: list[Match], entity_scores: np.ndarray) -> dict:
    """What the report shows of sentence i: its position and text, and the entities of both sides."""
    position, words = split.sentence(i)
    first_word = int(split.lengths[:i].sum())
    starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()  # of the words in the text
    highlights: dict[str, list[Highlight]] = {"gold": [], "predicted": []}
    for match in matches:
        rows = {"gold": (errors.gold, match.gold), "predicted": (errors.predicted, match.predicted)}
        for side, (spans, row) in rows.items():
            if row >= 0:
                start, end, type_number = (spans[row] - [first_word, first_word, 0]).tolist()
                note = match.kind if side == "gold" else f"{match.kind} {entity_scores[row]:.4f}"
                span = starts[start], starts[end] - 1, errors.types[type_number]
                highlights[side].append(Highlight(*span, note, match.kind))
    sides = {side: sorted(found) for side, found in highlights.items()}
    return {"position": position, "text": " ".join(words), **sides}
