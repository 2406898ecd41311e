"""One tag scheme per corpus, spellings of tags, --tag_scheme, and models with the labels of IOB1."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import torch
from conftest import ROOT, SMALL, load, read, results, run, train, word_piece, write_conll
from test_data import as_ids
from transformers import BertConfig, BertForTokenClassification

import data
import infer
import metrics
from util import corpus_scan, data_report
from util.tag_schemes import decide_scheme, entity_spans, iob2_to_iob1, make_label_list, scheme_evidence
from util.tag_spelling import canonical, has_iob1_labels

# ---- spellings

STANDARD = ["O", "B-PER", "I-PER", "B-creative-work", "I-creative-work"]
SPELLINGS = {
    "B_PER": ["O", "B_PER", "I_PER", "B_creative-work", "I_creative-work"],
    "B:PER": ["O", "B:PER", "I:PER", "B:creative-work", "I:creative-work"],
    "B.PER": ["O", "B.PER", "I.PER", "B.creative-work", "I.creative-work"],
    "B/PER": ["O", "B/PER", "I/PER", "B/creative-work", "I/creative-work"],
    "B|PER": ["O", "B|PER", "I|PER", "B|creative-work", "I|creative-work"],
    "PER-B": ["O", "PER-B", "PER-I", "creative-work-B", "creative-work-I"],
    "PER_B": ["O", "PER_B", "PER_I", "creative-work_B", "creative-work_I"],
    "b-PER": ["o", "b-PER", "i-PER", "b-creative-work", "i-creative-work"],
}
PTB = "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN"
PTB = f"{PTB} VBP VBZ WDT WP WP$ WRB . , : `` '' # $ -LRB- -RRB- HYPH NFP ADD AFX".split()
UPOS = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
STTS = "ADJA ADJD ADV APPR APPRART APPO APZR ART CARD FM ITJ KOUI KOUS KON KOKOM NN NE PDS PDAT PIS PIAT PIDAT PPER"
STTS = f"{STTS} PPOSS PRELS PRF PWS PAV PTKZU PTKA SGML TRUNC VVFIN VVINF VVIZU VAFIN XY $, $. $(".split()
CTB = "AD AS BA CC CD CS DEC DEG DER DEV DT ETC FW IJ JJ LB LC M MSP NN NR NT OD ON P PN PU SB SP VA VC VE VV".split()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_are_read_like_the_usual_one(spelling):
    assert canonical(SPELLINGS[spelling]) == STANDARD
    assert canonical(STANDARD) == STANDARD
    assert canonical(canonical(SPELLINGS[spelling])) == STANDARD


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O B-PER M-PER E-PER S-PER", "O B-PER I-PER E-PER S-PER"),
        ("B-NN M-NN E-NN S-VV", "B-NN I-NN E-NN S-VV"),  # segmentation with parts of speech: no O
        ("O B-PER M-PER E-PER W-PER", "O B-PER I-PER E-PER S-PER"),  # BMEOW
        ("O B_PER M_PER E_PER S_PER", "O B-PER I-PER E-PER S-PER"),
        ("O PER-B PER-I PER-L PER-U", "O B-PER I-PER L-PER U-PER"),
        ("O I_PER", "O I-PER"),
        ("B I O", "B-_ I-_ O"),
        ("B M E S", "B-_ I-_ E-_ S-_"),
        ("B I E S O", "B-_ I-_ E-_ S-_ O"),
        ("o b-per i-per", "O B-per I-per"),
        ("O b_per i_per", "O B-per I-per"),
    ],
)
def test_labels_of_one_spelling(labels, expected):
    assert canonical(labels.split()) == expected.split()


@pytest.mark.parametrize(
    "labels",
    [
        PTB, UPOS, STTS, CTB, [*CTB, "O"], ["NN-B", "NN-I", "VV-B"], ["NN-B", "VV", "O"], ["B_NN", "I_NN"],
        ["O", "B_PER", "I-PER"], ["O", "B_PER", "NOUN"], ["O", "B_PER", "B:LOC"], ["O", "M-PER", "S-PER"],
        ["O", "W-PER"], ["O", "S_PER", "E_PER"], ["O", "B-PER", "I-PER", "M-PER"], ["B", "N", "V"], ["S", "U"],
        ["B", "O"], ["I", "O"], ["o", "O", "b-per"], ["B-PER", "o"], ["0", "1"], ["O"], [],
    ],
)  # fmt: skip
def test_ambiguous_and_plain_labels_stay(labels):
    assert canonical(labels) == labels


def test_label_lists_are_sorted_by_type_and_completed_in_the_spelling_of_the_file():
    assert make_label_list({"I_PER", "O", "B_LOC"}) == ["O", "B_LOC", "B_PER", "I_PER"]
    assert make_label_list({"PER-I", "O"}) == ["O", "PER-B", "PER-I"]
    assert make_label_list({"i-per", "o"}) == ["o", "b-per", "i-per"]
    assert make_label_list({"O", "M-PER", "E-PER", "S-LOC"}) == ["O", "S-LOC", "E-PER", "M-PER"]
    assert make_label_list({"I-PER", "E-PER", "O"}) == ["O", "E-PER", "I-PER"]  # IOE
    assert make_label_list({"B", "I", "O"}) == ["O", "B", "I"]
    assert make_label_list({"-LRB-", "NN", "O"}) == ["O", "-LRB-", "NN"]
    assert make_label_list(set(), ("O", "I_PER", "B_LOC")) == ["O", "I_PER", "B_LOC", "B_PER"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-X", "M-X", "E-X", "S-X"], [0, 2, 2, 3, 4]),
        (["X_B", "X_I", "O"], [1, 1, 2]),
        (["B", "I", "O"], [1, 1, 2]),
    ],
)
def test_later_subwords_continue_the_entity_in_every_spelling(labels, expected):
    assert data.tag_schemes.continuation_ids(labels).tolist() == expected


# ---- scores and entities

SENTENCES = {  # the same six entities; one PER directly follows another
    "BMES": "B-PER M-PER E-PER O S-PER S-PER O S-LOC | B-LOC E-LOC S-PER",
    "BMEOW": "B-PER M-PER E-PER O W-PER W-PER O W-LOC | B-LOC E-LOC W-PER",
    "BIOES": "B-PER I-PER E-PER O S-PER S-PER O S-LOC | B-LOC E-LOC S-PER",
    "B_PER": "B_PER I_PER I_PER O B_PER B_PER O B_LOC | B_LOC I_LOC B_PER",
    "PER-B": "PER-B PER-I PER-I O PER-B PER-B O LOC-B | LOC-B LOC-I PER-B",
    "IOE2": "I-PER I-PER E-PER O E-PER E-PER O E-LOC | I-LOC E-LOC E-PER",
    "IOE1": "I-PER I-PER I-PER O E-PER I-PER O I-LOC | I-LOC I-LOC I-PER",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_entities_of_every_spelling(name):
    tags, lengths, labels = as_ids(SENTENCES[name])
    assert entity_spans(tags, lengths, labels).tolist() == [[0, 3], [4, 5], [5, 6], [7, 8], [8, 10], [10, 11]]
    scheme = decide_scheme(scheme_evidence(tags, lengths, labels), labels)
    expected = {"BMES": "BIOES", "BMEOW": "BIOES", "B_PER": "IOB2", "PER-B": "IOB2"}.get(name, name)
    assert scheme == (expected, 0, [])
    # seqeval's strict mode finds no IOE1 entity of one word that ends in E-.
    for strict in (False, True) if name != "IOE1" else (False,):
        scores = metrics.score(tags, tags, lengths, labels, scheme.name, strict)
        assert {kind: row["support"] for kind, row in scores["per_entity"].items()} == {"PER": 4, "LOC": 2}
        assert scores["f1"] == 1
    metrics.check_strict(labels, scheme.name)


def test_a_split_has_the_entities_of_its_spelling(encoders, tmp_path):
    rows = {"train": [{"tokens": ["Anna", "Berg", "saw", "Oslo"], "tags": ["PER_B", "PER_I", "O", "LOC_B"]}]}
    split = load_splits(encoders["wordpiece"], tmp_path / "x", rows)["train"]
    assert split.entities == {("PER", "Anna Berg"), ("LOC", "Oslo")}
    assert "entities: LOC 1, PER 1" in data_report._count_types(split)


def in_standard_spelling(tag: str, scheme: str) -> str:
    """Written independently of util/tag_spelling.py."""
    if scheme == "bare":
        return tag if tag == "O" else f"{tag}-_"
    if scheme == "PER-B":
        return tag if tag == "O" else f"{tag[-1]}-{tag[:-2]}"
    return tag.replace("M-", "I-").replace("W-", "S-").replace("_", "-")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("name", "labels", "scheme"),
    [
        ("BMES", ["O", "B-PER", "M-PER", "E-PER", "S-PER", "B-LOC", "M-LOC", "E-LOC", "S-LOC"], "BIOES"),
        ("BMEOW", ["O", "B-PER", "M-PER", "E-PER", "W-PER"], "BIOES"),
        ("B_PER", ["O", "B_PER", "I_PER", "B_LOC", "I_LOC"], "IOB2"),
        ("PER-B", ["O", "PER-B", "PER-I", "LOC-B", "LOC-I"], "IOB2"),
        ("bare", ["O", "B", "I"], "IOB2"),
        ("IOE2", ["O", "I-PER", "E-PER", "I-LOC", "E-LOC"], "IOE2"),
    ],
)
def test_scores_are_seqevals_of_the_usual_spelling(name, labels, scheme, strict):
    random = np.random.default_rng(0)
    gold, lengths = random.integers(0, len(labels), 900), np.full(90, 10)
    predicted = np.where(random.random(900) < 0.6, gold, random.integers(0, len(labels), 900))
    names = [in_standard_spelling(label, name) for label in labels]
    tags = [[[names[i] for i in part] for part in np.split(ids, 90)] for ids in (gold, predicted)]
    seqeval_scheme = getattr(seqeval.scheme, scheme.replace("BIOES", "IOBES"))
    mode = {"mode": "strict", "scheme": seqeval_scheme} if strict else {}
    report = seqeval.metrics.classification_report(*tags, output_dict=True, **mode)
    scores = metrics.score(gold, predicted, lengths, labels, scheme, strict)
    assert 0.1 < scores["f1"] < 0.9 and scores["f1"] == report["micro avg"]["f1-score"]
    assert set(scores["per_entity"]) == {label[2:] for label in names if label != "O"}
    for kind, row in scores["per_entity"].items():
        assert row["f1"] == report[kind]["f1-score"] and row["support"] == report[kind]["support"]


# ---- the scheme of a corpus


def decided(text: str):
    tags, lengths, labels = as_ids(text)
    return decide_scheme(scheme_evidence(tags, lengths, labels), labels)


@pytest.mark.parametrize(
    ("text", "name", "exceptions"),
    [
        ("I-PER B-PER O I-LOC | I-ORG O B-ORG | I-PER I-PER", "IOB1", [6]),  # one of two B- is an error
        ("B-ORG O | I-PER O I-LOC", "IOB1", [0]),
        ("B-PER O I-PER | O", "IOB2", [2]),  # a tie
        ("B-PER I-PER B-LOC O I-LOC | I-PER B-ORG", "IOB2", [4, 5]),
        (" | ".join(["B-PER I-PER O B-LOC"] * 20 + ["S-PER O"]), "IOB2", [80]),  # a stray S-
        ("B-PER E-PER O S-LOC O I-PER", "BIOES", [5]),
        ("B-PER L-PER O U-LOC O E-PER", "BILOU", [5]),
        ("I-PER E-PER O E-LOC O I-LOC O", "IOE2", [5]),
        ("I-PER E-PER I-PER O I-LOC O E-LOC O", "IOE1", [6]),
        ("I-PER O", "IOB1", []),
        ("B-PER | I-PER O", "IOB2", [1]),  # no entity extends over a sentence border
        ("B-PER | E-PER S-LOC", "BIOES", [0, 1]),
    ],
)
def test_the_majority_decides_and_exceptions_are_counted(text, name, exceptions):
    assert decided(text) == (name, len(exceptions), exceptions[:3])


def test_conll_2003s_two_wrong_tags_are_exceptions():
    """Of 72 B- tags, 2 do not follow an entity of the same type."""
    text = " | ".join(["I-PER I-PER O"] * 400 + ["I-LOC B-LOC O"] * 70 + ["O B-MISC O", "B-ORG O"])
    assert decided(text) == ("IOB1", 2, [1200 + 210 + 1, 1200 + 210 + 3])


def in_iob1(tags: list[str]) -> list[str]:
    """IOB2 -> IOB1, written independently of util/tag_schemes.py."""
    is_b = [tag[0] == "B" and before[2:] == tag[2:] for before, tag in zip(["O", *tags], tags)]
    return [tag if tag == "O" or b else f"I-{tag[2:]}" for tag, b in zip(tags, is_b)]


def with_errors(sentences: list[dict], every: int) -> list[dict]:
    """IOB1 with a B- in place of every n-th I- that begins an entity."""
    number, changed = 0, []
    for sentence in sentences:
        tags = list(sentence["tags"])
        for i, (before, tag) in enumerate(zip(["O", *sentence["tags"]], sentence["tags"])):
            if tag[0] == "I" and before[2:] != tag[2:]:
                number += 1
                if number % every == 0:
                    tags[i] = f"B-{tag[2:]}"
        changed.append({"tokens": sentence["tokens"], "tags": tags})
    return changed


SPLITS = ("train", "validation", "test")


def splits_of_iob2() -> dict[str, list[dict]]:
    sentences = read(ROOT / "samples" / "train.conll")
    # Two adjacent entities of one type in every split: IOB1 has B- there.
    adjacent = {"tokens": ["Oslo", "Bergen", "Peter"], "tags": ["B-LOC", "B-LOC", "B-PER"]}
    parts = {"train": sentences[:300], "validation": sentences[300:420], "test": sentences[420:540]}
    return {split: [adjacent, *part] for split, part in parts.items()}


def load_splits(encoder: str, folder, sentences: dict[str, list[dict]], **flags):
    folder.mkdir()
    for split, rows in sentences.items():
        write_conll(folder / split, rows)
    splits, _ = load(encoder, size=64, **{f"{split}_file": folder / split for split in sentences}, **flags)
    return splits


def assert_same_tensors(found, expected):
    assert found.label_list == expected.label_list and found.fingerprint == expected.fingerprint
    assert found.tags.tolist() == expected.tags.tolist()
    assert found.label_counts.tolist() == expected.label_counts.tolist()
    for window, other in zip(found.windows, expected.windows, strict=True):
        assert all(np.array_equal(window[name], other[name]) for name in ("input_ids", "labels"))


@pytest.mark.parametrize("wrong", [*SPLITS, "none"])
def test_iob1_with_an_error_in_fifty_gives_the_tensors_of_iob2(wrong, encoders, tmp_path):
    iob2 = splits_of_iob2()
    iob1 = {split: [s | {"tags": in_iob1(s["tags"])} for s in rows] for split, rows in iob2.items()}
    if wrong != "none":
        iob1[wrong] = with_errors(iob1[wrong], 50)
        assert iob1[wrong] != [s | {"tags": in_iob1(s["tags"])} for s in iob2[wrong]]
    expected = load_splits(encoders["wordpiece"], tmp_path / "iob2", iob2)
    found = load_splits(encoders["wordpiece"], tmp_path / "iob1", iob1)
    for split in SPLITS:
        assert_same_tensors(found[split], expected[split])
        assert found[split].iob1 and found[split].tag_scheme == "IOB1" and found[split].scheme == "IOB2"
        assert (found[split].read_scheme == "IOB1") == (split != wrong)
        assert expected[split].read_scheme == "IOB2" and expected[split].num_violations == 0
    notes = [note for note in data_report.checks(found, 64) if "invalid" in note]
    assert len(notes) == (wrong != "none")
    if notes:
        count = found[wrong].num_violations
        assert found[wrong].read_scheme == f"IOB1, {count} exception{'s' * (count > 1)}"
        assert re.match(rf".*{wrong}: {count} invalid IOB1 transitions? kept .*: .*{wrong}:\d+ '.*' B-", notes[0])


def test_parts_of_a_corpus_may_lack_labels(encoders, tmp_path, monkeypatch):
    """A batch of two sentences has no M- or no I-: its evidence counts as in one batch."""
    bmes = ["B-PER E-PER", "O S-LOC", "O O", "B-PER M-PER M-PER E-PER", "O M-LOC"]
    rows = [{"tokens": list("abcd")[: len(tags.split())], "tags": tags.split()} for tags in bmes]
    write_conll(tmp_path / "x", rows)
    monkeypatch.setattr(corpus_scan, "SCAN_BATCH_SIZE", 2)
    split = load(encoders["wordpiece"], train_file=tmp_path / "x")[0]["train"]
    assert (split.scheme, split.read_scheme, split.first_violations) == ("BIOES", "BMES, 1 exception", [11])
    assert split.label_list == ["O", "M-LOC", "S-LOC", "B-PER", "E-PER", "M-PER"]
    assert split.label_counts.tolist() == [4, 1, 1, 2, 2, 2]


def test_a_split_in_another_scheme_counts_violations(encoders, tmp_path):
    iob2 = [{"tokens": ["Peter", "Miller", "sleeps"], "tags": ["B-PER", "I-PER", "O"]}] * 9
    inside = [{"tokens": ["Peter", "in", "Oslo"], "tags": ["I-PER", "O", "I-PER"]}] * 2
    splits = load_splits(encoders["wordpiece"], tmp_path / "1", {"train": iob2, "validation": inside})
    assert [split.read_scheme for split in splits.values()] == ["IOB2", "IOB2, 4 exceptions"]
    assert splits["validation"].first_violations == [0, 2, 3] and not splits["validation"].iob1
    assert [splits["train"].label_list[i] for i in splits["validation"].tags[:3]] == ["I-PER", "O", "I-PER"]
    place = tmp_path / "1" / "validation"
    assert (
        f"{place}: 4 invalid IOB2 transitions kept as in the file: {place}:1 'Peter' I-PER after the start"
        in "".join(data_report.checks(splits, 64))
    )
    bioes = [{"tokens": ["Peter", "Miller", "Oslo"], "tags": ["B-PER", "E-PER", "S-LOC"]}] * 3
    without_e = [{"tokens": ["Peter", "Miller", "sleeps"], "tags": ["B-PER", "I-PER", "O"]}]
    splits = load_splits(encoders["wordpiece"], tmp_path / "2", {"train": bioes, "validation": without_e})
    assert [split.read_scheme for split in splits.values()] == ["BIOES", "BIOES, 1 exception"]
    assert splits["validation"].first_violations == [1]


def test_tag_scheme_overrides_the_majority(encoders, tmp_path):
    rows = {"train": [{"tokens": ["Peter", "Miller", "Oslo"], "tags": ["I-PER", "I-PER", "B-LOC"]}] * 3}
    found = {}
    for flag in (None, "IOB1", "IOB2", "BIOES", "plain"):
        split = load_splits(encoders["wordpiece"], tmp_path / str(flag), rows, tag_scheme=flag)["train"]
        found[flag] = split.scheme, split.read_scheme, [split.label_list[i] for i in split.tags[:3]]
    as_it_is = ["I-PER", "I-PER", "B-LOC"]
    assert found[None] == ("IOB2", "IOB2, 3 exceptions", as_it_is)  # a tie of I- starts and B- tags
    assert found["IOB1"] == ("IOB2", "IOB1, 3 exceptions", ["B-PER", "I-PER", "B-LOC"])
    assert found["IOB2"] == ("IOB2", "IOB2, 3 exceptions", as_it_is)
    assert found["BIOES"] == ("BIOES", "BIOES, 9 exceptions", as_it_is)
    assert found["plain"] == (None, "plain tags", as_it_is)
    scores = metrics.score(split.tags, split.tags, split.lengths, split.label_list, split.scheme)
    assert {kind: row["support"] for kind, row in scores["per_entity"].items()} == {"I-PER": 6, "B-LOC": 3}
    rows["train"][0]["tags"][2] = "NOUN"
    with pytest.raises(ValueError, match="--tag_scheme IOB2: NOUN is not a tag of IOB2"):
        load_splits(encoders["wordpiece"], tmp_path / "wrong", rows, tag_scheme="IOB2")
    done = run("data.py", "--tag_scheme", "IOB3")
    assert done.returncode == 2 and "IOB1" in done.stderr and "plain" in done.stderr


# ---- notes


def notes_of(encoder: str, folder, tags: list[str]) -> list[str]:
    splits = load_splits(encoder, folder, {"train": [{"tokens": ["the", "of", "in", "a"], "tags": tags}]})
    return [line.partition(": ")[2] for line in data_report.checks(splits, 64)]


def test_what_labels_mean_is_noted_in_one_line(encoders, tmp_path):
    encoder = encoders["wordpiece"]
    assert notes_of(encoder, tmp_path / "1", ["B-PER", "M-PER", "E-PER", "S-LOC"]) == [
        "tags such as M-PER are read as I-PER"
    ]
    assert notes_of(encoder, tmp_path / "2", ["B_PER", "I_PER", "O", "B_LOC"]) == [
        "tags such as B_LOC are read as B-LOC"
    ]
    assert notes_of(encoder, tmp_path / "3", ["B", "I", "O", "B"]) == ["tags such as B are read as B-_"]
    assert notes_of(encoder, tmp_path / "4", ["B-PER", "I-PER", "O", "O"]) == ["the only entity type is PER"]
    assert notes_of(encoder, tmp_path / "5", ["B-PER", "I-PER", "O", "B-LOC"]) == []
    assert notes_of(encoder, tmp_path / "6", ["NOUN", "VERB", "O", "NOUN"]) == []
    assert notes_of(encoder, tmp_path / "7", ["3", "4", "0", "0"]) == [
        "tags are numbers without names: entities cannot be scored; "
        "Parquet files and save_to_disk folders with ClassLabel columns have names"
    ]
    assert notes_of(encoder, tmp_path / "8", ["I-PER", "I-PER", "O", "I-LOC"]) == [
        f"{tmp_path / '8' / 'train'}: 2 IOB1 tags converted to IOB2"
    ]
    (note,) = notes_of(encoder, tmp_path / "9", ["NOUN", "B-PER", "O", "O"])
    assert note.startswith("NOUN has no prefix, but B-PER has one")


# ---- real commands


def tag(*flags) -> str:
    """Runs infer.py in this process, which has to succeed. Returns what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["infer.py", *map(str, flags)])
        infer.main()
    return printed.getvalue()


