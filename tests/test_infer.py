"""Tagging of running text, compared with transformers' pipeline."""

import numpy as np
import pytest
import sklearn.metrics
from conftest import ROOT, read, results, run, run_python, train
from transformers import AutoModelForTokenClassification, pipeline

import data
import infer
import metrics
from util.tokenizer import encode

README = "My name is Sylvain and I work at Hugging Face in Brooklyn."
FIVE = [
    "Peter Miller joined Nokia in Helsinki last year.",
    "Maria Santos lives in Berlin and works for Siemens.",
    "Police in Paris arrested two people on Monday.",
    "The German government met in London.",
    "It rained all day.",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> str:
    """The first command of the README with fewer steps: the packaged encoder on the embedded corpus."""
    folder = str(tmp_path_factory.mktemp("trained") / "out")
    flags = ["--max_steps", 30, "--learning_rate", 3e-4, "--precision", "fp32"]
    done = run_python("train.py", "--output_dir", folder, *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def tagger(trained) -> infer.Tagger:
    return infer.Tagger(trained, precision="fp32")


@pytest.fixture(scope="session")
def pipe(trained):
    return pipeline("token-classification", trained)


def test_the_saved_model_loads_with_its_labels(trained):
    config = AutoModelForTokenClassification.from_pretrained(trained).config
    assert (
        config.id2label[0] == "O"
        and config.label2id["B-PER"] == [k for k, v in config.id2label.items() if v == "B-PER"][0]
    )
    assert set(config.id2label) == set(range(9))


@pytest.mark.parametrize("text", FIVE)
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_entities_equal_the_pipelines(pipe, tagger, text, strategy):
    theirs = pipe(text, aggregation_strategy=strategy)
    ours = tagger(text, aggregation_strategy=strategy)
    assert [(e["entity_group"], e["start"], e["end"]) for e in ours] == [
        (e["entity_group"], e["start"], e["end"]) for e in theirs
    ]
    assert [e["score"] for e in ours] == pytest.approx([float(e["score"]) for e in theirs], abs=1e-4)
    for entity, other in zip(ours, theirs):
        assert list(entity) == ["entity_group", "score", "word", "start", "end"]
        assert other["word"] == entity["word"].lower()  # theirs is decoded from subwords, ours is cut from the text
        assert entity["word"] == text[entity["start"] : entity["end"]]


def test_a_words_subwords_vote():
    labels = ["O", "B-PER", "I-PER"]
    word_ids = np.array([0, 0, 0, 1, 1])
    subwords = [[0.1, 0.9, 0.0], [0.2, 0.7, 0.1], [0.6, 0.1, 0.3]]  # one word: B-PER, B-PER again, O
    subwords += [[0.3, 0.3, 0.4], [0.95, 0.0, 0.05]]  # and one: I-PER, O
    expected = {
        "simple": ([1, 2], [0.9 + 0.7 + 0.3, 0.4 + 0.05], [3, 2]),
        "first": ([1, 2], [0.9, 0.4], [1, 1]),
        "max": ([1, 0], [0.9, 0.95], [1, 1]),
        "average": ([1, 0], [1.7 / 3, 1.25 / 2], [1, 1]),
    }
    for strategy, (tags, scores, count) in expected.items():
        found = infer.vote(np.array(subwords), word_ids, labels, strategy)
        assert found[0].tolist() == tags and found[2].tolist() == count
        assert found[1].tolist() == pytest.approx(scores)


def test_tagging_uses_the_subword_that_training_labels(monkeypatch):
    """If data.first_subwords is changed to the last subword of a word, the vote follows."""
    monkeypatch.setattr(data, "first_subwords", lambda word_ids: np.diff(word_ids, append=-1) != 0)
    subwords = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])  # a word of two subwords, and one of one
    votes = infer.vote(subwords, np.array([0, 0, 1]), ["O", "B-PER"], "first")
    assert votes.tags.tolist() == [0, 1] and votes.score_sums.tolist() == [0.8, 0.7]


def test_something_was_found_to_compare(tagger):
    assert sum(map(len, tagger(FIVE))) >= 8


def test_one_text_gives_a_list_and_several_a_list_of_lists(tagger):
    alone = [tagger(text) for text in FIVE]
    together = tagger(FIVE)
    assert [[e["word"] for e in entities] for entities in together] == [
        [e["word"] for e in entities] for entities in alone
    ]
    assert tagger("") == [] and tagger(["", " "]) == [[], []]
    with pytest.raises(ValueError, match="no text"):
        tagger([])
    with pytest.raises(ValueError, match="aggregation_strategy"):
        tagger("x", aggregation_strategy="best")


def test_long_documents_are_read_to_their_end(tagger):
    text = "Nothing happened on the way to the old station. " * 120 + README
    found = [e for e in tagger(text) if e["start"] >= len(text) - len(README)]
    assert {"LOC"} <= {e["entity_group"] for e in found if e["word"] == "Brooklyn"}


