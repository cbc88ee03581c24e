"""Finds a TF1 checkpoint: by its prefix, index file, folder, `.npz`, or in an archive as Google
publishes it. TensorFlow is not needed.

Archives are read, not unpacked: only the files of one checkpoint are written, under new names,
after every member was checked.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mobilenet.archives import MAX_MEMBERS, MAX_TOTAL_BYTES, UNCHECKED_BYTES
from mobilenet.errors import UsageError, shorten
from mobilenet.tf1_loader import tar_stream

EXPECTED = (
    "a TF1 checkpoint: prefix, .index file, folder, .npz of slim names, or .tgz of a released model"
)
_TABLE_END = bytes.fromhex("57fb808b247547db")  # the last bytes of TensorFlow's sorted tables
_PARTS = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_MOST_BYTES, _MOST_MEMBERS = MAX_TOTAL_BYTES, MAX_MEMBERS  # of an archive, unpacked
_MOST_STATE_BYTES = 1 << 20  # of `checkpoint`, which lists the paths of a training's checkpoints


@contextlib.contextmanager
def checkpoint_prefix(path: str | os.PathLike[str], use_average: bool = True) -> Iterator[str]:
    """Yields the prefix of the one checkpoint at `path`, or the path of an `.npz`.

    Args:
        path: as the user typed it.
        use_average: which half of a V3 archive to take: `ema/` or `pristine/`.

    Raises:
        UsageError: there is none, or more than one, or the archive is not to be trusted.
    """
    path = Path(path)
    if is_archive(path):
        with _temporary_folder() as folder:
            yield _from_archive(path, folder, use_average)
    elif path.is_dir():
        yield _in_folder(path, use_average)
    else:
        yield _file(path)


def check_checkpoint(path: str | os.PathLike[str], use_average: bool = True) -> None:
    """Refuses what `checkpoint_prefix` would refuse, without unpacking an archive.

    Raises:
        UsageError: as `checkpoint_prefix`.
    """
    path = Path(path)
    if is_archive(path):
        _inside(path, use_average)
    else:
        with checkpoint_prefix(path, use_average):
            pass


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is meant as a checkpoint, by names and first bytes; `checkpoint_prefix`
    checks it.
    """
    path = Path(path)
    if path.is_dir():
        return (path / "checkpoint").is_file() or any(path.rglob("*.index"))
    if Path(f"{_PARTS.sub('', str(path))}.index").is_file():
        return True
    names = path.suffix in (".npz", ".tgz", ".gz", ".tar")
    return path.is_file() and (names or is_archive(path) or _is_table(path))


def is_archive(path: Path) -> bool:
    """Whether it is a tar archive, packed by gzip or not."""
    return tar_stream.is_archive(path)


def display_name(path: str | os.PathLike[str], prefix: str) -> str:
    """The name in messages of `prefix`, which `checkpoint_prefix` yielded for `path`."""
    return f"{os.fspath(path)}: {Path(prefix).name}" if is_archive(Path(path)) else prefix


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="mobilenet-")
    except OSError as error:
        expected = f"one that can be written ({error.strerror or error})"
        raise UsageError("temporary folder", None, expected, "set TMPDIR") from None
    with folder as name:
        yield Path(name)


def _file(path: Path) -> str:
    if path.suffix in (".keras", ".h5", ".hdf5"):
        raise UsageError(
            str(path), None, f"{EXPECTED}, not a Keras file", "mobilenet.load_model reads those"
        )
    if path.suffix == ".npz":
        if not zipfile.is_zipfile(path):
            raise UsageError(str(path), None, "a whole .npz file", "copy it again")
        return str(path)
    if path.suffix in (".tgz", ".gz", ".tar") and path.is_file():
        raise UsageError(str(path), None, "a whole tar archive", "download it again")
    prefix = _PARTS.sub("", str(path))
    index = Path(f"{prefix}.index")
    if not index.is_file():
        if Path(prefix).is_file() and _is_table(Path(prefix)):
            return prefix  # one file, as TensorFlow wrote it before 2016
        what = "there is no " + index.name if path.exists() else "there is nothing there"
        raise UsageError(str(path), None, f"{EXPECTED}; {what}")
    if not _is_table(index):
        raise UsageError(str(index), None, "a whole index file", "copy the checkpoint again")
    _check_shards(prefix, os.listdir(index.parent))
    return prefix


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(_TABLE_END)))
        return file.read() == _TABLE_END


def _check_shards(prefix: str, names: Sequence[str]) -> None:
    start = re.escape(Path(prefix).name)
    shards = [
        (int(hit[1]), int(hit[2]))
        for name in names
        if (hit := re.fullmatch(start + r"\.data-(\d{5})-of-(\d{5})", name))
    ]
    count = max((of for _, of in shards), default=1)
    missing = sorted({(i, count) for i in range(count)} - set(shards))
    if missing:
        lost = shorten(f"{Path(prefix).name}.data-{i:05}-of-{of:05}" for i, of in missing)
        raise UsageError(prefix, None, f"its data files beside the index; {lost} is missing")


