"""What TensorBoard needs besides scalars: a writer for the main process only, a row in the table of runs, and tables
and sentences of an evaluation as Markdown."""

import os

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from util.entity_errors import find_errors, sentence_numbers
from util.pretrained import MINILM

HPARAMS = ("learning_rate", "warmup_ratio", "weight_decay", "num_train_epochs", "max_steps", "seed", "precision")
FINAL_SCALARS = ("eval_f1", "eval_loss", "test_f1", "train_loss", "train_tokens_per_second")


class NullWriter:
    """Stands in for SummaryWriter on the other ranks and in benchmarks."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def open_writer(folder: str, step: int, enabled: bool):
    """A writer to folder/runs. Entries of an earlier run after this step are hidden."""
    return SummaryWriter(os.path.join(folder, "runs"), purge_step=step + 1) if enabled else NullWriter()


def log_hparams(writer, args, global_batch_size: int, results: dict, step: int) -> None:
    """Adds the run to the HPARAMS table, in the same file. (SummaryWriter.add_hparams would begin another one.)"""
    final = {f"final/{name}": results[name] for name in FINAL_SCALARS if name in results}
    for name, value in final.items():
        writer.add_scalar(name, value, step)
    if isinstance(writer, SummaryWriter):
        settings = {name: getattr(args, name) for name in HPARAMS}
        settings |= {"global_batch_size": global_batch_size, "model": args.model_name_or_path or MINILM}
        for summary in hparams(settings, final):
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]


def log_predictions(writer, split, predictions: tuple | None, step: int) -> None:
    """Adds the confusion table and sentences of an evaluation, whose predictions are those of evaluate in train.py.

    Then it writes all entries to disk, where the report reads the curves.
    """
    if predictions:  # only rank 0 has them
        writer.add_text("eval/confusion", confusion_table(split, predictions[0]), step)
        writer.add_text("eval/sentences", sample_text(split, predictions[0]), step)
        writer.flush()


def confusion_table(split, predicted: np.ndarray) -> str:
    """How often a type (row) is predicted as a type (column)."""
    names, counts = find_errors(split, predicted).confusion()
    names = [name.replace("|", "\\|") for name in names]
    rows = [["gold / predicted", *names], ["---"] * (len(names) + 1)]
    for name, row in zip(names, counts.tolist()):
        rows.append([name, *(f"{count:,}" for count in row)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sample_text(split, predicted: np.ndarray, max_sentences: int = 10) -> str:
    """The first sentences that have an entity, gold and predicted, with the entities in bold brackets."""
    sides = {"gold": split.spans(split.tags), "predicted": split.spans(predicted)}
    first_words = np.concatenate([spans[:, 0] for spans, _ in sides.values()])
    starts = np.cumsum(split.lengths) - split.lengths
    paragraphs = []
    for i in np.unique(sentence_numbers(split, first_words))[:max_sentences].tolist():
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
