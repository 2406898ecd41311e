"""Fine-tune a pretrained encoder for token classification (NER, part of speech, chunking) in plain PyTorch.

python train.py                                                 # the embedded corpus and MiniLM, on a CPU
python train.py --train_file train.conll --validation_file dev.conll --model_name_or_path bert-base-cased
torchrun --nproc-per-node=8 train.py --dataset_name conll2003 --model_name_or_path bert-base-cased
python train.py run.yaml --learning_rate 3e-5                   # a file of flags; those behind it win
"""

import dataclasses
import functools
import json
import math
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

import data
import metrics
import model as network
from data import flag

# ----------------------------------------------------------------------------------------------------------------------
# Every knob but those of the data, which data.py has


@dataclass
class Arguments(data.DataArguments):
    gradient_checkpointing: bool = flag("model", False, "less memory, more time")
    num_train_epochs: float = flag("optimisation", 3.0, "", "above 0")
    max_steps: int = flag("optimisation", -1, "optimizer steps, instead of epochs (-1: off)")
    learning_rate: float = flag("optimisation", 5e-5, "the peak; linear to 0", "0 or more")
    weight_decay: float = flag("optimisation", 0.01, "none on biases and norms", "0 or more")
    warmup_ratio: float = flag("optimisation", 0.1, "share of the steps (0: off)", "between 0 and 1")
    per_device_eval_batch_size: int = flag("optimisation", 64, "sentences", "above 0")
    gradient_accumulation_steps: int = flag("optimisation", 1, "batches a step and device", "above 0")
    max_grad_norm: float = flag("optimisation", 1.0, "clips the gradient (0: off)", "0 or more")
    fsdp: bool = flag("speed", False, "shards the model over the ranks, for encoders too big for one device")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag("speed", "auto", "auto: bf16 where the hardware has it")
    group_by_length: bool = flag("speed", False, "batches of like length: faster, some F1 lost")
    benchmark: int = flag("speed", 0, "times this many steps of the real loop, writes nothing (0: off)", "0 or more")
    output_dir: str = flag("output", "outputs", "")
    overwrite_output_dir: bool = flag("output", False, "delete the run that is there")
    logging_steps: int = flag("output", 10, "", "above 0")
    eval_steps: int = flag("output", 0, "0: at the end of each epoch", "0 or more")
    save_steps: int = flag("output", 0, "checkpoints; 0: at the end of each epoch", "0 or more")
    save_total_limit: int = flag("output", 2, "checkpoints kept", "above 0")
    resume_from_checkpoint: str = flag("output", "auto", "auto: the newest valid one; never; or a folder")
    strict: bool = flag("output", False, "score by seqeval's strict mode, in the tags' own scheme")
    metric_for_best_model: Literal["f1", "accuracy", "precision", "recall", "loss"] | None = flag(
        "output", None, "f1 (accuracy for plain tags such as NOUN)"
    )
    early_stopping_patience: int = flag("output", 0, "evaluations without a better score (0: off)", "0 or more")
    push_to_hub: bool = flag("output", False, "uploads each new best model while training goes on")
    hub_model_id: str | None = flag("output", None, "the repository (your own, named as --output_dir)")
    hub_private_repo: bool = flag("output", False, "if it does not exist yet")


