"""Commands written for run_ner.py and run_ner_no_trainer.py, adapted only in the path of model and data."""

import dataclasses
import json

import pytest
import transformers
from conftest import ROOT, read, results, train

import train as script

SHORT = ["--max_steps", 4, "--eval_steps", 4, "--logging_steps", 2]


@pytest.fixture(scope="module")
def json_files(tmp_path_factory) -> dict[str, str]:
    """As the reference has them: an object a line, tokens and ner_tags."""
    folder, files = tmp_path_factory.mktemp("json"), {}
    for split, number in (("train", 60), ("validation", 20)):
        rows = read(ROOT / "samples" / f"{split}.conll")[:number]
        files[split] = str(folder / f"{split}.json")
        lines = [json.dumps({"tokens": row["tokens"], "ner_tags": row["tags"]}) for row in rows]
        (folder / f"{split}.json").write_text("\n".join(lines))
    return files


def test_the_reference_readmes_commands_run(encoders, json_files, tmp_path):
    """examples/pytorch/token-classification/README.md of transformers 5: run.sh, custom files, no_trainer."""
    model, files = encoders["wordpiece"], ["--train_file", json_files["train"]]
    files += ["--validation_file", json_files["validation"]]
    out = tmp_path / "test-ner"
    train("--model_name_or_path", model, *files, "--output_dir", out, "--do_train", "--do_eval", *SHORT)
    assert results(out)["eval_words"] > 300
    no_trainer = (
        "--task_name ner --max_length 128 --per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3"
    )
    train(
        "--model_name_or_path",
        model,
        *files,
        *no_trainer.split(),
        "--output_dir",
        tmp_path / "ner",
        "--with_tracking",
        *SHORT,
    )
    assert results(tmp_path / "ner")["eval_words"] > 300
    config = {
        "model_name_or_path": model,
        "train_file": json_files["train"],
        "validation_file": json_files["validation"],
    }
    config |= {"output_dir": str(tmp_path / "json"), "do_train": True, "do_eval": True, "bf16": False, "max_steps": 4}
    config |= {"return_entity_level_metrics": True, "eval_strategy": "steps", "report_to": "tensorboard", "fp16": False}
    (tmp_path / "args.json").write_text(json.dumps(config))
    train(tmp_path / "args.json")
    assert results(tmp_path / "json")["eval_f1"] == results(out)["eval_f1"]


REFERENCE = """model_name_or_path config_name tokenizer_name cache_dir model_revision token trust_remote_code
ignore_mismatched_sizes task_name dataset_name dataset_config_name train_file validation_file test_file text_column_name
label_column_name overwrite_cache preprocessing_num_workers max_seq_length pad_to_max_length max_train_samples
max_eval_samples max_predict_samples label_all_tokens return_entity_level_metrics num_warmup_steps max_length
checkpointing_steps with_tracking report_to use_auth_token""".split()
TRAINER = """output_dir do_train do_eval do_predict eval_strategy per_device_train_batch_size seed bf16 fp16 eval_steps
per_device_eval_batch_size gradient_accumulation_steps learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon
max_grad_norm num_train_epochs max_steps lr_scheduler_type warmup_steps logging_steps logging_strategy save_strategy
save_steps save_total_limit dataloader_num_workers run_name disable_tqdm load_best_model_at_end metric_for_best_model
greater_is_better label_smoothing_factor optim push_to_hub hub_model_id hub_private_repo hub_token
gradient_checkpointing resume_from_checkpoint""".split()


@pytest.mark.parametrize("name", REFERENCE + TRAINER)
def test_every_flag_of_the_reference_is_taken_or_answered(name):
    value = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "steps", "optim": "adamw_torch"}
    value = value | {"lr_scheduler_type": "linear", "report_to": "tensorboard", "trust_remote_code": "false"}
    value = value.get(
        name, "true" if name.startswith(("do_", "load_")) else "false" if name == "pad_to_max_length" else "1"
    )
    try:
        ours = script.carry_over([f"--{name}", value, "--seed", "7"])
        assert ours[-2:] == ["--seed", "7"]
        known = {f"--{knob.name}" for knob in dataclasses.fields(script.Arguments)}
        assert {flag.partition("=")[0] for flag in ours if flag.startswith("--")} <= known
    except ValueError as error:
        assert str(error).startswith(f"--{name} {value}: not a flag here; instead: ") and len(str(error)) < 140


def test_what_the_list_says_of_trainers_flags_is_of_this_version():
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert set(TRAINER) - fields == set()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--fp16"], ["--precision=fp16"]),
        (["--fp16", "False"], []),
        (["--bf16=true", "--seed=1"], ["--precision=bf16", "--seed=1"]),
        (["--max-length", "64"], ["--max_seq_length=64"]),
        (["--do_train", "--seed", "3"], ["--seed", "3"]),
        (["--no_such_flag", "3"], ["--no_such_flag", "3"]),
        (["--group_by_length", "--do_eval"], ["--group_by_length"]),
        (["stray"], ["stray"]),
    ],
)
def test_flags_are_carried_over(argv, expected):
    assert script.carry_over(argv) == expected


@pytest.mark.parametrize(
    "argv",
    [["--do_train", "False"], ["--lr_scheduler_type", "cosine"], ["--warmup_steps=100"], ["--eval_strategy", "no"]],
)
def test_what_is_not_done_is_answered(argv):
    with pytest.raises(ValueError, match="not a flag here; instead: "):
        script.carry_over(argv)
