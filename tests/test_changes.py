"""What people change first: each change is a few lines in one file, applied to a copy, which then trains."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, flat, weights
from safetensors.torch import load_file

LOSS = """                    loss = F.cross_entropy(logits.float().flatten(0, 1), gold.flatten(), reduction="sum")
"""
LOADED = "        network.check_labels(raw_model, "
CHANGES = {
    "label smoothing": ("train.py", [('reduction="sum")\n', 'reduction="sum", label_smoothing=0.1)\n')]),
    "class weights": (
        "train.py",
        [
            ('gold.flatten(), reduction="sum")', 'gold.flatten(), weight, reduction="sum")'),
            (
                LOADED,
                '        weight = torch.tensor([0.5 if label == "O" else 2.0 for label in labels], device=device)\n'
                + LOADED,
            ),
        ],
    ),
    "focal loss": (
        "train.py",
        [
            (
                LOSS,
                LOSS.replace('"sum"', '"none"').replace("loss =", "losses =")
                + "                    loss = ((1 - torch.exp(-losses)) ** 2 * losses).sum()\n",
            )
        ],
    ),
    "cosine schedule": (
        "train.py",
        [
            (
                "    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)\n",
                "    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)\n"
                "    return peak * (1 + math.cos(math.pi * done)) / 2\n",
            )
        ],
    ),
    "freeze the embeddings": (
        "train.py",
        [(LOADED, "        raw_model.get_input_embeddings().requires_grad_(False)\n" + LOADED)],
    ),
    "LoRA with peft": (
        "train.py",
        [
            (
                "import transformers\n",
                "import copy\nimport transformers\nfrom peft import LoraConfig, get_peft_model\n",
            ),
            (
                LOADED,
                '        raw_model = get_peft_model(raw_model, LoraConfig(task_type="TOKEN_CLS", r=8))\n' + LOADED,
            ),
            (
                "                        from_rank_0(network.save_model, raw_model, tokenizer, args.output_dir)\n"
                "                        from_rank_0(write_report",
                "                        merged = copy.deepcopy(raw_model).merge_and_unload()\n"
                "                        from_rank_0(network.save_model, merged, tokenizer, args.output_dir)\n"
                "                        from_rank_0(write_report",
            ),
        ],
    ),
    "Weights & Biases": (
        "train.py",
        [
            ("import transformers\n", "import transformers\nimport wandb\n"),
            ("    bar = tqdm(", "    if rank == 0:\n        wandb.init(config=settings)\n    bar = tqdm("),
            (
                '                line = f"loss {mean_loss:.4f}',
                "                if rank == 0:\n                    wandb.log(scalars, step)\n"
                '                line = f"loss {mean_loss:.4f}',
            ),
        ],
    ),
    "a second metric": (
        "metrics.py",
        [
            (
                "    if scheme:\n        # The default mode",
                "    wrong = np.add.reduceat(gold != predicted, (np.cumsum(lengths) - lengths)[lengths > 0])\n"
                '    scores["whole_sentences"] = float((wrong == 0).mean())\n'
                "    if scheme:\n        # The default mode",
            )
        ],
    ),
    "a new file format": (
        "data.py",
        [
            (
                "def read_dataset(dataset: Dataset):\n",
                "def read_slashes(path: str):\n"
                '    """word/TAG word/TAG, a sentence a line."""\n'
                "    for number, line in text_lines(path):\n"
                '        pairs = [word.rpartition("/") for word in line.split()]\n'
                '        yield [number], {"tokens": [p[0] for p in pairs], "tags": [p[2] for p in pairs]}\n\n\n'
                "def read_dataset(dataset: Dataset):\n",
            ),
            (
                '    if suffix == ".parquet" or',
                '    if suffix == ".slashes":\n        return read_slashes\n    if suffix == ".parquet" or',
            ),
        ],
    ),
}
WANDB = "import json\ndef init(**_): pass\ndef log(values, step): print('wandb', step, json.dumps(values))\n"


def trained(folder, encoders, corpus, *flags) -> tuple[str, dict]:
    """What train.py of that folder prints, and its results."""
    command = [sys.executable, "train.py", "--output_dir", "out", "--model_name_or_path", encoders["wordpiece"], *flags]
    command += [
        "--max_steps",
        "8",
        "--eval_steps",
        "4",
        "--learning_rate",
        "5e-3",
        "--precision",
        "fp32",
        *flat(corpus),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out" / "all_results.json").read_text())


@pytest.fixture(scope="module")
def unchanged(encoders, corpus, tmp_path_factory):
    return trained(copied(tmp_path_factory.mktemp("unchanged")), encoders, corpus)


def copied(folder):
    for name in ("train.py", "model.py", "data.py", "metrics.py"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_few_lines_trains(change, unchanged, encoders, corpus, tmp_path):
    name, edits = CHANGES[change]
    copied(tmp_path)
    (tmp_path / "wandb.py").write_text(WANDB)
    source, lines = (tmp_path / name).read_text(), 0
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
        source = source.replace(old, new)
        lines += len(set(new.splitlines()) - set(old.splitlines()))
    (tmp_path / name).write_text(source)
    assert lines <= 15
    if change == "a new file format":
        shutil.copy(corpus["--validation_file"], tmp_path / "dev.txt")
        rows = [line.split() for line in open(corpus["--train_file"], encoding="utf-8")]
        text = "".join(f"{row[0]}/{row[1]} " if row else "\n" for row in rows)
        (tmp_path / "train.slashes").write_text(text)
        corpus = corpus | {"--train_file": "train.slashes"}
    printed, results = trained(tmp_path, encoders, corpus)
    before_printed, before = unchanged
    if change == "a new file format":
        assert results["train_loss"] == pytest.approx(before["train_loss"])
    elif change == "LoRA with peft":  # what is saved has the adapters merged, and the rest as it was
        ours, theirs = weights(tmp_path / "out"), load_file(f"{encoders['wordpiece']}/model.safetensors")
        same = {name for name in theirs if (ours[f"bert.{name}"] == theirs[name]).all()}
        changed = {name.partition("self.")[2] for name in theirs.keys() - same}
        assert changed == {"query.weight", "value.weight"}
    elif change == "a second metric":
        assert 0 <= results["eval_whole_sentences"] <= 1 and "eval_whole_sentences" not in before
    elif change == "Weights & Biases":
        assert printed.count("wandb") and results["train_loss"] == before["train_loss"]
    else:
        assert results["train_loss"] != before["train_loss"]
