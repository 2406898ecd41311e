"""Every family with a token-classification head in transformers: trained, resumed, on two ranks, tagged; or refused.

pytest -m "" tests/test_encoders.py     # all families; writes docs/encoders.md
"""

import contextlib
import copy
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import encoder_families
import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from conftest import ROOT, byte_level_bpe, flat, read, results, run, weights, word_piece
from copies import KILL, Project
from encoder_families import FAMILIES
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data
import infer
import model as modeling
import train as train_script
from util.distributed import refuse_different
from util.encoder_check import check_encoder, depends_on_padding
from util.pretrained import encoder_layers, load_encoder, load_tokenizer
from util.unreached import freeze_unreached_parameters

# Packed; padded with logits that depend on it, and in fp32 alone; refused; in fp32 alone; a sliding window; tied
# embeddings; parameters that no logit depends on.
REPRESENTATIVES = ("bert", "big_bird", "bros", "deberta", "modernbert", "t5", "xlnet")
STEPS = ["--max_steps", 5, "--save_steps", 2, "--save_total_limit", 9, "--learning_rate", "1e-3", "--logging_steps", 1]

# The families that train.py refuses, and its line.
REFUSED = {
    "bros": "error: BrosForTokenClassification cannot be used: ValueError: You have to specify bbox",
    "canine": "error: CanineForTokenClassification cannot be used: RuntimeError: max_pool1d() Invalid computed output "
    "size: 0",
    "layoutlmv2": "cannot be loaded: ImportError: that match your environment. Please note that you may need to "
    "restart your runtime after installation; pip install detectron2",
    "mra": "error: MraForTokenClassification: its logits do not depend on the other words of a sentence on this device",
}
IN_FP32 = {"big_bird", "deberta", "xmod"}  # which 16 bits do not work with
CHOOSES = {"axk2"}  # its attention reads the words with the highest scores, and rounding decides between equal ones
DEPENDS_ON_PADDING = {"big_bird", "convbert", "fnet", "funnel", "nystromformer", "yoso"}


@pytest.fixture(scope="module")
def tokenizers_by_kind() -> dict[bool, transformers.PreTrainedTokenizerFast]:
    return {True: byte_level_bpe(), False: word_piece()}


@pytest.fixture(autouse=True)
def has_bf16(monkeypatch):
    """--precision auto is bf16, whatever the CPU."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def call(script, *arguments) -> SimpleNamespace:
    """Runs the main function of a script in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", ["script.py", *map(str, arguments)])
        try:
            script.main()
        except SystemExit as exit_code:
            code = exit_code.code
    return SimpleNamespace(code=code, stdout=out.getvalue(), stderr=err.getvalue(), lines=out.getvalue().splitlines())


def flags_for(corpus: dict, encoder: Path, out: Path, precision: str, batch: int = 8) -> list[str]:
    flags = [*flat(corpus), *STEPS, "--model_name_or_path", encoder, "--output_dir", out, "--precision", precision]
    return [str(flag) for flag in (*flags, "--per_device_train_batch_size", batch)]


def cut_back(out: Path, to: Path) -> Path:
    """A copy of a run as it was when it was killed after step 3."""
    leave = shutil.ignore_patterns("all_results.json", "step-00000004", "runs")
    shutil.copytree(out, to, ignore=leave)
    return to


def pipeline_scores(folder: Path, words: list[str]) -> list[float]:
    """The score of every subword by transformers' pipeline."""
    pipe = transformers.pipeline("token-classification", model=str(folder), ignore_labels=[""], device="cpu")
    return [float(token["score"]) for token in pipe(" ".join(words))]


@pytest.fixture(scope="module")
def families_on_two_ranks(request, corpus, tokenizers_by_kind, tmp_path_factory) -> SimpleNamespace:
    """Runs without dropout of the families whose tests are selected: on two ranks, then resumed on two ranks."""
    folder = tmp_path_factory.mktemp("two-ranks")
    families = [
        item.callspec.params["family"] for item in request.session.items if "families_on_two_ranks" in item.fixturenames
    ]
    runs = {}
    for family in families:
        tokenizer = tokenizers_by_kind[encoder_families.is_byte_level(family)]
        encoder = encoder_families.write_encoder(family, folder / f"{family}.encoder", tokenizer, dropout=False)
        flags = flags_for(corpus, encoder, folder / family, "fp32", batch=4)
        runs[family] = flags
        runs[f"{family} again"] = flags_for(corpus, encoder, folder / f"{family}.again", "fp32", batch=4)
    (folder / "runs.json").write_text(json.dumps(runs))
    done = run("tests/many_runs.py", folder / "runs.json", ranks=2, timeout=600 + 20 * len(families))
    ended = [json.loads(path.read_text()) for path in folder.glob("runs.json.*")]
    return SimpleNamespace(folder=folder, ended=ended, output=done.stdout + done.stderr)


