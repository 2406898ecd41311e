"""Alignment of tags and subwords, tag schemes, windows, batches, the Hub's cache, running text."""

import json
import re
from pathlib import Path

import datasets
import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
from conftest import lay, load, sample_words, write_conll
from hypothesis import strategies
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

import data
import model
from util import data_report, sources, tag_schemes
from util.annotations import Columns, split_words
from util.corpus_scan import column
from util.pretrained import load_tokenizer, max_length, packaged_encoder
from util.tokenizer import _tokenize, encode
from util.windows import arrow_column

GUIDE = "EU rejects German call to boycott British lamb .".split()
CONLL_LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
GUIDE_TAGS = np.array([3, 0, 7, 0, 0, 0, 7, 0, 0])


@pytest.fixture(scope="module")
def guide_tokenizer():
    pieces = "[PAD] [UNK] [CLS] [SEP] EU rejects German call to boycott British la ##mb .".split()
    vocab = {piece: i for i, piece in enumerate(pieces)}
    raw = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


def windows_of(sentences, tags, tokenizer, size=64, stride=8, label_list=None, label_all_tokens=False) -> data.Windows:
    """Words of sentences and the label id of every word -> windows. Without a label_list the labels are numbers."""
    label_list = label_list or [str(i) for i in range(max(tags) + 1)]
    words = [label_list[i] for i in tags]
    ends = np.cumsum([len(sentence) for sentence in sentences])
    tags = [words[end - len(sentence) : end] for sentence, end in zip(sentences, ends)]
    dataset = datasets.Dataset.from_dict({"tokens": sentences, "tags": tags})
    tokenizer.model_max_length = size
    return data.tokenize(dataset, label_list, tokenizer, stride, iob1=False, label_all_tokens=label_all_tokens)


# ---- alignment


def test_alignment_of_the_guides_sentence(guide_tokenizer):
    window = windows_of([GUIDE], GUIDE_TAGS, guide_tokenizer)[0]
    tokens = guide_tokenizer.convert_ids_to_tokens(window["input_ids"].tolist())
    assert tokens == "[CLS] EU rejects German call to boycott British la ##mb . [SEP]".split()
    assert window["labels"].tolist() == [-100, 3, 0, 7, 0, 0, 0, 7, 0, -100, 0, -100]


def test_alignment_with_all_pieces_labeled(guide_tokenizer):
    windows = windows_of([GUIDE], GUIDE_TAGS, guide_tokenizer, label_list=CONLL_LABELS, label_all_tokens=True)
    assert windows[0]["labels"].tolist() == [-100, 3, 0, 7, 0, 0, 0, 7, 0, 0, 0, -100]


def test_all_pieces_of_an_entity_continue_it(guide_tokenizer):
    label_list = ["O", "B-MISC", "I-MISC"]
    windows = windows_of([["lamb", "lamb"]], [1, 0], guide_tokenizer, label_list=label_list, label_all_tokens=True)
    assert windows[0]["labels"].tolist() == [-100, 1, 2, 0, 0, -100]


def test_alignment_of_wnut17s_first_word_with_minilm():
    tokenizer = load_tokenizer(packaged_encoder())
    window = windows_of([["@paulwalk", "It"]], [5, 4], tokenizer)[0]
    tokens = tokenizer.convert_ids_to_tokens(window["input_ids"].tolist())
    assert tokens == ["[CLS]", "@", "paul", "##walk", "it", "[SEP]"]
    assert window["labels"].tolist() == [-100, 5, -100, -100, 4, -100]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-PER", "I-PER"], [0, 2, 2]),
        (["I-PER", "O", "B-PER"], [0, 1, 0]),
        (["I-LOC", "B-PER", "B-LOC", "I-PER", "O"], [0, 3, 0, 3, 4]),
        (["O", "B-PER"], [0, 1]),  # there is no I-PER
        (["NOUN", "VERB"], [0, 1]),
        (["B-X-Y", "I-X-Y", "B-X", "I-X"], [1, 1, 3, 3]),
    ],
)
def test_b_becomes_i_by_name_in_any_order_of_labels(labels, expected):
    assert tag_schemes.continuation_ids(labels).tolist() == expected


