"""A real Prometheus scrapes the emulated server: series, types and labels are those SGLang's dashboards ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import need
from tests.real.dockerd import ends_with_us
from tests.real.files import wait_until
from tests.real.slurm import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
WORLD = 'name = "scraped"\nboot_s = 0.3\nnoise = 0.0\n'
CONF = """global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: sglang
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
GENERATE = {"input_ids": [5, 6, 7, 8], "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}}


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=ends_with_us,
            env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin", "PYTHONSAFEPATH": "1"},
        )  # fmt: skip


def ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "world.toml").write_text(WORLD)
    port = free_ports(1)[0]
    emulator = (sys.executable, "-m", "tuner.emulator", "--world", str(folder / "world.toml"), "--")
    flags = ("--model-path", "deepseek-ai/DeepSeek-R1", "--tp-size", "8", "--port", str(port), "--enable-metrics")
    process = start(folder, *emulator, *flags)
    wait_until(lambda: up(f"http://127.0.0.1:{port}/health"))
    ask(f"http://127.0.0.1:{port}/generate", GENERATE)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def prometheus(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(CONF.format(port=server.partition(":")[2]))
    port = free_ports(1)[0]
    process = start(
        folder, "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: up(f"{url}/-/ready"))
    yield url
    process.terminate()
    process.wait()


def values(prometheus: str, query: str) -> list[dict[str, Any]]:
    series: list[dict[str, Any]] = ask(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}")["data"][
        "result"
    ]
    return series


def test_every_series_is_scraped_with_its_type_and_labels(prometheus: str) -> None:
    wait_until(lambda: [float(each["value"][1]) for each in values(prometheus, "up")] == [1.0])
    metadata = ask(f"{prometheus}/api/v1/metadata")["data"]
    types = {name: lines[0]["type"] for name, lines in metadata.items() if name.startswith("sglang:")}
    assert types["sglang:num_running_reqs"] == "gauge"
    assert types["sglang:time_to_first_token_seconds"] == "histogram"
    assert all(lines[0]["help"] for name, lines in metadata.items() if name in types)
    (running,) = values(prometheus, "sglang:num_running_reqs")[:1]
    assert {"model_name", "engine_type", "tp_rank"} <= running["metric"].keys()
    wait_until(lambda: values(prometheus, "sglang:time_to_first_token_seconds_count"))
    quantile = "histogram_quantile(0.5, sum by (le) (sglang:time_to_first_token_seconds_bucket))"
    assert 0.0 < float(values(prometheus, quantile)[0]["value"][1]) < 60.0


def test_promtool_reads_the_metrics(server: str) -> None:
    need("prometheus")
    with urllib.request.urlopen(f"http://{server}/metrics", timeout=5) as answer:
        text = answer.read()
    judged = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = [line for line in judged.stderr.decode().splitlines() if line.strip()]
    # colons are SGLang's own choice of names; nothing else is against the conventions but what is SGLang's too
    assert not [line for line in complaints if "parsing error" in line or "while linting" in line], complaints


def rules() -> list[Path]:
    """Return the rule files that the checkout ships: those with a top-level `groups`."""
    files = [*(ROOT / "examples").rglob("*.yml"), *(ROOT / "examples").rglob("*.yaml")]
    return [file for file in files if file.read_text().startswith("groups:") or "\ngroups:" in file.read_text()]


def test_promtool_accepts_the_shipped_rules() -> None:
    need("prometheus")
    assert rules(), "advise ships alerts"
    for file in rules():
        judged = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert judged.returncode == 0, judged.stderr + judged.stdout