def tags_in(conll: str) -> list[list[str]]:
    return [[line.split("\t")[1] for line in part.splitlines()] for part in conll.strip().split("\n\n")]


def in_bmes(tags: list[str]) -> list[str]:
    found = []
    for tag_, after in zip(tags, [*tags[1:], "O"]):
        last = after[:1] != "I"
        letter = {("B", True): "S", ("B", False): "B", ("I", True): "E", ("I", False): "M"}.get((tag_[0], last), "O")
        found.append("O" if tag_ == "O" else f"{letter}-{tag_[2:]}")
    return found


TRAIN = ["--learning_rate", 5e-3, "--precision", "fp32"]


@pytest.fixture(scope="module")
def bmes(encoders, tmp_path_factory) -> Path:
    """A folder with train, validation and a model that was trained on them. Its entities have one to four words."""
    folder = tmp_path_factory.mktemp("bmes")
    sentences = [s for s in read(ROOT / "samples" / "train.conll") if any(tag != "O" for tag in s["tags"])]
    long = {"tokens": "Bank of New York opened".split(), "tags": ["B-ORG", "I-ORG", "I-ORG", "I-ORG", "O"]}
    rows = [s | {"tags": in_bmes(s["tags"])} for pair in zip(sentences[:300], [long] * 300) for s in pair]
    write_conll(folder / "train.conll", rows[:480])
    write_conll(folder / "validation.conll", rows[480:])
    files = ["--train_file", folder / "train.conll", "--validation_file", folder / "validation.conll"]
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_steps", 60]
    train(*files, *flags, *TRAIN, "--output_dir", folder / "out")
    return folder


