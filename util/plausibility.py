"""What the words and the tags of a corpus look like: input that is probably misread is refused.

Words are many, and most have letters. Tags are few, and in most corpora they are such as B-PER, I-PER and O. The first
sentences of a file show columns that hold something else: numbers of words, annotation ids, offsets.
"""

import re
from collections.abc import Iterable

from util.annotations import Columns, label_columns, pick_column, text_columns, words_and_tags
from util.lines import IOB_TAG
from util.tables import has_small_letters

SAMPLE_SIZE = 200  # sentences
_NUMBER = re.compile(r"[-+]?\d+([.,:/-]\d+)*%?")
_ID = re.compile(r"[A-Za-z_#*-]{0,12}\d+([-_.:/][A-Za-z]*\d+)*")  # T1, E12, doc1_s2, 3-1
_CHUNKS = {"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:(?=.)")


def kind(values: Iterable[str]) -> str:
    """What the values of a column look like: blank, outside (O or _ only), tags (B-PER, O), numbers, ids or text."""
    values = set(values)
    if not any(map(str.strip, values)):
        return "blank"
    if all(value in ("O", "o", "_", "-", "") for value in values):
        return "outside"
    if all(IOB_TAG.fullmatch(value) or value in ("_", "-") for value in values):
        return "tags"
    if all(_NUMBER.fullmatch(value) for value in values):
        return "numbers"
    return "ids" if all(_ID.fullmatch(value) for value in values) else "text"


def looks_like_words(values: list[str]) -> bool:
    """Whether most values have letters that are not ASCII capitals, as tags of parts of speech (NNP) have."""
    return kind(values) == "text" and 2 * sum(map(has_small_letters, values)) >= len(values)


def could_be_words(values: list[str]) -> bool:
    """Whether values look like words, or are words in capitals: most of them differ."""
    is_varied = len(values) > 2 and 2 * len(set(values)) > len(values) and any(map(str.isalpha, values))
    return looks_like_words(values) or (is_varied and kind(values) == "text")


def is_chunks(values: list[str]) -> bool:
    """Whether the tags are those of chunks (B-NP), as in CoNLL-2000 and in the third column of CoNLL-2003."""
    return {value[2:] for value in values} - {""} <= _CHUNKS and kind(values) == "tags"


class Sample:
    """The first sentences of a file: words, tags, and the other columns that have a value for every word."""

    def __init__(self, records: list[dict], columns: Columns):
        self.sentences: list[list[str]] = []
        self.tags: list[str] = []
        self.columns: dict[str, list[str]] = {}  # all of them, in the order of the file
        self.text_name = self.label_name = ""
        for record in records:
            try:
                self.text_name = pick_column(record, "", text_columns(columns))
                self.label_name = pick_column(record, "", label_columns(columns))
                annotated = words_and_tags(record, columns)
            except (ValueError, TypeError, KeyError):
                continue  # reading the file raises it again, with its position
            if not all(isinstance(word, str) for word in annotated.words):
                continue
            if annotated.words:
                self.sentences.append(annotated.words)
                self.tags += [str(tag) for tag in annotated.tags]
            for name, values in record.items():
                if isinstance(values, list) and len(values) == len(annotated.words):
                    self.columns.setdefault(name, []).extend(map(str, values))
        self.words = [word for sentence in self.sentences for word in sentence]
        used = (self.text_name, self.label_name)
        self.others = {name: values for name, values in self.columns.items() if name not in used}


def check_plausible(records: list[dict], columns: Columns, has_names: bool, named: Columns) -> list[str]:
    """Raises ValueError, without a position, if the words or the tags of the first records are implausible.

    has_names: the file names its columns. named: the columns as flags give them, which are not checked.
    Returns notes for the log.
    """
    sample = Sample(records, columns)
    if not sample.words:
        return []
    reason = None
    if not named.text:
        reason = _implausible_words(sample)
    if not reason and not named.labels:
        reason = _implausible_tags(sample, columns, has_names)
    if _are_brackets(sample.tags) or (reason and any(map(_are_brackets, sample.columns.values()))):
        raise ValueError("the tags are brackets, as in CoNLL-2012 (OntoNotes); convert them to B-PER, I-PER and O")
    if reason:
        raise ValueError(f"{reason}; {_advice(sample, has_names)}")
    return _notes(sample, named, has_names)


def _implausible_words(sample: Sample) -> str | None:
    words, shown = sample.words, ", ".join(map(repr, dict.fromkeys(sample.words[:3])))
    what = kind(words)
    has_other_words = any(could_be_words(values) for values in sample.others.values())
    num_blank = sum(not word.strip() for word in words)
    if what == "blank" or (3 * num_blank >= len(words) and has_other_words):
        return f"{num_blank} of {len(words)} words are blank"
    if _look_like_tags(sample):
        return f"the words look like tags ({shown})"
    if what == "numbers" and (has_other_words or _are_ascending(sample.sentences)):
        return f"the words are numbers ({shown})"
    if what == "ids" and has_other_words:
        return f"the words are ids ({shown})"
    same = [len(set(sentence) - {""}) <= 1 for sentence in sample.sentences]
    if all(same) and max(map(len, sample.sentences)) > 1 and has_other_words:
        return f"the words of a sentence are all the same ({shown})"
    return None


