"""The fast path computes what the plain one computes, and its step never waits for the device."""

import copy
import functools
import inspect
import traceback

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ROOT, SMALL, flat, load, results, train, weights

import data
import model as network
import train as script

# 300 tokens and more positions than that: a window of ModernBERT's (64 here) does not cover the longest sentence.
LENGTHS = [150, 71, 70, 33, 20, 9, 9, 8, 5, 3, 2]
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "bert": transformers.BertConfig(vocab_size=300, **SMALL, **OFF),
    "roberta": transformers.RobertaConfig(vocab_size=300, max_position_embeddings=514, pad_token_id=1, **SMALL, **OFF),
    "xlm-roberta": transformers.XLMRobertaConfig(vocab_size=300, pad_token_id=1, **SMALL, **OFF),
    "electra": transformers.ElectraConfig(vocab_size=300, embedding_size=16, **SMALL, **OFF),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=300, dim=32, n_layers=2, n_heads=2, hidden_dim=64, dropout=0.0, attention_dropout=0.0
    ),
    "modernbert": transformers.ModernBertConfig(
        vocab_size=300, local_attention=64, global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=2,
        cls_token_id=2, eos_token_id=3, sep_token_id=3, **SMALL | {"num_hidden_layers": 3},
    ),
}  # fmt: skip
OTHERS = {
    "deberta-v2": transformers.DebertaV2Config(
        vocab_size=300, relative_attention=True, pos_att_type=["p2c", "c2p"], **SMALL, **OFF
    ),
    "xlnet": transformers.XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=2, d_inner=64, dropout=0.0),
    "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
}


def encoder(config):
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.num_labels = 5
    return transformers.AutoModelForTokenClassification.from_config(config, dtype=torch.float32)


def rows(pad: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sentences in no order, some words without a label; ids under 200 but padding's."""
    random = np.random.default_rng(0)
    made = []
    for length in random.permutation(LENGTHS):
        ids = random.integers(pad + 1, 200, length)
        made.append((ids, np.where(random.random(length) < 0.3, -100, random.integers(0, 5, length))))
    return made


def loss_and_gradients(model, batch: dict) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """Of the sum over labels; the logits of the labelled tokens, sorted by their values' sum."""
    gold = batch.pop("labels")
    logits = model(**batch).logits
    loss = F.cross_entropy(logits.flatten(0, 1), gold.flatten(), reduction="sum")
    model.zero_grad()
    loss.backward()
    labelled = logits.detach()[gold != -100]
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.item(), labelled[labelled.sum(1).argsort()], named


@pytest.mark.parametrize("name", CONFIGS)
def test_sentences_end_to_end_give_the_logits_loss_and_gradients_of_a_padded_batch(name):
    model = encoder(CONFIGS[name]).train()
    pad = model.config.pad_token_id
    plain_loss, plain_logits, plain = loss_and_gradients(copy.deepcopy(model), data.collate(rows(pad), pad))
    first = network.read_end_to_end(model, longest=512)
    assert first == (2 if "roberta" in name else 0)
    network.train_only(model, np.append(np.concatenate([ids for ids, _ in rows(pad)]), pad))
    layout = functools.partial(network.layout, heads=2)
    batch = data.collate_end_to_end(rows(pad), pad, first, layout)
    assert batch["input_ids"].shape == (1, 384) and sum(LENGTHS) == 380
    loss, logits, fast = loss_and_gradients(model, batch)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-5)
    embedding = next(name for name in fast if name.endswith(".rows"))
    used = model.get_input_embeddings().at.argsort()[: len(model.get_input_embeddings().rows)]
    whole = plain.pop(embedding.replace("rows", "weight"))
    assert not whole[[i for i in range(300) if i not in used]].any()
    plain[embedding] = whole[used]
    assert set(fast) == set(plain)
    for parameter in fast:
        difference = (fast[parameter] - plain[parameter]).norm()
        assert difference <= 1e-5 * max(1, plain[parameter].norm()), (parameter, difference)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_encoder_that_reads_end_to_end_still_reads_a_padded_batch(name):
    model = encoder(CONFIGS[name]).eval()
    pad = model.config.pad_token_id
    batch = data.collate(rows(pad), pad)
    del batch["labels"]
    before = model(**batch).logits
    assert network.read_end_to_end(model, longest=512) is not None
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_encoders_that_cannot_read_end_to_end_are_found_out_and_left_as_they_are(name):
    model = encoder(OTHERS[name]).train()
    pad = model.config.pad_token_id or 0
    batch = data.collate(rows(pad), pad)
    del batch["labels"]
    before = copy.deepcopy(model).eval()(**batch).logits
    assert network.read_end_to_end(model, longest=128) is None and model.training
    torch.testing.assert_close(model.eval()(**batch).logits, before, rtol=0, atol=0)


