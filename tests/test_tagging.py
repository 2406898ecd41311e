"""infer.py on files: formats, bad lines, several processes, kills, labeled files."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read, results, run

import infer
from util import documents, tag_files
from util.annotations import Columns, split_words
from util.documents import Document
from util.report import type_colors

TEXTS = [
    "Peter Miller joined Nokia in Helsinki.",
    "",
    "Zoë said: 東京 is <b>big</b> & far",
    "It rained \U0001f600 all day.",
]


@pytest.fixture
def model(small_tagger) -> str:
    return small_tagger


def tag(*flags, stdin: bytes = b"") -> str:
    """Runs infer.py in this process, which has to succeed. Returns what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["infer.py", *map(str, flags)])
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        infer.main()
    return printed.getvalue()


def refused(capsys, *flags) -> str:
    """Runs infer.py, which has to exit with code 2. Returns the last line of stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        tag(*flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    return error


def test_the_same_documents_in_every_format(model, tmp_path):
    texts, objects, columns = (tmp_path / name for name in ("in.txt", "in.jsonl", "in.conll"))
    texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    objects.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    split = [[text[start:end] for start, end in split_words(text)] for text in TEXTS]
    columns.write_text(
        "\n".join("".join(f"{word} O\n" for word in words) for words in split if words), encoding="utf-8"
    )
    expected = infer.Tagger(model)(TEXTS)
    assert sum(map(len, expected)) > 2

    def rounded(entities):
        return [entity | {"score": round(entity["score"], 6)} for entity in entities]

    for name in (texts, objects):
        found = [json.loads(line) for line in tag(model, "--input_file", name, "--format", "json").splitlines()]
        assert [line["text"] for line in found] == TEXTS
        assert [line["entities"] for line in found] == [rounded(entities) for entities in expected]
    assert [line["id"] for line in found] == [0, 1, 2, 3]
    piped = tag(model, "--input_file", "-", "--format", "json", stdin=objects.read_bytes())
    assert [json.loads(line) for line in piped.splitlines()] == found
    from_text = tag(model, "--input_file", texts, "--format", "conll").replace("\n\n\n", "\n\n")
    assert from_text == tag(model, "--input_file", columns, "--format", "conll")
    rows = [line.split("\t") for line in from_text.splitlines() if line]
    assert [word for word, _ in rows] == sum(split, []) and len({tag for _, tag in rows}) > 2
    shown = tag(model, *TEXTS)
    assert "\033" not in shown and all(text in shown for text in TEXTS)
    for entity in sum(expected, []):
        assert f"{entity['start']}-{entity['end']}" in shown and f"{entity['score']:.4f}" in shown


def test_tokens_are_words_and_other_fields_are_kept(model, tmp_path):
    record = {"id": 7, "tokens": ["Peter", "Miller", "joined", "New York", "."], "nested": {"a": [1, None]}}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n\n")
    found = json.loads(tag(model, "--input_file", tmp_path / "in.jsonl", "--format", "json"))
    assert {key: found[key] for key in record} == record and found["text"] == "Peter Miller joined New York ."
    rows = tag(model, "--input_file", tmp_path / "in.jsonl", "--format", "conll").splitlines()
    assert [row.split("\t")[0] for row in rows if row] == record["tokens"]


def test_comments_and_other_columns_of_conll(model, tmp_path):
    (tmp_path / "in.conllu").write_text(
        "# text = x\n1-2\tdu\t_" + "\t_" * 7 + "\n1\tde" + "\t_" * 8 + "\n2\tle" + "\t_" * 8 + "\n"
    )
    (tmp_path / "in.conll").write_text("-DOCSTART- -X- O\n\n# a comment here too\nPeter NNP O\nsleeps VBZ O\n\n# O O\n")
    for name, words in (("in.conllu", ["de", "le"]), ("in.conll", ["Peter", "sleeps", "#"])):
        rows = tag(model, "--input_file", tmp_path / name, "--format", "conll").splitlines()
        assert [row.split("\t")[0] for row in rows if row] == words


def test_a_terminal_shows_entities_in_color(model):
    tagger = infer.Tagger(model)
    text = TEXTS[0]
    document = Document.from_text(text)
    (tagged,) = tagger.tag([document])
    entities = tagged.entities
    colors = type_colors({entity["entity_group"] for entity in entities})
    shown = documents.format_document(document, tagged, "text", colors, on_terminal=True).splitlines()[0]
    assert shown.count("\033[1;38;2;") == len(entities) > 0 and shown.count("\033[0m") == len(entities)
    plain = shown.replace("\033[0m", "")
    assert "".join(part.partition("m")[2] if i else part for i, part in enumerate(plain.split("\033["))) == text


def test_scores_are_aligned_if_types_differ_in_length():
    document = Document.from_text("Maria Oslo")
    names = {"PER": (0, 5), "GEOPOLITICAL": (6, 10)}
    entities = [
        {"entity_group": name, "score": 0.5, "word": document.text[start:end], "start": start, "end": end}
        for name, (start, end) in names.items()
    ]
    lines = documents.format_document(document, documents.Tagged(entities, []), "text", {}).splitlines()
    assert len({line.index("0.5000") for line in lines[1:]}) == 1


BAD = [
    b'{"text": "ok"}',
    b"{broken",
    b'{"id": 1}',
    b'{"text": 3}',
    b'{"tokens": ["a", 1]}',
    b'{"text": "\\ud800"}',
    b"\xff",
    b"[1]",
    b'{"text": NaN}',
]


def test_a_bad_line_is_named_before_anything_is_written(model, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    for number, bad in enumerate(BAD[1:], 1):
        name = tmp_path / f"{number}.jsonl"
        name.write_bytes(BAD[0] + b"\n" + bad + b"\n" + BAD[0] + b"\n")
        error = refused(capsys, model, "--input_file", name, "--output_file", out)
        assert error.startswith(f"error: {name}:2: ")
        assert not list(tmp_path.glob("out.jsonl*"))
    for flags in (
        ["--input_file", tmp_path / "none.txt"],
        ["--input_file", tmp_path / "1.jsonl", "text"],
        ["text", "--output_file", out],
        ["text", "--batch_size", 0],
        ["text", "--format", "xml"],
        [],
    ):
        assert refused(capsys, model, *flags).startswith("error: ")


def test_skipped_bad_lines_are_kept_beside(model, tmp_path):
    name, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    name.write_bytes(b"\n".join(BAD + BAD[:1]) + b"\n")
    tag(model, "--input_file", name, "--output_file", out, "--skip_bad_lines")
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["ok", "ok"]
    bad = [json.loads(line) for line in (tmp_path / "out.jsonl.errors").read_text().splitlines()]
    assert [line["line"] for line in bad] == list(range(2, len(BAD) + 1)) and all(line["error"] for line in bad)
    assert bad[0]["text"] == "{broken"


def test_an_output_of_another_model_input_or_flag_is_refused(model, tmp_path, capsys):
    name, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    name.write_text("Peter Miller joined Nokia.\n")
    tag(model, "--input_file", name, "--output_file", out)
    before = out.read_bytes()
    assert [path.name for path in sorted(tmp_path.glob("out*"))] == ["out.jsonl", "out.jsonl.run.json"]
    tag(model, "--input_file", name, "--output_file", out)  # the same command: nothing to do
    error = refused(capsys, model, "--input_file", name, "--output_file", out, "--stride", 3)
    assert "its --stride is 64, not 3" in error
    name.write_text("Peter Miller joined Sony.\n")
    assert "its input differs" in refused(capsys, model, "--input_file", name, "--output_file", out)
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "exists already" in refused(capsys, model, "--input_file", name, "--output_file", out)
    assert out.read_bytes() == before


def test_words_of_conll_are_those_that_training_reads(tmp_path):
    """Blanks and tabs separate columns. A no-break space is part of a word, also at the end of a line."""
    lines = ["\u00a0a\tB-X", " b\u00a0 O", "c\u3000\tO"]
    (tmp_path / "x.conll").write_text("\n".join(line.replace(" O", "\tO").strip(" ") for line in lines))
    trained = [word for row in read(tmp_path / "x.conll") for word in row["tokens"]]
    (tmp_path / "y.conll").write_text("\n".join(lines))
    source = documents.open_input(str(tmp_path / "y.conll"), Columns())
    (document,) = [source.parse(raw) for chunk in source.chunks() for raw in chunk]
    assert [document.text[start:end] for start, end in document.words] == trained == ["\u00a0a", "b\u00a0", "c\u3000"]


def big(path: Path, number: int) -> Path:
    """Writes `number` sentences of the corpus as JSON Lines, of all lengths, each with an id."""
    sentences = [
        " ".join(s["tokens"][:50]) for split in ("train", "test") for s in read(ROOT / "samples" / f"{split}.conll")
    ]
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            file.write(json.dumps({"id": i, "text": chooser.choice(sentences)}) + "\n")
    return path


def test_several_processes_write_what_one_writes(model, tmp_path):
    """With the same number of threads: bf16 products are rounded differently with another number."""
    name = big(tmp_path / "in.jsonl", 2200)
    alone, several = tmp_path / "alone.jsonl", tmp_path / "several.jsonl"
    tag(model, "--input_file", name, "--output_file", alone)
    done = run("infer.py", model, "--input_file", name, "--output_file", several, ranks=2)
    assert done.returncode == 0, done.stderr
    assert alone.read_bytes() == several.read_bytes()
    assert [json.loads(line)["id"] for line in alone.read_text().splitlines()] == list(range(2200))
    streamed = tag(model, "--input_file", name, "--format", "json")
    assert streamed == alone.read_text()


def kills(start, model: str, folder: Path, number: int, times: int, seed: int) -> int:
    """Kills infer.py `times` times, at random moments of start-up, tagging and joining.

    start(flags) starts a process. Returns how many of the killed processes left parts.
    """
    name, whole, out = big(folder / "in.jsonl", number), folder / "whole.jsonl", folder / "out.jsonl"
    flags = [model, "--input_file", str(name), "--output_file"]
    tag(*flags, whole)
    chooser, left = random.Random(seed), 0
    for _ in range(times):
        process = start([*flags, str(out)])
        parts = chooser.randint(1, -(-number // documents.CHUNK_SIZE))
        deadline = time.monotonic() + 60
        while not out.exists() and len(list(folder.glob("out*.parts/*[0-9]"))) < parts:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chooser.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join() if hasattr(process, "join") else process.wait()
        left += bool(list(folder.glob("out*.parts")))
        if out.exists():  # it had finished: start again
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
            Path(f"{out}.run.json").unlink()
    tag(*flags, out)
    assert out.read_bytes() == whole.read_bytes()
    assert [path.name for path in sorted(folder.glob("out*"))] == ["out.jsonl", "out.jsonl.run.json"]
    return left


def test_killed_and_started_again_it_goes_on(model, tmp_path):
    def start(flags):
        process = multiprocessing.get_context("fork").Process(target=tag, args=flags)
        process.start()
        return process

    assert kills(start, model, tmp_path, number=6_000, times=4, seed=1) >= 2


@pytest.mark.slow
def test_twenty_kills_lose_no_line(model, tmp_path):
    def start(flags):
        return subprocess.Popen([sys.executable, "infer.py", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)

    assert kills(start, model, tmp_path, number=20_000, times=20, seed=2) >= 10


def test_finished_parts_are_not_tagged_again(model, tmp_path, monkeypatch):
    name, out = big(tmp_path / "in.jsonl", 3 * documents.CHUNK_SIZE), tmp_path / "out.jsonl"
    tag(model, "--input_file", name, "--output_file", tmp_path / "whole.jsonl")
    tag_chunk = tag_files.tag_chunk

    def full_disk(job, chunk):
        if chunk[0][0] > documents.CHUNK_SIZE:
            raise OSError(28, "No space left on device", str(out))
        return tag_chunk(job, chunk)

    monkeypatch.setattr(tag_files, "tag_chunk", full_disk)
    with pytest.raises(SystemExit):
        tag(model, "--input_file", name, "--output_file", out)
    first = []
    monkeypatch.setattr(tag_files, "tag_chunk", lambda job, chunk: first.append(chunk[0][0]) or tag_chunk(job, chunk))
    tag(model, "--input_file", name, "--output_file", out)
    assert first == [documents.CHUNK_SIZE + 1, 2 * documents.CHUNK_SIZE + 1]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def peak_of_tagging(model: str, name: Path, out: Path, peak) -> None:
    """Runs infer.py with a stand-in for the model. Reading and writing are real."""

    def fast(self, sentences):
        number = sum(map(len, sentences))
        return np.eye(len(self.label_list))[[0] * number], np.arange(number)

    infer.Tagger.probabilities = fast
    tag(model, "--input_file", name, "--output_file", out)
    peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_memory_does_not_grow_with_the_input(model, tmp_path):
    """The peak is the same for 13 times the lines."""
    peaks, context = [], multiprocessing.get_context("fork")
    for number in (3_000, 40_000):
        name, out, peak = (
            big(tmp_path / f"{number}.jsonl", number),
            tmp_path / f"{number}.out.jsonl",
            context.Value("q", 0),
        )
        process = context.Process(target=peak_of_tagging, args=(model, name, out, peak))
        process.start()
        process.join(100)
        assert process.exitcode == 0 and sum(1 for _ in out.open()) == number
        peaks.append(peak.value)
    assert peaks[1] - peaks[0] < 20_000, peaks  # KiB; the larger input alone is 4,000


# ----------------------------------------------------------------------------------------------------------------------
# Labeled files


def shown_errors(page: str) -> str:
    """The scores and errors of a report, without the folder in the positions of its sentences."""
    return page.partition("<h2>Scores by type</h2>")[2].replace(str(ROOT) + "/", "")


def test_evaluation_repeats_trainings_last_one_at_any_batch_size_and_number_of_ranks(model):
    """The report shows the same sentences with the same predictions as the report of training."""
    measured, expected = results(model), shown_errors((Path(model) / "report.html").read_text())
    assert "<article>" in expected
    name, out = ROOT / "samples" / "validation.conll", Path(model).parent / "report.html"
    for flags in (["--batch_size", 1], ["--batch_size", 64], []):
        printed = tag(model, "--input_file", name, "--evaluate", "--output_file", out, *flags)
        assert f"accuracy {measured['eval_accuracy']:.4f}" in printed and f"{measured['eval_f1']:.4f}" in printed
        found = shown_errors(out.read_text())
        assert strip_scores(found) == strip_scores(expected)
    done = run("infer.py", model, "--input_file", name, "--evaluate", "--output_file", out, ranks=2)
    assert done.returncode == 0, done.stderr
    assert strip_scores(shown_errors(out.read_text())) == strip_scores(expected)


def strip_scores(page: str) -> str:
    """Removes probabilities, whose last digits depend on the batch."""
    page = re.sub(r'<section id="calibration">.*?</section>', "", page, flags=re.DOTALL)
    return re.sub(r'title="([a-z]+) [0-9.]+"', r'title="\1"', page)


def test_a_file_with_labels_that_the_model_does_not_know(model, tmp_path, capsys):
    (tmp_path / "x.conll").write_text("Peter B-PER\nsleeps B-ODD\n")
    printed = tag(model, "--input_file", tmp_path / "x.conll", "--evaluate")
    assert "ODD" in printed and "never predicts B-ODD" in capsys.readouterr().err
