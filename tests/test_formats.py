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
    "a comma is the first word": ("a.csv", ",;O\nAnna;B-PER\n\nx;O\n", [[(",", "O"), ("Anna", "B-PER")], [("x", "O")]], {}),
    "a hash is the first word": ("a.csv", "#,O\nAnna,B-PER\n\n#x,O\n", [[("#", "O"), ("Anna", "B-PER")], [("#x", "O")]], {}),
    "parts of speech without a header": ("a.tsv", "Anna\tNNP\nsang\tVBD\n\nOslo\tNNS\n", [[("Anna", "NNP"), ("sang", "VBD")], [("Oslo", "NNS")]], {"text_column_name": "1", "label_column_name": "2"}),
    "a word that is also a name": ("a.conll", "Text NN\nsang VB\n\nx JJ\n", [[("Text", "NN"), ("sang", "VB")], [("x", "JJ")]], {"task_name": "pos"}),
    "types before letters": ("a.tsv", "Pluto\tlocation-B\nran\tO\n", [[("Pluto", "location-B"), ("ran", "O")]], {}),
    "names in another language": ("a.conll", "mot\tétiquette\nAnna\tB-PER\nsang\tO\n\nOslo\tB-LOC\n", [ANNA[0], [("Oslo", "B-LOC")]], {"text_column_name": "mot", "label_column_name": "étiquette"}),
    "names behind a hash": ("a.tsv", "#word\ttag\nAnna\tB-PER\nsang\tO\n\nx\tO\n", [ANNA[0], [("x", "O")]], {}),
    "numbers below a hash": ("a.csv", "#,word,tag\n1,Anna,B-PER\n2,sang,O\n\n3,x,O\n", [ANNA[0], [("x", "O")]], {}),
    "blanks after commas": ("a.csv", "word, tag\nAnna, B-PER\nsang, O\n,\nx, B-LOC\n", [ANNA[0], [("x", "B-LOC")]], {}),
    "joined tables": ("a.csv", "word,tag\nAnna,B-PER\n\nword,tag\nx,O\n", [[("Anna", "B-PER")], [("x", "O")]], {}),
    "R, write.table": ("a.txt", '"word" "tag"\n"Anna" "B-PER"\n"sang" "O"\n\n"x" "O"\n', [ANNA[0], [("x", "O")]], {}),
    "ids that recur in another document": ("a.csv", "doc_id,sentence_id,word,tag\na,0,Anna,B-PER\na,0,sang,O\nb,0,Oslo,B-LOC\n", [ANNA[0], [("Oslo", "B-LOC")]], {}),
    "Excel": ("a.csv", "sep=;\nword;tag\nAnna;B-PER\nsang;O\n;\nx;O\n", [ANNA[0], [("x", "O")]], {}),
    "pandas without names": ("a.csv", ",0,1\n0,Anna,B-PER\n1,sang,O\n\n2,x,O\n", [ANNA[0], [("x", "O")]], {"text_column_name": "2", "label_column_name": "3"}),
    "pandas, quotes without numbers": ("a.tsv", '"id"\t"word"\t"tag"\n1\t"Anna"\t"B-PER"\n2\t"sang"\t"O"\n\n3\t"x"\t"O"\n', [ANNA[0], [("x", "O")]], {}),
    "quotes after a thousand lines": ("a.tsv", "word\ttag\n" + "x\tO\n\n" * 1200 + '""""\tO\nAnna\tB-PER\n', [[("x", "O")]] * 1200 + [[('"', "O"), ("Anna", "B-PER")]], {}),
    "HIPE, other comments": ("a.tsv", "TOKEN\tNE-COARSE\tMISC\n#doc = 1\nAnna\tB-PER\t_\nsang\tO\tEndOfSentence\n#seg\nx\tO\t_\n", [ANNA[0], [("x", "O")]], {}),
    "empty last cells": ("a.conll", "Anna\tB-PER\tx\nsang\tO\t\n", ANNA, {"text_column_name": "1", "label_column_name": "2"}),
    # one sentence a line
    "hashtags first": ("a.tsv", "#win Anna sang\tO B-PER O\nOslo\tB-LOC\n", [[("#win", "O"), ("Anna", "B-PER"), ("sang", "O")], [("Oslo", "B-LOC")]], {}),
    "one word first, parts of speech": ("a.tsv", "Yes\tUH\nIt rained\tPRP VBD\n", [[("Yes", "UH")], [("It", "PRP"), ("rained", "VBD")]], {"task_name": "pos"}),
    "behind ids": ("a.tsv", "id1\tAnna sang\tB-PER O\nid2\tOslo\tB-LOC\n", [ANNA[0], [("Oslo", "B-LOC")]], {}),
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
    "thousands of comments": ("a.conll", "# a b c\n" * 6000 + "Anna\tB-PER\nsang\tO\n", ANNA, {}),
    "a comment with a tab": ("a.conll", "#begin document (x);\tpart 000\nAnna\tB-PER\nsang\tO\n", ANNA, {}),
    "brackets are words": ("a.conll", "[] O\nAnna B-PER\n\n{} O\n", [[("[]", "O"), ("Anna", "B-PER")], [("{}", "O")]], {}),
    "two byte order marks": ("a.conll", "\ufeff\ufeffAnna B-PER\nsang O\n", ANNA, {}),
    # irregular lines
    "a blank word": ("a.conll", "Anna\tB-PER\n \tO\nsang\tO\n", [[("Anna", "B-PER"), (" ", "O"), ("sang", "O")]], {}),
    "an empty word": ("a.conll", "Anna\tB-PER\n\tO\nsang\tO\n", [[("Anna", "B-PER"), ("", "O"), ("sang", "O")]], {}),
    "an empty word, blanks": ("a.conll", "Anna B-PER\n O\nsang O\n", [[("Anna", "B-PER"), ("", "O"), ("sang", "O")]], {}),
    "documents": ("a.conll", "-DOCSTART\tO\n\nAnna\tB-PER\n--DOCSTART--\nsang\tO\n-docstart- -X- O\nOslo\tB-LOC\n", [[("Anna", "B-PER")], [("sang", "O")], [("Oslo", "B-LOC")]], {}),
    "a document with its name": ("a.conll", "-DOCSTART- (1 EU)\nAnna\tB-PER\nsang\tO\n", ANNA, {}),
    # CoNLL-U
    "column 4 of CoNLL-U is UPOS": ("a.conllu", CONLLU, [[("Anna", "PROPN"), ("sang", "VERB")]], {"label_column_name": "4"}),
    "column 5 of CoNLL-U is XPOS": ("a.conllu", CONLLU, [[("anna", "NNP"), ("sing", "VBD")]], {"text_column_name": "3", "label_column_name": "5"}),
    "ten columns, a number first": ("a.conll", "1996 a b c d e f g h O\nAnna a b c d e f g h B-PER\n", [[("1996", "O"), ("Anna", "B-PER")]], {}),
    "an attribute that is rare": ("a.conllu", "1\tw\tw\tX\t_\t_\t0\troot\t_\t_\n\n" * 300 + "1\tw\tw\tX\t_\t_\t0\troot\t_\tNER=B-LOC\n", [[("w", "O")]] * 300 + [[("w", "B-LOC")]], {"label_column_name": "NER"}),
    "an empty MISC": ("a.conllu", "1\tw\tw\tX\t_\t_\t0\troot\t_\t\n", [[("w", "X")]], {"task_name": "pos"}),
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
    "names of documents": ("a.conll", "a.txt\tAnna\tB-PER\na.txt\tsang\tO\n\nb.txt\tOslo\tB-LOC\n", ["the words of a sentence are all the same ('a.txt', 'b.txt')", "--text_column_name 2 --label_column_name 3"], {}),
    "numbers in capitals": ("a.conll", "0\tANNA\tB-PER\n5\tSANG\tO\n\n10\tOSLO\tB-LOC\n", ["the words are numbers", "--text_column_name 2 --label_column_name 3"], {}),
    "O first": ("a.conll", "O\tsang\nO\twell\n", ["the words look like tags", "--text_column_name 2 --label_column_name 1"], {}),
    "bare tags first": ("a.conll", "B\tAnna\nI\tBerg\nO\tsang\n", ["the words look like tags", "--text_column_name 2 --label_column_name 1"], {}),
    "types first": ("a.conll", "PER Anna\nO sang\nO in\nLOC Oslo\n", ["the words look like tags", "--text_column_name 2 --label_column_name 1"], {}),
    "parts of speech first": ("a.conll", "NNP Anna\nVBD sang\n. .\n\nNNP Oslo\nVBD won\n", ["the words look like tags", "--text_column_name 2 --label_column_name 1"], {}),
    "sentence ids that are not repeated": ("a.csv", "Sentence: 1,Anna,NNP,B-PER\n,sang,VBD,O\nSentence: 2,x,NN,O\n", ["words are blank", "--text_column_name 2 --label_column_name 4"], {}),
    "no tags": ("a.conll", "anna _ _ _\nsang _ _ _\n", ["every tag is '_'"], {}),
    "CoNLL-2012": ("a.conll", "#begin document (a); part 000\na 0 0 Anna NNP (S* - - - - (PERSON) -\na 0 1 sang VBD *) - - - - * -\n", ["brackets, as in CoNLL-2012"], {}),
    "CoNLL-2012, by number": ("a.conll", "a 0 0 Anna NNP (S* - - - - (PERSON) -\na 0 1 sang VBD *) - - - - * -\n", ["brackets, as in CoNLL-2012"], {"text_column_name": "4", "label_column_name": "11"}),
    "WebAnno": ("a.tsv", "#FORMAT=WebAnno TSV 3.3\n\n\n#Text=Anna sang\n1-1\t0-4\tAnna\tPER\t\n1-2\t5-9\tsang\t_\t\n", ["WebAnno TSV is not read", "CoNLL 2002"], {}),
    "bars": ("a.txt", "Anna sang ||| B-PER O\nOslo x ||| B-LOC O\n", ["separated by |||", "sed 's/"], {}),
    "slashes": ("a.txt", "Anna/NNP sang/VBD ./.\nIt/PRP rained/VBD ./.\n", ["joined by /", "a tab"], {}),
    "a sentence a line, unequal": ("a.txt", "Anna sang\tB-PER O\nIt rained hard\tO O\n", ["a.txt:2: 3 words but 2 tags"], {}),
    "names or words": ("a.csv", "Wort,Etikett\nAnna,Name\nsang,Verb\n\nOslo,Name\n", ["may be a header or a word", "tokens and tags"], {}),
    "names in another language, not named": ("a.conll", "mot\tétiquette\nAnna\tB-PER\nsang\tO\n\nOslo\tB-LOC\n", ["'mot', 'étiquette' may be a header or a word", "--text_column_name mot --label_column_name étiquette"], {}),
    "entities in MISC": ("a.conllu", CONLLU, ["MISC has name=B-PER: pass --label_column_name name"], {}),
    "no such attribute": ("a.conllu", CONLLU, ["no column 'foo'", "MISC, which has SpaceAfter, name"], {"label_column_name": "foo"}),
    "an annotation with relations": ("a.ann", "T1\tPER 0 4\tAnna\nR1\tfoo Arg1:T1 Arg2:T2\n", ["annotations of brat"], {}),
    "GB18030": ("a.conll", "高 B-NAME\n勇 E-NAME\n， O\n男 O\n".encode("gb18030"), ["not UTF-8", "iconv -f ENCODING", "GB18030"], {}),
    "Big5": ("a.conll", "王 B-PER\n小 I-PER\n在 O\n".encode("big5"), ["not UTF-8", "BIG5"], {}),
    "Cyrillic": ("a.conll", "Москва B-LOC\nв O\nгород O\n".encode("cp1251"), ["not UTF-8", "WINDOWS-1251"], {}),
    "one broken line": ("a.conll", ("Malmö B-LOC\n" * 50).encode() + b"caf\xe9 O\n", ["a.conll:51: not UTF-8, but other lines are"], {}),
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
    return [line.partition(": ")[2].removeprefix(f"{path}: ") for line in data_report.checks(splits, 16)]


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