def test_the_layout_of_three_sentences():
    pieces, gather, scatter, padding = network.layout(np.array([3, 1, 1]), heads=2)
    ((where, longest, bias),) = pieces
    assert (where, longest) == (slice(0, 18), 3)
    assert (bias[:, 0, 0] == 0).tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    # sentence, head, place: token * 2 + head; the first token stands in for padding
    assert gather.tolist() == [0, 2, 4, 1, 3, 5, 6, 0, 0, 7, 1, 1, 8, 0, 0, 9, 1, 1]
    assert scatter.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 12, 15]
    assert padding.tolist() == [7, 8, 10, 11, 13, 14, 16, 17]


def test_collating_end_to_end():
    three = [(np.array([7]), np.array([0])), (np.array([4, 5, 6]), np.array([-100, 2, 1]))]
    batch = data.collate_end_to_end(three, 0, 2, layout=lambda lengths: lengths.tolist())
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[2, 3, 4, 2, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 1, 0, -100, -100, -100, -100]]
    assert batch["sentences"] == [3, 1, 4]
    empty = data.collate_end_to_end([], 0, 0, layout=lambda lengths: lengths.tolist())
    assert empty["input_ids"].tolist() == [[0] * 8] and empty["labels"].tolist() == [[-100] * 8]


@pytest.mark.parametrize("tokens", [64, 100, 479, 512, 1000, 5000])
def test_end_to_end_hardly_pads(tokens):
    batch = data.collate_end_to_end([(np.ones(tokens), np.ones(tokens))], 0, 0, layout=len)
    assert 0 <= batch["input_ids"].numel() - tokens < max(8, tokens / 64)


# ---- dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_keeps_the_mean_and_is_drawn_from_torchs_generator(dtype):
    dropout, x = network.Dropout(0.1).train(), torch.ones(1000, 401, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / y.numel()) ** 0.5)
    assert y.max().item() == pytest.approx(1 / 0.9, rel=1e-4 if dtype is torch.float32 else 4e-3)
    assert ((y == 0).float().mean(0) - 0.1).abs().max() < 0.06  # no column of the four slices is special
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what was kept, by the same factor
    torch.manual_seed(3)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.25, 1e-6])
