"""infer.Tagger and transformers' pipeline: every strategy, three kinds of tokenizers, 200 random texts each.

They are equal wherever the pipeline reads the same subwords as training, and joins them to the words of the text.
Elsewhere the pipeline has one of these known faults. They are counted, and only our result is checked:

cut      a text that is longer than the encoder's limit is truncated
input    the subwords differ from training: no blank before punctuation, or a word without subwords
words    a subword is joined to the word before it although a word begins, or a word is split
broken   simple: a word whose further subwords have another tag is split, or joined to the next word
"""

import collections
import json
import warnings

import numpy as np
import pytest
from conftest import ROOT, read, train
from transformers import pipeline

import infer
from util.annotations import split_words
from util.tag_schemes import entity_type
from util.tokenizer import encode, special_tokens

STRATEGIES = ("none", "simple", "first", "average", "max")
ODD = [
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "Zo\u00eb",
    "Zoe\u0308 M\u00fcller",
    "\ufe0f",
    "\xa0",
]
ODD += ["\u6771\u4eac", "\u5317\u4eac\u5927\u5b66", "\u0645\u0631\u062d\u0628\u0627", "\uff21\uff43\uff4d\uff45"]
ODD += ["https://example.org/a?b=c#d", "@user", "U.S.", "O'Neill-Smith", "  ", "\t", "...", "(Nokia)", "S\u00e3o Paulo"]
ODD += ["x" * 60, "\u200b", "e\u0301cole", "10,000.50", "#Berlin2024", "\ufb01nance", "<script>", "&amp;"]


def random_texts(number: int, seed: int) -> list[str]:
    """Words and sentences of the corpus, punctuated as in running text, with ODD strings among them."""
    random = np.random.default_rng(seed)
    sentences = [s["tokens"] for s in read(ROOT / "samples" / "validation.conll") if len(s["tokens"]) < 40]
    letters = [word for sentence in sentences for word in sentence if word.isalpha()]
    texts = ["", " ", "\n \t"]
    while len(texts) < number:
        if random.random() < 0.33:
            start = random.integers(0, len(letters) - 4)
            texts.append(" ".join(letters[start : start + random.integers(1, 5)]))
            continue
        chosen = random.integers(0, len(sentences), random.choice([1, 2, 12], p=[0.8, 0.15, 0.05]))
        parts = [" ".join(sentences[i]) for i in chosen]
        if random.random() < 0.4:  # otherwise with blanks around punctuation, as in the corpus
            parts = [part.replace(" .", ".").replace(" ,", ",") for part in parts]
        for _ in range(random.choice([0, 1, 2])):
            parts.insert(random.integers(0, len(parts) + 1), str(random.choice(ODD)))
        texts.append(str(random.choice([" ", " ", "  ", "\n"])).join(parts))
    return texts


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def both(request, encoders, tmp_path_factory):
    """A small trained encoder, in a Tagger and in a pipeline."""
    folder = str(tmp_path_factory.mktemp("trained") / "out")
    flags = [
        "--learning_rate",
        5e-3,
        "--max_steps",
        120,
        "--eval_steps",
        120,
        "--precision",
        "fp32",
        "--label_all_tokens",
    ]
    train("--output_dir", folder, "--model_name_or_path", encoders[request.param], *flags)
    return request.param, infer.Tagger(folder, precision="fp32"), pipeline("token-classification", folder)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


def fault_of(text: str, pipe, tagger: infer.Tagger, strategy: str) -> str | None:
    """The fault of the pipeline on a text, determined from its input, or None."""
    inputs = next(iter(pipe.preprocess(text, is_split_into_words=False)))
    theirs = inputs["input_ids"][0].tolist()
    input_ids, word_ids, _ = encode([words_of(text)], tagger.tokenizer)[0]
    special = special_tokens(tagger.tokenizer)
    ours = [*special[0], *input_ids, *special[1]]
    if len(ours) > tagger.window_size:
        return "cut"
    if theirs != ours:
        return "input"
    if strategy == "none":
        return None
    if strategy == "simple":
        return "broken" if breaks_a_word(text, tagger) else None
    entities = pipe.gather_pre_entities(
        text, np.array(theirs), np.zeros((len(theirs), 1)), inputs["offset_mapping"][0],
        inputs["special_tokens_mask"][0].numpy(), None,
    )  # fmt: skip
    first = np.array([not entity["is_subword"] for entity in entities], bool)
    return None if (first == (np.diff(word_ids, prepend=-1) != 0)).all() else "words"


