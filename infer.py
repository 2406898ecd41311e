"""Tag text with a trained model: entities with their character offsets and scores.

python infer.py outputs "My name is Sylvain and I work at Hugging Face in Brooklyn."
python infer.py outputs "First text." "Second text." --format json

from infer import Tagger
tagger = Tagger("outputs")
tagger("Maria lives in Oslo.")   # [{"entity_group": "PER", "score": 0.99, "word": "Maria", "start": 0, "end": 5}, ...]
"""

import argparse
import json

import numpy as np
import torch
from transformers import AutoModelForTokenClassification

import data
import model as network

STRATEGIES = ("simple", "first", "average", "max")


class Tagger:
    """A saved token-classification model (folder or Hub id); called with texts, it answers as transformers'
    token-classification pipeline does, but reads texts of any length and never splits a word."""

    def __init__(self, model_name_or_path: str, batch_size: int = 32, stride: int = 64, precision: str = "auto"):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = data.load_tokenizer(model_name_or_path)
        self.model = AutoModelForTokenClassification.from_pretrained(model_name_or_path, dtype=torch.float32)
        self.model.to(self.device).eval()
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.autocast = network.autocast(network.pick_precision(precision, self.device), self.device)
        self.size = data.max_length(self.tokenizer, self.model.config)
        self.batch_size, self.stride = batch_size, stride

    def __call__(self, texts: str | list[str], aggregation_strategy: str = "simple") -> list:
        """str -> its entities; list of str -> a list of such lists. Entities: entity_group, score, word, start, end."""
        if aggregation_strategy not in STRATEGIES:
            raise ValueError(f"aggregation_strategy {aggregation_strategy!r}: one of {', '.join(STRATEGIES)}")
        if not isinstance(texts, str) and not texts:
            raise ValueError("no text to tag")
        batch = [texts] if isinstance(texts, str) else list(texts)
        spans = [data.split_words(text) for text in batch]
        words = [[text[start:end] for start, end in span] for text, span in zip(batch, spans)]
        found = []
        for text, span, probabilities in zip(batch, spans, self.probabilities(words)):
            tags = [word_tag(p, self.labels, aggregation_strategy) for p in probabilities]
            found.append(group_entities(text, span, tags))
        return found[0] if isinstance(texts, str) else found

    @torch.inference_mode()
    def probabilities(self, sentences: list[list[str]]) -> list[list[np.ndarray]]:
        """Words of each sentence -> for every word the softmax over labels of each of its subwords, [n, C]."""
        special = data.special_tokens(self.tokenizer)
        rows = [
            (sentence, input_ids, word_ids)
            for sentence, (subwords, subword_words, _) in enumerate(data.encode(sentences, self.tokenizer))
            for input_ids, word_ids in data.cut(subwords, subword_words, special, self.size, self.stride)
        ]
        found = [[None] * len(words) for words in sentences]
        for ids in data.eval_batches(np.array([len(input_ids) for _, input_ids, _ in rows], int), self.batch_size):
            batch = data.collate([(rows[i][1], rows[i][2]) for i in ids], self.tokenizer.pad_token_id or 0)
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with self.autocast:
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for i, probability in zip(ids, logits.float().softmax(-1).cpu().numpy()):  # [L, C] each
                sentence, _, word_ids = rows[i]
                for word in np.unique(word_ids[word_ids >= 0]):
                    found[sentence][word] = probability[: len(word_ids)][word_ids == word]
        return found


def word_tag(probability: np.ndarray, labels: list[str], strategy: str) -> tuple[str, list[float]]:
    """A word's subwords [n, C] -> its tag, and the scores it brings into its entity's mean.

    first: the first subword's. max: that of the surest subword. average: argmax of the mean. simple: the tag of the
    first, and every subword's score for that type (the pipeline lets later subwords, never trained, break the word).
    """
    if strategy == "simple":
        tag = labels[probability[0].argmax()]
        same_type = [split_tag(label)[1] == split_tag(tag)[1] for label in labels]
        return tag, probability[:, same_type].max(-1).tolist()
    if strategy == "first":
        chosen = probability[0]
    elif strategy == "max":
        chosen = probability[probability.max(-1).argmax()]
    else:
        chosen = probability.mean(0)
    return labels[chosen.argmax()], [float(chosen.max())]


def split_tag(tag: str) -> tuple[str, str]:
    """B-PER -> ("B", "PER"); a tag without a prefix (NOUN, O) is a type of its own, as if inside."""
    return (tag[0], tag[2:]) if tag[1:2] == "-" else ("I", tag)


def group_entities(text: str, spans: list[tuple[int, int]], tags: list[tuple[str, list[float]]]) -> list[dict]:
    """Words with their tags -> entities: neighbours of one type, where none begins anew (B-, S-, U-) or has ended."""
    entities, previous = [], ("", "")
    for (start, end), (tag, scores) in zip(spans, tags):
        prefix, kind = split_tag(tag)
        if tag != "O":
            if kind == previous[1] and prefix not in "BSU" and previous[0] not in ("E", "L", "S", "U"):
                entities[-1]["end"] = end
                entities[-1]["scores"] += scores
            else:
                entities.append({"entity_group": kind, "scores": scores, "start": start, "end": end})
        previous = (prefix, kind)
    return [
        {
            "entity_group": entity["entity_group"],
            "score": float(np.mean(entity["scores"])),
            "word": text[entity["start"] : entity["end"]],
            "start": entity["start"],
            "end": entity["end"],
        }
        for entity in entities
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder that train.py wrote, or Hub id of a token-classification model")
    parser.add_argument("text", nargs="+")
    parser.add_argument(
        "--aggregation_strategy", choices=STRATEGIES, default="simple", help="how subwords vote (simple)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line (text)")
    args = parser.parse_args()
    data.quiet(progress=False)
    with data.errors_exit(2):
        tagger = Tagger(args.model)
    for text, entities in zip(args.text, tagger(args.text, args.aggregation_strategy)):
        if args.format == "json":
            print(json.dumps({"text": text, "entities": entities}, ensure_ascii=False))
            continue
        print(text)
        for entity in entities:
            span = f"{entity['start']}-{entity['end']}"
            print(f"  {span:>13}  {entity['entity_group']:8} {entity['score']:.4f}  {entity['word']}")


if __name__ == "__main__":
    main()
