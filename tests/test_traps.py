"""Changes that look harmless and once had no effect, broke a run later, or gave other results without a message."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CACHE, flat, read, results, train, weights
from copies import KILL, Project
from seqeval.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_changes import make_change
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    XLNetConfig,
    XLNetForTokenClassification,
)

import infer
import model as modeling
import train as script
from util.fast_paths import choose_packing, enable_packing
from util.nonfinite import NonFiniteGuard
from util.unreached import freeze_unreached_parameters

CPU = torch.device("cpu")
ADAMW = torch.optim.AdamW


class Killed(BaseException):
    """Ends a run in this process between two steps, as SIGKILL does: nothing more is written."""


@pytest.fixture
def flags(corpus, encoders):
    """Six steps on 61 sentences, in fp32 and without evaluation."""
    files = {"--train_file": corpus["--train_file"], "--model_name_or_path": encoders["wordpiece"]}
    return flat(files | {"--max_steps": 6, "--save_steps": 2, "--learning_rate": "1e-2", "--precision": "fp32"})


def at_each_step(monkeypatch, function) -> None:
    """Calls the function with the index of every training step, before its forward pass."""
    dropout_seed = script.dropout_seed

    def called(seed, step, rank):
        function(step)
        return dropout_seed(seed, step, rank)

    monkeypatch.setattr(script, "dropout_seed", called)


def parameters_of(optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# ---- parameter groups


def groups_with_rates(model, weight_decay) -> list[dict]:
    """The head, two encoder layers and the rest, with rates of their own."""
    first, second = ([*layer.parameters()] for layer in model.base_model.encoder.layer)
    head = [*model.classifier.parameters()]
    others = {id(p) for p in (*first, *second, *head)}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    return [
        {"params": rest, "weight_decay": 0.0},
        {"params": first, "weight_decay": 0.0, "lr": 2e-3},
        {"params": second, "weight_decay": 0.0, "lr": 4e-3, "lr_scale": 0.5},
        {"params": head, "weight_decay": 0.0, "lr_scale": 3.0},
    ]


PEAKS = [1e-2, 2e-3, 2e-3, 3e-2]  # of these groups, with --learning_rate 1e-2


@pytest.fixture
def optimizers(monkeypatch) -> list:
    """All optimizers that the test makes. AdamW notes the rates of every step in `rates`, and its first update."""
    made = []

    class NotedAdamW(ADAMW):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.rates, self.updates = [], []
            made.append(self)

        def step(self, *args, **kwargs):
            self.rates.append([group["lr"] for group in self.param_groups])
            before = [p.detach().clone() for p in parameters_of(self)]
            super().step(*args, **kwargs)
            if not self.updates:
                self.updates = [(p - old).abs().max().item() for p, old in zip(parameters_of(self), before)]

    monkeypatch.setattr(torch.optim, "AdamW", NotedAdamW)
    return made


def test_a_group_keeps_its_learning_rate(flags, monkeypatch, optimizers, tmp_path):
    monkeypatch.setattr(modeling, "parameter_groups", groups_with_rates)
    train(*flags, "--output_dir", tmp_path, "--warmup_ratio", 0, "--logging_steps", 1)
    (optimizer,) = optimizers
    for step, rates in enumerate(optimizer.rates):
        assert rates == pytest.approx([script.get_lr(step, 6, 0, peak) for peak in PEAKS], rel=1e-12)
    assert len(optimizer.rates) == 6
    # The first update of Adam is the rate, for every weight whose gradient is not tiny.
    updates = iter(optimizer.updates)
    for group, peak in zip(optimizer.param_groups, PEAKS):
        assert max(next(updates) for _ in group["params"]) == pytest.approx(peak, rel=1e-2)
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    logged = [event.value for event in events.Scalars("train/learning_rate")]
    assert logged == pytest.approx([max(rates) for rates in optimizer.rates], rel=1e-6)


def test_a_resumed_run_uses_the_rates_of_its_groups(flags, monkeypatch, optimizers, tmp_path):
    monkeypatch.setattr(modeling, "parameter_groups", groups_with_rates)
    train(*flags, "--output_dir", tmp_path / "straight")

    def kill(step):
        if step == 4 and len(optimizers) == 2:
            raise Killed

    at_each_step(monkeypatch, kill)
    with pytest.raises(Killed):
        train(*flags, "--output_dir", tmp_path / "killed")
    assert "resumed from" in train(*flags, "--output_dir", tmp_path / "killed")
    straight, killed, resumed = (optimizer.rates for optimizer in optimizers)
    assert killed + resumed == straight


# ---- another optimizer in the line that makes AdamW

OPTIMIZERS = {
    "AdamW": lambda groups, lr: ADAMW(groups, lr=lr, fused=True),
    "AdamW, not fused": lambda groups, lr: ADAMW(groups, lr=lr),
    "SGD": lambda groups, lr: torch.optim.SGD(groups, lr=lr),
    "SGD with momentum": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
    "SGD with momentum, fused": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True),
    "Adafactor": lambda groups, lr: torch.optim.Adafactor(groups, lr=lr),
    "NAdam": lambda groups, lr: torch.optim.NAdam(groups, lr=lr),
    "RMSprop": lambda groups, lr: torch.optim.RMSprop(groups, lr=lr, momentum=0.5),
    "Adagrad, fused": lambda groups, lr: torch.optim.Adagrad(groups, lr=lr, fused=True),
}


def use_optimizer(monkeypatch, name: str) -> list:
    """Puts the optimizer into train.py's line. Returns the list of those that are made."""
    made = []

    def make(groups, lr, fused):
        made.append(OPTIMIZERS[name](groups, lr))
        return made[-1]

    monkeypatch.setattr(torch.optim, "AdamW", make)
    return made


