"""Encoders, heads and tokenizers are loaded as they are, or refused with one line and exit code 2."""

import json
import pickle
import shutil
import sys
import time
from pathlib import Path

import conftest
import pytest
import sentencepiece
import tokenizer_files
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

import infer
import model as modeling
import train as script
from util.distributed import tell_if_slow
from util.loading_errors import one_line_errors
from util.pretrained import load_config, load_encoder, load_encoder_model, load_tokenizer, load_trained_model
from util.vocabulary import check_rows

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437955512\n"
NO_TOKENIZER = "no tokenizer files (tokenizer.json, vocab.txt, ...)"
LABELS = ["O", "B-X", "I-X"]


@pytest.fixture(scope="session")
def tagger(encoders, tmp_path_factory) -> Path:
    """A trained model as train.py saves it."""
    folder = tmp_path_factory.mktemp("tagger")
    modeling.load_model(encoders["wordpiece"], LABELS).save_pretrained(folder)
    load_tokenizer(encoders["wordpiece"]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tagger, tmp_path) -> Path:
    return Path(shutil.copytree(tagger, tmp_path / "model"))


def error_of(main, name: str, monkeypatch, capsys, *flags) -> str:
    """The only line that a script prints on stderr."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("reading:")]
    assert stopped.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def edit(path: Path, **values) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = {key: value for key, value in (json.loads(path.read_text()) | values).items() if value is not None}
    path.write_text(json.dumps(content))


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def move_into(folder: Path, name: str) -> None:
    files = list(folder.iterdir())
    (folder / name).mkdir()
    for path in files:
        shutil.move(path, folder / name)


def shard(folder: Path) -> None:
    remove(folder, "model.safetensors")
    names = {"bert.a": "model-00001-of-00002.safetensors", "bert.b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def other_weights(folder: Path, name: str) -> None:
    remove(folder, "model.safetensors")
    (folder / name).write_bytes(b"weights")


WEIGHTS, CONFIG, TOKENIZER, SETTINGS = "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"
FAULTS = {  # a change of the folder -> a part of the line
    "truncated": (lambda f: truncate(f / WEIGHTS, 50_000), "model.safetensors is truncated (50,000 of 205,"),
    "truncated header": (lambda f: truncate(f / WEIGHTS, 100), "model.safetensors is truncated or corrupt (100 bytes)"),
    "page": (lambda f: (f / WEIGHTS).write_text("<html>" * 999), "model.safetensors is truncated or corrupt"),
    "empty": (lambda f: truncate(f / WEIGHTS, 0), "model.safetensors is empty: download it again"),
    "pointer": (lambda f: (f / WEIGHTS).write_text(LFS_POINTER), "model.safetensors is a pointer of Git LFS and not"),
    "tokenizer pointer": (
        lambda f: (f / TOKENIZER).write_text(LFS_POINTER),
        "tokenizer.json is a pointer of Git LFS and not the file: run git lfs pull in the folder",
    ),
    "vocabulary pointer": (
        lambda f: (remove(f, TOKENIZER, "tokenizer_config.json"), (f / "vocab.txt").write_text(LFS_POINTER)),
        "vocab.txt is a pointer of Git LFS and not the file",
    ),
    "bytes after the weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"),
        "model.safetensors is corrupt (205,061 of 205,060 bytes)",
    ),
    "other name": (lambda f: (f / WEIGHTS).rename(f / "a.safetensors"), "it has no model.safetensors, but a.safetens"),
    "shards without index": (
        lambda f: (f / WEIGHTS).rename(f / "model-00001-of-00002.safetensors"),
        "the index of model-00001-of-00002.safetensors is missing",
    ),
    "broken index": (
        lambda f: (shard(f), (f / "model.safetensors.index.json").write_text('{"weight_map": {}}')),
        "model.safetensors.index.json has no weight_map and metadata",
    ),
    "link to nothing": (
        lambda f: (remove(f, TOKENIZER), (f / TOKENIZER).symlink_to("/nothing/tokenizer.json")),
        "tokenizer.json is a link to a file that does not exist: copy the file",
    ),
    "folder as file": (lambda f: (remove(f, CONFIG), (f / CONFIG).mkdir()), "config.json is a folder and not a file"),
    "attention": (lambda f: edit(f / CONFIG, attn_implementation="flash_attention_2"), "remove attn_implementation"),
    "no weights": (lambda f: remove(f, WEIGHTS), "it has no weights: copy model.safetensors into it"),
    "missing shards": (shard, "2 of 2 files of weights are missing (model-00001-of-00002.safetensors)"),
    "TensorFlow": (lambda f: other_weights(f, "tf_model.h5"), "it has weights of TensorFlow only"),
    "ONNX": (lambda f: other_weights(f, "model.onnx"), "it has weights of ONNX only"),
    "GGUF": (lambda f: other_weights(f, "model.gguf"), "it has weights of GGUF only"),
    "broken pickle": (lambda f: other_weights(f, "pytorch_model.bin"), "pytorch_model.bin is truncated or corrupt"),
    "code in a pickle": (
        lambda f: (remove(f, WEIGHTS), torch.save({"a": print}, f / "pytorch_model.bin")),
        "its pickle holds more than tensors, and is never run",
    ),
    "code in a plain pickle": (
        lambda f: (remove(f, WEIGHTS), (f / "pytorch_model.bin").write_bytes(pickle.dumps(print))),
        "its pickle holds more than tensors, and is never run",
    ),
    "no config": (lambda f: remove(f, CONFIG), "there is no config.json in it, but model.safetensors, tokenizer.json"),
    "model below": (lambda f: move_into(f, "0_Transformer"), "model/0_Transformer?"),
    "broken config": (lambda f: (f / CONFIG).write_text('{"a":'), "config.json is not JSON"),
    "list as config": (lambda f: (f / CONFIG).write_text("[1]"), "config.json is not an object"),
    "no type": (lambda f: edit(f / CONFIG, model_type=None), "config.json names no model_type"),
    "unknown type": (lambda f: edit(f / CONFIG, model_type="bert9"), "does not know bert9: update it"),
    "no head": (
        lambda f: edit(f / CONFIG, model_type="vit"),
        "transformers has no token-classification head for vit; choose another encoder",
    ),
    "remote code": (
        lambda f: edit(f / CONFIG, model_type="custom", auto_map={"AutoConfig": "c.C", "AutoModel": "m.M"}),
        "it needs code from its repository (auto_map), which is never run",
    ),
    "quantized": (
        lambda f: edit(f / CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "its weights are quantized, and cannot be trained",
    ),
    "type of a value": (lambda f: edit(f / CONFIG, hidden_size="32"), "expected int, got str (value: '32')"),
    "width": (lambda f: edit(f / CONFIG, hidden_size=64), "has shape (900, 32) in the file, and (900, 64) by config"),
    "labels": (lambda f: edit(f / CONFIG, id2label=[1]), "cannot be loaded: AttributeError: 'list' object has no"),
    "no tokenizer": (lambda f: remove(f, TOKENIZER, "tokenizer_config.json"), NO_TOKENIZER),
    "settings of a tokenizer alone": (lambda f: remove(f, TOKENIZER), NO_TOKENIZER),
    "broken tokenizer": (lambda f: (f / TOKENIZER).write_text('{"a"'), "tokenizer.json is not JSON"),
    "tokenizer without content": (
        lambda f: (f / TOKENIZER).write_text("{}"),
        "tokenizer.json cannot be read: download",
    ),
    "null as settings": (lambda f: (f / SETTINGS).write_text("null"), "tokenizer_config.json is not an object"),
    "missing settings": (
        lambda f: remove(f, SETTINGS),
        "BertTokenizer makes other subwords than tokenizer.json: ['of', 'sa', ",
    ),
    "class of another tokenizer": (
        lambda f: edit(f / SETTINGS, tokenizer_class="RobertaTokenizer"),
        "correct tokenizer_class in tokenizer_config.json",
    ),
    "vocabulary without the unknown token": (
        lambda f: (remove(f, TOKENIZER, SETTINGS), (f / "vocab.txt").write_text("a\nb\n")),
        "Missing [UNK] token from the vocabulary; BertTokenizer does not tokenize words",
    ),
    **{
        f"limit {limit}": (
            lambda f, limit=limit: edit(f / SETTINGS, model_max_length=limit),
            f"model_max_length {limit!r} leaves no room beside 2 special tokens; correct it in tokenizer_config.json",
        )
        for limit in (-1, 0, 2, "x")
    },
    "no SentencePiece model": (
        lambda f: (
            remove(f, TOKENIZER, "tokenizer_config.json"),
            edit(f / CONFIG, model_type="deberta-v2"),
            (f / "spm.model").write_text("junk"),
        ),
        "spm.model is not a SentencePiece model: download it again",
    ),
    "other vocabulary": (
        lambda f: edit(f / CONFIG, vocab_size=800),
        "the tokenizer has 100 ids above the 800 rows of the encoder's embedding, such as 800 for",
    ),
    "other architecture": (
        lambda f: edit(f / CONFIG, model_type="distilbert", dim=32, n_layers=2, n_heads=2),
        "weights ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_files_is_one_line_of_both_scripts(fault, folder, corpus, monkeypatch, capsys, tmp_path):
    change, expected = FAULTS[fault]
    change(folder)
    flags = ["--model_name_or_path", folder, "--output_dir", tmp_path / "out", *conftest.flat(corpus)]
    for line in (
        error_of(script.main, "train.py", monkeypatch, capsys, *flags),
        error_of(infer.main, "infer.py", monkeypatch, capsys, folder, "Maria lives in Oslo."),
    ):
        assert line.startswith(f"error: {folder}: ") and expected in line and "Traceback" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, content", [("pytorch_model.bin", LFS_POINTER), ("tf_model.h5", LFS_POINTER), ("modules.json", "")]
)
def test_a_file_that_is_not_read_may_be_missing(name, content, folder):
    """After `git lfs pull --include model.safetensors`, the other files are still pointers."""
    (folder / name).write_text(content)
    load_tokenizer(str(folder))
    modeling.from_pretrained(str(folder))


def test_names_that_are_no_model(folder, monkeypatch, capsys):
    expected = {
        f"{folder}/config.json": f"this is a file: pass its folder, {folder}",
        f"{folder}/nothing": "there is no such folder",
        "./nothing": "there is no such folder",
        "https://huggingface.co/bert-base-cased": "this is an address: pass a folder, or the encoder's id on the Hub",
        "someone/no-such-encoder": "it is not in the cache, and the Hub cannot be reached",
    }
    for name, part in expected.items():
        assert part in error_of(infer.main, "infer.py", monkeypatch, capsys, name, "Maria lives in Oslo.")


def test_a_checkpoint_to_resume_from_is_no_model(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"checkpoint to resume from: the trained model is in {tmp_path}$"):
        load_encoder(str(checkpoint), None)


@pytest.mark.parametrize(
    "error, remedy",
    [
        (ImportError("You need to install fugashi to use MecabTokenizer. See https://x for it."), "install fugashi"),
        (ImportError("You need to install sacremoses to use XLMTokenizer."), "pip install sacremoses"),
        (ModuleNotFoundError("No module named 'ipadic'", name="ipadic"), "pip install ipadic"),
        (ImportError("4-bit requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`"), "install bitsandbytes"),
        (ValueError("`tiktoken` is required to read a `tiktoken` file."), "pip install tiktoken"),
        (KeyError("foo"), "check that it is a complete encoder"),
        (ValueError("hidden_size is required"), "check that it is a complete encoder"),
        (ImportError("Please install the newest version of `foo`"), "check that it is a complete encoder"),
        (RuntimeError("a table\n\x1b[1m key | status \x1b[0m\n-----+----\n"), "RuntimeError: key | status; check"),
        (OSError(), "OSError: no message; check"),
        (OSError("X is a gated repo. Access is restricted"), "accept its conditions on https://huggingface.co/x/y"),
    ],
)
def test_any_exception_becomes_one_line_that_says_what_to_do(error, remedy):
    with pytest.raises(ValueError) as raised, one_line_errors("x/y"):
        raise error
    text = str(raised.value)
    assert text.startswith(f"x/y: cannot be loaded: {type(error).__name__}: ")
    assert remedy in text and "\n" not in text


def test_a_panic_of_the_tokenizers_library_is_one_line(folder):
    """It is no Exception. Rust prints a trace of its own on the descriptor of stderr."""
    edit(folder / TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(ValueError, match="cannot be loaded: PanicException: ") as raised:
        load_tokenizer(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError])
def test_signals_and_lack_of_memory_pass(error):
    with pytest.raises(error), one_line_errors("x"):
        raise error


# ----------------------------------------------------------------------------------------------------------------------
# Heads


def test_a_model_without_a_trained_head_does_not_tag(encoders, folder, monkeypatch, capsys):
    text = "Maria lives in Oslo."
    train_first = f"; train it first: python train.py --model_name_or_path {folder}"
    error = error_of(infer.main, "infer.py", monkeypatch, capsys, encoders["wordpiece"], text)
    assert f"{encoders['wordpiece']}: has no trained token-classification head (classifier.bias is missing)" in error
    for kind in ("ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"):
        getattr(transformers, f"Bert{kind}").from_pretrained(encoders["wordpiece"]).save_pretrained(folder)
        error = error_of(infer.main, "infer.py", monkeypatch, capsys, folder, text)
        assert "has no trained token-classification head (" in error and error.endswith(train_first)


def test_every_weight_of_a_model_that_tags_must_be_in_its_file(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing \(bert.encoder.layer.1.output.dense.weight\)"):
        load_trained_model(str(folder))
    warnings: list[str] = []
    load_encoder_model(str(folder), load_config(str(folder), ["O", "A"]), warnings.append)
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: {folder}: 1 weights are not in the file")


def test_weights_of_the_encoder_that_are_missing_are_named_in_training(encoders, corpus, tmp_path):
    encoder = Path(shutil.copytree(encoders["wordpiece"], tmp_path / "encoder"))
    tensors = load_file(encoder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, encoder / "model.safetensors", {"format": "pt"})
    flags = {"--model_name_or_path": encoder, "--output_dir": tmp_path / "out", "--max_steps": 1}
    lines = conftest.train(*conftest.flat(corpus | flags)).splitlines()
    missing = "1 weights are not in the file and start at random: bert.encoder.layer.1.output.dense.weight"
    assert lines.count(f"warning: {encoder}: {missing}") == 1


@pytest.mark.parametrize("num_layers, line", [(1, "16 weights of the file are not used"), (3, "start at random")])
def test_an_encoder_of_another_depth_does_not_tag_and_is_warned_of(num_layers, line, folder, corpus, tmp_path):
    edit(folder / "config.json", num_hidden_layers=num_layers)
    with pytest.raises(ValueError, match=r"describes a smaller encoder, without 16|16 weights are missing"):
        load_trained_model(str(folder))
    flags = ["--model_name_or_path", folder, "--max_steps", 1, "--output_dir", tmp_path / "out"]
    printed = conftest.train(*flags, *conftest.flat(corpus))
    assert [line in text for text in printed.splitlines() if text.startswith("warning: ")] == [True]


@pytest.mark.parametrize(
    "switch", [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}]
)
def test_switches_of_the_output_have_no_influence(switch, folder, corpus, tmp_path):
    edit(folder / "config.json", **switch)
    flags = ["--model_name_or_path", folder, "--max_steps", 1, "--output_dir", tmp_path / "out"]
    conftest.train(*flags, *conftest.flat(corpus))
    assert infer.Tagger(str(tmp_path / "out")).tag([]) == []


def test_a_tagger_whose_tokenizer_was_replaced_is_refused(encoders, corpus, tmp_path, monkeypatch, capsys):
    """Also if the embedding has rows for all of its ids."""
    flags = ["--model_name_or_path", encoders["wordpiece"], "--max_steps", 1, "--output_dir", tmp_path]
    conftest.train(*flags, *conftest.flat(corpus))
    assert infer.Tagger(str(tmp_path))("Maria lives in Oslo.") is not None
    remove(tmp_path, TOKENIZER, SETTINGS)
    AutoTokenizer.from_pretrained(encoders["unigram"]).save_pretrained(tmp_path)
    error = error_of(infer.main, "infer.py", monkeypatch, capsys, tmp_path, "Maria")
    assert error == (
        f"error: {tmp_path}: its tokenizer is not the one that it was trained with; copy the files of train.py"
    )


def test_labels_that_are_no_text(folder):
    edit(folder / "config.json", id2label={"0": 0, "1": None, "2": "I-X"}, label2id=None)
    assert infer.Tagger(str(folder)).label_list == ["0", "LABEL_1", "I-X"]


def test_labels_that_do_not_fit_the_head(folder):
    edit(folder / "config.json", id2label={i: f"L{i}" for i in range(5)}, label2id=None)
    with pytest.raises(ValueError, match=r"classifier.weight has shape \(3, 32\) in the file, and \(5, 32\) by config"):
        load_trained_model(str(folder))


@pytest.mark.parametrize("architectures", [None, ["BertCrfForNer"]])
def test_a_tagger_of_a_class_that_transformers_does_not_have_tags(architectures, folder):
    edit(folder / "config.json", architectures=architectures)
    assert infer.Tagger(str(folder)).label_list == LABELS


def test_a_label_without_a_name_is_usable(folder):
    edit(folder / "config.json", id2label={"0": "O", "1": "B-X", "5": "I-X"}, label2id=None)
    assert infer.Tagger(str(folder)).label_list == ["O", "B-X", "LABEL_2"]


def test_only_the_head_of_a_tagger_with_the_same_labels_is_kept(tagger, encoders, tmp_path):
    tagging = load_file(tagger / "model.safetensors")["classifier.weight"]
    same = modeling.load_model(str(tagger), LABELS).classifier
    assert torch.equal(same.weight, tagging)
    config = load_config(encoders["wordpiece"], LABELS)
    other = transformers.BertForSequenceClassification.from_pretrained(encoders["wordpiece"], config=config)
    other.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = modeling.load_model(str(tmp_path), LABELS).classifier
    assert not torch.equal(drawn.weight, other.classifier.weight)
    # As a new head: normal with the encoder's initializer_range, and a bias of 0.
    assert 0.01 < drawn.weight.std() < 0.03 and not drawn.bias.any()


@pytest.mark.parametrize("family", ["Albert", "Electra", "XLNet", "Funnel", "MobileBert", "GPT2", "DistilBert"])
def test_heads_of_other_families_are_drawn_anew_and_reload(family, tmp_path, encoders):
    small = {"Funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64}}
    sizes = small.get(family, conftest.SMALL | {"embedding_size": 32})
    if family in ("XLNet", "GPT2", "DistilBert"):
        names = {"XLNet": "d_model n_layer n_head d_inner", "GPT2": "n_embd n_layer n_head n_inner"}
        sizes = dict(zip(names.get(family, "dim n_layers n_heads hidden_dim").split(), (32, 2, 2, 64)))
    config = getattr(transformers, f"{family}Config")(vocab_size=900, num_labels=3, **sizes)
    model = AutoModelForTokenClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    saved = load_trained_model(str(tmp_path)).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    redrawn = load_encoder_model(str(tmp_path), load_config(str(tmp_path), LABELS)).state_dict()
    changed = {name for name in saved if not torch.equal(saved[name], redrawn[name])}
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    assert changed == {name for name, parameter in model.named_parameters() if id(parameter) not in encoder}


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizers


def test_a_special_token_beyond_the_embedding_is_split_like_any_text(folder):
    """Some encoders were saved with a token that was added, but that no text is given."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>"]})
    tokenizer.save_pretrained(folder)
    entities = infer.Tagger(str(folder))("Maria <ent> lives in Oslo.", "none")
    assert all(entity["end"] <= 26 for entity in entities)
    tokenizer = load_tokenizer(str(folder))
    check_rows(str(folder), tokenizer, load_config(str(folder)))
    assert max(tokenizer("Maria <ent> lives")["input_ids"]) < 900
    tokenizer.add_tokens(["newword"])
    with pytest.raises(ValueError, match="1 ids above the 900 rows .* such as 900 for 'newword'"):
        check_rows(str(folder), tokenizer, load_config(str(folder)))


