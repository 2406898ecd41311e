"""What people change first. Each change is a few lines of one file, written into a copy of the project.

The copy is trained, killed with SIGKILL behind a checkpoint, and resumed. The resumed run has to end with the weights
of a run that was not killed, and each test verifies that the change took effect.
"""

import importlib.util
import itertools
import json
import re
import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, flat, load, read, results, write_conll
from copies import KILL, Project
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForTokenClassification, AutoTokenizer

import data
import model as modeling

MAX_LINES = 15  # of a change


class Change(NamedTuple):
    file: str
    diff: str  # lines that begin with " ", "-" or "+", as `diff -u` prints them; @@ separates places


CHANGES = {
    "label smoothing": Change(
        "model.py",
        """
-    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction)
+    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction, label_smoothing=0.1)
""",
    ),
    "class weights": Change(
        "model.py",
        """
-    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction)
+    weight = torch.full((logits.shape[-1],), 2.0, device=logits.device)
+    weight[0] = 0.5  # label 0 is O
+    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), weight, reduction=reduction)
""",
    ),
    "focal loss": Change(
        "model.py",
        """
-    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction)
+    losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
+    losses = (1 - torch.exp(-losses)) ** 2 * losses
+    return losses.sum() if reduction == "sum" else losses
""",
    ),
    "cosine schedule": Change(
        "train.py",
        """
-    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)
+    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
+    return peak * (1 + math.cos(math.pi * progress)) / 2
""",
    ),
    "layer-wise learning rates": Change(
        "model.py",
        """
 import os
+import re
 import tempfile
@@
-    parameters = [p for p in model.parameters() if p.requires_grad]
-    return [
-        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
-        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
-    ]
+    groups = []
+    for name, parameter in model.named_parameters():
+        layer = re.search(r"layer\\.(\\d+)\\.", name)
+        depth = 0  # of the head; 1: the last layer
+        if layer:
+            depth = model.config.num_hidden_layers - int(layer[1])
+        elif "embeddings" in name:
+            depth = model.config.num_hidden_layers + 1
+        decay = weight_decay if parameter.ndim >= 2 else 0.0
+        if parameter.requires_grad:
+            groups.append({"params": [parameter], "weight_decay": decay, "lr_scale": 0.8**depth})
+    return groups
""",
    ),
    "SGD": Change(
        "train.py",
        """
-    optimizer = torch.optim.AdamW(
-        modeling.parameter_groups(raw_model, args.weight_decay), lr=args.learning_rate, fused=True
+    optimizer = torch.optim.SGD(
+        modeling.parameter_groups(raw_model, args.weight_decay), lr=args.learning_rate, momentum=0.9
     )
""",
    ),
    "sharpness-aware minimization": Change(
        "train.py",
        """
+            micro_batches = []
             for micro_step in range(1, args.gradient_accumulation_steps + 1):
                 inputs, labels = data.split_labels(meter.fetch(loader))
+                micro_batches.append((inputs, labels))
@@
+            norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), math.inf)
+            scale = 0.05 / full_tensor(norm).item()
+            moves = [(p, scale * p.grad) for p in raw_model.parameters() if p.grad is not None]
+            for parameter, move in moves:
+                parameter.data += move
+            optimizer.zero_grad(set_to_none=True)
+            for inputs, labels in micro_batches:  # again, at the moved weights
+                with autocast:
+                    logits = model(**inputs).logits
+                loss = modeling.token_loss(logits, labels["labels"], reduction="sum") / num_targets
+                scaler.scale(loss * ranks.world_size).backward()
+            for parameter, move in moves:
+                parameter.data -= move
             scaler.unscale_(optimizer)
""",
    ),
    "gradient noise": Change(
        "train.py",
        """
+            torch.manual_seed(shared_seed(args.seed, state.step))  # the same noise on all ranks
+            for parameter in raw_model.parameters():
+                if parameter.grad is not None:
+                    parameter.grad += 0.01 * torch.randn_like(parameter.grad)
             grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), args.max_grad_norm or math.inf)
""",
    ),
    "frozen embeddings": Change(
        "train.py",
        """
     train_used_embeddings(raw_model, np.append(train_set.token_ids, pad_values["input_ids"]))
+    raw_model.base_model.embeddings.requires_grad_(False)
""",
    ),
    "freeze, then unfreeze": Change(
        "train.py",
        """
     for group in optimizer.param_groups:  # lr_scale: see parameter_groups
         group["peak_lr"] = group["lr"] * group.get("lr_scale", 1.0)
+    encoder = [p for p in raw_model.base_model.parameters() if p.requires_grad]
@@
-            raw_model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=gradients_vary
+            raw_model, broadcast_buffers=False, find_unused_parameters=True
@@
             meter.start_step()
+            for parameter in encoder:
+                parameter.requires_grad_(state.step >= 4)
""",
    ),
    "auxiliary head": Change(
        "train.py",
        """
     train_used_embeddings(raw_model, np.append(train_set.token_ids, pad_values["input_ids"]))
+    raw_model.entity_head = torch.nn.Linear(raw_model.config.hidden_size, 2, device=device)
@@
-                    logits = model(**inputs).logits  # [B, L, C]; packed: [1, T, C]
+                    outputs = model(**inputs, output_hidden_states=True)
+                    logits = outputs.logits
+                    entity_logits = raw_model.entity_head(outputs.hidden_states[-1])
@@
                 loss = modeling.token_loss(logits, labels["labels"], reduction="sum") / num_targets
+                is_entity = labels["labels"].clamp(max=1)  # O is 0, -100 stays
+                loss += 0.5 * modeling.token_loss(entity_logits, is_entity, reduction="sum") / num_targets
""",
    ),
    "weighted sampling": Change(
        "train.py",
        """
     done = plan.is_done(state.step, state.best_step)
+    weights = np.array([(window["labels"] > 0).any() for window in train_set.windows], float)
@@
-        return data.EpochBatches(lengths, plan.global_batch_size, args.seed, epoch, args.group_by_length)
+        batches = data.EpochBatches(lengths, plan.global_batch_size, args.seed, epoch, args.group_by_length)
+        random = np.random.default_rng([args.seed, epoch])
+        batches.order = random.choice(len(weights), len(weights), p=weights / weights.sum())
+        return batches
""",
    ),
    "LoRA with peft": Change(
        "model.py",
        """
 import contextlib
+import copy
 import os
@@
 import torch.nn.functional as F
+from peft import LoraConfig, get_peft_model
 from torch import nn
@@
         enable({"use_reentrant": False})
-    return model
+    return get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", r=8))
@@
+    model = copy.deepcopy(model).merge_and_unload()
     on_rank0(_write_model, model, full_state_dict(model), tokenizer, folder)
""",
    ),
    "CRF": Change(
        "model.py",
        """
 import torch.nn.functional as F
+from safetensors.torch import load_file
@@
+def crf_marginals(model, args, kwargs, output):
+    logits, mask = output.logits.float(), kwargs.get("attention_mask", kwargs["input_ids"] >= 0).bool()
+    ahead, back = [logits[:, 0]], [torch.zeros_like(logits[:, 0])]
+    for t in range(1, logits.shape[1]):
+        ahead.append(logits[:, t] + torch.logsumexp(ahead[-1][..., None] + model.transitions, 1))
+    for t in range(logits.shape[1] - 1, 0, -1):
+        message = torch.logsumexp(model.transitions + (logits[:, t] + back[-1])[:, None], 2)
+        back.append(torch.where(mask[:, t, None], message, back[-1]))  # padding sends no message
+    output.logits = (torch.stack(ahead, 1) + torch.stack(back[::-1], 1)).log_softmax(-1)
+
+
 def from_pretrained(name: str | None, config=None, log=None) -> PreTrainedModel:
@@
         model = load_encoder_model(name, config, log)
+    file = f"{name}/model.safetensors"
+    saved = load_file(file) if os.path.exists(file) else {}
+    zeros = torch.zeros(model.num_labels, model.num_labels)
+    model.transitions = nn.Parameter(saved.get("transitions", zeros))
+    model.register_forward_hook(crf_marginals, with_kwargs=True)
""",
    ),
    "Weights & Biases": Change(
        "train.py",
        """
 import torch
+import wandb
@@
     for name, value in scalars.items():
         writer.add_scalar(f"{prefix}/{name}", value, step)
+    if wandb.run:
+        wandb.log({f"{prefix}/{name}": value for name, value in scalars.items()}, step)
@@
     writer = open_writer(args.output_dir, state.step, enabled=ranks.rank == 0 and not args.benchmark)
+    if ranks.rank == 0:
+        wandb.init(config=vars(args))
""",
    ),
    "a second metric": Change(
        "metrics.py",
        """
     scores = {"accuracy": float((gold == predicted).mean()), "words": len(gold)}
+    num_wrong = np.append(0, np.cumsum(gold != predicted))  # before each word
+    ends = np.cumsum(lengths)
+    scores["whole_sentences"] = float((num_wrong[ends] == num_wrong[ends - lengths]).mean())
""",
    ),
    "partial-match F1": Change(
        "metrics.py",
        """
 from torch.utils.data import DataLoader
+
+from util.tag_schemes import entity_spans, entity_type
@@
+def partial_f1(gold, predicted, lengths, label_list) -> float:
+    types = np.array([entity_type(label) for label in label_list])
+    num_shared = np.append(0, np.cumsum(types[gold] == types[predicted]))  # before each word
+    shares = []  # precision and recall
+    for tags in (predicted, gold):
+        spans = entity_spans(tags, lengths, label_list)
+        is_found = num_shared[spans[:, 1]] > num_shared[spans[:, 0]]
+        shares.append(is_found.sum() / max(1, len(spans)))
+    return float(2 * np.prod(shares) / max(1e-9, sum(shares)))
+
+
 def score(
@@
     if scheme:
+        scores["partial_f1"] = partial_f1(gold, predicted, lengths, label_list)
         # The default mode knows IOB and BIOES. BILOU is BIOES with L for E and U for S.
""",
    ),
    "the last subword of a word": Change(
        "data.py",
        """
-    return (word_ids >= 0) & (np.diff(word_ids, prepend=-1) != 0)
+    return (word_ids >= 0) & (np.diff(word_ids, append=-1) != 0)
""",
    ),
    "a second column of labels": Change(
        "data.py",
        """
-TOKEN_COLUMNS = ("input_ids", "labels")  # a second label column is named here and filled in tokenize_batch
+TOKEN_COLUMNS = ("input_ids", "labels", "type_labels")
@@
             columns["labels"].append(align(word_ids, sentence_tags, continuation))
+            columns["type_labels"].append(align(word_ids, (sentence_tags + 1) // 2))
""",
    ),
    "a new file format": Change(
        "util/format_detection.py",
        """
-from util.lines import IOB_TAG, PROBABLY_COMMENT, beginning_of, check_encoding, is_border, split_columns
+from util.lines import IOB_TAG, PROBABLY_COMMENT, beginning_of, check_encoding, is_border, split_columns, text_lines
@@
+def read_slashes(path: str, block):
+    for number, line in text_lines(path, block):  # word/TAG word/TAG
+        pairs = [word.rpartition("/") for word in line.split()]
+        yield [number], {"tokens": [p[0] for p in pairs], "tags": [p[2] for p in pairs]}
+
+
 def choose_reader(path: str, text_columns: list[str], label_columns: list[str]) -> Reader:
@@
+    if suffix == ".slashes":
+        return Reader(read_slashes, path, block_ends_at="line")
     if suffix == ".parquet" or beginning.startswith("PAR1"):
""",
    ),
}


