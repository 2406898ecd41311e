"""--resume_from_checkpoint: after any run, the folder holds the model that the log and the results describe."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import flat, results, train, weights
from test_faults import forked

from util import checkpoint, run_dir

EPOCH = 19  # steps
COMMON = ["--per_device_train_batch_size", 4, "--max_seq_length", 32, "--precision", "fp32", "--save_total_limit", 9]
COMMON += ["--metric_for_best_model", "loss"]  # the loss of these few steps still changes at every evaluation


@pytest.fixture(scope="module")
def flags(corpus, encoders) -> list:
    return [*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--learning_rate", 5e-3, *COMMON]


@pytest.fixture(scope="module")
def old(flags, tmp_path_factory) -> Path:
    """A finished run of four epochs, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("old") / "out"
    train(*flags, "--num_train_epochs", 4, "--output_dir", folder)
    assert [Path(path).name for path in checkpoint.checkpoints(str(folder))] == [name(EPOCH * i) for i in (1, 2, 3, 4)]
    return folder


def name(step: int) -> str:
    return f"step-{step:08}"


def of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / name(step)


def check_model(folder: Path, printed: str) -> int:
    """The folder holds the model of the step that the log names. Its scores are those of the evaluation there."""
    (step,) = re.findall(r"^the best model \(step (\d+)\)", printed, re.MULTILINE)
    saved = weights(folder)
    trained = checkpoint.load_file(of(folder, int(step)) / "model.safetensors")
    embeddings = [key for key in saved if key not in trained]  # checkpoints hold them in two parts
    assert len(saved) - len(embeddings) > 20 and all(
        (saved[key] == trained[key]).all() for key in saved.keys() & trained.keys()
    )
    state = checkpoint.read_state(str(of(folder, int(step))))["train_state"]
    assert state["best_step"] == int(step) and state["best_model"] == run_dir.model_digest(str(folder))
    for key, value in state["best_scores"].items():
        assert results(folder)[f"eval_{key}"] == value
    assert (folder / "report.html").exists() and (folder / "README.md").exists()
    return int(step)


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(*arguments)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize("spelling", ["absolute", "trailing slash", "relative", "link"])
def test_a_new_folder_gets_a_model_even_if_no_score_is_better(spelling, flags, old, tmp_path, monkeypatch):
    """With a learning rate of 0, no later evaluation is better than that of the checkpoint."""
    path = str(of(old, 2 * EPOCH))
    if spelling == "trailing slash":
        path += "/"
    elif spelling == "relative":
        path = os.path.relpath(path)
    elif spelling == "link":
        (tmp_path / "link").symlink_to(path)
        path = str(tmp_path / "link")
    further = ["--resume_from_checkpoint", path, "--learning_rate", 0, "--num_train_epochs", 4]
    printed = train(*flags, *further, "--output_dir", tmp_path / "new")
    assert f"resumed from {path}" in printed and f"is not in {tmp_path / 'new'}; the next evaluation saves" in printed
    assert check_model(tmp_path / "new", printed) == 3 * EPOCH
    assert "finished" in train(*flags, *further, "--output_dir", tmp_path / "new")
    assert yaml.safe_load((tmp_path / "new" / "train_config.yaml").read_text())["resume_from_checkpoint"] == path


@pytest.mark.parametrize(
    "change",
    [
        ["--num_train_epochs", 6, "--early_stopping_patience", 1],
        ["--max_steps", 80, "--eval_steps", 3],
        ["--num_train_epochs", 5, "--metric_for_best_model", "accuracy"],
        ["--num_train_epochs", 5, "--strict"],
        ["--max_steps", 3 * EPOCH + 1],  # one step
    ],
)
def test_a_changed_continuation_describes_its_own_model(change, flags, old, tmp_path):
    further = ["--resume_from_checkpoint", of(old, 3 * EPOCH), "--save_steps", 1, "--save_total_limit", 99]
    printed = train(*flags, *further, *change, "--output_dir", tmp_path / "new")
    assert check_model(tmp_path / "new", printed) > 3 * EPOCH


def test_without_validation_the_last_model_is_saved(flags, old, corpus, tmp_path):
    """Validation and test files are none of the state: they may differ."""
    start = flags.index("--validation_file")
    without = flags[:start] + flags[start + 2 :]
    further = ["--resume_from_checkpoint", of(old, EPOCH), "--num_train_epochs", 2]
    printed = train(*without, *further, "--output_dir", tmp_path / "new")
    assert f"the last model (step {2 * EPOCH}) is in" in printed and "eval_f1" not in results(tmp_path / "new")
    trained = checkpoint.load_file(of(tmp_path / "new", 2 * EPOCH) / "model.safetensors")
    assert (weights(tmp_path / "new")["classifier.weight"] == trained["classifier.weight"]).all()