@pytest.mark.parametrize("limit, expected", [(3, 3), (64.5, 64), (1e30, 10**30), (None, 10**30)])
def test_the_limit_of_a_tokenizer_is_a_whole_number(limit, expected, folder):
    edit(folder / SETTINGS, model_max_length=limit)
    found = load_tokenizer(str(folder)).model_max_length
    assert found == expected and isinstance(found, int)


def test_padding_beyond_the_embedding_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="1 ids above the 900 rows .* such as 900 for '<padding>'"):
        load_encoder(str(folder), None)


@pytest.mark.parametrize(
    "merges, line",
    [
        (None, "merges.txt is missing: copy it"),
        ("", "the tokenizer has 0 merges for 6"),
        ("#version: 0.2\nt h\n", "the tokenizer has 1 merges for 6"),
        ("t\n", "the files of its vocabulary are broken: download them again"),
    ],
)
def test_incomplete_merges_are_no_tokenizer(merges, line, tmp_path):
    """Words would be split into characters."""
    tokenizer_files.write_encoder("RobertaTokenizer", tmp_path, weights=True)
    remove(tmp_path, "merges.txt")
    if merges is not None:
        (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ValueError, match=line):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("settings", [True, False])
def test_a_cased_vocabulary_that_is_lowercased_is_warned_of(settings, corpus, tmp_path):
    """Without tokenizer_config.json, BertTokenizer lowercases."""
    tokenizer_files.write_encoder("BertTokenizer", tmp_path, weights=True)
    if not settings:
        remove(tmp_path, SETTINGS)
    flags = ["--model_name_or_path", tmp_path, "--max_steps", 1, "--output_dir", tmp_path / "out"]
    printed = conftest.train(*flags, *conftest.flat(corpus))
    assert ("set do_lower_case to false in tokenizer_config.json" in printed) is not settings