def _in_folder(folder: Path, use_average: bool) -> str:
    state = folder / "checkpoint"
    if state.is_file():
        with state.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_STATE_BYTES)
        named = re.search(r'^\s*model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        if named is None:
            raise UsageError(str(state), None, "a line model_checkpoint_path", "give the prefix")
        here = folder / named[1]  # an absolute path stays one
        if not Path(f"{here}.index").is_file():  # moved since it was written
            here = folder / Path(named[1]).name
        return _file(here)
    inside = [str(path.relative_to(folder))[: -len(".index")] for path in folder.rglob("*.index")]
    return _file(folder / _only(inside, str(folder), use_average))


def _only(prefixes: Sequence[str], path: str, use_average: bool) -> str:
    """The one checkpoint among `prefixes`; of V3's two, the requested one."""
    prefixes = sorted(set(prefixes))
    if not prefixes:
        raise UsageError(path, None, f"{EXPECTED}; it holds none")
    kinds = {posixpath.basename(posixpath.dirname(Path(p).as_posix())): p for p in prefixes}
    if len(prefixes) == 2 and set(kinds) == {"ema", "pristine"}:
        return kinds["ema" if use_average else "pristine"]
    if len(prefixes) > 1:
        raise UsageError(
            path, None, f"one checkpoint; it holds {shorten(prefixes)}", "give one prefix"
        )
    return prefixes[0]


def _inside(archive: Path, use_average: bool) -> str:
    """The prefix of the one checkpoint in an archive."""
    with _reading(archive) as tar:
        prefixes = _prefixes(archive, tar)
    return _only(prefixes, str(archive), use_average)


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens an archive; damage becomes an error of one line.

    Raises:
        UsageError: it is damaged, or inflates beyond all measure.
    """
    try:
        with tar_stream.open_archive(archive) as tar:
            yield tar
    except (UsageError, OSError):
        raise
    except Exception as error:  # whatever tarfile and zlib raise for damage
        expected = f"a whole tar archive ({error})"
        raise UsageError(str(archive), None, expected, "download it again") from None


def _from_archive(archive: Path, folder: Path, use_average: bool) -> str:
    prefix = _inside(archive, use_average)
    with _reading(archive) as tar:
        for member in tar:
            path = posixpath.normpath(member.name)
            part = _PARTS.search(path)
            needed = part is not None and part[1] != "meta" and _PARTS.sub("", path) == prefix
            if member.isfile() and needed:
                content = tar.extractfile(member)
                assert content is not None
                with (folder / Path(path).name).open("wb") as target:
                    shutil.copyfileobj(content, target)
    try:
        return _file(folder / Path(prefix).name)
    except UsageError as error:
        raise UsageError(f"{archive}: {prefix}", None, error.expected, error.remedy) from None


def _prefixes(archive: Path, tar: tarfile.TarFile) -> list[str]:
    """Prefixes of the checkpoints in an archive, after every member was checked.

    The sizes are those in the headers, summed before the content after them is inflated.
    """
    prefixes: list[str] = []
    names: set[str] = set()
    packed, total = archive.stat().st_size, 0
    for count, member in enumerate(tar):
        path = posixpath.normpath(member.name)
        total += member.size
        if (fault := _fault(member, path)) or path in names:
            fault = fault or f"files of different names; {member.name!r} occurs twice"
        elif total > _MOST_BYTES or count >= _MOST_MEMBERS:
            fault = f"at most {_MOST_BYTES:,} bytes in {_MOST_MEMBERS:,} files"
        elif total > max(UNCHECKED_BYTES, tar_stream.MAX_RATIO * packed):
            fault = f"at most {tar_stream.MAX_RATIO:g} times its size; it holds {total:,} bytes"
        if fault:
            raise UsageError(str(archive), None, f"an archive of {fault}", "it was not unpacked")
        if member.isfile():
            names.add(path)
            prefixes += [path.removesuffix(".index")] if path.endswith(".index") else []
    return prefixes


def _fault(member: tarfile.TarInfo, path: str) -> str:
    """What is wrong with one member, by its header; `path` is its normalized name."""
    if path.startswith("/") or path.split("/")[0] == "..":
        return f"members inside it; {member.name!r} leads out of it"
    if member.issym() or member.islnk():
        return f"plain files; {member.name!r} is a link"
    if member.size < 0 or member.issparse() or not (member.isfile() or member.isdir()):
        return f"plain files; {member.name!r} is none"
    return ""
