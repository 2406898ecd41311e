"""Training throughput, or with --f1 scores, beside those of transformers.Trainer and of an accelerate loop.

python tests/benchmarks/versus.py --train_file train.conll --validation_file dev.conll
python tests/benchmarks/versus.py ... --model base --batch_size 32 --markdown table.md
python tests/benchmarks/versus.py ... --f1 42 43 44

All contestants read the same subwords, made by data.py, in batches of the same number of sentences. Each has
its own process and its own random order. They run in turns, --repeat times, and the median counts. Only real
tokens are counted, and the first steps are not timed, as in train.py --benchmark. The others use nothing of
nanotagger but its data.
"""

import argparse
import html
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from accelerate import Accelerator  # noqa: E402

import data  # noqa: E402
import metrics  # noqa: E402
import model as modeling  # noqa: E402
import train  # noqa: E402
from util.device import Timestamp, synchronize  # noqa: E402
from util.distributed import quiet  # noqa: E402
from util.pretrained import load_encoder, load_tokenizer, packaged_encoder  # noqa: E402
from util.throughput import StepStats, throughput, utilization  # noqa: E402

WARMUP_STEPS = train.BENCHMARK_WARMUP_STEPS
# The settings of transformers' token-classification guide, and the flags that make Trainer fastest.
GUIDE = {"learning_rate": 2e-5, "weight_decay": 0.01}
BEST = {
    "bf16": True,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "logging_nan_inf_filter": False,
    "average_tokens_across_devices": False,
}
CONTESTANTS = {
    "ours": "nanotagger, default",
    "ours-by-length": "nanotagger, --group_by_length",
    "ours-fp32": "nanotagger, --precision fp32",
    "plain": "nanotagger's loop in fp32, padded, without optimizations",
    "guide": "Trainer as the guide has it (fp32, random)",
    "guide-bf16": "Trainer, bf16, random",
    "best": "Trainer at its best (bf16, group_by_length, fused AdamW)",
    "accelerate": "accelerate loop, bf16, random",
}
FLAGS = {
    "ours": [],
    "ours-by-length": ["--group_by_length"],
    "ours-fp32": ["--precision", "fp32"],
    "plain": ["--precision", "fp32", "--packing", "off"],
}
PLAIN = """import train
for name in ("use_fast_dropout", "keep_freed_memory", "train_used_embeddings"):
    assert hasattr(train, name), name
    setattr(train, name, lambda *_: None)
train.main()"""


def get_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", type=os.path.abspath)
    parser.add_argument("--validation_file", type=os.path.abspath)
    parser.add_argument("--model", help="folder or Hub id; base: BERT-base's size with random weights")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="timed steps")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="of --f1")
    parser.add_argument("--f1", type=int, nargs="*", default=[], metavar="SEED", help="whole runs, one a seed")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, help="some of the contestants")
    parser.add_argument("--markdown", type=os.path.abspath, help="file that the table is written to")
    parser.add_argument("--svg", type=os.path.abspath, help="file that a plot of the throughput is written to")
    parser.add_argument("--run", nargs=3, metavar=("CONTESTANT", "SEED", "OUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def data_flags(args) -> list[str]:
    values = {
        "--train_file": args.train_file,
        "--validation_file": args.validation_file,
        "--model_name_or_path": args.model,
    }
    return [argument for flag, value in values.items() if value for argument in (flag, value)]


def base_sized(folder: Path) -> str:
    """An encoder of BERT-base's shape with random weights. MiniLM's tokenizer has BERT's vocabulary."""
    tokenizer = load_tokenizer(packaged_encoder())
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --------------------------------------------------------------------------------------------------
# The others: each trains, and returns its throughput after the warmup steps, or its F1


class Clock:
    """Records when steps end, and the lengths of the sentences that were collated for them.

    As train.py --benchmark: the host waits for a GPU before the first timed step and after the last one only.
    """

    def __init__(self, tokenizer, device: torch.device):
        self.device = device
        self.collator = transformers.DataCollatorForTokenClassification(tokenizer)
        self.step_ends: list[Timestamp] = []
        self.batches: list[np.ndarray] = []  # lengths [B] of every batch
        self.padded_tokens: list[int] = []

    def collate(self, features: list[dict]) -> dict:
        columns = ("input_ids", "labels")
        batch = self.collator([{name: feature[name] for name in columns} for feature in features])
        self.batches.append(batch["attention_mask"].sum(1).numpy())
        self.padded_tokens.append(batch["attention_mask"].numel())
        return batch

    def end_step(self) -> None:
        if len(self.step_ends) == WARMUP_STEPS - 1:
            synchronize(self.device)
        self.step_ends.append(Timestamp(self.device))

    def figures(self, model, precision: str) -> dict:
        synchronize(self.device)
        timed = self.step_ends[WARMUP_STEPS - 1 :]
        seconds = [end.seconds_since(start) for start, end in zip(timed, timed[1:])]
        collated = list(zip(self.batches, self.padded_tokens))[WARMUP_STEPS:]
        steps = [StepStats(s, 0.0, lengths, padded) for s, (lengths, padded) in zip(seconds, collated)]
        figures = throughput(steps, sum(step.padded_tokens for step in steps))
        mfu = utilization(model, precision, steps, world_size=1)["mfu"]
        return {name: figures[name] for name in ("tokens_per_second", "step_ms_p50")} | {"mfu": mfu}


def make_features(split: data.Split) -> list[dict]:
    features = []
    for row in range(len(split.windows)):
        window = split.windows[row]
        input_ids, labels = window["input_ids"].tolist(), window["labels"].tolist()
        features.append({"input_ids": input_ids, "labels": labels, "length": len(input_ids)})
    return features


def train_with_trainer(name: str, args, splits, model, tokenizer, seed: int) -> dict:
    clock, whole_run = Clock(tokenizer, model.device), bool(args.f1)
    settings = GUIDE | (BEST if name == "best" else {"bf16": name == "guide-bf16"})
    if whole_run:  # the optimization of run_ner.py, which is ours too
        settings |= {"learning_rate": 5e-5, "num_train_epochs": args.epochs, "eval_strategy": "epoch"}
    else:
        settings |= {"max_steps": WARMUP_STEPS + args.steps}

    class Callback(transformers.TrainerCallback):
        best_f1 = -1.0

        def on_step_end(self, *_, **__):
            clock.end_step()

        def on_evaluate(self, *_, **__):  # of the best epoch, as train.py keeps it
            self.best_f1 = max(self.best_f1, f1_of(model, splits["validation"], tokenizer))

    callback = Callback()
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=args.batch_size,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                seed=seed,
                use_cpu=not torch.cuda.is_available(),
                **settings,
            ),
            data_collator=clock.collate,
            train_dataset=make_features(splits["train"]),
            eval_dataset=make_features(splits["validation"]) if whole_run else None,
            callbacks=[callback],
        )
        trainer.train()
    if whole_run:
        return {"f1": callback.best_f1}
    return clock.figures(model, "bf16" if settings["bf16"] else "fp32")


