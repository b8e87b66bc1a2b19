"""Throws mutated files, options, run folders and a hostile server at every command, and says what did not end well.

    python tools/fuzz.py --seconds 60 --seed 7            as long as that
    python tools/fuzz.py --cases 20000 --seed 7          so many cases (--first 1 --step 2: every second one)
    python tools/fuzz.py --seed 7 --only 1234             one case again, with its output

Every case is a process of its own, forked from one that has loaded sgtune. It must end within 20 s of its own time (60
by the clock, on a busy machine), in at most 700 MiB, with exit code 0, 1, 2, 3 or 130, and print no traceback and no
"failed unexpectedly". Exit 1 when any does not.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LONGEST_CPU_S, LONGEST_S = 20.0, 60.0
MOST_MIB = 700
CODES = (0, 1, 2, 3, 130)
COMPLAINTS = ("Traceback (most recent", "failed unexpectedly", "Exception ignored")
TOKENS = (
    b"null", b"[]", b"{}", b"-1", b"0", b"1e400", b"-1e308", b"NaN", b"Infinity", b"9" * 5000, b"1e12", b"true", b'""',
    b"\x00", b"\xff\xfe", b"\x1b[31m", b"[bold]", b"[/]", b"../../..", b"/dev/zero", b"A" * 300, b'"\\ud800"',
    b"\xe2\x80\xae",
    b"$(touch canary)", b"`touch canary`", b"\n---\n", b"&a [*a]", b"[" * 300, b"{" * 300, b"a." * 200, b"\r\n", b"'",
    b'"',
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, [], {}, -1, 0, 1e300, -1e300, 10**30, 1e12, 0.5, True, "", "x", "A" * 300, "\x1b[31m", "[bold]x[/]", "$(x)\n",
    [[]],
    [1, 2], {"a": 1}, "/dev/zero", "0.5.12", "h200x8", 1e-300,
)  # fmt: skip
NUMBERS = (
    "-1",
    "0",
    "1e12",
    "nan",
    "inf",
    "-inf",
    "9" * 400,
    "1e400",
    "0.5",
    "",
    "x",
    "\u0663",
    "1_000",
    " 1",
    "0x10",
    "1e-320",
)
PLAN = ("--isl", "200", "--osl", "100", "--concurrency", "8", "--sglang-version", "0.5.12")


@dataclass(frozen=True)
class Case:
    """One command line, run in a folder of its own."""

    number: int
    words: list[str]


@dataclass(frozen=True)
class Ended:
    """How a case ended: its exit code (None: killed after LONGEST_S), seconds by the clock and of work, peak
    memory, and what it printed."""

    code: int | None
    seconds: float
    cpu_s: float
    mib: float
    said: str

    @property
    def problem(self) -> str:
        """What did not end well, empty where all did."""
        if self.code is None:
            return f"not done within {LONGEST_S:.0f} s"
        if self.cpu_s > LONGEST_CPU_S:
            return f"{self.cpu_s:.0f} s of work"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.mib > MOST_MIB:
            return f"{self.mib:.0f} MiB"
        return next((f"said '{word}'" for word in COMPLAINTS if word in self.said), "")


class Seeds:
    """Valid files of every kind, made by sgtune itself."""

    def __init__(self, folder: Path) -> None:
        from hwprobe.catalogue import hardware_from_catalogue
        from hwprobe.files import encode_json
        from models.engine.profile import shipped_profiles

        self.folder = folder
        run = shutil.copytree(ROOT / "examples" / "runs" / "h200x8-64-clients", folder / "runs" / "a")
        texts = {
            "hardware.json": encode_json(hardware_from_catalogue("h200x8")),
            "config.json": (ROOT / "models" / "configs" / "deepseek-r1.json").read_text(),
            "profile.json": encode_json(shipped_profiles()[-1]),
            "world.toml": (ROOT / "tuner" / "worlds" / "default.toml").read_text(),
            "space.toml": '[space]\nmem_fraction_static = [0.85, 0.9]\nmtp_steps = [0, 1]\n',
            "lengths.jsonl": '{"isl": 10, "osl": 2}\n{"input_length": 20, "output_length": 3}\n',
            "dataset.json": '[{"conversations": [{"value": "Why is the sky blue?"}]}, {"prompt": "Hello there"}]',
            "points.jsonl": "".join(json.dumps(record) + "\n" for record in self._points()),
        }  # fmt: skip
        for name, text in texts.items():
            (folder / name).write_text(text)
        for words in (
            ("export", "--runs", str(run.parent), "--run", "a", "--bundle", str(folder / "bundle")),
            ("plan", "--hardware", "h200x8", *PLAN, "--json"),
        ):
            ended = run_case(Case(-1, list(words)), folder)
            if ended.code != 0:
                raise SystemExit(f"cannot make the seeds: {ended.said[-500:]}")
            if words[0] == "plan":
                (folder / "plan.json").write_text(ended.said.strip().splitlines()[-1])

    @staticmethod
    def _points() -> Iterator[dict[str, Any]]:
        for clients in (1, 8, 64):
            yield {
                "id": f"p{clients}", "engine": "sglang", "engine_version": "0.5.12", "gpu": "H200", "num_gpus": 8,
                "tp": 8,
                "metric_kind": "serving", "isl": 200, "osl": 100, "concurrency": clients, "tpot_mean_ms": 20.0,
                "ttft_mean_ms": 100.0, "output_tok_s": 40.0 * clients,
            }  # fmt: skip


def mutated(data: bytes, dice: random.Random, name: str) -> bytes:
    """Return a text with one to four things wrong."""
    if name.endswith((".json", ".jsonl")) and dice.random() < 0.5:
        return _other_values(data, dice)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice((1, 4, 40, 400)))
        deed = dice.randrange(6)
        if deed == 0 and data:
            data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        elif deed == 1:
            data = data[:at] + data[end:]
        elif deed == 2:
            data = data[:at] + data[at:end] * dice.choice((2, 3, 50)) + data[end:]
        elif deed == 3:
            data = data[:at] + dice.choice(TOKENS) + data[end if dice.random() < 0.5 else at :]
        elif deed == 4:
            data = data[:at]
        else:
            lines = data.splitlines(keepends=True)
            dice.shuffle(lines)
            data = b"".join(lines)
    return data


def _other_values(data: bytes, dice: random.Random) -> bytes:
    """Replace, remove or add a few values of JSON, or of one line of JSON lines."""
    lines = data.split(b"\n")
    place = dice.randrange(len(lines)) if data.count(b"\n{") > 0 and not data.startswith(b"{\n") else None
    try:
        value = json.loads(data if place is None else lines[place])
    except ValueError:
        return data[: dice.randrange(len(data) + 1)]
    for _ in range(dice.randint(1, 3)):
        _change(value, dice)
    text = json.dumps(value).encode("utf-8", errors="surrogatepass")
    if place is None:
        return text
    lines[place] = text
    return b"\n".join(lines)


def _change(value: Any, dice: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and dice.random() < 0.8:
            value = value[key]
            continue
        if dice.random() < 0.2:
            del value[key]
        else:
            value[key] = dice.choice(VALUES)
        return


class Maker:
    """Makes cases: by their number and the seed always the same."""

    def __init__(self, seeds: Seeds, seed: int, port: int) -> None:
        self._seeds, self._seed, self._port = seeds, seed, port
        self._makers: tuple[tuple[int, Callable[[random.Random, Path], list[str]]], ...] = (
            (18, self._plan), (18, self._check), (12, self._predict), (5, self._calibrate), (4, self._validate),
            (12, self._export), (6, self._verify), (5, self._tune), (8, self._resume), (5, self._repair),
            (2, self._bench), (2, self._probe), (1, self._doctor), (8, self._dashboard),
        )  # fmt: skip

    def case(self, number: int, folder: Path) -> Case:
        """Make a case in an empty folder."""
        dice = random.Random(f"{self._seed}/{number}")
        make = dice.choices([made for _, made in self._makers], [weight for weight, _ in self._makers])[0]
        words = make(dice, folder)
        if dice.random() < 0.25:
            words = self._other_words(words, dice)
        return Case(number, words)

    def _file(self, name: str, dice: random.Random, folder: Path, likely: float = 0.85) -> str:
        """Return a mutated copy of a seed, or something that is no file."""
        path = folder / name.replace("/", "-")
        if dice.random() < likely:
            path.write_bytes(mutated((self._seeds.folder / name).read_bytes(), dice, name))
            return str(path)
        kind = dice.randrange(7)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1:
            path.symlink_to(path)
        elif kind == 2:
            path.mkdir()
        elif kind == 3:
            path.write_bytes(dice.randbytes(2000))
        else:
            return ("/dev/zero", "/dev/null", str(folder / ("n" * 300)))[kind - 4]
        return str(path)

    def _other_words(self, words: list[str], dice: random.Random) -> list[str]:
        """Change a number, a word, or add a stray one."""
        places = [n for n, word in enumerate(words) if n and not word.startswith("-") and "/" not in word]
        changed = list(words)
        if places and dice.random() < 0.8:
            changed[dice.choice(places)] = dice.choice((*NUMBERS, "$(x)", "\x1b[31m", "A" * 300, "--", "-x", "[bold]"))
        else:
            changed.insert(dice.randint(1, len(words)), dice.choice(("--no-such", "-", "--json", "", "--isl")))
        return changed

    def _hardware(self, dice: random.Random, folder: Path) -> str:
        if dice.random() < 0.5:
            return self._file("hardware.json", dice, folder)
        return dice.choice(("h200x8", "nf5688g7", "2xh100x8", "h100x8"))

    def _plan(self, dice: random.Random, folder: Path) -> list[str]:
        words = ["plan", "--hardware", self._hardware(dice, folder), *PLAN]
        more = {"--model": "config.json", "--profile": "profile.json"}
        for flag, name in more.items():
            if dice.random() < 0.4:
                words += [flag, self._file(name, dice, folder)]
        if dice.random() < 0.2:
            words += ["--slo", dice.choice(("tpot:mean<50ms", "ttft:p99<", "x", "tpot:mean<-1ms", "tpot:mean<1e400ms"))]
        return [*words, *(["--json"] if dice.random() < 0.3 else [])]

    def _check(self, dice: random.Random, folder: Path) -> list[str]:
        names = ("launch.sh", "compose.yaml", "kubernetes.yaml", "sglang.service", "sglang.yaml", "docker-run.sh")
        if dice.random() < 0.7:
            return ["check", "--", self._file(f"bundle/{dice.choice(names)}", dice, folder)]
        flags = ["--tp", "8", "--dp", "8", "--enable-dp-attention", "--mem-fraction-static", "0.9",
                 "--chunked-prefill-size", "8192", "--max-running-requests", "64", "--model-path", "x/y"]  # fmt: skip
        for _ in range(dice.randint(0, 3)):
            flags[dice.randrange(len(flags))] = dice.choice(
                (*NUMBERS, "--tp", "--config", "/dev/zero", "{}", "\x1b[2J")
            )
        return [
            "check",
            "--hardware",
            self._hardware(dice, folder),
            "--",
            "python3",
            "-m",
            "sglang.launch_server",
            *flags,
        ]

    def _predict(self, dice: random.Random, folder: Path) -> list[str]:
        out = dice.choice((str(folder / "out.jsonl"), "/dev/stdout", "/dev/null", str(folder), "/dev/full"))
        return ["predict", "--points", self._file("points.jsonl", dice, folder), "--out", out]

    def _calibrate(self, dice: random.Random, folder: Path) -> list[str]:
        source = self._file("points.jsonl", dice, folder) if dice.random() < 0.6 else str(self._run(dice, folder))
        return ["calibrate", "--points", source, "--hardware", "h200x8", "--out", str(folder / "made.json")]

    def _validate(self, dice: random.Random, folder: Path) -> list[str]:
        return ["validate", "--points", self._file("points.jsonl", dice, folder)]

    def _run(self, dice: random.Random, folder: Path) -> Path:
        """Return a copy of a run folder with one of its files spoiled."""
        run = shutil.copytree(self._seeds.folder / "runs" / "a", folder / "runs" / "a")
        name = dice.choice(("trials.jsonl", "trials.jsonl", "run.toml", "hardware.json", "trials.head"))
        data = (run / name).read_bytes()
        (run / name).unlink()
        (run / self._file_in(name, data, dice, run)).touch()
        return run

    @staticmethod
    def _file_in(name: str, data: bytes, dice: random.Random, run: Path) -> str:
        (run / name).write_bytes(mutated(data, dice, name))
        return ".seen"

    def _export(self, dice: random.Random, folder: Path) -> list[str]:
        out = [
            "--out" if dice.random() < 0.5 else "--bundle",
            dice.choice((str(folder / "o"), "/dev/null", str(folder))),
        ]
        if dice.random() < 0.5:
            return ["export", "--plan", self._file("plan.json", dice, folder), *out]
        self._run(dice, folder)
        return ["export", "--runs", str(folder / "runs"), "--run", "a", *out]

    def _verify(self, dice: random.Random, folder: Path) -> list[str]:
        """Nothing is started: nobody is there to say yes."""
        name = dice.choice(("launch.sh", "docker-run.sh", "sglang.yaml", "compose.yaml"))
        engine = dice.choice(("local", "docker"))
        return ["verify", self._file(f"bundle/{name}", dice, folder), "--engine", engine, "--python", sys.executable]

    def _tune(self, dice: random.Random, folder: Path) -> list[str]:
        words = ["tune", "--hardware", "h200x8", *PLAN, "--trials", "1", "--confirm", "0", "--sampler", "random",
                 "--runs", str(folder / "runs")]  # fmt: skip
        for flag, name in {"--world": "world.toml", "--space": "space.toml", "--profile": "profile.json"}.items():
            if dice.random() < 0.5:
                words += [flag, self._file(name, dice, folder)]
        return [*words, *(["--dry-run"] if dice.random() < 0.5 else [])]

    def _resume(self, dice: random.Random, folder: Path) -> list[str]:
        self._run(dice, folder)
        return [
            "tune",
            "--hardware",
            "h200x8",
            "--isl",
            "1000",
            "--osl",
            "1000",
            "--concurrency",
            "64",
            "--slo",
            "tpot:mean<50ms",
            "--trials",
            "6",
            "--confirm",
            "1",
            "--runs",
            str(folder / "runs"),
            "--run",
            "a",
            "--resume",
        ]

    def _repair(self, dice: random.Random, folder: Path) -> list[str]:
        self._run(dice, folder)
        return ["runs", "repair", "a", "--runs", str(folder / "runs")]

    def _bench(self, dice: random.Random, folder: Path) -> list[str]:
        words = ["bench", "--url", f"http://127.0.0.1:{self._port}", "--isl", "16", "--osl", "8", "--concurrency", "2",
                 "--point-time", "0.3s", "--duration", "1s", "--waves", "1"]  # fmt: skip
        if dice.random() < 0.4:
            words += [dice.choice(("--lengths", "--dataset")), self._file("lengths.jsonl", dice, folder)]
        return words

    def _probe(self, dice: random.Random, folder: Path) -> list[str]:
        both = [self._file("hardware.json", dice, folder), str(self._seeds.folder / "hardware.json")]
        return ["probe", "--compare", *both] if dice.random() < 0.5 else ["probe", "--inventory", "--out", both[0]]

    def _doctor(self, dice: random.Random, folder: Path) -> list[str]:
        return ["doctor"]

    def _dashboard(self, dice: random.Random, folder: Path) -> list[str]:
        """What the pages read of a spoiled run."""
        self._run(dice, folder)
        return ["_read_run", str(folder / "runs"), "a"]


def run_case(case: Case, folder: Path) -> Ended:
    """Run a case in a forked process and wait for its end."""
    output = folder / ".output"
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(case, folder, output)
    status, usage = _wait(pid, began)
    seconds = time.monotonic() - began
    said = output.read_bytes()[-200_000:].decode(errors="replace") if output.exists() else ""
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Ended(code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said)


def _wait(pid: int, began: float) -> tuple[int | None, resource.struct_rusage]:
    while time.monotonic() - began < LONGEST_S:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return None, os.wait4(pid, 0)[2]


def _child(case: Case, folder: Path, output: Path) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0), os.fdopen(1, "w", errors="backslashreplace"), os.fdopen(2, "w", errors="backslashreplace")
        )  # fmt: skip
        most = 6 << 30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        code = _command(case.words)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _command(words: list[str]) -> int:
    import traceback

    from tuner.cli.main import main as sgtune

    sys.argv = ["sgtune", *words]
    try:
        if words[0] == "_read_run":
            _read_run(Path(words[1]), words[2])
        else:
            sgtune()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001  a defect is what is looked for
        traceback.print_exc()
        return 99
    return 0


def _read_run(root: Path, name: str) -> None:
    """Read a run as the dashboard's pages do."""
    from dashboard.readers.runs import read_run, run_names
    from hwprobe.errors import SgtuneError

    try:
        for found in run_names(root):
            run = read_run(root, found)
            _ = run.winner, run.best, run.baseline, run.standings, run.effects, run.slos
    except SgtuneError as error:
        print(error)


