"""A server that answers with saved texts: what a played world said, or anything else."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def served(answers: Mapping[str, str], key: str | None = None) -> Iterator[str]:
    """Serve texts by path at an address of their own; with `key` only to who shows it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = answers.get(self.path.partition("?")[0])
            allowed = key is None or self.headers.get("Authorization") == f"Bearer {key}"
            self.send_response(401 if not allowed else 404 if text is None else 200)
            body = (text or "").encode() if allowed else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
