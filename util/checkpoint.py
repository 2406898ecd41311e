"""Checkpoints: output_dir/checkpoints/step-00000123/ holds what a run needs to continue exactly.

    model.safetensors       weights and buffers             optimizer.safetensors   optimizer state by parameter name
    state.json              everything that is no tensor    manifest.json           SHA-256 of the others, written last

A folder without a manifest that fits its files is not a checkpoint: it is skipped. Nothing is pickled.
"""

import json
import math
import os
import shutil

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from util.distributed import broadcast, on_rank0
from util.run_dir import (
    atomic_write_text,
    checkpoints,
    first_difference,
    is_checkpoint_of,
    is_same_start,
    model_digest,
    open_run,
    read_json,
    refuse_another_run,
    remove_later_checkpoints,
    sha256,
    start_of_run,
)
from util.sharding import gather_on_rank0, parameters_and_buffers, send_from_rank0

FORMAT = 2  # of state.json; a checkpoint of another format is skipped
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


# ----------------------------------------------------------------------------------------------------------------------
# Saving


def save_checkpoint(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, limit: int) -> str:
    """Saves a checkpoint and keeps the newest `limit`. All ranks call it; rank 0 writes. Returns the path.

    state: JSON-serializable, with "step" and "fingerprint". Raises OSError if the disk is full.
    """
    # state_dict() comes first: it shards what FSDP left gathered after evaluation, so that the parameters are those
    # that the optimizer knows.
    weights = gather_on_rank0(_saved_tensors(model))
    tensors, values = _optimizer_state(model, optimizer)
    moments = gather_on_rank0(tensors)
    state = state | {"format": FORMAT, "optimizer": values}
    return on_rank0(_write_checkpoint, folder, weights, moments, state, limit)