def test_attention_with_dropout_has_the_gradients_that_autograd_finds(p, monkeypatch):
    """The same masks, the formula written out, each sentence by itself."""
    lengths, heads, width = np.array([5, 5, 2]), 2, 4
    layout = network.layout(lengths, heads)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 12, width, requires_grad=True) for _ in range(3))
    masks, draw = [], network._kept
    monkeypatch.setattr(network, "_kept", lambda *a: masks.append(draw(*a)) or masks[-1])
    out = network._Attend.apply(q, k, v, 0.5, p, None, layout)
    upstream = torch.randn_like(out)
    fast = torch.autograd.grad(out, (q, k, v), upstream)
    assert len(masks) == 1 and masks[0].shape == (3, heads, 5, 5) and 0 < masks[0].float().mean() <= 1 - (p > 0.1) / 100
    expected = []
    for row, (start, length) in enumerate(zip(np.cumsum(lengths) - lengths, lengths)):
        q_, k_, v_ = (x[0, :, start : start + length] for x in (q, k, v))
        weights = (q_ @ k_.transpose(1, 2) * 0.5).softmax(-1) * masks[0][row, :, :length, :length] / (1 - p)
        expected.append((weights @ v_).transpose(0, 1))
    expected = torch.cat(expected)[None]
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(fast, torch.autograd.grad(expected, (q, k, v), upstream)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- word embeddings in use


def test_word_embeddings_out_of_use_stay_and_those_in_use_are_saved(corpus, encoders, tmp_path):
    train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--output_dir", tmp_path, "--max_steps", 3)
    splits, _ = load(encoders["wordpiece"], size=128, train_file=corpus["--train_file"])
    used = splits["train"].vocabulary()
    name = "bert.embeddings.word_embeddings.weight"
    assert not any(key.endswith("rows") for key in weights(tmp_path))
    before = transformers.AutoModel.from_pretrained(encoders["wordpiece"]).get_input_embeddings().weight
    after = weights(tmp_path)[name]
    changed = (before != after).any(1).nonzero().flatten().numpy()
    assert set(changed) <= set(used) and len(changed) > len(used) / 2  # three steps do not meet all of them
    assert 100 < len(used) < len(before)


def test_frozen_word_embeddings_stay_frozen():
    model = encoder(CONFIGS["bert"])
    model.get_input_embeddings().weight.requires_grad_(False)
    network.train_only(model, np.array([7]))
    assert not model.get_input_embeddings().rows.requires_grad


def test_a_loaded_state_is_what_training_goes_on_from():
    model = encoder(CONFIGS["bert"])
    network.train_only(model, np.array([250, 7, 8, 0]))
    embedding = model.get_input_embeddings()
    assert embedding.at.argsort()[:4].tolist() == [0, 7, 8, 250] and embedding.rows.shape == (4, 32)
    other = encoder(CONFIGS["bert"]).state_dict()
    other["bert.embeddings.word_embeddings.weight"].fill_(3.0)
    model.load_state_dict(other)
    assert (embedding.train()(torch.tensor([7, 250])) == 3).all() and (embedding.eval()(torch.tensor([9])) == 3).all()
    with torch.no_grad():
        embedding.train().rows[1] = 5.0
    assert (embedding.eval()(torch.tensor([7])) == 5).all()
    assert "bert.embeddings.word_embeddings.rows" not in model.state_dict()
    assert (model.state_dict()["bert.embeddings.word_embeddings.weight"][7] == 5).all()


# ---- the step


def box() -> range:
    """The lines of the boxed step in train.py."""
    lines = (ROOT / "train.py").read_text().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if line.endswith("one step, timed"))
    last = next(i for i, line in enumerate(lines[first:], first + 1) if line.strip().startswith("# -----"))
    assert 30 < last - first < 70
    return range(first, last)


def test_the_boxed_step_never_waits_for_the_device(corpus, encoders, tmp_path, monkeypatch):
    """No value of a tensor is asked for, in our lines, transformers' or torch's; the log's lines do ask."""
    inside, asked = box(), {True: [], False: []}

    def watched(name, function):
        def call(*args, **kwargs):
            stack = [
                frame for frame in traceback.extract_stack() if frame.name == "main" and "train.py" in frame.filename
            ]
            if stack and stack[-1].filename == inspect.getsourcefile(script):
                asked[stack[-1].lineno in inside].append((name, stack[-1].lineno))
            return function(*args, **kwargs)

        return call

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_steps", 4, "--logging_steps", 2]
    train(*flat(corpus), *flags, "--output_dir", tmp_path)
    assert asked[True] == [] and len(asked[False]) > 4


def test_the_default_path_computes_almost_no_padding(corpus, encoders, tmp_path):
    """Batches of 16 short sentences: fewer than 8 positions beyond their tokens."""
    printed = train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--benchmark", 4)
    padding = float(next(line for line in printed.splitlines() if line.startswith("padding")).split()[1])
    assert 0 <= padding < 0.02
    train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--output_dir", tmp_path, "--max_steps", 2)
    assert results(tmp_path)["train_loss"] > 0
