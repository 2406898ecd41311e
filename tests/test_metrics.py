"""Decoding, the gather across ranks, scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import data
import metrics
from model import token_loss

NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_a_batch_is_decoded_by_argmax_at_labeled_positions_row_by_row():
    logits = torch.tensor([[[9.0, 0, 0], [0, 1, 2], [5, 5, 6]], [[0, 3, 1], [9, 9, 9], [1, 0, 0]]])  # [2, 3, 3]
    labels = torch.tensor([[-100, 2, 0], [1, -100, -100]])

    class Model:
        device = torch.device("cpu")

        def __call__(self, input_ids):
            return SimpleNamespace(logits=logits[input_ids[:, 0]])

    batch = {"input_ids": torch.tensor([[0, 0, 0], [1, 1, 1]]), "labels": labels}
    words = metrics.predict_batch(Model(), batch, torch.autocast("cpu", enabled=False), token_loss)
    predicted, probabilities, losses = words[:, 0], words[:, 1].view(torch.float32), words[:, 2].view(torch.float32)
    assert words.dtype == torch.int32 and words[:, 3].tolist() == [0, 0, 0]  # no near ties
    assert predicted.tolist() == [2, 2, 1]
    expected = [-torch.log_softmax(logits[b, i], -1)[c].item() for b, i, c in ((0, 1, 2), (0, 2, 0), (1, 0, 1))]
    assert losses.tolist() == pytest.approx(expected)
    most = [torch.softmax(logits[b, i], -1).max().item() for b, i in ((0, 1), (0, 2), (1, 0))]
    assert probabilities.tolist() == pytest.approx(most)


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[2], [1], [0]]])
def test_near_ties_in_16_bits_are_computed_again_in_fp32(batches):
    """In the first row, 4 and 4 + 2^-9 are equal in bf16, and argmax would take the first. The others are no ties."""
    exact = torch.tensor([[4.0, 4.0 + 2**-9, -1.0], [3.0, -3.0, 0.0], [0.0, 1.0, 5.0]])
    calls = []

    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            is_16_bits = torch.is_autocast_enabled("cpu")
            calls.append((is_16_bits, input_ids[:, 0].tolist()))
            logits = exact[input_ids]
            return SimpleNamespace(logits=logits.bfloat16() if is_16_bits else logits)

    class Windows(list):
        num_labels = np.ones(3, int)

        def word_positions(self, rows):
            return np.array(rows)

    windows = Windows({"input_ids": np.array([i]), "labels": np.array([0])} for i in range(3))
    predicted, _, _ = metrics.predict(
        Model(),
        windows,
        [np.array(batch) for batch in batches],
        collate=lambda features: data.collate(features, {"input_ids": 0, "labels": -100}),
        autocast=torch.autocast("cpu", dtype=torch.bfloat16),
        token_loss=token_loss,
    )
    assert predicted.tolist() == [1, 0, 2]
    assert [ids for is_16_bits, ids in calls if not is_16_bits] == [[0]]


def words(*rows) -> torch.Tensor:
    """(position, predicted id, probability, loss) of each word -> [n, 4] int32, as predict() packs them."""
    positions, predicted = (torch.tensor([row[i] for row in rows]).int() for i in (0, 1))
    floats = [torch.tensor([row[i] for row in rows], dtype=torch.float32).view(torch.int32) for i in (2, 3)]
    return torch.stack([positions, predicted, *floats], 1)


NONE = torch.empty(0, 4, dtype=torch.int32)
HELD = {  # words by rank: sentences of 3 and 1 words, of 5, and no sentence
    2: [
        words((5, 1, 0.5, 0.5), (6, 2, 0.75, 0.25), (7, 0, 1.0, 1e-30), (0, 4, 0.25, 3.0)),
        words(*[(i, i % 3, i / 5, i / 7) for i in range(1, 5)]),
    ],
    3: [
        words((2, 1, 0.5, 0.5)),
        NONE,
        words((0, 3, 0.125, 1.5), (3, 0, 0.25, 2.5), (1, 2, 0.75, float("inf"))),
    ],
}


def gather_worker(rank: int, world_size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    longest = max(map(len, HELD[world_size]))
    gathered = metrics.gather(HELD[world_size][rank], longest)
    torch.save(gathered, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves while others still connect makes them fail
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_gather_of_different_numbers_of_words(world_size, tmp_path):
    mp.start_processes(gather_worker, (world_size, str(tmp_path)), world_size, start_method="fork")
    on_rank0, *others = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    assert torch.equal(on_rank0, torch.cat(HELD[world_size]))
    assert all(len(other) == 0 for other in others)


def test_gathered_words_come_back_in_file_order():
    predicted, probabilities, losses = metrics.in_file_order(torch.cat(HELD[3]), 4)
    assert predicted.tolist() == [3, 2, 1, 0]
    assert probabilities.tolist() == [0.125, 0.75, 0.5, 0.25]
    assert losses.tolist() == [1.5, float("inf"), 0.5, 2.5]


@pytest.mark.parametrize("positions", [[0], [0, 0], [0, 1, 2]])
def test_a_missing_or_repeated_word_is_an_error(positions):
    with pytest.raises(AssertionError, match="not predicted exactly once"):
        metrics.in_file_order(words(*[(position, 1, 1.0, 0.0) for position in positions]), 2)


def random_tags(labels, count=2000, agree=0.7, seed=0):
    random = np.random.default_rng(seed)
    gold = random.integers(0, len(labels), count)
    predicted = np.where(random.random(count) < agree, gold, random.integers(0, len(labels), count))
    lengths = []
    while sum(lengths) < count:
        lengths.append(min(int(random.integers(1, 30)), count - sum(lengths)))
    return gold, predicted, np.array(lengths)


def test_entities_are_scored_as_by_seqeval():
    gold, predicted, lengths = random_tags(NER)
    scores = metrics.score(gold, predicted, lengths, NER, "IOB2")
    ends = np.cumsum(lengths)[:-1]
    as_tags = [[[NER[i] for i in part] for part in np.split(ids, ends)] for ids in (gold, predicted)]
    assert scores["precision"] == seqeval.metrics.precision_score(*as_tags)
    assert scores["recall"] == seqeval.metrics.recall_score(*as_tags)
    assert scores["f1"] == seqeval.metrics.f1_score(*as_tags)
    assert scores["accuracy"] == seqeval.metrics.accuracy_score(*as_tags)
    report = seqeval.metrics.classification_report(*as_tags, output_dict=True)
    for kind in ("PER", "LOC"):
        assert scores["per_entity"][kind]["f1"] == report[kind]["f1-score"]
        assert scores["per_entity"][kind]["support"] == report[kind]["support"]
    assert scores["words"] == 2000


def test_the_end_of_a_sentence_ends_an_entity():
    gold = np.array([1, 2, 2, 0])  # B-PER I-PER | I-PER O
    assert metrics.score(gold, gold, np.array([2, 2]), NER, "IOB2")["per_entity"]["PER"]["support"] == 2
    assert metrics.score(gold, gold, np.array([4]), NER, "IOB2")["per_entity"]["PER"]["support"] == 1


def test_plain_tags_are_scored_as_by_scikit_learn_under_their_full_names():
    labels = ["ADJ", "NOUN", "PROPN", "VERB", "X"]
    gold, predicted, lengths = random_tags(labels[:4])
    scores = metrics.score(gold, predicted, lengths, labels, None)
    assert list(scores["per_entity"]) == ["ADJ", "NOUN", "PROPN", "VERB"]
    expected = sklearn.metrics.precision_recall_fscore_support(gold, predicted)
    for i, tag in enumerate(labels[:4]):
        found = scores["per_entity"][tag]
        assert [found[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(
            [row[i] for row in expected]
        )
    assert scores["accuracy"] == sklearn.metrics.accuracy_score(gold, predicted)
    assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(gold, predicted, average="macro"))


def test_a_split_without_entities_scores_zero_without_a_warning(recwarn):
    scores = metrics.score(np.zeros(5, int), np.zeros(5, int), np.array([5]), NER, "IOB2")
    assert scores["f1"] == 0 and scores["accuracy"] == 1 and scores["per_entity"] == {}
    assert "all" in metrics.table(scores) and not recwarn


def test_the_table_lines_up():
    gold, predicted, lengths = random_tags(NER)
    lines = metrics.table(metrics.score(gold, predicted, lengths, NER, "IOB2")).split("\n")
    assert len({len(line) for line in lines}) == 1 and lines[1].startswith("LOC") and lines[-1].startswith("all")


@pytest.mark.parametrize("name", ["all", "micro avg", "-", "X-"])
@pytest.mark.parametrize("strict", [False, True])
def test_any_name_of_a_type_is_scored(name, strict):
    """seqeval has no row for a type that is named like one of its averages, and strips "-" in strict mode."""
    labels = ["O", f"B-{name}", f"I-{name}", "B-LOC", "I-LOC"]
    gold = np.array([1, 2, 0, 3])
    scores = metrics.score(gold, gold, np.array([2, 2]), labels, "IOB2", strict)
    assert scores["f1"] == 1 and scores["f1_ci95"][0] < 1 and scores["per_entity"]["LOC"]["support"] == 1
    lines = metrics.table(scores).split("\n")
    assert len(lines) == 2 + len(scores["per_entity"]) and lines[-1].split()[-1] == str(2 if name != "micro avg" else 1)