# No state, state from the first step or from the first gradient on, factored or fused. The others are kinds of these.
RESUMED = ("AdamW", "SGD", "SGD with momentum", "SGD with momentum, fused", "Adafactor", "Adagrad, fused")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in RESUMED else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_any_optimizer_resumes_exactly(name, flags, monkeypatch, tmp_path):
    """The first layer is frozen for three steps. The run is killed before and after it is trained.

    torch 2.13: the fused SGD raises TypeError if only some parameters have a momentum so far.
    """
    optimizers, kills = use_optimizer(monkeypatch, name), []

    def freeze_then_kill(step):
        names = {id(p) for p in models[-1].base_model.encoder.layer[0].parameters()}
        for parameter in parameters_of(optimizers[-1]):
            if id(parameter) in names:
                parameter.requires_grad_(step >= 3 or name == "SGD with momentum, fused")
        if step in kills:
            kills.remove(step)
            raise Killed

    models = []
    load_model = modeling.load_model
    monkeypatch.setattr(
        modeling, "load_model", lambda *args, **kw: models.append(load_model(*args, **kw)) or models[-1]
    )
    at_each_step(monkeypatch, freeze_then_kill)
    train(*flags, "--output_dir", tmp_path / "straight")
    kills += [3, 5]
    for _ in range(2):
        with pytest.raises(Killed):
            train(*flags, "--output_dir", tmp_path / "killed")
    printed = train(*flags, "--output_dir", tmp_path / "killed")
    assert re.search(r"resumed from \S+step-00000004", printed) and "warning" not in printed
    straight, resumed, initial = weights(tmp_path / "straight"), weights(tmp_path / "killed"), models[0]
    assert {key for key in straight if not torch.equal(straight[key], resumed[key])} == set()
    assert results(tmp_path / "straight")["train_loss"] == results(tmp_path / "killed")["train_loss"]
    saved = AutoModelForTokenClassification.from_pretrained(initial.config.name_or_path).state_dict()
    for layer in (0, 1):
        key = f"bert.encoder.layer.{layer}.output.dense.weight"
        assert not torch.equal(straight[key], saved[key])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_stops_before_an_update_that_is_not_finite(name, flags, monkeypatch, capsys, tmp_path):
    optimizers = use_optimizer(monkeypatch, name)
    token_loss, seen = modeling.token_loss, []

    def broken_loss(*args, **kwargs):
        seen.append([p.detach().clone() for p in parameters_of(optimizers[-1])])
        return token_loss(*args, **kwargs) * (float("nan") if len(seen) == 3 else 1)

    monkeypatch.setattr(modeling, "token_loss", broken_loss)
    with pytest.raises(SystemExit) as stopped:
        train(*flags, "--output_dir", tmp_path, "--warmup_ratio", 0)
    assert stopped.value.code == 1
    assert "error: step 3: the loss or its gradient is not finite. Its sentences: " in capsys.readouterr().err
    first, second, last = seen
    assert any(not torch.equal(a, b) for a, b in zip(first, second))
    assert all(torch.equal(a, b) for a, b in zip(last, parameters_of(optimizers[-1])))
    assert all(p.isfinite().all() for p in last)


