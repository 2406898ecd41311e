"""--output_dir: what a run writes there, and why the same command may be given again.

An unfinished run has train_config.yaml, a finished one all_results.json as well. Files are written atomically.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection

import yaml

CONFIG_FILE = "train_config.yaml"
RESULTS_FILE = "all_results.json"
RUN_FILES = (
    CONFIG_FILE,
    RESULTS_FILE,
    "config.json",
    "model.safetensors",
    "runs",
    "checkpoints",
    "report.html",
    "README.md",
    "eval_predictions.conll",
    "test_predictions.conll",
)
# Flags that a run may change when it is resumed. The batch sizes count only as their product with the number of ranks,
# the global batch size, which is part of the run's fingerprint.
FLAGS_WITHOUT_EFFECT_ON_RESULTS = (
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "fsdp",
    "cuda_graphs",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)
ADVICE = "choose another --output_dir, or --overwrite_output_dir"


def atomic_write_text(path: str, text: str) -> None:
    """Writes a file atomically: the path never holds a part of the text.

    A link stays a link to the file that is written. A device or a pipe is written to, not replaced.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    is_file = os.path.isfile(target) or not os.path.exists(target)
    temporary = target + ".new" if is_file else target
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if is_file:
            os.fsync(file.fileno())
    if is_file:
        os.replace(temporary, target)


def read_json(path: str):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(folder: str) -> str:
    """SHA-256 of the weights in an output folder; "" if it has none."""
    path = os.path.join(folder, "model.safetensors")
    return sha256(path) if os.path.exists(path) else ""


def checkpoints(folder: str) -> list[str]:
    """The checkpoints in an output folder, the oldest first."""
    folder = os.path.join(folder, "checkpoints")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.startswith("step-") and name[5:].isdigit()]


def remove_later_checkpoints(folder: str, step: int) -> None:
    """Removes the checkpoints of later steps, the newest first, when a run continues from `step`.

    They are invalid, or the run went back to an earlier checkpoint. A restart would take them for its newest ones.
    """
    for path in reversed(checkpoints(folder)):
        if int(os.path.basename(path)[5:]) > step:
            shutil.rmtree(path)


def is_checkpoint_of(folder: str, path: str) -> bool:
    """Whether a path leads into the checkpoints of an output folder. Links are followed."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), "checkpoints", ""))


def start_of_run(folder: str) -> str:
    """--resume_from_checkpoint of the run that a folder holds; "auto" if it holds none."""
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.exists(path):
        return "auto"
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file).get("resume_from_checkpoint", "auto")


def is_same_start(one: str, other: str) -> bool:
    """Compares two values of --resume_from_checkpoint. One path may be written in several ways."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def first_difference(before: dict, now: dict, ignore: Collection[str] = ()) -> str | None:
    """Names the first entry of `now` that differs in `before`: "its --seed is 1, not 2"."""
    for name, value in now.items():
        old = before.get(name)
        if name in ignore or old == value:
            continue
        is_short = len(f"{old}{value}") < 80  # checksums and lists of labels are not
        return f"its {name} is {old}, not {value}" if is_short else f"its {name} differs"
    return None


def refuse_another_run(place: str, before: dict, now: dict, ignore: Collection[str] = ()) -> None:
    """Raises ValueError if `before` and `now` describe different runs."""
    difference = first_difference(before, now, ignore)
    if difference:
        raise ValueError(f"{place}: holds another run: {difference}; {ADVICE}")


