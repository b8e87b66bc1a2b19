"""Reads config.json (and hf_quant_config.json beside it) of DeepSeek-V3, V3.1, V3.2, R1, Kimi K2 and their exports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprobe.bounds import MODEL, check_fields
from hwprobe.errors import InputError, UnsupportedModel
from hwprobe.files import decode_json, read_bytes
from hwprobe.parsing import load_json
from models.architecture.shapes import ModelArchitecture
from models.quantization.declared import read_formats

# The family by model_type. Kimi K2.5 holds its text model, a K2, in text_config, beside a vision tower.
SUPPORTED_MODEL_TYPES = ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25")
FAMILY = "DeepSeek-V3, V3-0324, V3.1, V3.2, R1, R1-0528, Kimi K2 and K2.5"
QUANTIZATION_FILE = "hf_quant_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    model_type: str = "unknown"


def parse_architecture(data: bytes | str, where: str, name: str, quantization: object = None) -> ModelArchitecture:
    """Read a Hugging Face config.json; `quantization` is what hf_quant_config.json holds, where there is one.

    Raises UnsupportedModel for a model that is not of the family or weights that are not modelled, InputError naming
    the field.
    """
    kind = decode_json(data, _Kind, where)
    if kind.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModel(
            f"{where}: model_type '{kind.model_type[:60]}' is not supported; sgtune models the DeepSeek-V3 family "
            f"({FAMILY}; model_type {', '.join(SUPPORTED_MODEL_TYPES)})"
        )
    whole = load_json(data, where)
    text = _text_part(whole, where)
    model = decode_json(_encoded(text), ModelArchitecture, where)
    check_fields(model, MODEL, where)
    _check_shapes(model, where)
    _check_variants(text, kind.model_type, model, where)
    own = text.get("quantization_config") or whole.get("quantization_config")
    layers = (model.dense_layers, model.num_hidden_layers)
    formats = read_formats(own if own is not None else quantization, where, layers)
    return replace(
        model, name=name, model_type=kind.model_type, weight_formats=formats, vision_params=_vision_params(whole)
    )


def load_architecture(path: Path) -> ModelArchitecture:
    """Read a config.json, or the one in a model folder, with the hf_quant_config.json beside it.

    Of an hf_quant_config.json it is the config.json beside it: the former says nothing of shapes.
    """
    file = path / "config.json" if path.is_dir() else path
    if file.name == QUANTIZATION_FILE:
        file = file.parent / "config.json"
        if not file.is_file():
            raise InputError(
                f"{path} says how weights are quantised, not what shapes they have: put config.json beside it"
            )
    name = file.parent.name if file.name == "config.json" and file.parent.name else file.stem
    beside = file.parent / QUANTIZATION_FILE
    quantization = None
    if file.name == "config.json" and beside.is_file():
        quantization = load_json(read_bytes(beside, "quantisation config"), str(beside))
    return parse_architecture(read_bytes(file, "model config"), str(file), name, quantization)


def _text_part(whole: Any, where: str) -> dict[str, Any]:
    """Return the settings of the text model: the whole file, or text_config inside a model with a vision tower."""
    if not isinstance(whole, dict):
        raise InputError(f"{where}: not a JSON object")
    text = whole.get("text_config")
    if text is None:
        return whole
    if not isinstance(text, dict):
        raise InputError(f"{where}: text_config is not an object")
    return text


def _encoded(text: dict[str, Any]) -> bytes:
    """Return the fields of ModelArchitecture alone: others of the same name as ours mean something else."""
    import msgspec

    ours = ("weight_formats", "name", "sliced_from", "vision_params", "model_type")
    return msgspec.json.encode({key: value for key, value in text.items() if key not in ours})


def _check_shapes(model: ModelArchitecture, where: str) -> None:
    """Raise InputError for counts that contradict each other, UnsupportedModel for half an indexer."""
    for small, large in (
        ("first_k_dense_replace", "num_hidden_layers"), ("num_experts_per_tok", "n_routed_experts"),
    ):  # fmt: skip
        if getattr(model, small) > getattr(model, large):
            raise InputError(f"{where}: {small} {getattr(model, small)} exceeds {large} {getattr(model, large)}")
    index = (model.index_n_heads, model.index_head_dim, model.index_topk)
    if any(index) and not all(index):
        raise InputError(f"{where}: index_n_heads, index_head_dim and index_topk go together: {index}")


def _check_variants(text: dict[str, Any], model_type: str, model: ModelArchitecture, where: str) -> None:
    """Raise UnsupportedModel for what these models may be and none that is published is."""
    if model_type == "deepseek_v32" and not model.is_sparse:
        raise UnsupportedModel(f"{where}: deepseek_v32 without index_n_heads, index_head_dim, index_topk: no verdict")
    if text.get("moe_layer_freq", 1) != 1:
        raise UnsupportedModel(f"{where}: moe_layer_freq {str(text['moe_layer_freq'])[:20]} is not modelled, only 1")
    if text.get("tie_word_embeddings"):
        raise UnsupportedModel(f"{where}: tie_word_embeddings is not modelled: the head is taken as weights of its own")


def _vision_params(whole: dict[str, Any]) -> int:
    """Return the parameters of a vision tower: attention and MLP of its layers, embeddings and the projector to text.

    Kimi K2.5's MoonViT gives 27 layers of 1,152; biases and norms (under 1 %) are left out.
    """
    vision = whole.get("vision_config")
    if not isinstance(vision, dict):
        return 0
    hidden, inner, layers = (
        _size(vision, *names)
        for names in (
            ("vt_hidden_size", "hidden_size"),
            ("vt_intermediate_size", "intermediate_size"),
            ("vt_num_hidden_layers", "num_hidden_layers"),
        )
    )
    merged = 4 * hidden  # 2 x 2 patches become one token
    text = _size(vision, "text_hidden_size") or _size(whole.get("text_config") or {}, "hidden_size")
    return layers * (4 * hidden * hidden + 2 * hidden * inner) + merged * (merged + text)


def _size(settings: dict[str, Any], *names: str) -> int:
    stated = next((settings[name] for name in names if isinstance(settings.get(name), int)), 0)
    return min(max(int(stated), 0), 10**6)
