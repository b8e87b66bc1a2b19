"""`sgtune traffic`: what a trace of requests holds, and a smaller or anonymous one like it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json, start_fast

EXAMPLE = "Example: sgtune traffic requests.jsonl --html traffic.html --synthesize to_share.jsonl --requests 10000"

TraceFile = Annotated[Path, typer.Argument(help="File of requests; its form is told by its first line.")]
MapTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--map", help="Columns of another form, repeatable: time=started_at:ms, input=prompt_tokens, output=..."
    ),
]
BlockTokens = Annotated[
    int | None, typer.Option("--block-tokens", help="Tokens of a block of hash_ids; default 512, as Mooncake's.", min=1)
]
Synthesize = Annotated[
    Path | None, typer.Option("--synthesize", help="Write a trace of the same statistics without its names and hashes.")
]
Requests = Annotated[
    int | None, typer.Option("--requests", help="Of --synthesize: about so many requests, in whole sessions.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the summary as a page too.")]
Seed = Annotated[int, typer.Option("--seed", help="Which sessions --requests draws.")]


def traffic(
    file: TraceFile,
    map: MapTexts = None,
    block_tokens: BlockTokens = None,
    synthesize: Synthesize = None,
    requests: Requests = None,
    html: Html = None,
    seed: Seed = 0,
    json: options.Json = False,
) -> None:
    """Show what a trace holds: lengths, arrivals, sessions, and what a radix cache of any size would hit."""
    start_fast()
    from hwprobe.errors import InputError
    from hwprobe.files import write_atomic
    from models.traffic.smaller import thinned
    from models.traffic.summary import summary
    from tuner.cli.views.traffic_view import show_traffic
    from tuner.trace_files.read import read_trace
    from tuner.trace_files.summary_page import traffic_document, traffic_page
    from tuner.trace_files.write import trace_lines

    if requests is not None and synthesize is None:
        raise InputError("--requests says how long a trace --synthesize writes: give --synthesize OUT too")
    trace = read_trace(file, map or (), block_tokens)
    summarised = summary(trace)
    if synthesize is not None:
        smaller = trace if requests is None else thinned(trace, requests, seed)
        write_atomic(synthesize, "".join(trace_lines(smaller)))
        typer.echo(f"wrote {len(smaller):,} requests to {synthesize}", err=True)
    if html is not None:
        write_atomic(html, traffic_page(summarised, file.name))
        typer.echo(f"wrote {html}", err=True)
    if json:
        print_json(traffic_document(summarised))
    else:
        show_traffic(summarised, console())
