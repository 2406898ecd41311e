"""Real tokenizer classes, from the files that are published: subwords of running text, saving, and the pipeline."""

import json

import numpy as np
import pytest
import tokenizers
import torch
from conftest import ROOT, load, sample_words, train
from tokenizer_files import EXTRA, FAMILIES, SPECIAL, UNSTABLE, texts, write_encoder
from tokenizers import models, normalizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

import data
import infer
from util import running_text
from util.annotations import split_words
from util.pretrained import load_encoder, load_tokenizer
from util.tokenizer import encode, subword_offsets

SENTENCES = sample_words("validation", 40) + [text.split() for text in EXTRA]
# Signs after a blank, digits, contractions, other scripts, marks of tokenizers, characters that are normalized.
SENTENCES += [
    ["(", "2024", ")", ",", "'s", "1,204.50", "%", "--", "...", "didn't", "I", "'ll", "``", "''"],
    ["東京", "北京大学", "Москва", "مرحبا", "한국어", "ภาษาไทย", "Zoë", "Zoe\u0301", "\U0001f600", "\ufb01nance", "Ⅷ"],
    ["New York", "is", "one", "token"],
    ["A"],
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A folder as published, with a tiny model."""
    return write_encoder(request.param, tmp_path_factory.mktemp("encoder"), weights=True)


def without_dropped(encoded) -> list[int]:
    return encoded.input_ids[~np.isin(encoded.word_ids, encoded.dropped)].tolist()


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_words_have_the_subwords_of_running_text(folder):
    tokenizer = load_tokenizer(str(folder))
    for words, encoded in zip(SENTENCES, encode(SENTENCES, tokenizer)):
        assert without_dropped(encoded) == ids_of(tokenizer, " ".join(words)), words
    assert running_text.compare(SENTENCES, tokenizer).share == 1


def test_a_word_has_the_same_subwords_wherever_it_stands(folder):
    """The subwords behind a blank, also if the word was at the beginning before; another order changes nothing."""
    tokenizer = load_tokenizer(str(folder))
    (once,) = encode([["London", "London", "(", "London"]], tokenizer)
    of_words = [once.input_ids[once.word_ids == i].tolist() for i in range(4)]
    assert of_words[1] == of_words[3]
    (again,) = encode([["(", "London"]], load_tokenizer(str(folder)))
    assert again.input_ids[again.word_ids == 1].tolist() == of_words[1]


def test_offsets_are_those_of_the_subwords_in_the_word(folder):
    tokenizer = load_tokenizer(str(folder))
    encoded = encode(SENTENCES, tokenizer)
    for words, subwords, offsets in zip(SENTENCES, encoded, subword_offsets(SENTENCES, tokenizer)):
        assert list(map(len, offsets)) == np.bincount(subwords.word_ids).tolist()
        for word, of_word in zip(words, offsets):
            assert all(0 <= start <= end <= len(word) for start, end in of_word), (word, of_word)
            assert of_word[-1][1] == len(word) or not word.isascii()
            assert sorted(of_word) == of_word


def test_the_saved_tokenizer_makes_the_same_subwords(folder, tmp_path):
    """AutoTokenizer, infer.py and the tokenizers library read the saved files as training read the original ones."""
    name, tokenizer = load_encoder(str(folder), 100)
    config = AutoConfig.from_pretrained(name)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved, raw = AutoTokenizer.from_pretrained(tmp_path), tokenizers.Tokenizer.from_file(f"{tmp_path}/tokenizer.json")
    assert saved.model_max_length == 100 and raw.truncation is None and raw.padding is None
    tagging = encode(SENTENCES, load_tokenizer(str(tmp_path)))
    for words, encoded, tagged in zip(SENTENCES, encode(SENTENCES, tokenizer), tagging):
        text = " ".join(words)
        assert without_dropped(encoded) == ids_of(saved, text) == raw.encode(text, add_special_tokens=False).ids
        assert tagged.input_ids.tolist() == encoded.input_ids.tolist()
        assert tokenizer(text)["input_ids"] == saved(text)["input_ids"] == raw.encode(text).ids


def test_the_pipeline_tags_running_text_as_infer_does(folder):
    tagger = infer.Tagger(str(folder), precision="fp32")
    tagger.model.save_pretrained(folder / "saved")  # with its tokenizer: what train.py writes
    tagger.tokenizer.save_pretrained(folder / "saved")
    pipe = pipeline("token-classification", str(folder / "saved"))
    for words in SENTENCES[:12]:
        text = " ".join(" ".join(words[start:end] for start, end in split_words(words)) for words in words)
        theirs, ours = pipe(text, ignore_labels=[]), tagger(text, aggregation_strategy="none")
        assert [(e["index"], e["entity"]) for e in ours] == [(e["index"], e["entity"]) for e in theirs], text
        assert [e["score"] for e in ours] == pytest.approx([float(e["score"]) for e in theirs], abs=1e-4)


# ---- settings


@pytest.mark.parametrize("family", ["RobertaTokenizer", "GPT2Tokenizer", "DebertaTokenizer", "ModernBERT"])
def test_add_prefix_space_is_saved(family, tmp_path):
    tokenizer = load_tokenizer(str(write_encoder(family, tmp_path / "x")))
    tokenizer.save_pretrained(tmp_path / "y")
    assert json.loads((tmp_path / "y" / "tokenizer_config.json").read_text())["add_prefix_space"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "y").tokenize("London")[0].startswith("\u0120")


@pytest.mark.parametrize("family", ["BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "Llama 3"])
def test_tokens_that_were_added_are_saved(family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_encoder(family, tmp_path / "x"))
    tokenizer.add_tokens(["<user>", "Covid-19"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>", "</e1>"]})
    tokenizer.save_pretrained(tmp_path / "x")
    _, tokenizer = load_encoder(str(tmp_path / "x"), None)
    sentence = ["<e1>", "<user>", "</e1>", "has", "Covid-19", "."]
    (encoded,) = encode([sentence], tokenizer)
    assert tokenizer.convert_tokens_to_ids("Covid-19") in encoded.input_ids
    assert tokenizer.convert_tokens_to_ids("<e1>") in encoded.input_ids


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(tmp_path):
    write_encoder(UNSTABLE, tmp_path)
    with pytest.raises(ValueError, match=r"its tokenizer \(RemBertTokenizer\) makes other subwords when it is saved"):
        load_encoder(str(tmp_path), None)


# ---- the share of words with the subwords of running text


@pytest.fixture(scope="module")
def crossing(tmp_path_factory) -> str:
    """An encoder whose subwords may hold several words: "of the"."""
    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "\u2581")
    raw.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=1500, special_tokens=SPECIAL))
    folder = tmp_path_factory.mktemp("crossing")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=1500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    AutoModelForTokenClassification.from_config(config).base_model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", cls_token="<s>", sep_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def test_words_that_running_text_joins_are_warned_of(crossing, corpus, tmp_path):
    flags = [part for pair in corpus.items() for part in pair]
    printed = train(*flags, "--model_name_or_path", crossing, "--max_steps", 1, "--output_dir", tmp_path / "out")
    (line,) = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert "% of words are split into subwords as in running text ('" in line
    share = float(line.split("only ")[1].split("%")[0])
    assert share < 50


def test_the_share_is_counted_by_words(crossing):
    tokenizer = load_tokenizer(crossing)
    compared = running_text.compare([["London"]] * 3, tokenizer)
    assert (compared.num_words, compared.num_equal) == (3, 3)
    tokenizer = load_tokenizer(crossing)
    tokenizer.add_tokens(["of the"])
    compared = running_text.compare([["x", "of", "the", "x"], ["x"]], tokenizer)
    assert compared.num_words == 5 and 1 <= compared.num_equal <= 3
    assert "running text" in str(compared) and "in running text" in compared.example


def test_dropped_words_count_as_equal(encoders):
    tokenizer = load_tokenizer(encoders["wordpiece"])
    assert running_text.compare([["the", "\ufe0f", "end"]], tokenizer).share == 1


def test_the_share_is_reported(encoders, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data.py", str(ROOT / "samples/test.conll")])
    data.main()
    assert "100.0% of words are split into subwords as in running text (of " in capsys.readouterr().out


def test_the_sample_is_spread_over_the_split(encoders):
    splits, _ = load(encoders["wordpiece"], train_file=ROOT / "samples/train.conll")
    compared = running_text.compare_sample(splits["train"], load_tokenizer(encoders["wordpiece"]))
    assert 5_000 < compared.num_words <= running_text.NUM_WORDS
