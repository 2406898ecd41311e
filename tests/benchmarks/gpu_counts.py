"""Counts what a training step asks of a GPU: kernel launches, host waits, padding, bytes. It measures no time.

python tests/benchmarks/gpu_counts.py --markdown docs/gpu_counts.md      # on the simulated GPU, no GPU needed

A kernel launch is an operation of PyTorch that computes or copies; a foreach or fused operation counts as one, although
a GPU splits it if it has hundreds of tensors. The replay of a CUDA graph counts as one.
"""

import argparse
import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import simulated_gpu  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import data  # noqa: E402
import model as modeling  # noqa: E402
from util import fast_paths  # noqa: E402
from util.cuda_graphs import GraphedModel  # noqa: E402
from util.device import to_device  # noqa: E402
from util.half_weights import HalfWeights  # noqa: E402
from util.packed import Packing, packed_collate  # noqa: E402
from util.pretrained import load_tokenizer, packaged_encoder  # noqa: E402

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
BATCH_SIZES = (16, 32, 256)
VARIANTS = ("padded, as transformers does it", "padded", "packed", "packed, 16-bit weights", "packed, CUDA graphs")


def load_model(shape: str) -> transformers.PreTrainedModel:
    """MiniLM, or random weights in BERT-base's shape."""
    if shape == "MiniLM":
        return modeling.load_model(str(packaged_encoder()), LABELS)
    config = transformers.BertConfig(vocab_size=30522, num_labels=len(LABELS))
    torch.manual_seed(0)
    return transformers.AutoModelForTokenClassification.from_config(config, dtype=torch.float32)


def launches_of(variant: str, shape: str, recorder) -> dict[str, int]:
    """Launches of each part of a step in bf16, and host waits. Neither depends on the size of the batch."""
    model = load_model(shape).train()
    packing = fast_paths.choose_packing("auto", model, 128, False, torch.device("cuda"), print)
    model.to("cuda")
    if variant == VARIANTS[0]:
        model.set_attn_implementation("sdpa")
    call = model
    if variant in VARIANTS[3:]:
        call = HalfWeights(model, torch.bfloat16)
    if variant == VARIANTS[4]:
        call = GraphedModel(model, call)
    rows = fast_paths._make_rows(model, np.array([20, 9, 3]))
    batch = fast_paths._pad(model, rows) if "padded" in variant else fast_paths._pack(model, rows, packing)
    optimizer = torch.optim.AdamW(modeling.parameter_groups(model, 0.01), lr=1e-5, fused=True)
    autocast = torch.autocast("cuda", dtype=torch.bfloat16)
    labels = torch.zeros(batch["input_ids"].shape, dtype=torch.long)
    counts = {}
    for _ in range(2):  # the second step counts: the optimizer's state is made, graphs are captured
        inputs = to_device(batch | {"labels": labels}, model.device)
        targets = inputs.pop("labels")
        recorder.reset()
        with autocast:
            logits = call(**inputs).logits
        loss = modeling.token_loss(logits, targets, reduction="sum") / 32
        counts["forward"] = recorder.launches
        loss.backward()
        counts["backward"] = recorder.launches - sum(counts[name] for name in ("forward",))
        done = recorder.launches
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        counts["clip"] = recorder.launches - done
        done = recorder.launches
        optimizer.step()
        counts["optimizer"] = recorder.launches - done
        counts["total"] = recorder.launches
        counts["synchronizations"] = len(recorder.host_waits)
        optimizer.zero_grad(set_to_none=True)
    return counts


def padding_shares(args) -> list[tuple[int, float, float]]:
    """(batch size, padded share of padded batches, of packed batches) of an epoch in random order."""
    tokenizer = load_tokenizer(packaged_encoder())
    flags = data.get_args(["--train_file", args.train_file])
    tokenizer.model_max_length = 512
    windows = data.load_splits(flags, tokenizer)["train"].windows
    packing, pad_values = Packing(0, length_steps=12), {"input_ids": 0, "labels": -100}
    shares = []
    for size in BATCH_SIZES:
        padded = packed = real = 0
        for rows in data.EpochBatches(windows.lengths, size, seed=42, epoch=0):
            lengths = windows.lengths[rows]
            real += int(lengths.sum())
            padded += int(lengths.max()) * len(rows)
            features = [{name: np.zeros(length, int) for name in pad_values} for length in lengths]
            packed += packed_collate(features, pad_values, packing)["input_ids"].numel()
        shares.append((size, 1 - real / padded, 1 - real / packed))
    return shares


def trained_bytes(shape: str) -> int:
    """Bytes of the fp32 gradients, which each rank reduces once per step."""
    return 4 * sum(p.numel() for p in load_model(shape).parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", default=str(ROOT / "samples" / "train.conll"))
    parser.add_argument("--markdown", type=Path, help="file that the tables are written to")
    args = parser.parse_args()
    shares = padding_shares(args)
    columns = ("forward", "backward", "clip", "optimizer", "total", "synchronizations")
    lines = [f"| encoder | step | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    with simulated_gpu.simulated_gpu() as recorder:
        for shape in ("MiniLM", "BERT-base"):
            for variant in VARIANTS:
                with contextlib.redirect_stdout(sys.stderr):
                    counts = launches_of(variant, shape, recorder)
                lines.append(f"| {shape} | {variant} | {' | '.join(str(counts[name]) for name in columns)} |")
                print(lines[-1], flush=True)
        gradient_bytes = {shape: trained_bytes(shape) for shape in ("MiniLM", "BERT-base")}
    lines += ["", "| batch size | padding of padded batches | of packed batches |", "| --- | --- | --- |"]
    lines += [f"| {size} | {padded:.1%} | {packed:.1%} |" for size, padded, packed in shares]
    lines += ["", "Bytes all-reduced per rank and step (fp32 gradients, if all word embeddings occur in training): "]
    lines[-1] += ", ".join(f"{shape} {count / 1e6:,.0f} MB" for shape, count in gradient_bytes.items()) + "."
    text = "\n".join(lines) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text)


if __name__ == "__main__":
    main()
