"""Where scrapes come from: a running server, saved files, a Prometheus server. Reads, and asks for nothing else."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from hwprobe.errors import InputError
from hwprobe.files import read_bytes
from hwprobe.parsing import load_json
from hwprobe.plain_text import one_line
from tuner.bench.server_side import Address
from tuner.scrape.samples import Samples, read_samples
from tuner.server.ask import NO_ANSWER, HttpRequest, ask, items, json_answer, mapping, without_secret_fields

ANSWER_S = 10.0
MOST_METRICS_BYTES = 32 << 20
REDIRECTS = range(300, 400)
METRICS_OFF = "serves no /metrics: start it with --enable-metrics (rates, lengths and latencies are unknown without)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a server said of itself once: /server_info and /v1/loads, as given; `notes` say what it did not answer."""

    name: str
    info: dict[str, Any] = field(default_factory=dict)
    loads: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    words: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Something that can be scraped."""

    def facts(self) -> Facts:
        """Return what is known of the server beside its metrics. Raises InputError when there is no server."""

    def scrape(self) -> Samples | None:
        """Return its metrics now; None where it has none."""


@dataclass(slots=True)
class LiveSource:
    """A running server at `address`. `key` goes into the Authorization header and nowhere else."""

    address: Address
    key: str | None = field(default=None, repr=False)
    words: tuple[str, ...] | None = None
    silent: bool = False

    @property
    def name(self) -> str:
        return f"{self.address.host}:{self.address.port}"

    def _ask(self, path: str, most_bytes: int) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = HttpRequest(
            host=self.address.host, port=self.address.port, secure=self.address.secure, method="GET", path=path,
            headers=headers,
        )  # fmt: skip
        return ask(request, ANSWER_S, most_bytes=most_bytes)

    def _document(self, path: str, notes: list[str]) -> dict[str, Any]:
        """Return an answer that is an object, {} with a note for any other. Raises one of NO_ANSWER."""
        status, text = self._ask(path, 4 << 20)
        if status in REDIRECTS:
            notes.append(f"{path} is redirected elsewhere; it was not followed: give the server's own address")
            return {}
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            notes.append(f"{path} wants a key (HTTP {status}): set SGTUNE_API_KEY or give --api-key-file")
            return {}
        if status != http.client.OK:
            return {}
        try:
            return mapping(json_answer(text))
        except ValueError as error:
            notes.append(f"{path} gave no JSON: {one_line(str(error))}")
            return {}

    def facts(self) -> Facts:
        """Ask what it is. Raises InputError when nothing answers there."""
        notes: list[str] = []
        try:
            info = self._document("/server_info", notes) or self._document("/get_server_info", notes)
            loads = self._document("/v1/loads?include=all", notes) if info else {}
            models = {} if info else self._document("/v1/models", notes)
        except NO_ANSWER as error:
            raise InputError(
                f"no server answers at {self.name} ({one_line(str(error))}); start it, or give its address with --url"
            ) from error
        return Facts(
            name=self.name,
            info=without_secret_fields(info),
            loads=loads,
            engine=_engine(info, models),
            words=self.words,
            notes=tuple(dict.fromkeys(notes)),
        )

    def scrape(self) -> Samples | None:
        """Return /metrics now; None where it does not serve them."""
        try:
            status, text = self._ask("/metrics", MOST_METRICS_BYTES)
        except NO_ANSWER:
            return None
        if status != http.client.OK:
            return None
        return read_samples(text.decode(errors="replace"), time.monotonic())


def _engine(info: dict[str, Any], models: dict[str, Any]) -> str:
    """Name the engine where its answers tell: only SGLang has /server_info; others name the owner of their model."""
    if "max_total_num_tokens" in info or "tp_size" in info or "mem_fraction_static" in info:
        return "SGLang"
    owner = str(next(iter(items(models.get("data"))), {}).get("owned_by", "")).lower()
    return {"vllm": "vLLM", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM", "llamacpp": "llama.cpp"}.get(owner, "")


@dataclass(slots=True)
class SavedSource:
    """Saved scrapes, oldest first, `apart_s` between them (None: as their files' times say)."""

    paths: Sequence[Path]
    info: Path | None = None
    words: tuple[str, ...] | None = None
    apart_s: float | None = None

    def facts(self) -> Facts:
        """Read /server_info as saved. Raises InputError for a file that is none."""
        info: dict[str, Any] = {}
        if self.info is not None:
            info = mapping(load_json(read_bytes(self.info, "saved /server_info"), str(self.info)))
            if not info:
                raise InputError(f"{self.info} holds no JSON object; save it with: curl URL/server_info")
        return Facts(name=self.paths[-1].name, info=without_secret_fields(info), words=self.words,
                     engine=_engine(info, {}))  # fmt: skip

    def scrapes(self) -> list[Samples]:
        """Read the files. Raises InputError for one that holds no metrics, or where no time lies between two."""
        texts = [read_bytes(path, "saved scrape", most_bytes=MOST_METRICS_BYTES) for path in self.paths]
        first_s = self.paths[0].stat().st_mtime
        times = [
            number * self.apart_s if self.apart_s is not None else path.stat().st_mtime - first_s
            for number, path in enumerate(self.paths)
        ]
        if any(later - earlier < 1.0 for earlier, later in pairwise(times)):
            raise InputError("--metrics: the files' times do not tell how far apart they are; say it with --apart 60s")
        scrapes = [read_samples(text.decode(errors="replace"), at) for text, at in zip(texts, times, strict=True)]
        for path, samples in zip(self.paths, scrapes, strict=True):
            if not samples.series and samples.engine in ("", "SGLang"):
                raise InputError(f"{path} holds no metrics of SGLang; save them with: curl URL/metrics > FILE")
        return scrapes
