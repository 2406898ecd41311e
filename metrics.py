"""From logits to scores: one tag a word, every word of the file exactly once, seqeval; and where the model errs.

logits [B, L, C] of each batch -> decode -> gather (all ranks, one collective) -> score -> table, report
"""

import collections
import html
import itertools
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOB2, IOBES
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader


def decode(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [B, L, C], labels [B, L] -> predicted label ids [W], their probability [W], and the losses [W] of the
    words labelled here.

    W counts the positions that are not -100, row by row. A word's tag is the argmax at its first subword.
    """
    word = labels != -100
    logits = logits[word].float()
    return logits.argmax(-1), logits.softmax(-1).amax(-1), F.cross_entropy(logits, labels[word], reduction="none")


def _ties(logits: torch.Tensor) -> torch.Tensor:
    """logits [B, L, C] in 16 bits -> [B, L] whether the best two are as near as rounding can move them."""
    best = logits.float().topk(min(2, logits.shape[-1]), -1).values
    return best[..., 0] - best[..., -1] <= 2**-6 * logits.float().abs().amax(-1)


@torch.no_grad()
def predict(model, rows, batches: list[np.ndarray], collate, autocast, rank=0, world_size=1) -> tuple | None:
    """The rows in those batches, which go round the ranks -> on rank 0 (predicted label ids [W], their probabilities
    [W], losses [W]) of all words in file order, elsewhere None. The only collective is the gather at the end."""
    mine = [*batches[rank::world_size]]
    sharded = isinstance(model, FSDPModule)
    if sharded:  # every forward is a collective: all ranks have to do as many
        mine += [np.empty(0, int)] * (-(-len(batches) // world_size) - len(mine))
    words = [torch.empty(0, 4, dtype=torch.int32)]
    model.eval()
    for ids, batch in zip(mine, DataLoader(rows, batch_sampler=mine, collate_fn=collate)):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with autocast:
            logits = model(**batch).logits
        # 16 bits leave ties, which would fall by how a batch was made up: these rows are read again in fp32.
        # (Not under FSDP: the ranks would not do it alike, and it has no fp32 weights to read with.)
        if not sharded and logits.dtype != torch.float32 and (again := (_ties(logits) & (labels != -100)).any(1)).any():
            logits = logits.float()
            logits[again] = model(**{name: tensor[again] for name, tensor in batch.items()}).logits
        predicted, *figures = (tensor.cpu() for tensor in decode(logits, labels))
        position = torch.from_numpy(rows.words(ids)).int()
        words.append(torch.stack([position, predicted.int(), *(x.view(torch.int32) for x in figures)], dim=1))
    held = [sum(rows.num_labels[ids].sum() for ids in batches[r::world_size]) for r in range(world_size)]
    gathered = gather(torch.cat(words).to(model.device), longest=int(max(held)))
    return in_file_order(gathered, int(rows.num_labels.sum())) if rank == 0 else None


def gather(words: torch.Tensor, longest: int) -> torch.Tensor:
    """words [n, K] int32 of each rank -> on rank 0 those of all ranks [N, K], elsewhere nothing [0, K].

    A collective moves equal shapes, so every rank pads its rows with -100 to `longest`, the most any rank holds;
    each can count that by itself. Padding rows are known by a first column below zero and fall away again.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return words
    padded = words.new_full((longest, words.shape[1]), -100)
    padded[: len(words)] = words
    ranks = [torch.empty_like(padded) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(padded, ranks)
    gathered = torch.cat(ranks) if ranks else padded[:0]
    return gathered[gathered[:, 0] >= 0]


def in_file_order(words: torch.Tensor, num_words: int) -> tuple[np.ndarray, ...]:
    """words [W, K] int32 (position in the file, predicted label id, bits of fp32 figures), in any order
    -> [W] in file order of each: ids, figures. Each word has to be there exactly once."""
    position, predicted, *figures = words.cpu().T.contiguous()
    times = np.bincount(position.numpy(), minlength=num_words)
    assert len(times) == num_words and (times == 1).all(), f"{(times != 1).sum()} of {num_words} words not seen once"
    order = position.argsort()
    return predicted[order].long().numpy(), *(figure[order].view(torch.float32).numpy() for figure in figures)


STRICT = {"IOB2": IOB2, "BIOES": IOBES, "BILOU": BILOU}  # seqeval's own names for what data.tag_scheme finds


def check_strict(labels: list[str], scheme: str | None) -> None:
    """ValueError where seqeval's strict mode would refuse a label in the midst of training."""
    wrong = [label for label in labels if scheme is None or label[0] not in scheme.replace("IOB2", "BIO") + "O"]
    if wrong:
        raise ValueError(f"--strict needs tags of one scheme: {wrong[0]} is none of {scheme or 'IOB2, BIOES or BILOU'}")


def score(
    gold: np.ndarray, predicted: np.ndarray, lengths: np.ndarray, labels: list[str], scheme: str | None, strict=False
) -> dict:
    """gold [W], predicted [W] label ids and words per sentence [S] -> precision, recall, f1, accuracy, words,
    per_entity (type -> precision, recall, f1, support).

    Entities by seqeval in its default mode, which is conlleval's, or strictly by the tags' scheme. Plain tags (scheme
    None) are scored each for itself, with the macro average as the overall figure (seqeval would take them for
    entities and cut NOUN to OUN).
    """
    scores = {"accuracy": float((gold == predicted).mean()), "words": len(gold)}
    if scheme:
        # The default mode reads IOB and BIOES; BILOU's last and only words are BIOES under other letters.
        letters = {} if strict else {"L": "E", "U": "S"}
        names = np.array([letters.get(label[0], label[0]) + label[1:] for label in labels], dtype=object)
        ends = np.cumsum(lengths)[:-1]
        sentences = [[part.tolist() for part in np.split(names[ids], ends)] for ids in (gold, predicted)]
        mode = {"mode": "strict", "scheme": STRICT[scheme]} if strict else {}
        with warnings.catch_warnings(action="ignore"):  # seqeval's mean over types, where there is not one entity
            report = classification_report(*sentences, output_dict=True, zero_division=0, **mode)
        for row in report.values():
            row["f1"] = row.pop("f1-score")
        overall = report.pop("micro avg")
        types = {name: row for name, row in sorted(report.items()) if name not in ("macro avg", "weighted avg")}
    else:
        types = _tag_scores(gold, predicted, labels)
        overall = {key: np.mean([row[key] for row in types.values()]) for key in ("precision", "recall", "f1")}
    scores |= {key: float(overall[key]) for key in ("precision", "recall", "f1")}
    scores["per_entity"] = {
        name: {key: float(row[key]) for key in ("precision", "recall", "f1")} | {"support": int(row["support"])}
        for name, row in types.items()
    }
    return scores


def _tag_scores(gold: np.ndarray, predicted: np.ndarray, labels: list[str]) -> dict[str, dict]:
    """Precision, recall and F1 of every tag that occurs; 0 where nothing was predicted or nothing is there."""
    hits, found, support = (
        np.bincount(ids, minlength=len(labels)) for ids in (gold[gold == predicted], predicted, gold)
    )
    rows = {
        "precision": hits / np.maximum(found, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(found + support, 1),
        "support": support,
    }
    return {labels[i]: {key: row[i] for key, row in rows.items()} for i in np.flatnonzero(found + support)}


class Timed(NamedTuple):
    """One optimizer step."""

    seconds: float
    waited: float  # of these, seconds for data
    lengths: np.ndarray  # real tokens of every row of the global batch
    positions: int  # what this rank computed, padding included


def throughput(steps: list[Timed], positions: float) -> dict[str, float]:
    """Figures of these steps. positions: the sum over steps and ranks. Padding is never counted as work."""
    seconds = [step.seconds for step in steps]
    tokens = sum(int(step.lengths.sum()) for step in steps)
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {
        "tokens_per_second": tokens / sum(seconds),
        "sentences_per_second": sum(len(step.lengths) for step in steps) / sum(seconds),
        "step_ms_p50": 1e3 * float(p50),
        "step_ms_p95": 1e3 * float(p95),
        "data_wait": sum(step.waited for step in steps) / sum(seconds),
        "padding": 1 - tokens / positions,
    }


def scalars(scores: dict) -> dict[str, float]:
    """Every number of score() under a name of its own, an entity's as f1/PER: what TensorBoard draws."""
    overall = {name: value for name, value in scores.items() if name != "per_entity"}
    return overall | {f"{name}/{kind}": row[name] for kind, row in scores["per_entity"].items() for name in row}


def table(scores: dict) -> str:
    """The per-entity scores as lines for a terminal."""
    support = sum(row["support"] for row in scores["per_entity"].values())
    rows = scores["per_entity"] | {"all": scores | {"support": support}}
    width = max(map(len, rows))
    lines = [f"{'':{width}}  precision  recall      f1  support"]
    for name, row in rows.items():
        figures = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7,}"
        lines.append(f"{name:{width}}  {figures}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# report.html: where the model errs. One file, without network; all text of others is escaped.

KINDS = {
    "missed": "no prediction touches it",
    "spurious": "touches no gold entity",
    "type": "the right words or some of them, under a wrong type",
    "boundary": "the right type, other words",
}


class Match(NamedTuple):
    """A gold span, a predicted one, or both (else -1), and what they are to each other: right, or one of KINDS."""

    kind: str
    gold: int
    predicted: int


def match(gold: np.ndarray, predicted: np.ndarray) -> list[Match]:
    """gold [G, 3], predicted [P, 3]: first word, the one behind the last, type; spans of one side do not overlap.

    Every span is in one Match. Those that differ are paired if they overlap: the same words first, then one type
    before two, then the most words in common.
    """
    found, where = [], {(first, end): i for i, (first, end, _) in enumerate(predicted.tolist())}
    rest, taken = [], set()
    for g, (first, end, kind) in enumerate(gold.tolist()):
        p = where.get((first, end), -1)
        if p >= 0:
            found.append(Match("right" if predicted[p, 2] == kind else "type", g, p))
            taken.add(p)
        else:
            rest.append(g)
    candidates, starts = [], predicted[:, 0]
    for g in rest:
        first, end, kind = gold[g].tolist()
        p = max(0, int(np.searchsorted(starts, first, side="right")) - 1)
        while p < len(predicted) and starts[p] < end:
            common = min(end, predicted[p, 1]) - max(first, starts[p])
            if common > 0 and p not in taken:
                candidates.append((predicted[p, 2] != kind, -common, g, p))
            p += 1
    paired = set()
    for other_type, _, g, p in sorted(candidates):
        if g not in paired and p not in taken:
            found.append(Match("type" if other_type else "boundary", g, p))
            paired.add(g)
            taken.add(p)
    found += [Match("missed", g, -1) for g in rest if g not in paired]
    found += [Match("spurious", -1, p) for p in range(len(predicted)) if p not in taken]
    return found


def hues(types) -> dict[str, int]:
    """Degrees on the circle of colours, neighbours far apart."""
    return {kind: i * 137 % 360 for i, kind in enumerate(sorted(types))}


def marked(text: str, spans: list[tuple[int, int, str]], hue: dict[str, int], notes: list[str], kinds=()) -> str:
    """text with its spans (start, end, type) in <mark>, each with a note on hovering; kinds: a Match's, of each."""
    parts, at = [], 0
    for (start, end, name), note, kind in itertools.zip_longest(spans, notes, kinds, fillvalue=""):
        parts.append(html.escape(text[at:start]))
        attributes = f'style="--hue:{hue[name]}" data-type="{html.escape(name)}" title="{html.escape(note)}"'
        inside = f"{html.escape(text[start:end])} <b>{html.escape(name)}</b>"
        parts.append(f'<mark data-kind="{kind}" {attributes}>{inside}</mark>')
        at = end
    return "".join(parts) + html.escape(text[at:])


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --line: #d9dce1; --soft: #f3f4f6; --tint: 88%; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --paper: #16181c; --line: #3a3e46; --soft: #22252b; --tint: 26%; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 1rem; max-width: 60rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
td.hit { background: var(--soft); font-weight: 600 }
mark { color: inherit; background: hsl(var(--hue) 70% var(--tint)); border-radius: .25rem; padding: 0 .25rem }
mark b { font-size: .7em; opacity: .75 }
mark[data-kind]:not([data-kind=""], [data-kind=right]) { outline: 2px solid hsl(var(--hue) 70% 50%) }
article { border-bottom: 1px solid var(--line); padding: .6rem 0; white-space: pre-wrap }
article p { margin: 0; padding-left: 5.5rem; text-indent: -5.5rem }
article i { display: inline-block; width: 5.5rem; text-indent: 0; font-style: normal; opacity: .65 }
article small { opacity: .65 }
nav { position: sticky; top: 0; background: var(--paper); padding: .5rem 0; display: flex; flex-wrap: wrap; gap: .4rem }
button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 1rem;
  padding: .1rem .7rem; cursor: pointer }
button[aria-pressed=true] { border-color: currentColor; font-weight: 600 }
[hidden] { display: none }
"""
# Buttons choose a type and a kind of error; an article stays if one of its marks fits both.
SCRIPT = """
const chosen = {type: "", kind: ""}, articles = [...document.querySelectorAll("article")];
function show() {
  let number = 0;
  for (const article of articles) {
    const marks = [...article.querySelectorAll("mark")];
    const fits = mark => ["type", "kind"].every(name => !chosen[name] || mark.dataset[name] === chosen[name]);
    article.hidden = (chosen.type || chosen.kind) && !marks.some(fits);
    number += !article.hidden;
  }
  document.getElementById("shown").textContent = number + " shown";
}
function choices(name) {
  const counts = new Map();
  for (const mark of document.querySelectorAll("article mark")) {
    const value = mark.dataset[name], twice = mark.closest(".predicted") && mark.dataset.kind !== "spurious";
    if (value && value !== "right" && !twice) counts.set(value, (counts.get(value) || 0) + 1);
  }
  for (const [label, count] of [...counts].sort()) {
    const button = document.createElement("button");
    button.textContent = label + " " + count;
    button.dataset[name] = label;
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => {
      chosen[name] = chosen[name] === label ? "" : label;
      for (const other of document.querySelectorAll(`button[data-${name}]`))
        other.setAttribute("aria-pressed", String(other.dataset[name] === chosen[name]));
      show();
    };
    document.querySelector("nav").insertBefore(button, document.getElementById("shown"));
  }
}
choices("type");
choices("kind");
show();
"""
FILTER = '<nav><span id="shown"></span></nav>'
PAGE_END = f"<script>{SCRIPT}</script></body></html>\n"


def page_head(title: str) -> str:
    """The beginning of a page that PAGE_END ends; its articles can be filtered by FILTER."""
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="data:,">'  # browsers would ask a server for one
    head = f'<meta charset="utf-8">{viewport}{icon}<title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{html.escape(title)}</h1>\n'


def _html_table(header: list[str], rows: list[list], hits=()) -> str:
    """hits: (row, column) of cells to stand out."""

    def cell(name: str, value, hit: bool = False) -> str:
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        return f"<{name}{' class=hit' if hit else ''}>{html.escape(shown)}</{name}>"

    lines = ["".join(cell("th", name) for name in header)]
    lines += ["".join(cell("td", v, (i, j) in hits) for j, v in enumerate(row)) for i, row in enumerate(rows)]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def calibration(scores: np.ndarray, right: np.ndarray) -> tuple[list[list], float]:
    """Of predicted entities their scores [P] and whether they are right [P] -> rows (score from, number, mean score,
    share right), and the expected calibration error (Guo et al., arXiv 1706.04599, ten bins)."""
    bins, rows, error = np.minimum((scores * 10).astype(int), 9), [], 0.0
    for i in np.unique(bins):
        inside = bins == i
        mean, share = float(scores[inside].mean()), float(right[inside].mean())
        rows.append([f"{i / 10:.1f} to {(i + 1) / 10:.1f}", int(inside.sum()), mean, share])
        error += inside.mean() * abs(mean - share)
    return rows, float(error)


class Errors(NamedTuple):
    """A split's gold spans [G, 3] and predicted ones [P, 3], as match() takes them, what they are to each other, and
    the names of types by number."""

    gold: np.ndarray
    predicted: np.ndarray
    matches: list[Match]
    types: list[str]

    @classmethod
    def of(cls, split, labels: list[str], tags: np.ndarray):
        """split: a data.Split; tags [W] predicted label ids of its words."""
        (gold, types), (predicted, _) = split.spans(split.tags, labels), split.spans(tags, labels)
        return cls(gold, predicted, match(gold, predicted), types)

    def confusion(self) -> tuple[list[str], np.ndarray]:
        """Names, of which the last is a dash for no entity, and how often [gold, predicted] each pair is there."""
        counts = np.zeros((len(self.types) + 1, len(self.types) + 1), int)
        for _, g, p in self.matches:
            counts[self.gold[g, 2] if g >= 0 else -1, self.predicted[p, 2] if p >= 0 else -1] += 1
        there = np.append((counts[:-1].sum(1) + counts[:, :-1].sum(0)) > 0, True)
        return [name for name, is_there in zip([*self.types, NONE], there) if is_there], counts[there][:, there]


NONE = "-"


def confusion_image(names: list[str], counts: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: gold down, predicted across; the darker, the greater a share of its row."""
    cell, font = 72, ImageFont.load_default(14)
    left = 20 + max(int(font.getlength(name)) for name in names)
    image = Image.new("RGB", (left + cell * len(names), 30 + 36 * len(names)), "white")
    draw = ImageDraw.Draw(image)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    for i, name in enumerate(names):
        draw.text((left - 8, 48 + 36 * i), name, "black", font, anchor="rm")
        draw.text((left + cell * i + cell // 2, 15), name[:9], "black", font, anchor="mm")
        for j in range(len(names)):
            x, y, shade = left + cell * j, 30 + 36 * i, 255 - int(200 * shares[i, j])
            draw.rectangle((x, y, x + cell - 2, y + 34), (shade, shade, 255))
            draw.text((x + cell // 2, y + 18), f"{counts[i, j]:,}", "white" if shade < 128 else "black", font, "mm")
    return np.asarray(image)


def sample_text(split, labels: list[str], tags: np.ndarray, number: int = 10) -> str:
    """Markdown: the first sentences that have an entity, gold above predicted, in brackets."""
    begins, shown = np.cumsum(split.lengths) - split.lengths, []
    sides = [split.spans(side, labels) for side in (split.tags, tags)]
    first = np.concatenate([spans[:, 0] for spans, _ in sides])
    for i in np.unique(np.searchsorted(begins, first, side="right") - 1)[:number]:
        place, words = split.sentence(int(i))
        lines = []
        for spans, types in sides:
            marked_words = words.copy()
            for begin, end, kind in spans[(spans[:, 0] >= begins[i]) & (spans[:, 0] < begins[i] + split.lengths[i])]:
                marked_words[begin - begins[i]] = "**[" + marked_words[begin - begins[i]]
                marked_words[end - begins[i] - 1] += f"]** {types[kind]}"
            lines.append(" ".join(marked_words))
        shown.append(f"{place}  \ngold: {lines[0]}  \npredicted: {lines[1]}")
    return "\n\n".join(shown)


def report(title: str, measured: dict, split, labels: list[str], tags, probabilities, known=None, most=500) -> str:
    """The page. measured: of score(). split: a data.Split. tags [W], probabilities [W]: predicted, of its words.
    known: the (type, text) of train's entities. The `most` sentences with the most errors are shown."""
    errors = Errors.of(split, labels, tags)
    gold, predicted, matches, types = errors
    hue, lengths = hues(types), split.lengths
    scores = np.add.reduceat(np.append(probabilities, 0.0), predicted[:, :2].ravel())[::2]
    scores /= np.maximum(1, predicted[:, 1] - predicted[:, 0])  # their words' mean
    ends = np.cumsum(lengths)
    of_sentence = collections.defaultdict(list)
    for found in matches:
        first = gold[found.gold, 0] if found.gold >= 0 else predicted[found.predicted, 0]
        of_sentence[int(np.searchsorted(ends, first, side="right"))].append(found)

    # Figures
    parts = [page_head(title)]
    overall = {"all": measured | {"support": sum(row["support"] for row in measured["per_entity"].values())}}
    columns = ["precision", "recall", "f1", "support"]
    rows = [[name, *(row[key] for key in columns)] for name, row in (measured["per_entity"] | overall).items()]
    parts.append(f"<p>{measured['words']:,} words, {len(lengths):,} sentences, accuracy {measured['accuracy']:.4f}</p>")
    parts.append("<h2>Scores</h2>" + _html_table(["", *columns], rows))

    there, counts = errors.confusion()
    kinds = np.zeros((len(KINDS), len(types)), int)
    for kind, g, p in matches:
        if kind != "right":
            kinds[list(KINDS).index(kind), gold[g, 2] if g >= 0 else predicted[p, 2]] += 1
    columns = [types.index(name) for name in there[:-1]]
    rows = [[kind, *row[columns].tolist(), int(row.sum())] for kind, row in zip(KINDS, kinds)]
    parts.append("<h2>Errors</h2>" + _html_table(["", *there[:-1], "all"], rows))
    explained = html.escape("; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parts.append(f"<p><small>Each entity once, under its gold type where it has one. {explained}.</small></p>")
    rows = [[name, *row] for name, row in zip(there, counts.tolist())]
    diagonal = {(i, i + 1) for i in range(len(there) - 1)}
    parts.append("<h2>Confusion: gold down, predicted across</h2>" + _html_table(["", *there], rows, diagonal))
    hits = np.zeros(len(gold), bool)
    hits[[found.gold for found in matches if found.kind == "right"]] = True
    if known is not None:
        seen = np.array([entity in known for entity in split.named(gold, types)], bool)
        rows = [
            [name, int(group.sum()), float(hits[group].mean()) if group.any() else NONE]
            for name, group in (("seen in train", seen), ("unseen", ~seen))
        ]
        parts.append("<h2>Entities that train has, and new ones</h2>" + _html_table(["", "gold", "recall"], rows))
    right = np.zeros(len(predicted), bool)
    right[[found.predicted for found in matches if found.kind == "right"]] = True
    if len(predicted):
        rows, error = calibration(scores, right)
        table = _html_table(["score", "predicted", "mean score", "share right"], rows)
        parts.append(f"<h2>Calibration: expected error {error:.4f}</h2>{table}")

    # Sentences
    wrong = {i: sum(found.kind != "right" for found in group) for i, group in of_sentence.items()}
    worst = sorted((i for i in wrong if wrong[i]), key=lambda i: (-wrong[i], i))
    more = f", the worst {most:,} of them below" if len(worst) > most else ""
    parts.append(f"<h2>{len(worst):,} sentences with errors{more}</h2>{FILTER}")
    for i in worst[:most]:
        place, words = split.sentence(i)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        lines = []
        for name, spans, side in (("gold", gold, 1), ("predicted", predicted, 2)):
            mine = sorted((spans[found[side]].tolist(), found) for found in of_sentence[i] if found[side] >= 0)
            offset = int(ends[i] - lengths[i])
            places = [
                (int(starts[first - offset]), int(starts[end - offset]) - 1, types[kind])
                for (first, end, kind), _ in mine
            ]
            notes = [f"{found.kind} {scores[found.predicted]:.4f}" if side == 2 else found.kind for _, found in mine]
            kinds_here = [found.kind for _, found in mine]
            lines.append(
                f'<p class="{name}"><i>{name}</i>{marked(" ".join(words), places, hue, notes, kinds_here)}</p>'
            )
        parts.append(f"<article><small>{html.escape(place)}</small>{''.join(lines)}</article>\n")
    return "".join(parts) + PAGE_END
