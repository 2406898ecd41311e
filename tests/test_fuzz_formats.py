"""Generated corpora, written in many formats: what is read is the generated corpus, or the file is refused.

A corpus has a tag scheme, a spelling of its tags, annotation errors and splits. A format has a separator, a header,
comments, further columns, quoting. Writers here share no code with the readers.
"""

import csv
import io
import json
import random

import pytest
from conftest import load

TYPES = ("PER", "LOC", "creative-work", "人名")
WORDS = (
    *("Anna", "Oslo", "sang", "in", ".", ",", ";", ":", '"', "'", "''", "#", "#nlp", "##", "B", "O", "I-95", "1996"),
    *("-", "[", "]", "{", "3,5", "a|b", "a_b", "New\u00a0York", "東京", "\U0001f600", "é", "don't", '"quoted"'),
    *("T1", "-5"),
)


class Corpus:
    """sentences: split -> [(words, tags in IOB2)]; the same in the file's scheme and spelling, with errors."""

    def __init__(self, seed: int):
        chooser = self.chooser = random.Random(seed)
        self.scheme = chooser.choice(("IOB1", "IOB2", "BIOES", "BILOU", "BMES"))
        self.spelling = chooser.choice(("B-X", "B-X", "B-X", "B_X", "X-B", "b-x"))
        names = ("train", "validation", "test")[: chooser.choice((1, 1, 2, 3))]
        types = chooser.sample(TYPES, chooser.randint(1, 4))
        self.splits: dict[str, list] = {}
        self.expected: dict[str, list] = {}
        self.error_rate = chooser.choice((0, 0, 0.02))
        for name in names:
            self.splits[name], self.expected[name] = [], []
            for number in range(chooser.randint(12, 30)):
                words, spans = self.sentence(types if number else [types[0]])
                if number == 0:  # a word for certain, and an entity, in the first lines of every file
                    words, spans = ["Anna", "Berg", "sang", "."], [(0, 2, types[0])]
                tags = tags_of(len(words), spans, self.scheme)
                in_iob2 = tags_of(len(words), spans, "IOB2")
                for i, tag in enumerate(tags):  # errors of annotators: another B or I at the beginning of an entity
                    if chooser.random() < self.error_rate and self.scheme in ("IOB1", "IOB2") and in_iob2[i][0] == "B":
                        if self.scheme == "IOB1":
                            tags[i] = "B" + tag[1:]
                        elif i == 0 or in_iob2[i - 1] == "O":
                            tags[i] = in_iob2[i] = "I" + tag[1:]
                expected = in_iob2 if self.scheme == "IOB1" else tags
                self.splits[name].append((words, [self.spell(tag) for tag in tags]))
                self.expected[name].append([self.spell(tag) for tag in expected])

    def sentence(self, types: list[str]) -> tuple[list[str], list[tuple[int, int, str]]]:
        words = [self.chooser.choice(WORDS) for _ in range(self.chooser.randint(1, 12))]
        spans, i = [], 0
        while i < len(words):
            length = self.chooser.choice((0, 0, 0, 1, 1, 2, 3, 4))
            if 0 < length <= len(words) - i:
                spans.append((i, i + length, self.chooser.choice(types)))
            i += max(1, length)
        return words, spans

    def spell(self, tag: str) -> str:
        if tag == "O":
            return "o" if self.spelling == "b-x" else "O"
        letter, kind = tag[0], tag[2:]
        spellings = {"B_X": f"{letter}_{kind}", "X-B": f"{kind}-{letter}", "b-x": f"{letter.lower()}-{kind}"}
        return spellings.get(self.spelling, tag)


def tags_of(num_words: int, spans: list[tuple[int, int, str]], scheme: str) -> list[str]:
    tags, last = ["O"] * num_words, (-1, "")
    for start, end, kind in spans:
        letters = ["B"] + ["I"] * (end - start - 1)
        if scheme == "IOB1" and last != (start, kind):
            letters[0] = "I"
        elif scheme in ("BIOES", "BILOU", "BMES"):
            one, final, inside = {"BIOES": "SEI", "BILOU": "ULI", "BMES": "SEM"}[scheme]
            letters = [one] if end - start == 1 else ["B", *[inside] * (end - start - 2), final]
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
        last = (end, kind)
    return tags


# ---- writers: (chooser, [(words, tags)]) -> (file name, text, flags)


def write_columns(chooser, sentences, separator=None):
    separator = separator or chooser.choice((" ", "  ", "\t"))
    is_tab, width = separator == "\t", chooser.choice((2, 2, 3, 4, 5))
    if not is_tab:
        sentences = [([word.replace(" ", "_") or "x" for word in words], tags) for words, tags in sentences]
    comments = chooser.choice(("", "# sent_id = {}", "# text = in Oslo .", "# id {}\tdomain=en", "###DOC:{}"))
    border = chooser.choice(("\n", "\n", "\n\n", " \n", "-DOCSTART- -X- O\n\n", "\n--DOCSTART--\n\n"))
    lines = [chooser.choice(("", "", "-DOCSTART-" + f"{separator}O" * (width - 1) + "\n\n", "\n"))]
    for number, (words, tags) in enumerate(sentences):
        if comments and (number == 0 or chooser.random() < 0.5):
            lines.append(comments.format(number) + "\n")
        for word, tag in zip(words, tags):
            middle = [chooser.choice(("NN", "_", "B-NP", "x")) for _ in range(width - 2)]
            lines.append(separator.join([word, *middle, tag]) + "\n")
        lines.append(border)
    return chooser.choice(("x.conll", "x.txt", "x.tsv" if is_tab else "x.iob2", "x")), "".join(lines), {}


