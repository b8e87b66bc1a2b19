"""The fuzzer's cases: valid files of every kind, and every command with some of them spoiled."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_mutations import NUMBERS, mutated, mutated_json_lines
from fuzz_process import Case, run_case

ROOT = Path(__file__).resolve().parent.parent
PLAN = ("--isl", "200", "--osl", "100", "--concurrency", "8", "--sglang-version", "0.5.12")
TUNE = ("tune", "--engine", "simulated", "--hardware", "h200x8", *PLAN, "--confirm", "0", "--sampler", "random")


class Seeds:
    """Valid files of every kind, made by sgtune itself."""

    def __init__(self, folder: Path) -> None:
        from hwprobe.catalogue import hardware_from_catalogue
        from hwprobe.files import encode_json
        from models.engine.profile import shipped_profiles

        self.folder = folder
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
        runs = ("--runs", str(folder / "runs"), "--run", "a")
        self._made(*TUNE, "--trials", "2", *runs)
        shutil.copytree(folder / "runs", folder / "again")
        self._made(*TUNE, "--trials", "3", "--runs", str(folder / "again"), "--run", "a", "--resume")
        self._made("export", *runs, "--bundle", str(folder / "bundle"))
        plan_output = self._made("plan", "--hardware", "h200x8", *PLAN, "--json")
        (folder / "plan.json").write_text(plan_output.strip().splitlines()[-1])

    def _made(self, *words: str) -> str:
        """Run a sound command and return what it said. Raises SystemExit where it is refused: then no case tests it."""
        ended = run_case(Case(-1, list(words)), self.folder)
        if ended.code != 0:
            raise SystemExit(f"cannot make the seeds: sgtune {' '.join(words)}: {ended.said[-500:]}")
        return ended.said

    @staticmethod
    def _points() -> Iterator[dict[str, Any]]:
        for clients in (1, 8, 64):
            yield {
                "id": f"p{clients}", "engine": "sglang", "engine_version": "0.5.12", "gpu": "H200", "num_gpus": 8,
                "tp": 8,
                "metric_kind": "serving", "isl": 200, "osl": 100, "concurrency": clients, "tpot_mean_ms": 20.0,
                "ttft_mean_ms": 100.0, "output_tok_s": 40.0 * clients,
            }  # fmt: skip


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
        make = dice.choices([maker for _, maker in self._makers], [weight for weight, _ in self._makers])[0]
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
        if name == "trials.jsonl" and dice.random() < 0.5:
            self._written_anew(run / name, dice)
        else:
            (run / name).write_bytes(mutated((run / name).read_bytes(), dice, name))
        return run

    @staticmethod
    def _written_anew(file: Path, dice: random.Random) -> None:
        """Change records and seal them as sgtune does: the chain vouches for what no tuner wrote."""
        from tuner.evidence.chain import Head, Link, sealed, start_of, write_head

        lines, chain = [], start_of(file.parent)
        for line in mutated_json_lines(b"\n".join(Link.of(line).body for line in file.read_bytes().splitlines()), dice):
            written, chain = sealed(line, chain)
            lines.append(written + b"\n")
        file.write_bytes(b"".join(lines))
        write_head(file, Head(records=len(lines), chain=chain))

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
        words = [*TUNE, "--trials", "1", "--runs", str(folder / "runs")]
        for flag, name in {"--world": "world.toml", "--space": "space.toml", "--profile": "profile.json"}.items():
            if dice.random() < 0.5:
                words += [flag, self._file(name, dice, folder)]
        return [*words, *(["--dry-run"] if dice.random() < 0.5 else [])]

    def _resume(self, dice: random.Random, folder: Path) -> list[str]:
        self._run(dice, folder)
        return [*TUNE, "--trials", "3", "--runs", str(folder / "runs"), "--run", "a", "--resume"]

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