def test_the_saved_model_scores_what_training_measured(trained, tagger):
    """The words of the file, tagged by the saved model, have the scores of the last evaluation."""
    measured = results(trained)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        sentences = read(ROOT / "samples" / f"{split}.conll")
        gold = np.array([tagger.label_list.index(tag) for sentence in sentences for tag in sentence["tags"]])
        probabilities, word_ids = tagger.probabilities([sentence["tokens"] for sentence in sentences])
        predicted = probabilities[data.first_subwords(word_ids)].argmax(-1)
        lengths = np.array([len(sentence["tokens"]) for sentence in sentences])
        scores = metrics.score(gold, predicted, lengths, tagger.label_list, "IOB2")
        assert scores["per_entity"] == measured[f"{prefix}_per_entity"]
        assert scores["accuracy"] == measured[f"{prefix}_accuracy"]


def test_the_command_line_as_the_readme_has_it(trained):
    as_text = run_python("infer.py", trained, README, "It rained.")
    assert as_text.returncode == 0, as_text.stderr
    assert "49-57" in as_text.stdout and "Brooklyn" in as_text.stdout and "It rained." in as_text.stdout


def test_a_missing_model_is_one_line(tmp_path):
    done = run("infer.py", str(tmp_path / "none"), "text")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "I-PER"], [("PER", 0, 3), ("PER", 6, 7)]),
        (["B-PER", "B-PER"], [("PER", 0, 1), ("PER", 2, 3)]),
        (["B-PER", "I-LOC", "I-LOC"], [("PER", 0, 1), ("LOC", 2, 5)]),
        (["B-PER", "I-PER", "E-PER", "S-PER"], [("PER", 0, 5), ("PER", 6, 7)]),
        (["B-PER", "L-PER", "U-PER"], [("PER", 0, 3), ("PER", 4, 5)]),
        (["NOUN", "NOUN", "VERB"], [("NOUN", 0, 3), ("VERB", 4, 5)]),
        (["O", "O"], []),
    ],
)
def test_words_join_into_entities(tagger, monkeypatch, tags, expected):
    """Two documents of the same words: no entity extends into the next document."""
    text, labels = " ".join("abcd"[: len(tags)]), sorted({*tags, "O"})
    sure = np.repeat([[0.5 * (label == tag) for label in labels] for tag in tags], 1, axis=0)
    monkeypatch.setattr(tagger, "label_list", labels)
    monkeypatch.setattr(tagger, "probabilities", lambda words: (np.tile(sure, (2, 1)), np.arange(2 * len(tags))))
    for found in tagger([text, text]):
        assert [(e["entity_group"], e["start"], e["end"]) for e in found] == expected
        assert all(e["score"] == 0.5 for e in found)


def test_samples_are_what_their_script_writes(tmp_path):
    import make_samples

    make_samples.main(tmp_path)
    for split in ("train", "validation", "test"):
        assert (tmp_path / f"{split}.conll").read_bytes() == (ROOT / "samples" / f"{split}.conll").read_bytes()


def test_a_window_changes_nothing_but_the_context(trained):
    """Sentences of at most 16 subwords are tagged alike in windows of 16 and 128. No word is lost in either."""
    sentences = [row["tokens"] for row in read(ROOT / "samples" / "test.conll")]
    exact = infer.Tagger(trained, precision="fp32")

    def words(size: int) -> list[np.ndarray]:
        exact.window_size = size
        probabilities, word_ids = exact.probabilities(sentences)
        ends = np.cumsum([len(sentence) for sentence in sentences])
        return np.split(probabilities[data.first_subwords(word_ids)], ends[:-1])

    long, cut = words(128), words(16)
    fits = [len(encoded[0]) <= 14 for encoded in encode(sentences, exact.tokenizer)]
    assert 50 < sum(fits) < len(sentences)
    for one, other, fit in zip(cut, long, fits):
        assert one.shape == other.shape
        if fit:
            assert np.allclose(one, other, atol=1e-5)


def test_parts_of_speech_of_conllu_score_as_scikit_learn_scores_them(encoders, tmp_path):
    """The saved model tags the .conllu file; scikit-learn's scores of these tags are the results of training."""
    for split in ("train", "test"):
        sentences = read(ROOT / "samples" / f"{split}.conll", task_name="pos")[:150]
        lines = []
        for sentence in sentences:
            for i, (word, tag) in enumerate(zip(sentence["tokens"], sentence["tags"]), 1):
                lines.append(f"{i}\t{word}\t_\t{tag}" + "\t_" * 6)
            lines.append("")
        (tmp_path / f"{split}.conllu").write_text("\n".join(lines), encoding="utf-8")
    files = ["--train_file", tmp_path / "train.conllu", "--test_file", tmp_path / "test.conllu", "--task_name", "pos"]
    flags = ["--model_name_or_path", encoders["wordpiece"], "--learning_rate", 5e-3, "--precision", "fp32"]
    train(*files, *flags, "--output_dir", tmp_path / "out")
    measured = results(tmp_path / "out")
    tagger = infer.Tagger(str(tmp_path / "out"), precision="fp32")
    probabilities, word_ids = tagger.probabilities([sentence["tokens"] for sentence in sentences])
    predicted = [tagger.label_list[tag] for tag in probabilities[data.first_subwords(word_ids)].argmax(-1)]
    gold = [tag for sentence in sentences for tag in sentence["tags"]]
    report = sklearn.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    assert set(measured["test_per_entity"]) == set(gold) | set(predicted) and len(set(predicted)) > 5
    assert measured["test_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))
    for tag, row in measured["test_per_entity"].items():
        assert row["support"] == report[tag]["support"]
        for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[key] == pytest.approx(report[tag][name])
