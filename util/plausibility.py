"""What the words and the tags of a corpus look like: input that is probably misread is refused.

Words are many, and most have letters. Tags are few, and in most corpora they are such as B-PER, I-PER and O. The first
sentences of a file show columns that hold something else: numbers of words, annotation ids, offsets.
"""

import re

from util.annotations import Columns, label_columns, pick_column, text_columns, words_and_tags
from util.lines import IOB_TAG

SAMPLE_SIZE = 200  # sentences
_NUMBER = re.compile(r"[-+]?\d+([.,:/-]\d+)*%?")
_ID = re.compile(r"[A-Za-z_#*-]{0,12}\d+([-_.:/][A-Za-z]*\d+)*")  # T1, E12, doc1_s2, 3-1
_PREFIXED_TAG = re.compile(r"[BIESLUMW][-_:]\S+")
_BRAT_SPAN = re.compile(r"\S+ \d+ \d+(;\d+ \d+)*")  # PER 0 4
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:(?=.)")


def kind(values: list[str]) -> str:
    """What the values of a column look like: blank, outside (O or _ only), tags (B-PER, O), numbers, ids or text."""
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
    with_letters = [value for value in values if any(c.isalpha() and not "A" <= c <= "Z" for c in value)]
    return kind(values) == "text" and 2 * len(with_letters) >= len(values)


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
            if annotated.words:
                self.sentences.append([str(word) for word in annotated.words])
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
    if reason:
        raise ValueError(f"{reason}; {_advice(sample, has_names)}")
    return _notes(sample, named, has_names)


def _implausible_words(sample: Sample) -> str | None:
    words, shown = sample.words, ", ".join(map(repr, sample.words[:3]))
    what, tags_look_like_words = kind(words), kind(sample.tags) in ("text", "ids")
    has_other_words = any(looks_like_words(values) for values in sample.others.values())
    if what == "blank":
        return "all words are blank"
    if all(word == "O" or _PREFIXED_TAG.fullmatch(word) for word in words) and tags_look_like_words:
        return f"the words look like tags ({shown})" if what == "tags" else None
    if what == "numbers" and (has_other_words or _are_ascending(sample.sentences)):
        return f"the words are numbers ({shown})"
    has_brat_spans = any(_BRAT_SPAN.fullmatch(values[0]) for values in sample.others.values())
    if what == "ids" and (has_other_words or has_brat_spans):
        return f"the words are ids ({shown})"
    return None


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
    has_other_tags = any(kind(values) == "tags" for values in sample.others.values())
    if not has_names and columns.task == "ner" and has_other_tags and what != "tags" and "O" not in tags:
        return f"the last column has no tags such as B-PER ({shown}), but another column has"
    if what == "tags":
        return None
    num_tags, num_words = len(set(tags)), len(set(sample.words))
    with_blanks = [tag for tag in tags if " " in tag.strip()]
    if len(with_blanks) > len(tags) / 2 and 1 < len(set(with_blanks)) == len(with_blanks):
        return f"the tags look like text ({shown})"
    like_words = what in ("numbers", "ids") or looks_like_words(tags)
    is_varied = 20 * num_words >= len(sample.words)  # as text is, in the first sentences
    if num_tags >= 8 and num_tags >= 0.8 * num_words and is_varied and like_words:
        return (
            f"{num_tags} tags for {num_words} different words in the first {len(sample.sentences)} sentences ({shown})"
        )
    return None


def _advice(sample: Sample, has_names: bool) -> str:
    """The flags that would read the file, if its columns show them."""
    if any(_BRAT_SPAN.fullmatch(values[0]) for values in sample.columns.values()):
        return "convert annotations of brat to CoNLL with its tools/anntoconll.py"
    numbers = {name: name if has_names else str(i) for i, name in enumerate(sample.columns, 1)}
    text = next((name for name, values in sample.columns.items() if looks_like_words(values)), None)
    label = next((name for name, values in sample.columns.items() if kind(values) == "tags"), None)
    if text and label:
        flags = f"--text_column_name {numbers[text]} --label_column_name {numbers[label]}"
        word, tag = sample.columns[text][0], next(tag for tag in sample.columns[label] if kind([tag]) == "tags")
        return f"pass {flags} to read words such as {word!r} and tags such as {tag!r}"
    values = ", ".join(f"{numbers[name]} {values[0]!r}" for name, values in sample.columns.items())
    flags = "--text_column_name and --label_column_name"
    return f"name the columns with {flags}: {values}" if values else f"name the columns with {flags}"


def _notes(sample: Sample, columns: Columns, has_names: bool) -> list[str]:
    notes = []
    languages = {match.group() for match in map(_LANGUAGE.match, sample.words) if match}
    if len(languages) == 1 and len(sample.words) > 1 and all(map(_LANGUAGE.match, sample.words)):
        (prefix,) = languages
        notes.append(f"every word begins with {prefix!r}, as in WikiANN's raw files; sed 's/^{prefix}//' removes it")
    is_conll2003 = list(sample.columns) == ["tokens", "pos_tags", "chunk_tags", "tags"]
    others = [
        f"column {list(sample.columns).index(name) + 1} ({next(v for v in values if v != 'O')})"
        for name, values in sample.others.items()
        if kind(values) == "tags" and not (is_conll2003 and name == "chunk_tags")
    ]
    if others and not has_names and not columns.labels and columns.task == "ner":
        used = list(sample.columns).index(sample.label_name) + 1
        notes.append(f"column {used} is read as tags, but {' and '.join(others)} could be; --label_column_name chooses")
    return notes