def test_labels_o_first_then_by_type():
    tags = {"I-PER", "B-PER", "O", "B-LOC", "B-creative-work", "I-LOC"}
    assert tag_schemes.make_label_list(tags) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-creative-work"]
    assert tag_schemes.make_label_list({"I-PER", "O"}) == ["O", "B-PER", "I-PER"]
    assert tag_schemes.make_label_list({"10", "9", "0"}) == ["0", "9", "10"]
    assert tag_schemes.make_label_list({"unused"}, ["O", "I-X", "B-Y"]) == ["O", "I-X", "B-Y", "B-X"]


# ---- tag schemes

SCHEMES = {  # the same five entities; one PER directly follows another
    "IOB1": "I-PER I-PER B-PER O I-LOC I-LOC I-LOC B-LOC | I-PER",
    "IOB2": "B-PER I-PER B-PER O B-LOC I-LOC I-LOC B-LOC | B-PER",
    "BIOES": "B-PER E-PER S-PER O B-LOC I-LOC E-LOC S-LOC | S-PER",
    "BILOU": "B-PER L-PER U-PER O B-LOC I-LOC L-LOC U-LOC | U-PER",
}


def as_ids(text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    sentences = [sentence.split() for sentence in text.split("|")]
    labels = tag_schemes.make_label_list({tag for sentence in sentences for tag in sentence})
    return np.array([labels.index(tag) for s in sentences for tag in s]), np.array([len(s) for s in sentences]), labels


def scheme_of(tags: np.ndarray, lengths: np.ndarray, label_list: list[str]) -> tag_schemes.Scheme:
    return tag_schemes.decide_scheme(tag_schemes.scheme_evidence(tags, lengths, label_list), label_list)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tag_scheme_is_recognized_without_violations(scheme):
    assert scheme_of(*as_ids(SCHEMES[scheme])) == (scheme, 0, [])


def test_iob1_becomes_iob2():
    tags, lengths, labels = as_ids(SCHEMES["IOB1"])
    converted = tag_schemes.iob1_to_iob2(tags, lengths, labels)
    assert [labels[i] for i in converted] == SCHEMES["IOB2"].replace(" |", "").split()


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES", "BILOU"])
def test_every_scheme_scores_the_same_entities_as_strict_seqeval(scheme):
    import seqeval.metrics
    import seqeval.scheme

    import metrics

    tags, lengths, labels = as_ids(SCHEMES[scheme])
    scores = metrics.score(tags, tags, lengths, labels, scheme)
    assert {kind: row["support"] for kind, row in scores["per_entity"].items()} == {"LOC": 2, "PER": 3}
    sentences = [sentence.split() for sentence in SCHEMES[scheme].split("|")]
    mode = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme.replace("BIOES", "IOBES"))}
    report = seqeval.metrics.classification_report(sentences, sentences, output_dict=True, **mode)
    assert {kind: report[kind]["support"] for kind in ("LOC", "PER")} == {"LOC": 2, "PER": 3}


@pytest.mark.parametrize(
    ("text", "scheme", "illegal"),
    [
        ("B-PER I-LOC O I-PER | I-PER B-LOC O B-LOC", "IOB2", [1, 3, 4]),
        ("B-PER O S-LOC I-LOC E-PER | B-LOC", "BIOES", [0, 3, 4, 5]),
        ("B-PER | L-PER U-LOC I-LOC", "BILOU", [0, 1, 3]),
        ("O O | O", "IOB2", []),
        ("NOUN VERB O | NOUN", None, []),
    ],
)
def test_illegal_transitions_are_found(text, scheme, illegal):
    assert scheme_of(*as_ids(text)) == (scheme, len(illegal), illegal[:3])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_evidence_of_a_corpus_is_the_sum_of_its_parts(scheme):
    random = np.random.default_rng(0)
    tags, lengths, labels = as_ids(" | ".join([SCHEMES[scheme]] * 5))
    for share in (0, 0.3):
        is_random = random.random(len(tags)) < share
        tags = np.where(is_random, random.integers(0, len(labels), len(tags)), tags)
        total, word = tag_schemes.SchemeEvidence(), 0
        for part in np.array_split(lengths, 4):
            total += tag_schemes.scheme_evidence(tags[word : word + part.sum()], part, labels)
            word += part.sum()
        assert total == tag_schemes.scheme_evidence(tags, lengths, labels)
        assert share == 0 or tag_schemes.decide_scheme(total, labels).num_violations > 3  # more than are kept


