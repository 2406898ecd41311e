"""Tiny encoders of every family with a token-classification head: configs generated from transformers' own mapping.

A family of a later version of transformers is included without a change here: every size of its default config is
made small by its name. OVERRIDES holds only what names do not tell.
"""

import contextlib
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
HIDDEN, HEADS, LAYERS, POSITIONS = 32, 4, 2, 128

# The size of an attribute by its name; {name: value}.
SIZES = dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size", "d_embed"), HIDDEN)
SIZES |= dict.fromkeys(("input_embedding_size", "output_embedding_size", "pooler_hidden_size"), HIDDEN)
SIZES |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), HEADS)
SIZES |= {"linear_num_key_heads": HEADS // 2}
SIZES |= dict.fromkeys(("linear_num_value_heads", "index_n_heads"), HEADS)
SIZES |= dict.fromkeys(("head_dim", "d_kv", "d_head", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8)
SIZES |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "q_lora_rank", "kv_lora_rank"), 8)
SIZES |= {"qk_head_dim": 16, "index_head_dim": 16, "index_topk": 16}
SIZES |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), LAYERS)
SIZES |= dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS)
SIZES |= dict.fromkeys(("intermediate_size", "d_inner", "d_ff", "hidden_dim", "ffn_hidden_size", "n_inner"), 64)
SIZES |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "encoder_ffn_dim"), 32)
SIZES |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
SIZES |= {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "tpu_short_seq_length"), POSITIONS)
SIZES |= dict.fromkeys(("sliding_window", "attention_window", "local_attention", "window_size"), 16)
SIZES |= dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "entity_emb_size"), 8)
SIZES |= dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size", "entity_vocab_size"), 50)
SIZES |= {"block_size": 8, "num_random_blocks": 1, "query_pre_attn_scalar": 8, "num_hash": 4}
SIZES |= {"true_hidden_size": HIDDEN, "intra_bottleneck_size": HIDDEN, "prediction_head_size": HIDDEN}
SIZES |= {"image_size": 16, "input_size": 16, "patch_size": 8, "max_2d_position_embeddings": 64}
SIZES |= {"first_k_dense_replace": 1}

# What names do not tell, by family.
OVERRIDES: dict[str, dict] = {
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},  # its number of layers
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},  # its number of layers
    "layoutlmv2": {"coordinate_size": 6, "shape_size": 4},  # four of one and two of the other make hidden_size
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},  # a multiple of 6 and of the number of heads
    "mistral4": {"head_dim": 16},  # of which half is rotary
    "xmod": {"default_language": "en_XX"},  # real checkpoints name one
    "ministral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "head_dim": 8},  # it has none
    "nemotron": {"num_key_value_heads": HEADS // 2},  # the default config has none
}


def sizes(config: PretrainedConfig) -> dict:
    """The attributes of a default config that are to be made small -> their new values."""
    changed: dict = {}
    for name, value in config.to_dict().items():
        if isinstance(getattr(config, name, None), PretrainedConfig):
            inner = getattr(config, name)
            changed[name] = sizes(inner) | {"model_type": inner.model_type}
        elif name in ("num_key_value_heads", "num_kv_heads") and value:
            is_grouped = value != getattr(config, "num_attention_heads", value)
            changed[name] = HEADS // 2 if is_grouped else HEADS
        elif name in SIZES and isinstance(value, (int, list)) and not isinstance(value, bool):
            changed[name] = SIZES[name]
        elif name in ("layer_types", "mlp_layer_types", "no_rope_layers") and isinstance(value, list):
            kinds = list(dict.fromkeys(value))  # every kind of layer occurs
            changed[name] = (kinds * LAYERS)[:LAYERS]
    return changed


def tiny_config(family: str, tokenizer) -> PretrainedConfig:
    """A config of a family in its smallest form that has all of its parts."""
    default = CONFIG_MAPPING[family]()
    changed = sizes(default) | OVERRIDES.get(family, {})
    set_tokens(changed, default, tokenizer)
    return type(default)(**changed)


def set_tokens(changed: dict, default: PretrainedConfig, tokenizer) -> None:
    """Adds the size of the vocabulary and the ids of special tokens, in the config and in those that it holds."""
    special = {"pad": tokenizer.pad_token_id, "bos": tokenizer.cls_token_id, "cls": tokenizer.cls_token_id}
    special |= {"eos": tokenizer.sep_token_id, "sep": tokenizer.sep_token_id, "mask": tokenizer.mask_token_id}
    for name, value in default.to_dict().items():
        inner = getattr(default, name, None)
        if isinstance(inner, PretrainedConfig):
            set_tokens(changed[name], inner, tokenizer)
        elif name == "vocab_size":
            changed[name] = len(tokenizer)
        elif name.endswith("_token_id"):
            if name[:-9] in special:
                changed[name] = special[name[:-9]]
            elif isinstance(value, int):
                changed[name] = tokenizer.unk_token_id  # of an image, a video
    if special["pad"] == 1 and "max_position_embeddings" in changed:
        changed["max_position_embeddings"] = POSITIONS + 2  # RoBERTa counts positions from pad_token_id + 1


def is_byte_level(family: str) -> bool:
    """Whether an encoder gets byte-level BPE, as families whose padding has the id 1, like RoBERTa. Others: WordPiece.

    transformers has a class for the tokenizers of some families, which takes only the vocabulary from tokenizer.json.
    """
    return family in ("qwen2", "qwen3_5") or getattr(CONFIG_MAPPING[family](), "pad_token_id", None) == 1


def without_dropout(config: PretrainedConfig) -> None:
    """Sets everything that drops something to 0, also in the configs that it holds."""
    config.classifier_dropout = 0.0  # a head without this attribute has 0.1
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            without_dropout(value)
        elif ("drop" in name or name == "attn_pdrop") and isinstance(value, float):
            setattr(config, name, 0.0)


def write_encoder(family: str, folder: Path, tokenizer, dropout: bool = True, **changes) -> Path:
    """Writes config, random weights and tokenizer of a tiny pretrained encoder without a head.

    Without weights if a library that the encoder needs is missing. changes: of the config.
    """
    config = tiny_config(family, tokenizer)
    if not dropout:
        without_dropout(config)
    config.update(changes)
    config.architectures = []  # Funnel has two base models
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    with contextlib.suppress(ImportError):
        AutoModel.from_config(config).save_pretrained(folder)
    return folder
