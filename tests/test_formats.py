# ruff: noqa: E501 - one file per line
"""Files as they are met: read correctly, or refused with a line that helps. Tags are those of the file."""

import shlex
import subprocess

import pytest
from conftest import CACHE, ROOT, load, read, run, write_conll

import data
from util import data_report, documents, sources
from util.annotations import Columns

ANNA = [[("Anna", "B-PER"), ("sang", "O")]]
TWO = [[("Anna", "B-PER"), ("Berg", "I-PER"), ("sang", "O")], [("Oslo", "B-LOC")]]
FIVE = "1\tIn\tO\tO\tx\n2\tOslo\tB-LOC\tO\tx\n"
IN_OSLO = [[("In", "O"), ("Oslo", "B-LOC")]]
BY_NUMBER = {"text_column_name": "2", "label_column_name": "3"}
CONLLU = (
    "1\tAnna\tanna\tPROPN\tNNP\t_\t2\tnsubj\t_\tSpaceAfter=No|name=B-PER\n2\tsang\tsing\tVERB\tVBD\t_\t0\troot\t_\t_\n"
)

READ = {  # name -> (file name, content, sentences of (word, tag), flags)
    # tables
    "headerless tsv": ("a.tsv", "Anna\tB-PER\nBerg\tI-PER\nsang\tO\n\nOslo\tB-LOC\n", TWO, {}),
    "headerless csv": ("a.csv", "Anna,B-PER\nBerg,I-PER\nsang,O\n\nOslo,B-LOC\n", TWO, {}),
    "headerless csv, any name": ("a.txt", "Anna,B-PER\nBerg,I-PER\nsang,O\n\nOslo,B-LOC\n", TWO, {}),
    "headerless semicolons": ("a.csv", "Anna;B-PER\n,;O\n\nOslo;B-LOC\n", [[("Anna", "B-PER"), (",", "O")], [("Oslo", "B-LOC")]], {}),
    "headerless csv of parts of speech": ("a.csv", "The,DT\ncat,NN\nthe,DT\n\nOslo,NN\n", [[("The", "DT"), ("cat", "NN"), ("the", "DT")], [("Oslo", "NN")]], {}),
    "lists": ("a.csv", "tokens,tags\n\"['Anna', 'sang']\",\"['B-PER', 'O']\"\n", ANNA, {}),
    "lists of json": ("a.csv", 'tokens,tags\n"[""Anna"", ""sang""]","[""B-PER"", ""O""]"\n', ANNA, {}),
    "lists of numpy": ("a.csv", "tokens,tags\n\"['Anna' 'sang']\",\"['B-PER' 'O']\"\n", ANNA, {}),
    "quoted tsv": ("a.tsv", '""""\tO\nAnna\tB-PER\n"a\tb"\tO\n', [[('"', "O"), ("Anna", "B-PER"), ("a\tb", "O")]], {}),
    "quoted tsv with a header": ("a.tsv", 'word\ttag\n""""\tO\nAnna\tB-PER\n\nx\tO\n', [[('"', "O"), ("Anna", "B-PER")], [("x", "O")]], {}),
    "every cell quoted": ("a.tsv", '"word"\t"tag"\n"Anna"\t"B-PER"\n"sang"\t"O"\n\n"x"\t"O"\n', [ANNA[0], [("x", "O")]], {}),
    "tsv with quotes as words": ("a.tsv", 'word\ttag\n"\tO\n"Anna\tB-PER\n\n"\tO\n', [[('"', "O"), ('"Anna', "B-PER")], [('"', "O")]], {}),
    "quoted words in tabs": ("a.conll", '"Anna"\tB-PER\nsang\tO\n', [[('"Anna"', "B-PER"), ("sang", "O")]], {}),
    "unnamed columns": ("a.csv", ",sentence_idx,,word,tag,\n0,1,,Anna,B-PER,\n1,1,,sang,O,\n", ANNA, {}),
    "a column twice that is not used": ("a.csv", "x,x,tokens,tags\n1,2,Anna sang,B-PER O\n", ANNA, {}),
    "rows of commas": ("a.csv", "word,tag\nAnna,B-PER\nBerg,I-PER\nsang,O\n,\nOslo,B-LOC\n", TWO, {}),
    "kaggle": ("a.csv", "Sentence #,Word,POS,Tag\nSentence: 1,Anna,NNP,B-PER\n,sang,VBD,O\n", ANNA, {}),
    "kaggle, pos": ("a.csv", "Sentence #,Word,POS,Tag\nSentence: 1,Anna,NNP,B-PER\n,sang,VBD,O\n", [[("Anna", "NNP"), ("sang", "VBD")]], {"task_name": "pos"}),
    "plural names, a word a row": ("a.csv", "tokens,tags\nAnna,B-PER\nBerg,I-PER\nsang,O\n\nOslo,B-LOC\n", TWO, {}),
    "a header of columns": ("a.conll", "Token Tag\nAnna B-PER\nBerg I-PER\nsang O\n\nOslo B-LOC\n", TWO, {}),
    "HIPE": ("a.tsv", "TOKEN\tNE-COARSE\tMISC\n# doc = 1\nAnna\tB-PER\t_\nBerg\tI-PER\t_\nsang\tO\tEndOfSentence\n# segment = 3\nOslo\tB-LOC\t_\n", TWO, {}),
    # one sentence a line
    "ATIS": ("a.txt", "BOS anna flew EOS\tO B-name O O\n", [[("BOS", "O"), ("anna", "B-name"), ("flew", "O"), ("EOS", "O")]], {}),
    "a sentence a line, one of one word": ("a.tsv", "Anna sang\tB-PER O\nOslo\tB-LOC\n", [ANNA[0], [("Oslo", "B-LOC")]], {}),
    # comments
    "comments of as many pieces": ("a.iob2", "# sent_id = 2\n# text = In Oslo.\n" + FIVE, IN_OSLO, BY_NUMBER),
    "a document above": ("a.iob2", "# newdoc id = a1\n# sent_id = 2\n# text = In Oslo.\n" + FIVE, IN_OSLO, BY_NUMBER),
    "MultiCoNER": ("a.conll", "# id 0a1b\tdomain=en\nanna _ _ B-PER\nsang _ _ O\n", [[("anna", "B-PER"), ("sang", "O")]], {}),
    "MultiCoNER, blanks": ("a.conll", "# id 0a1b domain=en\nanna _ _ B-PER\nsang _ _ O\n\n# id 0a1c domain=en\nx _ _ O\n", [[("anna", "B-PER"), ("sang", "O")], [("x", "O")]], {}),
    "a comment first": ("a.conll", "###DOC:1\nAnna B-PER\nsang O\n", ANNA, {}),
    "begin and end of a document": ("a.conll", "#begin document\nAnna B-PER\nsang O\n\n#end document\n", ANNA, {}),
    "begin document (x)": ("a.conll", "#begin document (x); part 000\nAnna B-PER\nsang O\n", ANNA, {}),
    "a comment inside a sentence": ("a.tsv", "Anna\tB-PER\n# page = 2\nsang\tO\n", ANNA, {}),
    "a hash is a word": ("a.conll", "#\tNN\tB-NP\tO\nis\tVB\tO\tO\n", [[("#", "O"), ("is", "O")]], {}),
    "a hash is a word, blanks": ("a.conll", "# NN B-NP O\nis VB O O\n\n# NN O O\n", [[("#", "O"), ("is", "O")], [("#", "O")]], {}),
    "a hashtag is a word": ("a.conll", "#nlp O\nAnna B-PER\n", [[("#nlp", "O"), ("Anna", "B-PER")]], {}),
    # irregular lines
    "a blank word": ("a.conll", "Anna\tB-PER\n \tO\nsang\tO\n", [[("Anna", "B-PER"), (" ", "O"), ("sang", "O")]], {}),
    "an empty word": ("a.conll", "Anna\tB-PER\n\tO\nsang\tO\n", [[("Anna", "B-PER"), ("", "O"), ("sang", "O")]], {}),
    "an empty word, blanks": ("a.conll", "Anna B-PER\n O\nsang O\n", [[("Anna", "B-PER"), ("", "O"), ("sang", "O")]], {}),
    "documents": ("a.conll", "-DOCSTART\tO\n\nAnna\tB-PER\n--DOCSTART--\nsang\tO\n-docstart- -X- O\nOslo\tB-LOC\n", [[("Anna", "B-PER")], [("sang", "O")], [("Oslo", "B-LOC")]], {}),
    "a document with its name": ("a.conll", "-DOCSTART- (1 EU)\nAnna\tB-PER\nsang\tO\n", ANNA, {}),
    # CoNLL-U
    "column 4 of CoNLL-U is UPOS": ("a.conllu", CONLLU, [[("Anna", "PROPN"), ("sang", "VERB")]], {"label_column_name": "4"}),
    "column 5 of CoNLL-U is XPOS": ("a.conllu", CONLLU, [[("anna", "NNP"), ("sing", "VBD")]], {"text_column_name": "3", "label_column_name": "5"}),
    "an attribute of MISC": ("a.conllu", CONLLU, ANNA, {"label_column_name": "name"}),
    # what flags name is read, whatever it looks like
    "numbers as words": ("a.conll", "1\tAnna\tB-PER\tO\n2\tsang\tO\tO\n", [[("1", "B-PER"), ("2", "O")]], {"text_column_name": "1", "label_column_name": "3"}),
    "lemmas as tags": ("a.conll", "".join(f"w{c} l{c}\n" for c in "abcdefghij"), [[(f"w{c}", f"l{c}") for c in "abcdefghij"]], {"label_column_name": "2"}),
}  # fmt: skip