def test_the_splits_of_a_corpus_have_one_column_of_tags(encoders, tmp_path):
    header = "TOKEN\tNE-COARSE-LIT\tNE-COARSE-METO\tMISC\n"
    (tmp_path / "train.tsv").write_text(
        header + "Anna\tB-pers\tO\t_\nsagt\tO\tO\tEndOfSentence\nBern\tB-loc\tB-org\t_\n"
    )
    (tmp_path / "dev.tsv").write_text(header + "Oslo\tO\tB-org\t_\nsagt\tO\tO\tEndOfSentence\nBern\tB-loc\tO\t_\n")
    files = {"train_file": str(tmp_path / "train.tsv"), "validation_file": str(tmp_path / "dev.tsv")}
    splits, _ = load(encoders["wordpiece"], **files)
    assert splits["validation"].sentences["tags"][:] == [["O", "O"], ["B-loc"]]
    note = "NE-COARSE-LIT is read as tags, but NE-COARSE-METO (B-org) could be; --label_column_name chooses"
    assert f"note: {tmp_path / 'train.tsv'}: {note}" in data_report.checks(splits, 16)


@pytest.mark.parametrize("stray", ["PER", "0", "o"])
def test_a_stray_tag_is_an_error_with_its_position(stray, encoders, tmp_path):
    rows = "Anna B-PER\nBerg I-PER\nsang O\n\n" * 30
    (tmp_path / "train").write_text(rows)
    (tmp_path / "dev").write_text(f"{rows}Oslo B-PER\nist O\nschön {stray}\n")
    files = {"train_file": str(tmp_path / "train"), "validation_file": str(tmp_path / "dev")}
    message = rf"dev:123: tag '{stray}' has no prefix, as 121 tags have; 1 have none.*--tag_scheme plain"
    with pytest.raises(ValueError, match=message):
        load(encoders["wordpiece"], **files)
    assert load(encoders["wordpiece"], **files, tag_scheme="plain")[0]["train"].scheme is None


SCHEMES = {  # tags -> how they are read
    "B-PER I-PER O | " * 9 + "S-PER O": "IOB2, 1 exception",
    "I-PER O | " * 8 + "S-PER O": "IOB1, 1 exception",
    "B-PER I-PER O | " * 6 + "B-PER E-PER O": "IOB2, 1 exception",
    "B-PER E-PER O S-LOC | " * 9 + "B-PER I-PER O": "BIOES, 1 exception",
    "b i o | b o": "IOB2",
}


@pytest.mark.parametrize("text", SCHEMES)
def test_a_few_errors_do_not_change_the_scheme(text, encoders, tmp_path):
    sentences = [part.split() for part in text.split("|")]
    write_conll(tmp_path / "x", [{"tokens": ["x"] * len(tags), "tags": tags} for tags in sentences])
    assert load(encoders["wordpiece"], train_file=str(tmp_path / "x"))[0]["train"].read_scheme == SCHEMES[text]