@pytest.mark.parametrize("fused", [True, False])
def test_no_later_step_changes_weights_either(fused):
    """On a GPU, training stops at the next log line, some steps behind the one that was not finite."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
    guard = NonFiniteGuard(optimizer, CPU)
    for step, value in enumerate((1.0, math.nan, 1.0)):
        weight.grad = torch.full((3,), value)
        if guard.allows_step(weight.grad.norm(), step):
            optimizer.step()
    assert weight.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="^step 2: .* not finite. Its sentences: row 7$"):
        guard.raise_if_nonfinite(lambda epoch: [[6], [7], [8]], 3, lambda row: f"row {row}")


# ---- one definition of the loss


def smoothed(logits, labels, reduction="sum"):
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction=reduction, label_smoothing=0.3)


def weighted(logits, labels, reduction="sum"):
    weight = torch.full((logits.shape[-1],), 2.0)
    weight[0] = 0.5
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), weight, reduction=reduction)


def focal(logits, labels, reduction="sum"):
    losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
    losses = (1 - torch.exp(-losses)) ** 2 * losses
    return losses.sum() if reduction == "sum" else losses


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("loss", [smoothed, weighted, focal])
def test_training_and_evaluation_report_the_same_loss(loss, packing, still, corpus, monkeypatch, capsys, tmp_path):
    """Without dropout and at a learning rate of 0, a step on all sentences of a file has the loss of an evaluation."""
    file = corpus["--validation_file"]
    flags = ["--train_file", file, "--validation_file", file, "--model_name_or_path", still, "--max_steps", 1]
    flags += ["--per_device_train_batch_size", 23, "--learning_rate", 0, "--precision", "fp32", "--packing", packing]
    train(*flags, "--output_dir", tmp_path / "unchanged")
    monkeypatch.setattr(modeling, "token_loss", loss)
    train(*flags, "--output_dir", tmp_path / "changed")
    before, after = results(tmp_path / "unchanged"), results(tmp_path / "changed")
    assert before["train_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    assert after["train_loss"] == pytest.approx(after["eval_loss"], rel=1e-5)
    assert abs(after["eval_loss"] / before["eval_loss"] - 1) > 1e-4
    command = ["infer.py", f"{tmp_path}/changed", "--input_file", file, "--evaluate", "--precision", "fp32"]
    monkeypatch.setattr("sys.argv", command)
    infer.main()
    assert f"loss {after['eval_loss']:.4f}," in capsys.readouterr().out


# ---- which subword represents a word

PRINT_LABELS = """
import json, sys, data
from util.pretrained import load_encoder
args = data.get_args(sys.argv[1:])
split = data.load_splits(args, load_encoder(args.model_name_or_path, None)[1])["train"]
print(json.dumps([{name: values.tolist() for name, values in window.items()} for window in split.windows]))
"""


def test_training_evaluation_and_tagging_agree_on_the_subword_of_a_word(corpus, encoders, tmp_path):
    project = Project(tmp_path)
    make_change(project, "the last subword of a word")
    encoder, file = encoders["wordpiece"], corpus["--validation_file"]
    flags = ["--train_file", corpus["--train_file"], "--validation_file", file, "--model_name_or_path", encoder]
    project.run("train.py", *flags, "--max_steps", 60, "--learning_rate", "3e-3", "--precision", "fp32")
    scores = results(tmp_path / "outputs")
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    # Training: the labels are on the last subwords.
    windows = json.loads(project.run("data.py", *flags[:2], *flags[4:], before=PRINT_LABELS).splitlines()[0])
    sentences = read(corpus["--train_file"])
    assert len(windows) == len(sentences)
    id2label = json.loads((tmp_path / "outputs" / "config.json").read_text())["id2label"]
    label_list = [id2label[str(i)] for i in range(len(id2label))]
    for window, sentence in zip(windows, sentences):
        _, last = subwords_of(tokenizer, sentence["tokens"])
        labeled = [i for i, label in enumerate(window["labels"]) if label != -100]
        assert labeled == last
        assert [label_list[window["labels"][i]] for i in labeled] == sentence["tags"]

    # Evaluation and tagging: the tags are those of transformers at the last subwords.
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "outputs").eval()
    gold, at_first, at_last = [], [], []
    for sentence in read(file):
        first, last = subwords_of(tokenizer, sentence["tokens"])
        encoded = tokenizer(sentence["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**encoded).logits[0].argmax(-1)
        gold.append(sentence["tags"])
        at_first.append([label_list[i] for i in predicted[first]])
        at_last.append([label_list[i] for i in predicted[last]])
    assert at_first != at_last
    assert scores["eval_f1"] == pytest.approx(f1_score(gold, at_last), abs=1e-9) and scores["eval_f1"] > 0
    shutil.copy(file, tmp_path / "words.conll")  # infer.py recognizes CoNLL by its suffix
    input_flags = ["outputs", "--input_file", "words.conll", "--precision", "fp32"]
    evaluated = project.run("infer.py", *input_flags, "--evaluate")
    assert f"accuracy {scores['eval_accuracy']:.4f}" in evaluated and f"loss {scores['eval_loss']:.4f}" in evaluated
    for strategy in ("simple", "first"):
        printed = project.run("infer.py", *input_flags, "--format", "conll", "--aggregation_strategy", strategy)
        sentences = re.split(r"\n\n+", printed.strip())
        tagged = [[line.split()[-1] for line in sentence.splitlines()] for sentence in sentences]
        assert tagged == at_last


def subwords_of(tokenizer, words: list[str]) -> tuple[list[int], list[int]]:
    """The positions of the first and of the last subword of every word."""
    ids = tokenizer(words, is_split_into_words=True).word_ids()
    first = {word: i for i, word in reversed([*enumerate(ids)]) if word is not None}
    last = {word: i for i, word in enumerate(ids) if word is not None}
    return [first[word] for word in sorted(first)], [last[word] for word in sorted(last)]


# ---- packing


class Mixer(nn.Module):
    """x [B, L, H] -> x + mix(x): a module that mixes the tokens of a row."""

    def __init__(self, kind: str, size: int):
        super().__init__()
        self.kind = kind
        if kind == "LSTM":
            self.mix = nn.LSTM(size, size // 2, bidirectional=True, batch_first=True)
        elif kind.endswith("convolution"):
            self.mix = nn.Conv1d(size, size, 3, padding=1)
            self.gate = nn.Parameter(torch.tensor(-20.0 if kind == "gated convolution" else 20.0))  # closed or open
        else:
            self.mix = nn.MultiheadAttention(size, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind.endswith("convolution"):
            return x + self.gate.sigmoid() * self.mix(x.mT).mT
        if self.kind == "LSTM":
            return x + self.mix(x)[0]
        return x + self.mix(x, x, x)[0]


def small_model() -> BertForTokenClassification:
    config = BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    torch.manual_seed(0)
    return BertForTokenClassification(config)


def attach(model, kind: str) -> nn.Module:
    """Attaches a module behind or in the encoder that mixes tokens. Returns what holds its weights."""
    if kind == "CRF":
        model.crf = nn.Linear(3, 3, bias=False)

        def hook(model, args, output):
            neighbors = output.logits.roll(1, dims=1)
            output.logits = output.logits + model.crf(neighbors)

        model.register_forward_hook(hook)
        return model.crf
    mixer = Mixer(kind.removesuffix(" in the encoder"), 16)
    if kind.endswith("in the encoder"):
        model.bert.encoder.layer[1].output.dense = nn.Sequential(model.bert.encoder.layer[1].output.dense, mixer)
    else:
        model.classifier = nn.Sequential(mixer, model.classifier)
    return mixer


def snapshot(model) -> tuple:
    """Everything that a trial of packing might change."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    return weights, (modes, gradients, model.config._attn_implementation, torch.get_rng_state().tolist())


