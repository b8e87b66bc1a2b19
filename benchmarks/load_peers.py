#!/usr/bin/env python3
"""Load generators of the field beside sgtune's own, on the same known schedule and the same machine.

    python benchmarks/load_peers.py                                 AIPerf and GuideLLM, 64 and 1,024 streams
    python benchmarks/load_peers.py --peer aiperf --streams 1024    only these (--peer none: only sgtune's)

The server is benchmarks/load_stub.py. What it saw decides: streams in flight, tokens, and the CPU seconds of all of a
generator's processes are means over the middle half of the tokens it served, so that start-up, warm-up and drain count
against nobody. TTFT and TPOT "seen" are each generator's own means, after a warm-up of one request per
stream. Peers run with their defaults for the number of processes, with what they call a warm-up, without what they
would do beside (telemetry, progress display, client-side tokenization where it can be left out). Each peer is installed
into .peers/ first; the tokenizer they want is one of single bytes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import CASES, INPUT_TOKENS, Case, known_server
from benchmarks.peers import HOME, Peer, kept_bytecode, machine, say, sgtune
from sglang_cpu.model import write_model

AIPERF = Peer(name="aiperf", version="0.13.0")
GUIDELLM = Peer(name="guidellm", version="0.8.1")
WAVES = 5  # requests per stream, after one of warm-up
POLL_S = 0.5
LONGEST_S = 400.0
COMPLAINT = re.compile(r"\b(?:warn(?:ing)?|error)\b", re.IGNORECASE)
PAINT = re.compile(r"\x1b\[[0-9;]*m")
FIGURE = re.compile(r"[\d.,]+|_[0-9a-f]{8}\b")
STAMP = re.compile(r"^[\d\-:., T|]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a generator itself says: means in ms, and its remarks about its own work."""

    ttft_ms: float
    tpot_ms: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A load generator: its command for a case, an address and a folder, and how its answer is read."""

    name: str
    command: Callable[[Case, str, Path], list[str]]
    read: Callable[[Path, str], Claim]
    environment: dict[str, str] = field(default_factory=dict)
    codes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The stub's counters and the generator's CPU seconds at one time, in seconds."""

    time_s: float
    stream_s: float
    tokens: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one generator did: in the middle of its run, and over all of it."""

    in_flight: float
    tok_s: float
    cpu_s_per_1000_tokens: float
    wall_s: float
    cpu_s: float
    server_late_ms: float
    claim: Claim


# -- the generators ----------------------------------------------------------------------------------------------------


def own(backend: str) -> Generator:
    """Return sgtune's generator against SGLang's API or OpenAI's."""

    def command(case: Case, url: str, folder: Path) -> list[str]:
        return [sgtune(), "bench", "--url", url, "--backend", backend, "--isl", str(INPUT_TOKENS), "--osl",
                str(case.osl), "--concurrency", str(case.streams), "--waves", str(WAVES), "--json"]  # fmt: skip

    return Generator(name=f"sgtune bench ({backend})", command=command, read=read_own, codes=(0, 1))  # 1: not ok


def aiperf(place: str, workers: int | None = None) -> Generator:
    """Return AIPerf; one worker process is its default on two cores."""
    more = ["--workers-max", str(workers)] if workers else []

    def command(case: Case, url: str, folder: Path) -> list[str]:
        return [place, "profile", "-m", "stub", "--url", url, "--endpoint-type", "completions", "--streaming",
                "--concurrency", str(case.streams), "--request-count", str(WAVES * case.streams),
                "--warmup-request-count", str(case.streams), "--isl", str(INPUT_TOKENS), "--isl-stddev", "0",
                "--osl", str(case.osl), "--osl-stddev", "0", "--extra-inputs", "ignore_eos:true",
                "--tokenizer", str(tokenizer()), "--use-server-token-count", "--ui", "none", "--no-gpu-telemetry",
                "--no-server-metrics", "--export-level", "summary", *more, "--artifact-dir", str(folder)]  # fmt: skip

    return Generator(name=f"AIPerf {AIPERF.version}", command=command, read=read_aiperf)


