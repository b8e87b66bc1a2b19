"""What reading a stream costs: sgtune's own reader and aiohttp's client on the same stub.

    python benchmarks/readers.py            CPU seconds of the client per 1,000 tokens, at 64 and 512 streams

Both only count tokens and note the time of each event; nothing is judged or stored.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from models.workload import Workload
from tuner.bench.http_stream import TOKENS, Stream, Tally
from tuner.bench.point import Settings, shares_of
from tuner.bench.requests import Payloads
from tuner.bench.server_side import Address

STUB = Path(__file__).with_name("load_stub.py")
OUTPUT_TOKENS = 200


async def own_reader(address: Address, payloads: Payloads, streams: int) -> int:
    """Read `streams` answers with tuner.bench.http_stream; return the tokens."""
    tally, loop = Tally(), asyncio.get_running_loop()
    ended: asyncio.Queue[Stream] = asyncio.Queue()
    for index in range(streams):
        _, stream = await loop.create_connection(lambda: Stream(tally, ended.put_nowait), address.host, address.port)
        stream.send(payloads.request(index))
    return sum([(await ended.get()).tokens for _ in range(streams)])


async def aiohttp_reader(address: Address, payloads: Payloads, streams: int) -> int:
    """Read `streams` answers with aiohttp; return the tokens."""
    url = f"http://{address.host}:{address.port}/generate"

    async def read(session: aiohttp.ClientSession, index: int) -> int:
        tokens, last = 0, 0.0
        body = payloads.request(index).partition(b"\r\n\r\n")[2]
        async with session.post(url, data=body) as response:
            async for line in response.content:
                at = line.rfind(TOKENS)
                if at >= 0:
                    tokens, last = tokens + 1, time.monotonic()
        return tokens if last else 0

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        return sum(await asyncio.gather(*(read(session, index) for index in range(streams))))


Reader = Callable[[Address, Payloads, int], Coroutine[Any, Any, int]]
READERS: dict[str, Reader] = {"own": own_reader, "aiohttp": aiohttp_reader}


def main() -> None:
    sys.stdout.write(
        f"{os.cpu_count()} cores, aiohttp {aiohttp.__version__}\nstreams | reader | tokens | CPU s / 1,000\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, str(STUB), "--port", str(port), "--ttft-ms", "500", "--tpot-ms", "30", "--jitter-ms", "5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as stub:
        assert stub.stdout is not None
        stub.stdout.readline()
        address = Address(host="127.0.0.1", port=port, secure=False)
        share = shares_of(address, Workload.checked(100, OUTPUT_TOKENS, 1), Settings(), seed=0)[0]
        for streams in (64, 512):
            for name, reader in READERS.items():
                before = time.process_time()
                tokens = asyncio.run(reader(address, Payloads(share), streams))
                spent = time.process_time() - before
                sys.stdout.write(f"{streams} | {name} | {tokens:,} | {1e3 * spent / tokens:.4f}\n")
        stub.kill()


if __name__ == "__main__":
    main()
