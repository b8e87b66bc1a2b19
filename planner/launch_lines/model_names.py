"""Reads the name of a checkpoint's path: which model it is, and how its weights are quantised."""

from __future__ import annotations

import re
from dataclasses import dataclass

_EDGE = r"(?<![a-z0-9])"
_END = r"(?![a-z0-9])"
# DeepSeek-V3, V3-0324, V3.1, R1 and what was trained from them in the same shapes; bare names at the beginning only.
_VERSIONS = r"(?:r1t2?|r1|v3[._]1|v31|v3|prover[-_]v2[-_]671b)"
_FAMILY = re.compile(rf"{_EDGE}(?:deep[-_ ]?seek|ds)[-_ ]?(?:ai[-_ ]?|tng[-_ ]?)?{_VERSIONS}{_END}")
_BARE = re.compile(rf"{_VERSIONS}{_END}")
# Others of the family, by the shapes shipped for them (models/configs). Drafts and cut-down versions are not they.
_SMALLER = re.compile(r"eagle|draft|mini|distill|lite|dspark|mtp[-_]?head|linear|audio|dev")
_BASES = (
    ("deepseek-v3.2", re.compile(rf"{_EDGE}(?:deep[-_ ]?seek|ds)[-_ ]?(?:ai[-_ ]?)?(?:v3[._-]2|v32)(?![0-9])")),
    ("kimi-k2.5", re.compile(rf"{_EDGE}kimi[-_ ]?k2[._-]?[567](?![0-9])")),
    ("kimi-k2-thinking", re.compile(rf"{_EDGE}kimi[-_ ]?k2[-_ ]?thinking")),
    ("kimi-k2", re.compile(rf"{_EDGE}kimi[-_ ]?k2(?![0-9._]|[-_][0-9](?![0-9]))")),
)
# Successors and relatives that share the beginning of the name but not the shapes.
_RELATIVES = re.compile(
    r"(?:distill|v3[._-]2|v32(?![0-9])|(?:deep[-_ ]?seek|ds)[-_ ]?(?:v2(?![0-9])|v[4-9]|r2|llm|moe|math|coder|vl|ocr|"
    rf"prover(?![-_]v2[-_]671b))|{_EDGE}lite{_END}|janus|{_EDGE}(?!671b|685b|37b)\d+(?:\.\d+)?b{_END})"
)
_OTHERS = re.compile(
    _EDGE
    + r"(?:(?:kimi|moonlight|moonshot|qwen|qwq|qvq|llama|codellama|tinyllama|vicuna|alpaca|mistral|mixtral|ministral|"
    r"devstral|magistral|codestral|pixtral|glm|chatglm|gpt|gemma|paligemma|internlm|interns1|internvl|minimax|hunyuan|"
    r"ernie|nemotron|grok|dbrx|olmo|falcon|baichuan|longcat|mimo|granite|exaone|bloom|smollm|llava|janus|skywork|"
    r"starcoder|jamba|mamba|stablelm|minicpm|openelm|xverse|bailing|apriel|whisper)(?:(?=\d)|(?![a-z]))"
    # Words that name folders, too, count with what follows them in a model's name.
    r"|(?:opt|phi|yi|step|ling|ring|seed|command|intern|solar|arctic|orion|zephyr|hermes|dolphin|aya|dots|bge|gte|e5|"
    r"flux|wan|clip|mpt|afm)[-_.]?(?:\d|oss|r|a|v|s1|vl|embed|large|mini|instruct)(?![a-z]{3}))"
)
# The quant_method of the modelled kinds, None for BF16; other kinds by name.
_KINDS: tuple[tuple[str, str, str | None], ...] = (
    ("GGUF", r"gguf|i?q[1-8]_\w+|1[._]\d+[-_]?bits?", "gguf"),
    ("4-bit AWQ", r"awq", "awq"),
    ("4-bit GPTQ", r"gptq", "gptq"),
    ("4-bit AutoRound", r"auto[-_]?round", "auto-round"),
    ("MXFP4", r"mxfp4", "quark"),
    ("NVFP4", r"(?:nv)?fp4[-_]?v2", "modelopt_fp4_v2"),
    ("NVFP4", r"nvfp4|fp4|modelopt", "modelopt_fp4"),
    ("W4A8", r"w4a?fp8|w4a8|int4[-_]?fp8", "w4afp8"),
    ("4-bit bitsandbytes", r"bnb|nf4|bnb[-_]4bit", "bitsandbytes"),
    ("4-bit", r"int4|w4a16|4[-_]?bits?", "compressed-tensors"),
    ("low-bit", r"q4\w*|[12356][-_]?bits?|int[123]|exl[23]|mlx|hqq|aqlm|w2a16|w3a16|w8a16|6bit", "low-bit"),
    ("block INT8", r"block(?:wise)?[-_]?int8", "blockwise_int8"),
    ("channel INT8", r"int8|w8a8", "w8a8_int8"),
    ("BF16", r"bf16|bfloat16|fp16|float16|16bit", None),
    ("FP8", r"fp8\w*|f8|8bit", "fp8"),
)
_COMPILED = tuple((label, re.compile(rf"{_EDGE}(?:{pattern}){_END}"), method) for label, pattern, method in _KINDS)
# Beside the name of a 4-bit kind: other bits, or several of them in one checkpoint.
_OTHER_BITS = re.compile(rf"{_EDGE}(?:(?:w|int|uint)?[235678][-_]?bits?|int8(?:mix)?|w8a16|(?<=[-_])mix(?:ed)?){_END}")
# Known by name alone.
_WEIGHTS_BY_NAME = ((re.compile(r"r1[-_]1776"), "BF16", None),)
_HUB = re.compile(r"[a-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCheckpoint:
    """What a path's name says. `is_other`: it names a model that is not of the family.

    `model` is the part that names the model, None when no part does; `base` are the shapes shipped for it; `label` and
    `method` say what the weights are (`method` a preset of models/quantization, None: BF16), `label` None when the name
    says nothing of them.
    """

    model: str | None
    is_other: bool
    label: str | None
    method: str | None
    base: str = "deepseek-r1"


def named_checkpoint(path: str) -> NamedCheckpoint:
    """Read what the name of a model path says; the last part that names a model counts."""
    parts = [part for part in _parts(path) if part]
    for part in reversed(parts):
        text = part.lower()
        base = next((base for base, pattern in _BASES if pattern.search(text)), None)
        if base is not None and _SMALLER.search(text) is None:
            return _named(part, parts, base)
        relative = _RELATIVES.search(text) is not None
        if _FAMILY.search(text) and not relative:
            return _named(part, parts)
        other = relative or _OTHERS.search(text) is not None
        if _BARE.match(text) and not other:
            return _named(part, parts)
        if other:
            return NamedCheckpoint(model=part, is_other=True, label=None, method=None)
    if _HUB.fullmatch(path.lower()):
        return NamedCheckpoint(model=path, is_other=True, label=None, method=None)
    return _named(None, parts)


def _named(model: str | None, parts: list[str], base: str = "deepseek-r1") -> NamedCheckpoint:
    """Return the kind of weights that the part with the model's name, or else any part after it, gives."""
    whole = "/".join(parts).lower()
    for pattern, label, method in _WEIGHTS_BY_NAME:
        if pattern.search(whole):
            return NamedCheckpoint(model=model, is_other=False, label=label, method=method, base=base)
    for label, pattern, method in _COMPILED:
        if pattern.search(whole):
            if label.startswith("4-bit ") and _OTHER_BITS.search(whole):
                label, method = f"{label.removeprefix('4-bit ')} of other or mixed bits", "low-bit"
            return NamedCheckpoint(model=model, is_other=False, label=label, method=method, base=base)
    return NamedCheckpoint(model=model, is_other=False, label=None, method=None, base=base)


def _parts(path: str) -> list[str]:
    """Return a path's parts, those of a hub cache folder (models--org--name/snapshots/hash) among them."""
    parts = re.split(r"[/\\]+", path.strip())
    unfolded = [piece for part in parts for piece in (part.split("--") if part.startswith("models--") else [part])]
    cached = any(part.startswith("models--") for part in parts)
    return [part for part in unfolded if not (cached and re.fullmatch(r"[0-9a-f]{12,}|snapshots|models", part))]
