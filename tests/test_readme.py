"""Every command and every Python block of README.md, docs/ and samples/README.md; what the pages list and link to.

A new page or a new block is found here. A command is run, or it is in EXCEPTIONS with the reason.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import datasets
import pytest
import torch
from conftest import ROOT, lay, read, results, write_conll

import data
import infer
import train
from util import comparison, pretrained, throughput
from util.run_ner_flags import translate

PAGES = ["README.md", "samples/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
MAX_README_LINES = 250
LANGUAGES = {"", "bash", "python", "console"}  # "": output; "console": of docs/formats.md, see test_docs_formats.py


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each block of code."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The command lines of bash blocks without comments, and those in running text."""
    texts = [text for language, text in blocks(page) if language == "bash" and not text.startswith("#!")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python|torchrun|pytest|uvicorn) [^`]+)`", TEXTS[page])
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
SCRIPTS = [text for page in PAGES for language, text in blocks(page) if language == "bash" and text.startswith("#!")]
PYTHON = {page: [text for language, text in blocks(page) if language == "python"] for page in PAGES}

# Commands that are not run here: how they begin, and the reason.
EXCEPTIONS = {
    "pip install": "run by .ci/run",
    "pytest": "a test; the files that it names exist",
    "python tests/benchmarks/": "takes many minutes; its flags are parsed",
    "OMP_NUM_THREADS=1 python tests/benchmarks/": "takes many minutes; its flags are parsed",
    "python tests/make_samples.py": "run by tests/test_infer.py",
    "torchrun --nnodes": "run by tests/test_hosts.py",
    "uvicorn": "run by test_the_server_answers_the_printed_request",
    "curl": "run by test_the_server_answers_the_printed_request",
}
EXACT_EXCEPTIONS = {"python train.py": "run by .ci/run"}
RUN = [c for c in COMMANDS if not c.startswith(tuple(EXCEPTIONS)) and c not in EXACT_EXCEPTIONS]
PLAIN = re.compile(r"python (train|data|infer|metrics)\.py( [^|]+)?")
IN_PROCESS = [c for c in RUN if PLAIN.fullmatch(c) and "conll2003" not in c and "bert-base-cased" not in c]
AS_PRINTED = [c for c in RUN if c not in IN_PROCESS]
FLAGS = "--train_file train.conll --max_steps 2"  # stand in for "..."
NUM_RANKS = "2"  # stands in for "N"


def fill_in(command: str) -> str:
    command = command.replace("step-00000030", "step-00000002")  # the runs of the tests are shorter
    return re.sub(r"=\bN\b", f"={NUM_RANKS}", command).replace("...", FLAGS)


# ----------------------------------------------------------------------------------------------------------------------
# A folder with everything that the commands name


@pytest.fixture(scope="module")
def copy(encoders, tmp_path_factory) -> Path:
    """The repository, the files that the pages name, bert-base-cased (small) and conll2003 in the Hub's cache."""
    folder = tmp_path_factory.mktemp("copy")
    copy_repository(folder)
    write_data(folder)
    files = {path.name: path for path in Path(encoders["wordpiece"]).iterdir()}
    lay("models--bert-base-cased", "main", files, folder)
    with in_folder(folder, encoders["wordpiece"]):
        call("python train.py --train_file train.conll --test_file test.conll --max_steps 3 --save_steps 1 "
             "--save_total_limit 9 --output_dir trained")  # fmt: skip
    return folder


@pytest.fixture
def trained(copy, encoders):
    """The folder as working directory, with a finished run in outputs/. The default encoder is a small one."""
    for name in ("outputs", "outputs_a", "outputs_b"):
        shutil.rmtree(copy / name, ignore_errors=True)
        shutil.copytree(copy / "trained", copy / name)
    with in_folder(copy, encoders["wordpiece"]):
        yield copy


@contextlib.contextmanager
def in_folder(folder: Path, encoder: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(pretrained, "packaged_encoder", lambda: encoder)
        patch.setitem(throughput.MATMUL_SIZE, "cpu", 64)  # --benchmark measures the peak of the machine
        yield


def call(command: str) -> str:
    """Runs `python SCRIPT.py FLAGS` in this process and returns what it prints."""
    _, script, *flags = shlex.split(command)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", [script, *flags])
        main = comparison.main if script == "metrics.py" else importlib.import_module(Path(script).stem).main
        main()
    return printed.getvalue()


def copy_repository(folder: Path) -> None:
    """Copies the scripts, util/, samples/ and the files beside them. A copy of the project may have no .git."""
    for path in [*ROOT.glob("*.*"), *(ROOT / "util").glob("*.*"), *(ROOT / "samples").glob("*.*")]:
        if path.is_file() and not path.name.startswith("."):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)


def write_data(folder: Path) -> None:
    """Every file and dataset that a command reads."""
    rows = read(ROOT / "samples" / "train.conll")[:40]
    for name in ("train.conll", "dev.conll", "test.conll", "huge.conll"):
        write_conll(folder / name, rows)
    table = datasets.Dataset.from_dict(
        {"tokens": [row["tokens"] for row in rows], "ner_tags": [row["tags"] for row in rows]}
    )
    splits = {f"data/{split}-00000-of-00001.parquet": table for split in ("train", "validation", "test")}
    lay("datasets--lhoestq--conll2003", "main", splits, folder)
    texts = ["EU rejects German call", "Peter Blackburn", "In Oslo it rained"] * 8
    spans, regions = [], []
    for text in texts:  # the first word of every text is an X
        end = text.index(" ")
        spans.append({"text": text, "label": [[0, end, "X"]]})
        result = {"value": {"start": 0, "end": end, "labels": ["X"]}}
        regions.append({"data": {"text": text}, "annotations": [{"result": [result]}]})
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, spans)))
    (folder / "export.json").write_text(json.dumps(regions))
    (folder / "articles.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "notes.txt").write_text("\n".join(texts))
    (folder / "run.yaml").write_text("train_file: train.conll\nmax_steps: 2\n")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HOME": str(folder)}


def bash(folder: Path, command: str, **env) -> str:
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env=environment(folder) | env,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def output_dir(command: str) -> str:
    words = command.split()
    return words[words.index("--output_dir") + 1] if "--output_dir" in words else "outputs"


def prepare(command: str, folder: Path) -> None:
    """train.py starts a new run, unless the command continues one."""
    if "train.py" in command and "outputs/" not in command:
        shutil.rmtree(folder / output_dir(command), ignore_errors=True)


def check(command: str, folder: Path) -> None:
    """A training command leaves its scores."""
    if "train.py" in command and "--help" not in command and "--benchmark" not in command:
        assert (folder / output_dir(command) / "all_results.json").exists()


@pytest.mark.parametrize("command", IN_PROCESS)
def test_a_command_runs(command, trained):
    prepare(command, trained)
    if "--help" in command:
        with pytest.raises(SystemExit):
            call(command)
    else:
        call(fill_in(command))
    check(command, trained)


@pytest.mark.slow
@pytest.mark.parametrize("command", AS_PRINTED)
def test_a_command_runs_as_printed(command, trained):
    prepare(command, trained)
    bash(trained, fill_in(command))
    check(command, trained)


def flags_of(command: str) -> tuple[str, list[str]]:
    """ "torchrun ... train.py FLAGS", perhaps behind a pipe -> "train.py", FLAGS."""
    words = shlex.split(fill_in(command).rpartition("|")[2])
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[script], words[script + 1 :]


@pytest.mark.parametrize("command", AS_PRINTED)
def test_the_flags_of_a_command_exist(command, trained, monkeypatch):
    script, flags = flags_of(command)
    monkeypatch.setattr("sys.argv", [script, *flags])
    if script == "infer.py":
        infer.get_args()
    else:
        {"train.py": train, "data.py": data}[script].get_args(flags)


# Runs scripts, each of which ends when it has parsed its flags. It prints the flags that a script passes on.
PARSE = """
import argparse, json, os, runpy, sys

parse_known_args = argparse.ArgumentParser.parse_known_args

def parse(self, *arguments):
    _, unknown = parse_known_args(self, *arguments)
    if unknown:
        self.error(f"unrecognized arguments: {unknown}")
    sys.exit()

def parse_known(self, *arguments):
    _, unknown = parse_known_args(self, *arguments)
    sys.exit(json.dumps(unknown))

argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = parse, parse_known
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    sys.path[0] = os.path.dirname(argv[0])  # as `python SCRIPT` sets it
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        assert end.code != 2, argv
        print(end.code or "[]")
"""


@pytest.mark.slow
def test_the_flags_of_the_benchmarks_exist():
    calls = [flags_of(command) for command in COMMANDS if "python tests/benchmarks/" in command]
    with_parser = [[script, *flags] for script, flags in calls if "ArgumentParser" in (ROOT / script).read_text()]
    assert [script for script, flags in calls if flags and [script, *flags] not in with_parser] == []
    argument = json.dumps(with_parser)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, argument], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        train.get_args(json.loads(line))


