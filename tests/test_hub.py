"""Pushing to the Hub and loading from it, by the real client and the server of tests/hub.py; the model card."""

import threading
from pathlib import Path

import huggingface_hub
import pytest
from conftest import flat, results, run, train, weights
from hub import TOKEN, Hub
from huggingface_hub import ModelCard
from safetensors.torch import load

import train as script
from util import hub as hub_client
from util.run_dir import atomic_write_text

STEPS = ["--learning_rate", 5e-3, "--max_steps", 9, "--eval_steps", 3, "--precision", "fp32"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub of this process, and of processes that are given hub.environment()."""
    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    yield hub
    hub.close()


def push(encoders, corpus, folder: Path, *flags) -> str:
    """Runs train.py --push_to_hub, which has to succeed. Returns what it prints."""
    flags = ["--output_dir", folder / "my-tagger", "--model_name_or_path", encoders["wordpiece"], *STEPS, *flags]
    return train(*flat(corpus), *flags, "--push_to_hub")


def test_each_new_best_model_is_pushed_and_can_be_pulled(hub, encoders, corpus, tmp_path):
    printed = push(encoders, corpus, tmp_path, "--hub_private_repo")
    assert f"pushed: {hub.url}/someone/my-tagger" in printed
    files = hub.repos["someone/my-tagger"]
    assert hub.private["someone/my-tagger"]
    local = {
        str(path.relative_to(tmp_path / "my-tagger")) for path in (tmp_path / "my-tagger").rglob("*") if path.is_file()
    }
    kept_back = {"eval_predictions.conll", "test_predictions.conll"}  # the words of a corpus may not be public
    assert kept_back < local
    assert set(files) == {name for name in local - kept_back if not name.startswith("checkpoints")}
    assert {"README.md", "config.json", "model.safetensors", "report.html", "all_results.json", "tokenizer.json"} < set(
        files
    )
    ours = weights(tmp_path / "my-tagger")
    assert all((load(files["model.safetensors"])[name] == tensor).all() for name, tensor in ours.items())
    assert hub.commits[-1] == ("someone/my-tagger", "Finished after 9 steps") and len(hub.commits) >= 2
    assert hub.commits[0][1].startswith("Step ") and "f1" in hub.commits[0][1]

    text, cache = "Peter Miller joined Nokia.", str(tmp_path / "other")
    pulled = run("infer.py", "someone/my-tagger", text, **hub.environment(cache))
    assert pulled.returncode == 0, pulled.stderr
    assert text in pulled.stdout
    offline = hub.environment(cache) | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"}
    assert run("infer.py", "someone/my-tagger", text, **offline).stdout == pulled.stdout

    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in printed and not any(TOKEN.encode() in content for content in files.values())
    hub.commits.clear()
    again = push(encoders, corpus, tmp_path)  # the finished run
    assert "pushed: " in again and "finished" in again and len(hub.commits) <= 1


@pytest.mark.parametrize(
    ("with_xet", "faults"),
    [
        (True, [("POST .*/preupload", 429), ("POST .*/commit/main", 500)]),
        (True, [("POST .*/commit/main", 0), ("POST .*/commit/main", 502)]),
        (False, [("POST .*/preupload", 503), ("PUT /lfs", 0), ("POST .*objects/batch", 503)]),
    ],
)
def test_a_push_that_fails_is_tried_again(hub, monkeypatch, encoders, corpus, tmp_path, with_xet, faults):
    """huggingface_hub repeats the requests; commits only with hf_xet, which is installed with it by default."""
    if with_xet:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        hub.has_lfs = False  # the server of tests/hub.py has no xet storage
    hub.faults += faults
    printed = push(encoders, corpus, tmp_path)
    assert hub.faults == [] and f"pushed: {hub.url}" in printed and "not pushed" not in printed
    remote = load(hub.repos["someone/my-tagger"]["model.safetensors"])
    assert all((remote[name] == tensor).all() for name, tensor in weights(tmp_path / "my-tagger").items())


def test_a_push_that_is_refused_loses_nothing(hub, encoders, corpus, tmp_path):
    hub.faults += [("POST .*/preupload", 403)] * 20
    printed = push(encoders, corpus, tmp_path)
    assert "not pushed to someone/my-tagger: " in printed and "403" in printed
    assert "hf upload someone/my-tagger" in printed
    assert (tmp_path / "my-tagger" / "all_results.json").exists() and weights(tmp_path / "my-tagger")
    assert not [path for path in (tmp_path / "my-tagger").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("wrong", "reason"), [("token", "401"), ("network", "onnect"), ("offline", "ffline")])
def test_no_right_or_no_network_is_one_line_before_training(
    hub, monkeypatch, encoders, corpus, tmp_path, capsys, wrong, reason
):
    if wrong == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif wrong == "network":
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:1")
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.utils.close_session()
    with pytest.raises(SystemExit) as stopped:
        push(encoders, corpus, tmp_path)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    line = error.splitlines()[-1]
    assert line.startswith("error: --push_to_hub: my-tagger: ") and reason in line and "hf_" not in error
    assert not (tmp_path / "my-tagger" / "config.json").exists()


def test_a_newer_model_takes_the_place_of_one_that_waits(hub, monkeypatch, tmp_path):
    """Of three models, the first is being uploaded while the second is replaced by the third."""
    hub.repos["someone/x"] = {}
    begun, released = threading.Event(), threading.Event()
    upload = huggingface_hub.upload_folder

    def slow(**arguments):
        begun.set()
        assert released.wait(20)
        return upload(**arguments)

    monkeypatch.setattr(huggingface_hub, "upload_folder", slow)
    future, messages = None, []
    for i in range(3):
        atomic_write_text(str(tmp_path / "model.txt"), f"model {i}")
        future = hub_client.push(str(tmp_path), "someone/x", f"model {i}", messages.append, future)
        assert begun.wait(20)
    released.set()
    assert future.result() == f"{hub.url}/someone/x" and messages == []
    assert [message for _, message in hub.commits] == ["model 0", "model 2"]
    assert hub.repos["someone/x"] == {"model.txt": b"model 2"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.txt"]


# ----------------------------------------------------------------------------------------------------------------------
# The model card


SCORES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "accuracy": 0.9, "words": 1234, "loss": 0.1, "runtime": 1.0}
SCORES |= {"per_entity": {"A|B": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4}}}


def settings(**flags) -> dict:
    return vars(script.get_args([])) | flags


def test_the_card_says_what_the_hub_displays(hub):
    card = hub_client.model_card(
        "someone/x",
        settings(dataset_name="leondz/wnut_17", model_name_or_path="bert-base-cased", learning_rate=5e-5),
        {"validation": SCORES, "test": SCORES | {"f1": 0.4}},
        {"hardware": "2 cores"},
    )
    loaded = ModelCard(card)
    loaded.validate()  # by a request to the Hub
    assert ("POST", "/api/validate-yaml") in hub.requests
    found = loaded.data
    assert found.base_model == "bert-base-cased" and found.datasets == ["leondz/wnut_17"]
    assert found.pipeline_tag == "token-classification" and found.model_name == "someone/x"
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in found.eval_results}
    assert results["validation", "f1"] == round(1 / 3, 6) and results["test", "f1"] == 0.4 and len(results) == 8
    assert {r.dataset_type for r in found.eval_results} == {"leondz/wnut_17"}
    assert "| A\\|B | 0.5000 | 0.2500 | 0.3333 | 4 |" in card and "| `--learning_rate` | 5e-05 |" in card


def test_the_card_keeps_this_machines_paths_to_itself(tmp_path):
    flags = {"model_name_or_path": str(tmp_path), "output_dir": str(tmp_path / "out")}
    flags |= {"train_file": str(tmp_path / "secret" / "a.conll"), "validation_file": str(tmp_path / "b.conll")}
    card = hub_client.model_card("x", settings(**flags), {"validation": SCORES}, {})
    assert str(tmp_path.parent) not in card and "a.conll" in card and tmp_path.name in card
    assert ModelCard(card).data.base_model is None and ModelCard(card).data.eval_results[0].dataset_type == "custom"


def test_a_run_leaves_its_card(encoders, corpus, tmp_path):
    flags = ["--output_dir", tmp_path / "out", "--model_name_or_path", encoders["wordpiece"], *STEPS]
    (tmp_path / "out" / ".pushing-killed").mkdir(parents=True)
    train(*flat(corpus), *flags)
    assert not (tmp_path / "out" / ".pushing-killed").exists()
    card, measured = ModelCard.load(tmp_path / "out" / "README.md"), results(tmp_path / "out")
    shown = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    for split, prefix in (("validation", "eval"), ("test", "test")):
        for metric in ("f1", "precision", "recall", "accuracy"):
            assert shown[split, metric] == round(measured[f"{prefix}_{metric}"], 6)
    assert (
        "| PER |" in card.text
        and "1 x cpu, 1 thread, fp32" in card.text
        and 'pipeline("token-classification"' in card.text
    )