def write(case, folder) -> str:
    path = folder / case[0]
    path.write_bytes(case[1] if isinstance(case[1], bytes) else case[1].encode())
    return str(path)


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_with_the_right_tags_on_the_right_words(name, tmp_path):
    file = write(READ[name], tmp_path)
    found = [list(zip(s["tokens"], s["tags"], strict=True)) for s in read(file, **READ[name][3])]
    assert found == READ[name][2]


@pytest.mark.parametrize("name", [name for name in READ if READ[name][0] != "a.txt"])
def test_infer_tags_the_words_that_training_reads(name, tmp_path):
    file = write(READ[name], tmp_path)
    columns = Columns(READ[name][3].get("text_column_name"), READ[name][3].get("label_column_name"))
    source = documents.open_input(file, columns)
    found = [source.parse(raw) for chunk in source.chunks() for raw in chunk]
    words = [[document.text[start:end] for start, end in document.words] for document in found]
    assert words == [[word for word, _ in sentence] for sentence in READ[name][2]]


REFUSED = {  # name -> (file name, content, parts of the error, flags)
    "numbered words": ("a.conll", "1\tAnna\tB-PER\tO\n", ["a.conll:1: the words are numbers ('1')", "--text_column_name 2 --label_column_name 3"], {}),
    "numbered words, five columns": ("a.iob2", "# sent_id = 2\n" + FIVE, ["a.iob2:2: the words are numbers ('1', '2')", "--text_column_name 2 --label_column_name 3"], {}),
    "numbers and tags": ("a.conll", "1 O\n2 B-PER\n\n1 O\n", ["the words are numbers"], {}),
    "tags first": ("a.conll", "B-PER\tanna\n", ["the words look like tags ('B-PER')", "--text_column_name 2 --label_column_name 1"], {}),
    "annotation ids": ("a.ann", "T1\tPER 0 4\tAnna\n", ["the words are ids ('T1')", "brat", "docs/formats.md"], {}),
    "ids of words": ("a.conll", "doc1-1\tAnna\tB-PER\ndoc1-2\tsang\tO\n", ["the words are ids", "--text_column_name 2 --label_column_name 3"], {}),
    "as many tags as words": ("a.conll", "".join(f"w{c}\tO\tlemma{c}\n" for c in "abcdefghijkl"), ["12 tags for 12 different words", "--label_column_name"], {}),
    "offsets as tags": ("a.conll", "".join(f"w{c} B-PER {i}\n" for i, c in enumerate("abcdefghijkl")), ["no tags such as B-PER", "--text_column_name 1 --label_column_name 2"], {}),
    "tags in the middle": ("a.conll", "Anna\tB-PER\t_\nsang\tO\t_\n", ["no tags such as B-PER", "--text_column_name 1 --label_column_name 2"], {}),
    "five columns, pos": ("a.conll", "Anna x NNP y B-PER\nsang x VBD y O\n", ["a.conll:1: --task_name pos", "1 'Anna', 2 'x', 3 'NNP', 4 'y', 5 'B-PER'", "--label_column_name"], {"task_name": "pos"}),
    "a comment or a word": ("a.conll", "#nlp X\nAnna Y\n", ["a.conll:1: '#nlp X' may be a comment or a word", "tabs"], {}),
    "latin-1": ("a b.conll", "Malmö B-LOC\n".encode("latin-1"), ["a b.conll:1: not UTF-8, but probably ISO-8859-1", "iconv -f ISO-8859-1 -t UTF-8 "], {}),
    "windows": ("a.conll", "“Malmö” B-LOC\n".encode("cp1252"), ["probably WINDOWS-1252", "iconv -f WINDOWS-1252"], {}),
    "utf-16": ("a.conll", "Malmö B-LOC\n".encode("utf-16"), ["probably UTF-16", "iconv -f UTF-16 -t UTF-8 "], {}),
    "utf-16 without a mark": ("a.conll", "Oslo B-LOC\nin O\n".encode("utf-16-le"), ["a.conll:1: not UTF-8, but probably UTF-16LE", "iconv -f UTF-16LE"], {}),
    "utf-16 json": ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n'.encode("utf-16"), ["probably UTF-16", "iconv"], {}),
    "carriage returns": ("a.conll", "Anna B-PER\rsang O\r", ["lines end with CR only", "tr '"], {}),
    "gzip": ("a.conll.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", ["compressed", "gunzip -k"], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_a_line_that_helps(name, tmp_path):
    file = write(REFUSED[name], tmp_path)
    with pytest.raises(ValueError) as raised:
        read(file, **REFUSED[name][3])
    message = str(raised.value)
    assert message.startswith(file) and "\n" not in message
    assert all(part in message for part in REFUSED[name][2]), message
    # The flags that it names read the file.
    if "--text_column_name " in message and "pass " in message:
        flags = message.partition("pass ")[2].partition(" to read")[0].split()
        assert len(read(file, **{name.strip("-"): value for name, value in zip(flags[::2], flags[1::2])})) > 0


@pytest.mark.parametrize("name", ["latin-1", "windows", "utf-16", "utf-16 without a mark", "utf-16 json"])
def test_the_command_for_the_encoding_makes_the_file_readable(name, tmp_path):
    file = write(REFUSED[name], tmp_path)
    with pytest.raises(ValueError) as raised:
        read(file)
    command = str(raised.value).partition("convert it: ")[2]
    subprocess.run(command, shell=True, check=True)
    converted = shlex.split(command)[-1]
    assert read(converted)[0]["tokens"][0] in ("Malmö", "“Malmö”", "Oslo", "a")


def test_an_error_in_a_real_command_is_one_line_before_training(tmp_path):
    file = write(REFUSED["numbered words"], tmp_path)
    done = run("train.py", "--train_file", file, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {file}:1: ")
    assert not (tmp_path / "out").exists()


def notes(encoder: str, path) -> list[str]:
    splits, _ = load(encoder, train_file=str(path))
    return [note.removeprefix(f"{path}: ") for note in data_report.checks(splits, 16)]


def test_what_may_be_meant_otherwise_is_noted(encoders, tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("en:Anna\tB-PER\nen:sang\tO\n\nen:Oslo\tB-LOC\n")
    assert "every word begins with 'en:', as in WikiANN's raw files; sed 's/^en://' removes it" in notes(
        encoders["wordpiece"], path
    )
    path.write_text("Anna\tB-PER\tO\nOslo\tO\tB-LOC\nsang\tO\tB-X\n")
    assert "column 3 is read as tags, but column 2 (B-PER) could be; --label_column_name chooses" in notes(
        encoders["wordpiece"], path
    )
    path.write_text("Anna B-PER\nsang O\n")
    assert "the only entity type is PER" in notes(encoders["wordpiece"], path)
    path.write_text("Anna 1\nsang 0\n")
    assert any(note.startswith("tags are numbers without names") for note in notes(encoders["wordpiece"], path))
    path.write_text("Anna\tB-PER\n \tO\nin\tB-LOC\n")
    assert "1 word without subwords, replaced by the unknown token: " + f"{path}:2 ' '" in notes(
        encoders["wordpiece"], path
    )
    write_conll(path, [{"tokens": ["Anna", "in", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]}])
    assert not [note for note in notes(encoders["wordpiece"], path) if "tag" in note or "word" in note.split()[:2]]


def test_the_first_line_of_data_py_tells_how_a_file_was_read(tmp_path):
    rows = "Anna NNP B-NP I-PER\nsang VBD B-VP O\n\nOslo NNP B-NP I-LOC\n\nBonn NNP B-NP I-LOC\nin IN B-PP O\nRoma NNP B-NP B-LOC\n"
    (tmp_path / "a.conll").write_text(rows)
    done = run("data.py", tmp_path / "a.conll")
    first = f"{tmp_path / 'a.conll'}: CoNLL, 4 columns: tokens, pos_tags, chunk_tags, tags; IOB1, 1 exception"
    assert done.stdout.splitlines()[0] == first, done.stdout + done.stderr
    flags = ["--model_name_or_path", ROOT / "none"]
    assert "none" in run("data.py", tmp_path / "a.conll", *flags).stderr  # the flags of data.py follow the file


DESCRIPTIONS = {
    "headerless csv": "CSV without a header, 2 columns: tokens, tags",
    "kaggle": "CSV, 4 columns: Sentence #, Word, POS, Tag; words 'Word', tags 'Tag'",
    "HIPE": "TSV, 3 columns: TOKEN, NE-COARSE, MISC; words 'TOKEN', tags 'NE-COARSE'",
    "ATIS": "a sentence a line, 2 columns: tokens, tags",
    "an attribute of MISC": "CoNLL-U; words 'tokens', tags 'name'",
    "comments of as many pieces": "CoNLL, 5 columns: tokens, pos_tags, chunk_tags, 4, tags; words: column 2, tags: column 3",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_how_a_file_is_read_is_described(name, tmp_path):
    flags = data.columns_of(data.get_args([f"--{key}={value}" for key, value in READ[name][3].items()]))
    assert sources.open_file(write(READ[name], tmp_path), flags).read_as == DESCRIPTIONS[name]


def test_the_cache_of_this_test_is_its_own():
    assert str(sources.cached("x")["cache_file_name"]).startswith(CACHE.name)
