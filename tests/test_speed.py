"""The fast path computes the same as the plain one, and its step never waits for the device."""

import copy
import inspect
import traceback

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, SMALL, flat, load, results, train, weights

import data
import train as script
from model import token_loss
from util import packed
from util.fast_dropout import FastDropout
from util.fast_paths import enable_packing
from util.packed import Packing, chunk_layout, packed_collate
from util.partial_embedding import merge_embeddings, train_used_embeddings

# Of the sentences, 380 in all. A window of ModernBERT (64 here) does not cover the longest.
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


def make_features(pad: int) -> list[dict[str, np.ndarray]]:
    """Sentences in random order. Some tokens have no label. All ids are below 200, none is that of padding."""
    random = np.random.default_rng(0)
    features = []
    for length in random.permutation(LENGTHS):
        input_ids = random.integers(pad + 1, 200, length)
        labels = np.where(random.random(length) < 0.3, -100, random.integers(0, 5, length))
        features.append({"input_ids": input_ids, "labels": labels})
    return features


def pad_values(pad: int) -> dict[str, int]:
    return {"input_ids": pad, "labels": -100}


def padded_batch(pad: int) -> dict[str, torch.Tensor]:
    return data.collate(make_features(pad), pad_values(pad))


def loss_and_gradients(model, batch: dict) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """The loss is a sum over labels. The logits of the tokens with a label are sorted by the sum of their values."""
    labels = batch.pop("labels")
    logits = model(**batch).logits
    loss = token_loss(logits, labels, reduction="sum")
    model.zero_grad()
    loss.backward()
    labeled = logits.detach()[labels != -100]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.item(), labeled[labeled.sum(1).argsort()], gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_and_padded_batches_give_the_same_logits_loss_and_gradients(name):
    model = encoder(CONFIGS[name]).train()
    pad = model.config.pad_token_id
    padded_loss, padded_logits, padded = loss_and_gradients(copy.deepcopy(model), padded_batch(pad))
    packing, reason = enable_packing(model, max_length=512)
    assert packing == Packing(first_position=2 if "roberta" in name else 0), reason
    features = make_features(pad)
    train_used_embeddings(model, np.append(np.concatenate([feature["input_ids"] for feature in features]), pad))
    batch = packed_collate(features, pad_values(pad), packing)
    assert batch["input_ids"].shape == (1, 384) and sum(LENGTHS) == 380
    loss, logits, fast = loss_and_gradients(model, batch)
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    torch.testing.assert_close(logits, padded_logits, rtol=1e-4, atol=1e-5)
    embedding = next(name for name in fast if name.endswith(".trained"))
    used = model.get_input_embeddings().row_of_id.argsort()[: len(model.get_input_embeddings().trained)]
    whole = padded.pop(embedding.replace("trained", "weight"))
    assert not whole[[i for i in range(300) if i not in used]].any()
    padded[embedding] = whole[used]
    assert set(fast) == set(padded)
    for parameter in fast:
        difference = (fast[parameter] - padded[parameter]).norm()
        assert difference <= 1e-5 * max(1, padded[parameter].norm()), (parameter, difference)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_encoder_with_packing_still_reads_a_padded_batch(name):
    model = encoder(CONFIGS[name]).eval()
    batch = padded_batch(model.config.pad_token_id)
    del batch["labels"]
    before = model(**batch).logits
    packing, reason = enable_packing(model, max_length=512)
    assert packing is not None, reason
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)


def test_a_sentence_longer_than_a_sliding_window_needs_a_mask():
    """Without one, the window would be ignored. A shorter sentence fits into the window."""
    model = encoder(CONFIGS["modernbert"]).eval()
    packing, reason = enable_packing(model, max_length=512)
    assert packing is not None, reason
    assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()
    with pytest.raises(ValueError, match="^an encoder with a sliding window needs an attention_mask$"):
        model(input_ids=torch.ones(1, 100, dtype=torch.long))


@pytest.mark.parametrize("name", OTHERS)
def test_encoders_that_do_not_support_packing_are_recognized_and_left_unchanged(name):
    model = encoder(OTHERS[name]).train()
    batch = padded_batch(model.config.pad_token_id or 0)
    del batch["labels"]
    before = copy.deepcopy(model).eval()(**batch).logits
    packing, reason = enable_packing(model, max_length=128)
    assert packing is None and reason and model.training
    torch.testing.assert_close(model.eval()(**batch).logits, before, rtol=0, atol=0)


