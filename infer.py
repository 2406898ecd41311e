"""Tag text with a trained model: entities with their character offsets and scores.

python infer.py outputs "My name is Sylvain and I work at Hugging Face in Brooklyn."
python infer.py outputs --input_file articles.jsonl --output_file tagged.jsonl    # again: goes on where it was
torchrun --nproc-per-node=4 infer.py outputs --input_file articles.jsonl --output_file tagged.jsonl
python infer.py outputs --input_file test.conll --evaluate --output_file report.html

from infer import Tagger
tagger = Tagger("outputs")
tagger("Maria lives in Oslo.")   # [{"entity_group": "PER", "score": 0.99, "word": "Maria", "start": 0, "end": 5}, ...]
"""

import argparse
import colorsys
import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm

import data
import metrics
import model as network

STRATEGIES = ("none", "simple", "first", "average", "max")
FORMATS = ("text", "json", "conll", "html")
CHUNK = 1024  # documents that are read, sorted by length, tagged and written together


def type_of(label: str) -> str:
    """B-PER -> PER; a tag without a prefix (NOUN, O) is a type of its own."""
    return label[2:] if re.match("[BIESLU]-", label) else label


class Document(NamedTuple):
    text: str
    words: list[tuple[int, int]]  # (start, end) of each in the text
    record: dict  # what else came with it

    @classmethod
    def of_text(cls, text: str, record: dict | None = None):
        return cls(text, data.split_words(text), record or {})

    @classmethod
    def of_words(cls, words: list[str], record: dict | None = None):
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        return cls(" ".join(words), [(int(end) - len(word), int(end)) for word, end in zip(words, ends)], record or {})


# ----------------------------------------------------------------------------------------------------------------------
# Documents -> entities