def test_a_tokenizer_that_is_not_for_text_is_named(encoders, tmp_path):
    shutil.copytree(encoders["bpe"], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / SETTINGS, tokenizer_class="LukeTokenizer")
    with pytest.raises(ValueError, match="LukeTokenizer does not tokenize words; correct its vocabulary"):
        load_tokenizer(str(tmp_path))


def test_a_tiny_vocabulary_is_not_an_empty_one(folder):
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]").save_pretrained(folder)
    assert len(load_encoder(str(folder), 16)[1]) == 2


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sentences") / "sentences.txt"
    path.write_text("\n".join(map(" ".join, conftest.sample_words())), encoding="utf-8")
    return path


BERT_IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
BERT_PIECES = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
SENTENCE_PIECE = {  # model_type -> file, options of the training, the special tokens around "a"
    "deberta-v2": ("spm.model", BERT_IDS | BERT_PIECES, ["[CLS]", "[SEP]"]),
    "mt5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, ["</s>"]),
    "t5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, ["</s>"]),
    "xlnet": ("spiece.model", {"control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>"]}, ["<sep>", "<cls>"]),
    "camembert": ("sentencepiece.bpe.model", {}, ["<s>", "</s>"]),
    "xlm-roberta": ("sentencepiece.bpe.model", {}, ["<s>", "</s>"]),
    "big_bird": ("spiece.model", BERT_IDS | {"control_symbols": ["[SEP]", "[MASK]", "[CLS]"]}, ["[CLS]", "[SEP]"]),
}


