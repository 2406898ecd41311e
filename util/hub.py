"""The Hugging Face Hub: the card of a model, and uploads that training does not wait for.

The token is that of the environment (HF_TOKEN) or of `hf auth login`. It is never logged or written.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import huggingface_hub
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from util.distributed import get_ranks, on_rank0
from util.pretrained import MINILM
from util.run_dir import FLAGS_WITHOUT_EFFECT_ON_RESULTS, atomic_write_text
from util.text_table import with_interval

TASK = "token-classification"
METRICS = ["f1", "precision", "recall", "accuracy"]
NAMES_AND_PATHS = {"model_name_or_path", "dataset_name", "train_file", "validation_file", "test_file"}
BATCH_SIZES = {"per_device_train_batch_size", "gradient_accumulation_steps"}


def model_card(name: str, settings: dict, scores: dict[str, dict], facts: dict[str, str]) -> str:
    """README.md of a model: the metadata that the Hub displays, scores by type, and how it was trained.

    settings: the flags of the run. scores: split -> of metrics.score. facts: more rows of the table under
    "Training". Of local paths, only the last part appears.
    """
    encoder = settings["model_name_or_path"] or MINILM
    base_model = None if os.path.exists(encoder) else encoder
    hub_dataset = settings["dataset_name"]
    if hub_dataset and os.path.exists(hub_dataset):
        hub_dataset = None
    dataset = hub_dataset or _last_part(settings["train_file"] or settings["dataset_name"] or "samples")

    results = []
    for split, split_scores in scores.items():
        for metric in METRICS:
            result = EvalResult(
                task_type=TASK,
                dataset_type=hub_dataset or "custom",
                dataset_name=dataset,
                dataset_config=settings["dataset_config_name"],
                dataset_split=split,
                metric_type=metric,
                metric_value=round(split_scores[metric], 6),
            )
            results.append(result)
    metadata = ModelCardData(
        model_name=name,
        base_model=base_model,
        datasets=[hub_dataset] if hub_dataset else None,
        library_name="transformers",
        pipeline_tag=TASK,
        metrics=METRICS,
        tags=[TASK],
        eval_results=results or None,
    )
    shown_flags = (settings.keys() - NAMES_AND_PATHS - set(FLAGS_WITHOUT_EFFECT_ON_RESULTS)) | BATCH_SIZES
    flags = {f"`--{flag}`": str(settings[flag]) for flag in sorted(shown_flags) if settings[flag]}
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("model_card.md.jinja")),
        name=name,
        encoder=base_model or _last_part(encoder),
        dataset=dataset,
        scores=scores,
        facts=facts | flags,
        show=with_interval,
    )
    return f"{card}\n"


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def open_repo(repo_id: str, private: bool) -> str:
    """Creates a model repository unless it exists. Returns its full id.

    Raises ValueError without login, permission or network.
    """
    try:
        return huggingface_hub.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    except Exception as error:  # of the client, or of the HTTP library that it uses
        raise ValueError(f"--push_to_hub: {repo_id}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def push(
    folder: str, repo_id: str, message: str, log: Callable[[str], None], previous: Future | None = None
) -> Future | None:
    """Uploads an output folder without its checkpoints and predictions, in the background.

    Predictions contain the words of a corpus, which may not be public.

    Returns a future of the URL, or of None if the upload fails. A failure is logged, and training continues.
    previous: the future of the upload before. It is cancelled if it has not started, since only the newest
    model is wanted.
    """
    if previous:
        previous.cancel()
    snapshot = tempfile.mkdtemp(dir=folder, prefix=".pushing-")
    try:
        ignored = shutil.ignore_patterns("checkpoints", ".*", "*.new", "*_predictions.conll")
        shutil.copytree(folder, snapshot, copy_function=_link, ignore=ignored, dirs_exist_ok=True)
    except OSError as error:
        shutil.rmtree(snapshot, ignore_errors=True)
        log(f"warning: not pushed to {repo_id}: {_one_line(error)}")
        return None
    future = huggingface_hub.run_as_future(_upload, repo_id, snapshot, message, log)  # one at a time
    future.add_done_callback(lambda done: shutil.rmtree(snapshot) if done.cancelled() else None)
    return future


def _link(source: str, target: str) -> None:
    """A hard link suffices as a snapshot: the files of a model are replaced by new ones, never changed."""
    is_event_file = os.path.basename(os.path.dirname(source)) == "runs"  # TensorBoard appends to these
    try:
        shutil.copy2(source, target) if is_event_file else os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _upload(repo_id: str, snapshot: str, message: str, log: Callable[[str], None]) -> str | None:
    """Failed requests (HTTP 429 and 5xx, lost connections) are repeated by huggingface_hub with hf_xet."""
    try:
        huggingface_hub.upload_folder(repo_id=repo_id, folder_path=snapshot, commit_message=message)
        return f"{huggingface_hub.constants.ENDPOINT}/{repo_id}"
    except Exception as error:  # of the client, or of the HTTP library that it uses
        log(f"warning: not pushed to {repo_id}: {_one_line(error)}")
        return None
    finally:
        shutil.rmtree(snapshot)


def wait_for_push(future: Future | None, folder: str, repo_id: str, log: Callable[[str], None]) -> None:
    """Logs the URL of the last upload, or if it failed the command that uploads the folder by hand."""
    url = future.result() if future else None
    log(f"pushed: {url}" if url else f"warning: not pushed; the model is in {folder}: hf upload {repo_id} {folder}")


class Publisher:
    """Writes the model card of a run, and with --push_to_hub uploads the output folder during training.

    All ranks create it, and rank 0 uploads. Raises ValueError without login, permission or network.
    """

    def __init__(self, args, train_set, hardware: str, log: Callable[[str], None]):
        self.args, self.log, self.future = args, log, None
        self.repo_id = os.path.basename(os.path.abspath(args.output_dir))
        if args.push_to_hub:
            self.repo_id = on_rank0(open_repo, args.hub_model_id or self.repo_id, args.hub_private_repo)
        self.uploads = args.push_to_hub and get_ranks().rank == 0
        self.facts = {
            "sentences, words": f"{train_set.num_sentences:,}, {train_set.num_words:,}",
            "labels": ", ".join(train_set.label_list),
            "hardware": hardware,
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }

    def write_card(self, scores: dict[str, dict], seconds: float) -> None:
        """scores: split -> of metrics.score. seconds: of training so far."""
        scores = {"validation" if split == "eval" else split: found for split, found in scores.items()}
        facts = self.facts | {"training time": f"{seconds:,.0f} s"}
        card = model_card(self.repo_id, vars(self.args), scores, facts)
        atomic_write_text(os.path.join(self.args.output_dir, "README.md"), card)

    def push(self, message: str) -> None:
        if self.uploads:
            self.future = push(self.args.output_dir, self.repo_id, message, self.log, self.future)

    def wait(self) -> None:
        if self.uploads:
            wait_for_push(self.future, self.args.output_dir, self.repo_id, self.log)