def test_bmes_is_trained_scored_tagged_and_written_in_its_own_letters(bmes):
    measured = results(bmes / "out")
    config = json.loads((bmes / "out" / "config.json").read_text())
    assert config["tag_scheme"] == "BIOES" and "M-ORG" in config["label2id"] and "I-ORG" not in config["label2id"]
    gold = [s["tags"] for s in read(bmes / "validation.conll")]
    predicted = tags_in(
        tag(bmes / "out", "--input_file", bmes / "validation.conll", "--format", "conll", "--precision", "fp32")
    )
    assert "M-ORG" in sum(predicted, []) and not any(tag[0] == "I" for tag in sum(predicted, []))
    usual = [[[tag.replace("M-", "I-") for tag in tags] for tags in side] for side in (gold, predicted)]
    assert 0.3 < measured["eval_f1"] == seqeval.metrics.f1_score(*usual)
    assert measured["eval_accuracy"] == seqeval.metrics.accuracy_score(*usual)
    report = seqeval.metrics.classification_report(*usual, output_dict=True, zero_division=0)
    kinds = {kind: row["support"] for kind, row in report.items() if " avg" not in kind}
    assert {kind: row["support"] for kind, row in measured["eval_per_entity"].items()} == kinds
    printed = tag(bmes / "out", "--input_file", bmes / "validation.conll", "--evaluate", "--precision", "fp32")
    assert f"accuracy {measured['eval_accuracy']:.4f}" in printed and f"{measured['eval_f1']:.4f}" in printed
    entities = infer.Tagger(str(bmes / "out"), precision="fp32")("Bank of New York opened")
    assert [(e["entity_group"], e["word"]) for e in entities] == [("ORG", "Bank of New York")]


