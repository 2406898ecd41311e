"""The output of infer.py: read back by the readers of training, complete, and the same from several threads."""

import html.parser
import io
import json
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import hypothesis
import pytest
from conftest import data_args, read, sample_words
from hypothesis import strategies
from test_tagging import big, refused, tag

import data
import infer
from util import documents, sources, tokenizer
from util.documents import Document, Tagged, format_document

# ----------------------------------------------------------------------------------------------------------------------
# CoNLL

LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
ODD = ["", " ", "  ", "\t", *LINE_ENDS, "New York", "a\tb", "a\nb", " a", "a ", "\ufeff", "\ufeffa", "\x00", "\u00a0"]
ODD += ["#", "##", "# a", "#a", "# sent_id = 2", "#begin document", "# text = x", " # a", "\t# id 1", "# x\ty"]
ODD += ["-DOCSTART-", "DOCSTART", "-docstart-", "--DOCSTART--", "-DOCSTART- x", "\n-DOCSTART-", "-DOCSTART-\n"]
ODD += ['"', '"a"', "'", ",", ";", "|", "O", "B-PER", "1", "1-2", "_", "-X-", "[", "\\", "EndOfSentence", "é", "東京"]
FIRST = (["Anna", "Berg", "sang", "."], ["B-PER", "I-PER", "O", "O"])  # a file of odd words alone may be refused


def conll(sentences: list[tuple[list[str], list[str]]]) -> str:
    rows = [(Document.from_words(words), Tagged([], tags)) for words, tags in sentences]
    return "".join(format_document(document, tagged, "conll", {}) for document, tagged in rows)


def check_read_back(sentences, path: Path) -> None:
    path.write_bytes(conll(sentences).encode())
    dataset, _ = sources.read_file(str(path), data.columns_of(data_args()))
    found = dataset.select_columns(["tokens", "tags"]).to_list()
    assert [row["tags"] for row in found] == [tags for _, tags in sentences]
    for row, (words, _) in zip(found, sentences):
        for word, original in zip(row["tokens"], words):
            assert word.split() == original.replace("\ufeff", "").split() or word.split() == original.split()


@pytest.mark.parametrize("name", ["x.conll", "x.tsv", "x.txt"])
@pytest.mark.parametrize("tags", [["O", "B-PER", "I-PER"], ["NOUN", "VERB", "X"]])
def test_every_odd_word_is_read_back(name, tags, tmp_path):
    first = FIRST[0], [tags[1], tags[2], tags[0], tags[0]]
    for word in ODD:
        others = [([word], tags[:1]), (["a", word, "b"], tags), ([word, word], tags[1:]), (["a", word], tags[:2])]
        check_read_back([first, *others], tmp_path / name)
    every = [(ODD[i:], [tags[j % 3] for j in range(len(ODD) - i)]) for i in range(len(ODD))]
    check_read_back([first, *every], tmp_path / name)


CHARACTERS = "#-DOCSTARTdocstart =:\t\n\r\v\f\x1c\x85\u2028\ufeff\u00a0\"',;|a1" + "\U0001f600é"


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    strategies.lists(
        strategies.lists(
            strategies.one_of(
                strategies.sampled_from(ODD),
                strategies.text(CHARACTERS, max_size=12),
                strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=8),
            ),
            min_size=1,
            max_size=6,
        ),
        max_size=4,
    ),
    strategies.randoms(use_true_random=False),
)
def test_any_words_are_read_back(tmp_path_factory, sentences, chooser):
    path = tmp_path_factory.getbasetemp() / "any.conll"
    tagged = [(words, [chooser.choice(["O", "B-PER", "I-PER"]) for _ in words]) for words in sentences]
    check_read_back([FIRST, *tagged], path)


@pytest.fixture
def model(small_tagger) -> str:
    return small_tagger


def test_the_command_writes_what_training_reads(model, tmp_path):
    sentences = [["Anna", "Berg", "sang"], *([word, "Peter", word] for word in ODD)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"tokens": words}) + "\n" for words in sentences))
    tag(model, "--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.conll")
    found = read(tmp_path / "out.conll")
    tagged = infer.Tagger(model).tag([Document.from_words(words) for words in sentences])
    assert [row["tags"] for row in found] == [document.tags for document in tagged]
    assert len(Path(tmp_path / "out.conll").read_text().splitlines()) == sum(len(words) + 1 for words in sentences)


# ----------------------------------------------------------------------------------------------------------------------
# JSON