def open_run(folder: str, settings: dict, defaults: dict, fingerprint: dict) -> dict | None:
    """Returns the results if the folder holds this run, finished. Raises ValueError if it holds another run or model.

    settings: the flags of this run. defaults: their default values, which stand in for flags that the run in the
    folder did not know yet. fingerprint: labels, data and global batch size.
    """
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # raises OSError if the folder is not writable
    present = [name for name in RUN_FILES if os.path.exists(os.path.join(folder, name))]
    if settings["overwrite_output_dir"] or not present:
        return None
    if CONFIG_FILE not in present:
        raise ValueError(f"{os.path.join(folder, present[0])}: not from a run of train.py; {ADVICE}")
    with open(os.path.join(folder, CONFIG_FILE), encoding="utf-8") as file:
        before = {f"--{name}": value for name, value in (defaults | yaml.safe_load(file)).items()}
    ignore = [f"--{name}" for name in FLAGS_WITHOUT_EFFECT_ON_RESULTS]
    refuse_another_run(folder, before, {f"--{name}": value for name, value in settings.items()}, ignore)
    start = settings["resume_from_checkpoint"]
    is_of_other_folder = start not in ("auto", "never") and not is_checkpoint_of(folder, start)
    if is_of_other_folder and not is_same_start(start, start_of_run(folder)):
        refuse_another_run(folder, before, {"--resume_from_checkpoint": start})
    if RESULTS_FILE not in present:
        return None
    results = read_json(os.path.join(folder, RESULTS_FILE))
    refuse_another_run(folder, results.get("fingerprint", {}), fingerprint)
    return results


def read_settings(model: str, defaults: dict) -> dict:
    """The defaults, replaced by those of the run that wrote the folder of a model, if a run wrote it."""
    path = os.path.join(model, CONFIG_FILE)
    if not os.path.exists(path):
        return defaults
    with open(path, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    return defaults | {name: value for name, value in settings.items() if name in defaults}


def is_file_of_run(path: str | None, settings: dict) -> bool:
    """Whether a run reads a file as one of its splits. settings: its flags."""
    files = [settings[f"{split}_file"] for split in ("train", "validation", "test")]
    return path is not None and os.path.realpath(path) in [os.path.realpath(name) for name in files if name]


def decided_scheme(path: str, settings: dict, config) -> str | None:
    """The tag scheme by which training read a file. None: the file is none of its files, and its own tags decide.

    settings: the flags of the run. config: of the model, with the scheme that all files together have.
    """
    if is_file_of_run(path, settings):
        return getattr(config, "tag_scheme", None)
    return settings["tag_scheme"]


def begin_run(folder: str, settings: dict, checkpoint: str | None, step: int) -> None:
    """Removes the files of an older run, or of one that is resumed what belongs to later steps. Writes the flags.

    checkpoint: from which this run resumes, at `step`. If it is of another folder, this folder starts empty.
    """
    for name in os.listdir(folder):
        if name.startswith((".saving-", ".pushing-")):  # of a process that was killed
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    if checkpoint and is_checkpoint_of(folder, checkpoint):
        with contextlib.suppress(FileNotFoundError):  # left by --overwrite_output_dir
            os.remove(os.path.join(folder, RESULTS_FILE))
        remove_later_checkpoints(folder, step)
        if settings["resume_from_checkpoint"] == "auto":
            settings = settings | {"resume_from_checkpoint": start_of_run(folder)}
    else:
        for name in RUN_FILES:
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)
    atomic_write_text(os.path.join(folder, CONFIG_FILE), yaml.safe_dump(settings, sort_keys=False))


def make_results(state, steps_per_epoch: int, all_scores: dict[str, dict]) -> dict:
    """The content of all_results.json, under the names of Trainer. state: train.TrainState; all_scores: by split."""
    results = {
        "epoch": state.step / steps_per_epoch,
        "train_loss": state.loss_sum / state.step,
        "train_runtime": state.train_seconds,
        "train_samples_per_second": state.num_sentences / state.train_seconds,
        "train_tokens_per_second": state.num_tokens / state.train_seconds,
    }
    for split, scores in all_scores.items():
        results |= {f"{split}_{name}": value for name, value in scores.items()}
    return results


def finish_run(folder: str, results: dict) -> None:
    """Writes the results. They come last: a folder that has them holds a finished run."""
    atomic_write_text(os.path.join(folder, RESULTS_FILE), json.dumps(results, indent=2) + "\n")
