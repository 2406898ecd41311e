"""Texts a second: infer.Tagger beside transformers' token-classification pipeline, on one machine in one run.

python tests/benchmarks/tagging.py outputs            # 5,000 texts of 1 to 8 sentences made of samples/
python tests/benchmarks/tagging.py outputs --input_file texts.txt --repeat 3

They take turns; the medians count. The pipeline runs in fp32, its default, at batch size 1 and at the best of several.
Both answer with the strategy `first`; the texts on which their entities differ are counted.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import data  # noqa: E402
import infer  # noqa: E402


def make_texts(number: int) -> list[str]:
    """Sentences of samples/, most texts short, some long, punctuation set as in running text."""
    random, words, sentences = np.random.default_rng(0), [], []
    for split in ("train", "validation", "test"):
        for _, record in data.read_conll(str(ROOT / "samples" / f"{split}.conll")):
            words = " ".join(record["tokens"][:60])
            sentences.append(words.replace(" .", ".").replace(" ,", ","))
    lengths = np.minimum(8, random.geometric(0.5, number))
    return [" ".join(random.choice(sentences, n)) for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--input_file", help="a text a line")
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    data.quiet(progress=False)
    texts = Path(args.input_file).read_text("utf-8").splitlines() if args.input_file else make_texts(args.number)
    tokenizer = data.load_tokenizer(args.model)
    pipe = transformers.pipeline(
        "token-classification", args.model, aggregation_strategy="first", dtype=torch.float32, stride=64
    )
    taggers = {p: infer.Tagger(args.model, precision=p) for p in ("auto", "fp32")}

    def timed(function, number: int) -> tuple[float, list]:
        start = time.perf_counter()
        found = function()
        return number / (time.perf_counter() - start), found

    sizes = {size: timed(functools.partial(pipe, texts[:640], batch_size=size), 640)[0] for size in (4, 8, 16, 32, 64)}
    best = max(sizes, key=sizes.get)
    print("pipeline over 640 texts:", ", ".join(f"batch {size} {rate:,.0f}/s" for size, rate in sizes.items()))
    contestants = {
        "nanotagger, default": lambda: taggers["auto"](texts, "first"),
        "nanotagger, --precision fp32": lambda: taggers["fp32"](texts, "first"),
        "pipeline, batch size 1 (its default)": lambda: pipe(texts, batch_size=1),
        f"pipeline at its best, batch size {best}": lambda: pipe(texts, batch_size=best),
    }
    rates, entities = {name: [] for name in contestants}, {}
    for _ in range(args.repeat):
        for name, function in contestants.items():
            rate, found = timed(function, len(texts))
            rates[name].append(rate)
            entities[name] = [[(e["entity_group"], e["start"], e["end"]) for e in text] for text in found]
    subwords = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} cores"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"\n{len(texts):,} texts, {sum(subwords):,} subwords, {min(subwords)} to {max(subwords)} each; "
        f"{device}, {versions}"
    )
    ours = statistics.median(rates["nanotagger, default"])
    print("\n|  | texts/s, median | lowest to highest | nanotagger, default: times | other entities |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in rates.items():
        differ = sum(a != b for a, b in zip(entities[name], entities["nanotagger, --precision fp32"]))
        middle, spread = statistics.median(found), f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"| {name} | {middle:,.0f} | {spread} | {ours / middle:.2f} | in {differ} texts |")


if __name__ == "__main__":
    main()