# Flags of run_ner.py, run_ner_no_trainer.py and TrainingArguments that are not ours: those that ask for what is done
# anyway (with which values; none: any), those with another name, and what there is instead of the others.
ON, OFF = {"true", "1", "yes"}, {"false", "0", "no"}
DONE_ANYWAY = dict.fromkeys(["do_train", "do_eval", "do_predict", "load_best_model_at_end"], ON)
DONE_ANYWAY |= dict.fromkeys(["eval_strategy", "evaluation_strategy", "save_strategy"], {"epoch", "steps"})
DONE_ANYWAY |= {
    "lr_scheduler_type": {"linear"},
    "optim": {"adamw_torch", "adamw_torch_fused"},
    "pad_to_max_length": OFF,
}
DONE_ANYWAY |= {"report_to": {"tensorboard", "all"}, "trust_remote_code": OFF, "logging_strategy": {"steps"}}
DONE_ANYWAY |= dict.fromkeys(
    """return_entity_level_metrics overwrite_cache preprocessing_num_workers ignore_mismatched_sizes greater_is_better
    dataloader_num_workers dataloader_pin_memory with_tracking disable_tqdm remove_unused_columns fp16_full_eval
    bf16_full_eval local_rank ddp_find_unused_parameters log_level average_tokens_across_devices""".split()
)
RENAMED = {"fp16": "precision=fp16", "bf16": "precision=bf16", "max_length": "max_seq_length"}
INSTEAD = dict.fromkeys(["warmup_steps", "num_warmup_steps"], "--warmup_ratio, a share of the steps")
INSTEAD |= dict.fromkeys(["config_name", "tokenizer_name"], "config and tokenizer come with --model_name_or_path")
INSTEAD |= dict.fromkeys(["token", "use_auth_token", "hub_token"], "HF_TOKEN in the environment, or hf auth login")
INSTEAD |= dict.fromkeys(
    ["max_train_samples", "max_eval_samples", "max_predict_samples"], "a shorter file, or --max_steps"
)
INSTEAD |= dict.fromkeys(["adam_beta1", "adam_beta2", "adam_epsilon"], "the line in train.py that makes AdamW")
INSTEAD |= dict.fromkeys(["no_cuda", "use_cpu"], "CUDA_VISIBLE_DEVICES= python train.py ...")
INSTEAD |= {
    "cache_dir": "HF_HOME in the environment",
    "checkpointing_steps": "--save_steps",
    "label_smoothing_factor": "the line with cross_entropy in train.py",
    "logging_dir": "TensorBoard's files are in runs/ of --output_dir",
    "lr_scheduler_type": "the function learning_rate in train.py",
    "model_revision": "download that revision and name its folder",
    "optim": "the line in train.py that makes AdamW",
    "pad_to_max_length": "batches are padded to their longest row, or not at all",
    "report_to": "TensorBoard's files; another logger: the lines with writer in train.py",
    "run_name": "the name of --output_dir",
    "trust_remote_code": "models whose code is in transformers",
}
# What TensorBoard's table of runs shows
HPARAMS = ("learning_rate", "warmup_ratio", "weight_decay", "num_train_epochs", "max_steps", "seed", "precision")
FINAL = ("eval_f1", "eval_loss", "test_f1", "train_loss", "train_tokens_per_second")
WARM_UP = 10  # steps that no figure counts
TIMEOUT = timedelta(minutes=30)  # of a collective: rank 0 may save or score meanwhile


# ----------------------------------------------------------------------------------------------------------------------
# Pure pieces of the loop


def carry_over(argv: list[str]) -> list[str]:
    """The flags of a run_ner.py command -> ours. ValueError that says what there is instead of one that is not."""
    known, ours, i = {knob.name for knob in dataclasses.fields(Arguments)}, [], 0
    while i < len(argv):
        name, _, value = argv[i].removeprefix("--").partition("=")
        name, end = name.replace("-", "_"), i + 1
        while "=" not in argv[i] and end < len(argv) and not argv[end].startswith("--"):
            value, end = argv[end], end + 1
        if name in known or not argv[i].startswith("--") or name not in DONE_ANYWAY | RENAMED | INSTEAD:
            ours += argv[i:end]
        elif name in RENAMED:
            new, _, fixed = RENAMED[name].partition("=")
            ours += [] if fixed and value.lower() in OFF else [f"--{new}={fixed or value}"]
        elif name not in DONE_ANYWAY or DONE_ANYWAY[name] and (value or "true").lower() not in DONE_ANYWAY[name]:
            instead = INSTEAD.get(name) or f"always {' or '.join(sorted(DONE_ANYWAY[name]))}"
            raise ValueError(f"--{name} {value}: not a flag here; instead: {instead}")
        i = end
    return ours


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear from 0 to the peak over the warm-up, then linear to 0; the schedule of run_ner.py."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Randomness is a function of where we are, not of what ran before: a resumed run draws the same masks."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def sum_over_ranks(on_device: torch.Tensor, *values: float) -> list[float]:
    """This rank's figures, the first one a tensor on the device that the collective runs on -> the sums over ranks."""
    sums = torch.stack([on_device.double(), *torch.tensor(values, device=on_device.device, dtype=torch.float64)])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums.tolist()


