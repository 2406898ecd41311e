"""Counts by sentence, the bootstrap, and how often its intervals contain the true value."""

import json
import time

import numpy as np
import pytest
import seqeval.metrics

import metrics
from util import entity_counts, intervals
from util.entity_counts import Counts, count
from util.tag_spelling import canonical
from util.text_table import with_interval

NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SCORES = ("precision", "recall", "f1")
SPELLINGS = {
    "IOB2": (NER, "IOB2"),
    "BIOES": (["O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in "BIES")], "BIOES"),
    "BILOU": (["O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in "BILU")], "BILOU"),
    "BMES": (["O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in "BMES")], "BIOES"),
    "IOE1": (["O", "I-PER", "E-PER", "I-LOC", "E-LOC"], "IOE1"),
    "IOE2": (["O", "I-PER", "E-PER", "I-LOC", "E-LOC"], "IOE2"),
    "bare": (["O", "B", "I"], "IOB2"),
    "plain": (["ADJ", "NOUN", "VERB", "X"], None),
}


def random_corpus(labels, num_sentences=120, agree=0.7, seed=0):
    """Gold and predicted tags without regard to the scheme, so that most transitions are invalid; empty sentences."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 14, num_sentences)
    gold = random.integers(0, len(labels), lengths.sum())
    predicted = np.where(random.random(len(gold)) < agree, gold, random.integers(0, len(labels), len(gold)))
    return gold, predicted, lengths


def as_rows(scores: dict) -> dict:
    return scores["per_entity"] | {"all": scores}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_sums_of_the_counts_give_the_scores_of_seqeval(name, strict):
    labels, scheme = SPELLINGS[name]
    if strict and not scheme:
        return
    gold, predicted, lengths = random_corpus(labels)
    counts = count(gold, predicted, lengths, labels, scheme, strict)
    scores = metrics.score(gold, predicted, lengths, labels, scheme, strict)
    assert counts.types == list(scores["per_entity"])
    found = intervals.scores_of(intervals.with_overall(counts).sum(0), counts.is_plain)
    for row, numbers in zip(as_rows(scores).values(), found, strict=False):
        assert [row[key] for key in SCORES] == pytest.approx(numbers, abs=1e-12)
    assert found[-1] == pytest.approx(scores["accuracy"])
    assert counts.entities[:, :, 2].sum(0).tolist() == [row["support"] for row in scores["per_entity"].values()]
    if scheme and not strict and name != "BILOU":  # sentence by sentence, by seqeval alone
        ends, names = np.cumsum(lengths), canonical(labels)
        for i in range(40):
            words = slice(ends[i] - lengths[i], ends[i])
            sides = [set(seqeval.metrics.sequence_labeling.get_entities([names[t] for t in tags[words]]))
                     for tags in (gold, predicted)]  # fmt: skip
            expected = [len(sides[0] & sides[1]), len(sides[1]), len(sides[0])]
            assert counts.entities[i].sum(0).tolist() == expected


@pytest.mark.parametrize("name", ["IOB2", "plain"])
def test_a_draw_has_the_scores_of_the_corpus_that_it_draws(name):
    labels, scheme = SPELLINGS[name]
    gold, predicted, lengths = random_corpus(labels, 30, 0.8)
    gold[gold == 3] = 0
    gold[:3] = 3  # rare: it does not occur in every draw
    predicted[predicted == 3] = 0
    counts = count(gold, predicted, lengths, labels, scheme)
    weights = intervals.draw_weights(30, 8)
    draws = intervals.scores_of(intervals.weighted_sums(weights, intervals.with_overall(counts)), counts.is_plain)
    ends = np.cumsum(lengths)
    for row, draw in zip(weights, draws):
        drawn = np.repeat(np.arange(30), row)
        words = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in drawn])
        scores = metrics.score(gold[words], predicted[words], lengths[drawn], labels, scheme)
        assert [scores[key] for key in SCORES] == pytest.approx(draw[-2])
        assert scores["accuracy"] == pytest.approx(draw[-1, 0])
    assert weights.sum(1).tolist() == [30] * 8


# ---- coverage: 1,000 corpora are counted as 1,000 types of one corpus, for which the intervals are computed at once


def simulated(num_sentences, num_entities, recall, cluster, seed=0) -> tuple[Counts, list[float]]:
    """1,000 corpora with num_entities gold entities on average, and the true precision, recall and F1.

    cluster: the concentration of the beta distribution of a sentence's recall; small: errors come together.
    """
    random, shape = np.random.default_rng(seed), (num_sentences, 1000)
    rate = num_entities / num_sentences
    gold = random.poisson(random.gamma(1.0, rate, shape))
    of_sentence = random.beta(recall * cluster, (1 - recall) * cluster, shape)
    correct = random.binomial(gold, of_sentence)
    # Half of the missed entities have a wrong boundary or type, and other words are taken for entities.
    predicted = correct + random.binomial(gold - correct, 0.5) + random.poisson(0.3 * rate * (1 - of_sentence))
    precision = recall / (recall + 0.8 * (1 - recall))
    entities = np.stack([correct, predicted, gold], axis=2)
    counts = Counts([str(i) for i in range(1000)], entities, entities[:, :1], False)
    return counts, [precision, recall, 2 * precision * recall / (precision + recall)]


def coverage(*corpora, seed=0) -> np.ndarray:
    """[3] in how many percent of the corpora the intervals of precision, recall and F1 contain the true value."""
    counts, truth = simulated(*corpora, seed=seed)
    low, high = np.moveaxis(intervals.confidence_intervals(counts)[:1000], -1, 0)
    is_defined = counts.entities.sum(0)[:, [1, 2, 2]] > 0
    hits = (low <= truth) & (truth <= high)
    return 100 * (hits & is_defined).sum(0) / is_defined.sum(0)


@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
def test_95_percent_intervals_contain_the_true_value_in_93_to_97_percent_of_1000_corpora(recall):
    """Of 150 sentences. 95 +- 0.7 % is the standard error of this count itself."""
    found = coverage(150, 225, recall, 5.0)
    assert ((found >= 93) & (found <= 97)).all(), found


@pytest.mark.slow
@pytest.mark.parametrize("num_sentences", [100, 300, 1000, 5000])
@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("cluster", [1e6, 5.0, 1.5])
def test_coverage_of_many_sizes(num_sentences, recall, cluster):
    found = np.mean([coverage(num_sentences, 1.5 * num_sentences, recall, cluster, seed=i) for i in range(3)], axis=0)
    assert ((found >= 92.5) & (found <= 97.5)).all(), found


@pytest.mark.slow
@pytest.mark.parametrize("support", [5, 10, 20, 50, 100, 200, 500])
@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("cluster", [1e6, 5.0])
def test_coverage_of_rare_types(support, recall, cluster):
    """With few entities, only few values are possible, so that the coverage is less even."""
    found = np.mean([coverage(300, support, recall, cluster, seed=i) for i in range(3)], axis=0)
    assert ((found >= 92) & (found <= 98.5)).all(), found


# ---- corner cases


def ci(gold, predicted, lengths, labels=NER, scheme="IOB2") -> dict:
    scores = metrics.score(np.array(gold), np.array(predicted), np.array(lengths), labels, scheme)
    json.dumps(scores, allow_nan=False)
    for row in as_rows(scores).values():
        for name in SCORES:
            low, high = row[f"{name}_ci95"]
            assert 0 <= low <= row[name] <= high <= 1
    return scores


def test_without_entities_nothing_is_known_about_f1():
    scores = ci([0] * 5, [0] * 5, [2, 3])
    assert scores["f1_ci95"] == [0, 1] and scores["per_entity"] == {}


def test_a_type_that_is_only_predicted_has_no_recall():
    scores = ci([1, 0, 0, 0], [1, 0, 3, 0], [2, 2])
    row = scores["per_entity"]["LOC"]
    assert row["support"] == 0 and row["recall_ci95"] == [0, 1]
    assert row["precision_ci95"][0] == 0 and row["precision_ci95"][1] > 0.5


def test_all_right_is_no_certainty():
    """Ten of ten: Wilson's interval begins at 10 / (10 + 1.96^2)."""
    scores = ci([1, 0] * 10, [1, 0] * 10, [2] * 10)
    assert scores["f1_ci95"] == pytest.approx([10 / (10 + 1.96**2), 1], abs=1e-4)
    wrong = ci([1, 0] * 10, [3, 0] * 10, [2] * 10)
    assert wrong["f1"] == 0 and wrong["f1_ci95"] == pytest.approx([0, 1.96**2 / (10 + 1.96**2)], abs=1e-4)


def test_one_sentence_is_a_sample_of_one():
    """No draw differs from another, so the number of sentences is the sample size: the interval is wide."""
    low, high = ci([1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0], [6])["recall_ci95"]
    assert high - low > 0.5


def test_errors_that_come_together_widen_the_interval():
    gold, spread, together = [1, 0] * 200, [1, 0] * 200, [1, 0] * 200
    for i in range(0, 400, 40):
        spread[i] = 0  # in ten of twenty sentences of ten entities, one each
    together[:20] = [0] * 20  # in one sentence, all
    widths = [np.diff(ci(gold, predicted, [20] * 20)["recall_ci95"])[0] for predicted in (spread, together)]
    assert widths[1] > 2 * widths[0]


def test_intervals_do_not_vary_from_call_to_call():
    gold, predicted, lengths = random_corpus(NER)
    assert ci(gold, predicted, lengths) == ci(gold, predicted, lengths)


def test_a_large_split_is_counted_in_groups(monkeypatch):
    gold, predicted, lengths = random_corpus(NER, 6000)
    grouped = count(gold, predicted, lengths, NER, "IOB2")
    monkeypatch.setattr(entity_counts, "MAX_GROUPS", 10_000)
    single = count(gold, predicted, lengths, NER, "IOB2")
    assert len(grouped.entities) == 5000 and len(single.entities) == 6000
    assert np.array_equal(grouped.entities.sum(0), single.entities.sum(0))
    widths = [np.diff(intervals.confidence_intervals(counts))[..., 0] for counts in (grouped, single)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


@pytest.mark.parametrize("scheme", ["IOB2", None])
def test_5000_sentences_take_less_than_a_third_of_a_second(scheme):
    labels = ["O", *(f"{letter}-{i}" for i in range(20) for letter in "BI")] if scheme else [f"T{i}" for i in range(50)]
    random = np.random.default_rng(0)
    lengths = random.integers(1, 36, 5000)
    gold = random.choice(len(labels), lengths.sum(), p=np.array([0.8, *[0.2 / (len(labels) - 1)] * (len(labels) - 1)]))
    predicted = np.where(random.random(len(gold)) < 0.9, gold, 0)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        intervals.confidence_intervals(count(gold, predicted, lengths, labels, scheme))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


def test_the_table_shows_half_the_width():
    assert with_interval({"f1": 0.8858, "f1_ci95": [0.86, 0.902]}, "f1") == "0.8858 ± 0.021"
    assert with_interval({"f1": 0.8858}, "f1") == "0.8858"  # of an older run
    scores = metrics.score(*random_corpus(NER), NER, "IOB2")
    plain = {key: value for key, value in scores.items() if not key.endswith("_ci95")}
    plain["per_entity"] = {}
    for name, row in scores["per_entity"].items():
        plain["per_entity"][name] = {key: row[key] for key in (*SCORES, "support")}
    for found in (metrics.table(scores), metrics.table(plain)):
        assert len({len(line) for line in found.split("\n")}) == 1
    assert "±" in metrics.table(scores) and "±" not in metrics.table(plain)
    assert not any("ci95" in name for name in metrics.flatten_scores(scores))
