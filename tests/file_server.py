"""An HTTP server on the loopback interface whose files can be slow, truncated, moved and more."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass
class File:
    """How a path is served.

    Attributes:
        content: of the file.
        ranges: whether parts of it can be asked for.
        checks: whether parts are sent of the version alone that is asked for.
        tag: its entity tag; without one its version is not known.
        cuts: after how many bytes each of the first responses ends.
        block, pause: bytes between two pauses, and their seconds.
        length: what the header states instead of the true one.
        status: another one than 200 ends the response.
        headers: further ones.
    """

    content: bytes = b""
    ranges: bool = True
    checks: bool = True
    tag: str = '"1"'
    cuts: list[int] = dataclasses.field(default_factory=list)
    block: int = 1 << 20
    pause: float = 0.0
    length: int | None = None
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Server:
    """A server that runs.

    Attributes:
        address: without a slash at its end.
        files: by path.
        requests: path and range of each.
    """

    address: str
    files: dict[str, File] = dataclasses.field(default_factory=dict)
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def ranges(self) -> list[str]:
        return [part for _, part in self.requests]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
            part = self.headers.get("Range", "")
            server.requests.append((self.path, part))
            _respond(self, server.files.get(self.path.lstrip("/")), part)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


def _respond(handler: BaseHTTPRequestHandler, file: File | None, part: str) -> None:
    if file is None or file.status != 200:
        handler.send_response(404 if file is None else file.status)
        for name, value in ({} if file is None else file.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    start = 0
    same = not file.checks or handler.headers.get("If-Range") in (None, file.tag)
    if file.ranges and same and (match := re.fullmatch(r"bytes=(\d+)-", part)):
        start = int(match[1])
    if start >= max(1, len(file.content)):
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        size = len(file.content)
        handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    if file.tag:
        handler.send_header("ETag", file.tag)
    for name, value in file.headers.items():
        handler.send_header(name, value)
    rest = file.content[start:]
    handler.send_header("Content-Length", str(file.length or len(rest)))
    handler.end_headers()
    end = file.cuts.pop(0) if file.cuts else len(rest)
    with contextlib.suppress(ConnectionError):
        for at in range(0, end, file.block):
            handler.wfile.write(rest[at : min(at + file.block, end)])
            handler.wfile.flush()
            time.sleep(file.pause)