def catch_signals() -> torch.Tensor:
    """[1] the signal that asks this process to stop, SIGTERM or SIGINT, 0 before; the second one stops it at once."""
    asked = torch.zeros(1, dtype=torch.int32)

    def ask(number, frame):
        asked.fill_(number)
        release_signals()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return asked


def release_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def collate_without_padding(raw_model, collate, longest: int, parts: int):
    """How training collates on a CPU: sentences end to end if this encoder can read them so, else as before."""
    first_position = network.from_rank_0(network.read_end_to_end, raw_model, longest)
    if first_position is None:
        return collate
    raw_model.set_attn_implementation("sentences")
    layout = functools.partial(network.layout, heads=raw_model.config.num_attention_heads)
    settings = collate.keywords | {"first_position": first_position, "layout": layout, "parts": parts}
    return functools.partial(data.collate_end_to_end, **settings)


def evaluate(collate, autocast, batch_size, score, rank, world_size, raw_model, split: data.Split) -> tuple:
    """Scores of a whole split, the same on all ranks; and on rank 0 the predicted label ids [W] with their
    probabilities [W]."""
    start = time.perf_counter()
    batches = data.eval_batches(split.rows.lengths, batch_size)
    found = metrics.predict(raw_model, split.rows, batches, collate, autocast, rank, world_size)
    raw_model.train()
    scores = [None]
    if rank == 0:
        predicted, probabilities, losses = found
        scores = [score(split.tags, predicted, split.lengths)]
        scores[0] |= {"loss": float(losses.mean(dtype=np.float64)), "runtime": time.perf_counter() - start}
        found = predicted, probabilities
    if world_size > 1:
        dist.broadcast_object_list(scores, src=0)
    return scores[0], found


def wait_for_push(push, folder: str, repo_id: str, log) -> None:
    url = push and push.result()
    log(f"pushed: {url}" if url else f"not pushed; the model is in {folder}: hf upload {repo_id} {folder}")


def write_report(folder: str, split: data.Split, labels: list[str], scores: dict, found: tuple, known) -> None:
    """report.html beside the model that made these errors. known(): train's entities."""
    title = f"{os.path.basename(os.path.abspath(folder))} on {split.where}"
    tags, probabilities = found
    page = metrics.report(title, scores, split, labels, tags, probabilities, known())
    network.write_whole(os.path.join(folder, "report.html"), page)


# ----------------------------------------------------------------------------------------------------------------------


def stop_at_broken_step(step: int, train: data.Split, rows: np.ndarray) -> None:
    """All ranks come here together: they summed up the same gradient. No weight has changed since."""
    places = ", ".join(train.row_place(row) for row in rows[:16])
    raise ValueError(f"step {step + 1}: the loss or its gradient is not finite. Its sentences: {places}")


