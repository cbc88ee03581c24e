"""Files are fetched once, verified and continued, against a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import File, Server, serving

from mobilenet.downloads import CHECKSUMS, Cache, RemoteFile
from mobilenet.errors import UsageError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
BLOCK = 1 << 16  # what a connection that ends inside one has sent of it is lost
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.files["a.tgz"] = File(CONTENT)
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", pauses=(0.0, 0.0), seconds=(5.0, 5.0))


def remote(server: Server, name: str = "a.tgz", checksum: str = "") -> RemoteFile:
    return RemoteFile(name, f"of/{name}", (f"{server.address}/{name}",), "about 1 MB", checksum)


def leftovers(cache: Cache) -> set[str]:
    return {p.name for p in cache.folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_a_file_is_fetched_once_and_its_checksum_recorded(server: Server, cache: Cache) -> None:
    first = cache.fetch(remote(server))
    assert first == cache.folder / "of" / "a.tgz" and first.read_bytes() == CONTENT
    assert cache.fetch(remote(server)) == first and len(server.requests) == 1
    recorded = json.loads((cache.folder / CHECKSUMS).read_text())["of/a.tgz"]
    assert (recorded["sha256"], recorded["bytes"]) == (SHA256, len(CONTENT))
    assert leftovers(cache) == {"a.tgz", CHECKSUMS}


@pytest.mark.parametrize(("ranges", "tag"), [(True, '"1"'), (False, '"1"'), (True, "")])
def test_a_truncated_response_is_continued_where_the_server_can(
    server: Server, cache: Cache, ranges: bool, tag: str
) -> None:
    """Without parts, or without a version that says what a part is of, it starts again."""
    server.files["a.tgz"] = File(CONTENT, ranges=ranges, tag=tag, cuts=[BLOCK, 2 * BLOCK])
    assert cache.fetch(remote(server)).read_bytes() == CONTENT
    if tag:
        last = 3 * BLOCK if ranges else 2 * BLOCK
        assert server.ranges() == ["", f"bytes={BLOCK}-", f"bytes={last}-"]
    else:
        assert server.ranges() == ["", "", ""]


def test_a_file_that_always_ends_early_is_given_up(server: Server, cache: Cache) -> None:
    server.files["a.tgz"] = File(CONTENT, ranges=False, cuts=[BLOCK] * 10)
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:\d+: .*put http://.*about 1 MB.*a.tgz"):
        cache.fetch(remote(server))
    assert len(server.requests) == 4 and not cache.path_of(remote(server)).exists()


def test_a_server_that_stalls_is_given_up(server: Server, cache: Cache) -> None:
    server.files["a.tgz"] = File(CONTENT, block=1000, pause=1.0)
    slow = Cache(cache.folder, pauses=(), seconds=(5.0, 0.05))
    with pytest.raises(UsageError, match="timed out|no response in time"):
        slow.fetch(remote(server))
    assert not cache.path_of(remote(server)).exists()


@pytest.mark.parametrize(
    ("content", "checks"), [(CONTENT, True), (CONTENT, False), (CONTENT[: BLOCK // 2], False)]
)
def test_a_file_that_changed_meanwhile_is_fetched_whole(
    server: Server, cache: Cache, content: bytes, checks: bool
) -> None:
    """Also from a server that sends parts of any version, and one that is shorter than the part."""
    server.files["a.tgz"] = File(CONTENT[::-1], tag='"0"', cuts=[BLOCK, 0])
    with pytest.raises(UsageError):
        Cache(cache.folder, pauses=()).fetch(remote(server))
    server.files["a.tgz"] = File(content, tag='"1"', checks=checks)
    server.requests.clear()
    assert cache.fetch(remote(server)).read_bytes() == content
    assert server.ranges() == [f"bytes={BLOCK}-", *([] if checks else [""])]


def fetching(server: Server, cache: Cache) -> subprocess.Popen[str]:
    """A process that fetches `a.tgz`."""
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from mobilenet.downloads import Cache, RemoteFile\n"
        "from pathlib import Path\n"
        f"file = RemoteFile('a.tgz', 'of/a.tgz', ('{server.address}/a.tgz',))\n"
        f"print(Cache(Path({str(cache.folder)!r})).fetch(file).stat().st_size)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload, no-any-return]


def test_a_killed_download_leaves_a_part_that_is_continued(server: Server, cache: Cache) -> None:
    server.files["a.tgz"] = File(CONTENT, block=100_000, pause=0.2)
    process = fetching(server, cache)
    part = cache.folder / "of" / "a.tgz.part"
    end = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.exists() and not part.with_suffix("").exists()
    server.files["a.tgz"].pause = 0.0
    assert cache.fetch(remote(server)).read_bytes() == CONTENT
    assert server.ranges()[-1].startswith("bytes=") and leftovers(cache) == {"a.tgz", CHECKSUMS}


def test_two_processes_at_once_fetch_it_once(server: Server, cache: Cache) -> None:
    server.files["a.tgz"] = File(CONTENT, block=100_000, pause=0.2)
    processes = [fetching(server, cache) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert printed == [f"{len(CONTENT)}\n"] * 2 and len(server.requests) == 1


def test_a_published_checksum_is_compared(server: Server, cache: Cache) -> None:
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    with pytest.raises(UsageError, match=f"md5 {md5}.*md5 {'0' * 32}, as published"):
        cache.fetch(remote(server, checksum="md5:" + "0" * 32))
    assert leftovers(cache) == {"a.tgz.part.json"}
    assert cache.fetch(remote(server, checksum=f"md5:{md5}")).is_file()


@pytest.mark.parametrize("is_right", [True, False])
def test_checksums_that_servers_state_are_compared(
    server: Server, cache: Cache, is_right: bool
) -> None:
    """Of Google Cloud Storage, and of the Hugging Face Hub before it redirects."""
    content = CONTENT if is_right else CONTENT[1:]
    md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    server.files["a.tgz"].headers = {"X-Goog-Hash": f"crc32c=n03x6A==,md5={md5}"}
    digest = hashlib.sha256(content).hexdigest()
    headers = {"Location": "/b", "X-Linked-Etag": f'"{digest}"'}
    server.files |= {"hub": File(status=302, headers=headers), "b": File(CONTENT)}
    for name in ("a.tgz", "hub"):
        if is_right:
            assert cache.fetch(remote(server, name)).read_bytes() == CONTENT
        else:
            with pytest.raises(UsageError, match="as the server states"):
                cache.fetch(remote(server, name))


def test_a_file_that_changed_since_its_first_use_is_refused(server: Server, cache: Cache) -> None:
    path = cache.fetch(remote(server))
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UsageError, match=f"as recorded in .*{CHECKSUMS}; remove .* to fetch"):
        cache.fetch(remote(server))
    path.unlink()
    server.files["a.tgz"].content = CONTENT[:-1]
    with pytest.raises(UsageError, match="remove its entry there"):
        cache.fetch(remote(server))
    assert not path.exists()
    server.files["a.tgz"].content = CONTENT
    assert cache.fetch(remote(server)) == path


def test_a_file_that_was_put_there_is_used_and_recorded(server: Server, cache: Cache) -> None:
    offline = Cache(cache.folder, offline=True)
    path = cache.path_of(remote(server))
    with pytest.raises(UsageError, match=f"offline.*put {server.address}/a.tgz .* at {path}"):
        offline.fetch(remote(server))
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert offline.fetch(remote(server)) == path and not server.requests
    assert json.loads((cache.folder / CHECKSUMS).read_text())["of/a.tgz"]["sha256"] == SHA256


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (None, "404 Not Found"),
        (File(status=403), "403 Forbidden"),
        (File(status=503), "503 Service Unavailable"),
        (File(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "a web page"),
        (File(b"x", length=1 << 40), "at most 1,073,741,824"),
        (File(status=302, headers={"Location": "/missing"}), "404 Not Found"),
    ],
)
def test_a_server_without_the_file_costs_one_line(
    server: Server, cache: Cache, file: File | None, reason: str
) -> None:
    if file is not None:
        server.files["b"] = file
    with pytest.raises(UsageError, match=reason) as caught:
        cache.fetch(remote(server, "b"))
    text = str(caught.value)
    assert "\n" not in text and f"put {server.address}/b (about 1 MB) at {cache.folder}" in text


def test_a_moved_file_is_followed(server: Server, cache: Cache) -> None:
    server.files["b"] = File(status=301, headers={"Location": "/a.tgz"})
    assert cache.fetch(remote(server, "b")).read_bytes() == CONTENT


def test_addresses_are_tried_in_order(
    server: Server, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"https://127.0.0.1:{free.getsockname()[1]}/a.tgz"
    file = RemoteFile("a", "a", (closed, f"{server.address}/none", f"{server.address}/a.tgz"))
    with caplog.at_level(logging.WARNING, "mobilenet"):
        assert cache.fetch(file).read_bytes() == CONTENT
    assert f"{server.address}/a.tgz came over plain http" in caplog.text
    with pytest.raises(UsageError, match=r"Connection refused\); put https://"):
        cache.fetch(RemoteFile("b", "b", (closed,)))


def test_the_environment_names_folder_mirror_and_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOBILENET_CACHE", "MOBILENET_MIRROR", "MOBILENET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Cache.of_environment() == Cache(Path("/somewhere/mobilenet/weights"))
    monkeypatch.setenv("MOBILENET_CACHE", str(tmp_path))
    monkeypatch.setenv("MOBILENET_MIRROR", f"{server.address}/")
    server.files["of/a.tgz"] = File(CONTENT)
    file = RemoteFile("a", "of/a.tgz", ("https://unreachable.invalid/a.tgz",))
    assert Cache.of_environment().fetch(file) == tmp_path / "weights" / "of" / "a.tgz"
    monkeypatch.setenv("MOBILENET_OFFLINE", "1")
    assert Cache.of_environment().offline
    monkeypatch.setenv("MOBILENET_OFFLINE", "0")
    assert not Cache.of_environment().offline and Cache.of_environment(True).offline


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_costs_one_line(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="MOBILENET_CACHE"):
        Cache(tmp_path / "cache").fetch(remote(server))


def test_a_folder_under_a_file_costs_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError, match="cache folder: .*MOBILENET_CACHE"):
        Cache(tmp_path / "cache").fetch(remote(server))
