"""Writes a tiny DeepSeek-V3 (MLA, sigmoid-gated MoE, yarn rope): R1's own shape in small, weights made up on load.

python sglang_cpu/model.py FOLDER      the same with R1's own dimensions and FP8 blocks, for a GPU
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

R1 = Path(__file__).resolve().parents[1] / "models" / "configs" / "deepseek-r1.json"
VOCABULARY = 512
LAYERS = 3
# Deep enough for its slices to predict the whole model.
DEEP_LAYERS = 8

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "num_nextn_predict_layers": 0,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "max_position_embeddings": 163840,
    "initializer_range": 0.02,
    # SGLang's rope on a CPU is DeepSeek's yarn only
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "use_cache": True,
}

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
SPECIAL = ("<s>", "</s>", "<unk>")


def write_model(folder: Path, layers: int = LAYERS) -> Path:
    """Write config.json and a tokenizer of single bytes into `folder`; return it. Weights come from
    `--load-format dummy`."""
    return _write(folder, CONFIG | {"num_hidden_layers": layers})


def write_r1(folder: Path) -> Path:
    """Write the model with R1's own dimensions; its tokenizer is that of single bytes, for no text is ever read."""
    return _write(folder, CONFIG | json.loads(R1.read_text(encoding="utf-8")))


def _write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 4096,
        "chat_template": CHAT,
    }
    for name, content in {
        "config.json": config,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": tokens,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def tokenizer() -> dict[str, Any]:
    """Return a byte-level BPE without merges in the `tokenizers` file format: one token a byte."""
    names = [*SPECIAL, *sorted(byte_letters())]
    names += [f"<x{index}>" for index in range(len(names), VOCABULARY)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {name: index for index, name in enumerate(names)},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": {**level, "add_prefix_space": True},
        "model": bpe,
    }


def byte_letters() -> list[str]:
    """Return the 256 printable characters that stand for bytes in GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]


if __name__ == "__main__":
    sys.stdout.write(f"{write_r1(Path(sys.argv[1]))}\n")
