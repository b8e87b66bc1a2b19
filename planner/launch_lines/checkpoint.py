"""What a launch line serves: read from --model, --quantization, --dtype and the path's name, in this order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import UnsupportedModel
from models.architecture import MODELLED_WEIGHTS, ModelArchitecture, deepseek_r1
from planner.launch_lines.model_names import NamedCheckpoint, named_checkpoint
from planner.violation import Severity, Violation

# What --quantization says of a checkpoint without a config.json at hand: the modelled kinds, and what others are.
QUANTIZATION = {"fp8": "fp8", "w8a8_int8": "w8a8_int8", "blockwise_int8": "blockwise_int8"}
FOUR_BITS = (
    "awq", "awq_marlin", "gptq", "gptq_marlin", "marlin", "moe_wna16", "modelopt_fp4", "petit_nvfp4", "mxfp4",
    "nvfp4_online", "quark_mxfp4", "w4afp8", "mlx_q4", "quark_int4fp8_moe", "mxfp_w4a8", "auto-round",
)  # fmt: skip
NAME = "the path's name"
FIX = (
    "name the FP8 checkpoint in --model-path, or give the config.json of an FP8, INT8 or BF16 export of DeepSeek-R1, "
    "V3 or V3.1 with --model"
)
# Overrides of config.json that change neither shapes nor bytes.
SAME_SHAPES = ("rope_scaling", "rope_theta", "torch_dtype", "dtype", "num_nextn_predict_layers", "eos_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model behind a launch line, the source of that, and what was assumed."""

    arch: ModelArchitecture
    basis: str
    assumed: str | None = None
    violations: tuple[Violation, ...] = ()


def served_model(values: Mapping[str, Any], own_model: ModelArchitecture | None) -> ServedModel:
    """Return what a line with these flags (by SGLang's field names) serves; `own_model` is that of --model.

    Raises UnsupportedModel for a checkpoint that is not modelled: its memory and speed are unknown.
    """
    path = str(values.get("model_path") or "")
    for flag, name in (("load_format", "--load-format"), ("torchao_config", "--torchao-config")):
        if values.get(flag) in ("gguf", "bitsandbytes") or (flag == "torchao_config" and values.get(flag)):
            raise _not_modelled(path, f"{name} {values[flag]} gives weights of another kind")
    if values.get("dtype") in ("float", "float32"):
        raise _not_modelled(path, f"--dtype {values['dtype']} computes and stores in 32 bits")
    served = _by_config(own_model, values) if own_model is not None else _by_line(path, values)
    arch = _overridden(served.arch, values.get("json_model_override_args"), path)
    if arch.num_hidden_layers != served.arch.num_hidden_layers:
        served = replace(served, basis=f"{served.basis}; {arch.num_hidden_layers} layers by --json-model-override-args")
    return replace(served, arch=arch)


def _by_config(own_model: ModelArchitecture, values: Mapping[str, Any]) -> ServedModel:
    """Return the model of --model; a --quantization that says otherwise is refused by SGLang."""
    method = own_model.quantization_config.quant_method if own_model.quantization_config else None
    quantization = values.get("quantization")
    basis = f"{own_model.weights} weights, from --model"
    if quantization in (None, "unquant", method):
        return ServedModel(arch=own_model, basis=basis)
    if method is None and QUANTIZATION.get(quantization) in ("w8a8_int8", "blockwise_int8"):
        return ServedModel(
            arch=own_model.quantised(QUANTIZATION[quantization]),
            basis=f"shapes from --model, INT8 weights from --quantization {quantization}",
        )
    if method is None:
        raise _not_modelled(
            own_model.name, f"its config.json has no quantization_config, and --quantization is {quantization}"
        )
    fault = Violation(
        rule="quantization-mismatch",
        severity=Severity.ERROR,
        message=f"--quantization {quantization} is not what the checkpoint's config.json says ({method})",
        fix="leave --quantization out: SGLang reads it from the checkpoint",
        refused=True,
    )
    return ServedModel(arch=own_model, basis=basis, violations=(fault,))


def _by_line(path: str, values: Mapping[str, Any]) -> ServedModel:
    """Return the model that the path names, or --served-model-name where the path names none."""
    shown, named, flag = path, named_checkpoint(path), "the path's name"
    served = str(values.get("served_model_name") or "")
    if named.model is None and served:
        other = named_checkpoint(served)
        if other.model is not None:
            kinds = other if named.label is None else named
            shown, flag = served, "--served-model-name"
            named = replace(other, label=kinds.label, method=kinds.method)
    if named.is_other:
        raise UnsupportedModel(
            f"'{shown[:100]}' names no DeepSeek-R1, V3 or V3.1 and is not modelled: no verdict on memory or speed; "
            "if it is one of these under another name, give its config.json with --model"
        )
    quantization = values.get("quantization")
    method, basis = _weights(shown, named, None if quantization == "unquant" else quantization)
    arch = deepseek_r1() if method == "fp8" else deepseek_r1().quantised(method)
    basis = f"{arch.weights} weights, {basis.replace(NAME, flag)}"
    if named.model is not None:
        return ServedModel(arch=replace(arch, name=shown), basis=basis)
    return ServedModel(arch=arch, basis=basis, assumed=f"DeepSeek-R1 with {arch.weights} weights")


def _weights(path: str, named: NamedCheckpoint, quantization: str | None) -> tuple[str | None, str]:
    """Return the quant_method of the weights (None: BF16) and how it is known: --quantization before the name."""
    if quantization is not None and quantization not in QUANTIZATION:
        bits = "4 bits" if quantization in FOUR_BITS else f"'{quantization}'"
        raise _not_modelled(path, f"its weights are quantised to {bits}, by --quantization {quantization}")
    if named.label is not None and named.method not in (None, *MODELLED_WEIGHTS):
        raise _not_modelled(path, f"its weights are {named.label}, by its name")
    if quantization is None:
        if named.label is None:
            return "fp8", "as DeepSeek publishes it"
        return named.method, f"from {NAME}"
    method = QUANTIZATION[quantization]
    if named.label is not None and named.method is None and method == "fp8":
        raise _not_modelled(path, "its name says BF16 and --quantization fp8 converts it while loading")
    if named.method == "blockwise_int8" and method == "w8a8_int8":
        raise _not_modelled(path, "its name says block INT8 and --quantization w8a8_int8 reads one scale a channel")
    return method, f"from --quantization {quantization}"


def _overridden(arch: ModelArchitecture, text: Any, path: str) -> ModelArchitecture:
    """Apply --json-model-override-args where it changes shapes. Raises UnsupportedModel for the rest."""
    if not text:
        return arch
    try:
        overrides = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        overrides = None
    if not isinstance(overrides, dict):
        return arch  # a violation of its own: SGLang stops at the text
    changed = arch
    for key, value in overrides.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if key == "num_hidden_layers" and whole and value <= arch.num_hidden_layers:
            changed = changed.sliced(value)
        elif key == "max_position_embeddings" and whole:
            changed = replace(changed, max_position_embeddings=value)
        elif key not in SAME_SHAPES and getattr(arch, key, None) != value:
            raise _not_modelled(path, f"--json-model-override-args changes '{str(key)[:40]}'")
    return changed


def _not_modelled(path: str, why: str) -> UnsupportedModel:
    shown = f"'{path[:100]}'" if path else "this checkpoint"
    return UnsupportedModel(f"{shown} is not modelled: no verdict on memory or speed; {why}; {FIX}")
