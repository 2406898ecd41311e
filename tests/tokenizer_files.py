"""Folders with a tokenizer of a real class, as encoders are published, with vocabularies that are trained here.

    write_encoder("RobertaTokenizer", folder)    # vocab.json, merges.txt, tokenizer_config.json, a tiny model

Most folders hold only the original files (vocab.txt, vocab.json and merges.txt, or a sentencepiece model). Newer
families publish tokenizer.json alone.
"""

import functools
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
import torch
from conftest import sample_words
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForTokenClassification

# The patterns that are published with the models.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
EXTRA = [  # beside the sample corpus, so that the vocabularies hold other scripts, digits and signs
    "In 2024 the U.S. spent 1,204 million (about 3.5 %) on e-mail, didn't it?",
    "Zoë Müller lives in São Paulo , Брагин живёт в Москве , 東京 北京大学 مرحبا 😀 !",
]


def texts() -> list[str]:
    return [" ".join(words) for words in sample_words()] + EXTRA * 5


@functools.cache
def byte_level(pre_tokenizer, special: tuple[str, ...]) -> dict:
    """A byte-level BPE model: {"vocab": ..., "merges": ...}. pre_tokenizer: a function that returns it."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=900, special_tokens=[*special], initial_alphabet=alphabet)
    )
    return json.loads(raw.to_str())["model"]


@functools.cache
def metaspace_bpe(special: tuple[str, ...]) -> dict:
    """A BPE model whose words begin with U+2581."""
    raw = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    raw.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=1200, special_tokens=[*special, *in_bytes]))
    return json.loads(raw.to_str())["model"]


@functools.cache
def sentencepiece_model(model_type: str, **options) -> bytes:
    """A sentencepiece model file. model_type: unigram or bpe."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=file, model_type=model_type, vocab_size=1000,
        byte_fallback=model_type == "bpe", hard_vocab_limit=False, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    return file.getvalue()


@functools.cache
def word_piece(lowercase: bool) -> list[str]:
    raw = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=900, special_tokens=special))
    return sorted(raw.get_vocab(), key=raw.get_vocab().get)


def write_spm(folder: Path) -> None:
    """spm.model alone: DeBERTa-v3 and mDeBERTa."""
    write_sentencepiece(folder, "spm.model", pad_piece="[PAD]", unk_piece="[UNK]", **MARKS)


def gpt2_words():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def split_by(pattern: str):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def llama3_words():
    return split_by(LLAMA3)


def write_byte_level(folder: Path, special=tuple(SPECIAL), pre_tokenizer=gpt2_words) -> None:
    model = byte_level(pre_tokenizer, special)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def write_word_piece(folder: Path, lowercase: bool) -> None:
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in word_piece(lowercase)), encoding="utf-8")


def write_sentencepiece(folder: Path, name: str, model_type: str = "unigram", **options) -> None:
    (folder / name).write_bytes(sentencepiece_model(model_type, **options))


def write_json(folder: Path, model: dict, pre_tokenizer=None, normalizer=None, template: str | None = None) -> None:
    """tokenizer.json alone."""
    merges = [tuple(merge) for merge in model["merges"]]
    fallback = bool(model.get("byte_fallback"))
    unk_token = "<unk>" if fallback else None
    raw = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, byte_fallback=fallback, fuse_unk=fallback, unk_token=unk_token)
    )
    raw.add_special_tokens([token for token in SPECIAL if token in model["vocab"]])
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        raw.normalizer = normalizer
    if template:
        ids = [(token, model["vocab"][token]) for token in template.split() if token != "$A"]
        raw.post_processor = processors.TemplateProcessing(template, special_tokens=ids)
    raw.decoder = decoders.ByteLevel()
    raw.save(str(folder / "tokenizer.json"))


def replace_blanks(scheme: str = "never"):
    """Blanks as U+2581. never: a word at the beginning has none (Gemma); always: it has one (Llama 2, legacy)."""
    replace = normalizers.Replace(" ", "\u2581")
    return replace if scheme == "never" else normalizers.Sequence([normalizers.Prepend("\u2581"), replace])


BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
ROBERTA = {"cls_token": "<s>", "bos_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
GPT = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
DEBERTA = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
PLAIN = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
MARKS = {"user_defined_symbols": "[CLS],[SEP],[MASK]", "pad_id": 0, "unk_id": 1}
MARKS |= {"bos_id": -1, "eos_id": -1}
PIECES = tuple(SPECIAL)
PUNCTUATION = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), gpt2_words()])

