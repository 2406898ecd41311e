"""From logits to scores: one tag a word, every word of a split exactly once, scored by seqeval.

logits [B, L, C] of each batch -> decode -> gather (all ranks, one collective) -> in_file_order -> score -> table

python metrics.py outputs_a outputs_b       # compares two finished runs on the same file; writes comparison.html
"""

import warnings

import numpy as np
import torch
import torch.distributed as dist
from seqeval.metrics import classification_report
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from util.device import synchronize, to_device
from util.entity_counts import STRICT_SCHEMES, count, tag_scores
from util.intervals import add_intervals
from util.tag_schemes import PREFIXES, canonical, prefix
from util.text_table import aligned, with_interval

# ----------------------------------------------------------------------------------------------------------------------
# Predictions


def decode(logits: torch.Tensor, labels: torch.Tensor, token_loss) -> tuple[torch.Tensor, ...]:
    """logits [W, C] and labels [W] of W words -> predicted ids [W], the argmax; their probabilities [W]; losses [W]."""
    logits = logits.float()
    return logits.argmax(-1), logits.softmax(-1).amax(-1), token_loss(logits, labels, reduction="none")


def has_near_tie(logits: torch.Tensor) -> torch.Tensor:
    """16-bit logits [W, C] -> [W], True where rounding may swap the two best labels: 4 bf16 spacings (2^-8)."""
    if logits.dtype == torch.float32:
        return logits.new_zeros(len(logits), dtype=torch.bool)
    logits = logits.float()
    best = logits.topk(min(2, logits.shape[-1]), -1).values
    return best[..., 0] - best[..., -1] <= 2**-6 * logits.abs().amax(-1)


def predict_batch(model, batch: dict, autocast, token_loss) -> torch.Tensor:
    """A batch on the CPU -> of its W words [W, 4] int32: predicted id, bits of probability and loss, near tie.

    The words are the positions whose label is not -100, row by row. Labels are known on the CPU: looking them up on a
    GPU would make the host wait. The result is still on its way to the CPU: call synchronize before reading it.
    """
    labels = batch["labels"].flatten()
    position = (labels != -100).nonzero()[:, 0]  # [W] in the flattened batch
    inputs = to_device({name: tensor for name, tensor in batch.items() if name != "labels"}, model.device)
    words = to_device({"position": position, "labels": labels[position]}, model.device)
    with autocast:
        logits = model(**inputs).logits  # [B, L, C]
    logits = logits.flatten(0, 1).index_select(0, words["position"])
    predicted, probabilities, losses = decode(logits, words["labels"], token_loss)
    # One integer tensor for one copy and one collective: the bits of fp32 numbers are stored as int32.
    columns = [predicted.int(), probabilities.view(torch.int32), losses.view(torch.int32), has_near_tie(logits).int()]
    return torch.stack(columns, dim=1).to("cpu", non_blocking=True)


