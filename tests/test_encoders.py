"""Every family with a token-classification head in transformers: trained, resumed, on two ranks, tagged; or refused.

pytest -m slow tests/test_encoders.py     # all families; writes docs/encoders.md
"""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import encoder_families
import pytest
import torch
import transformers
from conftest import ROOT, byte_level_bpe, flat, read, results, run, weights, word_piece
from encoder_families import FAMILIES

import infer
import train as train_script

REPRESENTATIVES = (
    "bert", "big_bird", "bros", "deberta", "fnet", "longformer", "mixtral", "modernbert", "t5", "xlnet"
)  # fmt: skip
STEPS = ["--max_steps", 5, "--save_steps", 2, "--save_total_limit", 9, "--learning_rate", "1e-3"]

# The families that train.py refuses, and its line.
REFUSED = {
    "bros": "error: BrosForTokenClassification cannot be used: ValueError: You have to specify bbox",
    "canine": "error: CanineForTokenClassification cannot be used: RuntimeError: max_pool1d() Invalid computed output "
    "size: 0",
    "layoutlmv2": "cannot be loaded: ImportError: that match your environment. Please note that you may need to restart "
    "your runtime after installation.",
    "mra": "error: MraForTokenClassification: its logits do not depend on the other words of a sentence on this device",
}
IN_FP32 = {"big_bird", "deberta", "xmod"}  # which 16 bits do not work with
DEPENDS_ON_PADDING = {"convbert", "fnet", "funnel", "nystromformer", "yoso"}


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
def two_ranks(request, corpus, tokenizers_by_kind, tmp_path_factory) -> SimpleNamespace:
    """Runs without dropout of the families whose tests are selected: on two ranks, then resumed on two ranks."""
    folder = tmp_path_factory.mktemp("two-ranks")
    selected = [item.callspec.params["family"] for item in request.session.items if "two_ranks" in item.fixturenames]
    families = [family for family in dict.fromkeys(selected) if family not in REFUSED]
    runs = {}
    for family in families:
        tokenizer = tokenizers_by_kind[encoder_families.is_roberta_like(family)]
        encoder = encoder_families.write_encoder(family, folder / f"{family}.encoder", tokenizer, dropout=False)
        flags = flags_for(corpus, encoder, folder / family, "fp32", batch=4)
        runs[family] = flags
        runs[f"{family} again"] = flags_for(corpus, encoder, folder / f"{family}.again", "fp32", batch=4)
    (folder / "runs.json").write_text(json.dumps(runs))
    done = run("tests/many_runs.py", folder / "runs.json", ranks=2, timeout=60 + 20 * len(families))
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
    what = f"{measured['test_words']:,} words, loss {measured['test_loss']:.4f}, accuracy {measured['test_accuracy']:.4f}"
    assert scored.code == 0 and what in scored.stdout, (what, scored.stdout, scored.stderr)
    return done


def check_pipeline(folder: Path, corpus: dict) -> None:
    """In fp32, a sentence alone in the pipeline has the scores that it has in a batch of the Tagger."""
    tagger = infer.Tagger(str(folder), precision="fp32")
    sentences = [sentence["tokens"] for sentence in read(corpus["--test_file"])[:6]]
    probabilities, _ = tagger.probabilities(sentences)
    ours = probabilities.max(-1)
    theirs = [score for words in sentences for score in pipeline_scores(folder, words)]
    assert len(ours) == len(theirs)
    assert max(abs(ours - theirs)) < 2e-5


def check_two_ranks(family: str, two_ranks: SimpleNamespace, corpus: dict, folder: Path) -> None:
    """Two ranks compute what one rank does, and resume exactly."""
    one = folder / "one"
    done = call(train_script, *flags_for(corpus, two_ranks.folder / f"{family}.encoder", one, "fp32"))
    assert done.code == 0, done.stderr
    two = two_ranks.folder / family
    assert len(two_ranks.ended) == 2, two_ranks.output[-3000:]
    for ended in two_ranks.ended:
        assert {family, f"{family} again"} <= set(ended), two_ranks.output[-3000:]
    assert (two / "model.safetensors").read_bytes() == Path(f"{two}.again/model.safetensors").read_bytes()
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    if family not in DEPENDS_ON_PADDING:  # a rank pads to the longest of its own sentences
        assert results(two)["test_loss"] == pytest.approx(results(one)["test_loss"], abs=1e-4)
        for name, tensor in ours.items():
            assert (tensor - theirs[name]).abs().max() < 2e-4, name


ROWS: dict[str, str] = {}  # of docs/encoders.md


def table_row(family: str, done: SimpleNamespace, out: Path) -> str:
    return f"| {family} | {done.code} |"


FAMILY = [
    pytest.param(family, marks=[] if family in REPRESENTATIVES else pytest.mark.slow) for family in FAMILIES
]


@pytest.mark.parametrize("family", FAMILY)
def test_a_family_is_correct_or_refused(family, corpus, tokenizers_by_kind, two_ranks, tmp_path):
    tokenizer = tokenizers_by_kind[encoder_families.is_roberta_like(family)]
    encoder = encoder_families.write_encoder(family, tmp_path / "encoder", tokenizer)
    for precision in ("fp32", "auto"):
        (tmp_path / precision).mkdir()
        done = check_training(family, encoder, corpus, tmp_path / precision, precision)
    if family not in REFUSED:
        check_pipeline(tmp_path / "fp32/out", corpus)
        check_two_ranks(family, two_ranks, corpus, tmp_path)
    ROWS[family] = table_row(family, done, tmp_path / "auto/out")
