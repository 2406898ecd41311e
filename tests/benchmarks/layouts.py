"""One optimizer step on the same 8 sentences, laid out in four ways: the loss and gradient norm that each one reports.

python tests/benchmarks/layouts.py

transformers.Trainer's grow with accumulation and ranks (huggingface/transformers#47688); ours do not. Dropout is off,
the encoder small with random weights, fp32 on a CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import conftest  # noqa: E402, I001 - first: it takes caches of its own
import torch  # noqa: E402
import transformers  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

import data  # noqa: E402

LAYOUTS = {"1 x 8": (8, 1, 1), "1 x (2 x 4)": (4, 2, 1), "1 x (4 x 2)": (2, 4, 1), "2 x 4": (4, 1, 2)}


def prepare(folder: Path) -> None:
    """8 sentences, and an encoder without dropout."""
    sentences = conftest.read(conftest.ROOT / "samples" / "train.conll")[:8]
    conftest.write_conll(folder / "train.conll", sentences)
    tokenizer = conftest.word_piece()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **conftest.SMALL
    )
    transformers.BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")


def run(command: list, ranks: int) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run([sys.executable, *launch, *map(str, command)], cwd=conftest.ROOT, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())


def ours(folder: Path, layout: str) -> tuple[float, float]:
    batch, accumulation, ranks = LAYOUTS[layout]
    out = folder / f"ours {layout}"
    flags = ["--train_file", folder / "train.conll", "--model_name_or_path", folder / "encoder", "--max_steps", 1]
    flags += ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
    run(["train.py", *flags, "--precision", "fp32", "--logging_steps", 1, "--output_dir", out], ranks)
    events = EventAccumulator(str(out / "runs")).Reload()
    return events.Scalars("train/loss")[0].value, events.Scalars("train/grad_norm")[0].value


def trainers(folder: Path, layout: str) -> tuple[float, float]:
    out = folder / f"Trainer {layout}"
    run([__file__, folder, layout, out], LAYOUTS[layout][2])
    return tuple(json.loads((out / "log.json").read_text()))


def train_with_trainer(folder: Path, layout: str, out: Path) -> None:
    """What run_ner.py does with these sentences, one step."""
    batch, accumulation, _ = LAYOUTS[layout]
    tokenizer = data.load_tokenizer(str(folder / "encoder"))
    splits, labels = conftest.load(str(folder / "encoder"), size=128, train_file=str(folder / "train.conll"))
    rows = [splits["train"].rows[i] for i in range(8)]
    features = [{"input_ids": ids.tolist(), "labels": tags.tolist()} for ids, tags in rows]
    torch.manual_seed(42)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder / "encoder", num_labels=len(labels))
    arguments = transformers.TrainingArguments(
        str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
        logging_steps=1, max_grad_norm=1e9, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, transformers.DataCollatorForTokenClassification(tokenizer), train_dataset=features
    )
    trainer.train()
    if trainer.is_world_process_zero():
        log = trainer.state.log_history[0]
        out.mkdir(exist_ok=True)
        (out / "log.json").write_text(json.dumps([log["loss"], log["grad_norm"]]))


def main() -> None:
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} CPU cores")
    print("ranks x (accumulated x batch)    Trainer: loss  gradient   ours: loss  gradient")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for layout in LAYOUTS:
            (loss, gradient), (our_loss, our_gradient) = trainers(folder, layout), ours(folder, layout)
            print(f"{layout:30}  {loss:14.4f} {gradient:9.4f}  {our_loss:11.4f} {our_gradient:9.4f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_with_trainer(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        main()