@torch.no_grad()
def predict(
    model, windows, batches: list[np.ndarray], *, collate, autocast, token_loss, rank: int = 0, world_size: int = 1
) -> tuple[np.ndarray, ...] | None:
    """Predicts all words of a split. Batches (row numbers of `windows`) are distributed over the ranks in turn.

    Returns on rank 0 predicted ids [W], probabilities [W] and losses [W] in the order of the file, on other ranks
    None. The only collective is the gather at the end, except under FSDP. The host waits twice for a GPU.
    """
    model.eval()
    my_batches = passes = list(batches[rank::world_size])
    is_sharded = isinstance(model, FSDPModule)
    if is_sharded:  # every forward pass is a collective: all ranks must make the same number
        most = -(-len(batches) // world_size)
        passes = my_batches + [batches[0][:1]] * (most - len(my_batches))
    loader = DataLoader(windows, batch_sampler=passes, collate_fn=collate)
    words = [predict_batch(model, batch, autocast, token_loss) for batch in loader][: len(my_batches)]
    synchronize(model.device)
    if not is_sharded:  # FSDP has no fp32 weights to compute with
        predict_ties_again(model, windows, my_batches, words, collate, token_loss)
    positions = [torch.from_numpy(windows.word_positions(rows)).int() for rows in my_batches]
    columns = [torch.cat([position[:, None], found[:, :3]], 1) for position, found in zip(positions, words)]
    # Every rank counts the words of all ranks: gather needs the largest number, without another collective.
    words_per_rank = [sum(windows.num_labels[rows].sum() for rows in batches[r::world_size]) for r in range(world_size)]
    gathered = gather(torch.cat([torch.empty(0, 4, dtype=torch.int32), *columns]), longest=int(max(words_per_rank)))
    return in_file_order(gathered, int(windows.num_labels.sum())) if rank == 0 else None


def predict_ties_again(model, windows, batches, words: list[torch.Tensor], collate, token_loss) -> None:
    """Replaces the results of rows with a near tie by those in fp32: padding, which differs by batch, would decide."""
    fp32 = torch.autocast(model.device.type, enabled=False)
    exact = []
    for rows, found in zip(batches, words):
        if found[:, 3].any():
            batch = collate([windows[row] for row in rows])
            row_of_word = (batch["labels"] != -100).nonzero()[:, 0]  # [W]
            again = row_of_word[found[:, 3].bool()].unique()
            batch = {name: tensor[again] for name, tensor in batch.items()}
            exact.append((found, torch.isin(row_of_word, again), predict_batch(model, batch, fp32, token_loss)))
    synchronize(model.device)
    for found, is_again, results in exact:
        found[is_again] = results


def gather(words: torch.Tensor, longest: int) -> torch.Tensor:
    """words [n, K] int32 of each rank -> on rank 0 those of all ranks [N, K], on other ranks an empty tensor.

    A collective moves tensors of one shape. Every rank pads its rows with -100 to `longest`, the most that any rank
    holds. The first column of a word is never negative, so rows with a negative first column are padding.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return words
    padded = words.new_full((longest, words.shape[1]), -100)
    padded[: len(words)] = words
    is_rank0 = dist.get_rank() == 0
    received = [torch.empty_like(padded) for _ in range(dist.get_world_size())] if is_rank0 else None
    dist.gather(padded, received)
    if received is None:
        return words[:0]
    gathered = torch.cat(received)
    return gathered[gathered[:, 0] >= 0]


def in_file_order(words: torch.Tensor, num_words: int) -> tuple[np.ndarray, ...]:
    """Sorts words [W, 4] int32 (position in the file, predicted id, bits of two fp32 numbers) by their position.

    Returns predicted ids, probabilities and losses [W]. Asserts that every word occurs exactly once.
    """
    position, predicted, probability, loss = words.T.contiguous()
    times = np.bincount(position.numpy(), minlength=num_words)
    wrong = np.count_nonzero(times != 1)
    assert len(times) == num_words and wrong == 0, f"{wrong} of {num_words} words not predicted exactly once"
    order = position.argsort()
    floats = [bits[order].view(torch.float32).numpy() for bits in (probability, loss)]
    return predicted[order].long().numpy(), *floats


# ----------------------------------------------------------------------------------------------------------------------
# Scores


def check_strict(label_list: list[str], scheme: str | None) -> None:
    """Raises ValueError where seqeval's strict mode would reject a label during training."""
    for label, name in zip(label_list, canonical(label_list)):
        if scheme is None or (name != "O" and prefix(name) not in [*PREFIXES[scheme]]):
            known = scheme or "IOB2, BIOES or BILOU"
            raise ValueError(f"--strict needs tags of one scheme: {label} is not a tag of {known}")


def score(
    gold: np.ndarray, predicted: np.ndarray, lengths: np.ndarray, label_list: list[str], scheme: str | None,
    strict: bool = False,
) -> dict:  # fmt: skip
    """gold [W] and predicted [W] label ids, words per sentence [S] -> precision, recall, f1, accuracy, words,
    per_entity (type -> precision, recall, f1, support), and for each score its 95 % interval, f1_ci95: [low, high].

    Entities are those of seqeval's default mode, the same as conlleval's, or of its strict mode. Plain tags (scheme
    None) are scored tag by tag, with the macro average as overall score: seqeval would read NOUN as the prefix N and
    the type OUN. A number that is added to the result appears in TensorBoard and all_results.json.
    """
    scores = {"accuracy": float((gold == predicted).mean()), "words": len(gold)}
    if scheme:
        # The default mode knows IOB and BIOES. BILOU is BIOES with L for E and U for S.
        renamed = {} if strict else {"L": "E", "U": "S"}
        names = np.array([renamed.get(name[0], name[0]) + name[1:] for name in canonical(label_list)], dtype=object)
        ends = np.cumsum(lengths)[:-1]
        sentences = [[part.tolist() for part in np.split(names[ids], ends)] for ids in (gold, predicted)]
        mode = {"mode": "strict", "scheme": STRICT_SCHEMES[scheme]} if strict else {}
        with warnings.catch_warnings(action="ignore"):  # seqeval warns if a split has no entities
            report = classification_report(*sentences, output_dict=True, zero_division=0, **mode)
        for row in report.values():
            row["f1"] = row.pop("f1-score")
        overall = report.pop("micro avg")
        types = {name: row for name, row in sorted(report.items()) if name not in ("macro avg", "weighted avg")}
    else:
        types = tag_scores(gold, predicted, label_list)
        overall = {key: np.mean([row[key] for row in types.values()]) for key in ("precision", "recall", "f1")}
    scores |= {key: float(overall[key]) for key in ("precision", "recall", "f1")}
    scores["per_entity"] = {}
    for name, row in types.items():
        numbers = {key: float(row[key]) for key in ("precision", "recall", "f1")}
        scores["per_entity"][name] = numbers | {"support": int(row["support"])}
    add_intervals(scores, count(gold, predicted, lengths, label_list, scheme, strict))
    return scores


def flatten_scores(scores: dict) -> dict[str, float]:
    """Every number of score() by a name of its own, such as f1 and f1/PER: the curves in TensorBoard."""
    flat = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    for entity_type, row in scores["per_entity"].items():
        flat |= {f"{name}/{entity_type}": value for name, value in row.items() if isinstance(value, (int, float))}
    return flat


def table(scores: dict) -> str:
    """The scores by entity type, with their intervals, as lines for a terminal."""
    support = sum(row["support"] for row in scores["per_entity"].values())
    columns = ("precision", "recall", "f1")
    rows = [["", *columns, "support"]]
    for name, row in [*scores["per_entity"].items(), ("all", scores | {"support": support})]:
        rows.append([name, *(with_interval(row, column) for column in columns), f"{row['support']:,}"])
    return aligned(rows)


if __name__ == "__main__":
    from util.comparison import main

    main()