def test_no_field_of_the_input_is_lost(model, tmp_path):
    text = "Peter Miller joined Nokia."
    records = [
        {"text": text, "id": 1, "tags": ["x"], "label": 3, "word": 4},
        {"text": text, "entities": [[0, 5, "PER"]]},
        {"id": 2, "text": text, "entities": [], "entities_input": 5},
        {"tokens": ["Peter", "Miller"], "tags": ["O", "O"], "text": "Anna Berg"},
        {"tokens": ["Peter", "Miller"], "text": "Peter Miller", "entities": None},
        {"tokens": ["Peter", "Miller"], "tags": ["O", "O"], "text": "Anna Berg", "text_input": 1},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = [
        json.loads(line) for line in tag(model, "--input_file", tmp_path / "in.jsonl", "--format", "json").splitlines()
    ]
    results = [line.pop("entities") for line in found]
    assert found == [
        records[0],
        {"text": text, "entities_input": [[0, 5, "PER"]]},
        {"id": 2, "text": text, "entities_input_input": [], "entities_input": 5},
        {"text": "Peter Miller", "tokens": ["Peter", "Miller"], "tags": ["O", "O"], "text_input": "Anna Berg"},
        {"tokens": ["Peter", "Miller"], "text": "Peter Miller", "entities_input": None},
        {
            "text": "Peter Miller",
            "tokens": ["Peter", "Miller"],
            "tags": ["O", "O"],
            "text_input_input": "Anna Berg",
            "text_input": 1,
        },
    ]
    assert any(results)
    for line, entities in zip(found, results):
        assert all(line["text"][entity["start"] : entity["end"]] == entity["word"] for entity in entities)
    again = "".join(json.dumps(line | {"entities": entities}) + "\n" for line, entities in zip(found, results))
    (tmp_path / "again.jsonl").write_text(again)  # the output is an input, too
    lines = tag(model, "--input_file", tmp_path / "again.jsonl", "--format", "json").splitlines()
    assert [json.loads(line)["entities"] for line in lines] == results


# ----------------------------------------------------------------------------------------------------------------------
# A page on standard output


class Nesting(html.parser.HTMLParser):
    """Raises AssertionError for an element that is closed in the wrong place. `open` must be empty at the end."""

    def __init__(self):
        super().__init__()
        self.open, self.articles = [], 0

    def handle_starttag(self, tag, attributes):
        self.articles += tag == "article"
        if tag not in ("meta", "link", "br", "input", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:  # optional end tags, such as </p> and </li>
                pass


def articles(page: str) -> int:
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    parser = Nesting()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser.articles


def test_a_page_is_closed_after_an_error_in_a_later_chunk(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(documents, "CHUNK_SIZE", 3)
    name = tmp_path / "in.jsonl"
    name.write_text('{"text": "Peter Miller"}\n' * 7 + "{broken\n")
    assert refused(capsys, model, "--input_file", name, "--format", "json").startswith(f"error: {name}:8: ")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.argv", ["infer.py", model, "--input_file", str(name), "--format", "html"])
        patch.setattr("sys.stdout", printed)
        infer.main()
    assert articles(printed.getvalue()) == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start(*flags) -> tuple[int, io.TextIOWrapper]:
    """Runs infer.py in a fork of this process. Returns its id, and the pipe with its output and errors."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.close(writing)
            sys.stdout = sys.stderr = os.fdopen(1, "w")
            sys.argv = ["infer.py", *map(str, flags)]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            infer.main()
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writing)
    return child, os.fdopen(reading, encoding="utf-8")


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_page_is_closed_after_a_signal(number, model, tmp_path):
    """Nobody reads the pipe while the signal arrives: the process is inside a write."""
    name = big(tmp_path / "in.jsonl", 4000)
    child, output = start(model, "--input_file", name, "--format", "html")
    with output:
        page = output.read(10_000)
        time.sleep(0.5)
        os.kill(child, number)
        page += output.read()
    assert exit_code(child) == 128 + number
    assert articles(page) % documents.CHUNK_SIZE == 0 and 0 < articles(page) < 4000


@pytest.mark.parametrize("format", ["html", "json"])
def test_a_reader_that_stops_is_no_error(format, model, tmp_path):
    name = big(tmp_path / "in.jsonl", 1500)
    child, output = start(model, "--input_file", name, "--format", format)
    with output:
        assert len(output.read(100)) == 100
    assert exit_code(child) == 0


# ----------------------------------------------------------------------------------------------------------------------
# Threads


def test_eight_threads_get_the_results_of_one(model, monkeypatch):
    """Although every call replaces the cache of words, and the tokenizer comes with truncation and padding."""
    monkeypatch.setattr(tokenizer.WordCache, "MAX_WORDS", 8)
    chooser = random.Random(0)
    words = sorted({word for sentence in sample_words() for word in sentence})
    texts = [" ".join(chooser.choices(words, k=chooser.randint(1, 12))) for _ in range(400)]
    strategies_of_texts = [infer.STRATEGIES[i % len(infer.STRATEGIES)] for i in range(len(texts))]
    tagger = infer.Tagger(model, precision="fp32")
    expected = [tagger(text, strategy) for text, strategy in zip(texts, strategies_of_texts)]
    assert sum(map(len, expected)) > 100
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(3):
            tagger = infer.Tagger(model, precision="fp32")
            found, barrier = {}, threading.Barrier(8)

            def work(number, tagger=tagger, found=found, barrier=barrier):
                barrier.wait()
                for i in range(number, len(texts), 8):
                    found[i] = tagger(texts[i], strategies_of_texts[i])

            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [found.get(i) for i in range(len(texts))] == expected
    finally:
        sys.setswitchinterval(interval)


def test_a_tagger_can_be_pickled(model):
    """For process pools that do not fork."""
    tagger = infer.Tagger(model, precision="fp32")
    text = "Peter Miller joined Nokia in Helsinki."
    assert pickle.loads(pickle.dumps(tagger))(text) == tagger(text)
