"""Tag text with a trained model: entities with their character offsets and scores.

python infer.py outputs "My name is Sylvain and I work at Hugging Face in Brooklyn."
python infer.py outputs --input_file articles.jsonl --output_file tagged.jsonl    # the same command resumes
torchrun --nproc-per-node=4 infer.py outputs --input_file articles.jsonl --output_file tagged.jsonl
python infer.py outputs --input_file test.conll --evaluate --output_file report.html

from infer import Tagger
tagger = Tagger("outputs")
tagger("Maria lives in Oslo.")   # [{"entity_group": "PER", "score": 0.99, "word": "Maria", ...}, ...]
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
from torch.distributed.elastic.multiprocessing.errors import record

import data
import metrics
import model as modeling
from util import data_report, documents, report
from util.annotations import Columns
from util.arguments import ArgumentParser, OneLineHelp, non_negative_int, positive_int
from util.corpus_scan import refuse_stray_tags, tag_statistics
from util.device import pick_device, synchronize, to_device
from util.distributed import Ranks, exit_on_error, get_ranks, join_process_group, quiet
from util.documents import Document, Tagged
from util.encoder_check import check_encoder, depends_on_padding
from util.pretrained import load_tokenizer_of_model
from util.run_dir import atomic_write_text, decided_scheme, is_file_of_run, read_settings
from util.sources import open_file, read_source
from util.tag_files import TagJob, tag_file, tag_stream, tagger_digest
from util.tag_schemes import entity_spans, make_label_list
from util.tag_spelling import canonical, check_same_spelling, entity_type, prefix
from util.text_table import replace_unprintable, with_interval
from util.tokenizer import encode, special_tokens, subword_offsets

STRATEGIES = ("none", "simple", "first", "average", "max")

# ---------------------------------------------------------------------------------------------------------
# Documents -> entities


class Tagger:
    """A saved token-classification model (a folder or a Hub id).

    A call returns what transformers' pipeline returns, but reads texts of any length and does not split words.
    """

    def __init__(self, model_name_or_path: str, batch_size=32, stride=64, precision="auto"):
        self.device = pick_device()
        self.tokenizer = load_tokenizer_of_model(model_name_or_path)
        self.model = modeling.from_pretrained(model_name_or_path).to(self.device).eval()
        id2label = self.model.config.id2label
        self.label_list = [id2label[i] for i in range(self.model.config.num_labels)]
        precision = check_encoder(self.model, self.tokenizer, precision, modeling.make_autocast)
        self.autocast = modeling.make_autocast(precision, self.device)
        self.window_size = self.tokenizer.model_max_length
        depends = getattr(self.model.config, "depends_on_padding", None)  # as training has found
        self.one_length = depends_on_padding(self.model, self.tokenizer) if depends is None else depends
        self.special = special_tokens(self.tokenizer)  # the first use of a tokenizer changes it: before any thread does
        self.batch_size, self.stride = batch_size, stride

    def __call__(self, texts: str | list[str], aggregation_strategy: str = "simple") -> list:
        """One text -> its entities; several texts -> a list of such lists.

        An entity has entity_group, score, word, start, end; a subword ("none") entity, score, index, word, start, end.
        """
        if aggregation_strategy not in STRATEGIES:
            raise ValueError(f"aggregation_strategy {aggregation_strategy!r}: not one of {STRATEGIES}")
        if not isinstance(texts, str) and not texts:
            raise ValueError("no text to tag")
        documents = [Document.from_text(text) for text in ([texts] if isinstance(texts, str) else texts)]
        entities = [tagged.entities for tagged in self.tag(documents, aggregation_strategy)]
        return entities[0] if isinstance(texts, str) else entities

    def tag(self, documents: list[Document], strategy: str = "simple") -> list[Tagged]:
        sentences = [[document.text[start:end] for start, end in document.words] for document in documents]
        probabilities, word_ids = self.probabilities(sentences)
        votes = vote(probabilities, word_ids, self.label_list, strategy)
        if strategy == "none":
            entities = self._subword_entities(documents, sentences, probabilities, word_ids)
        else:
            entities = self._word_entities(documents, votes)
        words = iter(votes.tags)
        tags = [[self.label_list[next(words)] for _ in sentence] for sentence in sentences]
        return [Tagged(*pair) for pair in zip(entities, tags)]

    @torch.inference_mode()
    def probabilities(self, sentences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Words -> probabilities [N, C] of the labels for all subwords, and word_ids [N], ascending from 0.

        Words are counted over all sentences. Every word has a subword; a word that is longer than a window
        has only those in the window.
        """
        windows, num_words = [], 0
        for words, subwords in zip(sentences, encode(sentences, self.tokenizer)):
            cut = data.cut(subwords.input_ids, subwords.word_ids, self.special, self.window_size, self.stride)
            for input_ids, word_ids in cut:
                word_ids = np.where(word_ids < 0, -1, word_ids + num_words)
                windows.append({"input_ids": input_ids, "word_ids": word_ids})
            num_words += len(words)

        pad_values = {"input_ids": self.tokenizer.pad_token_id or 0, "word_ids": -1}
        lengths = np.array([len(window["input_ids"]) for window in windows], int)
        batch_probabilities = [torch.empty(0, len(self.label_list))]
        batch_word_ids = [np.empty(0, int)]
        for rows in data.eval_batches(lengths, self.batch_size, self.one_length):
            batch = data.collate([windows[row] for row in rows], pad_values)
            word_ids = batch.pop("word_ids").flatten()  # [B * L]
            position = (word_ids >= 0).nonzero()[:, 0]
            batch = to_device(batch | {"position": position}, self.device)
            subwords = batch.pop("position")
            with self.autocast:
                logits = self.model(**batch).logits
            logits = logits.flatten(0, 1).index_select(0, subwords).float()
            batch_probabilities.append(logits.softmax(-1).to("cpu", non_blocking=True))
            batch_word_ids.append(word_ids[position].numpy())
        synchronize(self.device)  # the host waits once for a GPU
        # Batches are sorted by length. A stable sort restores the order of words, and keeps that of their subwords.
        all_word_ids = np.concatenate(batch_word_ids)
        order = np.argsort(all_word_ids, kind="stable")
        num_tagged = len(np.unique(all_word_ids))
        assert num_tagged == num_words, f"{num_tagged} of {num_words} words tagged"
        return torch.cat(batch_probabilities).numpy()[order], all_word_ids[order]

    def _word_entities(self, documents: list[Document], votes: "Votes") -> list[list[dict]]:
        """Words of the same entity -> one entity. Its score is the mean over the scores of its words."""
        # Neighbors with the same plain tag (NOUN) are one entity, as in the pipeline, so it becomes I-NOUN.
        names = canonical(self.label_list)
        label_list = [name if name == "O" or prefix(name) else f"I-{name}" for name in names]
        lengths = np.array([len(document.words) for document in documents], int)
        ends = np.cumsum(lengths)
        spans = entity_spans(votes.tags, lengths, label_list)
        means = report.span_sums(votes.score_sums, spans) / report.span_sums(votes.num_scores, spans)
        entities: list[list[dict]] = [[] for _ in documents]
        for (first, end), score in zip(spans.tolist(), means.tolist()):
            i = int(np.searchsorted(ends, first, side="right"))
            text, words, offset = documents[i].text, documents[i].words, int(ends[i] - lengths[i])
            span = words[first - offset][0], words[end - offset - 1][1]
            entity = {"entity_group": entity_type(label_list[votes.tags[first]]), "score": score}
            entities[i].append(entity | {"word": text[slice(*span)], "start": span[0], "end": span[1]})
        return entities

    def _subword_entities(self, documents, sentences, probabilities, word_ids) -> list[list[dict]]:
        """Every subword whose label is not O, for the strategy "none"."""
        num_subwords = iter(np.bincount(word_ids).tolist())  # of the words of all documents
        labels = iter(probabilities.argmax(-1).tolist())  # of the subwords of all documents
        scores = iter(probabilities.max(-1).tolist())
        num_special = len(self.special[0])  # before the text
        outside = [label for label, name in zip(self.label_list, canonical(self.label_list)) if name == "O"]
        entities: list[list[dict]] = []
        for document, offsets in zip(documents, subword_offsets(sentences, self.tokenizer)):
            entities.append([])
            index = num_special  # of a subword in the input_ids of the document
            for (word_start, _), word_offsets in zip(document.words, offsets):
                for i, (start, end) in enumerate(word_offsets[: next(num_subwords)]):
                    start, end = word_start + start, word_start + end
                    entity = {"entity": self.label_list[next(labels)], "score": next(scores), "index": index + i}
                    entity |= {"word": document.text[start:end], "start": start, "end": end}
                    if entity["entity"] not in outside:
                        entities[-1].append(entity)
                index += len(word_offsets)
        return entities