def test_the_chunk_layout_of_three_sentences():
    (chunk,), gather, scatter, padding = chunk_layout(np.array([3, 1, 1]), num_heads=2)
    assert (chunk.positions, chunk.length) == (slice(0, 18), 3)
    is_token = [[True, True, True], [True, False, False], [True, False, False]]
    assert (chunk.bias[:, 0, 0] == 0).tolist() == is_token
    # By sentence, head and position: token * 2 + head. Padding reads the first token.
    assert gather.tolist() == [0, 2, 4, 1, 3, 5, 6, 0, 0, 7, 1, 1, 8, 0, 0, 9, 1, 1]
    assert scatter.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 12, 15]
    assert padding.tolist() == [7, 8, 10, 11, 13, 14, 16, 17]


def test_packed_collate():
    packing = Packing(first_position=2)
    features = [
        {"input_ids": np.array([7]), "labels": np.array([0])},
        {"input_ids": np.array([4, 5, 6]), "labels": np.array([-100, 2, 1])},
    ]
    batch = packed_collate(features, pad_values(0), packing)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[2, 3, 4, 2, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 1, 0, -100, -100, -100, -100]]
    assert batch["packing_plan"].cu_seqlens.tolist() == [0, 3, 4, 8] and batch["packing_plan"].max_seqlen == 64
    assert batch["packing_plan"].cu_seqlens.dtype == torch.int32
    full = packed_collate([{"input_ids": np.arange(72), "labels": np.arange(72)}], pad_values(0), packing)
    assert full["packing_plan"].cu_seqlens.tolist() == [0, 72, 72] and full["packing_plan"].max_seqlen == 128
    empty = packed_collate([], pad_values(0), packing)
    assert empty["input_ids"].tolist() == [[0] * 8] and empty["labels"].tolist() == [[-100] * 8]


@pytest.mark.parametrize("tokens", [64, 100, 479, 512, 1000, 5000])
def test_packed_batches_have_hardly_any_padding(tokens):
    feature = {"input_ids": np.ones(tokens), "labels": np.ones(tokens)}
    batch = packed_collate([feature], pad_values(0), Packing(first_position=0))
    assert 0 <= batch["input_ids"].numel() - tokens < max(8, tokens / 64)


# ---- dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_uses_the_generator_of_torch(dtype):
    dropout, x = FastDropout(0.1).train(), torch.ones(1000, 401, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / y.numel()) ** 0.5)
    assert y.max().item() == pytest.approx(1 / 0.9, rel=1e-4 if dtype is torch.float32 else 4e-3)
    assert (
        (y == 0).float().mean(0) - 0.1
    ).abs().max() < 0.06  # in every column, although one draw serves four elements
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # kept elements have the same factor
    torch.manual_seed(3)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.25, 1e-6])
