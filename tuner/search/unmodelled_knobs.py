"""Changes of a good configuration in knobs no equation models: one at a time, and the harmless ones together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from models.config import ServerConfig
from planner.plans.alternatives import UNMODELLED, Choice
from tuner.search.configurations import Candidates, allowed, fitting, rows_of
from tuner.search.space import TuningSpace

# Tried together in one launch first: what the scheduler and the streams around it do, and which kernels compute.
TOGETHER = (
    ("enable_mixed_chunk", "scheduler_recv_interval", "stream_interval", "disable_radix_cache"),
    ("moe_runner_backend", "attention_backend"),
)


class UnmodelledKnobs:
    """Builds rows that differ from a base in such knobs; each is resolved and judged by the rules once."""

    def __init__(self, space: TuningSpace) -> None:
        self._space = space
        self._known: dict[tuple[Any, ...], ServerConfig | None] = {}

    def around(self, bases: Iterable[dict[str, Any]]) -> Candidates:
        """Return the allowed changes of every base; a baseline outside a narrowed space is skipped."""
        return self._rows(params for base in bases if self._inside(base) for params in self._from(base))

    def carried_over(self, rows: Iterable[dict[str, Any]], leader: dict[str, Any]) -> Candidates:
        """Return the rows with the unpriced knobs as the leader has them."""
        choices = self._space.choices
        of_leader = {name: leader[name] for name in self._space.defaults if leader.get(name) in choices[name]}
        return self._rows(params | of_leader for params in rows)

    def _from(self, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name in self._space.defaults:
            for value in self._others(name, base):
                moved = base | {name: value}
                yield moved
                if self._config(moved) is None:  # an FP8 cache wants another attention backend
                    yield from (
                        moved | {"attention_backend": other} for other in self._others("attention_backend", base)
                    )
        for names in TOGETHER:
            first = {name: self._space.choices[name][1] for name in names if len(self._space.choices[name]) > 1}
            yield base | first

    def _inside(self, params: dict[str, Any]) -> bool:
        return all(params.get(name) in values for name, values in self._space.choices.items())

    def _others(self, name: str, base: dict[str, Any]) -> list[Choice]:
        return [value for value in self._space.choices[name] if value != base.get(name, self._space.defaults[name])]

    def _rows(self, choices: Iterable[dict[str, Any]]) -> Candidates:
        params_of: dict[ServerConfig, dict[str, Any]] = {}
        for params in choices:
            config = self._config(params)
            if config is not None:
                params_of.setdefault(config, params)
        rows = rows_of(self._space, [(params, config) for config, params in params_of.items()])
        return fitting(rows) if params_of else rows

    def _config(self, params: dict[str, Any]) -> ServerConfig | None:
        """Return the configuration of allowed parameters, None for others."""
        key = tuple(params.get(name) for name in (*self._space.choices, *UNMODELLED))
        if key not in self._known:
            config = self._space.config(params)
            self._known[key] = config if allowed(self._space, config) else None
        return self._known[key]
