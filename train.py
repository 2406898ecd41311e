"""Fine-tune a pretrained encoder for token classification (NER, part of speech, chunking) in plain PyTorch.

python train.py                                                     # samples/ and MiniLM, on a CPU, without network
python train.py --train_file train.conll --validation_file dev.conll --model_name_or_path bert-base-cased
torchrun --nproc-per-node=8 train.py --dataset_name conll2003 --model_name_or_path bert-base-cased
python train.py run.yaml --learning_rate 3e-5                       # flags from a file; flags after it override it
"""

import argparse
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import numpy as np
import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
import metrics
import model as modeling
from util import arguments, data_report, distributed, hub, report, run_dir, throughput
from util.arguments import add_switch
from util.checkpoint import find_run, forget_missing_model, load_checkpoint, save_checkpoint
from util.code_digest import project_code_digest, warn_of_other_code
from util.device import pick_device
from util.distributed import StopSignal, broadcast, exit_on_error, get_ranks, join_process_group, on_rank0, quiet
from util.encoder_check import check_windows
from util.fast_dropout import keep_freed_memory, use_fast_dropout
from util.fast_paths import choose_packing, verify_packing, with_fewer_launches
from util.header import data_lines, run_lines, time_left
from util.nonfinite import NonFiniteGuard
from util.packed import packed_collate
from util.partial_embedding import train_used_embeddings
from util.plan import make_plan
from util.predictions import write_predictions
from util.pretrained import load_encoder
from util.run_ner_flags import translate
from util.sharding import full_tensor
from util.split import fingerprint_of
from util.step_meter import StepMeter
from util.tensorboard_log import log_hparams, log_predictions, open_writer
from util.text_table import replace_unprintable, with_interval
from util.unreached import disable_layerdrop, freeze_unreached_parameters
from util.vocabulary import describe

BENCHMARK_WARMUP_STEPS = 10  # excluded from the figures of --benchmark
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # other ranks wait while rank 0 saves a checkpoint or computes scores
CODE_DIGEST = project_code_digest()  # computed at import: the files may be edited during training

# ----------------------------------------------------------------------------------------------------------------------
# Flags, besides those of the data (data.py)


def make_train_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser(__doc__ or "")
    groups = data.add_data_flags(parser)
    groups |= {name: parser.add_argument_group(name) for name in ("speed", "output")}
    add_switch(groups["model"], "--gradient_checkpointing", "less memory, more time")

    add = groups["optimization"].add_argument
    add("--num_train_epochs", type=arguments.positive_float, default=3.0, help="may be fractional")
    add("--max_steps", type=int, default=-1, help="optimizer steps, instead of epochs; -1: off")
    add("--learning_rate", type=arguments.non_negative_float, default=5e-5, help="peak, with linear decay to 0")
    add("--weight_decay", type=arguments.non_negative_float, default=0.01, help="not applied to biases and norms")
    add("--warmup_ratio", type=arguments.fraction, default=0.1, help="fraction of the steps with linear warmup")
    add("--per_device_eval_batch_size", type=arguments.positive_int, default=64, help="sentences; at most 32K tokens")
    add("--gradient_accumulation_steps", type=arguments.positive_int, default=1, help="batches per step on each device")
    add("--max_grad_norm", type=arguments.non_negative_float, default=1.0, help="gradient clipping; 0: off")

    add = groups["speed"].add_argument
    add_switch(groups["speed"], "--fsdp", "shard the model over the ranks, for encoders too large for one device")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 if supported")
    add("--packing", choices=("auto", "on", "off"), default="auto", help="batches without padding; auto: if supported")
    add_switch(groups["speed"], "--cuda_graphs", "launch the kernels of a pass at once, for small batches on a GPU")
    add_switch(groups["speed"], "--group_by_length", "batches of similar length: faster, but often lower F1")
    add("--benchmark", type=arguments.non_negative_int, default=0, help="steps to time, without output; 0: off")

    add = groups["output"].add_argument
    add("--output_dir", default="outputs", help="folder of the run")
    add_switch(groups["output"], "--overwrite_output_dir", "delete the run in --output_dir")
    add("--logging_steps", type=arguments.positive_int, default=10, help="steps between log lines")
    add("--eval_steps", type=arguments.non_negative_int, default=0, help="steps between evaluations; 0: each epoch")
    add("--save_steps", type=arguments.non_negative_int, default=0, help="steps between checkpoints; 0: each epoch")
    add("--save_total_limit", type=arguments.positive_int, default=2, help="checkpoints to keep")
    add("--resume_from_checkpoint", default="auto", help="auto: the newest valid one; never; or a path")
    add_switch(groups["output"], "--strict", "score with seqeval's strict mode, in the scheme of the tags")
    metric_names = ("f1", "accuracy", "precision", "recall", "loss")
    add("--metric_for_best_model", choices=metric_names, help="default: f1, or accuracy for tags such as NOUN")
    add("--early_stopping_patience", type=arguments.non_negative_int, default=0, help="in evaluations; 0: off")
    add_switch(groups["output"], "--push_to_hub", "upload each new best model during training")
    add("--hub_model_id", help="repository id; default: the name of --output_dir")
    add_switch(groups["output"], "--hub_private_repo", "create the repository as private")
    return parser