def test_every_exception_is_needed():
    for start in EXCEPTIONS:
        assert [command for command in COMMANDS if command.startswith(start)], start
    assert set(EXACT_EXCEPTIONS) <= set(COMMANDS)


def test_the_first_block_holds_the_two_commands_that_the_gate_runs():
    lines = blocks("README.md")[0][1].splitlines()
    assert len(lines) == 2 and all(line.startswith("pip install") for line in lines)


@pytest.mark.slow
def test_the_job_script_runs_with_substitutes_for_scontrol_and_srun(trained):
    """srun starts the command once per node. Here both nodes are this machine."""
    (script,) = SCRIPTS
    (trained / "bin").mkdir()
    (trained / "bin" / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n")
    srun = '#!/bin/bash\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n'
    (trained / "bin" / "srun").write_text(srun)
    for name in ("scontrol", "srun"):
        (trained / "bin" / name).chmod(0o755)
    shutil.rmtree(trained / "outputs")
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    path = f"{trained / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    bash(trained, fill_in(script).replace("nproc-per-node=8", "nproc-per-node=1"), PATH=path, **slurm)
    assert results(trained / "outputs")["world_size"] == 2


# ----------------------------------------------------------------------------------------------------------------------
# Python blocks, the server and the exported model


def run_block(page: str, code: str) -> dict:
    """Returns the names that a block defines."""
    names: dict = {"__name__": "block"}
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


def block_with(text: str) -> str:
    (code,) = [code for code in PYTHON["docs/tagging.md"] if text in code]
    return code


def test_the_python_blocks_of_the_pages_are_known():
    """Those of docs/formats.md are run by test_docs_formats.py, the others here."""
    numbers = {page: len(texts) for page, texts in PYTHON.items() if texts and page != "docs/formats.md"}
    assert numbers == {"README.md": 1, "docs/tagging.md": 5}


def test_the_tagger_of_the_pages(trained):
    for code in (*PYTHON["README.md"], block_with("aggregation_strategy")):
        tagger = run_block("README.md", code)["tagger"]
        assert len(tagger(["Maria lives in Oslo.", "It rained."])) == 2


def test_the_server_answers(trained):
    from fastapi.testclient import TestClient

    server = run_block("serve.py", block_with("FastAPI"))
    client, texts = TestClient(server["app"]), ["Maria lives in Oslo.", "", "It rained."]
    answer = client.post("/tag", json={"texts": texts})
    assert (answer.status_code, answer.json()) == (200, infer.Tagger("outputs")(texts))
    for invalid in (
        {"texts": []},
        {"texts": "Maria"},
        {"texts": [1]},
        {},
        {"texts": ["a"] * (server["MAX_TEXTS"] + 1)},
    ):
        assert client.post("/tag", json=invalid).status_code == 422
    assert client.post("/tag", content="{").status_code == 422
    assert client.post("/tag", json={"texts": ["a" * (server["MAX_CHARACTERS"] + 1)]}).status_code == 413


@pytest.mark.slow
def test_the_exported_model_gives_the_logits_and_entities_of_the_model(trained):
    """At other sizes than those of the example that it was exported with, padded."""
    tagger = run_block("export", block_with("torch.onnx.export"))["tagger"]
    onnx = run_block("onnxruntime", block_with("tagger.model = run"))
    for rows, length in ((1, 3), (3, 128), (16, 20)):
        input_ids = torch.randint(5, 900, (rows, length), generator=torch.Generator().manual_seed(rows))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, length // 2 + 1 :] = 0
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        with torch.inference_mode():
            expected = tagger.model(**batch).logits
        difference = (onnx["run"](**batch).logits - expected)[attention_mask == 1].abs().max().item()
        assert difference < 2e-5
    texts = [" ".join(row["tokens"]) for row in read("dev.conll")]
    for found, expected in zip(onnx["tagger"](texts), tagger(texts), strict=True):
        assert [(e["entity_group"], e["start"]) for e in found] == [(e["entity_group"], e["start"]) for e in expected]
    decoded = run_block("decode", block_with("first_subwords"))
    document = infer.Document.from_text("Maria lives in Oslo.")
    assert decoded["tags"] == tagger.tag([document])[0].tags


@pytest.mark.slow
def test_the_server_answers_the_printed_request(trained):
    (trained / "serve.py").write_text(block_with("FastAPI"))
    (start,) = [command for command in COMMANDS if command.startswith("uvicorn serve:app")]
    (request,) = [command for command in COMMANDS if command.startswith("curl ")]
    server = subprocess.Popen(shlex.split(start), cwd=trained, env=environment(trained))
    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                urllib.request.urlopen("http://localhost:8000/openapi.json")
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.2)
        assert len(json.loads(bash(trained, request))) == 2
    finally:
        server.kill()
        server.wait()