class Tagger:
    """A saved token-classification model (folder or Hub id); called with texts, it answers as transformers'
    token-classification pipeline does, but reads texts of any length and never splits a word."""

    def __init__(self, model_name_or_path: str, batch_size: int = 32, stride: int = 64, precision: str = "auto"):
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        self.device = self.device if torch.cuda.is_available() else torch.device("cpu")
        self.tokenizer = data.load_tokenizer(model_name_or_path)
        self.model = network.load(model_name_or_path).to(self.device).eval()
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.autocast = network.autocast(network.pick_precision(precision, self.device), self.device)
        self.size = data.max_length(self.tokenizer, self.model.config)
        self.batch_size, self.stride = batch_size, stride

    def __call__(self, texts: str | list[str], aggregation_strategy: str = "simple") -> list:
        """str -> its entities; list of str -> a list of such lists. Entities: entity_group, score, word, start, end
        (with none, every subword by itself: entity, score, index, word, start, end)."""
        if aggregation_strategy not in STRATEGIES:
            raise ValueError(f"aggregation_strategy {aggregation_strategy!r}: one of {', '.join(STRATEGIES)}")
        if not isinstance(texts, str) and not texts:
            raise ValueError("no text to tag")
        documents = [Document.of_text(text) for text in ([texts] if isinstance(texts, str) else texts)]
        found, _ = self.tag(documents, aggregation_strategy)
        return found[0] if isinstance(texts, str) else found

    def tag(self, documents: list[Document], strategy: str = "simple") -> tuple[list[list[dict]], list[list[str]]]:
        """The entities of each document, and the tags of its words."""
        words = [[document.text[start:end] for start, end in document.words] for document in documents]
        probabilities, first = self.probabilities(words)
        tags, scores, count = vote(probabilities, first, self.labels, strategy)
        lengths = np.array([len(document.words) for document in documents], int)
        ends = np.cumsum(lengths)
        names = [self.labels[tag] for tag in tags]
        names = [names[end - length : end] for end, length in zip(ends, lengths)]
        if strategy == "none":
            return self._subwords(documents, words, probabilities, first), names

        # A tag without a prefix (NOUN) is a type of its own; neighbours of one type are one entity, as in the pipeline.
        labels = [label if label == "O" or type_of(label) != label else f"I-{label}" for label in self.labels]
        found = [[] for _ in documents]
        spans = data.entity_spans(tags, lengths, labels)
        totals, counts = (np.add.reduceat(np.append(x, 0), spans.ravel())[::2] for x in (scores, count))
        owners = np.searchsorted(ends, spans[:, 0], side="right")
        for (begin, end), document, total, number in zip(spans.tolist(), owners.tolist(), totals, counts):
            text, offset = documents[document].text, ends[document] - lengths[document]
            start, stop = documents[document].words[begin - offset][0], documents[document].words[end - offset - 1][1]
            entity = {"entity_group": labels[tags[begin]][2:], "score": float(total / number)}
            found[document].append(entity | {"word": text[start:stop], "start": start, "end": stop})
        return found, names

    @torch.inference_mode()
    def probabilities(self, sentences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Words of each sentence -> the softmax over labels of all subwords [N, C], word by word, and for each word
        its first one [W]. Every word has one at least; of words longer than a window only the window's are here."""
        special = data.special_tokens(self.tokenizer)
        rows, offset = [], 0
        for words, (input_ids, word_ids, _) in zip(sentences, data.encode(sentences, self.tokenizer)):
            for window, owned in data.cut(input_ids, word_ids, special, self.size, self.stride):
                rows.append((window, np.where(owned < 0, -100, owned + offset)))
            offset += len(words)
        found, owners = [np.empty((0, len(self.labels)), np.float32)], [np.empty(0, int)]
        for ids in data.eval_batches(np.array([len(window) for window, _ in rows], int), self.batch_size):
            batch = data.collate([rows[i] for i in ids], self.tokenizer.pad_token_id or 0)
            word_of = batch.pop("labels")  # [B, L]
            with self.autocast:
                logits = self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).logits
            inside = word_of >= 0
            found.append(logits[inside.to(self.device)].float().softmax(-1).cpu().numpy())
            owners.append(word_of[inside].numpy())
        owners = np.concatenate(owners)
        order = np.argsort(owners, kind="stable")  # a word is in one window alone, its subwords in their order
        first = np.flatnonzero(np.diff(owners[order], prepend=-1))
        assert len(first) == offset, f"{len(first)} of {offset} words tagged"
        return np.concatenate(found)[order], first

    def _subwords(self, documents, words, probabilities, first) -> list[list[dict]]:
        """What aggregation_strategy none says of each subword that is not O."""
        ids, scores = probabilities.argmax(-1), probabilities.max(-1)
        sizes, before = np.diff(np.append(first, len(ids))), len(data.special_tokens(self.tokenizer)[0])
        found, word, at = [], 0, 0
        for document, offsets in zip(documents, data.subword_offsets(words, self.tokenizer)):
            found.append([])
            index = before
            for (start, _), pieces in zip(document.words, offsets):
                for begin, end in pieces[: sizes[word]]:
                    if self.labels[ids[at]] != "O":
                        entity = {"entity": self.labels[ids[at]], "score": float(scores[at]), "index": index}
                        entity["word"] = document.text[start + begin : start + end]
                        found[-1].append(entity | {"start": start + begin, "end": start + end})
                    at, index = at + 1, index + 1
                index += max(0, len(pieces) - int(sizes[word]))
                word += 1
        return found


def vote(probabilities: np.ndarray, first: np.ndarray, labels: list[str], strategy: str) -> tuple[np.ndarray, ...]:
    """Subwords [N, C], each word's first one [W] -> the words' tags [W], and the scores that each brings into its
    entity's mean: their sum [W] and their number [W].

    first: the first subword's. max: that of the surest subword. average: argmax of the mean. simple, none: the tag of
    the first, and every subword's score for that type (the pipeline lets later subwords, never trained, break a word).
    """
    sizes = np.diff(np.append(first, len(probabilities)))
    if strategy == "average":
        chosen = np.add.reduceat(probabilities, first) / sizes[:, None]
    elif strategy == "max":
        sure = probabilities.max(-1)
        surest = np.flatnonzero(sure == np.repeat(np.maximum.reduceat(sure, first), sizes))
        word = np.searchsorted(first, surest, side="right")
        chosen = probabilities[surest[np.diff(word, prepend=0) != 0]]  # of equals the first
    else:
        chosen = probabilities[first]
    tags = chosen.argmax(-1)
    if strategy not in ("simple", "none"):
        return tags, chosen.max(-1), np.ones(len(first), int)
    kinds = np.array([type_of(label) for label in labels])
    same = kinds[:, None] == kinds
    scores = np.where(same[np.repeat(tags, sizes)], probabilities, 0).max(-1)
    return tags, np.add.reduceat(scores, first), sizes


