"""What TensorBoard needs besides scalars: a writer for the main process only, and a row in the table of runs."""

import os

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

HPARAMS = ("learning_rate", "warmup_ratio", "weight_decay", "num_train_epochs", "max_steps", "seed", "precision")
FINAL_SCALARS = ("eval_f1", "eval_loss", "test_f1", "train_loss", "train_tokens_per_second")


class NullWriter:
    """Stands in for SummaryWriter on the other ranks and in benchmarks."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def open_writer(folder: str, step: int, enabled: bool):
    """A writer to folder/runs. Entries of an earlier run after this step are hidden."""
    return SummaryWriter(os.path.join(folder, "runs"), purge_step=step + 1) if enabled else NullWriter()


def log_hparams(writer, args, global_batch_size: int, encoder_name: str, results: dict, step: int) -> None:
    """Adds the run to the HPARAMS table, in the same file. (SummaryWriter.add_hparams would begin another one.)"""
    final = {f"final/{name}": results[name] for name in FINAL_SCALARS if name in results}
    for name, value in final.items():
        writer.add_scalar(name, value, step)
    if isinstance(writer, SummaryWriter):
        settings = {name: getattr(args, name) for name in HPARAMS}
        settings |= {"global_batch_size": global_batch_size, "model": encoder_name}
        for summary in hparams(settings, final):
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