class Votes(NamedTuple):
    """The tags and scores of words. The score of an entity is the mean over all scores of its words."""

    tags: np.ndarray  # [W] label ids
    score_sums: np.ndarray  # [W] sums of the scores of a word
    num_scores: np.ndarray  # [W] how many scores a sum has


def vote(probabilities: np.ndarray, word_ids: np.ndarray, label_list: list[str], strategy: str) -> Votes:
    """probabilities [N, C] and word_ids [N] of subwords -> the tags and scores of W words.

    first           tag and score of the subword that represents the word (data.first_subwords)
    max             tag and score of the subword with the highest probability; of equal ones, the first
    average         the highest mean probability
    simple, none    the tag of `first`; the scores of all subwords, each for the type of that tag (the
                    pipeline splits words whose further subwords, which are not trained, have another tag)
    """
    starts = np.flatnonzero(np.diff(word_ids, prepend=-1))  # [W] the first subword of every word
    sizes = np.diff(np.append(starts, len(word_ids)))  # [W]
    if strategy == "average":
        chosen = np.add.reduceat(probabilities, starts) / sizes[:, None]  # [W, C]
    elif strategy == "max":
        highest = probabilities.max(-1)
        candidates = np.flatnonzero(highest == np.repeat(np.maximum.reduceat(highest, starts), sizes))
        is_first = np.diff(word_ids[candidates], prepend=-1) != 0
        chosen = probabilities[candidates[is_first]]
    else:
        chosen = probabilities[data.first_subwords(word_ids)]
    tags = chosen.argmax(-1)
    if strategy not in ("simple", "none"):
        return Votes(tags, chosen.max(-1), np.ones(len(tags), int))
    types = np.array([entity_type(name) for name in canonical(label_list)])
    same_type = types[:, None] == types  # [C, C]
    scores = np.where(same_type[np.repeat(tags, sizes)], probabilities, 0).max(-1)
    return Votes(tags, np.add.reduceat(scores, starts), sizes)