# ----------------------------------------------------------------------------------------------------------------------
# Files in: text (a document a line), JSON Lines with "text" or "tokens", CoNLL (words in the first column)

SUFFIXES = {".jsonl": "json", ".ndjson": "json", ".json": "json"} | dict.fromkeys(
    (".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv"), "conll"
)


def kind_of(name: str, beginning: bytes) -> str:
    """text, json or conll, by the file's name, or where that says nothing by whether an object comes first."""
    begins = "json" if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "text"
    return SUFFIXES.get(Path(name).suffix.lower(), begins)


def raw_documents(stream, kind: str):
    """Yields (number of its first line, its lines) of every document, in bytes. Empty lines are documents of a text."""
    lines = ((number, line.rstrip(b"\r\n")) for number, line in enumerate(stream, 1))
    lines = ((number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line) for number, line in lines)
    if kind != "conll":
        yield from ((number, [line]) for number, line in lines if line.strip() or kind == "text")
        return
    for ends, group in itertools.groupby(lines, lambda line: not line[1].strip() or line[1].startswith(b"-DOCSTART-")):
        if not ends:
            numbers, sentence = zip(*group)
            yield numbers[0], list(sentence)


def parse(kind: str, lines: list[bytes]) -> Document:
    """ValueError on what is no document."""
    decoded = [line.decode("utf-8") for line in lines]
    if kind == "text":
        return Document.of_text(decoded[0])
    if kind == "conll":
        decoded = [line.strip("\r\n\t ") for line in decoded]  # as data.py does: a no-break space is part of a word
        rows = [line.split("\t") if "\t" in line else line.split(" ") for line in decoded]
        while len(rows) > 1 and rows[0][0].startswith("#") and len(rows[0]) != len(rows[-1]):
            del rows[0]  # comments
        if len(rows[0]) == 10 and rows[0][0][0].isdigit():  # CoNLL-U
            rows = [row[1:] for row in rows if row[0].isdigit()]
        return Document.of_words([row[0] for row in rows])
    try:
        found = json.loads(decoded[0], parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(found, dict) or not {"text", "tokens"} & found.keys():
        raise ValueError('no object with "text" or "tokens"')
    json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    if isinstance(found.get("text"), str):
        return Document.of_text(found["text"], found)
    if "text" not in found and isinstance(found["tokens"], list) and all(isinstance(w, str) for w in found["tokens"]):
        return Document.of_words(found["tokens"], found)
    raise ValueError('"text" has to be a string, "tokens" a list of strings')


def _no_json(constant: str):
    raise ValueError(f"{constant} is no JSON")


def chunks(stream, kind: str):
    """Yields lists of CHUNK raw documents: memory does not grow with the input."""
    documents = raw_documents(stream, kind)
    while chunk := list(itertools.islice(documents, CHUNK)):
        yield chunk


# ----------------------------------------------------------------------------------------------------------------------
# Entities out


def show(document: Document, entities: list[dict], tags: list[str], style: str, hue: dict, terminal: bool) -> str:
    """One document in one of FORMATS; hue: of each type and each tag."""
    if style == "json":
        rounded = [entity | {"score": round(entity["score"], 6)} for entity in entities]
        fields = {"text": document.text} | document.record | {"entities": rounded}
        return json.dumps(fields, ensure_ascii=False) + "\n"
    if style == "conll":
        lines = [f"{document.text[start:end]}\t{tag}\n" for (start, end), tag in zip(document.words, tags)]
        return "".join(lines) + "\n"
    spans = [(e["start"], e["end"], e.get("entity_group") or e["entity"]) for e in entities]
    if style == "html":
        scores = [f"{entity['score']:.4f}" for entity in entities]
        return f"<article>{metrics.marked(document.text, spans, hue, scores)}</article>\n"
    line, at = "", 0
    for start, end, kind in spans if terminal else []:
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue[kind] / 360, 0.55, 0.8))
        line += f"{document.text[at:start]}\033[1;38;2;{red};{green};{blue}m{document.text[start:end]}\033[0m"
        at = end
    lines = [line + document.text[at:]]
    for entity, (start, end, kind) in zip(entities, spans):
        lines.append(f"  {f'{start}-{end}':>13}  {kind:8} {entity['score']:.4f}  {entity['word']}")
    return "\n".join(lines) + "\n"