MIXERS = ["CRF", "LSTM", "convolution", "gated convolution", "attention"]
MIXERS += ["LSTM in the encoder", "convolution in the encoder"]


@pytest.mark.parametrize("scale", [1, 1e-6, 0], ids=["random", "tiny", "zero"])
@pytest.mark.parametrize("kind", MIXERS)
def test_packing_is_refused_if_a_module_mixes_tokens(kind, scale):
    """Also if the module is initialized so that it has no effect at first."""
    model = small_model()
    for parameter in attach(model, kind).parameters():
        parameter.data *= scale
    model.train()
    weights, others = snapshot(model)
    lines = []
    assert choose_packing("auto", model, 128, False, CPU, lines.append) is None
    (line,) = lines
    assert re.fullmatch(r"note: packing is off, batches are padded: packed and padded logits differ by up to \S+", line)
    with pytest.raises(ValueError, match="^--packing on: packed and padded logits differ by up to .*--packing off"):
        choose_packing("on", model, 128, False, CPU, lines.append)
    assert choose_packing("off", model, 128, False, CPU, lines.append) is None and len(lines) == 1
    weights_now, others_now = snapshot(model)
    assert others_now == others
    assert all(torch.equal(weights_now[name], weights[name]) for name in weights)


def test_packing_is_accepted_and_changes_only_the_attention():
    model = small_model()
    model.classifier = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))  # a head that mixes no tokens
    nn.init.zeros_(model.bert.encoder.layer[0].output.dense.weight)
    model.train()
    weights, (modes, gradients, _, rng_state) = snapshot(model)
    packing, _ = enable_packing(model, 128)
    assert packing is not None
    weights_now, others_now = snapshot(model)
    assert others_now == (modes, gradients, "packed_sdpa", rng_state)
    assert all(torch.equal(weights_now[name], weights[name]) for name in weights)


