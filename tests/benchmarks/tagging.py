"""Texts per second: infer.Tagger beside transformers' token-classification pipeline, on one machine in one run.

python tests/benchmarks/tagging.py outputs            # 5,000 texts of 1 to 8 sentences made of samples/
python tests/benchmarks/tagging.py outputs --input_file texts.txt --repeat 3
python tests/benchmarks/tagging.py outputs --grid --number 600       # batch sizes, precisions and numbers of threads
python tests/benchmarks/tagging.py outputs --grid --number 600 --onnx model.onnx        # and onnxruntime

They run in turns, and the medians count. The pipeline runs in fp32, its default, at batch size 1 and at the best of
several. Both use the strategy `first`. The texts on which their entities differ are counted. --onnx: a file that the
code of docs/tagging.md exported from this model.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import infer  # noqa: E402
from util.annotations import Columns  # noqa: E402
from util.distributed import quiet  # noqa: E402
from util.pretrained import load_tokenizer  # noqa: E402
from util.sources import SPLITS, read_file  # noqa: E402
from util.throughput import device_name  # noqa: E402

BATCH_SIZES = (4, 8, 16, 32, 64)  # of the pipeline
NUM_TRIAL_TEXTS = 640  # that choose one of them
GRID_BATCH_SIZES = (1, 8, 32, 128)


def make_texts(number: int) -> list[str]:
    """Sentences of samples/ joined to texts, most short, some long, with punctuation set as in running text."""
    random, sentences = np.random.default_rng(0), []
    for split in SPLITS:
        dataset, _ = read_file(str(ROOT / "samples" / f"{split}.conll"), Columns())
        for words in dataset["tokens"]:
            sentences.append(" ".join(words[:60]).replace(" .", ".").replace(" ,", ","))
    lengths = np.minimum(8, random.geometric(0.5, number))
    return [" ".join(random.choice(sentences, n)) for n in lengths]


def measure(function: Callable, texts: list[str]) -> tuple[float, list]:
    """Texts per second, and the entities of every text."""
    start = time.perf_counter()
    entities = function(texts)
    return len(texts) / (time.perf_counter() - start), entities


def onnx_tagger(model: str, path: str, num_threads: int) -> infer.Tagger:
    """A Tagger whose logits are onnxruntime's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options)

    def run(**batch: torch.Tensor) -> SimpleNamespace:
        (logits,) = session.run(["logits"], {name: values.numpy() for name, values in batch.items()})
        return SimpleNamespace(logits=torch.from_numpy(logits))

    tagger = infer.Tagger(model, precision="fp32")
    tagger.model = run
    return tagger


def compare_logits(model: str, path: str, texts: list[str]) -> None:
    """Prints the largest difference of the logits of onnxruntime and PyTorch, without those of padding."""
    tagger, other = infer.Tagger(model, precision="fp32"), onnx_tagger(model, path, num_threads=1)
    encoder, differences, num_subwords = tagger.model, [], 0

    def both(**batch: torch.Tensor):
        nonlocal num_subwords
        output, is_real = encoder(**batch), batch["attention_mask"] == 1
        differences.append((output.logits - other.model(**batch).logits)[is_real].abs().max().item())
        num_subwords += int(is_real.sum())
        return output

    tagger.model = both
    expected, found = tagger(texts, "first"), other(texts, "first")
    places = [[[(e["entity_group"], e["start"], e["end"]) for e in text] for text in of] for of in (expected, found)]
    num_different = sum(a != b for a, b in zip(*places))
    print(f"onnxruntime: logits of {num_subwords:,} subwords differ by at most {max(differences):.1e}, ", end="")
    print(f"entities of {num_different} of {len(texts):,} texts\n")