def make_change(project: Project, name: str) -> int:
    """Returns the number of lines that are new or changed, without blank lines."""
    return project.patch(CHANGES[name].file, CHANGES[name].diff)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_few_lines_of_one_file(name, tmp_path):
    assert make_change(Project(tmp_path), name) <= MAX_LINES


def test_the_table_of_the_docs_lists_the_changes(tmp_path):
    """Change, file and number of lines: "| label smoothing | `model.py` | 1 | ... |"."""
    text = (ROOT / "docs" / "changes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `([\w/.]+)` \| (\d+) \|", text, re.MULTILINE)
    expected = []
    for i, (name, change) in enumerate(CHANGES.items()):
        lines = make_change(Project(tmp_path / str(i)), name)
        expected.append((name, change.file, str(lines)))
    assert sorted(rows) == sorted(expected)


# ---- training, killed and resumed


@dataclass
class Trained:
    """A copy with a change, after its runs. `folder` is the output folder of the run that was not killed."""

    project: Project
    printed: str

    @property
    def folder(self):
        return self.project.folder / "straight"

    @property
    def results(self) -> dict:
        return results(self.folder)

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the saved model."""
        return load_file(self.folder / "model.safetensors")

    def checkpoint(self, step: int, file: str = "model", run: str = "straight") -> dict[str, torch.Tensor]:
        return load_file(self.project.folder / run / "checkpoints" / f"step-{step:08}" / f"{file}.safetensors")

    def scalars(self, name: str) -> list[float]:
        events = EventAccumulator(str(self.folder / "runs")).Reload()
        return [event.value for event in events.Scalars(name)]


NUM_STEPS = 8
LEARNING_RATE = 5e-3
FLAGS = ["--max_steps", NUM_STEPS, "--eval_steps", 4, "--save_steps", 1, "--save_total_limit", 99, "--logging_steps", 1]
FLAGS += ["--learning_rate", LEARNING_RATE, "--warmup_ratio", 0, "--weight_decay", 0, "--precision", "fp32"]


def train_and_resume(
    name: str, folder, encoder: str, corpus: dict, *more_flags, ranks: int = 1, kill_at: int = 5, run_before: str = ""
) -> Trained:
    """Makes the change in a copy and trains it without and with a SIGKILL before the step `kill_at`.

    Asserts that both runs end with the same weights, optimizer state and scores.
    """
    project = Project(folder)
    make_change(project, name)
    flags = [*flat(corpus), "--model_name_or_path", encoder, *FLAGS, *more_flags]
    straight = project.start("train.py", *flags, "--output_dir", "straight", ranks=ranks, before=run_before)
    kill = KILL.format(step=kill_at)
    killed = project.start("train.py", *flags, "--output_dir", "killed", ranks=ranks, before=kill)
    straight, killed = straight.wait(), killed.wait()
    assert straight.code == 0, straight.stdout + straight.stderr
    assert killed.code == -9, killed.stdout + killed.stderr
    resumed = project.run("train.py", *flags, "--output_dir", "killed", ranks=ranks)
    assert f"resumed from killed/checkpoints/step-{kill_at:08}" in resumed

    trained = Trained(project, straight.stdout)
    for file in ("model", "optimizer"):
        expected, found = trained.checkpoint(NUM_STEPS, file), trained.checkpoint(NUM_STEPS, file, "killed")
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    expected, found = trained.results, results(project.folder / "killed")
    timed = {key for key in expected if "runtime" in key or "per_second" in key}
    assert {key: found[key] for key in found.keys() - timed} == {key: expected[key] for key in expected.keys() - timed}
    return trained


def word_log_probabilities(folder, file: str, transitions=None) -> tuple[torch.Tensor, torch.Tensor]:
    """[W, C] at the first subword of every word, one sentence at a time by transformers, and the gold ids [W].

    transitions: of a CRF.
    """
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, gold = [], []
    for sentence in read(file):
        encoded = tokenizer(sentence["tokens"], is_split_into_words=True, return_tensors="pt")
        word_ids = encoded.word_ids()
        first = [word_ids.index(i) for i in range(len(sentence["tokens"]))]
        with torch.no_grad():
            logits = model(**encoded).logits
        if transitions is not None:
            logits = marginals_of(logits, transitions, encoded["attention_mask"])
        rows.append(logits[0, first].log_softmax(-1))
        gold += [model.config.label2id[tag] for tag in sentence["tags"]]
    return torch.cat(rows), torch.tensor(gold)


# ---- the loss


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label smoothing", "class weights", "focal loss"])
def test_the_loss(name, encoders, corpus, tmp_path):
    """That training and evaluation use the same loss is tested in test_traps.py."""
    trained = train_and_resume(name, tmp_path, encoders["wordpiece"], corpus)
    log_probabilities, gold = word_log_probabilities(trained.folder, corpus["--validation_file"])
    plain = F.nll_loss(log_probabilities, gold, reduction="none")
    expected = {
        "label smoothing": 0.9 * plain - 0.1 * log_probabilities.mean(-1),
        "class weights": torch.where(gold == 0, 0.5, 2.0) * plain,
        "focal loss": (1 - (-plain).exp()) ** 2 * plain,
    }[name]
    assert trained.results["eval_loss"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert trained.results["eval_loss"] != pytest.approx(plain.mean().item(), rel=1e-3)


# ---- learning rates and optimizers


@pytest.mark.slow
def test_a_cosine_schedule(encoders, corpus, tmp_path):
    trained = train_and_resume("cosine schedule", tmp_path, encoders["wordpiece"], corpus)
    progress = np.arange(NUM_STEPS) / NUM_STEPS
    expected = LEARNING_RATE * (1 + np.cos(np.pi * progress)) / 2
    assert trained.scalars("train/learning_rate") == pytest.approx(expected.tolist(), rel=1e-6)


def test_layerwise_learning_rates(encoders, corpus, tmp_path):
    """The first update of Adam is the learning rate, for every weight whose gradient is not tiny."""
    trained = train_and_resume("layer-wise learning rates", tmp_path, encoders["wordpiece"], corpus)
    initial, after = load_file(f"{encoders['wordpiece']}/model.safetensors"), trained.checkpoint(1)
    for prefix, depth in (("encoder.layer.1.", 1), ("encoder.layer.0.", 2), ("embeddings.position", 3)):
        names = [name for name in initial if name.startswith(prefix) and initial[name].ndim == 2]
        updates = [(after[f"bert.{name}"] - initial[name]).abs().max().item() for name in names]
        assert updates == pytest.approx([LEARNING_RATE * 0.8**depth] * len(names), rel=1e-2) and names
    assert trained.scalars("train/learning_rate")[0] == pytest.approx(LEARNING_RATE)  # of the head


def test_sgd(encoders, corpus, tmp_path):
    """A first update of SGD is the learning rate times the gradient, which is clipped to norm 1."""
    trained = train_and_resume("SGD", tmp_path, encoders["wordpiece"], corpus)
    initial, after = load_file(f"{encoders['wordpiece']}/model.safetensors"), trained.checkpoint(1)
    state = trained.checkpoint(1, "optimizer")
    assert {key.rsplit("/")[1] for key in state} == {"momentum_buffer"}
    for name in initial:
        if "word_embeddings" not in name:
            expected = initial[name] - LEARNING_RATE * state[f"bert.{name}/momentum_buffer"]
            torch.testing.assert_close(after[f"bert.{name}"], expected, rtol=1e-5, atol=1e-8)
    norm = sum(buffer.square().sum() for buffer in state.values()).sqrt().item()
    assert norm == pytest.approx(min(1, trained.scalars("train/grad_norm")[0]), rel=1e-4)


@pytest.mark.slow
def test_sharpness_aware_minimization(still, corpus, tmp_path):
    """The gradient of the first step is taken at moved weights. One batch of all sentences, in two micro-batches."""
    flags = ["--per_device_train_batch_size", 31, "--gradient_accumulation_steps", 2]
    trained = train_and_resume("sharpness-aware minimization", tmp_path, still, corpus, *flags)
    splits, label_list = load(
        still, 128, train_file=corpus["--train_file"], validation_file=corpus["--validation_file"]
    )
    windows = splits["train"].windows
    batch = data.collate([*windows], windows.pad_values(0))
    labels = batch.pop("labels")
    torch.manual_seed(42)  # --seed, for the new head
    model = modeling.load_model(still, label_list).eval()
    norms = []
    for _ in range(2):
        model.zero_grad()
        loss = F.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        if len(norms) == 1:
            assert trained.scalars("train/loss")[0] == pytest.approx(loss.item(), rel=1e-4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 / norms[0] * parameter.grad
    assert trained.scalars("train/grad_norm")[0] == pytest.approx(norms[1], rel=1e-3)
    assert abs(norms[1] / norms[0] - 1) > 0.01


@pytest.mark.slow
def test_gradient_noise_is_the_same_on_two_ranks(encoders, corpus, tmp_path):
    """If ranks drew different noise, their weights would differ, and a resumed run would get those of rank 0."""
    trained = train_and_resume("gradient noise", tmp_path, encoders["wordpiece"], corpus, ranks=2)
    initial = load_file(f"{encoders['wordpiece']}/model.safetensors")["embeddings.position_embeddings.weight"]
    updates = (trained.checkpoint(1)["bert.embeddings.position_embeddings.weight"] - initial)[-1]
    # No sentence reaches the last position: only noise moves it.
    assert updates.abs().min() > 0 and updates.abs().max().item() == pytest.approx(LEARNING_RATE, rel=1e-2)


# ---- what is trained


@pytest.mark.slow
def test_frozen_embeddings(encoders, corpus, tmp_path):
    trained = train_and_resume("frozen embeddings", tmp_path, encoders["wordpiece"], corpus)
    initial, after = load_file(f"{encoders['wordpiece']}/model.safetensors"), trained.weights()
    same = {name for name in initial if torch.equal(after[f"bert.{name}"], initial[name])}
    assert same == {name for name in initial if name.startswith("embeddings.")}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_encoder_is_frozen_for_four_steps(ranks, encoders, corpus, tmp_path):
    """The run is killed before the encoder has any optimizer state."""
    trained = train_and_resume("freeze, then unfreeze", tmp_path, encoders["wordpiece"], corpus, ranks=ranks, kill_at=3)
    initial = load_file(f"{encoders['wordpiece']}/model.safetensors")
    del initial["embeddings.word_embeddings.weight"]  # checkpoints hold it in two parts
    for step in (1, 4, 5):
        after = trained.checkpoint(step)
        same = {name for name in initial if torch.equal(after[f"bert.{name}"], initial[name])}
        assert len(same) == (len(initial) if step <= 4 else 0)
        has_state = any(key.startswith("bert.") for key in trained.checkpoint(step, "optimizer"))
        assert has_state == (step > 4)
    assert not torch.equal(trained.checkpoint(1)["classifier.weight"], trained.checkpoint(2)["classifier.weight"])


def test_an_auxiliary_head(encoders, corpus, tmp_path):
    trained = train_and_resume("auxiliary head", tmp_path, encoders["wordpiece"], corpus)
    assert "frozen" not in trained.printed and "packing is off" not in trained.printed
    first, last = trained.checkpoint(1), trained.checkpoint(NUM_STEPS)
    state = trained.checkpoint(1, "optimizer")
    for name in ("entity_head.weight", "entity_head.bias"):
        assert state[f"{name}/exp_avg"].abs().max() > 0
        assert (last[name] - first[name]).abs().max() > LEARNING_RATE
    # It is saved, ignored by transformers, and has learned that most words are outside of entities.
    head, model = trained.weights(), AutoModelForTokenClassification.from_pretrained(trained.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    losses = []
    for sentence in read(corpus["--train_file"]):
        encoded = tokenizer(sentence["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded, output_hidden_states=True).hidden_states[-1][0]
        first = [encoded.word_ids().index(i) for i in range(len(sentence["tokens"]))]
        logits = F.linear(hidden[first], head["entity_head.weight"], head["entity_head.bias"])
        is_entity = torch.tensor([tag != "O" for tag in sentence["tags"]]).long()
        losses.append(F.cross_entropy(logits, is_entity, reduction="none"))
    assert torch.cat(losses).mean() < 0.6  # ln 2 = 0.69 before training


LOG_ROWS = """
import json, data
micro_batches = data.micro_batches
def logged(*args):
    for rows in micro_batches(*args):
        with open("rows", "a") as file:
            file.write(json.dumps(rows) + "\\n")
        yield rows
