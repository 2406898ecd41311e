"""From logits to scores: one tag a word, every word of the file exactly once, seqeval.

logits [B, L, C] of each batch -> decode -> gather (all ranks, one collective) -> score -> table
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOB2, IOBES


def decode(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B, L, C], labels [B, L] -> predicted label ids [W] and losses [W] of the words labelled here.

    W counts the positions that are not -100, row by row. A word's tag is the argmax at its first subword.
    """
    word = labels != -100
    logits = logits[word].float()
    return logits.argmax(-1), F.cross_entropy(logits, labels[word], reduction="none")


def gather(words: torch.Tensor, longest: int) -> torch.Tensor:
    """words [n, K] int32 of each rank -> on rank 0 those of all ranks [N, K], elsewhere nothing [0, K].

    A collective moves equal shapes, so every rank pads its rows with -100 to `longest`, the most any rank holds;
    each can count that by itself. Padding rows are known by a first column below zero and fall away again.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return words
    padded = words.new_full((longest, words.shape[1]), -100)
    padded[: len(words)] = words
    ranks = [torch.empty_like(padded) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(padded, ranks)
    gathered = torch.cat(ranks) if ranks else padded[:0]
    return gathered[gathered[:, 0] >= 0]


def in_file_order(words: torch.Tensor, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """words [W, 3] int32 (position in the file, predicted label id, bits of the fp32 loss), in any order
    -> predicted [W] and losses [W] in file order. Each word has to be there exactly once."""
    words = words.cpu()
    position = words[:, 0].numpy()
    times = np.bincount(position, minlength=num_words)
    assert len(times) == num_words and (times == 1).all(), f"{(times != 1).sum()} of {num_words} words not seen once"
    predicted, losses = np.empty(num_words, np.int64), np.empty(num_words, np.float32)
    predicted[position] = words[:, 1].numpy()
    losses[position] = words[:, 2].contiguous().view(torch.float32).numpy()
    return predicted, losses


STRICT = {"IOB2": IOB2, "BIOES": IOBES, "BILOU": BILOU}  # seqeval's own names for what data.tag_scheme finds


def check_strict(labels: list[str], scheme: str | None) -> None:
    """ValueError where seqeval's strict mode would refuse a label in the midst of training."""
    wrong = [label for label in labels if scheme is None or label[0] not in scheme.replace("IOB2", "BIO") + "O"]
    if wrong:
        raise ValueError(f"--strict needs tags of one scheme: {wrong[0]} is none of {scheme or 'IOB2, BIOES or BILOU'}")


def score(
    gold: np.ndarray, predicted: np.ndarray, lengths: np.ndarray, labels: list[str], scheme: str | None, strict=False
) -> dict:
    """gold [W], predicted [W] label ids and words per sentence [S] -> precision, recall, f1, accuracy, words,
    per_entity (type -> precision, recall, f1, support).

    Entities by seqeval in its default mode, which is conlleval's, or strictly by the tags' scheme. Plain tags (scheme
    None) are scored each for itself, with the macro average as the overall figure (seqeval would take them for
    entities and cut NOUN to OUN).
    """
    scores = {"accuracy": float((gold == predicted).mean()), "words": len(gold)}
    if scheme:
        # The default mode reads IOB and BIOES; BILOU's last and only words are BIOES under other letters.
        letters = {} if strict else {"L": "E", "U": "S"}
        names = np.array([letters.get(label[0], label[0]) + label[1:] for label in labels], dtype=object)
        ends = np.cumsum(lengths)[:-1]
        sentences = [[part.tolist() for part in np.split(names[ids], ends)] for ids in (gold, predicted)]
        mode = {"mode": "strict", "scheme": STRICT[scheme]} if strict else {}
        with warnings.catch_warnings(action="ignore"):  # seqeval's mean over types, where there is not one entity
            report = classification_report(*sentences, output_dict=True, zero_division=0, **mode)
        for row in report.values():
            row["f1"] = row.pop("f1-score")
        overall = report.pop("micro avg")
        types = {name: row for name, row in sorted(report.items()) if name not in ("macro avg", "weighted avg")}
    else:
        types = _tag_scores(gold, predicted, labels)
        overall = {key: np.mean([row[key] for row in types.values()]) for key in ("precision", "recall", "f1")}
    scores |= {key: float(overall[key]) for key in ("precision", "recall", "f1")}
    scores["per_entity"] = {
        name: {key: float(row[key]) for key in ("precision", "recall", "f1")} | {"support": int(row["support"])}
        for name, row in types.items()
    }
    return scores


def _tag_scores(gold: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, dict]:
    """Precision, recall and F1 of every tag that occurs; 0 where nothing was predicted or nothing is there."""
    hits, found, support = (
        np.bincount(ids, minlength=len(labels)) for ids in (gold[gold == predicted], predicted, gold)
    )
    rows = {
        "precision": hits / np.maximum(found, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(found + support, 1),
        "support": support,
    }
    return {labels[i]: {key: row[i] for key, row in rows.items()} for i in np.flatnonzero(found + support)}


class Timed(NamedTuple):
    """One optimizer step."""

    seconds: float
    waited: float  # of these, seconds for data
    lengths: np.ndarray  # real tokens of every row of the global batch
    positions: int  # what this rank computed, padding included


def throughput(steps: list[Timed], positions: float) -> dict[str, float]:
    """Figures of these steps. positions: the sum over steps and ranks. Padding is never counted as work."""
    seconds = [step.seconds for step in steps]
    tokens = sum(int(step.lengths.sum()) for step in steps)
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {
        "tokens_per_second": tokens / sum(seconds),
        "sentences_per_second": sum(len(step.lengths) for step in steps) / sum(seconds),
        "step_ms_p50": 1e3 * float(p50),
        "step_ms_p95": 1e3 * float(p95),
        "data_wait": sum(step.waited for step in steps) / sum(seconds),
        "padding": 1 - tokens / positions,
    }


def scalars(scores: dict) -> dict[str, float]:
    """Every number of score() under a name of its own, an entity's as f1/PER: what TensorBoard draws."""
    overall = {name: value for name, value in scores.items() if name != "per_entity"}
    return overall | {f"{name}/{kind}": row[name] for kind, row in scores["per_entity"].items() for name in row}


def table(scores: dict) -> str:
    """The per-entity scores as lines for a terminal."""
    support = sum(row["support"] for row in scores["per_entity"].values())
    rows = scores["per_entity"] | {"all": scores | {"support": support}}
    width = max(map(len, rows))
    lines = [f"{'':{width}}  precision  recall      f1  support"]
    for name, row in rows.items():
        figures = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7,}"
        lines.append(f"{name:{width}}  {figures}")
    return "\n".join(lines)
