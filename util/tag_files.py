"""Tags documents as a stream, or from file to file by many processes that may be killed at any moment.

Documents are read and tagged in chunks. When a file is tagged, the output of every chunk is a file in
OUTPUT.*.parts, written atomically. The same command tags the missing chunks only, and then joins all.
OUTPUT.run.json identifies the model, the input and the flags that the output belongs to.
"""

import glob
import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from tqdm import tqdm

from util import report
from util.distributed import on_rank0
from util.documents import Document, Input, RawDocument, format_document
from util.run_dir import atomic_write_text, first_difference, read_json
from util.tag_spelling import canonical, entity_type


def tagger_digest(tagger) -> str:
    """SHA-256 of the weights, the labels and the tokenizer of an infer.Tagger."""
    digest = hashlib.sha256()
    for name, tensor in tagger.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    digest.update(repr(tagger.label_list).encode())
    digest.update(tagger.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()


@dataclass
class TagJob:
    """Which model tags what, and how the result is written."""

    tagger: Any  # an infer.Tagger
    strategy: str
    input: Input
    output_format: str
    skip_bad_lines: bool  # else an invalid document is an error
    on_terminal: bool = False

    def tag(self, documents: list[Document]) -> str:
        """Documents -> their lines of output."""
        types = [entity_type(name) for name in canonical(self.tagger.label_list)]
        colors = report.type_colors(set(types))
        colors |= {label: colors[name] for label, name in zip(self.tagger.label_list, types)}
        lines = []
        for document, tagged in zip(documents, self.tagger.tag(documents, self.strategy)):
            lines.append(format_document(document, tagged, self.output_format, colors, self.on_terminal))
        return "".join(lines)

    def page_start(self) -> str:
        return report.page_start(self.input.name) if self.output_format == "html" else ""

    def page_end(self) -> str:
        return report.page_end() if self.output_format == "html" else ""


class ChunkOutput(NamedTuple):
    text: str
    bad_lines: str  # JSON Lines


def tag_chunk(job: TagJob, chunk: list[RawDocument]) -> ChunkOutput:
    documents, bad_lines = _parse_chunk(job, chunk)
    return ChunkOutput(job.tag(documents), "".join(json.dumps(line) + "\n" for line in bad_lines))


def _parse_chunk(job: TagJob, chunk: list[RawDocument]) -> tuple[list[Document], list[dict]]:
    """The valid and the invalid documents. Without skip_bad_lines, raises ValueError for an invalid one."""
    documents, bad_lines = [], []
    for raw in chunk:
        try:
            documents.append(job.input.parse(raw))
        except ValueError as error:
            if not job.skip_bad_lines:
                raise ValueError(f"{job.input.name}:{raw.number}: {job.input.describe(error)}") from None
            text = raw.as_bytes().decode("utf-8", "backslashreplace")
            bad_lines.append({"line": raw.number, "error": str(error), "text": text})
    return documents, bad_lines


class _StopRequest:
    """A handler of signals: the first one that arrives during a write waits for its end, so that no document is cut."""

    def __init__(self):
        self.number = 0  # of the signal that waits
        self.is_writing = False

    def __call__(self, number, frame) -> None:
        if not self.is_writing or self.number:
            raise SystemExit(128 + number)
        self.number = number

    def write(self, text: str) -> None:
        self.is_writing = True
        try:
            print(text, end="", flush=True)
        finally:
            self.is_writing = False
        if self.number:
            raise SystemExit(128 + self.number)


def tag_stream(job: TagJob) -> None:
    """Tags to standard output, one chunk at a time. After an error or a signal, a page still gets its closing tags."""
    stop = _StopRequest()
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            stop.write(job.page_start())
            for chunk in job.input.chunks():
                stop.write(tag_chunk(job, chunk).text)
        finally:
            stop.write(job.page_end())
    except BrokenPipeError:  # infer.py ... | head: the rest of the buffer is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------
# Files


def tag_file(job: TagJob, output_file: str, fingerprint: dict, rank: int = 0, world_size: int = 1) -> bool:
    """Tags a file. All ranks call it. With skip_bad_lines, invalid documents are written to OUTPUT.errors.

    fingerprint: what the output depends on, besides the input. Returns False if the output is complete
    already. Raises ValueError for an invalid document, before anything is written, and for an output that has
    another fingerprint.
    """
    input_digest, chunk_sizes = _check_input(job)
    fingerprint = fingerprint | {"input": input_digest}
    if not on_rank0(_claim_output, output_file, fingerprint):
        return False
    key = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:8]
    folder = f"{output_file}.{key}.parts"
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"{i:08}") for i in range(len(chunk_sizes))]

    progress = tqdm(total=sum(chunk_sizes), unit=" documents", disable=rank > 0 or not sys.stderr.isatty())
    for i, chunk in enumerate(job.input.chunks()):
        if i % world_size == rank and not os.path.exists(paths[i]):
            output = tag_chunk(job, chunk)
            if job.skip_bad_lines:
                atomic_write_text(paths[i] + ".errors", output.bad_lines)
            atomic_write_text(paths[i], output.text)  # last: a chunk is finished if this file exists
        if world_size > 1 and i % (8 * world_size) == 0:
            dist.barrier()  # so that a lost rank is noticed soon
        progress.update(len(chunk))
    progress.close()
    if world_size > 1:
        dist.barrier()
        _send_parts(paths, rank, world_size)
    if rank == 0:
        if job.skip_bad_lines:
            _join(f"{output_file}.errors", [path + ".errors" for path in paths])
        _join(output_file, paths, job.page_start(), job.page_end())
        shutil.rmtree(folder)
    return True