def test_attention_with_dropout_has_the_gradients_of_autograd(p, monkeypatch):
    """The reference uses the same masks and the textbook formula, one sentence at a time."""
    lengths, heads, width = np.array([5, 5, 2]), 2, 4
    layout = chunk_layout(lengths, heads)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 12, width, requires_grad=True) for _ in range(3))
    masks, keep_mask = [], packed.keep_mask

    def recorded_mask(*arguments):
        masks.append(keep_mask(*arguments))
        return masks[-1]

    monkeypatch.setattr(packed, "keep_mask", recorded_mask)
    out = packed._PackedAttention.apply(q, k, v, 0.5, p, None, layout)
    upstream = torch.randn_like(out)
    fast = torch.autograd.grad(out, (q, k, v), upstream)
    assert len(masks) == 1 and masks[0].shape == (3, heads, 5, 5) and 0 < masks[0].float().mean() <= 1 - (p > 0.1) / 100
    expected = []
    for row, (start, length) in enumerate(zip(np.cumsum(lengths) - lengths, lengths)):
        q_one, k_one, v_one = (x[0, :, start : start + length] for x in (q, k, v))
        probabilities = (q_one @ k_one.transpose(1, 2) * 0.5).softmax(-1)
        kept = probabilities * masks[0][row, :, :length, :length] / (1 - p)
        expected.append((kept @ v_one).transpose(0, 1))
    expected = torch.cat(expected)[None]
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(fast, torch.autograd.grad(expected, (q, k, v), upstream)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- word embeddings in use


def test_unused_word_embeddings_are_not_trained_and_used_ones_are_saved(corpus, encoders, tmp_path):
    train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--output_dir", tmp_path, "--max_steps", 3)
    splits, _ = load(encoders["wordpiece"], size=128, train_file=corpus["--train_file"])
    used = splits["train"].token_ids
    name = "bert.embeddings.word_embeddings.weight"
    assert not any(key.endswith(("trained", "frozen")) for key in weights(tmp_path))
    before = transformers.AutoModel.from_pretrained(encoders["wordpiece"]).get_input_embeddings().weight
    after = weights(tmp_path)[name]
    changed = (before != after).any(1).nonzero().flatten().numpy()
    assert set(changed) <= set(used) and len(changed) > len(used) / 2  # three steps do not read all of them
    assert 100 < len(used) < len(before)


def test_frozen_word_embeddings_stay_frozen():
    model = encoder(CONFIGS["bert"])
    model.get_input_embeddings().weight.requires_grad_(False)
    train_used_embeddings(model, np.array([7]))
    assert not model.get_input_embeddings().trained.requires_grad


def test_partially_trained_embeddings_are_loaded_and_merged():
    model = encoder(CONFIGS["bert"])
    train_used_embeddings(model, np.array([250, 7, 8, 0]))
    embedding = model.get_input_embeddings()
    assert embedding.row_of_id.argsort()[:4].tolist() == [0, 7, 8, 250] and embedding.trained.shape == (4, 32)
    other = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prefix = "bert.embeddings.word_embeddings."
    assert {name for name in other if name.startswith(prefix)} == {f"{prefix}trained", f"{prefix}frozen"}
    for name in ("trained", "frozen"):
        other[prefix + name].fill_(3.0)
    model.load_state_dict(other)
    assert (embedding.train()(torch.tensor([7, 250])) == 3).all() and (embedding.eval()(torch.tensor([9])) == 3).all()
    with torch.no_grad():
        embedding.train().trained[1] = 5.0
    assert (embedding.eval()(torch.tensor([7])) == 5).all()
    merged = merge_embeddings(model, model.state_dict())
    assert merged.keys() == encoder(CONFIGS["bert"]).state_dict().keys()
    assert (merged[f"{prefix}weight"][7] == 5).all() and (merged[f"{prefix}weight"][[6, 8]] == 3).all()


# ---- the step


def box() -> range:
    """The line numbers of the boxed step in train.py."""
    lines = (ROOT / "train.py").read_text().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if line.endswith("one step, timed"))
    last = next(i for i, line in enumerate(lines[first:], first + 1) if line.strip().startswith("# -----"))
    assert 20 < last - first < 70
    return range(first, last)


def test_the_boxed_step_never_waits_for_the_device(corpus, encoders, tmp_path, monkeypatch):
    """No code in the box reads a value of a tensor, in transformers and torch included. The log lines do."""
    inside, reads = box(), {True: [], False: []}

    def watched(name, function):
        def call(*args, **kwargs):
            stack = [
                frame for frame in traceback.extract_stack() if frame.name == "main" and "train.py" in frame.filename
            ]
            if stack and stack[-1].filename == inspect.getsourcefile(script):
                reads[stack[-1].lineno in inside].append((name, stack[-1].lineno))
            return function(*args, **kwargs)

        return call

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_steps", 4, "--logging_steps", 2]
    train(*flat(corpus), *flags, "--output_dir", tmp_path)
    assert reads[True] == [] and len(reads[False]) > 4


def test_the_default_path_computes_almost_no_padding(corpus, encoders, tmp_path):
    """Batches of 16 short sentences have fewer than 8 tokens of padding."""
    printed = train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--benchmark", 4)
    padding = float(next(line for line in printed.splitlines() if line.startswith("padding")).split()[1])
    assert 0 <= padding < 0.02
    train(*flat(corpus), "--model_name_or_path", encoders["wordpiece"], "--output_dir", tmp_path, "--max_steps", 2)
    assert results(tmp_path)["train_loss"] > 0
