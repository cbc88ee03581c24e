"""Files from the network in a cache folder: fetched once, verified, and continued where a download
was interrupted.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import files, strict_json
from mobilenet.errors import UsageError

if TYPE_CHECKING:
    import requests

CACHE, OFFLINE, MIRROR = "MOBILENET_CACHE", "MOBILENET_OFFLINE", "MOBILENET_MIRROR"
CHECKSUMS = "checksums.json"
MAX_BYTES = 1 << 30  # of a file; the largest weights have 131 MB
_PART, _VALIDATOR = ".part", ".part.json"
_BLOCK = 1 << 16
_SECONDS = (10.0, 30.0)  # to connect, and from one block to the next
_PAUSES = (1.0, 4.0, 10.0)  # seconds before attempts that follow one without progress
_FALSE = ("", "0", "false", "no", "off")

log = logging.getLogger("mobilenet")


class _InterruptedDownload(Exception):
    """The connection ended before the file did."""


class _ChangedFile(Exception):
    """The server has another file than the part is of, which was removed."""


class _RefusedDownload(Exception):
    """The server has no such file."""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched.

    Attributes:
        name: in messages.
        path: in the cache and on a mirror, with `/`.
        addresses: where it lies, the first that responds is taken; https before plain http.
        megabytes: its size or the least it can be, in words, for messages.
        checksum: published for it, `md5:` or `sha256:` and hexadecimal digits; empty if none was.
    """

    name: str
    path: str
    addresses: tuple[str, ...]
    megabytes: str = ""
    checksum: str = ""


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of fetched files.

    A file is downloaded to `NAME.part`, verified and renamed, by one process at a time. Its SHA-256
    is recorded in `checksums.json` when it is first used, and compared whenever it is used again.

    Attributes:
        folder: of the files.
        offline: use files that are there alone.
        mirror: address of a folder with the files of a cache, which is asked instead of their own
            addresses; empty for none.
        pauses: seconds before attempts that follow one without progress.
        seconds: to connect, and to wait for the next bytes.
    """

    folder: Path
    offline: bool = False
    mirror: str = ""
    pauses: tuple[float, ...] = _PAUSES
    seconds: tuple[float, float] = _SECONDS

    @classmethod
    def of_environment(cls, offline: bool = False) -> Cache:
        """The cache of weights: `weights` in the folder that `MOBILENET_CACHE` names, by default
        `~/.cache/mobilenet`.

        Args:
            offline: use no network; `MOBILENET_OFFLINE=1` does the same.
        """
        offline = offline or os.environ.get(OFFLINE, "").strip().lower() not in _FALSE
        mirror = os.environ.get(MIRROR, "").strip().rstrip("/")
        return cls(files.cache_folder() / "weights", offline, mirror)

    def path_of(self, file: RemoteFile) -> Path:
        """Where the file is, or will be."""
        return self.folder / file.path

    def fetch(self, file: RemoteFile) -> Path:
        """The path of a file, which is downloaded if it is not there, and verified.

        Raises:
            UsageError: it cannot be fetched, or has another checksum than the published or recorded
                one; or the cache cannot be written.
        """
        path = self.path_of(file)
        if not path.is_file():
            if self.offline:
                raise self._unavailable(file, "the network is not used: offline")
            try:
                with self._locked(path):
                    if not path.is_file():  # another process may have fetched it
                        self._download(file, path)
                        return path
            except OSError as error:
                raise _unwritable(self.folder, error) from None
        self._verify(file, path)
        return path

    def _download(self, file: RemoteFile, path: Path) -> None:
        """Downloads a file that no other process downloads."""
        part = path.with_name(path.name + _PART)
        reasons = []
        for address in self._addresses(file):
            try:
                digests = _Transfer(address, part, self.pauses, self.seconds).run()
            except (_InterruptedDownload, _RefusedDownload) as error:
                reasons.append(f"{address.split('/')[2]}: {error}")
                continue
            if address.startswith("http://") and not file.checksum:
                log.warning("%s came over plain http, where others can change it", address)
            try:
                self._verify(file, part, digests, address)
            except UsageError:
                _remove(part)
                raise
            os.replace(part, path)
            _remove(path.with_name(path.name + _VALIDATOR))
            return
        raise self._unavailable(file, "; ".join(dict.fromkeys(reasons)))

    def _addresses(self, file: RemoteFile) -> tuple[str, ...]:
        return (f"{self.mirror}/{file.path}",) if self.mirror else file.addresses

    def _unavailable(self, file: RemoteFile, reason: str) -> UsageError:
        size = f" ({file.megabytes})" if file.megabytes else ""
        address = self._addresses(file)[0]
        expected = f"a file that can be fetched ({reason})"
        remedy = f"put {address}{size} at {self.path_of(file)}"
        return UsageError(file.name, None, expected, remedy)

    def _verify(
        self,
        file: RemoteFile,
        path: Path,
        digests: Mapping[str, str] | None = None,
        address: str = "",
    ) -> None:
        """Compares a file with the checksums that are known for it; records its own if it is new.

        Args:
            file: what is known.
            path: of the file, or of its download.
            digests: by algorithm, as the server states them.
            address: where it was downloaded from.

        Raises:
            UsageError: one differs.
        """
        computed = _digests(path)
        algorithm, _, published = file.checksum.partition(":")
        known = [(published, algorithm, "as published")] if published else []
        known += [(d, name, "as the server states") for name, d in (digests or {}).items()]
        record = self._checksums().get(file.path)
        if isinstance(record, dict):
            known.append((str(record.get("sha256")), "sha256", f"as recorded in {self._record}"))
        for expected, name, origin in known:
            if computed[name] != expected.lower():
                got = f"{name} {computed[name]}"
                remedy = "fetch it again" if address else f"remove {path} to fetch it again"
                if address and origin.startswith("as recorded"):
                    remedy = "remove its entry there if the file was meant to change"
                raise UsageError(file.name, got, f"{name} {expected}, {origin}", remedy)
        if not isinstance(record, dict):
            self._record_checksum(file.path, computed["sha256"], path.stat().st_size, address)
            origins = " and ".join(dict.fromkeys(origin for _, _, origin in known))
            compared = f"is {origins}" if known else "is not published; it is recorded"
            log.info("%s: checksum %s (sha256 %s)", file.name, compared, computed["sha256"])

    @property
    def _record(self) -> Path:
        return self.folder / CHECKSUMS

    def _checksums(self) -> dict[str, Any]:
        if not self._record.is_file():
            return {}
        return strict_json.read_object(self._record, "the checksums of fetched files")

    def _record_checksum(self, name: str, sha256: str, size: int, address: str) -> None:
        try:
            with self._locked(self._record):
                entry = {"sha256": sha256, "bytes": size, "address": address}
                files.write_json(self._record, {**self._checksums(), name: entry})
        except OSError as error:
            if address:
                raise
            reason = error.strerror or error
            log.warning("the checksum of %s cannot be recorded (%s)", name, reason)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Only one process is in the block of a path."""
        import filelock  # not needed where the files are there

        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.info("another process is writing %s: waiting for it", path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """The download of one file from one address.

    Attributes:
        address: of the file.
        part: where it is written; what an earlier download left there is continued, if the server
            still has the same file.
        pauses, seconds: see `Cache`.
    """

    address: str
    part: Path
    pauses: tuple[float, ...]
    seconds: tuple[float, float]

    def run(self) -> dict[str, str]:
        """Downloads the file, in several attempts if connections end early.

        Returns:
            Digests that the server states, by algorithm.

        Raises:
            _InterruptedDownload: attempts without progress have used up the pauses.
            _RefusedDownload: the server has no such file.
            OSError: the file cannot be written.
        """
        import requests

        log.info("fetching %s", self.address)
        first = most = _size(self.part)
        failures = 0
        with requests.Session() as session:
            while True:
                try:
                    return self._attempt(session)
                except _ChangedFile:  # once at most: without a part, none is asked for
                    first = most = 0
                except _InterruptedDownload:
                    size = _size(self.part)
                    failures = 0 if size > most else failures + 1
                    most = max(size, most)
                    if failures > len(self.pauses) or most == first:  # nothing came at all
                        raise
                    time.sleep(self.pauses[failures - 1] if failures else 0.0)

    def _attempt(self, session: requests.Session) -> dict[str, str]:
        import requests

        headers = {"Accept-Encoding": "identity"}
        start = _size(self.part)
        validator = self._validator() if start else ""
        if validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        try:
            response = session.get(self.address, headers=headers, stream=True, timeout=self.seconds)
        except requests.RequestException as error:
            raise _InterruptedDownload(_reason(error)) from None
        with response:
            if response.status_code == 416 and validator:  # it has no such part
                _remove(self.part)
                raise _ChangedFile
            self._check(response)
            start = self._start(response, start, validator)
            self._write(response, start)
            return _stated_digests(response)

    def _check(self, response: requests.Response) -> None:
        if response.status_code >= 500 or response.status_code == 429:
            raise _InterruptedDownload(f"{response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise _RefusedDownload(f"{response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _RefusedDownload("a web page, not a file")

    def _start(self, response: requests.Response, start: int, validator: str) -> int:
        """The number of bytes that stay: none if the server sends the whole file, or another."""
        if response.status_code != 206:
            return 0
        stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        same = _validator_of(response) in ("", validator)
        if stated is None or int(stated[1]) != start or not same:
            _remove(self.part)
            raise _ChangedFile
        log.info("%s: continued after %.1f MB", self.address, start / 1e6)
        return start

    def _write(self, response: requests.Response, start: int) -> None:
        """Writes what the server sends.

        Raises:
            _InterruptedDownload: it is less than the server has stated.
        """
        import requests
        import tqdm

        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        if (total or 0) > MAX_BYTES:
            raise _RefusedDownload(f"{total:,} bytes, at most {MAX_BYTES:,} are fetched")
        if not start:  # before the first byte: what there was is of another file
            _remove(self.part)
            files.write_json(self._validator_path, {"validator": _validator_of(response)})
        bar = tqdm.tqdm(
            desc=self.part.name.removesuffix(_PART),
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,  # shown on a terminal alone
        )
        with bar, self.part.open("ab") as file:
            try:
                for block in response.iter_content(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
                    if file.tell() > MAX_BYTES:
                        raise _RefusedDownload(f"more than {MAX_BYTES:,} bytes")
            except requests.RequestException as error:
                raise _InterruptedDownload(_reason(error)) from None
            finally:
                file.flush()
                os.fsync(file.fileno())
        size = _size(self.part)
        if total is not None and size != total:
            raise _InterruptedDownload(f"it ended after {size:,} of {total:,} bytes")

    @property
    def _validator_path(self) -> Path:
        return self.part.with_name(self.part.name.removesuffix(_PART) + _VALIDATOR)

    def _validator(self) -> str:
        """What identifies the version of the file that a part is of; empty if it is not known."""
        try:
            stored = strict_json.read_object(self._validator_path, "a download")
        except UsageError:
            return ""
        return str(stored.get("validator", ""))


def _validator_of(response: requests.Response) -> str:
    """A strong entity tag, or else the time of the last change."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified", "")


def _stated_digests(response: requests.Response) -> dict[str, str]:
    """Digests of the file in the headers of Google Cloud Storage and of the Hugging Face Hub."""
    found = {}
    for hop in (*response.history, response):
        md5 = re.search(r"md5=([\w+/]{22}==)", hop.headers.get("X-Goog-Hash", ""))
        if md5:
            found["md5"] = base64.b64decode(md5[1]).hex()
        sha256 = re.fullmatch(r'"?([0-9a-f]{64})"?', hop.headers.get("X-Linked-Etag", ""))
        if sha256:
            found["sha256"] = sha256[1]
    return found


def _digests(path: Path) -> dict[str, str]:
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("md5", "sha256")}
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _reason(error: Exception) -> str:
    """Why there is no connection, in a few words."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no response in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        args = [arg for arg in cause.args if isinstance(arg, BaseException)]
        cause = cause.__cause__ or cause.__context__ or (args[0] if args else None)
    return " ".join(str(error).split())[:160]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> UsageError:
    expected = f"a folder that can be written ({error.strerror or error})"
    remedy = f"free space, or name another folder in {CACHE}"
    return UsageError("cache folder", str(folder), expected, remedy)