data.micro_batches = logged
"""


@pytest.mark.slow
def test_weighted_sampling(encoders, corpus, tmp_path):
    """Sentences without an entity, which are half of the corpus here, have the weight 0."""
    sentences = read(corpus["--train_file"])
    for sentence in sentences[::2]:
        sentence["tags"] = ["O"] * len(sentence["tags"])
    write_conll(tmp_path / "train.conll", sentences)
    files = corpus | {"--train_file": str(tmp_path / "train.conll")}
    trained = train_and_resume("weighted sampling", tmp_path, encoders["wordpiece"], files, run_before=LOG_ROWS)
    lines = (trained.project.folder / "rows").read_text().splitlines()
    drawn = [row for line in lines[:4] for row in json.loads(line)]  # of the first epoch
    assert len(drawn) == len(sentences) and len(set(drawn)) < len(drawn)
    assert all(set(sentences[row]["tags"]) != {"O"} for row in drawn)


@pytest.mark.slow
def test_lora(encoders, corpus, tmp_path):
    """The saved model has the adapters merged. Everything but query, value and the head is as it was."""
    trained = train_and_resume("LoRA with peft", tmp_path, encoders["wordpiece"], corpus)
    initial, after = load_file(f"{encoders['wordpiece']}/model.safetensors"), trained.weights()
    assert after.keys() == {f"bert.{name}" for name in initial} | {"classifier.weight", "classifier.bias"}
    changed = {name for name in initial if not torch.equal(after[f"bert.{name}"], initial[name])}
    assert {name.partition("self.")[2] for name in changed} == {"query.weight", "value.weight"}
    log_probabilities, gold = word_log_probabilities(trained.folder, corpus["--validation_file"])
    assert trained.results["eval_loss"] == pytest.approx(F.nll_loss(log_probabilities, gold).item(), rel=1e-4)


# ---- CRF


def marginals_of(logits: torch.Tensor, transitions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The lines of the change, on logits [B, L, C]."""
    found: dict = {"torch": torch}
    added = re.findall(r"^\+(.*)", CHANGES["CRF"].diff.split("@@\n")[1], re.MULTILINE)
    exec("\n".join(added), found)
    output = SimpleNamespace(logits=logits)
    found["crf_marginals"](
        SimpleNamespace(transitions=transitions), (), {"attention_mask": mask, "input_ids": mask}, output
    )
    return output.logits