# ----------------------------------------------------------------------------------------------------------------------
# Pages


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_blocks_of_known_languages(page):
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    assert len(re.findall("^```", TEXTS[page], re.MULTILINE)) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_of_docs_begins_with_a_title_and_a_command(page):
    assert re.match(r"# [^\n]+\n\n```bash\n", TEXTS[page])


def test_every_page_of_docs_is_linked_from_the_readme():
    assert {page for page in PAGES if page.startswith("docs/")} <= set(re.findall(r"\]\((docs/[^)]+)\)", README))


def anchors(page: str) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", TEXTS[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_link_of_a_page_exists(page):
    names = re.findall(r"(?:util|tests|samples|docs|\.ci)/[\w./-]*\w", TEXTS[page])
    assert [name for name in names if not (ROOT / name).exists()] == []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), link
        target = str(path.resolve().relative_to(ROOT))
        assert not fragment or fragment in anchors(target), link


def test_the_answer_to_an_unsupported_flag_is_the_printed_one():
    (answer,) = re.findall(r"^error: (--warmup_steps .*)$", TEXTS["docs/comparison.md"], re.MULTILINE)
    with pytest.raises(ValueError) as error:
        translate(["--warmup_steps", "500"], known=set())
    assert str(error.value) == answer


def test_the_functions_that_replace_those_of_the_course_exist():
    table = TEXTS["docs/comparison.md"].partition("## What differs")[0]
    places = re.findall(r"\| `(\w+)\.py`: (.*) \|$", table, re.MULTILINE)
    assert len(places) == 7
    for script, names in places:
        assert [
            name for name in re.findall(r"`(\w+)`", names) if not hasattr(importlib.import_module(script), name)
        ] == []


def test_the_layout_tables_list_every_file_once():
    tables = README[README.index("| file | holds |") :].partition("\n\nThe optimizer step")[0]
    files = [path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("util/*.py")] if path.name != "__init__.py"]
    assert sorted(re.findall(r"`([a-z_]+\.py)`", tables)) == sorted(files)