def test_outside_is_o_in_lower_case_too(bmes, monkeypatch):
    tagger = infer.Tagger(str(bmes / "out"), precision="fp32")
    monkeypatch.setattr(tagger, "label_list", ["o", "b-per", "i-per"])
    sure = np.eye(3)[[1, 2, 0]]
    monkeypatch.setattr(tagger, "probabilities", lambda words: (sure, np.arange(3)))
    monkeypatch.setattr(infer, "subword_offsets", lambda *_: [[[(0, 1)]] * 3])
    assert [(e["entity_group"], e["word"]) for e in tagger("a b c")] == [("per", "a b")]
    assert [e["entity"] for e in tagger("a b c", aggregation_strategy="none")] == ["b-per", "i-per"]


def test_evaluation_reads_a_file_of_the_run_as_training_read_it(encoders, tmp_path):
    """The validation split alone would be taken for IOB1. Elsewhere, its own majority decides."""
    iob2 = read(ROOT / "samples" / "train.conll")[:200]
    inside = [s | {"tags": in_iob1(s["tags"])} for s in read(ROOT / "samples" / "validation.conll")[:40]]
    write_conll(tmp_path / "train", iob2)
    write_conll(tmp_path / "validation", inside)
    write_conll(tmp_path / "copy", inside)
    files = ["--train_file", tmp_path / "train", "--validation_file", tmp_path / "validation"]
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_steps", 30]
    train(*files, *flags, *TRAIN, "--output_dir", tmp_path / "out")
    measured = results(tmp_path / "out")
    expected = f"loss {measured['eval_loss']:.4f}, accuracy {measured['eval_accuracy']:.4f}"
    flags = ["--evaluate", "--precision", "fp32", "--input_file"]
    assert expected in tag(tmp_path / "out", *flags, tmp_path / "validation")
    assert expected not in tag(tmp_path / "out", *flags, tmp_path / "copy")