def test_the_crf_gives_the_marginals_of_all_paths():
    """Against the sum over every path of every row, padding excluded."""
    logits, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    transitions = torch.randn(3, 3)
    found = marginals_of(logits, transitions, mask)
    for row, length in ((0, 4), (1, 2)):
        marginals = torch.zeros(length, 3)
        for path in itertools.product(range(3), repeat=length):
            total = sum(logits[row, t, tag] for t, tag in enumerate(path))
            total += sum(transitions[pair] for pair in itertools.pairwise(path))
            for t, tag in enumerate(path):
                marginals[t, tag] += total.exp()
        expected = (marginals / marginals.sum(-1, keepdim=True)).log()
        torch.testing.assert_close(found[row, :length], expected)


def test_a_crf(still, corpus, tmp_path):
    """In training on a CPU, in evaluation and in infer.py, the chain of a sentence ends at its last subword."""
    trained = train_and_resume("CRF", tmp_path, still, corpus)
    assert trained.printed.count("packing is off, batches are padded: packed and padded logits differ") == 1
    weights = trained.weights()
    assert weights["transitions"].abs().max() > LEARNING_RATE

    # One step on all training sentences at a learning rate of 0, with transitions whose effect is large.
    weights["transitions"] = torch.randn(9, 9)
    shutil.copytree(trained.folder, tmp_path / "strong")
    save_file(weights, tmp_path / "strong" / "model.safetensors", {"format": "pt"})
    losses = {}
    for flag, file in corpus.items():
        log_probabilities, gold = word_log_probabilities(tmp_path / "strong", file, weights["transitions"])
        losses[flag] = F.nll_loss(log_probabilities, gold).item()
    flags = [*flat(corpus), "--model_name_or_path", "strong", "--precision", "fp32", "--output_dir", "again"]
    flags += ["--max_steps", 1, "--learning_rate", 0, "--per_device_train_batch_size", 61]
    trained.project.run("train.py", *flags)
    scores = results(tmp_path / "again")
    assert scores["train_loss"] == pytest.approx(losses["--train_file"], rel=1e-5)
    assert scores["eval_loss"] == pytest.approx(losses["--validation_file"], rel=1e-5)
    assert scores["test_loss"] == pytest.approx(losses["--test_file"], rel=1e-5)
    required = trained.project.start("train.py", *flags, "--overwrite_output_dir", "--packing", "on").wait()
    assert required.code == 2 and required.stderr.startswith("error: --packing on: packed and padded logits differ")

    flags = ["--input_file", corpus["--test_file"], "--evaluate", "--precision", "fp32"]
    evaluated = trained.project.run("infer.py", "again", *flags)
    assert f"loss {scores['test_loss']:.4f}, accuracy {scores['test_accuracy']:.4f}" in evaluated
    assert f"{scores['test_f1']:.4f}" in evaluated.splitlines()[-1]