def guidellm(place: str) -> Generator:
    """Return GuideLLM; ten worker processes are its default."""
    share = round(1 / (WAVES + 2), 3)

    def command(case: Case, url: str, folder: Path) -> list[str]:
        return [place, "run", "--backend", f"kind=openai_http,target={url},model=stub,request_format=/v1/completions",
                "--profile", f"kind=concurrent,streams={case.streams},warmup={share},cooldown={share}",
                "--constraint", f"kind=max_requests,count={(WAVES + 2) * case.streams}",
                "--tokenizer", f"kind=hf_auto,model={tokenizer()}",
                "--data", f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={case.osl}",
                "--output", f"kind=json,path={folder / 'report.json'}", "--disable-progress"]  # fmt: skip

    offline = {"HF_HUB_OFFLINE": "1"}
    return Generator(name=f"GuideLLM {GUIDELLM.version}", command=command, read=read_guidellm, environment=offline)


def tokenizer() -> Path:
    """Return the folder of a tokenizer of single bytes, written if it is not there."""
    folder = HOME / "tokenizer"
    return folder if (folder / "tokenizer.json").exists() else write_model(folder)


def read_own(folder: Path, output: str) -> Claim:
    """Read the JSON document of `sgtune bench --json`."""
    point = json.loads(output.strip().splitlines()[-1])["points"][0]
    verdict = f"{point['verdict']} {point.get('why') or ''}".strip()
    return Claim(ttft_ms=point["ttft_ms"]["mean"], tpot_ms=point["tpot_ms"]["mean"], remarks=(f"verdict: {verdict}",))


def read_aiperf(folder: Path, output: str) -> Claim:
    """Read profile_export_aiperf.json; the "inter token latency" of AIPerf is TPOT."""
    report = json.loads((folder / "profile_export_aiperf.json").read_text())
    log = folder / "logs" / "aiperf.log"
    log_complaints = complaints(output + (log.read_text() if log.exists() else ""))
    own_flight = f"its own mean in flight: {report['effective_concurrency']['avg']:,.0f}"
    ttft, tpot = report["time_to_first_token"]["avg"], report["inter_token_latency"]["avg"]
    return Claim(ttft_ms=ttft, tpot_ms=tpot, remarks=(own_flight, *log_complaints))


def read_guidellm(folder: Path, output: str) -> Claim:
    """Read report.json; what GuideLLM calls TPOT holds the first token, its "inter token latency" does not."""
    benchmark = json.loads((folder / "report.json").read_text())["benchmarks"][0]
    figures = benchmark["metrics"]
    own_flight = f"its own mean in flight: {figures['request_concurrency']['successful']['mean']:,.0f}"
    own_warnings = [str(warning.get("message") or warning) for warning in benchmark.get("warnings") or []]
    return Claim(
        ttft_ms=figures["time_to_first_token_ms"]["successful"]["mean"],
        tpot_ms=figures["inter_token_latency_ms"]["successful"]["mean"],
        remarks=(own_flight, *own_warnings, *complaints(output)),
    )


def complaints(text: str, most: int = 4) -> list[str]:
    """Return the lines in which a tool warns or reports an error, without paint and time stamps.

    Lines that differ in figures alone are one, with how often it came.
    """
    lines = [STAMP.sub("", PAINT.sub("", line)).strip()[:200] for line in text.splitlines() if COMPLAINT.search(line)]
    kinds = Counter(FIGURE.sub("#", line) for line in lines)
    first = {FIGURE.sub("#", line): line for line in reversed(lines)}
    return [f"{first[kind]} ({count} times)" if count > 1 else first[kind] for kind, count in kinds.most_common(most)]


# -- measuring ---------------------------------------------------------------------------------------------------------


class Tree:
    """The CPU seconds of a process and everything it has started."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._spent: dict[int, float] = {}

    def cpu_s(self) -> float:
        """Return the sum so far; those that have ended count with what they had when last asked."""
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._spent[process.pid] = times.user + times.system
        return sum(self._spent.values())


def middle(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Return mean streams in flight, tok/s and CPU s per 1,000 tokens over the middle half of the tokens served.

    Raises ValueError when the samples are too few to have a middle.
    """
    served = samples[-1].tokens if samples else 0.0
    inner = [sample for sample in samples if 0.25 * served <= sample.tokens <= 0.75 * served]
    if len(inner) < 2 or inner[-1].tokens == inner[0].tokens:
        raise ValueError("the run was too short to have a middle")
    first, last = inner[0], inner[-1]
    seconds, tokens = last.time_s - first.time_s, last.tokens - first.tokens
    cpu = 1000.0 * (last.cpu_s - first.cpu_s) / tokens
    return (last.stream_s - first.stream_s) / seconds, tokens / seconds, cpu