def test_a_killed_continuation_goes_on_from_its_own_newest_checkpoint(flags, old, tmp_path):
    further = ["--resume_from_checkpoint", of(old, EPOCH), "--num_train_epochs", 4]
    train(*flags, *further, "--output_dir", tmp_path / "whole")
    new = [*flags, *further, "--output_dir", tmp_path / "new"]
    for kill_at, origin in ((EPOCH + 3, of(old, EPOCH)), (2 * EPOCH + 3, of(old, EPOCH))):
        (tmp_path / "log.killed").unlink(missing_ok=True)
        code, printed = forked(f"kill {kill_at} 0", tmp_path / "log", new)
        assert code == -9 and f"resumed from {origin}" in printed
    auto = [*flags, "--num_train_epochs", 4, "--output_dir", tmp_path / "new"]
    code, printed = forked(f"kill {3 * EPOCH + 3} 0", tmp_path / "other.log", auto)
    assert code == -9 and f"resumed from {of(tmp_path / 'new', 2 * EPOCH)}" in printed
    printed = train(*new)  # with the path again
    assert f"resumed from {of(tmp_path / 'new', 3 * EPOCH)}" in printed
    check_model(tmp_path / "new", printed)
    assert run_dir.model_digest(str(tmp_path / "new")) == run_dir.model_digest(str(tmp_path / "whole"))


def test_two_ranks_continue_in_a_new_folder(flags, old, tmp_path):
    """With half the batch on each rank."""
    further = ["--resume_from_checkpoint", of(old, 2 * EPOCH), "--num_train_epochs", 3, "--learning_rate", 0]
    command = [*flags, *further, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "new"]
    code, printed = forked("none", tmp_path / "log", command, ranks=2)
    assert code == 0, printed
    assert check_model(tmp_path / "new", printed) == 3 * EPOCH


def test_auto_starts_from_the_named_checkpoint_again_if_the_run_has_none_yet(flags, old, tmp_path):
    further = ["--num_train_epochs", 4, "--output_dir", tmp_path / "new"]
    code, _ = forked(
        f"kill {EPOCH + 3} 0", tmp_path / "log", [*flags, *further, "--resume_from_checkpoint", of(old, EPOCH)]
    )
    assert code == -9 and not checkpoint.checkpoints(str(tmp_path / "new"))
    assert f"resumed from {of(old, EPOCH)}" in train(*flags, *further)


def copy(old: Path, tmp_path: Path) -> Path:
    """The folder of the old run as a kill before the results leaves it."""
    shutil.copytree(old, tmp_path / "out")
    (tmp_path / "out" / "all_results.json").unlink()
    return tmp_path / "out"


def test_going_back_in_the_same_folder_removes_the_later_checkpoints_once(flags, old, tmp_path):
    folder = copy(old, tmp_path)
    again = [*flags, "--num_train_epochs", 4, "--output_dir", folder, "--save_steps", 5, "--save_total_limit", 1]
    again += ["--resume_from_checkpoint", of(folder, EPOCH)]
    code, printed = forked(f"kill {EPOCH} 0", tmp_path / "log", again)
    assert code == -9 and f"resumed from {of(folder, EPOCH)}" in printed
    assert [Path(path).name for path in checkpoint.checkpoints(str(folder))] == [name(EPOCH)]
    (tmp_path / "log.killed").unlink()
    code, printed = forked(f"kill {EPOCH + 8} 0", tmp_path / "log", again)
    assert code == -9 and [Path(path).name for path in checkpoint.checkpoints(str(folder))] == [name(25)]
    printed = train(*again)  # the checkpoint that the command names was removed as an old one
    assert f"resumed from {of(folder, 25)}" in printed
    assert run_dir.model_digest(str(folder)) == run_dir.model_digest(str(old))
    same = [key for key in results(old) if "runtime" not in key and "per_second" not in key and key != "code"]
    assert {key: results(folder)[key] for key in same} == {key: results(old)[key] for key in same}


@pytest.mark.parametrize("harm", ["missing", "later", "other"])
def test_scores_of_a_model_that_is_not_in_the_folder_are_forgotten(harm, flags, old, encoders, tmp_path):
    folder = copy(old, tmp_path)
    if harm == "missing":
        (folder / "model.safetensors").unlink()
    elif harm == "other":
        shutil.copy(Path(encoders["wordpiece"]) / "model.safetensors", folder / "model.safetensors")
    named = ["--resume_from_checkpoint", of(folder, EPOCH if harm == "later" else 3 * EPOCH)]
    printed = train(*flags, *named, "--num_train_epochs", 4, "--output_dir", folder)
    assert f"is not in {folder}; the next evaluation saves one" in printed
    check_model(folder, printed)


def test_a_broken_newer_checkpoint_does_not_count_as_the_newest(flags, old, tmp_path):
    folder = copy(old, tmp_path)
    (of(folder, 4 * EPOCH) / "manifest.json").unlink()
    command = [*flags, "--num_train_epochs", 4, "--output_dir", folder, "--save_steps", 5, "--save_total_limit", 1]
    code, _ = forked(f"kill {3 * EPOCH + 4} 0", tmp_path / "log", command)
    names = [Path(path).name for path in checkpoint.checkpoints(str(folder))]
    assert code == -9 and names == [name(60)]