def write_table(chooser, sentences):
    delimiter = chooser.choice(",;\t")
    quoting = csv.QUOTE_ALL if chooser.random() < 0.3 else csv.QUOTE_MINIMAL
    by_id, has_header = chooser.random() < 0.5, chooser.random() < 0.7
    header = chooser.choice((["word", "tag"], ["Token", "NER"], ["tokens", "ner_tags"]))
    extra = chooser.choice(([], ["lemma"], [""]))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=chooser.choice(("\n", "\r\n")))
    by_id = by_id and has_header
    if has_header:
        writer.writerow([*(["sentence_id"] if by_id else []), *header[:1], *extra, *header[1:]])
    for number, (words, tags) in enumerate(sentences):
        for i, (word, tag) in enumerate(zip(words, tags)):
            identity = [chooser.choice((f"s{number}",)) if i == 0 or quoting else f"s{number}"] if by_id else []
            writer.writerow([*identity, word, *["x" for _ in extra], tag])
        if not by_id:
            border = chooser.choice(("\n", delimiter * (1 + len(extra)) + "\n"))
            text.write(border)
    return "x.tsv" if delimiter == "\t" else "x.csv", text.getvalue(), {}


def write_sentence_rows(chooser, sentences):
    as_lists = chooser.random() < 0.6
    sentences = [(words, tags) for words, tags in sentences if as_lists or all(word.strip() for word in words)]
    show = chooser.choice((repr, json.dumps, numpy_repr)) if as_lists else " ".join
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["tokens", "ner_tags"])
    for words, tags in sentences:
        writer.writerow([show(words), show(tags)])
    return "x.csv", text.getvalue(), {}


def numpy_repr(values: list[str]) -> str:
    return "[" + " ".join(map(repr, values)) + "]"


def write_sentence_lines(chooser, sentences):
    lines = [f"{' '.join(words)}\t{' '.join(tags)}\n" for words, tags in sentences]
    return chooser.choice(("x.txt", "x.tsv")), "".join(lines), {}


def write_json(chooser, sentences):
    names = chooser.choice((("tokens", "ner_tags"), ("words", "labels"), ("tokens", "tags")))
    records = [dict(zip(names, sentence)) | {"id": str(i)} for i, sentence in enumerate(sentences)]
    ascii_only = chooser.random() < 0.5
    if chooser.random() < 0.5:
        return "x.json", json.dumps(records, ensure_ascii=ascii_only, indent=chooser.choice((None, 1))), {}
    lines = [json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records]
    return chooser.choice(("x.jsonl", "x")), "".join(lines), {}


def write_conllu(chooser, sentences):
    lines, in_misc = [], chooser.random() < 0.5
    for number, (words, tags) in enumerate(sentences):
        lines.append(f"# sent_id = {number}\n")
        for i, (word, tag) in enumerate(zip(words, tags), 1):
            misc = f"SpaceAfter=No|name={tag}" if in_misc else "_"
            lines.append(f"{i}\t{word}\t_\tNOUN\t{'x' if in_misc else tag}\t_\t0\troot\t_\t{misc}\n")
        lines.append("\n")
    return "x.conllu", "".join(lines), {"label_column_name": "name" if in_misc else "5"}


WRITERS = (write_columns, write_table, write_sentence_rows, write_sentence_lines, write_json, write_conllu)
WEIGHTS = (4, 4, 1, 1, 1, 1)


def check(seed: int, encoder: str, folder) -> str:
    """Writes and reads a corpus. Returns "read" or the text of the error; fails if it is misread."""
    corpus = Corpus(seed)
    writer = corpus.chooser.choices(WRITERS, WEIGHTS)[0]
    state = corpus.chooser.getstate()
    flags, files = {}, {}
    for name, sentences in corpus.splits.items():
        corpus.chooser.setstate(state)  # the same format for every split
        file_name, text, flags = writer(corpus.chooser, sentences)
        (folder / name).mkdir(exist_ok=True)
        files[f"{name}_file"] = str(folder / name / file_name)
        bom = "\ufeff" if seed % 7 == 0 else ""
        (folder / name / file_name).write_bytes((bom + text).encode())
    try:
        splits, labels = load(encoder, size=64, **files, **flags)
    except ValueError as error:
        return str(error)
    for name, split in splits.items():
        assert split.sentences["tokens"][:] == [words for words, _ in corpus.splits[name]], (seed, writer.__name__)
        found, tags = iter(split.tags.tolist()), corpus.expected[name]
        assert [[labels[next(found)] for _ in row] for row in tags] == tags, (seed, writer.__name__, corpus.scheme)
    return "read"


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 4000), marks=pytest.mark.slow)], ids=str)
def test_a_generated_corpus_is_read_as_it_was_written_or_refused(seeds, encoders, tmp_path):
    outcomes = [check(seed, encoders["wordpiece"], tmp_path) for seed in seeds]
    refused = [outcome for outcome in outcomes if outcome != "read"]
    print(*refused[:20], sep="\n")
    assert len(refused) < len(outcomes) / 10, refused