# name -> (model type of the config, class in tokenizer_config.json, its other settings, how the files are written)
FAMILIES = {
    "BertTokenizer": ("bert", "BertTokenizer", {"do_lower_case": False}, lambda f: write_word_piece(f, False)),
    "BertTokenizer, lower case": ("bert", "BertTokenizer", {}, lambda f: write_word_piece(f, True)),
    "ElectraTokenizer": ("electra", "ElectraTokenizer", {}, lambda f: write_word_piece(f, True)),
    "DistilBertTokenizer": (
        "distilbert", "DistilBertTokenizer", {"do_lower_case": False}, lambda f: write_word_piece(f, False),
    ),
    "RobertaTokenizer": ("roberta", "RobertaTokenizer", ROBERTA, write_byte_level),
    "GPT2Tokenizer": ("gpt2", "GPT2Tokenizer", GPT, write_byte_level),
    "DebertaTokenizer": ("deberta", "DebertaTokenizer", {}, lambda f: write_byte_level(f, DEBERTA)),
    "BartTokenizer": ("roberta", "BartTokenizer", ROBERTA, write_byte_level),
    "LongformerTokenizer": ("longformer", "LongformerTokenizer", ROBERTA, write_byte_level),
    "GPTNeoXTokenizer": ("gpt_neox", "GPTNeoXTokenizer", GPT, write_byte_level),
    "Qwen2Tokenizer": ("qwen2", "Qwen2Tokenizer", GPT, lambda f: write_byte_level(f, PIECES, llama3_words)),
    "DebertaV2Tokenizer": ("deberta-v2", "DebertaV2Tokenizer", {}, write_spm),
    "AlbertTokenizer": ("albert", "AlbertTokenizer", {}, lambda f: write_sentencepiece(f, "spiece.model", **MARKS)),
    "XLMRobertaTokenizer": (
        "xlm-roberta", "XLMRobertaTokenizer", {},
        lambda f: write_sentencepiece(f, "sentencepiece.bpe.model", **FAIRSEQ),
    ),
    "CamembertTokenizer": (
        "camembert", "CamembertTokenizer", {}, lambda f: write_sentencepiece(f, "sentencepiece.bpe.model", **FAIRSEQ),
    ),
    "XLNetTokenizer": (
        "xlnet", "XLNetTokenizer", {},
        lambda f: write_sentencepiece(
            f, "spiece.model", unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
            control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>,<eop>",
        ),
    ),
    "T5Tokenizer": ("t5", "T5Tokenizer", {"extra_ids": 10}, lambda f: write_sentencepiece(f, "spiece.model", **T5)),
    "LlamaTokenizer": (
        "llama", "LlamaTokenizer", {"pad_token": "</s>"},
        lambda f: write_sentencepiece(f, "tokenizer.model", "bpe", **PLAIN),
    ),
    "LlamaTokenizer, legacy": (
        "llama", "LlamaTokenizer", {"pad_token": "</s>", "legacy": True},
        lambda f: write_sentencepiece(f, "tokenizer.model", "bpe", **PLAIN),
    ),
    "LlamaTokenizer, add_prefix_space false": (
        "llama", "LlamaTokenizer", {"pad_token": "</s>", "add_prefix_space": False},
        lambda f: write_sentencepiece(f, "tokenizer.model", "bpe", **PLAIN),
    ),
    "GemmaTokenizer": (
        "gemma", "GemmaTokenizer", {},
        lambda f: write_json(
            f, metaspace_bpe(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")),
            pre_tokenizers.Split(" ", "merged_with_previous"), replace_blanks(), "<bos> $A",
        ),
    ),
    "mmBERT": (
        "modernbert", "PreTrainedTokenizerFast", {"pad_token": "<pad>", "unk_token": "<unk>"},
        lambda f: write_json(
            f, metaspace_bpe(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")),
            pre_tokenizers.Split(" ", "merged_with_previous"), replace_blanks(), "<bos> $A <eos>",
        ),
    ),
    "Llama 2, tokenizer.json": (
        "llama", "PreTrainedTokenizerFast", GPT,
        lambda f: write_json(f, metaspace_bpe(PIECES), None, replace_blanks("always"), "<s> $A"),
    ),
    "Llama 3": (
        "llama", "PreTrainedTokenizerFast", GPT,
        lambda f: write_json(f, byte_level(llama3_words, PIECES), llama3_words(), None, "<s> $A"),
    ),
    "BLOOM": (
        "llama", "PreTrainedTokenizerFast", GPT,
        lambda f: write_json(f, byte_level(gpt2_words, PIECES), split_by(BLOOM), None, None),
    ),
    "Falcon": (
        "llama", "PreTrainedTokenizerFast", GPT,
        lambda f: write_json(f, byte_level(gpt2_words, PIECES), PUNCTUATION, None, None),
    ),
    "ModernBERT": (
        "modernbert", "PreTrainedTokenizerFast", ROBERTA,
        lambda f: write_json(f, byte_level(gpt2_words, PIECES), gpt2_words(), normalizers.NFC(), "<s> $A </s>"),
    ),
    "add_prefix_space of PreTrainedTokenizerFast": (
        "modernbert", "PreTrainedTokenizerFast", ROBERTA | {"add_prefix_space": False},
        lambda f: write_json(f, byte_level(gpt2_words, PIECES), gpt2_words(), normalizers.NFC(), "<s> $A </s>"),
    ),
}  # fmt: skip

# Its vocabulary has no [CLS] and [SEP]: the class adds them, and numbers them anew when it is loaded again.
UNSTABLE = (
    "rembert", "RemBertTokenizer", {}, lambda f: write_sentencepiece(f, "sentencepiece.model", **PLAIN),
)  # fmt: skip

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1400,
    "num_key_value_heads": 2, "head_dim": 16, "embedding_size": 32, "max_position_embeddings": 256,
    "attention_window": 8, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2,
    "num_decoder_layers": 2, "d_inner": 64,
    "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "dim": 32, "n_layers": 2, "n_heads": 2,
    "hidden_dim": 64,
}  # fmt: skip


def write_encoder(family: str | tuple, folder: Path, weights: bool = False) -> Path:
    """Writes the tokenizer's files and config.json, and a tiny model with random weights if asked for.

    family: a key of FAMILIES, or such a tuple.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_type, tokenizer_class, settings, write_files = FAMILIES[family] if isinstance(family, str) else family
    write_files(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **settings}))
    default = AutoConfig.for_model(model_type)
    sizes = {name: value for name, value in SIZES.items() if name in default.to_dict()}
    config = AutoConfig.for_model(model_type, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config.save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    return folder
