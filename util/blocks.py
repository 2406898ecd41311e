"""Large sources are read in blocks, by several processes: each block becomes an Arrow file of sentences."""

import contextlib
import hashlib
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import NamedTuple

import pyarrow as pa
from datasets.utils import tqdm

from util.annotations import FEATURES, Columns, sentences
from util.formats import Reader
from util.lines import BLANKS, Block
from util.workers import exit_with_parent

BLOCK_SIZE = 16 * 2**20  # bytes at least, about 70,000 sentences
ROWS_PER_BLOCK = 100_000  # at least, of formats without lines
MAX_BLOCKS = 256  # of a source, since the Arrow file of every block stays open
WRITE_BATCH_SIZE = 1000  # sentences that are in memory before they are written


def cut_into_blocks(path: str, block_ends_at: str | None, block_size: int = 0) -> tuple[list[Block], str]:
    """A file -> its blocks, and the SHA-256 of its content.

    block_ends_at: "line", "empty line", or None for a format that is read as one block.
    block_size: minimum number of bytes; 0: BLOCK_SIZE, or more for a very large file.
    """
    blocks, digest, line, size = [], hashlib.sha256(), 1, os.path.getsize(path)
    block_size = block_size or max(BLOCK_SIZE, size // MAX_BLOCKS)
    with open(path, "rb") as file:
        while file.tell() < size:
            start, first_line = file.tell(), line
            for piece in _block_pieces(file, block_ends_at, block_size):
                digest.update(piece)
                line += piece.count(b"\n")
            blocks.append(Block(start, file.tell(), first_line))
    return blocks if block_ends_at else [Block(0, size)], digest.hexdigest()


def row_blocks(num_rows: int) -> list[Block]:
    """A table of num_rows rows -> blocks of rows."""
    size = max(ROWS_PER_BLOCK, num_rows // MAX_BLOCKS)
    return [Block(row, min(row + size, num_rows), first_row=row) for row in range(0, num_rows, size)]


def row_group_blocks(group_sizes: list[int]) -> list[Block]:
    """The numbers of rows in the row groups of a Parquet file -> blocks of consecutive row groups.

    For 3 groups of 60,000 rows: [Block(0, 2, first_row=0), Block(2, 3, first_row=120_000)].
    """
    min_rows = max(ROWS_PER_BLOCK, sum(group_sizes) // MAX_BLOCKS)
    blocks, start, first_row, row = [], 0, 0, 0
    for end, size in enumerate(group_sizes, 1):
        row += size
        if row - first_row >= min_rows or end == len(group_sizes):
            blocks.append(Block(start, end, first_row=first_row))
            start, first_row = end, row
    return blocks


def _block_pieces(file, ends_at: str | None, block_size: int):
    """Yields block_size bytes, the rest of their last line and, if required, lines up to an empty one."""
    yield file.read(block_size)
    yield file.readline()  # may be blank although the line holds a word before it
    if ends_at == "empty line":
        for line in iter(file.readline, b""):
            yield line
            if not line.strip(BLANKS.encode()):
                return


class BlockTask(NamedTuple):
    path: str  # of the Arrow file to write
    block: Block
    reader: Reader
    source_name: str
    names: tuple[str, ...] | None
    columns: Columns


def write_blocks(tasks: list[BlockTask], num_proc: int) -> None:
    """Writes the Arrow files of blocks. Raises the error of the first block that cannot be read."""
    num_proc = min(num_proc, len(tasks))
    with tqdm(desc="reading", total=len(tasks), unit=" blocks", disable=not tasks) as progress_bar:
        if num_proc <= 1:
            for task in tasks:
                _write_block(task)
                progress_bar.update()
            return
        with ProcessPoolExecutor(num_proc, get_context("fork"), exit_with_parent, (os.getpid(),)) as pool:
            try:
                for _ in pool.map(_write_block, tasks):
                    progress_bar.update()
            except KeyboardInterrupt:
                for worker in active_children():  # they would finish their blocks first
                    worker.terminate()
                raise


def _write_block(task: BlockTask) -> None:
    """Reads one block and writes its sentences. The file appears when it is complete."""
    records = task.reader.read(task.block)
    rows = sentences(records, task.source_name, task.names, task.columns, task.block.first_row)
    temporary, schema = f"{task.path}.{os.getpid()}", FEATURES.arrow_schema
    try:
        with pa.OSFile(temporary, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while batch := list(itertools.islice(rows, WRITE_BATCH_SIZE)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        os.replace(temporary, task.path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            os.remove(temporary)
