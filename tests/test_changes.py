"""What people change first: each change is a few lines in one file, applied to a copy, which then trains."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, flat, weights
from safetensors.torch import load_file

LOSS = """                loss = F.cross_entropy(logits.float().flatten(0, 1), gold.flatten(), reduction="sum")
"""
LOADED = "        network.check_labels(raw_model, "
# Emissions -> the log marginals of a linear chain over a row's subwords: cross-entropy, argmax, scores as before.
CRF = """def chain(model, args, batch, output):
    emissions, mask = output.logits.float(), batch.get("attention_mask", batch["input_ids"] >= 0).bool()[..., None]
    ahead, back = [emissions[:, 0]], [torch.zeros_like(emissions[:, 0])]
    for t in range(1, emissions.shape[1]):
        ahead.append(emissions[:, t] + torch.logsumexp(ahead[-1][:, :, None] + model.transitions, 1))
    for t in range(emissions.shape[1] - 1, 0, -1):  # what is padding says nothing
        message = torch.logsumexp(model.transitions + (emissions[:, t] + back[-1])[:, None], 2)
        back.append(torch.where(mask[:, t], message, back[-1]))
    output.logits = (torch.stack(ahead, 1) + torch.stack(back[::-1], 1)).log_softmax(-1)


"""
CHAINED = """    model.transitions = nn.Parameter(torch.zeros(model.num_labels, model.num_labels))
    if os.path.exists(f"{name}/model.safetensors"):
        saved = safetensors.load_file(f"{name}/model.safetensors")
        model.transitions.data = saved.get("transitions", model.transitions.data)
    model.register_forward_hook(chain, with_kwargs=True)
"""
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
                + "                loss = ((1 - torch.exp(-losses)) ** 2 * losses).sum()\n",
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
                "                    weights = network.gathered(raw_model.state_dict())\n"
                "                    with data.errors_exit(1):\n"
                "                        network.from_rank_0(network.save_model, raw_model, ",
                "                    merged = copy.deepcopy(raw_model).merge_and_unload()\n"
                "                    weights = merged.state_dict()\n"
                "                    with data.errors_exit(1):\n"
                "                        network.from_rank_0(network.save_model, merged, ",
            ),
        ],
    ),
    "a CRF": (
        "model.py",
        [
            ("def load(name: str | None, config", CRF + "def load(name: str | None, config"),
            ("    return model\n\n\ndef load_model(", CHAINED + "    return model\n\n\ndef load_model("),
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
    for name in ("train.py", "model.py", "data.py", "metrics.py", "infer.py"):
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
    elif change == "a CRF":
        assert weights(tmp_path / "out")["transitions"].abs().max() > 0
        flags = ["--input_file", corpus["--validation_file"], "--evaluate", "--precision", "fp32"]
        tagged = subprocess.run(
            [sys.executable, "infer.py", "out", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert f"{results['eval_f1']:.4f}" in tagged.stdout.splitlines()[-1]
        assert f"loss {results['eval_loss']:.4f}" in tagged.stdout
    elif change == "a second metric":
        assert 0 <= results["eval_whole_sentences"] <= 1 and "eval_whole_sentences" not in before
    elif change == "Weights & Biases":
        assert printed.count("wandb") and results["train_loss"] == before["train_loss"]
    else:
        assert results["train_loss"] != before["train_loss"]


def test_the_crf_gives_the_marginals_of_all_paths():
    """The lines of the change, against the sum over every path of every row, padding left out."""
    found: dict = {"torch": torch}
    exec(CRF, found)
    emissions, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model, output = SimpleNamespace(transitions=torch.randn(3, 3)), SimpleNamespace(logits=emissions)
    found["chain"](model, (), {"input_ids": mask, "attention_mask": mask}, output)
    for row, length in ((0, 4), (1, 2)):
        marginals = torch.zeros(length, 3)
        for path in itertools.product(range(3), repeat=length):
            total = sum(emissions[row, t, tag] for t, tag in enumerate(path))
            total += sum(model.transitions[pair] for pair in itertools.pairwise(path))
            for t, tag in enumerate(path):
                marginals[t, tag] += total.exp()
        expected = (marginals / marginals.sum(-1, keepdim=True)).log()
        torch.testing.assert_close(output.logits[row, :length], expected)