# ---------------------------------------------------------------------------------------------------------
# Evaluation of a labeled file


def training_flags(model: str) -> argparse.Namespace:
    """The data flags of the run that the model is from, and its --strict. Files are read as in training."""
    return argparse.Namespace(**read_settings(model, vars(data.get_args([])) | {"strict": False}))


def input_columns(args: argparse.Namespace) -> Columns:
    """The columns of --input_file: as in training, where no flag names them."""
    of_run = data.columns_of(training_flags(args.model))
    text, labels = args.text_column_name, args.label_column_name
    return dataclasses.replace(of_run, text=text or of_run.text, labels=labels or of_run.labels)


def evaluate(tagger: Tagger, args: argparse.Namespace, ranks: Ranks) -> None:
    """Prints the scores of --input_file as training measures them, and writes the error report."""
    flags = training_flags(args.model)
    source = open_file(args.input_file, input_columns(args))
    sentences, _ = read_source(source)
    statistics = tag_statistics(sentences, source.name)
    check_same_spelling(source.name, statistics.counts, tagger.label_list)
    others = sorted(set(statistics.counts) - set(tagger.label_list))
    label_list = make_label_list(set(), (*tagger.label_list, *others))  # of the model, then of the file
    scheme = decided_scheme(args.input_file, vars(flags), tagger.model.config)
    refuse_stray_tags({"file": (source, sentences)}, {"file": statistics}, scheme)
    tagger.tokenizer.model_max_length = tagger.window_size
    split = data.make_split(source, sentences, statistics, label_list, scheme, tagger.tokenizer, args.stride)
    split.convert_for(tagger.label_list)
    unknown = [label_list[i] for i in split.label_ids if i >= len(tagger.label_list)]  # scored, but never predicted

    def collate(features: list[dict]) -> dict:
        batch = data.collate(features, {"input_ids": tagger.tokenizer.pad_token_id or 0, "labels": data.IGNORED})
        batch["labels"].clamp_(max=len(tagger.label_list) - 1)  # unknown labels have no logit, hence no loss
        return batch

    batches = data.eval_batches(split.windows.lengths, args.batch_size, tagger.one_length)
    predictions = metrics.predict(
        tagger.model, split.windows, batches, collate=collate, autocast=tagger.autocast,
        token_loss=modeling.token_loss, rank=ranks.rank, world_size=ranks.world_size,
    )  # fmt: skip
    if predictions is None:  # not rank 0
        return
    predicted, probabilities, losses = predictions
    scores = metrics.score(split.tags, predicted, split.lengths, label_list, split.scheme, flags.strict)
    replace_unprintable(sys.stdout)
    never = [f"warning: the model never predicts {', '.join(unknown)}"] if unknown else []
    for line in [*data_report.checks_of_file(split, tagger.window_size), *never]:
        print(line, file=sys.stderr)
    loss = "" if unknown else f", loss {losses.mean(dtype=np.float64):.4f}"
    print(f"{args.input_file}: {len(predicted):,} words{loss}, accuracy {with_interval(scores, 'accuracy')}")
    print(metrics.table(scores))
    if args.output_file:
        title, train_entities = f"{args.model} on {args.input_file}", None
        with contextlib.suppress(ValueError, OSError):  # the files of the run may no longer be there
            train_entities = data.load_splits(flags, tagger.tokenizer)["train"].entities
        page = report.render_report(title, scores, split, predicted, probabilities, train_entities)
        atomic_write_text(args.output_file, page)


