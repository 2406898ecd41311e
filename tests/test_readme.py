"""Every command of the README, as it is printed there, in a fresh copy of the repository."""

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

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [re.sub(r"\s*\n", "\n", block) for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
SCRIPTS = [block for block in BLOCKS if block.startswith("#!")]
LINES = [line for block in BLOCKS if block not in SCRIPTS for line in block.replace("\\\n", " ").splitlines()]
LINES += re.findall(r"`((?:python|torchrun) [^`]+)`", README)
# What the gate runs from nothing, what needs several hosts (tests/test_nodes.py), and what takes many minutes
ELSEWHERE = ("pip install", "torchrun --nnodes", "python tests/benchmarks", "pytest")
COMMANDS = list(dict.fromkeys(line for line in LINES if not line.startswith(ELSEWHERE)))
FILLED = ("--train_file train.conll --max_steps 2", {"N": "2"})  # for ... and N


@pytest.fixture(scope="module")
def copy(encoders, tmp_path_factory):
    """The repository, the files that the README names, bert-base-cased (small) and conll2003 in the Hub's cache."""
    folder = tmp_path_factory.mktemp("copy")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split():
        if not name.startswith("tests/"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    rows = read(ROOT / "samples" / "train.conll")[:40]
    for name in ("train.conll", "dev.conll", "test.conll", "huge.conll"):
        write_conll(folder / name, rows)
    columns = {"tokens": [row["tokens"] for row in rows], "ner_tags": [row["tags"] for row in rows]}
    table = datasets.Dataset.from_dict(columns)
    table.to_parquet(folder / "train.parquet")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(folder / "my_set")
    lines = [json.dumps({"tokens": row["tokens"], "ner_tags": row["tags"]}) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines))
    cells = [f'"{" ".join(row["tokens"])}",{" ".join(row["tags"])}' for row in rows if '"' not in row["tokens"]]
    (folder / "train.csv").write_text("\n".join(["tokens,ner_tags", *cells]))
    words = [
        "\n".join(f"{i}\t{word}\t_\tNOUN\tNN" + 5 * "\t_" for i, word in enumerate(row["tokens"], 1)) for row in rows
    ]
    (folder / "train.conllu").write_text("\n\n".join(words))
    texts = ["EU rejects German call", "Peter Blackburn", "In Oslo it rained"] * 8
    spans = [{"start": 0, "end": text.index(" "), "label": "X"} for text in texts]
    doccano = [{"text": text, "label": [[0, span["end"], "X"]]} for text, span in zip(texts, spans)]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, doccano)))
    prodigy = [{"text": text, "spans": [span], "answer": "accept"} for text, span in zip(texts, spans)]
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, prodigy)))
    values = [{"start": 0, "end": span["end"], "labels": ["X"]} for span in spans]
    studio = [{"data": {"text": t}, "annotations": [{"result": [{"value": v}]}]} for t, v in zip(texts, values)]
    (folder / "export.json").write_text(json.dumps(studio))
    (folder / "articles.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "notes.txt").write_text("\n".join(texts))
    (folder / "run.yaml").write_text("train_file: train.conll\nmax_steps: 2\n")
    lay("models--bert-base-cased", "main", {path.name: path for path in Path(encoders["wordpiece"]).iterdir()}, folder)
    parts = {f"data/{split}-00000-of-00001.parquet": table for split in ("train", "validation", "test")}
    lay("datasets--lhoestq--conll2003", "main", parts, folder)
    bash(folder, "python train.py --train_file train.conll --max_steps 2 --output_dir trained")
    return folder


def bash(folder, command: str, **env) -> str:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HOME": str(folder)} | env
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def filled(command: str) -> str:
    flags, names = FILLED
    for name, value in names.items():
        command = re.sub(rf"=\b{name}\b", f"={value}", command)
    return command.replace("...", flags)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_printed(command, copy):
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    if "outputs" in command:
        shutil.copytree(copy / "trained", copy / "outputs")
    bash(copy, filled(command))
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
def test_the_job_script_runs_where_scontrol_and_srun_only_pretend(copy):
    """srun starts the command once a node; here both nodes are this machine."""
    (script,) = SCRIPTS
    (copy / "bin").mkdir()
    (copy / "bin" / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n")
    (copy / "bin" / "srun").write_text('#!/bin/bash\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n')
    for name in ("scontrol", "srun"):
        (copy / "bin" / name).chmod(0o755)
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    path = f"{copy / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    bash(copy, filled(script).replace("nproc-per-node=8", "nproc-per-node=1"), PATH=path, **slurm)
    assert json.loads((copy / "outputs" / "all_results.json").read_text())["world_size"] == 2
