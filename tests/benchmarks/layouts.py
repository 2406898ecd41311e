"""Loss and gradient norm of one optimizer step on the same 8 sentences, in four parallel configurations.

python tests/benchmarks/layouts.py

Those of transformers.Trainer grow with accumulation and ranks (huggingface/transformers#47688), ours do not. The
encoder is small, with random weights and without dropout; fp32 on a CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import conftest  # noqa: E402, I001 - first: it sets caches of its own
import torch  # noqa: E402
import transformers  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

import data  # noqa: E402
from util.distributed import quiet  # noqa: E402
from util.pretrained import load_encoder  # noqa: E402


class Configuration(NamedTuple):
    batch_size: int  # per device
    accumulation: int
    ranks: int


CONFIGURATIONS = {
    "1 x 8": Configuration(8, 1, 1),
    "1 x (2 x 4)": Configuration(4, 2, 1),
    "1 x (4 x 2)": Configuration(2, 4, 1),
    "2 x 4": Configuration(4, 1, 2),
}


def prepare(folder: Path) -> None:
    """Writes 8 sentences, and an encoder without dropout."""
    sentences = conftest.read(conftest.ROOT / "samples" / "train.conll")[:8]
    conftest.write_conll(folder / "train.conll", sentences)
    tokenizer = conftest.word_piece()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **conftest.SMALL
    )
    transformers.BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")


def data_flags(folder: Path) -> list[str]:
    return ["--train_file", str(folder / "train.conll"), "--model_name_or_path", str(folder / "encoder")]


def run(command: list, ranks: int) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run([sys.executable, *launch, *map(str, command)], cwd=conftest.ROOT, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())


def run_ours(folder: Path, name: str) -> tuple[float, float]:
    configuration, out = CONFIGURATIONS[name], folder / f"ours {name}"
    flags = ["--per_device_train_batch_size", configuration.batch_size]
    flags += ["--gradient_accumulation_steps", configuration.accumulation]
    flags += ["--max_steps", 1, "--precision", "fp32", "--logging_steps", 1, "--output_dir", out]
    run(["train.py", *data_flags(folder), *flags], configuration.ranks)
    events = EventAccumulator(str(out / "runs")).Reload()
    return events.Scalars("train/loss")[0].value, events.Scalars("train/grad_norm")[0].value


def run_trainer(folder: Path, name: str) -> tuple[float, float]:
    out = folder / f"Trainer {name}"
    run([__file__, folder, name, out], CONFIGURATIONS[name].ranks)
    loss, grad_norm = json.loads((out / "log.json").read_text())
    return loss, grad_norm


def train_with_trainer(folder: Path, name: str, out: Path) -> None:
    """One step of what run_ner.py does with these sentences."""
    args = data.get_args(data_flags(folder))
    _, tokenizer = load_encoder(args.model_name_or_path, args.max_seq_length)
    splits = data.load_splits(args, tokenizer)
    train_set = splits["train"]
    features = []
    for row in range(8):
        window = train_set.windows[row]
        features.append({"input_ids": window["input_ids"].tolist(), "labels": window["labels"].tolist()})
    torch.manual_seed(42)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder / "encoder", num_labels=len(train_set.label_list)
    )
    configuration = CONFIGURATIONS[name]
    arguments = transformers.TrainingArguments(
        str(out),
        per_device_train_batch_size=configuration.batch_size,
        gradient_accumulation_steps=configuration.accumulation,
        max_steps=1,
        logging_steps=1,
        max_grad_norm=1e9,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, transformers.DataCollatorForTokenClassification(tokenizer), train_dataset=features
    )
    trainer.train()
    if trainer.is_world_process_zero():
        log = trainer.state.log_history[0]
        out.mkdir(exist_ok=True)
        (out / "log.json").write_text(json.dumps([log["loss"], log["grad_norm"]]))


def main() -> None:
    quiet(progress=False)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} CPU cores")
    print("ranks x (accumulation x batch)   Trainer: loss  gradient   ours: loss  gradient")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for name in CONFIGURATIONS:
            loss, grad_norm = run_trainer(folder, name)
            our_loss, our_grad_norm = run_ours(folder, name)
            print(f"{name:30}  {loss:14.4f} {grad_norm:9.4f}  {our_loss:11.4f} {our_grad_norm:9.4f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_with_trainer(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        main()
