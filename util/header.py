"""What train.py prints before the first step, in five lines, and how it prints the time that is left."""

import math

from util.pretrained import MINILM
from util.throughput import device_name

INDENT = " " * 9  # of a further line of the data


def run_header(args, splits: dict, model, precision: str, is_packed: bool, window_size: int, plan) -> list[str]:
    """The lines data, encoder, compute, steps and output.

    splits: data.Split by name. window_size: in subwords. plan: plan.Plan. The data take a line for each group of files
    that were read in the same way.
    """
    train_set = splits["train"]
    parameters = f"{model.num_parameters() / 1e6:,.1f} M parameters"
    batch_size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    num_ranks = plan.global_batch_size // (batch_size * accumulation)
    packing = "packed" if is_packed else "padded"
    return [
        f"data:    {f'{chr(10)}{INDENT}'.join(describe_data(splits))}",
        f"encoder: {args.model_name_or_path or MINILM}, {parameters}, windows of {window_size} subwords, "
        f"{len(train_set.label_list)} labels",
        f"compute: {device_name(model.device)}, {precision}, {packing} batches of {batch_size} x {accumulation} "
        f"accumulated x {num_ranks} ranks = {plan.global_batch_size} sentences a step",
        f"steps:   {describe_steps(plan, 'validation' in splits)}",
        f"output:  {'none, a benchmark' if plan.is_benchmark else args.output_dir}",
    ]


def describe_data(splits: dict) -> list[str]:
    """A line for each way in which splits were read: their sizes, and the format, columns and tag scheme.

    Splits are named by their files only if these were read in different ways.
    """
    groups: dict[str, list] = {}
    for name, split in splits.items():
        groups.setdefault(f"{split.read_as}; {split.read_scheme}", []).append((name, split))
    lines = []
    for reading, group in groups.items():
        sizes, unit_of_sentences, unit_of_words = [], " sentences", " words"
        for name, split in group:
            file = f" ({split.name})" if len(groups) > 1 else ""
            sizes.append(
                f"{name}{file} {split.num_sentences:,}{unit_of_sentences} of {split.num_words:,}{unit_of_words}"
            )
            unit_of_sentences = unit_of_words = ""  # named once a line
        lines.append(f"{', '.join(sizes)} | {reading}")
    return lines


def describe_steps(plan, has_validation: bool) -> str:
    """The number of steps, and when the run evaluates and saves."""
    epochs = plan.total_steps / plan.steps_per_epoch
    line = f"{plan.total_steps:,}, {epochs:.4g} epochs of {plan.steps_per_epoch:,}, {plan.warmup_steps:,} of warmup"
    if plan.is_benchmark:
        return line
    evaluations = f"evaluation every {plan.eval_every:,}, " if has_validation else "no validation split, "
    return f"{line}; {evaluations}checkpoint every {plan.save_every:,}"


def time_left(seconds: float, steps: int, total_steps: int) -> str:
    """seconds: that the first `steps` took. Returns "1:05 left", hours before minutes if there are any."""
    left = math.ceil(seconds / max(1, steps) * (total_steps - steps))
    hours, minutes = divmod(left // 60, 60)
    clock = f"{hours}:{minutes:02}" if hours else str(minutes)
    return f"{clock}:{left % 60:02} left"
