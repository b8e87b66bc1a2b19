"""Reads a checkpoint's quantization_config (config.json) or hf_quant_config.json into the formats of its components."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import InputError, UnsupportedModel
from models.quantization import formats
from models.quantization.components import BF16_WEIGHTS, FP8_WEIGHTS, MODULES, PRESETS, WeightFormats, uniform
from models.quantization.formats import WeightFormat

# An answer for these says what they are and ends there.
REFUSED = {
    "gguf": "GGUF", "bitsandbytes": "bitsandbytes", "aqlm": "AQLM", "hqq": "HQQ", "exl2": "EXL2", "eetq": "EETQ",
    "qoq": "QoQ", "mxfp8": "MXFP8", "marlin": "Marlin", "torchao": "torchao",
}  # fmt: skip
_LAYER = re.compile(r"layers\\?\.(\d{1,4})(?!\d)")
MOST_PATTERNS, LONGEST_PATTERN = 4000, 300
Layers = tuple[int, int]  # the first MoE layer and the number of layers


def read_formats(config: object, where: str, layers: Layers) -> WeightFormats:
    """Return the formats that a quantization_config gives, or the contents of an hf_quant_config.json.

    `layers` are the first MoE layer and the number of layers: lists of exceptions name layers. Raises UnsupportedModel
    for what is not modelled, InputError for what makes no sense.
    """
    if config is None:
        return BF16_WEIGHTS
    if not isinstance(config, dict):
        raise InputError(f"{where}: quantization_config is not an object")
    inner = config.get("quantization")
    data: dict[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    method = _method(data)
    reader = READERS.get(method)
    if not method:
        raise UnsupportedModel(f"{where}: a quantization_config without quant_method is not modelled: no verdict")
    if reader is None:
        label = REFUSED.get(method, f"'{method[:40]}'")
        raise UnsupportedModel(
            f"{where}: weights quantised by {label} are not modelled: no verdict on memory or speed; sgtune models "
            f"{', '.join(sorted(READERS))} and BF16"
        )
    return _with_exceptions(reader(data, where), _exceptions(data, where), where, layers)


def _method(data: Mapping[str, Any]) -> str:
    method = str(data.get("quant_method") or "").lower().replace("_", "-")
    algorithm = str(data.get("quant_algo") or "").upper()
    if method.startswith("modelopt") or (not method and algorithm):
        return "modelopt"
    return {"w8a8-int8": "w8a8_int8", "blockwise-int8": "blockwise_int8", "int8": "blockwise_int8"}.get(method, method)


def _fp8(data: Mapping[str, Any], where: str) -> WeightFormats:
    """Without weight_block_size SGLang takes one scale for a matrix."""
    block = data.get("weight_block_size")
    if block is None:
        return uniform("fp8", "FP8", formats.FP8_TENSOR)
    rows, columns = _pair(block, where)
    if 1 in (rows, columns):
        raise UnsupportedModel(f"{where}: FP8 with a scale for {rows} x {columns} weights (MXFP8) is not modelled")
    each = replace(formats.FP8_BLOCK, scale_rows=rows, scale_columns=columns)
    return FP8_WEIGHTS if each == formats.FP8_BLOCK else uniform("fp8", "FP8", each)


def _int8_block(data: Mapping[str, Any], where: str) -> WeightFormats:
    rows, columns = _pair(data.get("weight_block_size", [128, 128]), where)
    return uniform("blockwise_int8", "INT8", replace(formats.INT8_BLOCK, scale_rows=rows, scale_columns=columns))


def _int8_channel(data: Mapping[str, Any], where: str) -> WeightFormats:
    return PRESETS["w8a8_int8"]


def _awq(data: Mapping[str, Any], where: str) -> WeightFormats:
    _only_bits(data, where, "AWQ", (4,))
    group = data.get("group_size", data.get("q_group_size", 128))
    each = formats.awq(_group(group, where), zero_point=bool(data.get("zero_point", True)))
    return replace(uniform("awq", "4-bit AWQ", each), without_draft=True)


def _gptq(data: Mapping[str, Any], where: str) -> WeightFormats:
    _no_settings_by_module(data, where, "dynamic", "extra_config")
    _only_bits(data, where, "GPTQ", (4,))
    method = "auto-round" if _method(data) == "auto-round" else "gptq"
    label = f"4-bit {'AutoRound' if method == 'auto-round' else 'GPTQ'}"
    each = formats.gptq(_group(data.get("group_size", 128), where))
    return replace(uniform(method, label, each), without_draft=True)


def _w4afp8(data: Mapping[str, Any], where: str) -> WeightFormats:
    group = _group(data.get("group_size", 128), where)
    return replace(PRESETS["w4afp8"], routed=replace(formats.W4AFP8, scale_columns=max(group, 0)))


def _modelopt(data: Mapping[str, Any], where: str) -> WeightFormats:
    algorithm = str(data.get("quant_algo") or "").upper()
    if algorithm in ("NVFP4", "FP4", "NVFP4_AWQ"):
        size = _group(data.get("group_size") or 16, where)
        return uniform("modelopt_fp4", "NVFP4", replace(formats.NVFP4, scale_columns=size))
    if algorithm == "FP8":
        return uniform("modelopt_fp8", "FP8", formats.FP8_TENSOR)
    raise UnsupportedModel(f"{where}: modelopt's '{algorithm[:40]}' is not modelled: no verdict on memory or speed")


def _quark(data: Mapping[str, Any], where: str) -> WeightFormats:
    _no_settings_by_module(data, where, "layer_quant_config", "layer_type_quant_config")
    settings = data.get("global_quant_config") or {}
    weight = settings.get("weight") if isinstance(settings, dict) else None
    weight = weight[0] if isinstance(weight, list) and weight else weight
    if not isinstance(weight, dict):
        raise UnsupportedModel(f"{where}: quark without a global_quant_config of weights is not modelled: no verdict")
    dtype = str(weight.get("dtype") or "").lower()
    if dtype in ("fp4", "mxfp4"):
        each = replace(formats.MXFP4, scale_columns=_group(weight.get("group_size") or 32, where))
        return uniform("quark", "MXFP4", each)
    if dtype.startswith("fp8"):
        channel = "channel" in str(weight.get("qscheme"))
        return uniform("quark", "FP8", formats.FP8_CHANNEL if channel else formats.FP8_TENSOR)
    raise UnsupportedModel(f"{where}: quark's '{dtype[:40]}' weights are not modelled: no verdict on memory or speed")


def _mxfp4(data: Mapping[str, Any], where: str) -> WeightFormats:
    return uniform("mxfp4", "MXFP4", formats.MXFP4)


def _compressed(data: Mapping[str, Any], where: str) -> WeightFormats:
    """compressed-tensors: groups of settings, each with the modules it is for."""
    groups = data.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise UnsupportedModel(f"{where}: compressed-tensors with {len(groups or ())} config_groups is not modelled")
    group = next(iter(groups.values()))
    weight = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weight, dict):
        raise UnsupportedModel(f"{where}: compressed-tensors without settings of weights is not modelled: no verdict")
    sparsity = data.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedModel(f"{where}: compressed-tensors with sparse weights is not modelled: no verdict")
    label, each = _compressed_format(weight, str(data.get("format") or group.get("format") or ""), where)
    method = "w8a8_int8" if each.kind is formats.Kind.INT8 else "compressed-tensors"
    return replace(uniform(method, label, each), without_draft=each.bits == 4)


def _compressed_format(weight: Mapping[str, Any], packing: str, where: str) -> tuple[str, WeightFormat]:
    bits, kind = weight.get("num_bits"), str(weight.get("type"))
    size, symmetric = weight.get("group_size"), bool(weight.get("symmetric", True))
    strategy = str(weight.get("strategy") or _implied_strategy(size))
    if kind == "int" and bits == 4 and strategy in ("group", "channel"):
        group = _group(size if strategy == "group" else -1, where)
        return "4-bit compressed-tensors", formats.packed_int4(group, symmetric=symmetric)
    if kind == "int" and bits == 8 and strategy == "channel":
        return "INT8", formats.INT8_CHANNEL
    if kind == "float" and bits == 4:
        mx = "mxfp4" in packing or size == 32
        return ("MXFP4", formats.MXFP4) if mx else ("NVFP4", formats.NVFP4)
    if kind == "float" and bits == 8:
        of_strategy = {"channel": formats.FP8_CHANNEL, "tensor": formats.FP8_TENSOR}
        if strategy == "block":
            rows, columns = _pair(weight.get("block_structure", [128, 128]), where)
            of_strategy["block"] = replace(formats.FP8_BLOCK, scale_rows=rows, scale_columns=columns)
        if strategy in of_strategy:
            return "FP8", of_strategy[strategy]
    raise UnsupportedModel(
        f"{where}: compressed-tensors weights of {bits} bits ({kind[:20]}, {strategy[:20]}) are not modelled"
    )


def _implied_strategy(group_size: object) -> str:
    """Return the strategy that compressed-tensors takes where none is named."""
    if isinstance(group_size, int) and group_size > 0:
        return "group"
    return "channel" if group_size == -1 else "tensor"


READERS: dict[str, Callable[[Mapping[str, Any], str], WeightFormats]] = {
    "fp8": _fp8, "blockwise_int8": _int8_block, "w8a8_int8": _int8_channel, "awq": _awq, "gptq": _gptq,
    "auto-round": _gptq, "w4afp8": _w4afp8, "modelopt": _modelopt, "quark": _quark, "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
}  # fmt: skip


Matcher = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Exceptions:
    """What says which modules stay unquantised, and the layers that are named by number."""

    matchers: tuple[Matcher, ...]
    layers: frozenset[int]


def _exceptions(data: Mapping[str, Any], where: str) -> _Exceptions:
    """Return the exceptions, under whichever names the method lists them."""
    names = ("ignore", "exclude", "exclude_modules", "modules_to_not_convert", "ignored_layers")
    listed = [pattern for name in names if isinstance(data.get(name), list) for pattern in data[name]]
    groups = data.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    targets = [each for group in groups if isinstance(group, dict) for each in group.get("targets") or ()]
    if len(listed) + len(targets) > MOST_PATTERNS or any(len(str(p)) > LONGEST_PATTERN for p in (*listed, *targets)):
        raise InputError(f"{where}: more than {MOST_PATTERNS} exceptions, or one of {LONGEST_PATTERN} characters")
    matchers = [_matcher(str(pattern), where) for pattern in listed]
    if targets and "Linear" not in targets:
        target_matchers = [_matcher(str(target), where) for target in targets]
        matchers.append(lambda name: not any(matches(name) for matches in target_matchers))
    numbers = {int(number) for pattern in (*listed, *targets) for number in _LAYER.findall(str(pattern))}
    return _Exceptions(tuple(matchers), frozenset(numbers))


def _with_exceptions(
    weight_formats: WeightFormats, exceptions: _Exceptions, where: str, layers: Layers
) -> WeightFormats:
    """Return the formats with the exempt components in BF16."""
    if not exceptions.matchers:
        return weight_formats
    matchers = exceptions.matchers
    first_moe, count = layers
    of_component = {name: _layers_of(name, first_moe, count, exceptions.layers) for name in MODULES}
    plain = {}
    for name, module in MODULES.items():
        sampled = [_is_exempt(f"model.layers.{layer}.{module}", matchers) for layer in of_component[name]]
        if any(sampled) and not all(sampled):
            raise UnsupportedModel(
                f"{where}: the layers' {module} are quantised in some layers and left in others: not modelled"
            )
        if sampled and all(sampled):
            plain[name] = formats.BF16
    draft = weight_formats.draft
    if _is_exempt(f"model.layers.{count}.{MODULES['routed']}", matchers) and "routed" not in plain:
        draft = formats.BF16
    return replace(
        weight_formats, **{name: plain.get(name, getattr(weight_formats, name)) for name in MODULES}, draft=draft
    )


def _layers_of(name: str, first_moe: int, count: int, named: Iterable[int]) -> list[int]:
    """Return layers that stand for all of a component's: the first, the middle, the last, and those `named`."""
    low = first_moe if name in ("routed", "shared") else 0
    high = first_moe if name == "dense" else count
    chosen = {low, (low + high) // 2, high - 1, *named}
    return sorted(layer for layer in chosen if low <= layer < high)


def _matcher(pattern: str, where: str) -> Matcher:
    """Return what says whether a module is named: a regular expression, a glob, or a part of the module's path."""
    if pattern.startswith("re:"):
        try:
            compiled = re.compile(pattern[3:])
        except re.error as error:
            raise InputError(f"{where}: '{pattern[:80]}' is no regular expression ({error})") from error
        return lambda name: compiled.match(name) is not None
    if "*" in pattern:
        globbed = re.compile(fnmatch.translate(pattern))
        return lambda name: globbed.match(name) is not None
    part = re.compile(rf"(?:^|\.){re.escape(pattern.strip('.'))}(?:\.|$)")
    return lambda name: part.search(name) is not None


def _is_exempt(name: str, matchers: Iterable[Matcher]) -> bool:
    """Say whether a module is named, in a text model or inside a model with a vision tower."""
    return any(matches(name) or matches("language_model." + name) for matches in matchers)


def _no_settings_by_module(data: Mapping[str, Any], where: str, *names: str) -> None:
    """Raise UnsupportedModel where some modules are quantised in another way than the rest."""
    for name in names:
        if data.get(name):
            raise UnsupportedModel(
                f"{where}: {name} (settings by module) is not modelled: no verdict on memory or speed"
            )


def _pair(value: object, where: str) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value):
        return int(value[0]), int(value[1])
    raise InputError(f"{where}: weight_block_size is {str(value)[:40]}; it must be two sizes, as [128, 128]")


def _group(value: object, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and (value == -1 or value > 0):
        return value
    raise InputError(f"{where}: group_size is {str(value)[:40]}; it must be a number of inputs, or -1 for all")


def _only_bits(data: Mapping[str, Any], where: str, name: str, modelled: tuple[int, ...]) -> int:
    bits = data.get("bits", data.get("w_bit"))
    if bits in modelled:
        return int(bits)
    raise UnsupportedModel(
        f"{where}: {name} weights of {str(bits)[:20]} bits are not modelled: no verdict on memory or speed"
    )