def test_what_breaks_the_scheme_is_logged_and_kept(encoders, tmp_path):
    write_conll(tmp_path / "x", [{"tokens": ["a", "b", "c"], "tags": ["B-PER", "O", "I-LOC"]}] * 4)
    splits, labels = load(encoders["wordpiece"], train_file=str(tmp_path / "x"))
    (note,) = data_report.checks(splits, 16)
    assert note.startswith(f"note: {tmp_path / 'x'}: 4 invalid IOB2 transitions kept as in the file: ")
    assert f"{tmp_path / 'x'}:3 'c' I-LOC after O;" in note
    assert note.count("I-LOC") == 3 and note.endswith("...")
    assert [labels[i] for i in splits["train"].tags[:3]] == ["B-PER", "O", "I-LOC"]


def test_an_iob1_file_trains_on_the_labels_of_its_iob2_copy(encoders, tmp_path):
    loaded = {}
    for scheme in ("IOB1", "IOB2"):
        parts = [part.split() for part in SCHEMES[scheme].split("|")]
        write_conll(tmp_path / scheme, [{"tokens": list("abcdefgh")[: len(p)], "tags": p} for p in parts])
        loaded[scheme] = load(encoders["wordpiece"], train_file=str(tmp_path / scheme))
    (one, labels), (two, same_labels) = loaded["IOB1"], loaded["IOB2"]
    assert labels == same_labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert one["train"].tags.tolist() == two["train"].tags.tolist()
    assert one["train"].fingerprint == two["train"].fingerprint
    (note,) = data_report.checks(one, 16)
    assert re.fullmatch(r".*IOB1: \d+ IOB1 tags converted to IOB2", note)
    assert data_report.checks(two, 16) == []


# ---- windows


def check_windows(sizes: np.ndarray, size: int, stride: int) -> None:
    """Every documented property of windows(), by brute force over words of `sizes` subwords."""
    word_ids = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.append(0, np.cumsum(sizes))
    found = data.windows(word_ids, size, stride)
    labeled = [word for _, _, first, last in found for word in range(first, last)]
    assert labeled == list(range(len(sizes)))  # each word once, in order
    for start, stop, first, last in found:
        assert 0 < stop - start <= size and start in starts
        assert start <= starts[first] and starts[last - 1] < stop
    for (_, before, *_), (after, *_) in zip(found, found[1:]):
        assert before - after <= max(stride, 0)

    def context(window, word):  # below 0: the word is not complete in the window
        left, right = starts[word] - window[0], window[1] - starts[word + 1]
        return min(left, right)

    for window in found:
        for word in range(*window[2:]):
            best = max(context(other, word) for other in found)
            assert context(window, word) == best or min(sizes) == 0 or max(sizes) > size


def test_windows_of_random_sentences_have_every_property():
    random = np.random.default_rng(0)
    for _ in range(300):
        sizes = random.integers(1, 6, random.integers(1, 60))
        size = int(random.integers(6, 40))
        check_windows(sizes, size, int(random.integers(0, size)))


def test_a_word_longer_than_a_window_is_labeled_by_its_first_subwords():
    word_ids = np.repeat([0, 1, 2], [2, 50, 3])
    found = data.windows(word_ids, 8, 4)
    assert [word for *_, first, last in found for word in range(first, last)] == [0, 1, 2]
    assert (2, 10, 1, 2) in found


