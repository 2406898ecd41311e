"""A split of a corpus: its sentences, labels and windows, and the position of each word in its source."""

import functools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from util.annotations import source_position
from util.corpus_scan import TagStatistics, column
from util.data_report import LARGE, Note
from util.entity_counts import typed_spans
from util.tag_schemes import PLAIN, counts_as_iob2, decide_scheme, iob1_to_iob2, iob2_to_iob1
from util.tag_spelling import has_iob1_labels, scheme_name
from util.windows import RelabeledWindows, Windows


@dataclass
class Split:
    """W words in S sentences, C labels."""

    name: str  # of its source, for messages
    read_as: str  # the format of its source, and what its columns are
    sentences: Dataset  # as read: {"tokens", "tags", "lines", "notes"}
    label_list: list[str]
    scheme: str | None  # IOB2, BIOES, BILOU, IOE1, IOE2; None for plain tags such as NOUN
    iob1: bool  # the file is in IOB1; tags and labels are converted to IOB2
    num_violations: int  # tags that break the scheme of the file
    first_violations: list[int]  # positions of the first of them
    label_counts: np.ndarray  # [C] words by tag, after the conversion
    windows: Windows
    fingerprint: str  # of what training sees: subwords, labels, and their names
    token_ids: np.ndarray = field(repr=False)  # [U] the subwords that occur
    notes: list[Note | str] = field(default_factory=list)  # of the reader

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[S] words of every sentence."""
        return pc.list_value_length(column(self.sentences, "tokens")).to_numpy().astype(np.int64)

    @property
    def tag_scheme(self) -> str:
        """The scheme of the file: as `scheme`, before a conversion; "plain" for none."""
        return "IOB1" if self.iob1 else self.scheme or PLAIN

    @property
    def read_scheme(self) -> str:
        """How the tags were read, for messages: "IOB1, 2 exceptions"."""
        if self.tag_scheme == PLAIN:
            return "plain tags"
        exceptions = f"{self.num_violations:,} exception{'' if self.num_violations == 1 else 's'}"
        return scheme_name(self.tag_scheme, self.label_list) + (f", {exceptions}" if self.num_violations else "")

    @property
    def num_sentences(self) -> int:
        """Without the records that have no words, such as tasks without annotation."""
        return int(np.count_nonzero(self.lengths))

    @property
    def num_words(self) -> int:
        return int(self.lengths.sum())

    @property
    def label_ids(self) -> np.ndarray:
        """The label ids that occur, ascending."""
        return np.flatnonzero(self.label_counts)

    @functools.cached_property
    def tags(self) -> np.ndarray:
        """[W] the gold label id of every word. Training does not need it: 8 bytes per word, computed on first use."""
        words = pc.list_flatten(column(self.sentences, "tags"))
        tags = pc.index_in(words, value_set=pa.array(self.label_list)).to_numpy().astype(np.int64)
        return iob1_to_iob2(tags, self.lengths, self.label_list) if self.iob1 else tags

    def convert_for(self, model_labels: list[str]) -> None:
        """Converts tags and windows from IOB2 to IOB1 if the labels of a model are IOB1: it has no B-X for some X."""
        if self.scheme == "IOB2" and has_iob1_labels(model_labels):
            tags = iob2_to_iob1(self.tags, self.lengths, self.label_list)
            self.notes = [note for note in self.notes if not str(note).endswith("converted to IOB2")]
            if not self.iob1:
                text = "IOB2 tags converted to IOB1, the scheme of the model's labels"
                self.notes.append(Note(int(np.count_nonzero(tags != self.tags)), text, []))
            self.tags = tags
            self.label_counts = np.bincount(self.tags, minlength=len(self.label_list))
            self.windows = RelabeledWindows(self.windows, self.tags)

    def locate(self, position: int) -> tuple[int, int]:
        """A word by its number in the split -> the number of its sentence, and its index there."""
        ends = np.cumsum(self.lengths)
        row = int(np.searchsorted(ends, position, side="right"))
        return row, position - int(ends[row] - self.lengths[row])

    def word(self, position: int) -> tuple[str, str]:
        """A word by its number in the split -> its position in messages (file:line), and the word."""
        row, index = self.locate(position)
        sentence = self.sentences[row]
        return source_position(self.name, sentence["lines"], row, index), sentence["tokens"][index]

    def sentence(self, row: int) -> tuple[str, list[str]]:
        """A sentence by its number -> its position in messages, and its words."""
        sentence = self.sentences[row]
        return source_position(self.name, sentence["lines"], row), sentence["tokens"]

    def window_position(self, row: int) -> str:
        """The position of the sentence of a window, for messages."""
        sentence = np.flatnonzero(self.lengths)[np.count_nonzero(self.windows.subwords[: row + 1]) - 1]
        return self.sentence(int(sentence))[0]

    def spans(self, tags: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """tags [W] -> entities [E, 3]: first word, the word after the last, type; and the names of the types.

        With plain tags, every word is an entity.
        """
        return typed_spans(tags, self.lengths, self.label_list, self.scheme)

    def entity_texts(self, spans: np.ndarray, types: list[str]) -> list[tuple[str, str]]:
        """spans [E, 3] -> (type, text) of every entity."""
        words = pc.list_flatten(column(self.sentences, "tokens"))
        # The words of all spans in one request. Spans (3, 5) and (9, 10) ask for the words 3, 4, 9.
        sizes = spans[:, 1] - spans[:, 0]
        first = np.cumsum(sizes) - sizes  # where a span's words begin among those asked for
        wanted = np.arange(sizes.sum()) + np.repeat(spans[:, 0] - first, sizes)
        texts = words.take(pa.array(wanted)).to_pylist()
        return [(types[t], " ".join(texts[i : i + n])) for t, i, n in zip(spans[:, 2], first, sizes)]

    @functools.cached_property
    def entities(self) -> set[tuple[str, str]] | None:
        """The (type, text) of all gold entities. None if the split is too large to hold them."""
        return set(self.entity_texts(*self.spans(self.tags))) if self.num_sentences <= LARGE else None


def fields_of_tags(tags: TagStatistics, label_list: list[str], scheme: str | None, notes: list[str]) -> dict:
    """The fields of a split that follow from its tags. scheme: as for decide_scheme. notes: of its source."""
    scheme, num_violations, first_violations = decide_scheme(tags.evidence, label_list, scheme)
    label_counts = np.array([tags.counts.get(label, 0) for label in label_list])
    all_notes = [*notes, *(Note(count, what, examples) for what, (count, examples) in tags.notes.items())]
    iob1 = scheme == "IOB1"
    if iob1:
        scheme = "IOB2"
        label_counts, num_converted = counts_as_iob2(label_counts, tags.evidence, label_list)
        if num_converted:
            all_notes.append(Note(num_converted, f"IOB1 tag{'s' * (num_converted > 1)} converted to IOB2", []))
    return {
        "scheme": scheme,
        "iob1": iob1,
        "num_violations": num_violations,
        "first_violations": first_violations,
        "label_counts": label_counts,
        "notes": all_notes,
    }


def fingerprint_of(splits: dict[str, Split]) -> dict:
    """What identifies the data of a run: the label list, and a checksum of every split."""
    checksums = {f"{name} data": split.fingerprint for name, split in splits.items()}
    return {"label list": splits["train"].label_list} | checksums