def test_overwriting_with_a_named_checkpoint(flags, old, tmp_path):
    """No file of the run that is overwritten counts as one of the new run."""
    folder = tmp_path / "out"
    train(*flags, "--seed", 7, "--num_train_epochs", 1, "--output_dir", folder)
    named = ["--num_train_epochs", 5, "--output_dir", folder, "--overwrite_output_dir", "--resume_from_checkpoint"]
    code, _ = forked(f"kill {3 * EPOCH + 3} 0", tmp_path / "log", [*flags, *named, of(old, 3 * EPOCH)])
    assert code == -9 and not (folder / "all_results.json").exists() and not (folder / "model.safetensors").exists()
    check_model(folder, train(*flags, *named, of(old, 3 * EPOCH)))
    (tmp_path / "log.killed").unlink()
    code, _ = forked(f"kill {4 * EPOCH + 3} 0", tmp_path / "log", [*flags, *named, of(folder, 4 * EPOCH)])
    assert code == -9 and not (folder / "all_results.json").exists() and of(folder, 4 * EPOCH).exists()
    printed = train(*flags, *named, of(folder, 4 * EPOCH))
    check_model(folder, printed)


def test_a_named_checkpoint_that_cannot_be_resumed_is_refused(flags, old, encoders, tmp_path, capsys):
    new = tmp_path / "new"

    def error(path, *further) -> str:
        line = refused(capsys, *flags, "--output_dir", new, "--resume_from_checkpoint", path, *further)
        assert not new.exists() or not list(new.iterdir())
        return line

    trainers, model, empty = tmp_path / "checkpoint-500", encoders["wordpiece"], tmp_path / "empty"
    shutil.copytree(model, trainers)
    (trainers / "trainer_state.json").write_text("{}")
    empty.mkdir()
    flag = "--resume_from_checkpoint"
    assert error(tmp_path / "none") == f"{flag} {tmp_path}/none: no such folder"
    assert error(empty) == f"{flag} {empty}: is not a checkpoint of train.py: it has no manifest.json"
    kind = "a checkpoint of another program, such as transformers' Trainer"
    advice = "to start from its weights, pass --model_name_or_path"
    assert error(trainers) == f"{flag} {trainers}: is {kind}; {advice} {trainers}"
    assert error(model) == f"{flag} {model}: is a model without optimizer state; {advice} {model}"
    for path in (old, old / "checkpoints"):
        assert error(path) == f"{flag} {path}: is not a checkpoint, but {of(old, 4 * EPOCH)} is one"
    for further, end in ((["--num_train_epochs", 3], 57), (["--num_train_epochs", 4], 76)):
        assert error(of(old, 4 * EPOCH), *further) == (
            f"{of(old, 4 * EPOCH)}: is of step 76, and this run ends at step {end}: no step is left to train; "
            "pass a larger --num_train_epochs or --max_steps, or an earlier --resume_from_checkpoint"
        )
    other = error(of(old, 4 * EPOCH), "--num_train_epochs", 5, "--per_device_train_batch_size", 5)
    assert other.endswith("is of another run: its global batch size is 4, not 5; pass what that run got")


def test_a_folder_with_another_run_is_refused(flags, old, tmp_path, capsys):
    shutil.copytree(old, tmp_path / "other")
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    advice = "choose another --output_dir, or --overwrite_output_dir"
    more = [*flags, "--num_train_epochs", 5, "--output_dir", old, "--resume_from_checkpoint", of(old, 4 * EPOCH)]
    expected = f"{old}: holds another run: its --num_train_epochs is 4.0, not 5.0; {advice}"
    assert refused(capsys, *more) == expected
    path = of(tmp_path / "other", 2 * EPOCH)
    foreign = [*flags, "--num_train_epochs", 4, "--output_dir", old, "--resume_from_checkpoint", path]
    line = refused(capsys, *foreign)
    assert line.startswith(f"{old}: holds another run: its --resume_from_checkpoint") and line.endswith(advice)
    assert "finished" in train(*flags, "--num_train_epochs", 4, "--output_dir", old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_the_last_checkpoint_of_a_run_without_its_model_is_refused(flags, old, tmp_path, capsys):
    """A run that was killed between its last checkpoint and its results has nothing left to train."""
    folder = copy(old, tmp_path)
    command = [*flags, "--num_train_epochs", 4, "--output_dir", folder]
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert refused(capsys, *command) == (
        f"{of(folder, 4 * EPOCH)}: is of the last step, but the best model is not in {folder}; "
        "pass an earlier --resume_from_checkpoint, or --overwrite_output_dir to start again"
    )
    shutil.move(tmp_path / "kept", folder / "model.safetensors")
    check_model(folder, train(*command))
    assert json.loads((folder / "all_results.json").read_text())["eval_f1"] == results(old)["eval_f1"]