def _check_input(job: TagJob) -> tuple[str, list[int]]:
    """A checksum of the input, and the sizes of its chunks. Raises ValueError for an invalid document."""
    digest, chunk_sizes = hashlib.sha256(), []
    for chunk in job.input.chunks():
        chunk_sizes.append(len(chunk))
        _parse_chunk(job, chunk)
        for raw in chunk:
            digest.update(raw.as_bytes() + b"\n")
    return digest.hexdigest(), chunk_sizes


def _claim_output(output_file: str, fingerprint: dict) -> bool:
    """Whether there is anything to do. Raises ValueError if the output does not belong to this job."""
    record = f"{output_file}.run.json"
    if os.path.exists(record):
        difference = first_difference(read_json(record), fingerprint)
        if difference:
            advice = f"choose another --output_file, or remove it and {record}"
            raise ValueError(f"{output_file}: holds another output: {difference}; {advice}")
    elif os.path.exists(output_file):
        raise ValueError(f"{output_file}: exists already; choose another --output_file, or remove it")
    else:
        for parts in glob.glob(f"{glob.escape(output_file)}.*.parts"):  # of an output that was removed
            shutil.rmtree(parts)
        atomic_write_text(record, json.dumps(fingerprint, indent=2))
    return not os.path.exists(output_file)


def _send_parts(paths: list[str], rank: int, world_size: int) -> None:
    """Sends rank 0 the parts that its disk does not have, since ranks may run on several hosts."""
    sent = False
    for i in on_rank0(_missing, paths):
        names = [paths[i], paths[i] + ".errors"]
        if rank == i % world_size:
            dist.send_object_list([_read_if_exists(name) for name in names], 0)
            sent = True
        elif rank == 0:
            texts: list[str | None] = [None, None]
            dist.recv_object_list(texts, i % world_size)
            for name, text in zip(names, texts):
                if text is not None:
                    atomic_write_text(name, text)
    dist.barrier()
    if sent:
        shutil.rmtree(os.path.dirname(paths[0]), ignore_errors=True)


def _missing(paths: list[str]) -> list[int]:
    return [i for i, path in enumerate(paths) if not os.path.exists(path)]


def _read_if_exists(path: str) -> str | None:
    return Path(path).read_bytes().decode() if os.path.exists(path) else None


def _join(path: str, parts: list[str], before: str = "", after: str = "") -> None:
    """Concatenates files atomically."""
    with open(path + ".new", "wb") as whole:
        whole.write(before.encode())
        for name in parts:
            with open(name, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.write(after.encode())
        whole.flush()
        os.fsync(whole.fileno())
    os.replace(path + ".new", path)
