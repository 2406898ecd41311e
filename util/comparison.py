"""Compares two runs on the same sentences, by their predictions (util/predictions.py).

The test is a paired bootstrap over sentences: both runs are scored on the same draws. Let d be the difference of F1 on
the split, and d* that on a draw, which varies about d. The p-value is the share of draws with |d* - d| >= |d|: how
often a difference as large as d is drawn if the true one is 0. The interval is d -/+ the 95 % quantile of |d* - d|, so
that it contains 0 if p is above 0.05. tests/test_comparison.py simulates how often p is small for equally good runs.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import yaml

from util import report
from util.arguments import ArgumentParser
from util.distributed import exit_on_error
from util.entity_counts import Counts, count, typed_spans
from util.intervals import draw_weights, scores_of, weighted_sums, with_overall
from util.predictions import Predictions, predictions_path, read_predictions
from util.run_dir import CONFIG_FILE, RESULTS_FILE, atomic_write_text, read_json
from util.tag_schemes import PLAIN
from util.text_table import aligned, format_p_value, replace_unprintable

SPLITS = {"test": "test", "eval": "validation"}
ROUNDING = 1e-12  # differences below it are equal
NUM_SHOWN = 5  # changed sentences in the terminal


@dataclass
class ComparisonRow:
    """The scores of both runs for a type, and the difference of F1: the second run minus the first."""

    type: str  # the last row: "all"
    support: int
    a: dict[str, float]  # precision, recall, f1
    b: dict[str, float]
    difference: float
    interval: list[float]  # of the difference, 95 %
    p_value: float  # two-sided


@dataclass
class ChangedSentence:
    """A sentence to which the runs give other tags. An entity is (first word, word after the last, type)."""

    number: int  # from 1
    words: list[str]
    gold: list[tuple[int, int, str]]
    a: list[tuple[int, int, str]]
    b: list[tuple[int, int, str]]

    @property
    def new_errors(self) -> int:
        """How many more entities are wrong or missed in the second run."""
        gold, a, b = set(self.gold), set(self.a), set(self.b)
        return len(gold ^ b) - len(gold ^ a)

    @property
    def change(self) -> str:
        """How the number of errors changes from the first run to the second."""
        return "better" if self.new_errors < 0 else "worse" if self.new_errors > 0 else "same"


@dataclass
class Comparison:
    names: tuple[str, str]  # of the folders
    split: str  # "test" or "validation"
    num_sentences: int
    num_words: int
    rows: list[ComparisonRow]
    accuracy: ComparisonRow  # of the words; its type is "accuracy", and all its scores are the accuracy
    changed: list[ChangedSentence]  # the largest change of the number of errors first
    note: str = ""


class _Run(NamedTuple):
    folder: str
    label_list: list[str]
    scheme: str | None  # as metrics.score takes it
    strict: bool
    splits: dict[str, str]  # "test" and "eval" -> path of the predictions


def _open_run(folder: str) -> _Run:
    """Raises ValueError for a folder that does not hold the predictions of a run."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder")
    settings_file = os.path.join(folder, CONFIG_FILE)
    if not os.path.exists(settings_file):
        raise ValueError(f"{folder}: not the output folder of a run of train.py")
    paths = {name: predictions_path(folder, name) for name in SPLITS}
    splits = {name: path for name, path in paths.items() if os.path.exists(path)}
    is_finished = os.path.exists(os.path.join(folder, RESULTS_FILE))
    if not is_finished:
        raise ValueError(f"{folder}: the run is not finished; the command that began it resumes it")
    if not splits:
        raise ValueError(
            f"{folder}: no predictions: the run had neither validation nor test split, or an older version wrote it; "
            "train again with --overwrite_output_dir"
        )
    try:
        with open(settings_file, encoding="utf-8") as file:
            strict = bool(yaml.safe_load(file)["strict"])
        config = read_json(os.path.join(folder, "config.json"))
        labels = {int(i): label for i, label in config["id2label"].items()}
        scheme = config["tag_scheme"]
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise ValueError(f"{folder}: {CONFIG_FILE} or config.json is not that of a run of train.py: {reason}") from None
    scheme = {"IOB1": "IOB2", PLAIN: None}.get(scheme, scheme)  # IOB1 is converted when it is read
    return _Run(folder, [labels[i] for i in sorted(labels)], scheme, strict, splits)


