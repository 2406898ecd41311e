"""Scores on a corpus beside those of transformers.Trainer, with the same encoder, epochs and settings.

python tests/benchmarks/corpora.py DATA_FOLDER                      # train.conll, test.conll, perhaps validation.conll
python tests/benchmarks/corpora.py DATA_FOLDER --seeds 42 43 44 --markdown table.md

Without validation.conll, a tenth of train.conll is the validation split, drawn by the seed. Both contestants train
the same encoder on the same splits and on the same windows of data.py, keep the model of the epoch with the best
F1 on the validation split, and are scored on all words of test.conll. nanotagger is the command `python train.py`
with its defaults. Trainer has the same settings, and fp32, which is its default.

Each run has its own process and its own folder in --output_dir. A finished run is not repeated. `python metrics.py
outputs_NAME/Trainer-42 outputs_NAME/nanotagger-42` compares two runs in detail.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
import yaml
from versus import ROOT, f1_of, machine, make_features, predict, run_command  # versus also adds ROOT to sys.path

import data
import metrics
from util.comparison import compare
from util.distributed import quiet
from util.predictions import write_predictions
from util.pretrained import load_encoder
from util.run_dir import CONFIG_FILE, RESULTS_FILE, atomic_write_text

SETTINGS = {  # the defaults of train.py; warmup_steps: as a share of all steps
    "per_device_train_batch_size": 16,
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
}
MEAN_OF = ("test_f1", "test_precision", "test_recall", "eval_f1", "train_runtime")


def get_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_folder", type=lambda path: Path(path).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--model_name_or_path", help="folder or Hub id (the packaged MiniLM)")
    parser.add_argument("--output_dir", type=Path, help="folder of the runs (outputs_NAME, after the data folder)")
    parser.add_argument("--markdown", type=Path, help="file that the tables are written to")
    args = parser.parse_args()
    args.output_dir = (args.output_dir or Path(f"outputs_{args.data_folder.name}")).resolve()
    return args


def data_flags(args, seed: int) -> list[str]:
    folder = args.data_folder
    flags = {"--train_file": folder / "train.conll", "--test_file": folder / "test.conll", "--seed": seed}
    if (folder / "validation.conll").exists():
        flags["--validation_file"] = folder / "validation.conll"
    else:
        flags["--validation_split"] = 0.1
    if args.model_name_or_path:
        flags["--model_name_or_path"] = args.model_name_or_path
    return [str(part) for pair in flags.items() for part in pair]


# --------------------------------------------------------------------------------------------------
# The contestants: each leaves all_results.json and test_predictions.conll in its folder


def run_nanotagger(args, seed: int, folder: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *data_flags(args, seed)]
    run_command([*command, "--num_train_epochs", str(args.epochs), "--output_dir", str(folder)], ROOT)


class BestEpoch(transformers.TrainerCallback):
    """Keeps the weights of the epoch with the best F1 on the validation split. Evaluation is not timed."""

    def __init__(self, model, split: data.Split, tokenizer):
        self.model, self.split, self.tokenizer = model, split, tokenizer
        self.f1, self.weights, self.train_seconds = -1.0, {}, 0.0

    def on_epoch_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_epoch_end(self, *_, **__):
        self.train_seconds += time.perf_counter() - self.start
        f1 = f1_of(self.model, self.split, self.tokenizer)
        if f1 > self.f1:
            self.f1 = f1
            self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def train_with_trainer(args, seed: int, folder: Path) -> None:
    quiet(progress=False)
    flags = data.get_args(data_flags(args, seed))
    encoder_name, tokenizer = load_encoder(flags.model_name_or_path, flags.max_seq_length)
    splits = data.load_splits(flags, tokenizer)
    train_set, test_set = splits["train"], splits["test"]
    transformers.set_seed(seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        encoder_name,
        num_labels=len(train_set.label_list),
        id2label=dict(enumerate(train_set.label_list)),
        dtype=torch.float32,
    )
    model.config.tag_scheme = train_set.tag_scheme  # of the files, for util/comparison.py
    best = BestEpoch(model, splits["validation"], tokenizer)
    transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder),
            num_train_epochs=args.epochs,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **SETTINGS,
        ),
        data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
        train_dataset=make_features(train_set),
        callbacks=[best],
    ).train()
    model.load_state_dict(best.weights)
    model.save_pretrained(folder)
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(SETTINGS | {"strict": False}))  # strict: for util/comparison.py
    predictions = predict(model, test_set, tokenizer)
    write_predictions(str(folder), "test", test_set, predictions)
    scores = metrics.score(test_set.tags, predictions[0], test_set.lengths, test_set.label_list, test_set.scheme)
    results = {f"test_{name}": value for name, value in scores.items()}
    results |= {"eval_f1": best.f1, "train_runtime": best.train_seconds}
    atomic_write_text(str(folder / RESULTS_FILE), json.dumps(results, indent=2))


def run_trainer(args, seed: int, folder: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(train_with_trainer, args, seed, folder).result()


CONTESTANTS = {"nanotagger": run_nanotagger, "Trainer": run_trainer}


def results_of(args, name: str, seed: int) -> dict:
    folder = args.output_dir / f"{name}-{seed}"
    if not (folder / RESULTS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        CONTESTANTS[name](args, seed, folder)
    return json.loads((folder / RESULTS_FILE).read_text())


# --------------------------------------------------------------------------------------------------
# Tables


def score_table(results: dict[str, list[dict]], seeds: list[int]) -> str:
    """A row a contestant: F1 on the test split of each seed with its 95 % interval, then means over the seeds."""
    head = ["", *(f"test F1, seed {seed}" for seed in seeds), "mean F1", "standard deviation"]
    head += [f"mean {name}" for name in ("precision", "recall", "validation F1", "training time, s")]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, runs in results.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in MEAN_OF}
        deviation = statistics.stdev(run["test_f1"] for run in runs) if len(runs) > 1 else float("nan")
        cells = [name, *(with_interval(run["test_f1"], run["test_f1_ci95"]) for run in runs)]
        cells += [f"{mean['test_f1']:.4f}", f"{deviation:.4f}"]
        cells += [f"{mean[key]:.4f}" for key in ("test_precision", "test_recall", "eval_f1")]
        lines.append(f"| {' | '.join([*cells, format(mean['train_runtime'], '.0f')])} |")
    return "\n".join(lines)


def with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.4f} ± {(interval[1] - interval[0]) / 2:.3f}"


def difference_table(args) -> str:
    """Test F1 of nanotagger minus that of Trainer, on the same sentences (util/comparison.py)."""
    lines = ["| seed | nanotagger − Trainer, test F1 | 95 % interval | p |", "| --- | --- | --- | --- |"]
    for seed in args.seeds:
        folders = [f"{args.output_dir}/{name}-{seed}" for name in ("Trainer", "nanotagger")]
        row = compare(*folders).rows[-1]
        low, high = row.interval
        lines.append(f"| {seed} | {row.difference:+.4f} | {low:+.4f} to {high:+.4f} | {row.p_value:.3f} |")
    return "\n".join(lines)


def main() -> None:
    args = get_args()
    results: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    for seed in args.seeds:
        for name in CONTESTANTS:
            results[name].append(results_of(args, name, seed))
            print(f"seed {seed}, {name}: test F1 {results[name][-1]['test_f1']:.4f}", flush=True)
    title = (
        f"{args.data_folder.name}: {machine()}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{args.model_name_or_path or 'MiniLM'}, {args.epochs:g} epochs, batches of 16."
    )
    text = f"{title}\n\n{score_table(results, args.seeds)}\n\n{difference_table(args)}\n"
    print(f"\n{text}")
    if args.markdown:
        args.markdown.write_text(text)


if __name__ == "__main__":
    main()
