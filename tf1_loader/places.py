"""Where a TF1 checkpoint lies: prefix, index file, folder, `.npz`, or an archive as Google
publishes it. TensorFlow is not needed to find it.

Archives are read, not unpacked: only the files of one checkpoint are written, under names of ours,
after every member was looked at.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mobilenet.errors import UsageError, shorten

EXPECTED = (
    "a TF1 checkpoint: prefix, .index file, folder, .npz of slim names, or .tgz of a released net"
)
_TABLE_END = bytes.fromhex("57fb808b247547db")  # the last bytes of TensorFlow's sorted tables
_PARTS = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_MOST_BYTES = 4 << 30  # of an archive, unpacked; the largest released one has .4 GiB
_MOST_MEMBERS = 10_000
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error)


@contextlib.contextmanager
def found(path: str | os.PathLike[str], use_average: bool = True) -> Iterator[str]:
    """Gives the prefix of the one checkpoint at `path`, or the path of an `.npz`.

    Args:
        path: what the user named.
        use_average: which half of a V3 archive to take: `ema/` or `pristine/`.

    Raises:
        UsageError: there is none, or more than one, or the archive is not to be trusted.
    """
    place = Path(path)
    if is_archive(place):
        with tempfile.TemporaryDirectory(prefix="mobilenet-") as aside:
            yield _from_archive(place, Path(aside), use_average)
    elif place.is_dir():
        yield _in_folder(place, use_average)
    else:
        yield _file(place)


def check(path: str | os.PathLike[str], use_average: bool = True) -> None:
    """Tells what `found` would refuse; of an archive nothing is written.

    Raises:
        UsageError: as `found`.
    """
    place = Path(path)
    if is_archive(place):
        _inside(place, use_average)
    else:
        with found(place, use_average):
            pass


def is_archive(place: Path) -> bool:
    """Whether it is a tar archive, packed or not."""
    return place.is_file() and tarfile.is_tarfile(place)


def _file(place: Path) -> str:
    if place.suffix in (".keras", ".h5", ".hdf5"):
        raise UsageError(
            str(place), None, f"{EXPECTED}, not a Keras file", "mobilenet.load_model reads those"
        )
    if place.suffix == ".npz":
        if not zipfile.is_zipfile(place):
            raise UsageError(str(place), None, "a whole .npz file", "copy it again")
        return str(place)
    if place.suffix in (".tgz", ".gz", ".tar") and place.is_file():
        raise UsageError(str(place), None, "a whole tar archive", "download it again")
    prefix = _PARTS.sub("", str(place))
    index = Path(f"{prefix}.index")
    if not index.is_file():
        if Path(prefix).is_file() and _is_table(Path(prefix)):
            return prefix  # one file, as TensorFlow wrote it before 2016
        what = "there is no " + index.name if place.exists() else "there is nothing there"
        raise UsageError(str(place), None, f"{EXPECTED}; {what}")
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
        text = state.read_text(encoding="utf-8", errors="replace")
        named = re.search(r'^\s*model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        if named is None:
            raise UsageError(str(state), None, "a line model_checkpoint_path", "give the prefix")
        here = folder / named[1]  # an absolute path stays one
        if not Path(f"{here}.index").is_file():  # moved since it was written
            here = folder / Path(named[1]).name
        return _file(here)
    inside = [str(path.relative_to(folder))[: -len(".index")] for path in folder.rglob("*.index")]
    return _file(folder / _only(inside, str(folder), use_average))


def _only(prefixes: Sequence[str], place: str, use_average: bool) -> str:
    """The one checkpoint among `prefixes`; of V3's two, the one that was asked for."""
    prefixes = sorted(set(prefixes))
    if not prefixes:
        raise UsageError(place, None, f"{EXPECTED}; it holds none")
    kinds = {posixpath.basename(posixpath.dirname(Path(p).as_posix())): p for p in prefixes}
    if len(prefixes) == 2 and set(kinds) == {"ema", "pristine"}:
        return kinds["ema" if use_average else "pristine"]
    if len(prefixes) > 1:
        raise UsageError(
            place, None, f"one checkpoint; it holds {shorten(prefixes)}", "give one prefix"
        )
    return prefixes[0]


def _inside(archive: Path, use_average: bool) -> str:
    """The prefix of the one checkpoint in an archive."""
    try:
        return _only(_prefixes(archive), str(archive), use_average)
    except _BROKEN as error:
        raise _broken(archive, error) from None


def _broken(archive: Path, error: BaseException) -> UsageError:
    expected = f"a whole tar archive ({error})"
    return UsageError(str(archive), None, expected, "download it again")


def _from_archive(archive: Path, aside: Path, use_average: bool) -> str:
    prefix = _inside(archive, use_average)
    name = Path(prefix).name
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = posixpath.normpath(member.name)
                if member.isfile() and _PARTS.sub("", path) == prefix and _PARTS.search(path):
                    content = tar.extractfile(member)
                    assert content is not None
                    with (aside / Path(path).name).open("wb") as target:
                        while block := content.read(1 << 20):
                            target.write(block)
    except _BROKEN as error:
        raise _broken(archive, error) from None
    try:
        return _file(aside / name)
    except UsageError as error:
        raise UsageError(f"{archive}: {prefix}", None, error.expected, error.remedy) from None


def _prefixes(archive: Path) -> list[str]:
    """Prefixes of the checkpoints in an archive, after every member was looked at.

    The sizes are those in the headers, summed before the content behind them is unpacked.
    """
    found, total = [], 0
    with tarfile.open(archive, "r|*") as tar:
        for count, member in enumerate(tar):
            path = posixpath.normpath(member.name)
            total += member.size
            if path.startswith("/") or path.split("/")[0] == "..":
                fault = f"members inside it; {member.name!r} leads out of it"
            elif member.issym() or member.islnk():
                fault = f"plain files; {member.name!r} is a link"
            elif not (member.isfile() or member.isdir()):
                fault = f"plain files; {member.name!r} is none"
            elif total > _MOST_BYTES or count >= _MOST_MEMBERS:
                fault = f"at most {_MOST_BYTES >> 30} GiB in {_MOST_MEMBERS} files"
            else:
                if member.isfile() and path.endswith(".index"):
                    found.append(path[: -len(".index")])
                continue
            raise UsageError(str(archive), None, f"an archive of {fault}", "it was not unpacked")
    return found
