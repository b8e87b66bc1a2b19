"""Puts the golden launch of every kind of checkpoint before its release's own parser, resolver and checks.

    python3 dev.py oracle --checkpoints [NAME ...]

The launches are those of tests/golden/checkpoints/launches.toml, each with a model folder that says what the published
checkpoint's config.json says of shapes and quantisation. Prints one line a launch; exits 1 where one is refused.
"""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu")]

from compare import FIELDS, compare
from environment import HOME
from packaging.version import Version
from run import ROPE, Run, ask

from hwprobe.catalogue import gpu_keys
from models.architecture import ModelArchitecture, load_architecture
from models.architecture.shipped import checkpoint_named, checkpoints
from planner.launch_lines.read import launch_of_file

GOLDEN = HERE.parent / "tests" / "golden" / "checkpoints"
CONFIGS = HERE.parent / "models" / "configs"
# What the published exports say of themselves in config.json, by quant_method; NVIDIA's stands in a file of its own.
QUANTIZATION: dict[str, dict[str, Any] | None] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
    "w8a8_int8": None,
    "w4afp8": {"quant_method": "w4afp8", "group_size": 128, "weight_block_size": [128, 128]},
    "quark": {
        "quant_method": "quark",
        "exclude": ["re:model.layers.*self_attn.*", "lm_head", "re:model.layers.61.*"],
        "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32, "qscheme": "per_group"}},
    },
}
NVFP4 = {
    "producer": {"name": "modelopt", "version": "0.33.0"},
    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": [
        "lm_head", "*self_attn.q_*", "*self_attn.kv_*", "model.layers.61*",
    ]},
}  # fmt: skip
# What SGLang and the hub's own code make of these before any model knows them: DeepSeek-V3's class, with all fields
# (hf_transformers_utils.py, _load_deepseek_v32_model; K2's auto_map). Libraries of today know the former by itself.
LOADED_AS = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
LOADED_SO = ("deepseek_v32", "kimi_k2")
MODEL_FLAG = "--model-path"
ANY_GPU = "h200"


def main(names: list[str]) -> int:
    """Ask about the launches of these names (none: all of them) and print what each release said."""
    launches = tomllib.loads((GOLDEN / "launches.toml").read_text(encoding="utf-8"))["launch"]
    refused = 0
    for launch in (each for each in launches if not names or each["name"] in names):
        folder = model_folder(launch["model"])
        words = words_of(launch["name"], folder)
        run = Run(release=launch["sglang_version"], gpus=(gpu_of(launch["hardware"]),), lines=[words])
        # A process for each: what one release lacks for a model may be what another model needs.
        by_gpu = ask([run])[0]
        verdict, accepted = verdict_of(run, by_gpu or elsewhere(run), load_architecture(folder))
        verdict += "" if by_gpu else f"; with an {ANY_GPU} pretended: the release cannot be loaded with a {run.gpus[0]}"
        refused += not accepted
        sys.stdout.write(f"{launch['name']:8} SGLang {run.release:8} {launch['hardware']:10} {verdict}\n")
        sys.stdout.flush()
    return 1 if refused else 0


def words_of(name: str, folder: Path) -> list[str]:
    """Return the words of a golden file, with the model's folder here."""
    typed = list(launch_of_file(GOLDEN / f"{name}.sh").words)
    return [str(folder) if before == MODEL_FLAG else word for before, word in pairwise(["", *typed])]


def gpu_of(hardware: str) -> str:
    """Return the catalogue's key of a machine's GPUs."""
    name = hardware.removeprefix("2x").rpartition("x")[0]
    return name if name in gpu_keys() else f"{name}x"


def elsewhere(run: Run) -> list[list[dict[str, Any]]]:
    """Ask with another GPU pretended, where a release cannot be loaded with a launch's own: its parser is the same."""
    return ask([replace(run, gpus=(ANY_GPU,))])[0]


def verdict_of(run: Run, by_gpu: list[list[dict[str, Any]]], arch: ModelArchitecture) -> tuple[str, bool]:
    """Return what the release made of a launch, beside sgtune's reading of it, and whether nothing is refused."""
    if not by_gpu:
        return "not asked: the release does not run here with this GPU pretended", True
    answer = by_gpu[0][0]
    if not answer["accepted"]:
        return f"refused at {answer['stage']}: {answer['error']} ({answer.get('where', '')})", False
    tally = compare(run.gpus[0], run.lines, by_gpu[0], arch, Version(run.release))
    differing = "; ".join(f"{name} ({lines[0].splitlines()[0][:200]})" for name, lines in tally.wrong.items())
    return f"accepted; of {len(FIELDS)} settings differ: {differing or 'none'}", True


def model_folder(name: str) -> Path:
    """Return a folder with the config files of a shipped checkpoint and nothing else."""
    checkpoint = checkpoint_named(name)
    if checkpoint is None:
        raise SystemExit(f"{name} is not among {len(checkpoints())} shipped checkpoints")
    config = json.loads((CONFIGS / f"{checkpoint.shapes}.json").read_text(encoding="utf-8"))
    method = checkpoint.arch.weight_formats.method or ""
    folder = HOME / "checkpoints" / name.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    if config["model_type"] in LOADED_SO:
        config |= LOADED_AS
    if method in QUANTIZATION:
        config.pop("quantization_config", None)
        own = QUANTIZATION[method]
        config |= {} if own is None else {"quantization_config": own}
    if method == "modelopt_fp4":
        config.pop("quantization_config", None)
        (folder / "hf_quant_config.json").write_text(json.dumps(NVFP4), encoding="utf-8")
    text = config.get("text_config", config)
    text.setdefault("rope_scaling", ROPE)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