@network.lost_ranks_exit()
def main() -> None:
    # Device and ranks: torchrun says who we are; without it we are alone.
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    log = tqdm.write if rank == 0 else lambda *_: None
    terminal = sys.stderr.isatty()
    data.quiet(progress=rank == 0 and terminal)

    # Everything that can be wrong with the input is found in this block, before anything is trained or overwritten.
    with data.errors_exit(2):
        args = data.Parser(Arguments, __doc__, carry_over).parse(sys.argv[1:])
        precision = network.pick_precision(args.precision, device)
        start = time.perf_counter()
        encoder, tokenizer, splits, labels = data.load(args)
        log(data.speed(splits, time.perf_counter() - start))
        train, validation, test = (splits.get(split) for split in data.SPLITS)
        if args.strict:
            metrics.check_strict(labels, train.scheme)
        if args.early_stopping_patience and not validation:
            raise ValueError("--early_stopping_patience needs a validation split")
        torch.manual_seed(args.seed)  # for the new head
        if args.fsdp and ("RANK" not in os.environ or precision == "fp16"):
            raise ValueError("--fsdp needs torchrun, and fp32 or bf16")
        values = rank == 0 or not args.fsdp
        raw_model = network.load_model(encoder, labels, args.gradient_checkpointing, values)
        network.check_labels(raw_model, max(int(split.used[-1]) for split in splits.values()))

        # Only rank 0 looks at the output folder: the others may be on another machine.
        if world_size > 1 or args.fsdp:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            network.join_process_group("nccl" if device.type == "cuda" else "gloo", rank, world_size, TIMEOUT)
            hosts = dist.new_group(backend="gloo", timeout=TIMEOUT)  # for what must not wait for the GPU
        settings = dataclasses.asdict(args)
        global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
        identity = {"labels": labels, "sentences a step": global_batch_size}
        identity |= {f"{name} data": split.fingerprint for name, split in splits.items()}
        finished = checkpoint = None
        if not args.benchmark:
            finished = network.from_rank_0(network.open_run, args.output_dir, settings, identity)
            which = args.resume_from_checkpoint
            which = "never" if finished or args.overwrite_output_dir and which == "auto" else which
            checkpoint = network.from_rank_0(network.find_checkpoint, args.output_dir, which, identity, log)
        run_name = os.path.basename(os.path.abspath(args.output_dir))
        repo_id = args.push_to_hub and network.from_rank_0(
            network.open_repo, args.hub_model_id or run_name, args.hub_private_repo
        )
    if finished:
        log(f"{args.output_dir} holds this run, finished; its results:\n{json.dumps(finished, indent=2)}")
        if repo_id and rank == 0:
            wait_for_push(network.push(args.output_dir, repo_id, "Finished", log), args.output_dir, repo_id, log)
        return

    for note in data.checks(splits, labels, tokenizer.model_max_length) if rank == 0 else []:
        log(f"note: {note}")

    # Batch arithmetic
    steps_per_epoch = math.ceil(len(train.rows) / global_batch_size)
    total_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    total_steps = WARM_UP + args.benchmark if args.benchmark else total_steps
    warmup_steps = math.ceil(args.warmup_ratio * total_steps)
    eval_every, save_every = args.eval_steps or steps_per_epoch, args.save_steps or steps_per_epoch
    metric = args.metric_for_best_model or ("f1" if train.scheme else "accuracy")
    log(
        f"{train.num_sentences:,} sentences, {train.num_words:,} words, {len(labels)} labels"
        f"{f' in {train.scheme}' if train.scheme else ''} | "
        f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulated x {world_size} ranks = "
        f"{global_batch_size} sentences a step | {total_steps:,} steps | {device.type} {precision}"
    )

    # Model, optimizer, DDP
    raw_model.train()
    if not args.fsdp:
        raw_model.to(device)
    warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # its successor is not there on torch 2.11
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # of which we change nothing
    padding = tokenizer.pad_token_id or 0
    collate = functools.partial(data.collate, pad_token_id=padding)
    read = collate
    if device.type == "cpu":
        parts = 16 if args.group_by_length else 64  # batches of like length are of all sizes
        read = collate_without_padding(raw_model, collate, tokenizer.model_max_length, parts)
        network.swap_dropout(raw_model)
        network.keep_freed_memory()
    network.freeze(raw_model, network.from_rank_0(network.unused, raw_model))
    network.train_only(raw_model, np.append(train.vocabulary(), padding))
    if args.fsdp:
        network.shard(raw_model, precision, device)
    optimizer = torch.optim.AdamW(network.parameter_groups(raw_model, args.weight_decay), lr=0.0, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    autocast = network.autocast("fp32" if args.fsdp else precision, device)  # FSDP casts by itself
    score = functools.partial(metrics.score, labels=labels, scheme=train.scheme, strict=args.strict)
    evaluated = functools.partial(evaluate, collate, autocast, args.per_device_eval_batch_size, score, rank, world_size)

    known = functools.cache(functools.partial(train.entities, labels))  # for the report

    # The loop's state, set or restored. All else is a function of it: the learning rate, the order, the dropout.
    state: dict[str, Any] = dict.fromkeys(
        ("step", "skipped", "best_step", "loss", "seconds", "sentences", "tokens"), 0
    ) | {"best": {}}
    if checkpoint:
        state = network.load_checkpoint(checkpoint, raw_model, optimizer, rank)
        scaler.load_state_dict(state["scaler"])
        log(f"resumed from {checkpoint}")
    step, skipped, best_step, best = (state[name] for name in ("step", "skipped", "best_step", "best"))
    seconds, sentences, tokens = (state[name] for name in ("seconds", "sentences", "tokens"))  # of training alone
    total_loss = torch.zeros((), device=device, dtype=torch.float64) + (
        state["loss"] if rank == 0 else 0
    )  # this rank's
    logged_loss, logged_step = state["loss"], step
    broken_at = torch.full((), -1, device=device)  # the first step whose gradient is not finite
    model = raw_model
    if world_size > 1 and not args.fsdp:
        model = DistributedDataParallel(raw_model, broadcast_buffers=False)

    # From here on the output folder is ours
    if not args.benchmark:
        network.from_rank_0(network.begin_run, args.output_dir, settings, bool(checkpoint))
    if rank == 0 and not args.benchmark:
        writer = SummaryWriter(os.path.join(args.output_dir, "runs"), purge_step=step + 1)
    else:
        nothing = lambda *_, **__: None  # noqa: E731
        writer = SimpleNamespace(add_scalar=nothing, add_image=nothing, add_text=nothing, close=nothing)
    bar = tqdm(total=total_steps, initial=step, desc="training", disable=rank > 0 or not terminal)
    pushing = None  # the last upload
    patience = args.early_stopping_patience * eval_every
    asked_to_stop, stopping = catch_signals(), False
    timed: list[metrics.Timed] = []  # the steps since the last log line

    def write_card(scored: dict[str, dict], seconds: float) -> None:
        device_name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores"
        )
        facts = {
            "sentences, words": f"{train.num_sentences:,}, {train.num_words:,}",
            "labels": ", ".join(labels),
            "hardware": f"{world_size} x {device_name}, {precision}",
            "training time": f"{seconds:,.0f} s",
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        card = network.model_card(repo_id or run_name, settings, scored, facts)
        network.write_whole(os.path.join(args.output_dir, "README.md"), card)

    def global_batches(epoch: int, first: int):
        """Yields the rows of each step of an epoch, from its step `first` on."""
        lengths, by_length = train.rows.lengths, args.group_by_length
        return data.global_batches(lengths, global_batch_size, args.seed, epoch, by_length, first)

    def over() -> bool:
        return stopping or step >= total_steps or bool(patience) and step - best_step >= patience

    while not over():
        now = divmod(step, steps_per_epoch)
        mine = data.micro_batches(global_batches(*now), args.gradient_accumulation_steps, rank, world_size)
        loader = iter(DataLoader(train.rows, batch_sampler=mine, collate_fn=read, pin_memory=device.type == "cuda"))
        for global_batch in global_batches(*now):
            # ---------------------------------------------------------------------------------------- one step, timed
            start, waited, positions = time.perf_counter(), 0.0, 0
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step - skipped, total_steps, warmup_steps, args.learning_rate)
            torch.manual_seed(dropout_seed(args.seed, step, rank))
            num_labels = max(1, int(train.rows.num_labels[global_batch].sum()))  # of all ranks: no collective needed
            for micro_step in range(args.gradient_accumulation_steps):
                asked = time.perf_counter()
                batch = next(loader)
                waited += time.perf_counter() - asked
                positions += batch["input_ids"].numel()
                if device.type != "cpu":
                    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                gold = batch.pop("labels")
                network.synchronize_gradients(model, micro_step == args.gradient_accumulation_steps - 1)
                with autocast:
                    logits = model(**batch).logits
                # Sum over this batch / labels of the whole global batch: the layout of ranks changes nothing.
                loss = F.cross_entropy(logits.float().flatten(0, 1), gold.flatten(), reduction="sum")
                loss = loss / num_labels
                scaler.scale(loss * world_size).backward()  # DDP takes the mean over ranks; we want the sum
                total_loss += loss.detach()
            scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), args.max_grad_norm or math.inf)
            grad_norm = network.whole(grad_norm)
            if scaler.is_enabled():
                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                skipped += scaler.get_scale() < scale  # the schedule waits for a step that was not taken
                broken_at.fill_(step if scale < 1 else -1)
            else:
                broken_at = torch.where((broken_at < 0) & ~grad_norm.isfinite(), step, broken_at)
                # The fused kernel then takes no step, without a sync.
                optimizer.found_inf = (broken_at >= 0).float()  # type: ignore[attr-defined]
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            sentences += len(global_batch)
            lengths = train.rows.lengths[global_batch]
            tokens += int(lengths.sum())
            # --------------------------------------------------------------------------------------------------------
            evaluating = not args.benchmark and (step % eval_every == 0 or step == total_steps)
            logging = not args.benchmark and (step % args.logging_steps == 0 or step == total_steps)
            signals = asked_to_stop.clone()
            if world_size > 1:
                dist.all_reduce(signals, dist.ReduceOp.MAX, group=hosts)  # hosts agree, no GPU waits
            stopping = bool(signals)
            saving = not args.benchmark and (step % save_every == 0 or stopping)
            waiting = logging or evaluating or saving or step % steps_per_epoch == 0 or args.benchmark
            if waiting and device.type == "cuda":
                torch.cuda.synchronize()  # the clock counts finished work
            timed.append(metrics.Timed(time.perf_counter() - start, waited, lengths, positions))
            seconds += timed[-1].seconds
            bar.update()
            if (waiting or device.type == "cpu") and broken_at >= 0:
                with data.errors_exit(1):
                    broken = next(global_batches(*divmod(int(broken_at), steps_per_epoch)))
                    stop_at_broken_step(int(broken_at), train, broken)

            if logging:
                loss_so_far, positions = sum_over_ranks(total_loss, sum(step.positions for step in timed))
                mean_loss = (loss_so_far - logged_loss) / (step - logged_step)
                lr = optimizer.param_groups[0]["lr"]
                figures = metrics.throughput(timed, positions)
                scalars = {"loss": mean_loss, "learning_rate": lr, "grad_norm": grad_norm.item(), **figures}
                scalars["memory_gib"] = network.peak_memory(device)
                rate = figures["tokens_per_second"]
                for name, value in scalars.items():
                    writer.add_scalar(f"train/{name}", value, step)
                line = f"loss {mean_loss:.4f} | lr {lr:.2e} | {rate:,.0f} tokens/s"
                bar.set_postfix_str(line)
                if not terminal:
                    log(f"step {step}/{total_steps} | {line}")
                logged_loss, logged_step, timed = loss_so_far, step, []

            if evaluating and validation:
                scores, found = evaluated(raw_model, validation)
                for name, value in metrics.scalars(scores).items():
                    writer.add_scalar(f"eval/{name}", value, step)
                if found:  # on rank 0
                    errors = metrics.Errors.of(validation, labels, found[0])
                    image = metrics.confusion_image(*errors.confusion())
                    writer.add_image("eval/confusion", image, step, dataformats="HWC")
                    writer.add_text("eval/sentences", metrics.sample_text(validation, labels, found[0]), step)
                shown = " | ".join(f"{name} {scores[name]:.4f}" for name in ("loss", "f1", "accuracy"))
                log(f"step {step}/{total_steps} | eval {shown}")
                sign = -1 if metric == "loss" else 1
                if not best or sign * scores[metric] > sign * best[metric]:
                    best_step, best = step, scores
                    weights = network.gathered(raw_model.state_dict())
                    with data.errors_exit(1):
                        network.from_rank_0(network.save_model, raw_model, weights, tokenizer, args.output_dir)
                        network.from_rank_0(write_report, args.output_dir, validation, labels, best, found, known)
                        network.from_rank_0(write_card, {"validation": best}, seconds)
                    if repo_id and rank == 0:
                        pushing = network.push(args.output_dir, repo_id, f"Step {step}: {shown}", log, pushing)

            if saving:
                state = {"step": step, "skipped": skipped, "best_step": best_step, "best": best, "seconds": seconds}
                state |= {"sentences": sentences, "tokens": tokens, "loss": sum_over_ranks(total_loss)[0]}
                state |= {"scaler": scaler.state_dict(), "identity": identity}
                weights = network.gathered(raw_model.state_dict())
                moments = network.gathered(network.moments_of(raw_model, optimizer))
                checkpoint = args.output_dir, weights, moments, state, args.save_total_limit
                with data.errors_exit(1):
                    saved = network.from_rank_0(network.save_checkpoint, *checkpoint)
            if over():
                break
    bar.close()
    release_signals()
    if args.benchmark:
        timed = timed[WARM_UP:]
        _, positions = sum_over_ranks(total_loss, sum(step.positions for step in timed))
        figures = metrics.throughput(timed, positions)
        figures |= network.utilisation(raw_model, precision, [(s.seconds, s.lengths) for s in timed], world_size)
        log("\n".join(f"{name:22} {value:14,.4g}" for name, value in figures.items()))
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        )
        log(json.dumps(figures | {"world_size": world_size, "precision": precision, "device": name}))
        return
    train_loss = sum_over_ranks(total_loss)[0] / step
    if stopping:
        writer.close()
        log(f"stopped by {signal.Signals(int(signals)).name}; the same command goes on from {saved}")
        raise SystemExit(128 + int(signals))
    if step < total_steps:
        log(f"stopped: no better {metric} since step {best_step}")

    # Results, of the best model: its evaluation is the one of the weights that were saved
    if not validation:
        weights = network.gathered(raw_model.state_dict())
        with data.errors_exit(1):
            network.from_rank_0(network.save_model, raw_model, weights, tokenizer, args.output_dir)
    scored = {"eval": best} if validation else {}
    if test:
        best_model = network.load_best(args.output_dir, raw_model, rank, precision)
        scored["test"], _ = evaluated(best_model, test)
        for name, value in metrics.scalars(scored["test"]).items():
            writer.add_scalar(f"test/{name}", value, step)
    results = {
        "epoch": step / steps_per_epoch,
        "train_loss": train_loss,
        "train_runtime": seconds,
        "train_samples_per_second": sentences / seconds,
        "train_tokens_per_second": tokens / seconds,
        **{f"{split}_{name}": value for split, scores in scored.items() for name, value in scores.items()},
        "world_size": world_size,
        "precision": precision,
        "identity": identity,
    }
    measured = {f"final/{name}": results[name] for name in FINAL if name in results}
    for name, value in measured.items():
        writer.add_scalar(name, value, step)
    if rank == 0:  # into the same file, where SummaryWriter.add_hparams would begin another one
        shown = {flag: settings[flag] for flag in HPARAMS} | {"sentences_a_step": global_batch_size, "model": encoder}
        for summary in hparams(shown, measured):
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
    with data.errors_exit(1):
        network.from_rank_0(
            write_card, {"validation" if split == "eval" else split: s for split, s in scored.items()}, seconds
        )
        network.from_rank_0(network.finish_run, args.output_dir, results)
    for split, scores in scored.items():
        log(f"\n{split}: {scores['words']:,} words, loss {scores['loss']:.4f}, accuracy {scores['accuracy']:.4f}")
        log(metrics.table(scores))
    log(f"\n{json.dumps({key: value for key, value in results.items() if isinstance(value, (int, float))})}")
    log(f"the best model, of step {best_step or step}, is in {args.output_dir}")
    writer.close()
    if repo_id and rank == 0:
        pushing = network.push(args.output_dir, repo_id, f"Finished after {step} steps", log, pushing)
        wait_for_push(pushing, args.output_dir, repo_id, log)


if __name__ == "__main__":
    record(main)()