# ---------------------------------------------------------------------------------------------------------
# Command line


def get_args() -> argparse.Namespace:
    """Raises ValueError for invalid flags."""
    parser = ArgumentParser(description=__doc__, formatter_class=OneLineHelp)
    add = parser.add_argument
    add("model", help="folder that train.py wrote, or Hub id of any token-classification model")
    add("text", nargs="*", help="or --input_file")
    add("--input_file", help="a text a line, JSON Lines, or any format of train.py; -: stdin")
    add("--text_column_name", help="column of words or text (as in training)")
    add("--label_column_name", help="column of tags or spans (as in training)")
    add("--output_file", help="instead of standard output; with --evaluate, the error report (HTML)")
    add("--aggregation_strategy", choices=STRATEGIES, default="simple", help="how subwords vote")
    add("--format", choices=documents.OUTPUT_FORMATS, help="json: an object a line; conll: a tag a word")
    add("--evaluate", action="store_true", help="score a labeled --input_file")
    add("--skip_bad_lines", action="store_true", help="write bad lines of text and JSON Lines to OUTPUT_FILE.errors")
    add("--stride", type=non_negative_int, help="subwords by which windows overlap (as in training, 64)")
    add("--batch_size", type=positive_int, default=32, help="windows, at most 32,768 tokens")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 if supported")
    args = parser.parse_args()
    if bool(args.text) == bool(args.input_file):
        parser.error("pass either TEXT or --input_file")
    if (args.evaluate or args.output_file) and args.input_file in (None, "-"):
        parser.error("--evaluate and --output_file need an --input_file that is not standard input")
    if args.skip_bad_lines and not args.output_file:
        parser.error("--skip_bad_lines needs an --output_file")
    if args.input_file not in (None, "-") and not os.path.isfile(args.input_file):
        raise ValueError(f"{args.input_file}: no such file")
    args.format = args.format or documents.output_format(args.output_file or "")
    flags = training_flags(args.model)
    args.stride = flags.stride if args.stride is None else args.stride
    args.is_named = any((args.text_column_name, args.label_column_name, is_file_of_run(args.input_file, vars(flags))))
    return args


@exit_on_error
def main() -> None:
    quiet(progress=False)
    exit_on_error.batch_flag = "--batch_size"
    ranks = get_ranks()
    args = get_args()
    tagger = Tagger(args.model, args.batch_size, args.stride, args.precision)
    if ranks.world_size > 1:
        join_process_group(ranks, timedelta(minutes=30))
    if args.evaluate:
        evaluate(tagger, args, ranks)
        return

    if args.text:
        texts = documents.open_texts(args.text)
    else:
        texts = documents.open_input(args.input_file, input_columns(args), args.is_named)
    on_terminal = sys.stdout.isatty() and not args.output_file
    job = TagJob(tagger, args.aggregation_strategy, texts, args.format, args.skip_bad_lines, on_terminal)
    if not args.output_file:
        tag_stream(job)
        return
    flags = ("aggregation_strategy", "format", "stride", "precision", "skip_bad_lines")
    fingerprint = {"model": tagger_digest(tagger)} | {f"--{name}": getattr(args, name) for name in flags}
    is_new = tag_file(job, args.output_file, fingerprint, ranks.rank, ranks.world_size)
    if ranks.rank == 0 and not is_new:
        print(f"{args.output_file} is complete already", file=sys.stderr)


if __name__ == "__main__":
    record(main)()
