"""What train.py prints before the first step, in five lines, and how it prints the time that is left."""

import math

from util.pretrained import MINILM
from util.throughput import device_name

INDENT = " " * 9  # of a further line of the data


def data_lines(splits: dict) -> str:
    """The line "data: ..." for the splits by name. Splits that were read in different ways take a line each."""
    return "data:    " + ("\n" + INDENT).join(describe_data(splits))


def run_lines(args, splits: dict, model, tokenizer, precision: str, packing, plan) -> str:
    """The lines encoder, compute, steps and output. packing: of fast_paths.choose_packing. plan: plan.Plan."""
    parameters = f"{model.num_parameters() / 1e6:,.1f} M parameters"
    batch_size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    num_ranks = plan.global_batch_size // (batch_size * accumulation)
    packed = "packed" if packing else "padded"
    ranks = "1 rank" if num_ranks == 1 else f"{num_ranks} ranks"
    lines = [
        f"encoder: {args.model_name_or_path or MINILM}, {parameters}, "
        f"windows of {tokenizer.model_max_length} subwords, {len(splits['train'].label_list)} labels",
        f"compute: {device_name(model.device)}, {precision}, {packed} batches of {batch_size} x {accumulation} "
        f"accumulated x {ranks} = {plan.global_batch_size} sentences a step",
        f"steps:   {describe_steps(plan, 'validation' in splits)}",
        f"output:  {'none, a benchmark' if plan.is_benchmark else args.output_dir}",
    ]
    return "\n".join(lines)


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
    line = f"{plan.total_steps:,} ({epochs:.4g} epochs of {plan.steps_per_epoch:,}), {plan.warmup_steps:,} warmup steps"
    if plan.is_benchmark:
        return line
    evaluations = f"evaluation every {plan.eval_every:,}, " if has_validation else "no validation split, "
    return f"{line}; {evaluations}checkpoint every {plan.save_every:,}"


def time_left(seconds: float, steps: int, total_steps: int) -> str:
    """seconds: duration of the first `steps` steps. Returns "1:05 left", or "2:01:05 left" from an hour on."""
    left = math.ceil(seconds / max(1, steps) * (total_steps - steps))
    hours, minutes = divmod(left // 60, 60)
    clock = f"{hours}:{minutes:02}" if hours else str(minutes)
    return f"{clock}:{left % 60:02} left"
