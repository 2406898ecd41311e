"""The files of predictions, and the comparison of two runs."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import flat, results, train
from datasets import Dataset
from test_intervals import NER, random_corpus, simulated
from test_output import ODD

import metrics
from util import comparison
from util.comparison import compare, paired_test
from util.entity_counts import count
from util.intervals import draw_weights, scores_of, weighted_sums, with_overall
from util.predictions import read_predictions, write_predictions
from util.run_dir import atomic_write_text


def write_split(folder, name, words, gold, predicted, labels=NER) -> None:
    """words: those of every sentence."""
    split = SimpleNamespace(
        sentences=Dataset.from_dict({"tokens": words}),
        label_list=labels,
        tags=np.array(gold),
        lengths=np.array([len(sentence) for sentence in words]),
    )
    folder.mkdir(exist_ok=True)
    write_predictions(str(folder), name, split, (np.array(predicted), np.full(len(gold), 0.75)))


def write_run(folder, labels=NER, scheme="IOB2", strict=False, finished=True) -> Path:
    """The files of a run that a comparison reads, besides the predictions."""
    folder.mkdir(exist_ok=True)
    (folder / "train_config.yaml").write_text(yaml.safe_dump({"strict": strict}))
    config = {"id2label": dict(enumerate(labels)), "tag_scheme": scheme or "plain"}
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        (folder / "all_results.json").write_text("{}")
    return folder


def sentences_of(lengths) -> list[list[str]]:
    numbers = iter(range(sum(lengths)))
    return [[f"w{next(numbers)}" for _ in range(length)] for length in lengths]


@pytest.fixture
def pair(tmp_path):
    """Two runs on 200 sentences, and what they predicted."""
    gold, a, lengths = random_corpus(NER, 200)
    random = np.random.default_rng(5)
    b = np.where(random.random(len(gold)) < 0.1, gold, a)
    for name, predicted in (("a", a), ("b", b)):
        write_split(write_run(tmp_path / name), "test", sentences_of(lengths), gold, predicted)
    return tmp_path, gold, a, b, lengths


# ---- files


def test_every_odd_word_is_one_column(tmp_path):
    words = [["Anna", "Berg"], *([word, "x"] for word in ODD), []]
    tags = [0, 1] * (len(words) - 1)
    write_split(tmp_path, "eval", words, tags, tags[::-1])
    found = read_predictions(str(tmp_path / "eval_predictions.conll"))
    assert len(found.words) == len(tags) and found.lengths.tolist() == [2] * (len(words) - 1)
    for word, original in zip(found.words, sum(words, [])):
        assert word.split() == original.split()
    assert found.gold == [NER[i] for i in tags] and found.predicted == [NER[i] for i in tags[::-1]]
    assert set(found.probabilities) == {0.75}


def test_conlleval_reads_the_last_two_columns(tmp_path):
    write_split(tmp_path, "test", [["Anna", "Berg"], ["sang"]], [1, 2, 0], [1, 0, 0])
    lines = (tmp_path / "test_predictions.conll").read_text().split("\n")
    expected = [["Anna", "0.750000", "B-PER", "B-PER"], ["Berg", "0.750000", "I-PER", "O"], []]
    assert [line.split() for line in lines] == [*expected, ["sang", "0.750000", "O", "O"], [], []]


# ---- the test


def test_scores_and_changes(pair):
    folder, gold, a, b, lengths = pair
    found = compare(str(folder / "a"), str(folder / "b"))
    lengths = lengths[lengths > 0]
    assert (found.split, found.num_sentences, found.num_words) == ("test", len(lengths), len(gold))
    for side, predicted in (("a", a), ("b", b)):
        scores = metrics.score(gold, predicted, lengths, NER, "IOB2")
        rows = {row.type: row for row in found.rows}
        assert list(rows) == [*scores["per_entity"], "all"]
        for name, row in (scores["per_entity"] | {"all": scores}).items():
            assert getattr(rows[name], side) == pytest.approx({key: row[key] for key in ("precision", "recall", "f1")})
        assert getattr(found.accuracy, side)["f1"] == pytest.approx(scores["accuracy"])
    sentence_of_word = np.repeat(np.arange(len(lengths)), lengths)
    assert {sentence.number - 1 for sentence in found.changed} == set(sentence_of_word[a != b].tolist())
    sizes = [abs(sentence.new_errors) for sentence in found.changed]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1


def test_two_equal_runs(pair):
    folder = pair[0]
    found = compare(str(folder / "a"), str(folder / "a"))
    for row in [*found.rows, found.accuracy]:
        assert row.difference == 0 and row.interval == [0, 0] and row.p_value == 1
    assert found.changed == []


def test_the_order_of_the_runs_changes_only_the_sign(pair):
    folder = pair[0]
    one, other = compare(str(folder / "a"), str(folder / "b")), compare(str(folder / "b"), str(folder / "a"))
    for row, swapped in zip(one.rows, other.rows):
        assert row.difference == -swapped.difference and row.p_value == swapped.p_value
        assert row.interval == pytest.approx([-swapped.interval[1], -swapped.interval[0]])
        assert (row.p_value > 0.05) == (row.interval[0] < 0 < row.interval[1])


def f1_difference(tables: np.ndarray) -> np.ndarray:
    """Counts of both runs [2, 3] -> the difference of F1."""
    f1 = 2 * tables[..., 0] / (tables[..., 1] + tables[..., 2])
    return f1[..., 1] - f1[..., 0]


@pytest.mark.parametrize("better", [0.02, 0.04])
def test_the_paired_test_agrees_with_scipy(better):
    gold, a, lengths = random_corpus(NER, 300, 0.8)
    random = np.random.default_rng(1)
    noise = np.where(random.random(len(gold)) < 0.07, random.integers(0, 5, len(gold)), a)
    b = np.where(random.random(len(gold)) < better, gold, noise)
    counts = [with_overall(count(gold, predicted, lengths, NER, "IOB2")) for predicted in (a, b)]
    draws = [scores_of(weighted_sums(draw_weights(300), side), False)[:, -2, 2] for side in counts]
    tables = np.stack([side[:, -2] for side in counts], axis=1).astype(float)  # [S, 2, 3]
    difference = f1_difference(tables.sum(0))
    half_width, p_value = paired_test(np.array([difference]), (draws[1] - draws[0])[:, None])

    def statistic(*columns, axis=-1):
        sums = np.stack([column.sum(axis) for column in columns], axis=-1)
        return f1_difference(sums.reshape(*sums.shape[:-1], 2, 3))

    columns = tables.reshape(300, 6).T
    options = {"paired": True, "n_resamples": 4000, "vectorized": True, "rng": np.random.default_rng(2)}
    theirs = scipy.stats.bootstrap(columns, statistic, method="basic", **options)
    deviations = np.abs(theirs.bootstrap_distribution - difference)
    assert (draws[1] - draws[0]).std() == pytest.approx(theirs.standard_error, rel=0.1)
    interval = [difference - half_width[0], difference + half_width[0]]
    assert interval == pytest.approx(list(theirs.confidence_interval), abs=0.15 * half_width[0])
    assert p_value[0] == pytest.approx((deviations >= abs(difference)).mean(), abs=0.04)

    def exchanged(first, second, axis=-1):  # of the numbers of sentences: which run is the first one
        rows = np.arange(300)
        swapped = tables[rows, 1 - first.astype(int)], tables[rows, 1 - second.astype(int)]
        sums = np.stack([side.sum(-2) for side in swapped], axis=-2)
        return f1_difference(sums)

    sides = np.ones(300), np.zeros(300)
    options = {"permutation_type": "samples", "n_resamples": 2000, "vectorized": True, "rng": np.random.default_rng(3)}
    permuted = scipy.stats.permutation_test(sides, exchanged, **options)
    assert abs(permuted.statistic) == pytest.approx(abs(difference))
    assert p_value[0] == pytest.approx(permuted.pvalue, abs=0.05)


def test_equally_good_runs_differ_significantly_in_one_of_twenty_cases():
    """1,000 pairs of runs on 300 sentences, as 1,000 types. About 110 sentences change."""
    a, _ = simulated(300, 450, 0.8, 5.0, seed=1)
    b, _ = simulated(300, 450, 0.8, 5.0, seed=2)
    # In a corpus that both share, two thirds of the sentences have the same predictions.
    is_same = np.random.default_rng(3).random((300, 1000, 1)) < 0.67
    of_b = np.where(is_same, a.entities, b.entities)
    weights = draw_weights(300)
    f1 = [scores_of(weighted_sums(weights, side), False)[..., 2] for side in (a.entities, of_b)]
    difference = np.subtract(*[scores_of(side.sum(0), False)[:, 2] for side in (of_b, a.entities)])
    _, p_values = paired_test(difference, f1[1] - f1[0])
    assert 0.03 <= (p_values <= 0.05).mean() <= 0.07 and 0.15 <= (p_values <= 0.2).mean() <= 0.25


# ---- which runs can be compared


def test_other_label_lists_plain_tags_and_strict(tmp_path):
    words, gold = [["a", "b"], ["c"]], [1, 2, 3]
    write_split(write_run(tmp_path / "a"), "test", words, gold, [1, 2, 0])
    more = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    write_split(write_run(tmp_path / "b", more, strict=True), "test", words, [5, 6, 1], [5, 6, 3], more)
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert [row.type for row in found.rows] == ["LOC", "ORG", "PER", "all"] and "--strict" in found.note
    (changed,) = found.changed
    assert (changed.number, changed.words, changed.gold) == (2, ["c"], [(0, 1, "LOC")])
    assert (changed.a, changed.b, changed.new_errors) == ([], [(0, 1, "ORG")], 1)

    plain = ["NOUN", "VERB"]
    write_split(write_run(tmp_path / "c", plain, None), "eval", words, [0, 1, 0], [0, 1, 1], plain)
    write_split(write_run(tmp_path / "d", plain, None), "eval", words, [0, 1, 0], [0, 1, 0], plain)
    found = compare(str(tmp_path / "c"), str(tmp_path / "d"))
    assert found.split == "validation" and found.rows[-1].b["f1"] == 1
    assert found.rows[-1].a["f1"] == pytest.approx(2 / 3)


def test_validation_is_compared_if_the_test_splits_differ(tmp_path):
    for name, word in (("a", "x"), ("b", "y")):
        write_split(write_run(tmp_path / name), "test", [[word]], [0], [0])
        write_split(tmp_path / name, "eval", [["z"]], [0], [1])
    assert compare(str(tmp_path / "a"), str(tmp_path / "b")).split == "validation"


@pytest.mark.parametrize(
    ("words", "gold", "message"),
    [
        ([["x", "Q"], ["z"]], [1, 0, 0], "differ: 'y' and 'Q' in sentence 1; train"),
        ([["x", "y"], ["z"]], [1, 2, 0], "the tag of 'y' in sentence 1 is O and I-PER"),
        ([["x"], ["y", "z"]], [1, 0, 0], "2 and 1 words in sentence 1"),
        ([["x", "y"]], [1, 0], "2 and 1 sentences"),
    ],
)
def test_other_sentences_are_named(words, gold, message, tmp_path):
    write_split(write_run(tmp_path / "a"), "test", [["x", "y"], ["z"]], [1, 0, 0], [0, 0, 0])
    write_split(write_run(tmp_path / "b"), "test", words, gold, gold)
    with pytest.raises(ValueError, match="the test splits of .*") as error:
        compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_folders_that_cannot_be_compared(tmp_path):
    good = str(write_run(tmp_path / "good"))
    write_split(tmp_path / "good", "test", [["x"]], [0], [0])
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "unfinished", finished=False)
    write_run(tmp_path / "old")
    write_split(write_run(tmp_path / "plain", scheme=None), "test", [["x"]], [0], [0])
    write_split(write_run(tmp_path / "other"), "eval", [["x"]], [0], [0])
    for name, message in {
        "nowhere": "no such folder",
        "empty": "not the output folder of a run",
        "unfinished": "is not finished",
        "old": "no predictions",
        "plain": "plain tags",
        "other": "of validation only",
    }.items():
        with pytest.raises(ValueError, match=message):
            compare(good, str(tmp_path / name))


def test_the_command(pair, monkeypatch, capsys):
    folder = pair[0]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["metrics.py", "a", "b/", "--output_file", "page.html"])
    comparison.main()
    lines = capsys.readouterr().out.split("\n")
    assert lines[1:3] == ["a: a", "b: b"] and lines[-2] == "written: page.html"
    assert (folder / "page.html").stat().st_size > 100
    table = lines[3 : lines.index("")]
    assert len({len(line) for line in table}) == 1 and [line.split()[0] for line in table[1:]][-2:] == [
        "all",
        "accuracy",
    ]
    assert " sentences differ: b has more errors in " in "\n".join(lines)


def test_5000_sentences_are_compared_in_three_seconds(tmp_path):
    gold, a, lengths = random_corpus(NER, 5000)
    b = np.where(np.random.default_rng(1).random(len(gold)) < 0.02, gold, a)
    for name, predicted in (("a", a), ("b", b)):
        write_split(write_run(tmp_path / name), "test", sentences_of(lengths), gold, predicted)
    start = time.process_time()
    comparison.as_text(compare(str(tmp_path / "a"), str(tmp_path / "b")))
    assert time.process_time() - start < 3


def test_two_runs_of_train(encoders, corpus, tmp_path):
    """The second one is not trained: its random head predicts most tags, the first one hardly any."""
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"]]
    for seed, learning_rate, steps in ((1, 5e-3, 24), (2, 0, 1)):
        steps = ["--learning_rate", learning_rate, "--max_steps", steps]
        train(*flags, *steps, "--output_dir", tmp_path / str(seed), "--seed", seed)
    found = compare(str(tmp_path / "1"), str(tmp_path / "2"))
    for side, seed in (("a", 1), ("b", 2)):
        measured = results(tmp_path / str(seed))
        assert getattr(found.rows[-1], side)["f1"] == pytest.approx(measured["test_f1"])
        assert getattr(found.accuracy, side)["f1"] == pytest.approx(measured["test_accuracy"])
        low, high = measured["test_f1_ci95"]
        assert low <= measured["test_f1"] <= high and "eval_accuracy_ci95" in measured
        validation = read_predictions(str(tmp_path / str(seed) / "eval_predictions.conll"))
        right = np.mean([gold == tag for gold, tag in zip(validation.gold, validation.predicted)])
        assert right == pytest.approx(measured["eval_accuracy"])
        assert " ± " in (tmp_path / str(seed) / "README.md").read_text(encoding="utf-8")
    assert found.split == "test" and found.num_sentences == 19 and found.changed


def test_a_broken_folder_is_one_line(tmp_path):
    good = str(write_run(tmp_path / "good"))
    write_split(tmp_path / "good", "test", [["x"]], [0], [0])

    def broken(name: str, file: str, content: str) -> str:
        write_split(write_run(tmp_path / name), "test", [["x"]], [0], [0])
        (tmp_path / name / file).write_text(content)
        with pytest.raises(ValueError) as error:
            compare(good, str(tmp_path / name))
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
        return str(error.value)

    assert "is not that of a run" in broken("empty settings", "train_config.yaml", "")
    assert "is not that of a run" in broken("settings", "train_config.yaml", "a: [")
    assert "is not that of a run" in broken("no labels", "config.json", "{}")
    assert "no words" in broken("no words", "test_predictions.conll", "")
    assert "is not a number" in broken("number", "test_predictions.conll", "x\tmany\tO\tO\n")


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    atomic_write_text(str(tmp_path / "link"), "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "page.html").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_write_text(str(tmp_path / "pipe"), "text")
    assert os.read(reader, 9) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        atomic_write_text(str(tmp_path), "text")
    assert not list(tmp_path.parent.glob("*.new"))