def answer(tagger: Tagger, chunk: list, kind: str, args, terminal: bool = False) -> tuple[str, str]:
    """Raw documents -> what is written for them, and for those that are none (--skip_bad_lines), in input order."""
    documents, bad = [], []
    for number, lines in chunk:
        try:
            documents.append(parse(kind, lines))
        except ValueError as error:
            if not args.skip_bad_lines:
                raise ValueError(f"{args.input_file}:{number}: {error}") from None
            text = b"\n".join(lines).decode("utf-8", "backslashreplace")
            bad.append(json.dumps({"line": number, "error": str(error), "text": text}) + "\n")
    hue = metrics.hues({type_of(label) for label in tagger.labels})
    hue |= {label: hue[type_of(label)] for label in tagger.labels}
    answers = zip(documents, *tagger.tag(documents, args.aggregation_strategy))
    return "".join(show(*answer, args.format, hue, terminal) for answer in answers), "".join(bad)


def around(args) -> tuple[str, str]:
    """What stands before and behind the documents."""
    title = args.input_file or "tagged"
    return (metrics.page_head(title) + metrics.FILTER, metrics.PAGE_END) if args.format == "html" else ("", "")


def tag_stream(tagger: Tagger, chunks, kind: str, args) -> None:
    """To standard output, a chunk at a time."""
    head, end = around(args)
    try:
        print(head, end="")
        for chunk in chunks:
            print(answer(tagger, chunk, kind, args, sys.stdout.isatty())[0], end="", flush=True)
        print(end, end="")
    except BrokenPipeError:  # infer.py ... | head; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ----------------------------------------------------------------------------------------------------------------------
# A file to a file, by any number of processes, any of which may die: a chunk's answers are a file of their own that
# appears whole.


def identity(path: str, kind: str, tagger: Tagger, args) -> tuple[dict, int]:
    """All that the output depends on, and the number of documents. ValueError at the first bad one."""
    model, content, number = hashlib.sha256(), hashlib.sha256(), 0
    for name, tensor in tagger.model.state_dict().items():
        model.update(name.encode())
        model.update(tensor.cpu().contiguous().numpy())
    model.update(repr(tagger.labels).encode() + tagger.tokenizer.backend_tokenizer.to_str().encode())
    with open(path, "rb") as file:
        for at, lines in raw_documents(file, kind):
            number += 1
            content.update(b"\n".join(lines) + b"\n")
            try:
                args.skip_bad_lines or parse(kind, lines)
            except ValueError as error:
                raise ValueError(f"{path}:{at}: {error}") from None
    flags = ("aggregation_strategy", "format", "stride", "precision", "skip_bad_lines")
    flags = {f"--{name}": getattr(args, name) for name in flags}
    return {"model": model.hexdigest(), "input": content.hexdigest(), **flags}, number


def open_output(out: str, this: dict) -> bool:
    """Whether there is anything to do. ValueError if what is there is of another model, input or flags."""
    mine = f"{out}.run.json"
    if os.path.exists(mine):
        with open(mine, encoding="utf-8") as file:
            before = json.load(file)
        different = [name for name in this if this[name] != before.get(name)]
        if different:
            raise ValueError(f"{out}: of another {different[0]} ({mine}); choose another --output_file or remove both")
    elif os.path.exists(out):
        raise ValueError(f"{out}: is there already; choose another --output_file or remove it")
    else:
        for parts in glob.glob(f"{glob.escape(out)}.*.parts"):  # of an output that somebody gave up
            shutil.rmtree(parts)
        network.write_whole(mine, json.dumps(this, indent=2))
    return not os.path.exists(out)