def get_args(argv: list[str]) -> argparse.Namespace:
    """Raises ValueError for an invalid flag. Flags of run_ner.py are translated."""
    parser = make_train_parser()
    known = set(vars(parser.parse_args([])))
    return parser.parse_args(translate(arguments.expand_flag_file(argv), known))


def check_args(args: argparse.Namespace, precision: str, splits: dict[str, data.Split]) -> None:
    """Raises ValueError for flags that do not fit the data or each other."""
    if args.strict:
        metrics.check_strict(splits["train"].label_list, splits["train"].scheme)
    if args.early_stopping_patience and "validation" not in splits:
        raise ValueError("--early_stopping_patience needs a validation split")
    if args.fsdp and ("RANK" not in os.environ or precision == "fp16"):
        raise ValueError("--fsdp needs torchrun, and fp32 or bf16")
    is_plain = not (args.fsdp or args.gradient_checkpointing or args.packing == "off" or precision == "fp16")
    if args.cuda_graphs and not (is_plain and args.gradient_accumulation_steps == 1 and torch.cuda.is_available()):
        raise ValueError("--cuda_graphs needs a GPU, bf16 or fp32, no --fsdp, checkpointing, accumulation or padding")


# ----------------------------------------------------------------------------------------------------------------------
# Pieces of the loop


@dataclass
class TrainState:
    """What a checkpoint holds besides weights and optimizer state. Order, rate and dropout follow from `step`."""

    step: int = 0
    skipped_steps: int = 0  # fp16 overflows; they do not advance the schedule
    best_step: int = 0
    best_scores: dict = field(default_factory=dict)
    best_model: str = ""  # SHA-256 of the weights in --output_dir that have these scores
    loss_sum: float = 0.0  # over all steps and ranks
    train_seconds: float = 0.0  # without evaluation and checkpoints
    num_sentences: int = 0
    num_tokens: int = 0  # padding excluded

    def count_steps(self, steps: list[throughput.StepStats]) -> None:
        for stats in steps:
            self.train_seconds += stats.seconds
            self.num_sentences += len(stats.lengths)
            self.num_tokens += int(stats.lengths.sum())