def compare(folder_a: str, folder_b: str) -> Comparison:
    """Two output folders -> their comparison, on the test split if both have the same one, else on validation.

    Raises ValueError if a folder has no predictions, or if the runs do not have the same words and tags.
    """
    runs = _open_run(folder_a), _open_run(folder_b)
    a, b = runs
    if a.scheme != b.scheme:
        schemes = [run.scheme or "plain tags" for run in runs]
        raise ValueError(f"the tags of {folder_a} are {schemes[0]}, those of {folder_b} {schemes[1]}; "
                         "runs can be compared if their files have the same tags")  # fmt: skip
    common = [name for name in SPLITS if name in a.splits and name in b.splits]
    if not common:
        raise ValueError(f"{folder_a} has predictions of {SPLITS[min(a.splits)]} only, {folder_b} of "
                         f"{SPLITS[min(b.splits)]} only; train both with the same splits")  # fmt: skip
    reasons = []
    for name in common:
        found = read_predictions(a.splits[name]), read_predictions(b.splits[name])
        difference = _first_difference(*found)
        if not difference:
            comparison = _compare(runs, found, SPLITS[name])
            comparison.note = "; ".join(filter(None, [*reasons, comparison.note]))
            return comparison
        reasons.append(f"the {SPLITS[name]} splits of {folder_a} and {folder_b} differ: {difference}")
    raise ValueError(
        f"{reasons[0]}; train both with the same --test_file or --validation_file, "
        "or with the same --validation_split and --seed"
    )


def _first_difference(a: Predictions, b: Predictions) -> str | None:
    """What differs first in the words and gold tags of two files."""
    if len(a.lengths) == len(b.lengths) and (a.lengths == b.lengths).all() and a.words == b.words and a.gold == b.gold:
        return None
    ends_a, ends_b = np.cumsum(a.lengths).tolist(), np.cumsum(b.lengths).tolist()
    start = 0
    for number, (end_a, end_b) in enumerate(zip(ends_a, ends_b), 1):
        for i in range(start, min(end_a, end_b)):
            if a.words[i] != b.words[i]:
                return f"{a.words[i]!r} and {b.words[i]!r} in sentence {number}"
            if a.gold[i] != b.gold[i]:
                return f"the tag of {a.words[i]!r} in sentence {number} is {a.gold[i]} and {b.gold[i]}"
        if end_a != end_b:
            return f"{end_a - start} and {end_b - start} words in sentence {number}"
        start = end_a
    return f"{len(ends_a):,} and {len(ends_b):,} sentences"


class _Scored(NamedTuple):
    """A run on a split of W words."""

    gold: np.ndarray  # [W] label ids
    predicted: np.ndarray  # [W]
    label_list: list[str]
    counts: Counts


def _score(run: _Run, predictions: Predictions, strict: bool) -> _Scored:
    others = sorted({*predictions.gold, *predictions.predicted} - {*run.label_list})
    label_list = [*run.label_list, *others]
    ids = {label: i for i, label in enumerate(label_list)}
    gold, predicted = (
        np.array([ids[tag] for tag in tags], np.int64) for tags in (predictions.gold, predictions.predicted)
    )
    counts = count(gold, predicted, predictions.lengths, label_list, run.scheme, strict)
    return _Scored(gold, predicted, label_list, counts)


def _compare(runs: tuple[_Run, _Run], found: tuple[Predictions, Predictions], split: str) -> Comparison:
    strict = all(run.strict for run in runs)
    scored = [_score(run, predictions, strict) for run, predictions in zip(runs, found)]
    types = sorted({name for run in scored for name in run.counts.types})
    by_sentence = [with_overall(_with_types(run.counts, types)) for run in scored]  # [G, T + 2, 3] each
    is_plain = scored[0].counts.is_plain
    weights = draw_weights(len(by_sentence[0]))
    scores = [np.nan_to_num(scores_of(counts.sum(0), is_plain)) for counts in by_sentence]
    draws = [np.nan_to_num(scores_of(weighted_sums(weights, counts), is_plain)[..., 2]) for counts in by_sentence]
    difference = scores[1][:, 2] - scores[0][:, 2]
    half_width, p_value = paired_test(difference, draws[1] - draws[0])
    support = by_sentence[0][..., 2].sum(0)
    rows = []
    for i, name in enumerate([*types, "all", "accuracy"]):
        a, b = (dict(zip(("precision", "recall", "f1"), of_run[i].tolist())) for of_run in scores)
        interval = [float(difference[i] - half_width[i]), float(difference[i] + half_width[i])]
        rows.append(ComparisonRow(name, int(support[i]), a, b, float(difference[i]), interval, float(p_value[i])))
    note = "scored without --strict, which one of the runs has" if runs[0].strict != runs[1].strict else ""
    names = runs[0].folder.rstrip("/"), runs[1].folder.rstrip("/")
    changed = _changed_sentences(found[0], scored, runs[0].scheme, strict)
    num_sentences, num_words = len(found[0].lengths), len(found[0].words)
    return Comparison(names, split, num_sentences, num_words, rows[:-1], rows[-1], changed, note)