def test_packing_is_refused_for_an_encoder_that_raises():
    model = small_model()

    def forward(*args, packing_plan=None, **kwargs):
        if packing_plan is not None:
            raise TypeError("unknown\nargument")
        return BertForTokenClassification.forward(model, *args, **kwargs)

    model.forward = forward
    model.train()
    _, before = snapshot(model)
    assert enable_packing(model, 128) == (None, "TypeError: unknown argument")
    assert snapshot(model)[1] == before


@pytest.fixture
def collated(monkeypatch) -> list[str]:
    """Which function made each training batch."""
    made = []
    packed_collate = script.packed_collate
    monkeypatch.setattr(script, "packed_collate", lambda *args: made.append("packed") or packed_collate(*args))
    split_labels = script.data.split_labels

    def noted(batch):
        if "attention_mask" in batch:
            made.append("padded")
        return split_labels(batch)

    monkeypatch.setattr(script.data, "split_labels", noted)
    return made


def test_packing_can_be_switched_off_and_required(flags, monkeypatch, collated, capsys, tmp_path):
    assert "packing is off" not in train(*flags, "--output_dir", tmp_path / "auto")
    assert set(collated) == {"packed"}
    collated.clear()
    assert "packing is off" not in train(*flags, "--packing", "off", "--output_dir", tmp_path / "off")
    assert set(collated) == {"padded"}
    collated.clear()
    load_model = modeling.load_model

    def with_crf(*args, **kwargs):
        model = load_model(*args, **kwargs)
        model.crf = nn.Linear(model.num_labels, model.num_labels, bias=False)
        nn.init.zeros_(model.crf.weight)
        model.register_forward_hook(lambda model, args, output: mix_neighbors(model, output))
        return model

    def mix_neighbors(model, output):
        output.logits = output.logits + model.crf(output.logits.roll(1, dims=1))

    monkeypatch.setattr(modeling, "load_model", with_crf)
    printed = train(*flags, "--output_dir", tmp_path / "crf")
    assert printed.count("packing is off, batches are padded: packed and padded logits differ") == 1
    assert set(collated) == {"padded"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(*flags, "--packing", "on", "--output_dir", tmp_path / "on")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --packing on: packed and padded logits differ by up to ")
    assert not any((tmp_path / "on").iterdir())


# ---- parameters that no logit depends on


def test_what_is_frozen_is_logged_and_an_attached_head_is_not_frozen():
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=3)
    model = XLNetForTokenClassification(config)
    model.auxiliary_head = nn.Linear(16, 2)
    model.train()
    lines = []
    freeze_unreached_parameters(model, 64, modeling.make_autocast("fp32", CPU), lines.append)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "transformer.mask_emb" in frozen and len(lines) == 1
    assert lines[0].startswith("note: frozen, since no logit depends on them: ")
    assert set(lines[0].rpartition(": ")[2].split(", ")) == frozen
    assert all(name.startswith("transformer.") for name in frozen)
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_nothing_is_logged_where_all_parameters_are_reached():
    lines = []
    freeze_unreached_parameters(small_model(), 64, modeling.make_autocast("fp32", CPU), lines.append)
    assert lines == []


