"""What a run writes for TensorBoard, read by TensorBoard's reader; and the page in a real browser."""

import contextlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import flat, results, train
from selenium.common.exceptions import WebDriverException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from util.tensorboard_log import confusion_table


@pytest.fixture(scope="module")
def run_folder(encoders, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard") / "out"
    flags = ["--model_name_or_path", encoders["wordpiece"], "--learning_rate", 5e-3, "--max_steps", 12]
    train(*flat(corpus), *flags, "--eval_steps", 6, "--logging_steps", 3, "--output_dir", folder)
    return folder


def test_event_files_hold_what_was_measured(run_folder):
    events = EventAccumulator(str(run_folder / "runs")).Reload()
    scalars, measured = set(events.Tags()["scalars"]), results(run_folder)
    expected = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "padding", "memory_gib", "data_wait"}
    assert {f"train/{name}" for name in expected} <= scalars
    for split in ("eval", "test"):
        assert {f"{split}/{name}" for name in ("f1", "precision", "recall", "loss", "f1/PER", "support/LOC")} <= scalars
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9, 12]
    assert events.Scalars("test/f1")[-1].value == pytest.approx(measured["test_f1"])
    tables = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("eval/confusion/text_summary")]
    assert events.Tags()["images"] == [] and len(tables) == 2
    assert all("| LOC |" in table and "| PER |" in table and "| --- |" in table for table in tables)
    text = events.Tensors("eval/sentences/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "gold: " in text and "predicted: " in text and "**[" in text and ".txt:" in text
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert session["learning_rate"].number_value == 5e-3 and session["seed"].number_value == 42
    assert events.Scalars("final/eval_f1")[-1].value == pytest.approx(measured["eval_f1"])


class Tagged:
    """What confusion_table needs of a Split, with spans in place of tags."""

    tags = "gold"
    types = ["LOC", "a-rather|long-name", "absent"]
    gold = [(0, 2, 0), (2, 3, 0), (5, 6, 1), (7, 9, 1)]
    predicted = [(0, 2, 0), (2, 3, 1), (5, 6, 1), (10, 11, 0)]

    def spans(self, tags) -> tuple[np.ndarray, list[str]]:
        return np.array(self.gold if tags == "gold" else self.predicted), self.types


def test_the_confusion_table_counts_gold_in_rows_and_predicted_in_columns():
    assert confusion_table(Tagged(), "predicted").splitlines() == [
        "| gold / predicted | LOC | a-rather\\|long-name | (none) |",
        "| --- | --- | --- | --- |",
        "| LOC | 1 | 1 | 0 |",
        "| a-rather\\|long-name | 0 | 1 | 1 |",
        "| (none) | 1 | 0 | 0 |",
    ]


# All text of the page, with that of shadow trees, which innerText leaves out.
TEXT = """const text = node => [...node.childNodes].map(text).join("") + (node.shadowRoot ? text(node.shadowRoot) : "")
  + (node.nodeType === Node.TEXT_NODE ? node.data : "");
return text(document.body);"""


@pytest.mark.slow
def test_the_page_opens_in_a_browser(run_folder, browser):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for page, words in (("timeseries", "eval/accuracy"), ("hparams", "learning_rate"), ("text", "gold: ")):
            deadline, shown = time.monotonic() + 60, ""
            while words not in shown:
                assert time.monotonic() < deadline, (page, shown[:500])
                with contextlib.suppress(WebDriverException):  # the server may not be up yet
                    browser.get("about:blank")
                    browser.get(f"http://127.0.0.1:{port}/#{page}")
                time.sleep(3)
                shown = browser.execute_script(TEXT)
    finally:
        server.kill()
        server.wait()