def _saved_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers."""
    names = model.state_dict().keys()
    return {name: tensor for name, tensor in parameters_and_buffers(model).items() if name in names}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """The state of any torch.optim optimizer as "parameter name/key": tensors, and values of other types.

    Parameters that have had no gradient yet have no state.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors, values = {}, {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            target = tensors if isinstance(value, torch.Tensor) else values
            target[f"{names[parameter]}/{key}"] = value
    return tensors, values


def _write_checkpoint(folder: str, weights: dict, moments: dict, state: dict, limit: int) -> str:
    """Writes a temporary folder, renames it once it is complete, and only then removes old checkpoints."""
    path = os.path.join(folder, "checkpoints", f"step-{state['step']:08}")
    tmp_dir = path + ".partial"
    shutil.rmtree(tmp_dir, ignore_errors=True)
    os.makedirs(tmp_dir)
    try:
        save_file(weights, os.path.join(tmp_dir, "model.safetensors"))
        save_file(moments, os.path.join(tmp_dir, "optimizer.safetensors"))
        atomic_write_text(os.path.join(tmp_dir, "state.json"), json.dumps(state))
        checksums = {name: sha256(os.path.join(tmp_dir, name)) for name in FILES}
        atomic_write_text(os.path.join(tmp_dir, "manifest.json"), json.dumps(checksums, indent=2))
        for name in [*FILES, "."]:
            _flush_to_disk(os.path.join(tmp_dir, name))
        if os.path.isdir(path):  # an invalid one, or one from before this run went back to an earlier checkpoint
            shutil.rmtree(path)
        os.rename(tmp_dir, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        raise OSError(f"{path}: cannot be saved: {error}") from None
    _flush_to_disk(os.path.dirname(path))
    remove_later_checkpoints(folder, state["step"])
    for old in checkpoints(folder)[:-limit]:
        shutil.rmtree(old)
    return path


def _flush_to_disk(path: str) -> None:
    """Makes a file, or the list of files in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------------------
# Loading


def read_state(path: str) -> dict:
    """Verifies the checksums of a checkpoint and returns its state.json. Raises ValueError if it is invalid."""
    try:
        checksums = read_json(os.path.join(path, "manifest.json"))
        for name in FILES:
            if sha256(os.path.join(path, name)) != checksums[name]:
                raise ValueError(f"{path}: {name} is not the file that was saved")
        for name in FILES[:2]:
            safe_open(os.path.join(path, name), "pt")
        state = read_json(os.path.join(path, "state.json"))
    except OSError as error:
        raise ValueError(f"{path}: {os.path.basename(error.filename or '')}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if state.get("format") != FORMAT:
        raise ValueError(f"{path}: was saved by another version of train.py")
    return state


def find_checkpoint(
    folder: str, which: str, fingerprint: dict, log, start: str = "auto", total_steps: float = math.inf
) -> str | None:
    """The checkpoint to resume from: "auto" is the newest valid one in the folder, "never" none, else a path.

    start: --resume_from_checkpoint of the run in the folder. If `which` is the same path, or "auto", that run goes on
    from its newest checkpoint, or from that path as long as it has none. Raises ValueError if a checkpoint belongs to
    another run, if the named one is invalid, and if no step of total_steps is left.
    """
    if which == "never":
        return None
    named = start if which == "auto" else which
    if which == "auto" or is_same_start(which, start):
        for path in reversed(checkpoints(folder)):
            try:
                state = read_state(path)
            except ValueError as error:
                log(f"warning: skipped {error}")
                continue
            refuse_another_run(path, state["fingerprint"], fingerprint)
            _check_steps_left(folder, path, state, total_steps)
            return path
    if named in ("auto", "never"):
        return None
    _check_is_checkpoint(named)
    try:
        state = read_state(named)
    except ValueError as error:
        raise ValueError(f"--resume_from_checkpoint {error}") from None
    # Another folder gets its own scores, possibly of other files.
    ignored = () if is_checkpoint_of(folder, named) else ("validation data", "test data")
    difference = first_difference(state["fingerprint"], fingerprint, ignored)
    if difference:
        raise ValueError(f"--resume_from_checkpoint {named}: is of another run: {difference}; pass what that run got")
    _check_steps_left(folder, named, state, total_steps)
    return named


def _check_steps_left(folder: str, path: str, state: dict, total_steps: float) -> None:
    """Raises ValueError for a checkpoint after which no evaluation would save the model that the folder lacks."""
    is_here = is_checkpoint_of(folder, path)
    if state["step"] > total_steps or (state["step"] == total_steps and not is_here):
        raise ValueError(
            f"{path}: is of step {state['step']}, and this run ends at step {total_steps}: no step is left to train; "
            "pass a larger --num_train_epochs or --max_steps, or an earlier --resume_from_checkpoint"
        )
    needs_best = "validation data" in state["fingerprint"]  # without it, the last model is saved at the end
    if state["step"] == total_steps and needs_best and not _has_best_model(folder, path, state["train_state"]):
        raise ValueError(
            f"{path}: is of the last step, but the best model is not in {folder}; "
            "pass an earlier --resume_from_checkpoint, or --overwrite_output_dir to start again"
        )


def _has_best_model(folder: str, checkpoint: str, train_state: dict) -> bool:
    """Whether a run that resumes from the checkpoint finds in its folder the model that best_scores describe."""
    digest = train_state.get("best_model")
    return bool(digest) and is_checkpoint_of(folder, checkpoint) and digest == model_digest(folder)


def forget_missing_model(folder: str, checkpoint: str, train_state: dict, log) -> dict:
    """Returns the train_state of a checkpoint, without the best scores if their model is not in the output folder.

    The next evaluation then saves a model, and the patience of early stopping begins anew. The model is missing in
    another folder, if it was removed, and if a later one replaced it before the run went back to the checkpoint.
    """
    if on_rank0(_has_best_model, folder, checkpoint, train_state):
        return train_state
    if train_state["best_scores"]:
        best = f"the best model so far (step {train_state['best_step']})"
        log(f"note: {best} is not in {folder}; the next evaluation saves one")
    return train_state | {"best_step": train_state["step"], "best_scores": {}, "best_model": ""}


def _check_is_checkpoint(path: str) -> None:
    """Raises ValueError for a named checkpoint that is something else: with what it is, and the flag that takes it."""
    position = f"--resume_from_checkpoint {path}"
    if not os.path.isdir(path):
        raise ValueError(f"{position}: no such folder")
    names = os.listdir(path)
    if "manifest.json" in names or "state.json" in names:
        return
    newest = checkpoints(path) or checkpoints(os.path.dirname(os.path.abspath(path)))
    if newest:
        raise ValueError(f"{position}: is not a checkpoint, but {newest[-1]} is one")
    if any(name in names for name in ("trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt")):
        kind = "a checkpoint of another program, such as transformers' Trainer"
    elif "config.json" in names:
        kind = "a model without optimizer state"
    else:
        raise ValueError(f"{position}: is not a checkpoint of train.py: it has no manifest.json")
    raise ValueError(f"{position}: is {kind}; to start from its weights, pass --model_name_or_path {path}")


def load_checkpoint(path: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores model and optimizer on all ranks from what rank 0 reads, since ranks may not share a disk.

    Returns the state that save_checkpoint got. Raises ValueError if the model has other parameters than the saved one.
    """
    weights, moments, state = {}, {}, {}
    if not dist.is_initialized() or dist.get_rank() == 0:
        weights = load_file(os.path.join(path, "model.safetensors"))
        moments = load_file(os.path.join(path, "optimizer.safetensors"))
        state = read_json(os.path.join(path, "state.json"))
    shapes = broadcast({name: tensor.shape for name, tensor in weights.items()})
    state = broadcast(state)
    targets = _saved_tensors(model)
    for name in sorted(targets.keys() | shapes.keys()):
        if name not in shapes or name not in targets or shapes[name] != targets[name].shape:
            raise ValueError(
                f"{path}: {name} is not as it was saved: the model has changed since; choose another --output_dir"
            )
    _load_optimizer(model, optimizer, moments, state.pop("optimizer"))
    send_from_rank0(targets, weights)
    return state


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict, values: dict) -> None:
    """The inverse of _optimizer_state. Settings of the parameter groups stay those of the code."""
    parameters = dict(model.named_parameters())

    def has_parameter_shape(name: str) -> bool:
        return moments[name].shape == parameters[name.rsplit("/", 1)[0]].shape

    # Tensors with the shape of their parameter may be sharded like it: they are sent one at a time.
    dtypes = broadcast({name: moments[name].dtype for name in moments if has_parameter_shape(name)})
    large = {}
    for name, dtype in dtypes.items():
        large[name] = torch.empty_like(parameters[name.rsplit("/", 1)[0]], dtype=dtype, requires_grad=False)
    send_from_rank0(large, moments)
    # The others are small: step counts, and the row and column means of Adafactor.
    small = broadcast(values | {name: moments[name] for name in moments if name not in dtypes})

    state: dict[str, dict] = {}
    for name, value in (large | small).items():
        parameter_name, key = name.rsplit("/", 1)
        state.setdefault(parameter_name, {})[key] = value
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_index = {i: state[names[p]] for i, p in enumerate(ordered) if names[p] in state}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


def find_run(
    settings: dict, defaults: dict, fingerprint: dict, total_steps: int, log
) -> tuple[dict | None, str | None]:
    """Looks into the output folder on rank 0. Returns the results if this run is finished there, and the checkpoint
    to resume from. Arguments and errors are those of run_dir.open_run and find_checkpoint."""
    folder = settings["output_dir"]
    finished = on_rank0(open_run, folder, settings, defaults, fingerprint)
    which, start = settings["resume_from_checkpoint"], on_rank0(start_of_run, folder)
    if settings["overwrite_output_dir"]:
        start = "auto"  # a path is meant again at every start
    if finished or (settings["overwrite_output_dir"] and which == "auto"):
        which = "never"
    return finished, on_rank0(find_checkpoint, folder, which, fingerprint, log, start, total_steps)
