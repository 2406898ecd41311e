"""Commands written for run_ner.py and run_ner_no_trainer.py, adapted only in the path of model and data."""

import dataclasses
import json
import re

import pytest
import transformers
from conftest import ROOT, read, results, train

import train as script
from util.run_ner_flags import FLAGS, translate

SHORT = ["--max_steps", 4, "--eval_steps", 4, "--logging_steps", 2]
KNOWN = set(vars(script.make_train_parser().parse_args([])))


@pytest.fixture(scope="module")
def json_files(tmp_path_factory) -> dict[str, str]:
    """Files as the reference reads them: an object a line, with tokens and ner_tags."""
    folder, files = tmp_path_factory.mktemp("json"), {}
    for split, number in (("train", 60), ("validation", 20)):
        rows = read(ROOT / "samples" / f"{split}.conll")[:number]
        lines = [json.dumps({"tokens": row["tokens"], "ner_tags": row["tags"]}) for row in rows]
        files[split] = str(folder / f"{split}.json")
        (folder / f"{split}.json").write_text("\n".join(lines))
    return files


def test_commands_of_the_reference_readme_run(encoders, json_files, tmp_path):
    """examples/pytorch/token-classification/README.md of transformers 5: run.sh, custom files, no_trainer."""
    model = ["--model_name_or_path", encoders["wordpiece"]]
    files = ["--train_file", json_files["train"], "--validation_file", json_files["validation"]]
    train(*model, *files, "--output_dir", tmp_path / "test-ner", "--do_train", "--do_eval", *SHORT)
    assert results(tmp_path / "test-ner")["eval_words"] > 300

    no_trainer = ["--task_name", "ner", "--max_length", 128, "--per_device_train_batch_size", 32]
    no_trainer += ["--learning_rate", 2e-5, "--num_train_epochs", 3, "--with_tracking"]
    train(*model, *files, *no_trainer, "--output_dir", tmp_path / "ner", *SHORT)
    assert results(tmp_path / "ner")["eval_words"] > 300

    config = {
        "model_name_or_path": encoders["wordpiece"],
        "train_file": json_files["train"],
        "validation_file": json_files["validation"],
        "output_dir": str(tmp_path / "json"),
        "do_train": True,
        "do_eval": True,
        "bf16": False,
        "fp16": False,
        "max_steps": 4,
        "return_entity_level_metrics": True,
        "eval_strategy": "steps",
        "report_to": "tensorboard",
    }
    (tmp_path / "args.json").write_text(json.dumps(config))
    train(tmp_path / "args.json")
    assert results(tmp_path / "json")["eval_f1"] == results(tmp_path / "test-ner")["eval_f1"]


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
VALUES = {
    "do_eval": "true",
    "do_predict": "true",
    "do_train": "true",
    "eval_strategy": "epoch",
    "load_best_model_at_end": "true",
    "logging_strategy": "steps",
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "pad_to_max_length": "false",
    "report_to": "tensorboard",
    "save_strategy": "epoch",
    "trust_remote_code": "false",
}


@pytest.mark.parametrize("name", REFERENCE + TRAINER)
def test_every_flag_of_the_reference_is_accepted_or_answered(name):
    value = VALUES.get(name, "1")
    try:
        translated = translate([f"--{name}", value, "--seed", "7"], KNOWN)
        assert translated[-2:] == ["--seed", "7"]
        flags = [argument.partition("=")[0] for argument in translated if argument.startswith("--")]
        assert {flag.removeprefix("--") for flag in flags} <= KNOWN
    except ValueError as error:
        assert str(error).startswith(f"--{name} {value}: not a flag here; instead: ") and len(str(error)) < 140


def test_the_listed_flags_are_those_of_the_installed_trainer():
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert set(TRAINER) - fields == set()


def test_no_flag_of_ours_is_translated():
    assert not set(FLAGS) & KNOWN
    new_names = {rule["new_name"] for rule in FLAGS.values() if "new_name" in rule}
    assert new_names <= KNOWN


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
def test_flags_are_translated(argv, expected):
    assert translate(argv, KNOWN) == expected


def test_a_known_flag_is_never_translated():
    assert translate(["--fp16", "true", "--do_train"], {"fp16"}) == ["--fp16", "true"]


def test_all_flags_that_are_not_supported_are_named_at_once():
    with pytest.raises(ValueError, match=r"^--warmup_steps 5: .* \| --optim sgd: not a flag here; instead: "):
        translate(["--warmup_steps", "5", "--fp16", "--optim=sgd", "--seed", "3"], KNOWN)


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["--do_train", "False"], "--do_train False: not a flag here; instead: always 1 or true or yes"),
        (["--eval_strategy", "no"], "--eval_strategy no: not a flag here; instead: always epoch or steps"),
        (["--lr_scheduler_type=cosine"], "--lr_scheduler_type cosine: not a flag here; instead: .* get_lr in train.py"),
        (["--warmup_steps=100"], "--warmup_steps 100: not a flag here; instead: --warmup_ratio, .*"),
    ],
)
def test_a_flag_that_is_not_supported_is_answered(argv, answer):
    with pytest.raises(ValueError) as error:
        translate(argv, KNOWN)
    assert re.fullmatch(answer, str(error.value))