@pytest.mark.slow
def test_a_crf_on_two_ranks(still, corpus, tmp_path):
    trained = train_and_resume("CRF", tmp_path, still, corpus, ranks=2)
    assert trained.weights()["transitions"].abs().max() > LEARNING_RATE


# ---- logging, metrics, formats

WANDB = """import json
run = None
def init(config):
    global run
    run = config["output_dir"]
def log(values, step):
    with open("wandb." + run, "a") as file:
        file.write(json.dumps([step, values]) + "\\n")
"""


@pytest.mark.slow
def test_weights_and_biases(encoders, corpus, tmp_path):
    """With a substitute for the library: it gets what TensorBoard gets."""
    (tmp_path / "wandb.py").write_text(WANDB)
    trained = train_and_resume("Weights & Biases", tmp_path, encoders["wordpiece"], corpus)
    logged: dict = {}
    for line in (tmp_path / "wandb.straight").read_text().splitlines():
        for name, value in json.loads(line)[1].items():
            logged.setdefault(name, []).append(value)
    assert {name.partition("/")[0] for name in logged} == {"train", "eval", "test"}
    for name, values in logged.items():
        assert values == pytest.approx(trained.scalars(name), rel=1e-6)
    assert len(logged["train/loss"]) == NUM_STEPS and len(logged["eval/f1"]) == 2


