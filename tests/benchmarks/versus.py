"""Training throughput, and with --f1 the scores of whole runs: ours beside transformers.Trainer and an accelerate loop.

python tests/benchmarks/versus.py --train_file train.conll --validation_file dev.conll
python tests/benchmarks/versus.py ... --model base --batch_size 32 --markdown table.md
python tests/benchmarks/versus.py ... --f1 42 43 44

All read the same subwords, which data.py made, in batches of as many sentences; each has a process of its own and its
own random order. They take turns, --repeat times, and the medians count. A step's tokens are its real ones; the first
steps, as many as train.py leaves out, are not timed. The others use nothing of ours but the reading of the data.
"""

import argparse
import functools
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
import model as network  # noqa: E402
import train  # noqa: E402

# As transformers' token-classification guide has it, and the flags that make it fastest.
GUIDE = {"learning_rate": 2e-5, "weight_decay": 0.01}
BEST = {
    "bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused",
    "logging_nan_inf_filter": False, "average_tokens_across_devices": False,
}  # fmt: skip
CONTESTANTS = {
    "ours": "nanotagger, default",
    "ours-by-length": "nanotagger, --group_by_length",
    "ours-fp32": "nanotagger, --precision fp32",
    "plain": "nanotagger's loop in fp32, padded, without the mends",
    "guide": "Trainer as the guide has it (fp32, random)",
    "guide-bf16": "Trainer, bf16, random",
    "best": "Trainer at its best (bf16, group_by_length, fused AdamW)",
    "accelerate": "accelerate loop, bf16, random",
}
FLAGS = {
    "ours": [], "ours-by-length": ["--group_by_length"], "ours-fp32": ["--precision", "fp32"],
    "plain": ["--precision", "fp32"],
}  # fmt: skip
PLAIN = """import model, train
model.read_end_to_end = model.swap_dropout = model.keep_freed_memory = model.train_only = lambda *_: None
train.main()"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", type=os.path.abspath)
    parser.add_argument("--validation_file", type=os.path.abspath)
    parser.add_argument("--model", help="folder or Hub id; base: BERT-base's size with random weights")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="timed ones")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="of --f1")
    parser.add_argument("--f1", type=int, nargs="*", default=[], metavar="SEED", help="whole runs, one a seed")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, help="some of the contestants")
    parser.add_argument("--markdown", type=os.path.abspath, help="file that the table is written to")
    parser.add_argument("--svg", type=os.path.abspath, help="file that a plot of the throughput is written to")
    parser.add_argument("--run", nargs=3, metavar=("CONTESTANT", "SEED", "OUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def data_flags(args) -> list[str]:
    pairs = {"train_file": args.train_file, "validation_file": args.validation_file, "model_name_or_path": args.model}
    return [part for name, value in pairs.items() if value for part in (f"--{name}", value)]


def base_sized(folder: Path) -> str:
    """An encoder of BERT-base's shape with random weights, and MiniLM's tokenizer, whose vocabulary is BERT's."""
    tokenizer = data.load_tokenizer(data.packaged_encoder())
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ----------------------------------------------------------------------------------------------------------------------
# The others: train, and return the seconds and real tokens of each step after the warm-up


class Clock:
    """Notes when steps end, and what was collated for them."""

    def __init__(self, tokenizer):
        self.collator = transformers.DataCollatorForTokenClassification(tokenizer)
        self.ends, self.lengths = [], []

    def collate(self, features: list[dict]) -> dict:
        batch = self.collator([{name: feature[name] for name in ("input_ids", "labels")} for feature in features])
        self.lengths.append(batch["attention_mask"].sum(1).numpy())
        return batch

    def figures(self, model, precision: str) -> dict:
        seconds = np.diff(self.ends)[train.WARM_UP - 1 :]
        lengths = self.lengths[train.WARM_UP :][: len(seconds)]
        rate = sum(part.sum() for part in lengths) / seconds.sum()
        mfu = network.utilisation(model, precision, list(zip(seconds, lengths)), 1)["mfu"]
        return {"tokens_per_second": rate, "step_ms_p50": 1e3 * float(np.median(seconds)), "mfu": mfu}