def drive(generator: Generator, case: Case) -> Load:
    """Run one generator against a server of this case and watch both. Raises SystemExit when the run fails."""
    with known_server(case) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = generator.command(case, url, folder)
        say(shlex.join([Path(words[0]).name, *words[1:]]))
        output = folder / "output.txt"
        environment = kept_bytecode() | generator.environment
        began = time.monotonic()
        with output.open("wb") as sink, subprocess.Popen(words, stdout=sink, stderr=sink, env=environment) as child:
            samples, server = watch(child, url)
        wall = time.monotonic() - began
        text = output.read_text(errors="replace")
        if child.returncode not in generator.codes:
            raise SystemExit(f"{generator.name} ended with {child.returncode}:\n{text[-3000:]}")
        claim = generator.read(folder, text)
    in_flight, tok_s, cpu = middle(samples)
    late = 1e3 * server["first_late_s"] / max(1, server["firsts"])
    return Load(in_flight=in_flight, tok_s=tok_s, cpu_s_per_1000_tokens=cpu, wall_s=wall, cpu_s=samples[-1].cpu_s,
                server_late_ms=late, claim=claim)  # fmt: skip


def watch(child: subprocess.Popen[bytes], url: str) -> tuple[list[Sample], dict[str, float]]:
    """Read the stub's counters twice a second until the child ends; return them, and the last of them whole."""
    tree, samples = Tree(child.pid), []
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    deadline = time.monotonic() + LONGEST_S
    counters: dict[str, float] = {}
    while child.poll() is None:
        connection.request("GET", "/stats")
        counters = json.loads(connection.getresponse().read())
        samples.append(
            Sample(time_s=counters["time_s"], stream_s=counters["stream_s"], tokens=counters["tokens"],
                   cpu_s=tree.cpu_s())
        )  # fmt: skip
        if time.monotonic() > deadline:
            child.terminate()
        time.sleep(POLL_S)
    return samples, counters


def row(generator: Generator, case: Case, load: Load) -> str:
    """Return one line of the table."""
    claim = load.claim
    truth = case.true_ttft_ms
    most = case.streams * case.osl / (truth + (case.osl - 1) * case.tpot_ms) * 1e3
    cells = (
        generator.name, f"{case.streams:,}", f"{load.in_flight:,.0f}", f"{truth:.0f}",
        f"{claim.ttft_ms:,.0f} ({100 * (claim.ttft_ms / truth - 1):+.0f} %)", f"{case.tpot_ms:.0f}",
        f"{claim.tpot_ms:.2f} ({100 * (claim.tpot_ms / case.tpot_ms - 1):+.1f} %)", f"{load.tok_s:,.0f} of {most:,.0f}",
        f"{load.cpu_s_per_1000_tokens:.3f}", f"{load.wall_s:.0f} / {load.cpu_s:.0f}", f"{load.server_late_ms:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = ("generator", "streams", "in flight", "TTFT ms", "seen", "TPOT ms", "seen", "tok/s of possible",
        "CPU s / 1,000 tok", "run: wall / CPU s", "server late ms")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("aiperf", "guidellm", "none"), help="only this one; default: both")
    parser.add_argument("--streams", default="64,1024", help="default: 64,1024")
    parser.add_argument("--aiperf-workers", type=int, help="its --workers-max, instead of its default")
    options = parser.parse_args()
    stream_counts = {int(word) for word in options.streams.split(",")}
    generators = [own("sglang"), own("openai")]
    if options.peer in (None, "aiperf"):
        generators.append(aiperf(AIPERF.command(), options.aiperf_workers))
    if options.peer in (None, "guidellm"):
        generators.append(guidellm(GUIDELLM.command()))
    print(machine())
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    remarks = []
    for case in (case for case in CASES if case.streams in stream_counts):
        for generator in generators:
            load = drive(generator, case)
            print(row(generator, case, load), flush=True)
            remarks += [f"{generator.name}, {case.streams:,} streams: {remark}" for remark in load.claim.remarks]
    print("\n".join(["", "what they said themselves:", *remarks]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