def fuzz(asked: argparse.Namespace, folder: Path, port: int) -> int:
    """Run cases until the time or the number is used up; return how many did not end well."""
    import tuner.cli.main
    import tuner.run.setup  # noqa: F401

    seeds = Seeds(Path(tempfile.mkdtemp(dir=folder, prefix="seeds-")))
    maker = Maker(seeds, asked.seed, port)
    counts: collections.Counter[tuple[str, object]] = collections.Counter()
    bad, slowest, largest, done = 0, 0.0, 0.0, 0
    began, number = time.monotonic(), asked.first
    while (number < asked.cases) if asked.cases else (time.monotonic() - began < asked.seconds):
        place = Path(tempfile.mkdtemp(dir=folder, prefix="case-"))
        case = maker.case(number if asked.only is None else asked.only, place)
        ended = run_case(case, place)
        counts[case.words[0], ended.code] += 1
        slowest, largest, done = max(slowest, ended.seconds), max(largest, ended.mib), done + 1
        if ended.problem or asked.only is not None:
            bad += bool(ended.problem)
            print(f"case {case.number} (seed {asked.seed}): {ended.problem}\n  sgtune {' '.join(case.words)[:600]!r}")
            print("  " + ended.said[-1500 if asked.only is None else -20_000 :].replace("\n", "\n  "), flush=True)
        shutil.rmtree(place, ignore_errors=True)
        number += asked.step
        if asked.only is not None:
            break
    for (command, code), count in sorted(counts.items(), key=str):
        print(f"{command:<12} exit {code}: {count}")
    print(f"{done} cases, {bad} bad; the slowest took {slowest:.1f} s, the largest {largest:.0f} MiB", flush=True)
    return bad


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    asked = parser.parse_args(arguments)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "tools" / "hostile_server.py"), "--seed", str(asked.seed)]
    with tempfile.TemporaryDirectory(prefix="sgtune-fuzz-") as folder, subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            bad = fuzz(asked, Path(folder), int(server.stdout.readline()))
        finally:
            server.kill()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