def check_training(family: str, encoder: Path, corpus: dict, folder: Path, precision: str) -> SimpleNamespace:
    """Trains, resumes and tags in this process. Returns what train.py printed."""
    done = call(train_script, *flags_for(corpus, encoder, folder / "out", precision))
    if family in REFUSED:
        assert done.code == 2 and REFUSED[family] in done.stderr.strip().splitlines()[-1], done.stderr
        assert not (folder / "out").exists()
        return done
    assert done.code == 0, done.stderr
    expected = "fp32" if family in IN_FP32 or precision == "fp32" else "bf16"
    assert results(folder / "out")["precision"] == expected
    assert ("warning: computing in fp32" in done.stdout) == (precision == "auto" and family in IN_FP32)
    assert ("depend on padding" in done.stdout) == (family in DEPENDS_ON_PADDING)

    again = call(train_script, *flags_for(corpus, encoder, cut_back(folder / "out", folder / "again"), precision))
    assert again.code == 0 and "resumed from" in again.stdout, again.stderr
    assert (folder / "again/model.safetensors").read_bytes() == (folder / "out/model.safetensors").read_bytes()
    for name in ("train_loss", "eval_loss", "test_loss"):
        assert results(folder / "again")[name] == results(folder / "out")[name]

    flags = ["--input_file", corpus["--test_file"], "--evaluate", "--precision", precision]
    scored = call(infer, folder / "out", *flags)
    measured = results(folder / "out")
    what = (
        f"{measured['test_words']:,} words, loss {measured['test_loss']:.4f}, accuracy {measured['test_accuracy']:.4f}"
    )
    assert scored.code == 0 and what in scored.stdout, (what, scored.stdout, scored.stderr)
    return done


def check_pipeline(family: str, folder: Path, corpus: dict) -> None:
    """In fp32, a sentence alone in the pipeline has the scores that it has in a batch of the Tagger."""
    tagger = infer.Tagger(str(folder), precision="fp32")
    sentences = [sentence["tokens"] for sentence in read(corpus["--test_file"])[:6]]
    probabilities, _ = tagger.probabilities(sentences)
    ours = probabilities.max(-1)
    theirs = [score for words in sentences for score in pipeline_scores(folder, words)]
    assert len(ours) == len(theirs)
    assert max(abs(ours - theirs)) < (5e-3 if family in CHOOSES else 2e-5)


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "runs")).Reload().Scalars(f"train/{name}")
    return [event.value for event in events]


ROWS: dict[str, str] = {}  # of docs/encoders.md


def table_row(family: str, done: SimpleNamespace, out: Path) -> str:
    """done: a run with --precision auto, where the CPU has bf16."""
    if done.code:
        line = done.stderr.strip().splitlines()[-1]
        return f"| {family} | refused | | | {line[line.index(REFUSED[family]) :].removeprefix('error: ')} |"
    packing = "no" if "packing is off" in done.stdout else "yes"
    notes = ["depends on padding"] if family in DEPENDS_ON_PADDING else []
    frozen = re.search("frozen, since no logit depends on them: (.*)", done.stdout)
    if frozen:
        number = len(frozen[1].split(", "))
        notes.append(f"{number} tensor{'s' * (number > 1)} that no logit depends on")
    return f"| {family} | trains | {results(out)['precision']} | {packing} | {'; '.join(notes)} |"


INTRO = f"""# Encoders

```bash
pytest -m "" tests/test_encoders.py
```

This command writes this page, here with transformers {transformers.__version__}. It tries every family in
transformers' `MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING`, with a tiny configuration and random weights, on a CPU, in fp32
and in bf16:

- It trains for five steps. The same run, resumed from the files that a kill after the third step leaves, gives the
  same bytes.
- On two ranks, in fp32, it gives the weights of one rank up to rounding. A run that is resumed there gives the same
  bytes.
- The scores of the test set by `infer.py` equal those of training.
- The scores of every subword by transformers' pipeline equal those of `infer.py`.

For a family that cannot be trained, the command stops before the data are read, with the error that is shown.

- **precision**: what `--precision auto` selects on a CPU with bf16. fp32: the encoder raises an error in bf16.
- **packing**: whether batches are packed, without padding. Otherwise they are padded.
- **depends on padding**: the logits of a sentence depend on how far its batch is padded. Training pads; evaluation,
  `infer.py` and the pipeline do not.
- **tensors that no logit depends on** are frozen: poolers, vision towers, the global attention of Longformer.

Pretrained weights can show problems that random weights do not. Every run therefore tries the same passes at its start.

| family | result | precision | packing | notes |
| --- | --- | --- | --- | --- |
"""


