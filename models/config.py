"""ServerConfig: one SGLang launch, in SGLang's newest names. None means "SGLang's default"."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Speculative:
    """MTP (EAGLE/NEXTN with the model's own draft layer). SGLang takes all three numbers together or chooses them."""

    num_steps: int
    eagle_topk: int = 1
    num_draft_tokens: int = 2

    @classmethod
    def chain(cls, steps: int) -> Speculative:
        """A chain of `steps` draft tokens: with topk 1 SGLang forces num_draft_tokens = steps + 1."""
        return cls(num_steps=steps, eagle_topk=1, num_draft_tokens=steps + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of one launch of a model on a machine.

    Names are those of SGLang 0.5.23; `attn_dp_size` is the attention-DP degree (older dialects:
    `--dp-size` with `--enable-dp-attention`). `chunked_prefill_size` and `max_running_requests`
    are global: SGLang divides both by `attn_dp_size`. `extra` holds every other flag of the launch, by
    SGLang's field name, sorted; `flag` reads one of them.
    """

    tp_size: int = 1
    pp_size: int = 1
    attn_dp_size: int = 1
    ep_size: int = 1
    nnodes: int = 1
    moe_a2a_backend: str = "none"
    moe_runner_backend: str | None = None
    speculative: Speculative | None = None
    mem_fraction_static: float | None = None
    max_running_requests: int | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int | None = None
    cuda_graph_max_bs_decode: int | None = None
    disable_cuda_graph: bool = False
    attention_backend: str | None = None
    kv_cache_dtype: str | None = None
    page_size: int | None = None
    schedule_policy: str | None = None
    schedule_conservativeness: float | None = None
    disable_radix_cache: bool = False
    enable_mixed_chunk: bool = False
    enable_dp_lm_head: bool = False
    stream_interval: int | None = None
    scheduler_recv_interval: int | None = None
    context_length: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    def flag(self, name: str, default: Any = None) -> Any:
        """Return a flag beyond these fields, by SGLang's field name, or `default`."""
        for field, value in self.extra:
            if field == name:
                return value
        return default

    def with_flags(self, **changes: Any) -> ServerConfig:
        """Return the configuration with these extra flags set; None takes one out."""
        merged = {**dict(self.extra), **changes}
        return replace(self, extra=tuple(sorted((k, v) for k, v in merged.items() if v is not None)))

    @property
    def gpu_count(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def layout(self) -> str:
        """The parallelism in the field's shorthand: TP8, TP8 DP8, TP16 DP16 EP16, TP8 PP2."""
        parts = [f"TP{self.tp_size}"]
        if self.pp_size > 1:
            parts.append(f"PP{self.pp_size}")
        if self.attn_dp_size > 1:
            parts.append(f"DP{self.attn_dp_size}")
        if self.ep_size > 1:
            parts.append(f"EP{self.ep_size}" + ("" if self.moe_a2a_backend == "none" else f"/{self.moe_a2a_backend}"))
        return " ".join(parts)

    @property
    def label(self) -> str:
        """The layout and, where it is on, the MTP depth: a configuration's name for people."""
        return self.layout + (f" MTP{self.speculative.num_steps}" if self.speculative else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that differ from SGLang's defaults, in declaration order (for JSON)."""
        values: dict[str, Any] = {"tp_size": self.tp_size}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name != "extra":
                values[field.name] = _spec_dict(value) if isinstance(value, Speculative) else value
        return values | dict(self.extra)


def _spec_dict(spec: Speculative) -> dict[str, int]:
    return {
        "num_steps": spec.num_steps,
        "eagle_topk": spec.eagle_topk,
        "num_draft_tokens": spec.num_draft_tokens,
    }
