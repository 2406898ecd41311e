"""train.py on a tiny corpus: what it writes, what it repeats, and that the number of ranks changes nothing."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from conftest import flat, load, results, run, train, weights
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data
import model as modeling
import train as script
from util.pretrained import load_tokenizer


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture
def flags(corpus, encoders):
    return flat(corpus | {"--model_name_or_path": encoders["wordpiece"], "--per_device_train_batch_size": 8})


# ---- pure pieces


@pytest.mark.parametrize(("total", "warmup"), [(100, 0), (100, 10), (7, 7), (1, 0), (33, 1)])
def test_the_learning_rate_is_the_linear_schedule_of_transformers(total, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5e-5)
    reference = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert script.get_lr(step, total, warmup, 5e-5) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


def test_the_dropout_seed_differs_by_step_and_rank_and_repeats():
    seeds = {(s, t, r): script.dropout_seed(s, t, r) for s in (1, 2) for t in range(50) for r in range(4)}
    assert len(set(seeds.values())) == len(seeds)
    assert seeds == {key: script.dropout_seed(*key) for key in seeds}


def test_weight_decay_spares_biases_and_norms(encoders):
    model = modeling.load_model(encoders["wordpiece"], ["O", "B-X"])
    decayed, spared = modeling.parameter_groups(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in spared["params"])
    assert not any(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)


def test_label_maps_have_ints_as_keys_and_weights_are_fp32(encoders):
    model = modeling.load_model(encoders["wordpiece"], ["O", "B-X", "I-X"])
    assert model.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    assert model.config.label2id == {"O": 0, "B-X": 1, "I-X": 2}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_head_is_kept_for_the_same_labels_only(encoders, tmp_path):
    torch.manual_seed(0)
    model = modeling.load_model(encoders["wordpiece"], ["O", "B-X"])
    model.save_pretrained(tmp_path)
    same = modeling.load_model(str(tmp_path), ["O", "B-X"])
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    permuted = modeling.load_model(str(tmp_path), ["B-X", "O"])
    assert not torch.equal(permuted.classifier.weight, model.classifier.weight)
    assert torch.equal(
        permuted.base_model.embeddings.word_embeddings.weight, model.base_model.embeddings.word_embeddings.weight
    )
    assert modeling.load_model(str(tmp_path), ["O", "B-X", "I-X"]).classifier.weight.shape[0] == 3


def test_help_is_one_screen_with_every_flag():
    help = script.make_train_parser().format_help()
    assert len(help.splitlines()) <= 58
    for name in vars(script.get_args([])):
        assert f"--{name} " in help


def test_a_file_of_flags_and_flags_that_win(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\nseed: 7\ngroup_by_length: true\ntest_file: null\n")
    args = script.get_args([str(tmp_path / "run.yaml"), "--seed", "8"])
    assert (args.learning_rate, args.seed, args.group_by_length, args.test_file) == (1e-4, 8, True, None)
    (tmp_path / "run.json").write_text('{"learning_rate": 1e-4, "stride": 3}')
    assert script.get_args([str(tmp_path / "run.json")]).stride == 3


# ---- Trainer


def test_losses_gradients_and_weights_are_those_of_trainer(corpus, encoders, tmp_path):
    """Without dropout, from the same weights, on the same batches: two epochs with warmup, decay and clipping."""
    name = str(shutil.copytree(encoders["wordpiece"], tmp_path / "encoder"))
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | no_dropout))
    out, batch_size, settings = tmp_path / "out", 8, {"learning_rate": 1e-3, "weight_decay": 0.1}
    flags = {"--train_file": corpus["--train_file"], "--model_name_or_path": name, "--precision": "fp32"}
    flags |= {"--output_dir": out, "--num_train_epochs": 2, "--logging_steps": 1, "--max_grad_norm": 3.5}
    flags |= {"--per_device_train_batch_size": batch_size} | {f"--{name}": value for name, value in settings.items()}
    train(*flat(flags))
    events = EventAccumulator(str(out / "runs"))
    events.Reload()
    ours = [[event.value for event in events.Scalars(f"train/{tag}")] for tag in ("loss", "grad_norm")]

    tokenizer = load_tokenizer(name)
    split = load(name, tokenizer.model_max_length, train_file=corpus["--train_file"])[0]["train"]
    torch.manual_seed(42)
    model = modeling.load_model(name, split.label_list)
    epochs = [data.EpochBatches(split.windows.lengths, batch_size, 42, epoch) for epoch in range(2)]
    num_steps = sum(map(len, epochs))
    assert len(split.windows) % batch_size  # the last batch of an epoch is short

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            windows = [split.windows[row] for row in range(len(split.windows))]
            features = [{name: window[name].tolist() for name in ("input_ids", "labels")} for window in windows]
            collator = transformers.DataCollatorForTokenClassification(tokenizer)
            return [collator([features[row] for row in batches[i]]) for batches in epochs for i in range(len(batches))]

    arguments = transformers.TrainingArguments(
        str(tmp_path / "trainer"), max_steps=num_steps, warmup_steps=0.1, max_grad_norm=3.5, logging_steps=1,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = InOrder(model, arguments, train_dataset=[{}])
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    theirs = [[step[name] for step in steps] for name in ("loss", "grad_norm")]
    assert len(steps) == num_steps and max(theirs[1]) > 3.5 > min(theirs[1])  # clipped in some steps
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    start = load_file(tmp_path / "encoder" / "model.safetensors")
    found, expected = weights(out), {name: parameter.detach() for name, parameter in model.named_parameters()}
    # Trainer decays the embeddings of subwords that do not occur, too. They have no effect on the model.
    words = "bert.embeddings.word_embeddings.weight"
    unused = np.setdiff1d(np.arange(len(found[words])), split.token_ids)
    assert 0 < len(unused) < len(found[words]) and torch.equal(found[words][unused], start[words[5:]][unused])
    for tensors in (found, expected):
        tensors[words] = tensors[words][split.token_ids]
    assert largest_difference(found, expected) < 1e-5
    start[words[5:]] = start[words[5:]][split.token_ids]
    moved = max((expected[f"bert.{name}"] - start[name]).abs().max() for name in start if f"bert.{name}" in expected)
    assert moved > 1e-3


# ---- a whole run


def test_a_run_writes_its_files(flags, tmp_path):
    out = tmp_path / "out"
    printed = train(*flags, "--output_dir", out, "--num_train_epochs", 2, "--logging_steps", 4)
    lines = printed.splitlines()
    assert lines[0].startswith("data:    train 61 sentences of ")
    first = next(i for i, line in enumerate(lines) if line.startswith("encoder: "))
    for line, start in zip(lines[first:], ["encoder: ", "compute: cpu, 1 thread, ", "steps:   16 (2 ", "output:  "]):
        assert line.startswith(start)
    assert "batches of 8 x 1 accumulated x 1 rank = 8 sentences a step" in lines[first + 1]
    assert re.search(r"^step 4/16 \| loss .* tokens/s \| 0:\d\d left$", printed, re.MULTILINE)
    assert len(re.findall(r"^step \d+/16 \| eval loss", printed, re.MULTILINE)) == 2
    assert "\x1b" not in printed and "\r" not in printed
    said = [line for line in lines if re.match(r"(step|note|warning|data|encoder|compute|steps|output)\b", line)]
    assert len(set(said)) == len(said) > 10  # nothing is said twice
    found = results(out)
    for name in "epoch train_loss train_runtime train_samples_per_second train_tokens_per_second".split():
        assert math.isfinite(found[name])
    for name in "loss precision recall f1 accuracy words runtime per_entity".split():
        assert f"eval_{name}" in found and f"test_{name}" in found
    assert found["epoch"] == 2 and found["eval_words"] > 100
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert model.config.num_labels == len(model.config.id2label) and tokenizer.is_fast
    assert not [path.name for path in out.iterdir() if path.name.startswith(".") or path.name.endswith(".new")]
    events = EventAccumulator(str(out / "runs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second"} <= tags
    assert {
        f"eval/{name}" for name in ("loss", "precision", "recall", "f1", "accuracy", "words", "runtime", "f1/PER")
    } <= tags
    assert {"test/f1", "test/recall/LOC"} <= tags
    assert len(events.Scalars("train/loss")) == 4 and len(events.Scalars("eval/f1")) == 2

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = train(*flags, "--output_dir", out, "--num_train_epochs", 2, "--logging_steps", 9)
    assert "finished" in again and f"{found['eval_f1']:.4f}" in again and "| loss" not in again
    other = run("train.py", *flags, "--output_dir", out, "--num_train_epochs", 2, "--seed", 43)
    assert other.returncode == 2 and "--seed is 42, not 43" in other.stderr and other.stderr.count("\n") == 1
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    train(*flags, "--output_dir", out, "--max_steps", 3, "--overwrite_output_dir")
    assert results(out)["epoch"] == 3 / 8 and len(list((out / "runs").iterdir())) == 1


def test_the_same_command_gives_the_same_weights_and_so_does_its_config(flags, tmp_path):
    train(*flags, "--output_dir", tmp_path / "a", "--max_steps", 10)
    train(*flags, "--output_dir", tmp_path / "b", "--max_steps", 10)
    train(tmp_path / "a" / "train_config.yaml", "--output_dir", tmp_path / "c")
    assert largest_difference(weights(tmp_path / "a"), weights(tmp_path / "b")) == 0
    assert largest_difference(weights(tmp_path / "a"), weights(tmp_path / "c")) == 0
    assert results(tmp_path / "a")["test_loss"] == results(tmp_path / "c")["test_loss"]
    saved = yaml.safe_load((tmp_path / "a" / "train_config.yaml").read_text())
    assert saved["max_steps"] == 10 and saved["learning_rate"] == 5e-5


def test_edited_data_is_another_run(corpus, encoders, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(Path(corpus["--train_file"]).read_text())
    command = ["--train_file", path, "--model_name_or_path", encoders["wordpiece"], "--max_steps", 1]
    train(*command, "--output_dir", tmp_path / "out")
    path.write_text(path.read_text() + "\nOslo B-LOC\n")
    done = run("train.py", *command, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "its train data differs" in done.stderr


def test_a_foreign_model_is_never_overwritten(flags, encoders, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run("train.py", *flags, "--output_dir", tmp_path)
    assert done.returncode == 2 and "config.json: not from a run of train.py" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_saved_model_is_the_best_one_not_the_last(flags, tmp_path):
    # A learning rate far too high: the first evaluation is better than the later ones.
    command = [*flags, "--output_dir", tmp_path / "out", "--max_steps", 6]
    command += ["--learning_rate", 50, "--warmup_ratio", 0.5]
    printed = train(*command, "--eval_steps", 1, "--metric_for_best_model", "loss", "--early_stopping_patience", 3)
    losses = [float(line.split("eval loss ")[1].split()[0]) for line in printed.splitlines() if "eval loss" in line]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert best < len(losses) - 1 and f"model (step {best + 1}) is in" in printed
    assert results(tmp_path / "out")["eval_loss"] == pytest.approx(losses[best], abs=1e-4)
    assert "stopped early: loss has not improved since step" in printed and len(losses) == best + 4


def test_without_validation_the_last_model_is_kept(corpus, encoders, tmp_path):
    out = tmp_path / "out"
    train(
        "--train_file",
        corpus["--train_file"],
        "--model_name_or_path",
        encoders["wordpiece"],
        "--max_steps",
        2,
        "--output_dir",
        out,
    )
    assert (out / "model.safetensors").exists() and "eval_f1" not in results(out)


def test_parts_of_speech_are_scored_as_plain_tags(encoders, tmp_path):
    out = tmp_path / "out"
    train("--task_name", "pos", "--max_steps", 2, "--model_name_or_path", encoders["wordpiece"], "--output_dir", out)
    found = results(out)
    assert {"NN", "NNP", "VBD"} <= set(found["test_per_entity"])
    assert found["eval_words"] == sum(entity["support"] for entity in found["eval_per_entity"].values())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_tokenizers_and_architectures_train(corpus, encoders, kind, tmp_path):
    train(*flat(corpus), "--model_name_or_path", encoders[kind], "--max_steps", 2, "--output_dir", tmp_path / "out")
    assert results(tmp_path / "out")["eval_words"] == results_words(corpus["--validation_file"])


def results_words(path) -> int:
    return sum(bool(line.strip()) for line in Path(path).read_text().splitlines())


@pytest.mark.parametrize("size", [8, 16, 64])
def test_all_words_of_a_file_are_evaluated_whatever_the_window(flags, corpus, size, tmp_path):
    train(*flags, "--max_steps", 1, "--max_seq_length", size, "--output_dir", tmp_path / "out")
    assert results(tmp_path / "out")["eval_words"] == results_words(corpus["--validation_file"])
    assert results(tmp_path / "out")["test_words"] == results_words(corpus["--test_file"])


@pytest.mark.parametrize("flag", ["--label_all_tokens", "--group_by_length", "--gradient_checkpointing"])
def test_switches_take_effect(corpus, still, flag, tmp_path):
    command = [*flat(corpus), "--model_name_or_path", still, "--max_steps", 4, "--precision", "fp32"]
    train(*command, "--output_dir", tmp_path / "plain")
    train(*command, flag, "--output_dir", tmp_path / "with")
    difference = largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "with"))
    assert difference < 1e-6 if flag == "--gradient_checkpointing" else difference > 1e-5
    assert results(tmp_path / "plain")["eval_words"] == results(tmp_path / "with")["eval_words"]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_benchmark_times_the_real_loop_and_writes_nothing(ranks, corpus, still, tmp_path):
    command = [*flat(corpus), "--model_name_or_path", still, "--precision", "fp32", "--benchmark", 6]
    command += ["--per_device_train_batch_size", 8 // ranks, "--output_dir", tmp_path / "out"]
    figures = json.loads(train(*command, ranks=ranks).strip().splitlines()[-1])
    assert not (tmp_path / "out").exists()
    assert figures["world_size"] == ranks and figures["precision"] == "fp32" and "cpu" in figures["device"]
    splits, _ = load(still, size=128, stride=64, train_file=corpus["--train_file"])
    lengths = splits["train"].windows.lengths
    epochs = [list(data.EpochBatches(lengths, 8, 42, epoch)) for epoch in range(2)]
    steps = [*epochs[0], *epochs[1]][10:16]  # after the warm-up
    tokens, rows = sum(lengths[step].sum() for step in steps), sum(map(len, steps))
    seconds = rows / figures["sentences_per_second"]
    assert figures["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert 0 < figures["step_ms_p50"] <= figures["step_ms_p95"] and 0 <= figures["data_wait"] < 1
    padded = sum(-(-lengths[part].sum() // 8) * 8 for step in steps for part in np.array_split(step, ranks))
    assert figures["padding"] == pytest.approx(1 - tokens / padded)
    # mfu x peak x time is the work: 6 N T + 12 layers width sum(L^2), N of two layers of 32 x 64, and of the head
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 9
    work = 6 * weights * tokens + 12 * 2 * 32 * sum((lengths[step] ** 2).sum() for step in steps)
    assert figures["mfu"] * figures["matmul_peak_tflops"] * 1e12 * seconds == pytest.approx(work)
    assert 0 < figures["floor_ms"] and 0.1 < figures["peak_memory_gib"] < 8


# ---- ranks and accumulation change nothing


@pytest.mark.slow
def test_more_ranks_than_sentences(encoders, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).write_text("Oslo B-LOC\nis O\n")
    files = ["--train_file", tmp_path / "train", "--validation_file", tmp_path / "validation"]
    train(
        *files,
        "--model_name_or_path",
        encoders["wordpiece"],
        "--max_steps",
        2,
        "--output_dir",
        tmp_path / "out",
        ranks=3,
    )
    assert results(tmp_path / "out")["eval_words"] == 2


def test_an_encoder_with_unreached_parameters_trains_on_two_ranks(encoders, corpus, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoders["wordpiece"])
    config = transformers.XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64)
    transformers.XLNetModel(config).save_pretrained(tmp_path / "xlnet")
    tokenizer.save_pretrained(tmp_path / "xlnet")
    command = [*flat(corpus), "--model_name_or_path", tmp_path / "xlnet", "--max_steps", 3]
    train(*command, "--output_dir", tmp_path / "out", ranks=2)
    before, after = load_file(tmp_path / "xlnet" / "model.safetensors"), weights(tmp_path / "out")
    assert torch.equal(before["mask_emb"], after["transformer.mask_emb"])
    assert not torch.equal(before["layer.0.rel_attn.q"], after["transformer.layer.0.rel_attn.q"])


@pytest.mark.slow
def test_a_finished_run_prints_its_results_on_two_ranks(flags, tmp_path):
    for _ in range(2):
        printed = train(*flags, "--max_steps", 1, "--output_dir", tmp_path / "out", ranks=2)
    assert "finished" in printed


def test_half_precision_trains_close_to_full(corpus, still, tmp_path):
    command = [*flat(corpus), "--model_name_or_path", still, "--max_steps", 8]
    for precision in ("fp32", "bf16"):
        train(*command, "--precision", precision, "--output_dir", tmp_path / precision)
    losses = [results(tmp_path / precision)["train_loss"] for precision in ("fp32", "bf16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_first_loss_is_that_of_the_head_of_transformers(corpus, still, tmp_path):
    flags = [
        "--model_name_or_path",
        still,
        "--per_device_train_batch_size",
        61,
        "--max_steps",
        1,
        "--precision",
        "fp32",
    ]
    train(*flat(corpus), *flags, "--output_dir", tmp_path / "out")
    splits, label_list = load(still, size=128, stride=64, train_file=corpus["--train_file"])
    windows = splits["train"].windows
    torch.manual_seed(42)
    model = modeling.load_model(still, label_list).eval()
    batch = data.collate([windows[i] for i in range(len(windows))], windows.pad_values(model.config.pad_token_id))
    assert results(tmp_path / "out")["train_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_of_equal_scores_the_lower_loss_is_better():
    best = {"f1": 0.0, "loss": 1.6}
    assert script.is_better({"f1": 0.0, "loss": 1.2}, best, "f1") and not script.is_better(best, best, "f1")
    assert not script.is_better({"f1": 0.0, "loss": 1.7}, best, "f1")
    assert script.is_better({"f1": 0.1, "loss": 1.7}, best, "f1") and script.is_better(best, {}, "f1")
    assert script.is_better({"f1": 0.0, "loss": 1.5}, best, "loss")
