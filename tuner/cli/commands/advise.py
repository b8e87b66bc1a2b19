"""`sgtune advise`: look at servers that run now, and say what to change. Reads only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.commands.bench import KEY_VARIABLE
from tuner.cli.commands.tune import parse_duration_s
from tuner.cli.common import completion, options
from tuner.cli.common.terminal import console, print_json, start_fast

if TYPE_CHECKING:
    from tuner.advise.look import AdviseAnswer, AdviseQuestion
    from tuner.scrape.collect import Read
    from tuner.scrape.history import Prometheus
    from tuner.scrape.source import LiveSource

EXAMPLE = "Example: sgtune advise --url http://127.0.0.1:30000 --watch 1m"
PROMETHEUS_KEY = "SGTUNE_PROMETHEUS_KEY"
MOST_KEY_BYTES = 4096
SHORTEST_ROUND_S = 5.0

Urls = Annotated[list[str] | None, typer.Option("--url", help="Address of a server, repeatable.")]
Hardware = Annotated[
    str | None,
    typer.Option(
        "--hardware", autocompletion=completion.hardware,
        help="The servers' machine; default: what the server names, else H200.",
    ),
]  # fmt: skip
WatchFor = Annotated[str, typer.Option("--watch", help="Look for so long (10m); 0s: one scrape, since its start.")]
PrometheusUrl = Annotated[str | None, typer.Option("--prometheus", help="Take history from this Prometheus server.")]
QueryWindow = Annotated[str, typer.Option("--query-window", help="How much history to take: 1h, 24h.")]
Saved = Annotated[
    list[Path] | None, typer.Option("--metrics", help="A saved scrape (curl URL/metrics); two are a window.")
]
Apart = Annotated[str | None, typer.Option("--apart", help="Time between saved scrapes; default: their files' times.")]
SavedInfo = Annotated[Path | None, typer.Option("--server-info", help="Saved /server_info, with --metrics.")]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help=f"File with the servers' API key; default: ${KEY_VARIABLE}.")
]
CalibrateTo = Annotated[
    Path | None, typer.Option("--calibrate", help="Write what steady servers teach as an engine profile.")
]
Serve = Annotated[
    str | None, typer.Option("--serve", help="Go on, and export findings as Prometheus metrics: :9400, HOST:9400.")
]


def advise(
    url: Urls = None,
    hardware: Hardware = None,
    watch: WatchFor = "10s",
    prometheus: PrometheusUrl = None,
    query_window: QueryWindow = "1h",
    metrics: Saved = None,
    apart: Apart = None,
    server_info: SavedInfo = None,
    slo: options.SloTexts = None,
    profile: options.Profile = None,
    calibrate: CalibrateTo = None,
    serve: Serve = None,
    api_key_file: KeyFile = None,
    json: options.Json = False,
    launch: Annotated[
        list[str] | None,
        typer.Argument(help="SGLang flags of the servers after `--`, where they do not tell.", show_default=False),
    ] = None,
) -> None:
    """Say what running servers do, what the model expects of exactly that, and what to change, best first.

    Reads /server_info, /metrics and /v1/loads (or saved scrapes, or Prometheus); sends no load and changes nothing.
    """
    start_fast()
    from hwprobe.errors import InputError

    if bool(metrics) == bool(url or prometheus):
        raise InputError("give --url URL (or --prometheus URL), or saved scrapes with --metrics FILE; not both")
    if server_info is not None and not metrics:
        raise InputError("--server-info goes with --metrics: a running server is asked")
    if serve is not None and (metrics or calibrate):
        raise InputError("--serve watches running servers: leave out --metrics and --calibrate")
    words = tuple(launch) if launch else None
    question = _question(hardware, profile, slo)
    if metrics:
        from tuner.scrape.collect import of_files
        from tuner.scrape.source import SavedSource

        apart_s = parse_duration_s(apart, "--apart") if apart else None
        read = of_files(SavedSource(paths=metrics, info=server_info, words=words, apart_s=apart_s))
        _answer(read, question, calibrate, json=json)
        return
    sources = _sources(url or [], _key(api_key_file), words)
    window_s = parse_duration_s(query_window, "--query-window") if prometheus else _seconds(watch)
    reader = _Reader(sources, _prometheus(prometheus), window_s, words)
    if serve is not None:
        _serve(reader, question, serve)
    else:
        _answer(reader.read(), question, calibrate, json=json)


def _seconds(watch: str) -> float:
    return 0.0 if watch.strip() in ("0", "") else parse_duration_s(watch, "--watch")


def _question(hardware: str | None, profile: Path | None, slo: list[str] | None) -> AdviseQuestion:
    from models.engine.profile import load_engine_profile
    from models.workload import Slo
    from planner.inputs import read_hardware
    from tuner.advise.look import AdviseQuestion

    return AdviseQuestion(
        hardware=read_hardware(hardware) if hardware else None,
        engine=load_engine_profile(profile) if profile else None,
        slos=tuple(Slo.parse(text) for text in slo or []),
    )


def _key(path: Path | None) -> str | None:
    """Return the API key of a file, or of the environment. It is shown nowhere."""
    from hwprobe.errors import InputError
    from hwprobe.files import read_bytes

    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    key = read_bytes(path, "API key", most_bytes=MOST_KEY_BYTES).decode(errors="replace").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise InputError(f"--api-key-file {path} holds no key: one line of printable characters is expected")
    return key


def _sources(urls: list[str], key: str | None, words: tuple[str, ...] | None) -> list[LiveSource]:
    from tuner.bench.server_side import Address
    from tuner.scrape.source import LiveSource

    return [LiveSource(address=Address.parse(url), key=key, words=words) for url in dict.fromkeys(urls)]


def _prometheus(url: str | None) -> Prometheus | None:
    from hwprobe.errors import InputError
    from tuner.bench.server_side import Address
    from tuner.scrape.history import Prometheus

    if url is None:
        return None
    head, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    host, _, path = rest.partition("/")
    if "?" in path or "#" in path or any(not char.isprintable() or char.isspace() for char in path):
        raise InputError("--prometheus names a query; give the server's address, as in --prometheus http://HOST:9090")
    return Prometheus(
        address=Address.parse(f"{head}{slashes}{host}"),
        path=f"/{path.strip('/')}" if path.strip("/") else "",
        key=os.environ.get(PROMETHEUS_KEY) or None,
    )


class _Reader:
    """Where windows come from: running servers, or Prometheus."""

    def __init__(
        self, sources: list[LiveSource], prometheus: Prometheus | None, seconds: float, words: tuple[str, ...] | None
    ) -> None:
        self._sources, self._prometheus, self.seconds, self._words = sources, prometheus, seconds, words

    def read(self) -> Read:
        from tuner.scrape.collect import Watch, of_history
        from tuner.scrape.source import Facts

        if self._prometheus is not None:
            facts = Facts(name="", engine="SGLang", words=self._words)
            return of_history(self._prometheus, self.seconds, self._sources, facts)
        screen = console(stderr=True)
        with screen.status(f"watching for {self.seconds:g} s (--watch)") as status:
            return Watch(
                sources=self._sources,
                seconds=self.seconds,
                heard=lambda elapsed_s: status.update(f"watching: {elapsed_s:.0f} of {self.seconds:g} s (--watch)"),
            ).read()


def _answer(read: Read, question: AdviseQuestion, calibrate: Path | None, *, json: bool) -> None:
    from tuner.advise.advise_document import advise_document
    from tuner.advise.look import look
    from tuner.cli.views.advise_view import show_advice

    answer = look(read, question)
    learned = _calibrated(answer, calibrate) if calibrate is not None else None
    if json:
        print_json({**advise_document(answer), **({"calibrated": learned} if learned else {})})
    else:
        show_advice(answer, console())
        if learned:
            typer.echo(f"wrote {learned['profile']}; use it with --profile {learned['profile']}")


def _calibrated(answer: AdviseAnswer, path: Path) -> dict[str, object]:
    from models.engine.profile import save_engine_profile
    from tuner.advise.recalibrate import recalibrated

    calibration, left_out = recalibrated(answer.servers, answer.findings)
    for why in left_out:
        typer.echo(f"not learned from {why}", err=True)
    save_engine_profile(calibration.profile, path)
    return {"profile": str(path), "name": calibration.profile.name, "points": calibration.profile.points,
            "left_out": left_out}  # fmt: skip


def _serve(reader: _Reader, question: AdviseQuestion, where: str) -> None:
    """Ask again and again, and export the last answer, until interrupted."""
    from hwprobe.errors import InputError, SgtuneError
    from hwprobe.plain_text import one_line
    from tuner.advise.exporter import Exporter, exported
    from tuner.advise.look import look

    host, _, port = where.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--serve is '{one_line(where)}'; write it as in --serve :9400")
    exporter = Exporter()
    with exported(exporter, host or "127.0.0.1", int(port)):
        typer.echo(f"findings at http://{host or '127.0.0.1'}:{port}/metrics; end with Ctrl-C", err=True)
        while True:
            began = time.monotonic()
            exporter.asked += 1
            try:
                exporter.answer = look(reader.read(), question)
            except SgtuneError as error:
                exporter.failed += 1
                exporter.answer = None
                typer.echo(f"{one_line(str(error))}", err=True)
            time.sleep(max(0.0, SHORTEST_ROUND_S - (time.monotonic() - began)))