# ---- models without B-X

IOB1_LABELS = ["O", "I-PER", "I-ORG", "B-ORG", "I-LOC"]


def test_labels_of_iob1_models_are_recognized():
    assert has_iob1_labels(IOB1_LABELS) and has_iob1_labels(["O", "I_PER", "I_LOC"])
    for labels in (STANDARD, UPOS, ["O", "I-X", "E-X"], ["O", "M-X", "E-X"], ["O", "I-X", "E-X", "S-X"], ["O", "B-X"]):
        assert not has_iob1_labels(labels)


def test_iob2_becomes_iob1():
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    tags = np.array([1, 2, 1, 0, 3, 1, 3, 3, 4])
    expected = [2, 2, 1, 0, 4, 2, 4, 4, 4]  # the last sentence begins with the eighth word
    assert iob2_to_iob1(tags, np.array([7, 2]), labels).tolist() == expected


@pytest.fixture(scope="module")
def iob1_model(tmp_path_factory) -> Path:
    """A checkpoint as on the Hub: labels of IOB1, and no file of train.py."""
    folder, tokenizer = tmp_path_factory.mktemp("iob1"), word_piece()
    torch.manual_seed(1)
    names = dict(enumerate(IOB1_LABELS))
    config = BertConfig(vocab_size=len(tokenizer), id2label=names, label2id={v: k for k, v in names.items()}, **SMALL)
    model = BertForTokenClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)  # so that every label is predicted
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2"])
def test_a_model_without_b_is_evaluated_on_both_schemes(scheme, iob1_model, tmp_path, capsys):
    def is_known(s):
        return set(in_iob1(s["tags"])) <= set(IOB1_LABELS)

    sentences = [s for s in read(ROOT / "samples" / "train.conll")[:400] if is_known(s)]
    sentences.append({"tokens": ["Nokia", "Siemens"], "tags": ["B-ORG", "B-ORG"]})
    gold = [in_iob1(s["tags"]) for s in sentences]
    assert {"I-PER", "I-ORG", "B-ORG", "I-LOC"} <= set(sum(gold, []))
    rows = [s | {"tags": tags} for s, tags in zip(sentences, gold)] if scheme == "IOB1" else sentences
    write_conll(tmp_path / "x.conll", rows)
    flags = ["--input_file", tmp_path / "x.conll", "--precision", "fp32"]
    predicted = tags_in(tag(iob1_model, *flags, "--format", "conll"))
    assert len(set(sum(predicted, []))) >= 4

    tagger = infer.Tagger(str(iob1_model), precision="fp32")
    probabilities, word_ids = tagger.probabilities([s["tokens"] for s in sentences])
    ids = [IOB1_LABELS.index(tag_) for tag_ in sum(gold, [])]
    of_gold = probabilities[data.first_subwords(word_ids)][np.arange(len(ids)), ids]
    loss = -np.log(of_gold.astype(np.float64)).mean()
    accuracy = seqeval.metrics.accuracy_score(gold, predicted)
    printed = tag(iob1_model, *flags, "--evaluate", "--output_file", tmp_path / "report.html")
    shown = float(re.search(r"loss ([0-9.]+), ", printed)[1])
    assert shown == pytest.approx(loss, abs=2e-4) and f"accuracy {accuracy:.4f}" in printed
    report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    for kind in ("PER", "ORG", "LOC"):
        score = "([0-9.]+) ± [0-9.]+"
        row = re.search(rf"^{kind} +{score} +{score} +{score} +([0-9,]+)$", printed, re.MULTILINE)
        numbers = [f"{report[kind][name]:.4f}" for name in ("precision", "recall", "f1-score")]
        assert [*row.groups()] == [*numbers, f"{report[kind]['support']:,}"]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note: ", "warning: "))]
    num_starts = sum(one != other for s, tags in zip(sentences, gold) for one, other in zip(s["tags"], tags))
    converted = f"note: {num_starts:,} IOB2 tags converted to IOB1, the scheme of the model's labels"
    assert notes == ([converted] if scheme == "IOB2" else [])
    assert "B-ORG" not in (tmp_path / "report.html").read_text()  # types only


def test_labels_that_an_iob1_model_lacks_are_reported(iob1_model, tmp_path, capsys):
    (tmp_path / "x.conll").write_text("Peter B-PER\nMaria B-PER\nOslo B-ODD\n")
    printed = tag(iob1_model, "--input_file", tmp_path / "x.conll", "--evaluate")
    assert "ODD" in printed and "loss" not in printed
    assert "warning: the model never predicts B-ODD, B-PER\n" in capsys.readouterr().err
