"""The pages of util/report.html: the report of a run, the comparison of two runs, and tagged documents.

The macros of the template draw; the functions here and in util/charts.py collect what they draw.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader

from util import charts
from util.curves import read_curves
from util.entity_errors import (
    CORRECT,
    ERROR_KINDS,
    UNDEFINED,
    Errors,
    Match,
    calibration,
    find_errors,
    sentence_numbers,
)
from util.predictions import predictions_path, read_predictions
from util.run_dir import atomic_write_text
from util.text_table import format_p_value, with_interval

MAX_SENTENCES = 500  # of a page
MAX_CONFUSED = 50  # types of the confusion matrix


def format_cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # + 0.0: no minus before a zero


def format_interval(interval) -> str:
    """[-0.012, 0.034]. None: there is no interval."""
    if not interval:
        return ""
    low, high = (round(value, 3) + 0.0 for value in interval)
    return f"[{low:+.3f}, {high:+.3f}]"


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.filters |= {
    "cell": format_cell,
    "score": with_interval,
    "signed": format_signed,
    "interval": format_interval,
}
_templates.filters |= {"p_value": format_p_value, "shortened": charts.shortened}
_templates.globals["error_kinds"] = [*ERROR_KINDS]
# Macros return Markup, which escapes the strings that it is joined with; the functions below return str.
_macros: Any = _templates.get_template("report.html").module

# ---------------------------------------------------------------------------------------------------------
# Highlighted texts


class Highlight(NamedTuple):
    """An entity as the characters [start, end) of a text."""

    start: int
    end: int
    entity_type: str
    note: str  # the tooltip
    kind: str = ""  # of the entity's Match


def type_colors(types) -> dict[str, int]:
    """Hues in degrees. Neighbors in the alphabet get distant hues."""
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


# ---------------------------------------------------------------------------------------------------------
# The report of a run


def render_report(
    title: str, scores: dict, split, predicted: np.ndarray | None = None, probabilities: np.ndarray | None = None,
    train_entities: set[tuple[str, str]] | None = None, max_sentences: int = MAX_SENTENCES,
    curves: dict[str, list] | None = None, best_step: int = 0,
) -> str:  # fmt: skip
    """The report as HTML. It shows the sentences with the most errors.

    scores: of metrics.score. predicted, probabilities [W]: of the predicted labels; None: without errors.
    train_entities: (type, text) of the entities in the training split, to compare the recall of seen and unseen
    ones. curves: of read_curves. best_step: of the model with these scores; 0 if no step is marked.
    """
    errors = None
    if predicted is not None and probabilities is not None:
        errors = _errors_of(split, predicted, probabilities, train_entities, max_sentences)
    page = _macros.report(
        title=title,
        curves=charts.charts_of_run(curves or {}, best_step),
        best_step=best_step,
        scores=scores,
        f1_name="F1" if not split or split.scheme else "F1, mean of tags",
        num_sentences=len(split.lengths) if split else 0,
        bars=_bars({name: (row["support"], [row]) for name, row in scores.get("per_entity", {}).items()}),
        errors=errors,
    )
    return str(page)


def write_report(folder: str, scores: dict, split, predictions: tuple | None, train_set, best_step: int) -> None:
    """Writes folder/report.html. It is called for each new best model and at the end of training.

    split, scores: of validation; a run without it gets the training curves alone, because errors in a test split must
    not guide training. predictions: predicted and probabilities, as for render_report; None: read from the folder.
    """
    title = os.path.basename(os.path.abspath(folder)) + (f" on {split.name}" if split else "")
    if split and predictions is None:
        predictions = _read_predictions(folder, split)
    predicted, probabilities = predictions or (None, None)
    page = render_report(
        title,
        scores,
        split,
        predicted,
        probabilities,
        train_set.entities if split else None,
        curves=read_curves(folder),
        best_step=best_step,
    )
    atomic_write_text(os.path.join(folder, "report.html"), page)


def _read_predictions(folder: str, split) -> tuple[np.ndarray, np.ndarray] | None:
    """Predicted ids and probabilities [W] of the best model, or None if the folder does not have them."""
    try:
        return read_predictions(predictions_path(folder, "eval")).of_split(split)
    except (OSError, ValueError):  # of a run that an older version began
        return None


def _bars(rows: dict) -> charts.BarChart:
    """The values in the last columns, right of the bars, take 120 units."""
    return charts.bar_chart(rows, charts.WIDTH - 120)


def _errors_of(split, predicted, probabilities, train_entities, max_sentences: int) -> dict:
    """What the report shows of a split besides its scores."""
    errors = find_errors(split, predicted)
    recall = None
    if train_entities is not None:
        gold_texts = split.entity_texts(errors.gold, errors.types)
        recall = _recall(errors, np.array([entity in train_entities for entity in gold_texts], bool))
    num_words = errors.predicted[:, 1] - errors.predicted[:, 0]
    entity_scores = span_sums(probabilities, errors.predicted) / np.maximum(1, num_words)
    bins, calibration_error = calibration(entity_scores, errors.is_correct("predicted"))

    num_errors = np.zeros(len(split.lengths), int)
    matches_of = defaultdict(list)
    for i, match in zip(sentence_numbers(split, errors.counted()[:, 0]).tolist(), errors.matches):
        matches_of[i].append(match)
        num_errors[i] += match.kind != CORRECT
    worst = np.argsort(-num_errors, kind="stable")[: np.count_nonzero(num_errors)].tolist()
    names, confusion = errors.confusion()
    counts = _error_counts(errors, names[:-1])
    return {
        "counts": counts,
        "sums": [sum(column) for column in zip(*counts.values())] or [0] * len(ERROR_KINDS),
        "confusion": _confusion(names, confusion),
        "num_types": len(names) - 1,
        "recall": recall,
        "bins": bins,
        "calibration_error": calibration_error,
        "reliability": charts.reliability_chart(bins),
        "num_wrong_sentences": len(worst),
        "sentences": [_sentence(split, i, errors, matches_of[i], entity_scores) for i in worst[:max_sentences]],
        "colors": type_colors(errors.types),
    }


def _error_counts(errors: Errors, types: list[str]) -> dict[str, list[int]]:
    """type -> number of errors of every kind; the type with the most errors first."""
    counts = {name: [0] * len(ERROR_KINDS) for name in types}
    for match, type_number in zip(errors.matches, errors.counted()[:, 2]):
        if match.kind != CORRECT:
            counts[errors.types[type_number]][ERROR_KINDS.index(match.kind)] += 1
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))


def _confusion(names: list[str], counts: np.ndarray) -> dict[str, dict[str, tuple[int, float]]]:
    """gold -> predicted -> count, and its share of the row. The matrix has the MAX_CONFUSED types with most errors."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    num_errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    num_errors[-1] = counts.sum() + 1  # NO_ENTITY stays
    kept = np.sort(np.argsort(-num_errors, kind="stable")[: MAX_CONFUSED + 1]).tolist()
    return {names[i]: {names[j]: (int(counts[i, j]), float(shares[i, j])) for j in kept} for i in kept}