def test_windows_literal():
    # ten words of one subword, windows of six that overlap by two: each window labels half of the overlap
    assert data.windows(np.arange(10), 6, 2) == [(0, 6, 0, 5), (4, 10, 5, 10)]


DROPPED = ["\u200d", "\ufe0f", "\x07", "\u200b", "\u0301"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("size", [8, 16, 64, 128])
def test_every_word_is_labeled_exactly_once(encoders, kind, size):
    tokenizer = load_tokenizer(encoders[kind])
    sentences = sample_words("validation", 30)
    sentences += [DROPPED, ["the", "\ufe0f", "end"], ["http://x.org/" + "abc" * 200, "is", "long"]]
    sentences += [[word for words in sample_words("test", 60) for word in words]]  # a document of over 700 words
    tags = np.arange(sum(map(len, sentences)))  # a different tag for every word
    windows = windows_of(sentences, tags, tokenizer, size=size)
    labels = np.concatenate([window["labels"] for window in windows])
    assert labels[labels != -100].tolist() == tags.tolist()
    assert windows.lengths.max() <= size
    assert np.concatenate([windows.word_positions([i]) for i in range(len(windows))]).tolist() == tags.tolist()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_short_sentences_are_encoded_as_the_tokenizer_itself_does(encoders, kind):
    tokenizer = load_tokenizer(encoders[kind])
    sentences = sample_words("test", 20)
    windows = windows_of(sentences, [0] * sum(map(len, sentences)), tokenizer, size=128)
    for window, words in zip(windows, sentences, strict=True):
        assert window["input_ids"].tolist() == tokenizer(words, is_split_into_words=True)["input_ids"]


def test_byte_level_words_begin_with_a_space(encoders):
    tokenizer = load_tokenizer(encoders["bpe"])
    ids, word_ids, _ = encode([["Sylvain", ",", "Oslo"]], tokenizer)[0]
    firsts = ids[np.diff(word_ids, prepend=-1) != 0]
    assert all(token.startswith("Ġ") for token in tokenizer.convert_ids_to_tokens(firsts.tolist()))


def test_roberta_positions_start_after_the_padding_index(encoders):
    tokenizer = load_tokenizer(encoders["bpe"])
    assert tokenizer.model_max_length > 1_000_000
    assert max_length(tokenizer, AutoConfig.from_pretrained(encoders["bpe"])) == 128


# ---- batches


def test_collate_pads_to_the_longest_of_the_batch():
    features = [
        {"input_ids": np.array([2, 7, 3]), "labels": np.array([-100, 1, -100])},
        {"input_ids": np.array([2, 8, 9, 6, 3]), "labels": np.array([-100, 0, -100, 2, -100])},
    ]
    batch = data.collate(features, {"input_ids": 99, "labels": -100})
    assert batch["input_ids"].tolist() == [[2, 7, 3, 99, 99], [2, 8, 9, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 1, -100, -100, -100], [-100, 0, -100, 2, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_collate_without_features_makes_a_row_without_labels():
    batch = data.collate([], {"input_ids": 0, "labels": -100})
    assert batch["input_ids"].tolist() == [[0] * 3] and batch["labels"].tolist() == [[-100] * 3]


@pytest.mark.parametrize("group_by_length", [False, True])
def test_an_epoch_holds_every_row_once_and_depends_only_on_its_arguments(group_by_length):
    lengths = np.random.default_rng(1).integers(3, 60, 1003)
    epochs = [list(data.EpochBatches(lengths, 16, 42, epoch, group_by_length)) for epoch in (0, 0, 1)]
    for batches in epochs:
        assert sorted(np.concatenate(batches)) == list(range(1003))
        assert sorted(map(len, batches))[:2] == [1003 % 16, 16]
    assert all((a == b).all() for a, b in zip(epochs[0], epochs[1]))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(epochs[0], epochs[2]))


def test_grouping_by_length_removes_the_padding():
    lengths = np.random.default_rng(1).integers(3, 60, 5000)

    def padding(group_by_length):
        batches = list(data.EpochBatches(lengths, 16, 42, 0, group_by_length))
        return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)

    assert padding(False) > 0.3 and padding(True) < 0.05


@pytest.mark.parametrize("group_by_length", [False, True])
@pytest.mark.parametrize("number", [2**18 + 1, 300_007])
def test_a_large_epoch_holds_every_row_once_and_begins_at_any_step(number, group_by_length):
    lengths = np.random.default_rng(1).integers(3, 60, number)
    batches = [list(data.EpochBatches(lengths, 512, 42, epoch, group_by_length)) for epoch in (0, 1)]
    for epoch in batches:
        assert (np.sort(np.concatenate(epoch)) == np.arange(number)).all()
    later = data.EpochBatches(lengths, 512, 42, 0, group_by_length)[300]
    assert (later == batches[0][300]).all() and not (batches[0][0] == batches[1][0]).all()
    if group_by_length:
        padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches[0])
        assert 1 - lengths.sum() / padded < 0.05


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_cached_words_have_the_subwords_of_the_tokenizer(encoders, kind):
    same_as_the_tokenizer(load_tokenizer(encoders[kind]))


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(words=strategies.lists(strategies.text(min_size=1, max_size=8), min_size=1, max_size=12))
def same_as_the_tokenizer(tokenizer, words):
    expected = _tokenize([words], tokenizer)
    for _ in range(2):
        input_ids, word_ids, dropped = encode([words], tokenizer)[0]
        has_subwords = ~np.isin(word_ids, dropped)
        assert input_ids[has_subwords].tolist() == expected["input_ids"][0]
        assert word_ids[has_subwords].tolist() == expected.word_ids(0)