def features(split: data.Split) -> list[dict]:
    rows = [split.rows[i] for i in range(len(split.rows))]
    return [{"input_ids": ids.tolist(), "labels": tags.tolist(), "length": len(ids)} for ids, tags in rows]


def with_trainer(name: str, args, splits, labels, model, tokenizer, seed: int) -> dict:
    clock, whole = Clock(tokenizer), bool(args.f1)
    settings = GUIDE | (BEST if name == "best" else {"bf16": name == "guide-bf16"})
    if whole:  # the reference's optimisation, ours too: only what is named differs
        settings |= {"learning_rate": 5e-5, "num_train_epochs": args.epochs, "eval_strategy": "epoch"}
    else:
        settings |= {"max_steps": train.WARM_UP + args.steps}
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder, per_device_train_batch_size=args.batch_size, report_to="none", disable_tqdm=True,
                save_strategy="no", seed=seed, use_cpu=not torch.cuda.is_available(), **settings,
            ),
            data_collator=clock.collate,
            train_dataset=features(splits["train"]),
            eval_dataset=features(splits["validation"]) if whole else None,
        )  # fmt: skip

        class Ends(transformers.TrainerCallback):
            best = -1.0

            def on_step_end(self, *_, **__):
                clock.ends.append(time.perf_counter())

            def on_evaluate(self, *_, **__):  # the best of the epochs, as ours keeps it
                self.best = max(self.best, f1_of(model, splits["validation"], labels, tokenizer))

        ends = Ends()
        trainer.add_callback(ends)
        trainer.train()
    return {"f1": ends.best} if whole else clock.figures(model, "bf16" if settings["bf16"] else "fp32")


