"""--fsdp on two ranks: the losses and files of DDP, and half of its memory."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import flat, results, run, train, weights
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FLAGS = ["--max_steps", 50, "--save_steps", 25, "--eval_steps", 25, "--logging_steps", 1, "--learning_rate", "1e-3"]
FLAGS += ["--save_total_limit", 5, "--early_stopping_patience", 9]


def launch(folder, flags, corpus, encoder, *more, ranks=2, batch=8, precision="fp32") -> SimpleNamespace:
    """Runs train.py. Returns its folder, the loss of each step, what each rank held, and the output."""
    common = [*flat(corpus), *FLAGS, "--model_name_or_path", encoder, "--precision", precision]
    common += ["--per_device_train_batch_size", batch // ranks, "--output_dir", folder, *flags]
    script = ["tests/sharded.py", f"{folder}.held"] if ranks > 1 else ["train.py"]
    done = run(*script, *common, *more, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    events = EventAccumulator(str(folder / "runs")).Reload().Scalars("train/loss")
    held = [
        json.loads((folder.parent / f"{folder.name}.held.{rank}").read_text()) for rank in range(ranks * (ranks > 1))
    ]
    return SimpleNamespace(folder=folder, losses=[e.value for e in events], held=held, output=done.stdout + done.stderr)


@pytest.fixture(scope="module")
def ddp(corpus, still, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("ddp") / "out", [], corpus, still)


@pytest.fixture(scope="module")
def fsdp(corpus, still, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("fsdp") / "out", ["--fsdp"], corpus, still)


def same(one: dict, other: dict, limit: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].shape == other[name].shape and one[name].dtype == other[name].dtype, name
        assert (one[name] - other[name]).abs().max() < limit, name


def test_losses_results_and_files_are_those_of_ddp(ddp, fsdp):
    assert len(ddp.losses) == len(fsdp.losses) == 50
    assert max(abs(a - b) for a, b in zip(ddp.losses, fsdp.losses)) < 1e-5
    assert ddp.losses[-1] < ddp.losses[0] / 1.2
    for name in ("eval_per_entity", "test_per_entity", "eval_words", "world_size"):
        assert results(ddp.folder)[name] == results(fsdp.folder)[name]
    names = [
        {str(p.relative_to(ran.folder)) for p in ran.folder.rglob("*") if "events" not in p.name} for ran in (ddp, fsdp)
    ]
    assert names[0] == names[1]
    same(weights(ddp.folder), weights(fsdp.folder), 1e-5)
    for step in (25, 50):
        for file in ("model", "optimizer"):
            path = f"checkpoints/step-{step:08}/{file}.safetensors"
            same(load_file(ddp.folder / path), load_file(fsdp.folder / path), 1e-5)
    config = json.loads((fsdp.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert "Warning" not in fsdp.output


def test_each_rank_holds_half_and_only_rank_0_holds_the_whole_model(ddp, fsdp):
    for ours, whole in zip(fsdp.held, ddp.held):
        for part, all_of_it in zip(ours["bytes"], whole["bytes"], strict=True):
            assert 0.48 < part / all_of_it < 0.53
    assert [rank["loaded"] for rank in fsdp.held] == [
        ["cpu", "cpu"],
        ["meta", "meta"],
    ]  # the model to train, and the best one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "ranks"), [("fsdp", [], 2), ("fsdp", [], 1), ("ddp", ["--fsdp"], 2), ("fsdp", ["--fsdp"], 2)]
)
def test_ddp_and_fsdp_resume_from_checkpoints_of_each_other(first, then, ranks, ddp, fsdp, corpus, still, tmp_path):
    ran = {"ddp": ddp, "fsdp": fsdp}[first]
    leave = shutil.ignore_patterns("all_results.json", "step-00000050", "runs")  # as after a kill
    shutil.copytree(ran.folder, tmp_path / "out", ignore=leave)
    resumed = launch(tmp_path / "out", then, corpus, still, ranks=ranks)
    assert re.search("resumed from .*step-00000025", resumed.output) and len(resumed.losses) == 25
    assert max(abs(a - b) for a, b in zip(resumed.losses, ran.losses[25:])) < 1e-5
    same(weights(tmp_path / "out"), weights(ran.folder), 1e-5)
    assert results(tmp_path / "out")["train_loss"] == pytest.approx(results(ran.folder)["train_loss"], abs=1e-5)


@pytest.mark.slow
def test_fsdp_with_accumulation_dropout_and_bf16(corpus, encoders, still, ddp, tmp_path):
    accumulated = launch(tmp_path / "a", ["--fsdp", "--gradient_accumulation_steps", 2], corpus, still, batch=4)
    assert max(abs(a - b) for a, b in zip(accumulated.losses, ddp.losses)) < 1e-5
    options = [corpus, encoders["wordpiece"]]
    with_dropout = [launch(tmp_path / f"d{i}", flags, *options) for i, flags in enumerate(([], ["--fsdp"]))]
    assert max(abs(a - b) for a, b in zip(*(ran.losses for ran in with_dropout))) < 1e-4
    half = launch(tmp_path / "b", ["--fsdp"], corpus, still, precision="bf16")
    assert max(abs(a - b) for a, b in zip(half.losses, ddp.losses)) < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "b").values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_tokenizers_are_sharded_too(kind, corpus, encoders, tmp_path):
    ran = [launch(tmp_path / f"{i}", flags, corpus, encoders[kind]) for i, flags in enumerate(([], ["--fsdp"]))]
    assert max(abs(a - b) for a, b in zip(*(one.losses for one in ran))) < 1e-4


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        transformers.AlbertConfig(embedding_size=16, **SMALL, **STILL),  # one layer, used twice
        transformers.DebertaV2Config(relative_attention=True, pos_att_type=["c2p", "p2c"], **SMALL, **STILL),
        transformers.ModernBertConfig(
            pad_token_id=0, cls_token_id=2, sep_token_id=3, **SMALL
        ),  # buffers: rotary angles
        transformers.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64, dropout=0.0),  # unreached parameters
        transformers.FunnelConfig(  # layers in lists of lists; batches of one length, whose number is odd
            block_sizes=[1, 1],
            d_model=32,
            n_head=4,
            d_head=8,
            d_inner=64,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            architectures=[],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures_are_sharded_with_the_result_of_ddp(config, corpus, still, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(still)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    ran = [launch(tmp_path / f"{i}", flags, corpus, tmp_path / "encoder") for i, flags in enumerate(([], ["--fsdp"]))]
    assert max(abs(a - b) for a, b in zip(*(one.losses for one in ran))) < 1e-4
    # The gradient of a bias of the keys is rounding error alone, of which AdamW makes steps of full size.
    trained = [{name: w for name, w in weights(one.folder).items() if "k_head.bias" not in name} for one in ran]
    same(*trained, 1e-4)


def test_fsdp_needs_torchrun(corpus, still, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(*flat(corpus), "--model_name_or_path", still, "--fsdp", "--output_dir", tmp_path / "out")
    assert capsys.readouterr().err.endswith("error: --fsdp needs torchrun, and fp32 or bf16\n")
    assert not (tmp_path / "out").exists()