def span_sums(values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """values [W], spans [E, 2 or more columns] -> [E] the sums over the words of every span."""
    # reduceat sums from each index to the next: start to end, end to the next start, and so on. Every second
    # sum is wanted. The appended 0 makes the end of the last span a valid index.
    return np.add.reduceat(np.append(values, 0), spans[:, :2].ravel())[::2]


def _recall(errors: Errors, seen: np.ndarray) -> dict[str, dict]:
    """seen [G]: whether a gold entity occurs in the training split."""
    found, recall = errors.is_correct("gold"), {}
    for name, group in (("seen in train", seen), ("unseen", ~seen)):
        share = float(found[group].mean()) if group.any() else UNDEFINED
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


# ---------------------------------------------------------------------------------------------------------
# Two runs


def render_comparison(comparison, max_sentences: int = MAX_SENTENCES) -> str:
    """The comparison of two runs (util/comparison.py) as HTML. Sentences that changed most come first."""
    types = {
        entity[2]
        for sentence in comparison.changed
        for side in (sentence.gold, sentence.a, sentence.b)
        for entity in side
    }
    changes = {"better": 0, "worse": 0, "same": 0}
    for sentence in comparison.changed:
        changes[sentence.change] += 1
    page = _macros.comparison(
        title=f"{' and '.join(comparison.names)} on {comparison.split}",
        comparison=comparison,
        bars=_bars({row.type: (row.support, [row.a, row.b]) for row in comparison.rows[:-1]}),
        changes=changes,
        lines=list(zip(("gold", *_line_names(comparison.names)), ("gold", "a", "b"))),
        sentences=[_changed_sentence(sentence) for sentence in comparison.changed[:max_sentences]],
        colors=type_colors(types),
    )
    return str(page)


def _line_names(names) -> tuple[str, str]:
    """Names of two runs that fit beside a sentence: their ends, which usually differ, or the order of the runs."""
    short = [name if len(name) <= 10 else "…" + name[-9:] for name in names]
    return (short[0], short[1]) if short[0] != short[1] else ("first", "second")


def _changed_sentence(sentence) -> dict:
    """What the page shows of a sentence. Predicted entities that are not gold are outlined."""
    starts = np.cumsum([0, *(len(word) + 1 for word in sentence.words)]).tolist()
    gold = set(sentence.gold)
    sides = {}
    for side in ("gold", "a", "b"):
        highlights = []
        for start, end, entity_type in getattr(sentence, side):
            kind = CORRECT if (start, end, entity_type) in gold else "wrong"
            highlights.append(Highlight(starts[start], starts[end] - 1, entity_type, kind, kind))
        sides[side] = highlights
    position = f"sentence {sentence.number:,}"
    return {"position": position, "text": " ".join(sentence.words), "change": sentence.change, **sides}