def test_a_full_word_cache_is_replaced(encoders, monkeypatch):
    monkeypatch.setattr("util.tokenizer.WordCache.MAX_WORDS", 20)
    tokenizer, sentences = load_tokenizer(encoders["wordpiece"]), sample_words("test", 30)
    expected = [encode([words], load_tokenizer(encoders["wordpiece"]))[0] for words in sentences]
    for words, encoded in zip(sentences, expected):
        assert all(np.array_equal(*pair) for pair in zip(encode([words], tokenizer)[0], encoded))


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 8), (4, 3)])
def test_ranks_and_accumulation_divide_the_same_global_batches(accumulation, world_size):
    batches = data.EpochBatches(np.full(101, 9), 24, 7, 0, False)
    shares = [list(data.micro_batches(batches, 0, accumulation, rank, world_size)) for rank in range(world_size)]
    for step, batch in enumerate(batches):
        parts = [part for rank in shares for part in rank[step * accumulation : (step + 1) * accumulation]]
        assert sorted(sum(parts, [])) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    resumed = [list(data.micro_batches(batches, 2, accumulation, rank, world_size)) for rank in range(world_size)]
    assert resumed == [share[2 * accumulation :] for share in shares]


def test_evaluation_batches_hold_every_row_once_and_pad_little():
    lengths = np.array([5] * 70 + [512, 500] + [6, 9])
    batches = data.eval_batches(lengths, 64)
    assert sorted(np.concatenate(batches)) == list(range(74))
    assert batches[0].tolist() == [70, 71] and max(map(len, batches)) == 64


def test_evaluation_batches_are_bounded_by_tokens():
    """64 documents of 6,400 subwords are not one batch. A single one that exceeds the bound is."""
    batches = data.eval_batches(np.array([6400] * 64), 64)
    assert {len(batch) for batch in batches} == {5, 4} and 5 * 6400 <= data.EVAL_TOKENS < 6 * 6400
    assert [len(batch) for batch in data.eval_batches(np.array([512] * 64), 64)] == [64]
    assert [len(batch) for batch in data.eval_batches(np.array([100_000, 99_000]), 64)] == [1, 1]


