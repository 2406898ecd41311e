"""Flags of run_ner.py, run_ner_no_trainer.py and TrainingArguments that train.py does not have.

--do_train --seed 3       ->  --seed 3, since train.py always trains
--fp16 --max_length 64    ->  --precision=fp16 --max_seq_length=64
--warmup_steps 500        ->  ValueError: --warmup_steps 500: not a flag here; instead: --warmup_ratio, ...
"""

from collections.abc import Collection

ON = {"true", "1", "yes"}
OFF = {"false", "0", "no"}
ANY = None

# What happens to a flag:
#   new_name      it gets this name; a switch also gets new_value, and is dropped if it is off
#   ignored_if    it is dropped if it has one of these values, since train.py does that anyway
#   instead       otherwise it is an error that names this alternative
FLAGS: dict[str, dict] = {
    "adam_beta1": {"instead": "the line of AdamW in train.py"},
    "adam_beta2": {"instead": "the line of AdamW in train.py"},
    "adam_epsilon": {"instead": "the line of AdamW in train.py"},
    "average_tokens_across_devices": {"ignored_if": ANY},
    "bf16": {"new_name": "precision", "new_value": "bf16"},
    "bf16_full_eval": {"ignored_if": ANY},
    "cache_dir": {"instead": "HF_HOME in the environment"},
    "checkpointing_steps": {"instead": "--save_steps"},
    "config_name": {"instead": "config and tokenizer come with --model_name_or_path"},
    "dataloader_num_workers": {"ignored_if": ANY},
    "dataloader_pin_memory": {"ignored_if": ANY},
    "ddp_find_unused_parameters": {"ignored_if": ANY},
    "disable_tqdm": {"ignored_if": ANY},
    "do_eval": {"ignored_if": ON},
    "do_predict": {"ignored_if": ON},
    "do_train": {"ignored_if": ON},
    "eval_strategy": {"ignored_if": {"epoch", "steps"}},
    "evaluation_strategy": {"ignored_if": {"epoch", "steps"}},
    "fp16": {"new_name": "precision", "new_value": "fp16"},
    "fp16_full_eval": {"ignored_if": ANY},
    "greater_is_better": {"ignored_if": ANY},
    "hub_token": {"instead": "HF_TOKEN in the environment, or hf auth login"},
    "ignore_mismatched_sizes": {"ignored_if": ANY},
    "label_smoothing_factor": {"instead": "the function token_loss in model.py"},
    "load_best_model_at_end": {"ignored_if": ON},
    "local_rank": {"ignored_if": ANY},
    "log_level": {"ignored_if": ANY},
    "logging_dir": {"instead": "TensorBoard's files are in runs/ of --output_dir"},
    "logging_strategy": {"ignored_if": {"steps"}},
    "lr_scheduler_type": {"ignored_if": {"linear"}, "instead": "the function get_lr in train.py"},
    "max_eval_samples": {"instead": "a shorter file, or --max_steps"},
    "max_length": {"new_name": "max_seq_length"},
    "max_predict_samples": {"instead": "a shorter file, or --max_steps"},
    "max_train_samples": {"instead": "a shorter file, or --max_steps"},
    "model_revision": {"instead": "download that revision and pass its folder"},
    "no_cuda": {"instead": "CUDA_VISIBLE_DEVICES= python train.py ..."},
    "num_warmup_steps": {"instead": "--warmup_ratio, a share of the steps"},
    "optim": {"ignored_if": {"adamw_torch", "adamw_torch_fused"}, "instead": "the line of AdamW in train.py"},
    "overwrite_cache": {"ignored_if": ANY},
    "pad_to_max_length": {
        "ignored_if": OFF,
        "instead": "nothing: batches are packed, or padded to the longest sentence",
    },
    "preprocessing_num_workers": {"ignored_if": ANY},
    "remove_unused_columns": {"ignored_if": ANY},
    "report_to": {"ignored_if": {"tensorboard", "all"}, "instead": "TensorBoard, or edit writer in train.py"},
    "return_entity_level_metrics": {"ignored_if": ANY},
    "run_name": {"instead": "the name of --output_dir"},
    "save_strategy": {"ignored_if": {"epoch", "steps"}},
    "token": {"instead": "HF_TOKEN in the environment, or hf auth login"},
    "tokenizer_name": {"instead": "config and tokenizer come with --model_name_or_path"},
    "trust_remote_code": {"ignored_if": OFF, "instead": "models whose code is part of transformers"},
    "use_auth_token": {"instead": "HF_TOKEN in the environment, or hf auth login"},
    "use_cpu": {"instead": "CUDA_VISIBLE_DEVICES= python train.py ..."},
    "warmup_steps": {"instead": "--warmup_ratio, a share of the steps"},
    "with_tracking": {"ignored_if": ANY},
}


def translate(argv: list[str], known: Collection[str]) -> list[str]:
    """Translates the flags of FLAGS. Flags that are in `known`, or not in FLAGS, stay as they are.

    Raises ValueError for flags, or values of flags, that are not supported; it names all of them.
    """
    translated, problems = [], []
    i = 0
    while i < len(argv):
        # A flag is "--name=value", or "--name" and all arguments up to the next flag; the last one counts.
        flag, equals, value = argv[i].partition("=")
        end = i + 1
        while not equals and end < len(argv) and not argv[end].startswith("--"):
            value = argv[end]
            end += 1
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in FLAGS and name not in known:
            try:
                translated += _translate_flag(name, value)
            except ValueError as error:
                problems.append(str(error))
        else:
            translated += argv[i:end]
        i = end
    if problems:
        raise ValueError(" | ".join(problems))
    return translated


def _translate_flag(name: str, value: str) -> list[str]:
    rule = FLAGS[name]
    if "new_name" in rule:
        is_off = "new_value" in rule and value.lower() in OFF
        return [] if is_off else [f"--{rule['new_name']}={rule.get('new_value', value)}"]
    ignored_if = rule.get("ignored_if", set())
    if ignored_if is ANY or (value or "true").lower() in ignored_if:
        return []
    instead = rule.get("instead") or f"always {' or '.join(sorted(ignored_if))}"
    flag = f"--{name} {value}".rstrip()
    raise ValueError(f"{flag}: not a flag here; instead: {instead}")