def tag_file(tagger: Tagger, kind: str, args, rank: int, world_size: int) -> bool:
    """args.input_file -> args.output_file, and with --skip_bad_lines its bad lines to args.output_file.errors.

    -> whether there was anything to do. ValueError if the output is of another model, input or flags.
    """
    out = args.output_file
    this, number = identity(args.input_file, kind, tagger, args)
    parts, last = f"{out}.{hashlib.sha256(json.dumps(this).encode()).hexdigest()[:8]}.parts", -(-number // CHUNK)
    if not network.from_rank_0(open_output, out, this):
        return False
    os.makedirs(parts, exist_ok=True)

    def part(i: int) -> str:
        return os.path.join(parts, f"{i:08}")

    bar = tqdm(total=number, unit=" lines", disable=rank > 0 or not sys.stderr.isatty())
    with open(args.input_file, "rb") as file:
        for i, chunk in enumerate(chunks(file, kind)):
            if i % world_size == rank and not os.path.exists(part(i)):
                answers, bad = answer(tagger, chunk, kind, args)
                if args.skip_bad_lines:
                    network.write_whole(part(i) + ".errors", bad)
                network.write_whole(part(i), answers)
            if world_size > 1 and i % (8 * world_size) == 0:
                dist.barrier()  # ranks that are gone are missed soon, not at the end
            bar.update(len(chunk))
    bar.close()
    if world_size > 1:
        dist.barrier()
        _send_parts(parts, last, rank, world_size)
    if rank == 0:
        if args.skip_bad_lines:
            _join(f"{out}.errors", [part(i) + ".errors" for i in range(last)])
        _join(out, [part(i) for i in range(last)], *around(args))
        shutil.rmtree(parts)
    return True


def _send_parts(parts: str, last: int, rank: int, world_size: int) -> None:
    """From ranks that do not share rank 0's disk: what it does not see there."""
    sent = False
    for i in network.from_rank_0(_missing, parts, last):
        paths = [os.path.join(parts, f"{i:08}{suffix}") for suffix in ("", ".errors")]
        if rank == i % world_size:
            texts = [Path(path).read_bytes().decode() if os.path.exists(path) else None for path in paths]
            dist.send_object_list(texts, 0)
            sent = True
        elif rank == 0:
            texts = [None, None]
            dist.recv_object_list(texts, i % world_size)
            for path, text in zip(paths, texts):
                if text is not None:
                    network.write_whole(path, text)
    dist.barrier()
    if sent:
        shutil.rmtree(parts, ignore_errors=True)


def _missing(parts: str, last: int) -> list[int]:
    return [i for i in range(last) if not os.path.exists(os.path.join(parts, f"{i:08}"))]


def _join(path: str, parts: list[str], head: str = "", end: str = "") -> None:
    with open(path + ".new", "wb") as whole:
        whole.write(head.encode())
        for name in parts:
            with open(name, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.write(end.encode())
        whole.flush()
        os.fsync(whole.fileno())
    os.replace(path + ".new", path)


# ----------------------------------------------------------------------------------------------------------------------
# A labelled file -> scores and report.html


def run_settings(model: str) -> tuple[data.DataArguments, bool]:
    """The data flags of the run that the model is from (its files are read as they were in training), and --strict."""
    path, settings = os.path.join(model, "train_config.yaml"), {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    known = data.DataArguments.__dataclass_fields__.keys() & settings.keys()
    return data.DataArguments(**{name: settings[name] for name in known}), settings.get("strict", False)


def evaluate(tagger: Tagger, args, rank: int, world_size: int) -> None:
    """Scores args.input_file as training's evaluation does; args.output_file says where the model errs."""
    flags, strict = run_settings(args.model)
    sentences, _ = data.read_file(args.input_file, flags)
    unknown = sorted({*data.used_tags(sentences)} - {*tagger.labels})  # scored, and never predicted
    labels = [*tagger.labels, *unknown]
    tagger.tokenizer.model_max_length = tagger.size
    split = data.make_split(args.input_file, sentences, labels, tagger.tokenizer, args.stride)
    batches = data.eval_batches(split.rows.lengths, args.batch_size)

    def collate(rows):
        batch = data.collate(rows, tagger.tokenizer.pad_token_id or 0)
        batch["labels"].clamp_(max=len(tagger.labels) - 1)  # of unknown ones no loss is said
        return batch

    found = metrics.predict(tagger.model, split.rows, batches, collate, tagger.autocast, rank, world_size)
    if rank > 0:
        return
    tags, probabilities, losses = found
    measured = metrics.score(split.tags, tags, split.lengths, labels, split.scheme, strict)
    for note in [*split.notes, *[f"the model never predicts {', '.join(unknown)}"] * bool(unknown)]:
        print(f"note: {note}", file=sys.stderr)
    loss = "" if unknown else f", loss {losses.mean(dtype=np.float64):.4f}"
    print(
        f"{args.input_file}: {len(tags):,} words{loss}, accuracy {measured['accuracy']:.4f}\n{metrics.table(measured)}"
    )
    if args.output_file:
        known = None
        with contextlib.suppress(ValueError, OSError):  # the files of the run may be elsewhere now
            splits, own = data.read_splits(flags)
            known = data.make_split(*splits["train"], own, tagger.tokenizer, args.stride).entities(own)
        page = metrics.report(f"{args.model} on {args.input_file}", measured, split, labels, tags, probabilities, known)
        network.write_whole(args.output_file, page)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def parse_arguments() -> argparse.Namespace:
    """ValueError on what makes no sense."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="folder that train.py wrote, or Hub id of any token-classification model")
    add("text", nargs="*")
    add("--input_file", help="text (a document a line), JSON Lines (text or tokens), CoNLL; -: standard input")
    add("--output_file", help="instead of standard output; with --evaluate the error report, a page")
    add("--aggregation_strategy", choices=STRATEGIES, default="simple", help="how a word's subwords vote (simple)")
    add(
        "--format", choices=FORMATS, help="text; json, an object a line; conll, a tag a word; html (by the file's name)"
    )
    add("--evaluate", action="store_true", help="score a labelled --input_file of any format train.py reads")
    add("--skip_bad_lines", action="store_true", help="into OUTPUT_FILE.errors; else the first is an error")
    add("--stride", type=int, help="subwords by which windows overlap (as in training, 64)")
    add("--batch_size", type=int, default=32, help="rows (32)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="(auto)")
    args = parser.parse_args()
    if bool(args.text) == bool(args.input_file):
        parser.error("either TEXT or --input_file")
    if (args.evaluate or args.output_file) and args.input_file in (None, "-"):
        parser.error("--evaluate and --output_file need an --input_file, which goes on where it was")
    if args.batch_size < 1 or (args.stride or 0) < 0:
        parser.error("--batch_size has to be above 0, --stride 0 or more")
    if args.skip_bad_lines and not args.output_file:
        parser.error("--skip_bad_lines needs an --output_file")
    return args


@network.lost_ranks_exit()
def main() -> None:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    data.quiet(progress=False)
    with data.errors_exit(2):
        args = parse_arguments()
        ending = Path(args.output_file or "").suffix
        args.format = args.format or {".html": "html"}.get(ending) or SUFFIXES.get(ending, "text")
        if args.input_file not in (None, "-") and not os.path.isfile(args.input_file):
            raise ValueError(f"{args.input_file}: no such file")
        if args.stride is None:
            args.stride = run_settings(args.model)[0].stride
        tagger = Tagger(args.model, args.batch_size, args.stride, args.precision)
        if world_size > 1:
            network.join_process_group("gloo", rank, world_size, timedelta(minutes=30))
        if args.evaluate:
            evaluate(tagger, args, rank, world_size)
        elif args.output_file:
            with open(args.input_file, "rb") as file:
                kind = kind_of(args.input_file, file.read(1 << 16))
            new = tag_file(tagger, kind, args, rank, world_size)
            if rank == 0 and not new:
                print(f"{args.output_file} holds these answers already", file=sys.stderr)
        elif args.input_file:
            with open(args.input_file, "rb") if args.input_file != "-" else sys.stdin.buffer as stream:
                kind = kind_of(args.input_file, stream.peek())
                tag_stream(tagger, chunks(stream, kind), kind, args)
        else:
            texts = [(i, [text.encode("utf-8", "surrogateescape")]) for i, text in enumerate(args.text, 1)]
            tag_stream(tagger, [texts], "text", args)


if __name__ == "__main__":
    record(main)()
