"""Shared by the tests: separate caches, three tokenizers and small encoders that are made here, real commands."""

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

# Set before datasets and transformers are imported: the caches of the user are not touched, no network.
CACHE = tempfile.TemporaryDirectory(prefix="nanotagger-tests-")
os.environ |= {
    "HF_HOME": CACHE.name,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import copies  # noqa: E402
import pytest  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

import data  # noqa: E402
from util import sources  # noqa: E402
from util.pretrained import load_tokenizer  # noqa: E402
from util.split import Split  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    """`pytest` leaves out the tests that take minutes, `pytest -m slow` runs only these, `pytest -m ""` runs all."""
    config.addinivalue_line("markers", "slow: takes minutes; pytest -m slow")
    if "-m" not in config.invocation_params.args:
        config.option.markexpr = "not slow"


# Two processes run the normal suite, a file each at a time. These files take longest, and are begun first.
LONGEST = tuple(
    f"test_{name}.py" for name in "encoders faults infer gpu traps changes resume hosts hub fsdp pretrained".split()
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """`pytest` runs the normal suite in several processes. Chosen tests, `-m`, `-s` and `--pdb` need one: `-n 0`."""
    option, cores = config.option, len(os.sched_getaffinity(0))
    if getattr(option, "numprocesses", 0) is not None or hasattr(config, "workerinput"):
        return  # -n is given, pytest-xdist is missing, or this is one of its processes
    is_chosen = option.keyword or "-m" in config.invocation_params.args or not all(map(os.path.isdir, config.args))
    needs_one = any(config.getoption(name, False) for name in ("usepdb", "collectonly", "lf", "stepwise"))
    if cores > 1 and option.capture != "no" and not is_chosen and not needs_one:
        option.numprocesses = min(cores, 4)
        option.dist, option.loadscopereorder = "loadfile", False


def pytest_collection_finish():
    """Collections of garbage no longer visit the objects of the libraries, so forked processes share their memory."""
    import hypothesis  # noqa: F401 - it asks the collector for references, and then would not find them

    gc.freeze()


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def data_args(**flags) -> argparse.Namespace:
    """The parsed flags of the data: data_args(train_file="x.conll")."""
    return data.get_args([f"--{name}={value}" for name, value in flags.items() if value is not None])


def read(path, **flags) -> list[dict]:
    """The sentences of a file as the program reads them: [{"tokens": [...], "tags": [...]}]."""
    dataset, _ = sources.read_file(str(path), data.columns_of(data_args(**flags)))
    return dataset.select_columns(["tokens", "tags"]).to_list()


def load(encoder: str, size: int = 16, **flags) -> tuple[dict[str, Split], list[str]]:
    """The splits and the label list for these data flags: load(encoder, train_file="x.conll")."""
    tokenizer = load_tokenizer(encoder)
    tokenizer.model_max_length = size
    splits = data.load_splits(data_args(**{"stride": 4} | flags), tokenizer)
    return splits, splits["train"].label_list


def sample_words(split: str = "train", limit: int = 400) -> list[list[str]]:
    return [sentence["tokens"] for sentence in read(ROOT / "samples" / f"{split}.conll")[:limit]]


# Variables that the libraries read while they are loaded, or by which a test changes what they read.
READ_WHILE_LOADING = ("HF_", "OMP_", "TOKENIZERS_")


def run(*command, ranks: int = 1, timeout: int = 600, **env) -> subprocess.CompletedProcess:
    """Runs a command in a process of its own: run("train.py", "--seed", 1, ranks=2). A hang is a failure.

    A script runs in a process that is forked from one with all libraries loaded, see copies.py. What cannot be forked
    is a new process: `run("-c", code)`, and a command with environment variables that the libraries read.
    """
    if not str(command[0]).endswith(".py") or any(name.startswith(READ_WHILE_LOADING) for name in env):
        return run_python(*command, ranks=ranks, timeout=timeout, **env)
    output = Path(tempfile.mkdtemp(dir=CACHE.name))
    done = copies.start(ROOT, output / "run", *command, ranks=ranks, before=None, **env).wait(timeout)
    return subprocess.CompletedProcess(command, done.code, done.stdout, done.stderr)


def run_python(*command, ranks: int = 1, timeout: int = 600, **env) -> subprocess.CompletedProcess:
    """Runs a command as a user does: `python ...`, or torchrun for several ranks. Loading the libraries takes 5 s."""
    mark = f"TEST_PROCESS={uuid.uuid4().hex}"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    process = subprocess.Popen(
        [sys.executable, *launch, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {key: str(value) for key, value in env.items()} | dict([mark.split("=")]),
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        for environment in Path("/proc").glob("[0-9]*/environ"):  # torchrun's ranks survive it when it is killed
            with contextlib.suppress(OSError):
                if mark.encode() in environment.read_bytes():
                    os.kill(int(environment.parent.name), signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def train(*flags, ranks: int = 1, **env) -> str:
    """Runs train.py, which has to succeed, and returns what it prints.

    Several ranks are processes. One rank runs in this process, unless environment variables are given.
    """
    if ranks > 1 or env:
        done = run("train.py", *flags, ranks=ranks, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    import train as script

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["train.py", *map(str, flags)])
        script.main()
    return printed.getvalue()


def results(folder) -> dict:
    return json.loads((Path(folder) / "all_results.json").read_text())


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def word_piece() -> PreTrainedTokenizerFast:
    raw = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(
        map(" ".join, sample_words()), trainers.WordPieceTrainer(vocab_size=900, special_tokens=special)
    )
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, **names)


def byte_level_bpe() -> PreTrainedTokenizerFast:
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator(map(" ".join, sample_words()), trainer)
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def unigram() -> PreTrainedTokenizerFast:
    raw = tokenizers.Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>")
    raw.train_from_iterator(map(" ".join, sample_words()), trainer)
    raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, str]:
    """Small encoders with random weights, one for each kind of tokenizer: name -> folder."""
    torch.manual_seed(0)
    folders = {}
    for name, tokenizer in (("wordpiece", word_piece()), ("bpe", byte_level_bpe()), ("unigram", unigram())):
        folder = str(tmp_path_factory.mktemp(name))
        if name == "wordpiece":
            config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL)
            encoder = BertForTokenClassification(config).base_model
        else:
            config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, pad_token_id=1, **SMALL)
            encoder = RobertaForTokenClassification(config).base_model
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="session")
def still(encoders, tmp_path_factory) -> str:
    """The WordPiece encoder without dropout: its results depend on the sentences alone."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = str(tmp_path_factory.mktemp("still"))
    config = AutoConfig.from_pretrained(
        encoders["wordpiece"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    AutoModel.from_pretrained(encoders["wordpiece"], config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoders["wordpiece"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_tagger(encoders, tmp_path_factory) -> str:
    """The WordPiece encoder after 120 steps on the embedded corpus: its tags are as good as random ones."""
    folder = str(tmp_path_factory.mktemp("small-tagger") / "out")
    flags = ["--learning_rate", 5e-3, "--max_steps", 120, "--eval_steps", 60]
    train("--output_dir", folder, "--model_name_or_path", encoders["wordpiece"], *flags)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> dict[str, str]:
    """A small corpus of two columns as flags of train.py: {"--train_file": ...}."""
    folder = tmp_path_factory.mktemp("corpus")
    flags = {}
    for split, limit in (("train", 61), ("validation", 23), ("test", 19)):
        path = folder / f"{split}.txt"
        write_conll(path, read(ROOT / "samples" / f"{split}.conll")[:limit])
        flags[f"--{split}_file"] = str(path)
    return flags


def write_conll(path, sentences: list[dict], separator: str = " ") -> None:
    lines = ["".join(f"{w}{separator}{t}\n" for w, t in zip(s["tokens"], s["tags"])) for s in sentences]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def flat(flags: dict) -> list[str]:
    return [str(part) for pair in flags.items() for part in pair]


def lay(name: str, revision: str, files: dict, cache: str = CACHE.name) -> None:
    """Writes a repository into the Hub's cache as `hf download` does.

    files: path -> a text, a file to copy, or a Dataset.
    """
    repository, commit = Path(cache) / "hub" / name, hashlib.sha1(revision.encode()).hexdigest()
    (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for path, content in files.items():
        path = repository / "snapshots" / commit / path
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, Path):
            shutil.copy(content, path)
        else:
            content.to_parquet(path)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless chromium, with its log of errors and its log of requests."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()