@pytest.mark.parametrize("model_type", SENTENCE_PIECE)
def test_encoders_with_only_a_sentencepiece_model(model_type, sentences, tmp_path, monkeypatch, capsys):
    """As DeBERTa-v3, mDeBERTa and mT5 are published: their subwords are those of sentencepiece."""
    file, options, special = SENTENCE_PIECE[model_type]
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences), model_prefix=str(tmp_path / "spm"), vocab_size=600, minloglevel=2, **options
    )
    (tmp_path / "spm.model").rename(tmp_path / file)
    transformers.AutoConfig.for_model(model_type, vocab_size=900).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / file))
    for words in conftest.sample_words("test", 40):
        text = " ".join(words)
        assert tokenizer.tokenize(text) == reference.encode(text, out_type=str)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])
    assert [token for token in tokens if token != "▁a"] == special
    check_rows(str(tmp_path), tokenizer, load_config(str(tmp_path)))
    small = transformers.AutoConfig.for_model(model_type, vocab_size=550)
    with pytest.raises(ValueError, match="above the 550 rows"):
        check_rows(str(tmp_path), tokenizer, small)


def test_sentencepiece_is_named_if_it_is_missing(folder, monkeypatch):
    remove(folder, "tokenizer.json", "tokenizer_config.json")
    edit(folder / "config.json", model_type="deberta-v2")
    (folder / "spm.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="pip install sentencepiece$"):
        load_tokenizer(str(folder))


def test_tokenizers_as_earlier_versions_saved_them(folder, encoders, tmp_path):
    """vocab.txt alone, or with the files of settings that transformers 2 to 4 wrote."""
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    expected = load_tokenizer(str(folder))("Maria lives in Oslo.")["input_ids"]
    remove(folder, "tokenizer.json", "tokenizer_config.json")
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"unk_token": "[UNK]", "sep_token": "[SEP]"}')
    (folder / "added_tokens.json").write_text("{}")
    _, tokenizer = load_encoder(str(folder), None)
    assert tokenizer("Maria lives in Oslo.")["input_ids"] == expected and tokenizer.model_max_length == 64
    bpe = json.loads((Path(encoders["bpe"]) / "tokenizer.json").read_text())["model"]
    shutil.copy(Path(encoders["bpe"]) / "config.json", tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in bpe["merges"]))
    text = " Maria lives"
    assert load_tokenizer(str(tmp_path)).tokenize(text) == load_tokenizer(encoders["bpe"]).tokenize(text)