def get_lr(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warmup from 0 to the peak, then linear decay to 0: the schedule of run_ner.py."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step on one rank. It depends on no earlier step: a resumed run draws the same dropout masks."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def shared_seed(seed: int, step: int) -> int:
    """A seed that is equal on all ranks, for changes such as noise on gradients, which are already summed."""
    return int(np.random.SeedSequence([seed, step], spawn_key=(1,)).generate_state(1)[0])


def is_better(scores: dict, best_scores: dict, metric: str) -> bool:
    """Of equal scores, the lower loss is better: on a small corpus, F1 is 0 in the first epochs."""
    sign = -1 if metric == "loss" else 1
    rank = [(sign * found[metric], -found["loss"]) for found in (scores, best_scores) if found]
    return not best_scores or rank[0] > rank[1]


def log_scalars(writer, prefix: str, scalars: dict[str, float], step: int) -> None:
    """All scalars are logged here. Add another logger here. On ranks other than 0 the writer does nothing."""
    for name, value in scalars.items():
        writer.add_scalar(f"{prefix}/{name}", value, step)


def make_loader(train_set: data.Split, batches, first_step: int, args: argparse.Namespace, ranks, collate):
    """An iterator over this rank's micro-batches of an epoch, starting at `first_step`."""
    sampler = data.micro_batches(batches, first_step, args.gradient_accumulation_steps, ranks.rank, ranks.world_size)
    return iter(DataLoader(train_set.windows, batch_sampler=sampler, collate_fn=collate))


def restore(checkpoint: str, output_dir: str, model, optimizer, scaler, log) -> TrainState:
    saved = load_checkpoint(checkpoint, model, optimizer)
    scaler.load_state_dict(saved["scaler"])
    log(f"resumed from {checkpoint}")
    warn_of_other_code(saved["code"], log)
    return TrainState(**forget_missing_model(output_dir, checkpoint, saved["train_state"], log))


def save(args: argparse.Namespace, state: TrainState, model, optimizer, scaler, fingerprint: dict) -> str:
    """Saves a checkpoint. All ranks call it. Returns its path."""
    saved = {"step": state.step, "train_state": asdict(state), "scaler": scaler.state_dict()}
    saved |= {"fingerprint": fingerprint, "code": CODE_DIGEST}
    return save_checkpoint(args.output_dir, model, optimizer, saved, args.save_total_limit)


def evaluate(model, split: data.Split, args: argparse.Namespace, pad_values: dict[str, int], autocast) -> tuple:
    """Returns the scores of a split, equal on all ranks, and on rank 0 its predicted ids and probabilities [W]."""
    start, ranks = time.perf_counter(), get_ranks()
    one_length = getattr(model.config, "depends_on_padding", False)
    exit_on_error.batch_flag = "--per_device_eval_batch_size"
    eval_pad_values = {name: pad_values[name] for name in ("input_ids", "labels")}  # no other columns of labels
    predictions = metrics.predict(
        model,
        split.windows,
        data.eval_batches(split.windows.lengths, args.per_device_eval_batch_size, one_length),
        collate=lambda features: data.collate(features, eval_pad_values),
        autocast=autocast,
        token_loss=modeling.token_loss,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    exit_on_error.batch_flag = "--per_device_train_batch_size"
    model.train()
    scores = {}
    if predictions:
        predicted, probabilities, losses = predictions
        scores = metrics.score(split.tags, predicted, split.lengths, split.label_list, split.scheme, args.strict)
        scores |= {"loss": float(losses.mean(dtype=np.float64)), "runtime": time.perf_counter() - start}
        predictions = predicted, probabilities
    return broadcast(scores), predictions


def log_results(results: dict, log) -> None:
    """Logs the content of all_results.json: the scores of each split as a table, and the speed."""
    for split, name in (("eval", "validation"), ("test", "test")):
        scores = {key.removeprefix(f"{split}_"): results[key] for key in results if key.startswith(f"{split}_")}
        if scores:
            accuracy = with_interval(scores, "accuracy")
            log(f"\n{name}: {scores['words']:,} words, loss {scores['loss']:.4f}, accuracy {accuracy}")
            log(metrics.table(scores))
    speed = "{epoch:.4g} epochs in {train_runtime:,.0f} s, {train_tokens_per_second:,.0f} tokens/s".format(**results)
    log(f"\n{speed}, mean training loss {results['train_loss']:.4f}")


# ----------------------------------------------------------------------------------------------------------------------


@exit_on_error
def main() -> None:
    ranks = get_ranks()
    device = pick_device()
    log = tqdm.write if ranks.rank == 0 else (lambda *_: None)
    quiet(progress=ranks.rank == 0 and sys.stderr.isatty())
    replace_unprintable(sys.stdout)

    # ---- flags and data. All errors in the input are raised here, before anything is trained or overwritten.
    args = get_args(sys.argv[1:])
    encoder_name, tokenizer = load_encoder(args.model_name_or_path, args.max_seq_length)
    precision = modeling.check_precision(encoder_name, tokenizer, args, device, log)
    splits = data.load_splits(args, tokenizer)
    log(data_lines(splits))
    train_set, val_set = splits["train"], splits.get("validation")
    check_args(args, precision, splits)
    torch.manual_seed(args.seed)  # for the new head
    raw_model = modeling.load_model(
        encoder_name, train_set.label_list, args.gradient_checkpointing, load_weights=ranks.rank == 0 or not args.fsdp
    )
    raw_model.config.tag_scheme = train_set.tag_scheme  # of the files; for infer.py --evaluate
    raw_model.config.trial_subwords = describe(tokenizer)  # infer.py refuses another tokenizer
    disable_layerdrop(raw_model, log)

    # ---- process group, and what --output_dir holds: rank 0 looks and tells the others, which may not share its disk
    if ranks.world_size > 1 or args.fsdp:
        join_process_group(ranks, COLLECTIVE_TIMEOUT)
        distributed.refuse_different(precision=precision, max_seq_length=tokenizer.model_max_length)
    plan = make_plan(args, len(train_set.windows), ranks.world_size, BENCHMARK_WARMUP_STEPS)
    fingerprint = fingerprint_of(splits) | {"global batch size": plan.global_batch_size}
    finished, checkpoint = None, None
    if not args.benchmark:
        finished, checkpoint = find_run(vars(args), vars(get_args([])), fingerprint, plan.total_steps, log)
    hardware = f"{ranks.world_size} x {throughput.device_name(device)}, {precision}"
    publisher = hub.Publisher(args, train_set, hardware, log)
    if finished:
        log(f"{args.output_dir} already contains this finished run. Its results:")
        log_results(finished, log)
        warn_of_other_code(finished.get("code"), log)
        publisher.push("Finished")
        publisher.wait()
        return
    if ranks.rank == 0:
        data_report.log_notes(splits, tokenizer, log)

    # ---- model and optimizer
    raw_model.train()
    autocast = modeling.make_autocast("fp32" if args.fsdp else precision, device)  # FSDP casts with its own policy
    pad_values = train_set.windows.pad_values(tokenizer.pad_token_id or 0)
    packing = choose_packing(args.packing, raw_model, tokenizer.model_max_length, args.group_by_length, device, log)
    if not args.fsdp:
        raw_model.to(device)
    if device.type == "cpu":
        use_fast_dropout(raw_model)
        keep_freed_memory()
    gradients_vary = freeze_unreached_parameters(raw_model, tokenizer.model_max_length, autocast, log)
    # Embeddings of subwords that do not occur in training get no gradient. The saved model has all of them.
    train_used_embeddings(raw_model, np.append(train_set.token_ids, pad_values["input_ids"]))
    # Attach a head for an auxiliary loss here. The optimizer below holds the parameters that require a gradient now:
    # freeze those that are to be trained later after DDP is created, with find_unused_parameters=True.
    if args.fsdp:
        modeling.shard(raw_model, precision, device)
    check_windows(raw_model, tokenizer, splits, autocast, log)
    packing = verify_packing(packing, args.packing, raw_model, precision, autocast, log)
    # Any other optimizer of torch.optim works as well.
    optimizer = torch.optim.AdamW(
        modeling.parameter_groups(raw_model, args.weight_decay), lr=args.learning_rate, fused=True
    )
    for group in optimizer.param_groups:  # lr_scale: see parameter_groups
        group["peak_lr"] = group["lr"] * group.get("lr_scale", 1.0)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    guard = NonFiniteGuard(optimizer, device)
    model = with_fewer_launches(raw_model, args, packing, precision, autocast, log)
    log(run_lines(args, splits, raw_model, tokenizer, precision, packing, plan))

    # ---- state of the loop: new, or restored together with weights and optimizer state
    state = TrainState()
    if checkpoint:
        state = restore(checkpoint, args.output_dir, raw_model, optimizer, scaler, log)
    if ranks.world_size > 1 and not args.fsdp and model is raw_model:
        model = DistributedDataParallel(
            raw_model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=gradients_vary
        )

    # ---- from here on the output folder is changed, and an error exits with code 1 instead of 2
    exit_on_error.training_begins()
    if not args.benchmark:
        on_rank0(run_dir.begin_run, args.output_dir, vars(args), checkpoint, state.step)
    writer = open_writer(args.output_dir, state.step, enabled=ranks.rank == 0 and not args.benchmark)
    bar = tqdm(
        total=plan.total_steps, initial=state.step, disable=ranks.rank > 0 or not sys.stderr.isatty(), desc="training"
    )
    metric = args.metric_for_best_model or ("f1" if train_set.scheme else "accuracy")
    stop_signal = StopSignal()
    meter = StepMeter(device, state.loss_sum, state.step, ranks.rank)
    done = plan.is_done(state.step, state.best_step)

    def train_collate(features: list[dict]) -> dict:
        if packing:
            return packed_collate(features, pad_values, packing)
        return data.collate(features, pad_values)

    def batches_of(epoch: int) -> data.EpochBatches:
        lengths = train_set.windows.lengths
        return data.EpochBatches(lengths, plan.global_batch_size, args.seed, epoch, args.group_by_length)

    while not done:
        epoch, first_step = divmod(state.step, plan.steps_per_epoch)
        batches = batches_of(epoch)
        loader = make_loader(train_set, batches, first_step, args, ranks, train_collate)
        for i in range(first_step, plan.steps_per_epoch):
            rows = batches[i]  # of the windows in the global batch
            # ------------------------------------------------------------------------------------- one step, timed
            meter.start_step()
            schedule_step = state.step - state.skipped_steps
            for group in optimizer.param_groups:
                group["lr"] = get_lr(schedule_step, plan.total_steps, plan.warmup_steps, group["peak_lr"])
            torch.manual_seed(dropout_seed(args.seed, state.step, ranks.rank))
            # Every rank knows the whole global batch, so no collective is needed to count its labels.
            num_targets = max(1, int(train_set.windows.num_labels[rows].sum()))
            for micro_step in range(1, args.gradient_accumulation_steps + 1):
                inputs, labels = data.split_labels(meter.fetch(loader))
                modeling.sync_gradients(model, micro_step == args.gradient_accumulation_steps)
                with autocast:
                    logits = model(**inputs).logits  # [B, L, C]; packed: [1, T, C]
                # Divided by the labels of all ranks and micro-batches: how they share the batch has no influence.
                loss = modeling.token_loss(logits, labels["labels"], reduction="sum") / num_targets
                scaler.scale(loss * ranks.world_size).backward()  # the sum: DDP and FSDP average over ranks
                meter.add_loss(loss)
            scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), args.max_grad_norm or math.inf)
            grad_norm = full_tensor(grad_norm)
            if scaler.is_enabled():  # fp16: the scaler skips the step if the gradient overflows
                loss_scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                state.skipped_steps += scaler.get_scale() < loss_scale  # waits for the device
                guard.observe_loss_scale(loss_scale, state.step)
            elif guard.allows_step(grad_norm, state.step):  # not if a gradient was not finite
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            # -----------------------------------------------------------------------------------------------------
            stop = bool(stop_signal.agreed())  # all ranks stop at the same step
            due = plan.due(state.step, stop)  # log, evaluate, save, sync_device
            state.count_steps(meter.end_step(train_set.windows.lengths[rows], due.sync_device))
            bar.update()
            if due.sync_device or device.type == "cpu":  # raises an error that names the sentences of the bad step
                guard.raise_if_nonfinite(batches_of, plan.steps_per_epoch, train_set.window_position)

            if due.log:
                scalars = meter.scalars(state.step) | {"grad_norm": grad_norm.item()}
                scalars["learning_rate"] = max(group["lr"] for group in optimizer.param_groups)
                scalars["memory_gib"] = throughput.peak_memory(device)
                log_scalars(writer, "train", scalars, state.step)
                line = "loss {loss:.4f} | lr {learning_rate:.2e} | {tokens_per_second:,.0f} tokens/s".format(**scalars)
                bar.set_postfix_str(line)
                if bar.disable:
                    line += f" | {time_left(state.train_seconds, state.step, plan.total_steps)}"
                    log(f"step {state.step}/{plan.total_steps} | {line}")

            if due.evaluate and val_set:
                scores, predictions = evaluate(raw_model, val_set, args, pad_values, autocast)
                log_scalars(writer, "eval", metrics.flatten_scores(scores), state.step)
                log_predictions(writer, val_set, predictions, state.step)
                line = "eval loss {loss:.4f} | f1 {f1:.4f} | accuracy {accuracy:.4f}".format(**scores)
                if is_better(scores, state.best_scores, metric):
                    line += " | best so far"
                    state.best_step, state.best_scores = state.step, scores
                    modeling.save_model(raw_model, tokenizer, args.output_dir)
                    state.best_model = on_rank0(run_dir.model_digest, args.output_dir)
                    on_rank0(write_predictions, args.output_dir, "eval", val_set, predictions)
                    on_rank0(report.write_report, args.output_dir, scores, val_set, predictions, train_set, state.step)
                    on_rank0(publisher.write_card, {"validation": scores}, state.train_seconds)
                    publisher.push(f"Step {state.step}: {line}")
                log(f"step {state.step}/{plan.total_steps} | {line}")

            if due.save:
                state.loss_sum = meter.total_loss()
                checkpoint = save(args, state, raw_model, optimizer, scaler, fingerprint)
            done = stop or plan.is_done(state.step, state.best_step)
            if done:
                break
    bar.close()
    stop_signal.release()
    if args.benchmark:
        timed = meter.steps[BENCHMARK_WARMUP_STEPS:]
        throughput.print_summary(timed, raw_model, precision, device, ranks.world_size, log)
        return
    if stop_signal.number:
        writer.close()
        log(f"stopped by {stop_signal.name}; the same command resumes from {checkpoint}")
        raise SystemExit(128 + stop_signal.number)
    if state.step < plan.total_steps:
        log(f"stopped early: {metric} has not improved since step {state.best_step}")
    if not val_set:
        state.best_step = state.step
        modeling.save_model(raw_model, tokenizer, args.output_dir)

    # ---- results of the best model. Its validation scores are those of the evaluation at which it was saved.
    state.loss_sum = meter.total_loss()
    all_scores = {"eval": state.best_scores} if val_set else {}
    if "test" in splits:
        best_model = modeling.load_best(args.output_dir, raw_model, precision)
        all_scores["test"], predictions = evaluate(best_model, splits["test"], args, pad_values, autocast)
        on_rank0(write_predictions, args.output_dir, "test", splits["test"], predictions)
        log_scalars(writer, "test", metrics.flatten_scores(all_scores["test"]), state.step)
    results = run_dir.make_results(state, plan.steps_per_epoch, all_scores)
    results |= {"world_size": ranks.world_size, "precision": precision}
    results |= {"fingerprint": fingerprint, "code": CODE_DIGEST}
    log_hparams(writer, args, plan.global_batch_size, results, state.step)
    writer.close()
    on_rank0(publisher.write_card, all_scores, state.train_seconds)
    on_rank0(report.write_report, args.output_dir, state.best_scores, val_set, None, train_set, state.best_step)
    on_rank0(run_dir.finish_run, args.output_dir, results)
    log_results(results, log)
    log(f"the {'best' if val_set else 'last'} model (step {state.best_step}) is in {args.output_dir}")
    publisher.push(f"Finished after {state.step} steps")
    publisher.wait()


if __name__ == "__main__":
    record(main)()
