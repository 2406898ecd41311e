"""Runs one forward and backward pass of ten encoder families, packed and padded, and writes what they gave as JSON.

python tests/simulated_gpu.py tests/gpu_encoders.py results.json        # or without simulated_gpu.py on a GPU
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from util import fast_paths
from util.device import to_device
from util.half_weights import HalfWeights
from util.packed import _gpu_attention, make_packing_plan

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = {"vocab_size": 300}
MODERN = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
CONFIGS = {
    "bert": transformers.BertConfig(**WORDS, **SIZE, **OFF),
    "roberta": transformers.RobertaConfig(**WORDS, max_position_embeddings=514, pad_token_id=1, **SIZE, **OFF),
    "xlm-roberta": transformers.XLMRobertaConfig(**WORDS, pad_token_id=1, **SIZE, **OFF),
    "electra": transformers.ElectraConfig(**WORDS, embedding_size=16, **SIZE, **OFF),
    "distilbert": transformers.DistilBertConfig(
        **WORDS, dim=32, n_layers=2, n_heads=2, hidden_dim=64, dropout=0.0, attention_dropout=0.0
    ),
    "albert": transformers.AlbertConfig(**WORDS, embedding_size=16, classifier_dropout_prob=0.0, **SIZE, **OFF),
    "modernbert": transformers.ModernBertConfig(
        **WORDS, local_attention=16, global_attn_every_n_layers=2, **MODERN, **SIZE | {"num_hidden_layers": 3}
    ),
    "eurobert": transformers.EuroBertConfig(**WORDS, **SIZE, pad_token_id=0, num_key_value_heads=2),
    "deberta-v2": transformers.DebertaV2Config(
        **WORDS, relative_attention=True, pos_att_type=["p2c", "c2p"], **SIZE, **OFF
    ),
    "xlnet": transformers.XLNetConfig(**WORDS, d_model=32, n_layer=2, n_head=2, d_inner=64, dropout=0.0),
}


def make_model(name: str) -> transformers.PreTrainedModel:
    """Weights are larger than at initialization, so that attention is not almost uniform."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    config.num_labels = 5
    model = transformers.AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.train()


def host_waits(model, batch: dict, autocast) -> list[str]:
    """Where the host waits for the device in a forward and backward pass."""
    inputs = to_device(batch, model.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with autocast:
            logits = model(**inputs).logits
        logits.float().square().sum().backward()
    except RuntimeError as error:
        return [str(error)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.zero_grad(set_to_none=True)
    return []


def examine(name: str) -> dict:
    """Relative differences between the results of padded and packed batches, on a CPU and on a GPU; host waits."""
    lines: list[str] = []
    model = make_model(name)
    rows = fast_paths._make_rows(model, fast_paths._verified_lengths(model))
    padded = fast_paths._pad(model, rows)
    is_token = padded["attention_mask"].flatten().nonzero()[:, 0]
    no_autocast = torch.autocast("cpu", enabled=False)
    expected = fast_paths._logits_and_gradients(model, model, padded, is_token, no_autocast)
    packing = fast_paths.choose_packing("auto", model, 64, False, torch.device("cuda"), lines.append)
    if packing is None:
        model.set_attn_implementation("packed_sdpa" if model.config._attn_implementation == "sdpa" else "eager")
    model.to("cuda")
    result: dict = {"packing": packing is not None, "lines": lines}
    for precision in ("fp32", "bf16"):
        autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16")
        on_gpu = fast_paths._logits_and_gradients(model, model, padded, is_token, autocast)
        moved = (expected[0].cuda(), [gradient.cuda() for gradient in expected[1]])
        result[f"{precision} padded"] = fast_paths._relative_error(on_gpu, moved)
        result[f"{precision} padded waits"] = host_waits(model, padded, autocast)
        verified = fast_paths.verify_packing(packing, "auto", model, precision, autocast, lines.append)
        if verified is None:
            continue
        packed = fast_paths._pack(model, rows, packing)
        tokens = torch.arange(len(is_token))
        on_gpu = fast_paths._logits_and_gradients(model, model, packed, tokens, autocast)
        result[f"{precision} packed"] = fast_paths._relative_error(on_gpu, moved)
        result[f"{precision} packed waits"] = host_waits(model, packed, autocast)
        if precision == "bf16":
            half = HalfWeights(model, torch.bfloat16)
            with_half = fast_paths._logits_and_gradients(half, model, packed, tokens, autocast)
            same = [torch.equal(a, b) for a, b in zip(with_half[1], on_gpu[1])]
            result["half weights are bitwise equal"] = torch.equal(with_half[0], on_gpu[0]) and all(same)
    return result


def mean_under_dropout() -> dict:
    """Attention of three sentences, averaged over 400 seeds of dropout, beside attention without dropout.

    Returns the largest difference in standard errors, and whether the same seed gives the same result.
    """
    plan = make_packing_plan(np.array([7, 5, 2, 2]))
    plan = plan.to(torch.device("cuda"))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 8, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    result = {}
    for dtype in (torch.bfloat16, torch.float16):
        inputs = [x.to(dtype) for x in (q, k, v)]
        exact = _gpu_attention(*inputs, 0.3, 0.0, None, plan).float()
        draws = torch.stack([_gpu_attention(*inputs, 0.3, 0.2, None, plan).float() for _ in range(400)])
        error = (draws.mean(0) - exact).abs() / (draws.std(0) / 20 + 1e-3)
        torch.manual_seed(1)
        once = _gpu_attention(*inputs, 0.3, 0.2, None, plan)
        torch.manual_seed(1)
        again = _gpu_attention(*inputs, 0.3, 0.2, None, plan)
        changed = (draws[0] != draws[1]).any()
        same = bool(torch.equal(once, again) and changed)
        result[str(dtype)] = {"standard errors": error.max().item(), "reproducible": same}
    return result


def main() -> None:
    Path(sys.argv[1]).write_text(
        json.dumps({name: examine(name) for name in CONFIGS} | {"dropout": mean_under_dropout()}, indent=1)
    )


if __name__ == "__main__":
    main()