FAMILY = [pytest.param(family, marks=[] if family in REPRESENTATIVES else pytest.mark.slow) for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILY)
def test_a_family_is_correct_or_refused(family, corpus, tokenizers_by_kind, tmp_path):
    tokenizer = tokenizers_by_kind[encoder_families.is_byte_level(family)]
    encoder = encoder_families.write_encoder(family, tmp_path / "encoder", tokenizer)
    for precision in ("fp32", "auto"):
        (tmp_path / precision).mkdir()
        done = check_training(family, encoder, corpus, tmp_path / precision, precision)
    if family not in REFUSED:
        check_pipeline(family, tmp_path / "fp32/out", corpus)
    ROWS[family] = table_row(family, done, tmp_path / "auto/out")


ON_TWO_RANKS = [
    pytest.param(family, marks=[] if family in ("bert", "xlnet") else pytest.mark.slow)
    for family in FAMILIES
    if family not in REFUSED
]


@pytest.mark.parametrize("family", ON_TWO_RANKS)
def test_two_ranks_compute_what_one_does_and_resume_exactly(family, corpus, families_on_two_ranks, tmp_path):
    one = tmp_path / "one"
    done = call(train_script, *flags_for(corpus, families_on_two_ranks.folder / f"{family}.encoder", one, "fp32"))
    assert done.code == 0, done.stderr
    two = families_on_two_ranks.folder / family
    assert len(families_on_two_ranks.ended) == 2, families_on_two_ranks.output[-3000:]
    for ended in families_on_two_ranks.ended:
        assert {family, f"{family} again"} <= set(ended), families_on_two_ranks.output[-3000:]
    assert (two / "model.safetensors").read_bytes() == Path(f"{two}.again/model.safetensors").read_bytes()
    assert weights(one).keys() == weights(two).keys()
    if family not in DEPENDS_ON_PADDING:  # a rank pads to the longest of its own sentences
        for name in ("loss", "grad_norm"):
            first, second = (scalars(folder, name) for folder in (one, two))
            assert len(first) == len(second) == 5
            # Until then, all weights are equal: the learning rate of the first step is 0. AdamW then moves a weight by
            # the learning rate even if its gradient is rounding error.
            assert second[:2] == pytest.approx(first[:2], rel=1e-4)
            assert second == pytest.approx(first, rel=2e-2)
        assert results(two)["test_loss"] == pytest.approx(results(one)["test_loss"], abs=1e-2)


@pytest.mark.slow
def test_the_page_on_encoders_is_written():
    """Runs last, after all families."""
    if set(ROWS) != set(FAMILIES):
        pytest.skip('only after all families: pytest -m "" tests/test_encoders.py')
    (ROOT / "docs/encoders.md").write_text(INTRO + "".join(f"{ROWS[family]}\n" for family in FAMILIES))


def test_the_page_on_encoders_lists_every_family():
    page = (ROOT / "docs/encoders.md").read_text()
    if transformers.__version__ not in page:
        pytest.skip("another version of transformers may have other families")
    assert re.findall(r"^\| ([\w-]+) \| (?:trains|refused)", page, re.MULTILINE) == FAMILIES
    for family, line in REFUSED.items():
        assert re.search(rf"^\| {family} \| refused .*{re.escape(line.removeprefix('error: '))}", page, re.MULTILINE)


# ----------------------------------------------------------------------------------------------------------------------
# What the families do not show by themselves


def write(family: str, folder: Path, **changes) -> Path:
    tokenizer = byte_level_bpe() if encoder_families.is_byte_level(family) else word_piece()
    return encoder_families.write_encoder(family, folder, tokenizer, **changes)


def refusal(encoder: Path, corpus: dict, out: Path, *flags) -> str:
    """The one line with which train.py refuses an encoder."""
    done = call(train_script, *flags_for(corpus, encoder, out, "auto"), *flags)
    assert done.code == 2 and not out.exists(), done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_precision_that_was_asked_for_is_not_replaced(corpus, tmp_path):
    line = refusal(write("deberta", tmp_path / "encoder"), corpus, tmp_path / "out", "--precision", "bf16")
    assert line == (
        "error: --precision bf16: DebertaForTokenClassification fails: RuntimeError: value cannot be converted to type "
        "c10::BFloat16 without overflow; use --precision fp32"
    )