def train_with_accelerate(args, splits, model, tokenizer, seed: int) -> dict:
    """The loop of the Hugging Face course, in bf16."""
    clock, whole_run = Clock(tokenizer, model.device), bool(args.f1)
    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    transformers.set_seed(seed)
    loader = torch.utils.data.DataLoader(
        make_features(splits["train"]), batch_size=args.batch_size, shuffle=True, collate_fn=clock.collate
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5 if whole_run else 2e-5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    total_steps = int(args.epochs * len(loader)) if whole_run else WARMUP_STEPS + args.steps
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=total_steps)
    best_f1 = -1.0
    model.train()
    while len(clock.step_ends) < total_steps:
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            clock.end_step()
            if len(clock.step_ends) == total_steps:
                break
        if whole_run:
            best_f1 = max(best_f1, f1_of(accelerator.unwrap_model(model), splits["validation"], tokenizer))
    return {"f1": best_f1} if whole_run else clock.figures(accelerator.unwrap_model(model), "bf16")


def predict(model, split: data.Split, tokenizer, precision: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """Predicted ids and probabilities [W] of a split, as train.py computes them."""
    pad_values = {"input_ids": tokenizer.pad_token_id, "labels": data.IGNORED}
    predicted, probabilities, _ = metrics.predict(
        model,
        split.windows,
        data.eval_batches(split.windows.lengths, 64),
        collate=lambda features: data.collate(features, pad_values),
        autocast=modeling.make_autocast(precision, model.device),
        token_loss=modeling.token_loss,
    )
    model.train()
    return predicted, probabilities


def f1_of(model, split: data.Split, tokenizer) -> float:
    """In fp32, scored as train.py does."""
    predicted, _ = predict(model, split, tokenizer)
    return metrics.score(split.tags, predicted, split.lengths, split.label_list, split.scheme)["f1"]


def run_other(args, name: str, seed: int, out: str) -> None:
    flags = data.get_args(data_flags(args))
    encoder_name, tokenizer = load_encoder(flags.model_name_or_path, flags.max_seq_length)
    splits = data.load_splits(flags, tokenizer)
    transformers.set_seed(seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        encoder_name, num_labels=len(splits["train"].label_list), dtype=torch.float32
    )
    if name == "accelerate":
        figures = train_with_accelerate(args, splits, model, tokenizer, seed)
    else:
        figures = train_with_trainer(name, args, splits, model, tokenizer, seed)
    Path(out).write_text(json.dumps(figures))


# --------------------------------------------------------------------------------------------------
# All contestants in turns


def run_ours(args, name: str, seed: int, folder: Path) -> dict:
    script = ["-c", PLAIN] if name == "plain" else [str(ROOT / "train.py")]
    command = [sys.executable, *script, *data_flags(args), *FLAGS[name], "--seed", str(seed)]
    command += ["--per_device_train_batch_size", str(args.batch_size), "--output_dir", str(folder / "ours")]
    if args.f1:
        command += ["--num_train_epochs", str(args.epochs), "--warmup_ratio", "0", "--overwrite_output_dir"]
        run_command(command, ROOT)
        return {"f1": json.loads((folder / "ours" / "all_results.json").read_text())["eval_f1"]}
    output = run_command([*command, "--benchmark", str(args.steps)], ROOT)
    return json.loads(output.strip().splitlines()[-1])


def run_command(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def run_contestant(args, name: str, seed: int, folder: Path) -> dict:
    if name in FLAGS:
        return run_ours(args, name, seed, folder)
    out = folder / "out"
    command = [sys.executable, __file__, *sys.argv[1:], "--model", args.model]
    run_command([*command, "--run", name, str(seed), str(out)])
    return json.loads(out.read_text())


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    return f"{os.cpu_count()} cores of {name}"


def f1_table(results: dict[str, list[dict]], seeds: list[int]) -> str:
    head = f"| | F1, seeds {' '.join(map(str, seeds))} | mean | standard error |"
    lines = [head, "| --- | --- | --- | --- |"]
    for name, figures in results.items():
        f1 = [figure["f1"] for figure in figures]
        error = statistics.stdev(f1) / len(f1) ** 0.5 if len(f1) > 1 else float("nan")
        scores = " ".join(f"{score:.4f}" for score in f1)
        lines.append(f"| {CONTESTANTS[name]} | {scores} | {statistics.mean(f1):.4f} | {error:.4f} |")
    return "\n".join(lines)


def throughput_table(results: dict[str, list[dict]]) -> str:
    """A row a contestant: median, spread, and how many times as fast ours is."""
    rates = {name: [figure["tokens_per_second"] for figure in figures] for name, figures in results.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    compared = [name for name in FLAGS if name in rates and name != "plain"]
    head = ["", "tokens/s, median", "lowest to highest", "step, ms", "of matmul peak"]
    head += [f"{CONTESTANTS[name]}: times" for name in compared]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, values in rates.items():
        step_ms = statistics.median(figure["step_ms_p50"] for figure in results[name])
        mfu = statistics.median(figure["mfu"] for figure in results[name])
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        cells = [CONTESTANTS[name], f"{medians[name]:,.0f}", spread, f"{step_ms:.0f}", f"{mfu:.1%}"]
        cells += [f"{medians[ours] / medians[name]:.2f}" for ours in compared]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], title: str) -> str:
    """An SVG with a bar a contestant: its median tokens per second, and a line for the spread."""
    rates = {name: [figure["tokens_per_second"] for figure in figures] for name, figures in results.items()}
    per_token = 420 / max(map(max, rates.values()))
    style = "text{font:14px sans-serif;fill:#888} .ours{fill:#2a9d8f} .others{fill:#8d99ae} line{stroke:#e76f51}"
    size = f'width="960" height="{60 + 36 * len(rates)}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>']
    lines.append(f'<text x="0" y="20">{html.escape(title)}: tokens per second</text>')
    for i, (name, values) in enumerate(rates.items()):
        y, median = 40 + 36 * i, statistics.median(values)
        low, high = (400 + per_token * value for value in (min(values), max(values)))
        lines.append(f'<text x="392" y="{y + 17}" text-anchor="end">{html.escape(CONTESTANTS[name])}</text>')
        kind = "ours" if name in FLAGS else "others"
        lines.append(f'<rect class="{kind}" x="400" y="{y}" width="{per_token * median:.1f}" height="24"/>')
        lines.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 12}" y2="{y + 12}"/>')
        lines.append(f'<text x="{high + 8:.1f}" y="{y + 17}">{median:,.0f}</text>')
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    args = get_args()
    quiet(progress=False)
    if args.run:
        name, seed, out = args.run
        run_other(args, name, int(seed), out)
        return
    model_name = args.model or "MiniLM"
    results: dict[str, list[dict]] = {name: [] for name in args.only or CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        if args.model == "base":
            args.model = base_sized(Path(folder) / "base")
        args.model = args.model or packaged_encoder()
        for seed in args.f1 or range(42, 42 + args.repeat):
            for name in results:
                results[name].append(run_contestant(args, name, seed, Path(folder)))
                print(f"seed {seed}, {name}: {json.dumps(results[name][-1])}", flush=True)
    measured = f"{args.steps} steps, {args.repeat} times"
    if args.f1:
        measured = "F1 on the validation split, of the best epoch"
    title = (
        f"{machine()}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {model_name}, batches of {args.batch_size}, {measured}."
    )
    table = f1_table(results, args.f1) if args.f1 else throughput_table(results)
    print(f"\n{title}\n\n{table}\n")
    if args.markdown:
        Path(args.markdown).write_text(f"{title}\n\n{table}\n")
    if args.svg:
        Path(args.svg).write_text(plot(results, f"{machine()}; {model_name}, batches of {args.batch_size}"))


if __name__ == "__main__":
    main()