def measure_grid(model: str, onnx: str | None, numbers: list[int], texts: list[str], repeat: int) -> None:
    """Prints texts per second for every precision, number of threads and batch size."""
    taggers = {
        (precision, n): infer.Tagger(model, precision=precision) for precision in ("bf16", "fp32") for n in numbers
    }
    if onnx:
        taggers |= {("fp32, onnxruntime", n): onnx_tagger(model, onnx, n) for n in numbers}
    rates: dict[tuple, list[float]] = {(*key, size): [] for key in taggers for size in GRID_BATCH_SIZES}
    for _ in range(repeat):
        for precision, num_threads, size in rates:
            torch.set_num_threads(num_threads)
            tagger = taggers[precision, num_threads]
            tagger.batch_size = size
            rate, _ = measure(lambda texts, tagger=tagger: tagger(texts, "first"), texts)
            rates[precision, num_threads, size].append(rate)
    print(f"| precision | threads | {' | '.join(f'batch size {size}' for size in GRID_BATCH_SIZES)} |")
    print("| --- | --- |" + " --- |" * len(GRID_BATCH_SIZES))
    for precision, num_threads in taggers:
        values = [rates[precision, num_threads, size] for size in GRID_BATCH_SIZES]
        cells = [f"{statistics.median(v):,.0f} ({min(v):,.0f} to {max(v):,.0f})" for v in values]
        print(f"| {precision} | {num_threads} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--input_file", help="a text a line")
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--grid", action="store_true", help="no pipeline; batch sizes, precisions, numbers of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), help="of --grid")
    parser.add_argument("--onnx", help="the exported model, compared with the model and measured by --grid")
    args = parser.parse_args()
    quiet(progress=False)
    texts = Path(args.input_file).read_text("utf-8").splitlines() if args.input_file else make_texts(args.number)
    if args.onnx:
        compare_logits(args.model, args.onnx, texts)
    if args.grid:
        measure_grid(args.model, args.onnx, args.threads, texts, args.repeat)
        return
    tokenizer = load_tokenizer(args.model)
    pipe = transformers.pipeline(
        "token-classification", args.model, aggregation_strategy="first", dtype=torch.float32, stride=64
    )
    default, fp32 = infer.Tagger(args.model), infer.Tagger(args.model, precision="fp32")

    trial = {}
    for size in BATCH_SIZES:
        trial[size], _ = measure(lambda texts, size=size: pipe(texts, batch_size=size), texts[:NUM_TRIAL_TEXTS])
    best = max(trial, key=trial.get)
    shown = ", ".join(f"batch {size} {rate:,.0f}/s" for size, rate in trial.items())
    print(f"pipeline over {NUM_TRIAL_TEXTS} texts: {shown}")
    contestants = {
        "nanotagger, default": lambda texts: default(texts, "first"),
        "nanotagger, --precision fp32": lambda texts: fp32(texts, "first"),
        "pipeline, batch size 1 (its default)": lambda texts: pipe(texts, batch_size=1),
        f"pipeline at its best, batch size {best}": lambda texts: pipe(texts, batch_size=best),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    spans = {}  # name -> of every text (type, start, end) of its entities
    for _ in range(args.repeat):
        for name, function in contestants.items():
            rate, entities = measure(function, texts)
            rates[name].append(rate)
            spans[name] = [[(e["entity_group"], e["start"], e["end"]) for e in found] for found in entities]

    subwords = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"\n{len(texts):,} texts, {sum(subwords):,} subwords, {min(subwords)} to {max(subwords)} each; "
        f"{device_name(default.device)}, {versions}"
    )
    print("\n|  | texts/s, median | lowest to highest | nanotagger, default: times | other entities |")
    print("| --- | --- | --- | --- | --- |")
    ours = statistics.median(rates["nanotagger, default"])
    for name, values in rates.items():
        median, spread = statistics.median(values), f"{min(values):,.0f} to {max(values):,.0f}"
        num_different = sum(a != b for a, b in zip(spans[name], spans["nanotagger, --precision fp32"]))
        print(f"| {name} | {median:,.0f} | {spread} | {ours / median:.2f} | in {num_different} texts |")


if __name__ == "__main__":
    main()