# ----------------------------------------------------------------------------------------------------------------------
# Adapters and composite encoders


@pytest.fixture
def adapter(encoders, tmp_path) -> tuple[str, torch.nn.Module]:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(encoders["wordpiece"], num_labels=3)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), model.eval()


def test_an_adapter_is_merged_with_its_head(adapter, corpus, tmp_path):
    name, model = adapter
    input_ids = torch.arange(5, 25)[None]
    merged = load_trained_model(name)
    torch.testing.assert_close(merged.eval()(input_ids).logits, model(input_ids=input_ids).logits)
    assert infer.Tagger(name).label_list == ["LABEL_0", "LABEL_1", "LABEL_2"]
    out = tmp_path / "out"
    conftest.train("--model_name_or_path", name, "--max_steps", 2, "--output_dir", out, *conftest.flat(corpus))
    assert load_trained_model(str(out)).config.model_type == "bert"


def test_an_adapter_of_the_encoder_alone_is_merged(encoders, tmp_path):
    """Of AutoModel: its names lack the encoder's prefix. It has no head."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_pretrained(encoders["wordpiece"])
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    model.save_pretrained(tmp_path)
    merged = modeling.load_model(str(tmp_path), LABELS).base_model
    input_ids = torch.arange(5, 25)[None]
    expected = model.eval()(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(merged.eval()(input_ids).last_hidden_state, expected)


def test_an_adapter_as_earlier_versions_saved_it(adapter):
    name, model = adapter
    torch.save(load_file(f"{name}/adapter_model.safetensors"), f"{name}/adapter_model.bin")
    remove(Path(name), "adapter_model.safetensors")
    input_ids = torch.arange(5, 25)[None]
    expected = model(input_ids=input_ids).logits
    torch.testing.assert_close(load_trained_model(name).eval()(input_ids).logits, expected)


FAULTS_OF_ADAPTERS = {
    "broken": (lambda f: truncate(f, 9), "adapter_config.json is not JSON"),
    "list": (lambda f: f.write_text("[1]"), "adapter_config.json is not an object"),
    "number": (lambda f: edit(f, base_model_name_or_path=3), "names no base_model_name_or_path"),
    "itself": (lambda f: edit(f, base_model_name_or_path=str(f.parent)), "which is an adapter; merge that one first"),
    "other kind": (lambda f: edit(f, peft_type="NEW"), "merge the adapter with the version of peft that wrote it"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_ADAPTERS)
def test_a_fault_of_an_adapter_is_one_line(fault, adapter, monkeypatch, capsys):
    change, expected = FAULTS_OF_ADAPTERS[fault]
    change(Path(adapter[0]) / "adapter_config.json")
    error = error_of(infer.main, "infer.py", monkeypatch, capsys, adapter[0], "Maria")
    assert error.startswith(f"error: {adapter[0]}: ") and expected in error


def test_an_adapter_that_cannot_be_merged_is_named(adapter, encoders, monkeypatch, capsys):
    name, _ = adapter
    shutil.copy(Path(encoders["wordpiece"]) / "model.safetensors", name)
    error = error_of(infer.main, "infer.py", monkeypatch, capsys, name, "Maria")
    assert error == f"error: {name}: has a model and an adapter; remove adapter_config.json if the adapter is merged"
    (Path(name) / "model.safetensors").unlink()
    monkeypatch.setattr("util.adapters.importlib.util.find_spec", lambda module: None)
    error = error_of(infer.main, "infer.py", monkeypatch, capsys, name, "Maria")
    base = encoders["wordpiece"]
    assert error == (f"error: {name}: an adapter of PEFT for {base}; pip install peft, or merge it and pass the result")


def composite(family: str) -> transformers.PreTrainedConfig:
    text = conftest.SMALL | {"vocab_size": 900, "max_position_embeddings": 128}
    if family == "ModernVBert":
        ids = {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
        vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        return transformers.ModernVBertConfig(text_config=text | ids, vision_config=vision)
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    linear |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
    text |= linear | {"num_key_value_heads": 2, "head_dim": 16}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    return transformers.Qwen3_5Config(text_config=text, vision_config=vision)


@pytest.mark.parametrize("family", ["ModernVBert", "Qwen3_5"])
def test_composite_encoders_are_trained_measured_and_tag(family, encoders, corpus, tmp_path):
    encoder, out = tmp_path / "encoder", tmp_path / "out"
    AutoModelForTokenClassification.from_config(composite(family)).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(encoders["bpe"]).save_pretrained(encoder)
    flags = ["--model_name_or_path", encoder, *conftest.flat(corpus)]
    conftest.train(*flags, "--max_steps", 2, "--output_dir", out)
    assert infer.Tagger(str(out))("Maria lives in Oslo.", "none") is not None
    assert "step_ms_p50" in conftest.train(*flags, "--benchmark", 2)


@pytest.mark.parametrize("family", ["GPT2", "Qwen3"])
def test_encoders_without_a_padding_token(family, encoders, corpus, tmp_path):
    sizes = conftest.SMALL | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    encoder, out = tmp_path / "encoder", tmp_path / "out"
    config = getattr(transformers, f"{family}Config")(vocab_size=900, pad_token_id=None, **sizes)
    AutoModelForTokenClassification.from_config(config).base_model.save_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoders["bpe"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(encoder)
    flags = ["--model_name_or_path", encoder, "--max_steps", 2, "--output_dir", out]
    conftest.train(*flags, *conftest.flat(corpus))
    tagger = infer.Tagger(str(out))
    alone, padded = tagger("Maria lives.", "none"), tagger(["Maria lives.", "She lives in Oslo, Norway."], "none")[0]
    assert [e["entity"] for e in alone] == [e["entity"] for e in padded]


def test_a_slow_hub_is_named_while_it_is_waited_for(capfd, tmp_path):
    for name, seconds in (("someone/encoder", 60), ("someone/encoder", 0.01), (str(tmp_path), 0.01)):
        with tell_if_slow(name, seconds):
            time.sleep(0.2)
    assert capfd.readouterr().err.count("note: still loading someone/encoder") == 1