def test_the_longest_window_is_found_where_the_computed_limit_is_too_high(corpus, tmp_path):
    # I-BERT's table of 130 positions is no nn.Embedding. Two of them have no token.
    encoder = write("ibert", tmp_path / "encoder")
    done = call(train_script, *flags_for(corpus, encoder, tmp_path / "out", "auto"))
    assert done.code == 0 and (
        "note: windows have 128 subwords, since IBertForTokenClassification fails with 130: "
        "IndexError: index out of range in self" in done.lines
    )
    assert infer.Tagger(str(tmp_path / "out")).window_size == 128
    line = refusal(encoder, corpus, tmp_path / "other", "--max_seq_length", 130)
    assert line == "error: --max_seq_length 130: IBertForTokenClassification reads 128 subwords at most"


def test_the_limit_of_positions_with_a_longer_table(tmp_path):
    for family in ("nystromformer", "yoso"):
        _, tokenizer = load_encoder(str(write(family, tmp_path / family)), None)
        assert tokenizer.model_max_length == 130  # of a table of 132 rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, corpus, encoders, tmp_path):
    encoder = Path(shutil.copytree(encoders["wordpiece"], tmp_path / "encoder"))
    tensors = weights(encoder)
    tensors["embeddings.LayerNorm.bias"][3] = value
    save_file(tensors, encoder / "model.safetensors", {"format": "pt"})
    line = refusal(encoder, corpus, tmp_path / "out")
    assert line == "error: BertForTokenClassification cannot be used: its logits are not finite"


def test_the_check_changes_no_random_number_and_no_weight(encoders):
    model = modeling.load_model(encoders["wordpiece"], ["O", "B-X"]).train()
    tokenizer = load_tokenizer(encoders["wordpiece"])
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert check_encoder(model, tokenizer, "auto", modeling.make_autocast) == "bf16"
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_results_of_bigbird_do_not_depend_on_earlier_batches(tmp_path):
    model = modeling.load_model(str(write("big_bird", tmp_path / "encoder")), ["O", "B-X"]).eval()
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(5, 800, (2, length), generator=generator) for length in (100, 20))
    random = torch.get_rng_state()
    with torch.no_grad():
        first = [model(input_ids=ids).logits for ids in (long, short)]
        again = [model(input_ids=ids).logits for ids in (long, short)]
    assert all(torch.equal(one, other) for one, other in zip(first, again))
    assert torch.equal(random, torch.get_rng_state())
    kinds = {type(module.self).__name__ for module in model.modules() if hasattr(module, "self")}
    assert kinds == {"BigBirdSelfAttention"}  # after the short one


@pytest.mark.parametrize("family", ["flaubert", "biogpt"])
def test_layers_are_not_dropped(family, corpus, tmp_path):
    encoder = write(family, tmp_path / "encoder", layerdrop=0.9)
    done = call(train_script, *flags_for(corpus, encoder, tmp_path / "out", "fp32"))
    assert "note: layerdrop is 0 instead of 0.9: every step trains all layers" in done.lines
    before, after = weights(encoder), weights(tmp_path / "out")
    frozen = set(
        re.search(
            "frozen, since no logit depends on them: (.*)", done.stdout + "\nfrozen, since no logit depends on them: "
        )[1].split(", ")
    )
    layers = [name for name in after if re.search(r"\.\d+\.", name) and name not in frozen]
    changed = [n for n in layers if not torch.equal(after[n], before[n.partition(".")[2]])]
    assert len(changed) == len(layers) > 10
    assert json.loads((tmp_path / "out/config.json").read_text())["layerdrop"] == 0.0


def test_a_tied_embedding_is_trained_and_saved_once(corpus, tmp_path):
    encoder = write("t5", tmp_path / "encoder")
    call(train_script, *flags_for(corpus, encoder, tmp_path / "out", "fp32"))
    saved = weights(tmp_path / "out")
    assert [name for name in saved if "shared" in name or "embed" in name] == ["transformer.shared.weight"]
    changed = (saved["transformer.shared.weight"] != weights(encoder)["shared.weight"]).any(1)
    assert 100 < changed.sum() < len(changed)  # the rows of the subwords in training
    model = modeling.from_pretrained(str(tmp_path / "out"))
    assert torch.equal(model.transformer.encoder.embed_tokens.weight, saved["transformer.shared.weight"])


