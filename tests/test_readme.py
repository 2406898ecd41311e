"""Every command of the README, as it is printed there, in a fresh copy of the repository; and what it lists."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import ROOT, lay, read, write_conll

from util.run_ner_flags import translate

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [re.sub(r"\s*\n", "\n", block) for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
SCRIPTS = [block for block in BLOCKS if block.startswith("#!")]
LINES = [line for block in BLOCKS if block not in SCRIPTS for line in block.replace("\\\n", " ").splitlines()]
LINES += re.findall(r"`((?:python|torchrun) [^`]+)`", README)
# Tested elsewhere: by .ci/run, on several hosts (tests/test_nodes.py), or not at all since they take many minutes.
ELSEWHERE = ("pip install", "torchrun --nnodes", "python tests/benchmarks", "pytest")
COMMANDS = list(dict.fromkeys(line for line in LINES if not line.startswith(ELSEWHERE)))
BENCHMARK_PAGES = ["tests/benchmarks/NOTES.md", "tests/benchmarks/SCALING.md"]
FLAGS = "--train_file train.conll --max_steps 2"  # stand in for "..."
NUM_RANKS = "2"  # stands in for "N"


@pytest.fixture(scope="module")
def copy(encoders, tmp_path_factory) -> Path:
    """The repository, the files that the README names, bert-base-cased (small) and conll2003 in the Hub's cache."""
    folder = tmp_path_factory.mktemp("copy")
    copy_repository(folder)
    write_data(folder)
    files = {path.name: path for path in Path(encoders["wordpiece"]).iterdir()}
    lay("models--bert-base-cased", "main", files, folder)
    bash(folder, "python train.py --train_file train.conll --max_steps 2 --output_dir trained")
    return folder


def copy_repository(folder: Path) -> None:
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(list_files, cwd=ROOT, text=True).split():
        if not name.startswith("tests/") and (ROOT / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def write_data(folder: Path) -> None:
    """Every file and dataset that a command of the README reads."""
    rows = read(ROOT / "samples" / "train.conll")[:40]
    for name in ("train.conll", "dev.conll", "test.conll", "huge.conll"):
        write_conll(folder / name, rows)
    table = datasets.Dataset.from_dict(
        {"tokens": [row["tokens"] for row in rows], "ner_tags": [row["tags"] for row in rows]}
    )
    table.to_parquet(folder / "train.parquet")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(folder / "my_set")
    splits = {f"data/{split}-00000-of-00001.parquet": table for split in ("train", "validation", "test")}
    lay("datasets--lhoestq--conll2003", "main", splits, folder)
    lines = [json.dumps({"tokens": row["tokens"], "ner_tags": row["tags"]}) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines))
    cells = [f'"{" ".join(row["tokens"])}",{" ".join(row["tags"])}' for row in rows if '"' not in row["tokens"]]
    (folder / "train.csv").write_text("\n".join(["tokens,ner_tags", *cells]))
    sentences = []
    for row in rows:
        words = [f"{i}\t{word}\t_\tNOUN\tNN" + 5 * "\t_" for i, word in enumerate(row["tokens"], 1)]
        sentences.append("\n".join(words))
    (folder / "train.conllu").write_text("\n\n".join(sentences))
    write_annotations(folder)
    (folder / "run.yaml").write_text("train_file: train.conll\nmax_steps: 2\n")


def write_annotations(folder: Path) -> None:
    """Texts, and the exports of three annotation tools. The first word of every text is an X."""
    texts = ["EU rejects German call", "Peter Blackburn", "In Oslo it rained"] * 8
    doccano, prodigy, label_studio = [], [], []
    for text in texts:
        end = text.index(" ")
        doccano.append({"text": text, "label": [[0, end, "X"]]})
        span = {"start": 0, "end": end, "label": "X"}
        prodigy.append({"text": text, "spans": [span], "answer": "accept"})
        result = {"value": {"start": 0, "end": end, "labels": ["X"]}}
        label_studio.append({"data": {"text": text}, "annotations": [{"result": [result]}]})
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, doccano)))
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, prodigy)))
    (folder / "export.json").write_text(json.dumps(label_studio))
    (folder / "articles.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "notes.txt").write_text("\n".join(texts))


def bash(folder: Path, command: str, **env) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PATH": path, "HF_HOME": str(folder)} | env,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def fill_in(command: str) -> str:
    return re.sub(r"=\bN\b", f"={NUM_RANKS}", command).replace("...", FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_printed(command, copy):
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    if "outputs" in command:
        shutil.copytree(copy / "trained", copy / "outputs")
    bash(copy, fill_in(command))
    if "train.py" in command and not {"--help", "--benchmark"} & {*command.split()}:
        folder = copy / ("again" if "again" in command else "outputs")
        assert (folder / "all_results.json").exists()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(copy):
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    shutil.copytree(copy / "trained", copy / "outputs")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        (copy / "block.py").write_text(block)
        bash(copy, "python block.py")


@pytest.mark.slow
def test_the_job_script_runs_with_substitutes_for_scontrol_and_srun(copy):
    """srun starts the command once per node. Here both nodes are this machine."""
    (script,) = SCRIPTS
    (copy / "bin").mkdir()
    (copy / "bin" / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n")
    (copy / "bin" / "srun").write_text('#!/bin/bash\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n')
    for name in ("scontrol", "srun"):
        (copy / "bin" / name).chmod(0o755)
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    path = f"{copy / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    bash(copy, fill_in(script).replace("nproc-per-node=8", "nproc-per-node=1"), PATH=path, **slurm)
    assert json.loads((copy / "outputs" / "all_results.json").read_text())["world_size"] == 2


def test_the_first_block_holds_the_two_commands_that_the_gate_runs():
    lines = BLOCKS[0].splitlines()
    assert len(lines) == 2 and all(line.startswith("pip install") for line in lines)


def test_the_answer_to_an_unsupported_flag_is_the_printed_one():
    (answer,) = re.findall(r"^error: (--warmup_steps .*)$", README, re.MULTILINE)
    with pytest.raises(ValueError) as error:
        translate(["--warmup_steps", "500"], known=set())
    assert str(error.value) == answer


def test_the_layout_tables_list_every_file_once():
    tables = README[README.index("| file | holds |") :].partition("\n\nThe optimizer step")[0]
    files = [path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("util/*.py")] if path.name != "__init__.py"]
    assert sorted(re.findall(r"`([a-z_]+\.py)`", tables)) == sorted(files)


PAGES = ["README.md", "samples/README.md", "docs/formats.md", "docs/gpu.md", *BENCHMARK_PAGES]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    names = re.findall(r"(?:util|tests|samples|docs|\.ci)/[\w./-]*\w", text)
    names += re.findall(r"\]\(([^):]+)\)", text)
    folders = (ROOT, (ROOT / page).parent)
    assert [name for name in names if not any((folder / name).exists() for folder in folders)] == []
