"""Whatever is raised while an encoder is loaded becomes a ValueError of one line that says what to do."""

import contextlib
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING
from transformers.utils import cached_file

from util.distributed import tell_if_slow

LFS_POINTER = b"version https://git-lfs"
OTHER_WEIGHTS = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".gguf": "GGUF", ".ot": "Rust"}
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "bpe.codes", "tekken.json",
)  # fmt: skip
FILES_OF_ANY_TOKENIZER = (
    *TOKENIZER_FILES, "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
    "config.json",
)  # fmt: skip
OBJECTS = (  # files that hold a JSON object
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "adapter_config.json", "vocab.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
PACKAGES = {"sentence_piece": "sentencepiece", "mecab": "fugashi", "MeCab": "fugashi", "sklearn": "scikit-learn"}
INSTALL_PATTERN = r"pip install (?:-U |--upgrade )?[`'\"]?([\w.-]+)"
OTHER_PATTERNS = (INSTALL_PATTERN, r"[`'\"]([\w-]+)[`'\"] is required to")  # of the message of another error
PACKAGE_PATTERNS = (  # of the message of an ImportError
    INSTALL_PATTERN,
    r"No module named '([\w-]+)",
    r"requires (?:the )?[`'\"]?([\w-]+)[`'\"]? (?:library|package|to be installed)",
    r"[Ii]nstall [`'\"]?(?!(?:the|a|an|it|them|this|from|with)\b)([\w-]+)[`'\"]?",
    r"[`'\"]([\w-]+)[`'\"]? is required",
    r"import of ([\w-]+) halted",
    r"([\w-]+) is required",
)


@contextlib.contextmanager
def one_line_errors(name: str, remedy: str = ""):
    """Every exception of the block -> ValueError "NAME: cannot be loaded: CLASS: the library's last line; what to do".

    Signals and a lack of memory are not errors of the encoder, and are raised unchanged. remedy: what to do, if it is
    known. By default it is derived from the exception and from the files of the folder.
    """
    try:
        with warnings.catch_warnings(), tell_if_slow(name):
            warnings.simplefilter("ignore")
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # a panic of the tokenizers library is not an Exception
        reason = f"{type(error).__name__}: {_last_line(error)}"
        raise ValueError(f"{name}: cannot be loaded: {reason}; {remedy or _what_to_do(name, error)}") from None


def _last_line(error: BaseException) -> str:
    """The last line of a message that has words. Tables and colors of terminals are left out."""
    lines = [" ".join(re.sub(r"\x1b\[[\d;]*m", "", line).split()) for line in str(error).splitlines()]
    lines = [line for line in lines if re.search(r"\w", line)]
    return lines[-1][:200].rstrip(" .;:") if lines else "no message"


# ----------------------------------------------------------------------------------------------------------------------
# What to do: from the files first, since a library's message often describes a consequence


def _what_to_do(name: str, error: BaseException) -> str:
    remedy = ""
    with contextlib.suppress(Exception, type(error)):  # files that cannot be read: the error itself is reported
        folder = folder_of(name)
        if isinstance(error, ImportError):
            remedy = _missing_package(error)
        if folder is None:
            remedy = remedy or _fault_of_path(name) or _fault_of_hub(name, error)
        else:
            remedy = remedy or fault_of_files(folder) or _fault_of_config(folder)
        remedy = remedy or _missing_package(error)
        if "Error while initializing" in str(error) and not remedy:
            remedy = "the files of its vocabulary are broken: download them again"
        if type(error).__name__ == "UnpicklingError" and not remedy:
            remedy = "its pickle holds more than tensors, and is never run: pass the encoder as model.safetensors"
        if folder and (folder / "adapter_config.json").is_file() and not remedy:
            remedy = "merge the adapter with the version of peft that wrote it, and pass the result"
    return remedy or "check that it is a complete encoder, and update transformers: pip install -U transformers"


def folder_of(name: str) -> Path | None:
    """The folder of the files of a folder or of a Hub id that is in the cache."""
    if Path(name).is_dir():
        return Path(name)
    with contextlib.suppress(Exception):  # an invalid id
        path = cached_file(name, "config.json", local_files_only=True)
        return Path(path).parent
    return None


def _fault_of_path(name: str) -> str:
    path = Path(name)
    if "://" in name:
        return "this is an address: pass a folder, or the encoder's id on the Hub, such as bert-base-cased"
    if path.is_file():
        return f"this is a file: pass its folder, {path.parent}"
    is_below_a_folder = "/" in name and path.parent.is_dir()
    if is_below_a_folder or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return "there is no such folder"
    return ""


def fault_of_files(folder: Path) -> str:
    """What is wrong with the files of a folder, or ""."""
    faults = (
        placeholder,
        _missing_config,
        _fault_of_json,
        _fault_of_tokenizer_json,
        _fault_of_weights,
        _fault_of_vocabulary,
    )
    found = (fault(folder) for fault in faults)  # in this order, and only until the first is found
    return next(filter(None, found), "")


def placeholder(folder: Path, names: Collection[str] | None = None) -> str:
    """Describes the first file that was not downloaded. names: the files to check; None: all.

    Such a file of a tokenizer may load without an error: a Git LFS pointer is read as a vocabulary of 3 tokens.
    """
    for path in sorted(path for path in folder.iterdir() if names is None or path.name in names):
        if path.is_symlink() and not path.exists():
            return f"{path.name} is a link to a file that does not exist: copy the file"
        if path.name in OBJECTS and path.is_dir():
            return f"{path.name} is a folder and not a file: download it again"
        if path.suffix in (".json", ".txt", ".model", ".safetensors", ".bin") and path.is_file():
            with open(path, "rb") as file:
                beginning = file.read(len(LFS_POINTER))
            if beginning == LFS_POINTER:
                return f"{path.name} is a pointer of Git LFS and not the file: run git lfs pull in the folder"
            if not beginning and (path.suffix != ".txt" or path.name.startswith("vocab")):
                return f"{path.name} is empty: download it again"
    return ""


def _missing_config(folder: Path) -> str:
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return ""
    if folder.name.startswith("step-") and folder.parent.name == "checkpoints":
        return f"this is a checkpoint to resume from: the trained model is in {folder.parent.parent}"
    nested = sorted(path.parent for path in folder.glob("*/config.json"))
    if nested:
        return f"there is no config.json in it: did you mean {nested[0]}?"
    if (folder / "train_config.yaml").is_file() and not (folder / "model.safetensors").is_file():
        return "train.py has not saved a model in it yet: run train.py to its first evaluation"
    listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"there is no config.json in it, but {listed}: pass a folder that save_pretrained wrote"


def _fault_of_json(folder: Path) -> str:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{path.name} is not JSON ({error}): download it again"
        if path.name in OBJECTS and not isinstance(content, dict):
            return f"{path.name} is not an object: download it again"
    return ""


def _fault_of_tokenizer_json(folder: Path) -> str:
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            Tokenizer.from_file(str(path))
    except Exception:  # the library raises no other class
        return f"{path.name} cannot be read: download it again, or update it: pip install -U tokenizers"
    return ""


def _fault_of_weights(folder: Path) -> str:
    for index in sorted(folder.glob("*.index.json")):
        content = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(content.get("weight_map"), dict) or "metadata" not in content:
            return f"{index.name} has no weight_map and metadata: download it again"
        shards = set(content["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            return f"{len(missing)} of {len(shards)} files of weights are missing ({missing[0]}): download them again"
    for path in sorted(folder.glob("*.safetensors")):
        fault = _fault_of_safetensors(path)
        if fault:
            return f"{path.name} {fault}: download it again"
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    for path in pickles:
        with open(path, "rb") as file:
            is_pickle = file.read(1) == b"\x80"  # of torch < 1.6
        if not (is_pickle or zipfile.is_zipfile(path)):
            return f"{path.name} is truncated or corrupt: download it again"
    if not any((folder / file).is_file() for file in WEIGHT_FILES):
        weights = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
        if any("-of-" in file for file in weights):
            return f"the index of {weights[0]} is missing (model.safetensors.index.json): download it"
        if weights:
            return f"it has no model.safetensors, but {weights[0]}: rename it if these are the weights"
        others = sorted({OTHER_WEIGHTS[path.suffix] for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS})
        if others:
            return f"it has weights of {', '.join(others)} only: pass the encoder with model.safetensors"
        return "it has no weights: copy model.safetensors into it"
    return ""


def _fault_of_safetensors(path: Path) -> str:
    """A header's length in 8 bytes, the header in JSON, then the tensors at the offsets that it names."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(8)
        length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else size
        if length > size - 8:
            return f"is truncated or corrupt ({size:,} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is corrupt: its header is not JSON"
    expected = 8 + length + max(ends, default=0)
    kind = "is truncated" if size < expected else "is corrupt"
    return "" if size == expected else f"{kind} ({size:,} of {expected:,} bytes)"


def _fault_of_vocabulary(folder: Path) -> str:
    files = (*TOKENIZER_FILES, "adapter_config.json")  # an adapter has the encoder's tokenizer
    if not any((folder / file).is_file() for file in files):
        return "it has no tokenizer files (tokenizer.json, vocab.txt, ...): copy those of the encoder into it"
    if (folder / "vocab.json").is_file() and not any(
        (folder / file).is_file() for file in ("merges.txt", "tokenizer.json")
    ):
        return "merges.txt is missing: copy it"
    for path in sorted(folder.glob("*.model")):
        with open(path, "rb") as file:
            if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", file.readline(200)):
                return "pip install tiktoken"
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            return "pip install sentencepiece"
        try:
            SentencePieceProcessor(model_file=str(path))
        except Exception:  # of the library, or of the protocol buffers in it
            return f"{path.name} is not a SentencePiece model: download it again"
    return ""


def _missing_package(error: BaseException) -> str:
    patterns = PACKAGE_PATTERNS if isinstance(error, ImportError) else OTHER_PATTERNS
    for pattern in patterns:
        match = re.search(pattern, str(error))
        if match:
            package = match[1].rstrip(".")
            return f"pip install {PACKAGES.get(package, package)}"
    return ""


def _fault_of_hub(name: str, error: BaseException) -> str:
    text = f"{type(error).__name__} {error} {error.__cause__!r}"
    if "gated" in text.lower():
        return f"accept its conditions on https://huggingface.co/{name}, then log in: hf auth login"
    if "not a local folder and is not a valid model identifier" in text or "RepositoryNotFound" in text:
        return "the Hub has no such model, or it is private (hf auth login)"
    if re.search(
        r"couldn't connect|[Oo]ffline|ConnectError|ConnectionError|LocalEntryNotFound|find the requested", text
    ):
        return "it is not in the cache, and the Hub cannot be reached: check the network, or pass a folder"
    return ""


def _fault_of_config(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        return ""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("auto_map"):
        return "it needs code from its repository (auto_map), which is never run: use an encoder of transformers"
    if config.get("attn_implementation") or config.get("_attn_implementation"):
        return "remove attn_implementation from config.json"
    if not config.get("model_type"):
        return "config.json names no model_type: add that of the architecture, such as bert"
    if config["model_type"] not in CONFIG_MAPPING:
        return f"transformers {transformers.__version__} does not know {config['model_type']}: update it"
    return ""