def breaks_a_word(text: str, tagger: infer.Tagger) -> bool:
    """Whether the subwords of any word have several types, or a further one has a B- tag."""
    probabilities, word_ids = tagger.probabilities([words_of(text)])
    tags = [tagger.label_list[i] for i in probabilities.argmax(-1)]
    for subwords in np.split(np.arange(len(tags)), np.flatnonzero(np.diff(word_ids)) + 1):
        if len({entity_type(tags[i]) for i in subwords}) > 1 or any(tags[i][:2] == "B-" for i in subwords[1:]):
            return True
    return False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_to_the_pipeline_or_a_known_fault_of_it(both, strategy):
    name, tagger, pipe = both
    texts = random_texts(200, seed=STRATEGIES.index(strategy))
    seen = collections.Counter()
    for text, ours in zip(texts, tagger(texts, aggregation_strategy=strategy)):
        check_ours(text, ours, strategy)
        fault = fault_of(text, pipe, tagger, strategy)
        seen[fault] += 1
        if fault:
            continue
        with warnings.catch_warnings(action="ignore"):
            theirs = pipe(text, aggregation_strategy=strategy)
        key = "entity" if strategy == "none" else "entity_group"
        for entity in theirs:  # without the blank before a word
            entity["start"] = entity["end"] - len(text[entity["start"] : entity["end"]].lstrip())
        assert [(e[key], e["start"], e["end"]) for e in ours] == [(e[key], e["start"], e["end"]) for e in theirs], text
        assert [e["score"] for e in ours] == pytest.approx([float(e["score"]) for e in theirs], abs=1e-4)
        if strategy == "none":
            assert [e["index"] for e in ours] == [e["index"] for e in theirs]
    print(name, strategy, dict(seen))
    assert seen[None] >= 20, seen


def check_ours(text: str, entities: list[dict], strategy: str) -> None:
    """Holds on any text: entities are whole words, or with "none" subwords of them, in the order of the text."""
    words, end = split_words(text), 0
    for entity in entities:
        assert type(entity["score"]) is float and 0 < entity["score"] <= 1
        assert entity["word"] == text[entity["start"] : entity["end"]]
        if strategy == "none":
            assert any(start <= entity["start"] and entity["end"] <= stop for start, stop in words)
        else:
            assert entity["start"] >= end
            assert entity["start"] in {start for start, _ in words} and entity["end"] in {stop for _, stop in words}
        end = entity["end"]


def test_the_pipeline_ends_entities_inside_words_and_behind_them(both):
    """It splits words at blanks only ("Oslo,"). With WordPiece, a combining accent joins two words."""
    name, tagger, pipe = both
    texts = [
        f"{word} in Oslo, Norway." for word in ("Zoe\u0308 Mu\u0308ller", "Nokia (Helsinki)", "https://example.org/x")
    ]
    texts += [text for text in random_texts(200, seed=9) if text.strip()]
    whole = {i: {end for _, end in split_words(text)} for i, text in enumerate(texts)}
    with warnings.catch_warnings(action="ignore"):
        theirs = pipe(texts, aggregation_strategy="first")
    beside = [e for i, found in enumerate(theirs) for e in found if e["end"] not in whole[i]]
    assert beside or name == "wordpiece"
    ours = tagger(texts, aggregation_strategy="first")
    assert all(e["end"] in whole[i] for i, found in enumerate(ours) for e in found) and sum(map(len, ours)) > 50


def test_the_pipeline_cuts_a_long_text_and_ours_reads_it_to_its_end(both):
    _, tagger, pipe = both
    text = "Peter Miller joined Nokia . " * 60
    with warnings.catch_warnings(action="ignore"):
        theirs = pipe(text, aggregation_strategy="first")
    ours = tagger(text, aggregation_strategy="first")
    assert max(e["end"] for e in theirs) < len(text) / 2
    assert max(e["end"] for e in ours) > len(text) - 30
    assert len(ours) > 2 * len(theirs)


def test_the_pipelines_scores_are_no_json(both):
    _, tagger, pipe = both
    text = "Peter Miller joined Nokia ."
    theirs = pipe(text, aggregation_strategy="simple")
    with pytest.raises(TypeError, match="float32"):
        json.dumps(theirs)
    assert theirs and json.loads(json.dumps(tagger(text))) == tagger(text) != []


def test_the_pipeline_splits_a_word_and_an_entity_of_bioes(both):
    """Its grouping of tags in these schemes. Ours is tested in tests/test_infer.py."""
    _, _, pipe = both

    def grouped(*tags):
        entity = {"score": 0.5, "word": "x", "index": 0, "start": 0, "end": 1}
        return len(pipe.group_entities([entity | {"entity": tag} for tag in tags]))

    assert grouped("B-PER", "I-PER") == 1
    assert grouped("B-PER", "E-PER") == 2  # one entity
    assert grouped("B-PER", "B-PER") == 2  # one entity if they are subwords of one word