# ---- random numbers


def test_the_shared_seed_is_no_dropout_seed_and_does_not_depend_on_the_rank(monkeypatch):
    steps = range(40)
    shared = {(seed, step): script.shared_seed(seed, step) for seed in (0, 1, 42, 2**40) for step in steps}
    assert len(set(shared.values())) == len(shared)
    of_ranks = {script.dropout_seed(seed, step, rank) for seed, step in shared for rank in range(16)}
    assert not of_ranks & set(shared.values())
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        assert shared == {key: script.shared_seed(*key) for key in shared}


# ---- code that changes between runs

WARNING = "warning: the code has changed since this run was made"


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def test_an_output_folder_of_other_code_gives_a_warning(project, flags):
    """A comment, a docstring or a new flag does not count. Killed and finished runs both warn."""
    killed = project.start("train.py", *flags, before=KILL.format(step=4)).wait()
    assert killed.code == -9
    project.edit("metrics.py", ("# Scores\n", "# Scores of a split\n"))
    project.edit("train.py", ('"""Linear warmup from 0', '"""Warmup from 0'))
    resumed = project.start("train.py", *flags, before=KILL.format(step=5)).wait()
    assert "resumed from" in resumed.stdout and WARNING not in resumed.stdout
    edit_flag = '    add("--max_grad_norm", '
    flag = '    add("--{}_flag", type=float, default=1.0, help="a factor")\n'
    project.edit("train.py", (edit_flag, flag.format("new") + edit_flag))
    resumed = project.run("train.py", *flags)
    assert "resumed from" in resumed and resumed.count(WARNING) == 1

    finished = project.run("train.py", *flags)
    assert "already contains this finished run" in finished and WARNING not in finished
    project.edit("train.py", (edit_flag, flag.format("other") + edit_flag))
    finished = project.run("train.py", *flags)
    assert "already contains this finished run" in finished and finished.count(WARNING) == 1
    refused = project.start("train.py", *flags, "--other_flag", 2).wait()
    assert refused.code == 2 and "holds another run: its --other_flag is 1.0, not 2.0" in refused.stderr


EDIT_AT_STEP_3 = """
import pathlib, train
original_seed = train.dropout_seed
def dropout_seed(seed, step, rank):
    if step == 3:
        path = pathlib.Path("metrics.py")
        path.write_text(path.read_text() + "\\nEDITED = True\\n")
    return original_seed(seed, step, rank)
train.dropout_seed = dropout_seed
"""