def changed_metrics(project: Project):
    spec = importlib.util.spec_from_file_location("changed_metrics", project.folder / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
GOLD = np.array([1, 2, 0, 3, 0, 0, 1, 3, 4, 0])  # PER, LOC | PER | LOC
PREDICTED = np.array([1, 0, 0, 3, 0, 0, 3, 0, 3, 4])
LENGTHS = np.array([4, 2, 0, 1, 3])


@pytest.mark.slow
def test_a_second_metric(encoders, corpus, tmp_path):
    trained = train_and_resume("a second metric", tmp_path, encoders["wordpiece"], corpus)
    scores = changed_metrics(trained.project).score(GOLD, PREDICTED, LENGTHS, LABELS, "IOB2")
    assert scores["whole_sentences"] == 2 / 5  # those of 2 and of 0 words
    assert len(trained.scalars("eval/whole_sentences")) == 2
    assert 0 <= trained.results["test_whole_sentences"] <= 1


@pytest.mark.slow
def test_partial_match_f1(encoders, corpus, tmp_path):
    trained = train_and_resume("partial-match F1", tmp_path, encoders["wordpiece"], corpus)
    scores = changed_metrics(trained.project).score(GOLD, PREDICTED, LENGTHS, LABELS, "IOB2")
    # Predicted: PER (right in part), LOC (right), LOC (is PER), LOC (right in part). Gold: PER, LOC, PER (missed), LOC.
    assert scores["partial_f1"] == pytest.approx(3 / 4)
    assert scores["f1"] == pytest.approx(1 / 4)
    assert trained.scalars("eval/partial_f1")[-1] >= trained.scalars("eval/f1")[-1]
    assert trained.results["test_partial_f1"] >= trained.results["test_f1"]


@pytest.mark.slow
def test_a_new_file_format(encoders, corpus, tmp_path):
    """The copy reads the same sentences as from CoNLL: it prints the same scores, also in infer.py."""
    unchanged = Project(tmp_path / "unchanged")
    flags = ["--model_name_or_path", encoders["wordpiece"], *FLAGS]
    unchanged.run("train.py", *flat(corpus), *flags)
    files = {}
    for flag, path in corpus.items():
        files[flag] = str(tmp_path / f"{flag}.slashes")
        lines = [" ".join(map("/".join, zip(row["tokens"], row["tags"]))) for row in read(path)]
        (tmp_path / f"{flag}.slashes").write_text("\n".join(lines))
    trained = train_and_resume("a new file format", tmp_path / "changed", encoders["wordpiece"], files)
    expected = results(tmp_path / "unchanged" / "outputs")
    for name in ("train_loss", "eval_loss", "test_f1", "test_words"):
        assert trained.results[name] == expected[name]
    file = files["--test_file"]
    evaluated = trained.project.run("infer.py", "straight", "--input_file", file, "--evaluate", "--precision", "fp32")
    assert f"{expected['test_words']:,} words, loss {expected['test_loss']:.4f}" in evaluated