def paired_test(difference: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences [K], and those of D draws [D, K] -> half the widths of their 95 % intervals, and p-values, [K] each.

    1 is added to both numbers of the p-value: the split itself counts as a draw, and p is never 0.
    """
    deviations = np.abs(draws - difference)
    as_large = deviations >= np.abs(difference) - ROUNDING
    half_width = np.quantile(deviations, 0.95, axis=0, method="higher")  # one of the draws, as for p
    return half_width, (1 + as_large.sum(0)) / (1 + len(draws))


def _with_types(counts: Counts, types: list[str]) -> Counts:
    """The counts with these types, in this order. A type that does not occur has counts of 0."""
    entities = np.zeros((len(counts.entities), len(types), 3), np.int64)
    entities[:, [types.index(name) for name in counts.types]] = counts.entities
    return counts._replace(types=types, entities=entities)


def _changed_sentences(
    predictions: Predictions, scored: list[_Scored], scheme: str | None, strict: bool
) -> list[ChangedSentence]:
    lengths, ends = predictions.lengths, np.cumsum(predictions.lengths)
    labels_a, labels_b = (np.array(run.label_list, dtype=object)[run.predicted] for run in scored)
    changed = np.unique(np.searchsorted(ends, np.flatnonzero(labels_a != labels_b), side="right")).tolist()
    sides = []
    for tags, label_list in [
        (scored[0].gold, scored[0].label_list), *((run.predicted, run.label_list) for run in scored)
    ]:  # fmt: skip
        spans, types = typed_spans(tags, lengths, label_list, scheme, strict)
        sides.append((spans, types))
    sentences = []
    for i in changed:
        start, end = int(ends[i] - lengths[i]), int(ends[i])
        entities = []
        for spans, types in sides:
            first, last = np.searchsorted(spans[:, 0], [start, end])
            entities.append([(s - start, e - start, types[t]) for s, e, t in spans[first:last].tolist()])
        sentences.append(ChangedSentence(i + 1, predictions.words[start:end], *entities))
    return sorted(sentences, key=lambda sentence: -abs(sentence.new_errors))


# ---------------------------------------------------------------------------------------------------------
# The command, and text for a terminal


@exit_on_error
def main() -> None:
    """python metrics.py outputs_a outputs_b"""
    parser = ArgumentParser(description="Compare two finished runs of train.py on the same file.")
    parser.add_argument("output_dir", nargs=2, metavar="FOLDER", help="--output_dir of each of the two runs")
    parser.add_argument("--output_file", default="comparison.html", help="the page that is written (comparison.html)")
    args = parser.parse_args()
    replace_unprintable(sys.stdout)
    comparison = compare(*args.output_dir)
    atomic_write_text(args.output_file, report.render_comparison(comparison))
    print(f"{as_text(comparison)}\n\nwritten: {args.output_file}")


def as_text(comparison: Comparison) -> str:
    """A table of the scores, and the sentences that changed most."""
    name_a, name_b = comparison.names
    header = [
        "",
        "support",
        "prec. a",
        "prec. b",
        "recall a",
        "recall b",
        "F1 a",
        "F1 b",
        "F1 b - a",
        "95 % interval",
        "p",
    ]
    rows = [header]
    for row in [*comparison.rows, comparison.accuracy]:
        scores = [f"{side[name]:.4f}" for name in ("precision", "recall", "f1") for side in (row.a, row.b)]
        if row is comparison.accuracy:
            scores[:4] = [""] * 4
        interval = f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}"
        rows.append(
            [row.type, f"{row.support:,}", *scores, f"{row.difference:+.4f}", interval, format_p_value(row.p_value)]
        )
    changes = Counter(sentence.change for sentence in comparison.changed)
    lines = [
        f"{comparison.split}: {comparison.num_words:,} words, {comparison.num_sentences:,} sentences",
        f"a: {name_a}",
        f"b: {name_b}",
        *([comparison.note] if comparison.note else []),
        aligned(rows),
        "",
        f"The tags of {len(comparison.changed):,} of {comparison.num_sentences:,} sentences differ: b has more errors "
        f"in {changes['worse']:,}, fewer in {changes['better']:,}, as many in {changes['same']:,}.",
    ]
    for sentence in comparison.changed[:NUM_SHOWN]:
        lines.append(f"sentence {sentence.number:,}")
        for side in ("gold", "a", "b"):
            lines.append(f"  {side:4}  {_marked(sentence.words, getattr(sentence, side))}")
    return "\n".join(lines)


def _marked(words: list[str], entities: list[tuple[int, int, str]]) -> str:
    """The words, with the entities in brackets: [Maria Santos PER] saw [Oslo LOC]."""
    words = list(words)
    for start, end, name in entities:
        words[start] = f"[{words[start]}"
        words[end - 1] += f" {name}]"
    return " ".join(words)