def test_parameters_whose_gradient_depends_on_the_input_are_trained(encoders):
    model = modeling.load_model(encoders["wordpiece"], ["O", "B-X"])
    layer = model.bert.encoder.layer[1]
    forward = layer.forward
    layer.forward = lambda states, *args, **options: (
        states if states.shape[1] < 10 else forward(states, *args, **options)
    )
    lines: list[str] = []
    autocast = modeling.make_autocast("fp32", torch.device("cpu"))
    assert freeze_unreached_parameters(model, 128, autocast, lines.append)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    assert lines == ["note: some parameters have a gradient for some inputs only: DDP looks for them at every step"]
    layer.forward = forward
    assert not freeze_unreached_parameters(model, 128, autocast, lines.append)


@pytest.mark.parametrize("family, positions", [("bert", 32), ("roberta", 20), ("distilbert", 3)])
def test_encoders_with_few_positions(family, positions, corpus, tmp_path):
    encoder = write(family, tmp_path / "encoder", max_position_embeddings=positions)
    done = call(train_script, *flags_for(corpus, encoder, tmp_path / "out", "fp32"))
    assert done.code == 0, done.stderr
    flags = ["--input_file", corpus["--test_file"], "--evaluate", "--precision", "fp32"]
    assert f"loss {results(tmp_path / 'out')['test_loss']:.4f}" in call(infer, tmp_path / "out", *flags).stdout


def test_settings_of_a_config_that_change_only_the_form_of_outputs(corpus, tokenizers_by_kind, tmp_path):
    forms = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    for name, changes in {"plain": {}, "other": forms | {"chunk_size_feed_forward": 7}}.items():
        encoder = encoder_families.write_encoder("bert", tmp_path / name, tokenizers_by_kind[False], **changes)
        done = call(train_script, *flags_for(corpus, encoder, tmp_path / f"{name}.out", "fp32"))
        assert done.code == 0, done.stderr
    model = (tmp_path / "plain.out/model.safetensors").read_bytes()
    assert (tmp_path / "other.out/model.safetensors").read_bytes() == model


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 1.5, 8.0, 8.0]}


@pytest.mark.parametrize(
    "family, changes",
    [
        ("big_bird", {}),  # sparse attention from 57 subwords
        ("llama", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 64}}),
    ],
)
def test_long_windows_that_change_what_is_computed_for_short_ones(family, changes, tmp_path):
    encoder = write(family, tmp_path / "encoder", **changes)
    model = modeling.load_model(str(encoder), ["O", "B-X"]).eval()
    tokenizer = load_tokenizer(str(encoder))
    assert depends_on_padding(model, tokenizer)
    assert not depends_on_padding(model, tokenizer, longest=50)  # of a corpus without longer ones
    model.config.depends_on_padding = True
    model.save_pretrained(encoder)
    assert infer.Tagger(str(encoder)).one_length


def choose(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    refuse_different(precision="bf16", max_seq_length=128)
    with pytest.raises(ValueError, match="^--precision has to be given: the ranks chose bf16, fp32$"):
        refuse_different(max_seq_length=128, precision=["bf16", "fp32"][rank])
    dist.destroy_process_group()


def test_ranks_that_choose_differently_are_refused(tmp_path):
    torch.multiprocessing.start_processes(choose, (str(tmp_path),), 2, start_method="fork")


def test_an_empty_share_of_a_batch_and_the_layers_that_are_sharded(tmp_path):
    """Funnel reads three subwords or more, and holds its layers in lists of lists."""
    model = modeling.load_model(str(write("funnel", tmp_path / "encoder")), ["O", "B-X"])
    batch = data.collate([], {"input_ids": model.config.pad_token_id, "labels": data.IGNORED})
    inputs, labels = data.split_labels(batch)
    assert modeling.token_loss(model(**inputs).logits, labels["labels"]).item() == 0
    assert [type(layer).__name__ for layer in encoder_layers(model)] == ["FunnelLayer"] * 2


def test_batches_of_one_length():
    lengths = np.array([3, 5, 3, 5, 5, 2])
    batches = [batch.tolist() for batch in data.eval_batches(lengths, 2, one_length=True)]
    assert batches == [[1, 3], [4], [0, 2], [5]]


def test_two_ranks_that_are_killed_train_a_tied_embedding_as_ranks_that_are_not(corpus, tmp_path):
    project, encoder = Project(tmp_path / "project"), write("t5", tmp_path / "encoder")
    flags = {name: flags_for(corpus, encoder, tmp_path / name, "fp32", batch=4) for name in ("killed", "out")}
    assert project.start("train.py", *flags["killed"], ranks=2, before=KILL.format(step=3)).wait().code == -9
    assert "resumed from" in project.run("train.py", *flags["killed"], ranks=2)
    project.run("train.py", *flags["out"], ranks=2)
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