def test_windows_are_views_into_the_file_over_many_chunks(guide_tokenizer, tmp_path):
    lengths = np.array([1 + i % 9 for i in range(2500)])
    first_words = np.cumsum(lengths) - lengths
    sentences = [
        {"tokens": GUIDE[:length], "tags": [str(first + i) for i in range(length)]}  # a different tag for every word
        for length, first in zip(lengths, first_words)
    ]
    write_conll(tmp_path / "a.txt", sentences)
    dataset, _ = sources.read_file(str(tmp_path / "a.txt"), Columns())
    label_list = [str(i) for i in range(lengths.sum())]
    guide_tokenizer.model_max_length = 64
    windows = data.tokenize(dataset, label_list, guide_tokenizer, stride=8, iob1=False, label_all_tokens=False)
    assert column(windows.dataset, "input_ids").num_chunks > 1 and len(windows) == 2500
    for i in (0, 8, 999, 1000, 1001, 2499):
        input_ids, labels = windows[i]["input_ids"], windows[i]["labels"]
        assert not input_ids.flags.owndata and not input_ids.flags.writeable
        assert len(input_ids) == windows.lengths[i] and labels[1] == first_words[i]


# ---- the Hub, by caches made here


def test_a_model_is_found_in_the_hubs_cache_by_its_id(encoders):
    files = {path.name: path for path in Path(encoders["wordpiece"]).iterdir()}
    lay("models--bert-base-cased", "main", files)
    assert load_tokenizer("bert-base-cased").is_fast
    assert model.load_model("bert-base-cased", ["O", "B-X"]).config.id2label == {0: "O", 1: "B-X"}


def test_a_script_only_set_is_read_from_its_parquet_conversion(monkeypatch):
    asked = []

    def load_dataset(name, config, revision=None):
        asked.append((name, config, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found set.py")
        return {"train": None}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert sources.read_named("someone/set", "en") == {"train": None}
    assert asked == [("someone/set", "en", None), ("someone/set", "en", "refs/convert/parquet")]


def test_the_well_known_sets_are_read_offline_from_the_hubs_cache(encoders):
    """By their short names, in the layouts they have on the Hub: one copy, and one conversion of a script-only set."""
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    rows = {"tokens": [["Peter", "Miller", "sleeps"], ["In", "Oslo"]], "ner_tags": [[1, 2, 0], [0, 3]]}
    label = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": label})
    plain = datasets.Dataset.from_dict(rows)  # the ids' names are in dataset_infos.json alone
    infos = {"conll2003": {"features": features.to_dict()}}
    parts = {f"data/{split}-00000-of-00001.parquet": plain for split in ("train", "validation", "test")}
    lay("datasets--lhoestq--conll2003", "main", parts | {"dataset_infos.json": json.dumps(infos)})
    named = datasets.Dataset.from_dict(rows, features)
    parts = {f"default/{split}/0000.parquet": named for split in ("train", "validation", "test")}
    lay("datasets--leondz--wnut_17", "refs/convert/parquet", parts)
    for name in ("conll2003", "wnut_17"):
        splits, labels = load(encoders["wordpiece"], dataset_name=name)
        assert set(splits) == {"train", "validation", "test"} and splits["train"].scheme == "IOB2"
        assert labels == names, (name, labels)
        assert splits["test"].sentences[1]["tags"] == ["O", "B-LOC"]
    with pytest.raises(ValueError, match="nobody/nothing: not in the cache, and the Hub cannot be reached"):
        sources.read_named("nobody/nothing", None)


# ---- running text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("My name is Sylvain, hi!", ["My", "name", "is", "Sylvain", ",", "hi", "!"]),
        ("U.S.-based\t@you_", ["U", ".", "S", ".", "-", "based", "@", "you", "_"]),
        ("cafe\u0301 हिन्दी 東京 5€", ["cafe\u0301", "हिन्दी", "東", "京", "5", "€"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_text_becomes_words(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


def test_the_packaged_encoder_is_the_file_it_should_be(tmp_path):
    assert AutoTokenizer.from_pretrained(packaged_encoder()).is_fast


def test_ragged_arrow_columns():
    array = arrow_column([np.array([1, 2]), np.array([], int), np.array([3])], is_list=True)
    assert array.to_pylist() == [[1, 2], [], [3]] and array.type == pa.list_(pa.int32())