def test_code_that_is_edited_during_a_run_is_other_code(project, flags):
    """What a run computes is the code that it began with."""
    flags = [*flags, "--save_steps", 4]  # the first checkpoint is written behind the edit
    project.run("train.py", *flags, before=EDIT_AT_STEP_3)
    assert project.run("train.py", *flags).count(WARNING) == 1
    state = json.loads((project.folder / "outputs" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["code"] == results(project.folder / "outputs")["code"]


def cache_files() -> set[str]:
    return {path.name for path in Path(CACHE.name).rglob("*.arrow")}


def test_only_code_that_computes_something_else_invalidates_the_cache(project, corpus, encoders):
    flags = ["--train_file", corpus["--train_file"], "--model_name_or_path", encoders["wordpiece"], "--stride", 7]
    project.run("data.py", *flags)
    before = cache_files()
    project.edit("data.py", ("# Words -> subwords -> windows -> labels", "# Subwords, windows, labels"))
    project.edit("data.py", ('    """word_ids [L] (-1: no word) -> bool [L], True', '    """word_ids [L] -> [L], True'))
    project.edit("util/tokenizer.py", ('    """What to put before a word ', '    """The characters before a word '))
    project.run("data.py", *flags)
    assert cache_files() == before
    old = json.loads(project.run("data.py", *flags, before=PRINT_LABELS).splitlines()[0])
    align = "np.where(first_subwords(word_ids), tags[word_ids], others)"
    project.edit("data.py", (align, align.replace("tags[word_ids]", "np.maximum(tags[word_ids], 1)")))
    new = json.loads(project.run("data.py", *flags, before=PRINT_LABELS).splitlines()[0])
    assert cache_files() > before
    for window in old:
        window["labels"] = [1 if label == 0 else label for label in window["labels"]]
    assert new == old


# ---- a second column of labels

STRICT_MODEL = """
import transformers
forward = transformers.BertForTokenClassification.forward
def strict_forward(self, *args, **kwargs):
    assert "type_labels" not in kwargs, "BERT ignores unknown arguments, other encoders raise an error"
    return forward(self, *args, **kwargs)
transformers.BertForTokenClassification.forward = strict_forward
"""
NOTE_BATCHES = """
import json, os, data
split_labels = data.split_labels
def noted(batch):
    inputs, labels = split_labels(batch)
    line = {name: values.tolist() for name, values in labels.items()}
    line["inputs"] = sorted(inputs)
    line["padding"] = batch["attention_mask"].eq(0).tolist() if "attention_mask" in batch else None
    with open(f"batches.{os.environ.get('RANK', 0)}", "a") as file:
        file.write(json.dumps(line) + "\\n")
    return inputs, labels
data.split_labels = noted
"""


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_second_column_of_labels_reaches_the_loop(packing, project, corpus, encoders):
    """61 sentences in steps of 30: the last step has one, and none for the second rank."""
    flags = [*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--precision", "fp32", "--packing", packing]
    flags += ["--max_steps", 3, "--per_device_train_batch_size", 15]
    project.run("train.py", *flags, "--output_dir", "unchanged", ranks=2)
    make_change(project, "a second column of labels")
    project.run("train.py", *flags, "--output_dir", "changed", ranks=2, before=STRICT_MODEL + NOTE_BATCHES)
    num_labeled = 0
    for rank in range(2):
        lines = [json.loads(line) for line in (project.folder / f"batches.{rank}").read_text().splitlines()]
        assert len(lines) == 3
        for line in lines:
            assert "type_labels" not in line["inputs"] and "labels" not in line["inputs"]
            labels, type_labels = np.array(line["labels"]), np.array(line["type_labels"])
            assert (type_labels == np.where(labels == -100, -100, (labels + 1) // 2)).all()
            if packing == "off":
                assert (type_labels[np.array(line["padding"])] == -100).all()
            num_labeled += (type_labels != -100).sum()
        last = np.array(lines[-1]["type_labels"])
        assert (last != -100).any() == (rank == 0)
    assert num_labeled == sum(len(sentence["tokens"]) for sentence in read(corpus["--train_file"]))
    before, after = results(project.folder / "unchanged"), results(project.folder / "changed")
    same = {name for name in before if "runtime" not in name and "per_second" not in name and name != "code"}
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    command = ["changed", "--input_file", corpus["--test_file"], "--evaluate", "--precision", "fp32"]
    assert f"words, loss {before['test_loss']:.4f}, accuracy" in project.run("infer.py", *command, before=STRICT_MODEL)
