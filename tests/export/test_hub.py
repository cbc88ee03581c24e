"""Uploads to the Hugging Face Hub, on a server of this process that plays its part."""

from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenet import converter
from mobilenet.errors import UsageError
from mobilenet.export import hub

package = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Card",
    "card.json": b"{}",
    "labels.txt": b"a\n",
    "model.tflite": bytes(range(256)),
}


class Server(http.server.ThreadingHTTPServer):
    """Takes one repository; `status` other than 200 refuses what is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.status != 200:
            self.reply({"error": "You don't have the rights to write"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            address = f"http://127.0.0.1:{self.server.server_port}/me/flowers"
            self.reply({"url": address, "name": "me/flowers"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            address = f"{constants.ENDPOINT}/me/flowers/commit/1"
            self.reply({"commitUrl": address, "commitOid": "1", "success": True})
        else:
            self.reply({})

    def do_GET(self) -> None:
        self.reply({"id": "me/flowers", "sha": "1", "siblings": []})

    def reply(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield running
        running.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {**FILES, "photo.jpg": b"private"}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_files_of_an_export_are_uploaded(
    server: Server, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command, which converts no export again; a photo next to the files stays here."""
    converter.run(["--model", str(folder), "--push_to_hub=me/flowers"])
    assert server.files == FILES
    assert (server.created["organization"], server.created["name"]) == ("me", "flowers")
    assert "private" in (
        server.created.get("visibility"),
        "private"[: server.created.get("private")],
    )
    assert server.tokens == {"Bearer hf_of_a_test"}
    assert "/me/flowers" in capfd.readouterr().out


def test_a_refusal_costs_a_line(server: Server, folder: Path) -> None:
    server.status = 403
    with pytest.raises(UsageError, match="push_to_hub: got 'me/flowers'.*403.*the rights") as error:
        hub.push(folder, "me/flowers")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b/c", "me/flo wers", "", "me/../x"])
def test_a_wrong_name_costs_a_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    with pytest.raises(UsageError, match="push_to_hub: .*expected a repository as user/name"):
        hub.push(folder, name)


def test_no_network_costs_a_line(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="a connection to http://127.0.0.1:1"):
        hub.push(folder, "me/flowers")


def test_no_token_costs_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is converted."""
    monkeypatch.setattr(package, "get_token", lambda: None)
    with pytest.raises(UsageError, match="--push_to_hub: got 'me/flowers', expected an access"):
        converter.run(["--model", str(folder / "absent.keras"), "--push_to_hub=me/flowers"])


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        hub.push(folder, "me/flowers")