def with_accelerate(args, splits, labels, model, tokenizer, seed: int) -> dict:
    """The loop of the Hugging Face course, in bf16."""
    clock, whole = Clock(tokenizer), bool(args.f1)
    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    transformers.set_seed(seed)
    loader = torch.utils.data.DataLoader(
        features(splits["train"]), batch_size=args.batch_size, shuffle=True, collate_fn=clock.collate
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5 if whole else 2e-5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = int(args.epochs * len(loader)) if whole else train.WARM_UP + args.steps
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    best = -1.0
    model.train()
    while len(clock.ends) < steps:
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            clock.ends.append(time.perf_counter())
            if len(clock.ends) == steps:
                break
        if whole:
            best = max(best, f1_of(accelerator.unwrap_model(model), splits["validation"], labels, tokenizer))
    return {"f1": best} if whole else clock.figures(accelerator.unwrap_model(model), "bf16")


def f1_of(model, split: data.Split, labels: list[str], tokenizer) -> float:
    """In fp32, scored as ours are."""
    collate = functools.partial(data.collate, pad_token_id=tokenizer.pad_token_id)
    score = functools.partial(metrics.score, labels=labels, scheme=split.scheme, strict=False)
    scores, _ = train.evaluate(collate, network.autocast("fp32", model.device), 64, score, 0, 1, model, split)
    return scores["f1"]


def run_other(args, name: str, seed: int, out: str) -> None:
    parsed = data.DataArguments(
        train_file=args.train_file, validation_file=args.validation_file, model_name_or_path=args.model
    )
    encoder, tokenizer, splits, labels = data.load(parsed)
    transformers.set_seed(seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        encoder, num_labels=len(labels), dtype=torch.float32
    )
    if name == "accelerate":
        figures = with_accelerate(args, splits, labels, model, tokenizer, seed)
    else:
        figures = with_trainer(name, args, splits, labels, model, tokenizer, seed)
    Path(out).write_text(json.dumps(figures))


# ----------------------------------------------------------------------------------------------------------------------


def ours(args, name: str, seed: int, folder: Path) -> dict:
    script = ["-c", PLAIN] if name == "plain" else [str(ROOT / "train.py")]
    command = [sys.executable, *script, *data_flags(args), *FLAGS[name], "--seed", str(seed)]
    command += ["--per_device_train_batch_size", str(args.batch_size), "--output_dir", str(folder / "ours")]
    if args.f1:
        command += ["--num_train_epochs", str(args.epochs), "--warmup_ratio", "0", "--overwrite_output_dir"]
        checked(command)
        return {"f1": json.loads((folder / "ours" / "all_results.json").read_text())["eval_f1"]}
    return json.loads(checked([*command, "--benchmark", str(args.steps)]).strip().splitlines()[-1])


def checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def once(args, name: str, seed: int, folder: Path) -> dict:
    if name in FLAGS:
        return ours(args, name, seed, folder)
    checked(
        [sys.executable, __file__, *sys.argv[1:], "--model", args.model, "--run", name, str(seed), str(folder / "out")]
    )
    return json.loads((folder / "out").read_text())


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{os.cpu_count()} cores of {name}"


def table(results: dict[str, list[dict]], args) -> str:
    """A line a contestant: median, spread, and how many times as fast ours is."""
    if args.f1:
        lines = [f"| | F1, seeds {' '.join(map(str, args.f1))} | mean | standard error |", "| --- | --- | --- | --- |"]
        for name, figures in results.items():
            f1 = [figure["f1"] for figure in figures]
            error = statistics.stdev(f1) / len(f1) ** 0.5 if len(f1) > 1 else float("nan")
            each = " ".join(f"{score:.4f}" for score in f1)
            lines.append(f"| {CONTESTANTS[name]} | {each} | {statistics.mean(f1):.4f} | {error:.4f} |")
        return "\n".join(lines)
    rates = {name: [figure["tokens_per_second"] for figure in figures] for name, figures in results.items()}
    mine = [name for name in FLAGS if name in rates and name != "plain"]
    head = [
        "",
        "tokens/s, median",
        "lowest to highest",
        "step, ms",
        "of matmul peak",
        *(f"{CONTESTANTS[name]}: times" for name in mine),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, values in rates.items():
        median = statistics.median(values)
        step = statistics.median(figure["step_ms_p50"] for figure in results[name])
        times = [f"{statistics.median(rates[own]) / median:.2f}" for own in mine]
        cells = [
            CONTESTANTS[name],
            f"{median:,.0f}",
            f"{min(values):,.0f} to {max(values):,.0f}",
            f"{step:.0f}",
            f"{statistics.median(figure['mfu'] for figure in results[name]):.1%}",
            *times,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], title: str) -> str:
    """An SVG of a bar a contestant, its median tokens per second, and the spread as a line; for light and dark."""
    rates = {name: [figure["tokens_per_second"] for figure in figures] for name, figures in results.items()}
    per_token = 420 / max(map(max, rates.values()))
    style = "text{font:14px sans-serif;fill:#888} .ours{fill:#2a9d8f} .others{fill:#8d99ae} line{stroke:#e76f51}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{60 + 36 * len(rates)}"><style>{style}</style>'
    ]
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
    args = arguments()
    data.quiet(progress=False)
    if args.run:
        return run_other(args, args.run[0], int(args.run[1]), args.run[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shown = args.model or "MiniLM"
        args.model = base_sized(folder / "base") if args.model == "base" else args.model or data.packaged_encoder()
        results = {name: [] for name in args.only or CONTESTANTS}
        for seed in args.f1 or range(42, 42 + args.repeat):
            for name in results:
                results[name].append(once(args, name, seed, folder))
                print(f"seed {seed}, {name}: {json.dumps(results[name][-1])}", flush=True)
    what = "F1 on the validation split, the best epoch's" if args.f1 else f"{args.steps} steps, {args.repeat} times"
    title = (
        f"{machine()}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {shown}, batches of {args.batch_size}, {what}."
    )
    text = f"{title}\n\n{table(results, args)}\n"
    print(f"\n{text}")
    if args.markdown:
        Path(args.markdown).write_text(text)
    if args.svg:
        Path(args.svg).write_text(plot(results, f"{machine()}; {shown}, batches of {args.batch_size}"))


if __name__ == "__main__":
    main()