def _look_like_tags(sample: Sample) -> bool:
    """Whether words and tags are exchanged, as in "B-PER Anna" or "NNP Anna"."""
    words, tags = sample.words, sample.tags
    if kind(tags) not in ("text", "ids") or len(set(words)) > len(set(tags)):
        return False
    if kind(words) in ("tags", "outside"):
        return any(len(word) > 1 for word in words) or len(words) > 1
    # Tags of parts of speech have capitals only. Words that recur have other letters.
    words_are_capitals = "".join(words).isascii() and not has_small_letters("".join(words))
    tags_of_letters = list(filter(str.isalpha, tags))
    tags_are_words = len(tags_of_letters) > 0 and all(map(has_small_letters, tags_of_letters))
    return words_are_capitals and tags_are_words and len(set(words)) < len(set(tags))


def _are_ascending(sentences: list[list[str]]) -> bool:
    """Whether each sentence counts its words, and some sentence has several."""
    for sentence in sentences:
        if not all(word.isdecimal() for word in sentence):
            return False
        numbers = [int(word) for word in sentence]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return False
    return max(map(len, sentences)) > 1


def _implausible_tags(sample: Sample, columns: Columns, has_names: bool) -> str | None:
    tags, shown = sample.tags, ", ".join(map(repr, dict.fromkeys(sample.tags[:3])))
    what = kind(tags)
    others = [values for values in sample.others.values() if kind(values) == "tags"]
    if what == "outside" and "O" in tags:  # a sentence without entities, beside its chunks
        others = [values for values in others if not is_chunks(values)]
    may_lack_tags = what == "outside" or (what != "tags" and "O" not in tags)
    if not has_names and columns.task == "ner" and others and may_lack_tags:
        return f"the last column has no tags such as B-PER ({shown}), but another column has"
    if set(tags) <= {"_", "-"}:
        return f"every tag is {tags[0]!r}: the file has no tags"
    if what == "tags":
        return None
    num_tags, num_words = len(set(tags)), len(set(sample.words))
    with_blanks = [tag for tag in tags if " " in tag.strip()]
    if len(with_blanks) > len(tags) / 2 and 1 < len(set(with_blanks)) == len(with_blanks):
        return f"the tags look like text ({shown})"
    like_words = what in ("numbers", "ids") or looks_like_words(tags)
    is_varied = 20 * num_words >= len(sample.words)  # as text is, in the first sentences
    if num_tags >= 8 and num_tags >= 0.8 * num_words and is_varied and like_words:
        return f"{num_tags} tags for {num_words} different words in {len(sample.sentences)} sentences ({shown})"
    return None


def _are_brackets(values: list[str]) -> bool:
    """Whether tags are such as (PER* and *)."""
    return "*" in values and any(value.startswith("(") for value in values)


def _advice(sample: Sample, has_names: bool) -> str:
    """The flags that would read the file, if its columns show them."""
    numbers = {name: name if has_names else str(i) for i, name in enumerate(sample.columns, 1)}
    few_blank = [name for name, values in sample.columns.items() if 3 * values.count("") < len(values)]
    texts = [name for name in few_blank if could_be_words(sample.columns[name])]
    text = max(texts, key=lambda name: len(set(sample.columns[name])), default=None)
    label = next((name for name, values in sample.columns.items() if kind(values) == "tags"), None)
    if text and not label and len(sample.columns) == 2:
        label = next(name for name in sample.columns if name != text)
    if text and label:
        flags = f"--text_column_name {numbers[text]} --label_column_name {numbers[label]}"
        word, tag = next(filter(str.strip, sample.columns[text])), _first_tag(sample.columns[label])
        return f"pass {flags} to read words such as {word!r} and tags such as {tag!r}"
    values = ", ".join(f"{numbers[name]} {values[0]!r}" for name, values in sample.columns.items())
    flags = "--text_column_name and --label_column_name"
    return f"name the columns with {flags}: {values}" if values else f"name the columns with {flags}"


def _first_tag(values: list[str]) -> str:
    return next((value for value in values if kind([value]) == "tags"), values[0])


def _notes(sample: Sample, named: Columns, has_names: bool) -> list[str]:
    notes = []
    matches = [match.group() for match in map(_LANGUAGE.match, sample.words) if match]
    if len(sample.words) > 1 and len(matches) >= 0.9 * len(sample.words) and len(set(matches)) == 1:
        command = f"; sed 's/^{matches[0]}//' removes it" if not has_names else ""
        most = "every word begins" if len(matches) == len(sample.words) else "most words begin"
        notes.append(f"{most} with {matches[0]!r}, as in WikiANN's raw files{command}")
    others = [name for name, values in sample.others.items() if kind(values) == "tags" and not is_chunks(values)]
    if others and not named.labels and named.task == "ner":
        names = list(sample.columns)
        shown = [name if has_names else f"column {names.index(name) + 1}" for name in (sample.label_name, *others)]
        shown[1:] = [f"{text} ({_first_tag(sample.others[name])})" for text, name in zip(shown[1:], others)]
        notes.append(f"{shown[0]} is read as tags, but {' and '.join(shown[1:])} could be; --label_column_name chooses")
    return notes
