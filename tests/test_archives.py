"""Zip and `.npz` files are checked by their headers before anything is decompressed."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilenet import archives
from mobilenet.errors import UsageError

ONES = np.ones((2, 3), np.float32)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def header_of(descr: str, shape: object) -> bytes:
    """A version 1.0 header, by numpy's description of the format."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def zipped(
    path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(function: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    arrays = {
        "a/b": ONES,
        "half": np.arange(5, dtype=np.float16),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.array(7),
        "empty": np.zeros((0, 4)),
        "text": np.array(["x", "yz"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        assert archives.npz_shapes(tmp_path / "a.npz") == {n: a.shape for n, a in arrays.items()}
        loaded = archives.load_npz(tmp_path / "a.npz")
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert loaded[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[name], array)


MEMBERS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "objects": ([("a.npy", npy(np.array([{}]), allow_pickle=True))], "holds Python objects"),
    "more than there is": ([("a.npy", header_of("'<f4'", (10**9, 10**6)) + bytes(8))], "declares"),
    "less than there is": ([("a.npy", npy(ONES) + b"more")], "declares (2, 3) of float32"),
    "negative": ([("a.npy", header_of("'<f4'", (-1, -6)) + bytes(24))], "declares"),
    "no bytes an element": ([("a.npy", header_of("'|V0'", (10**12,)))], "declares"),
    "nested header": ([("a.npy", header_of("'<f4'", "(" * 5000))], "an .npz"),
    "twice": ([("a.npy", npy(ONES)), ("a.npy", npy(ONES))], "'a.npy' occurs twice"),
    "no array": ([("a.npy", npy(ONES)), ("run.py", b"x")], "'run.py' is not expected in it"),
    "text as array": ([("a.npy", b"no array at all")], "magic"),
    "nothing": ([("a.npy", b"")], "an .npz"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_member_that_is_no_array_is_refused(case: str, tmp_path: Path) -> None:
    members, reason = MEMBERS[case]
    path = zipped(tmp_path / "a.npz", members)
    error = refused(lambda: archives.load_npz(path, "an .npz of weights", "save it again"))
    assert error.startswith(f"{path}: expected an .npz of weights (")
    assert error.endswith("; save it again")
    assert reason in error


def bomb(path: Path) -> Path:
    """90 MiB of zeros in 92 kB."""
    content = header_of("'<f4'", (90 << 18,)) + bytes(90 << 20)
    return zipped(path, [("a.npy", content)], zipfile.ZIP_DEFLATED)


def test_a_file_that_inflates_is_refused_unread(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.npz")
    tracemalloc.start()
    start = time.process_time()
    error = refused(lambda: archives.load_npz(path))
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "94,37" in error and "at most 20 times as many" in error
    assert seconds < 0.5 and peak < 2 << 20
    archives.check_zip(path, max_ratio=2000)
    assert "at most 1,000" in refused(lambda: archives.check_zip(path, max_total_bytes=1000))


def test_members_that_share_their_bytes_are_counted_each(tmp_path: Path) -> None:
    """The ratio is to the bytes of the file, whatever each member declares as compressed."""
    path = zipped(tmp_path / "a.zip", [("a", bytes(40 << 20))], zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    start = data.rfind(b"PK\1\2")
    end = data.rfind(b"PK\5\6")
    entry = data[start:end]
    names = b"bcdefghi"
    entries = entry + b"".join(entry[:46] + bytes([n]) + entry[47:] for n in names)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    assert len(zipfile.ZipFile(path).infolist()) == 9
    assert "377,487,360 bytes" in refused(lambda: archives.check_zip(path))


def listed_often(path: Path) -> Path:
    """An archive whose list of members is 4 MB long."""
    data = zipped(path, [("a", b"")]).read_bytes()
    start, end = data.rfind(b"PK\1\2"), data.rfind(b"PK\5\6")
    entries = data[start:end] * (4_000_000 // (end - start))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    return path


def encrypted(path: Path) -> Path:
    data = bytearray(zipped(path, [("a", b"abc")]).read_bytes())
    data[data.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def zip64(path: Path) -> Path:
    data = zipped(path, [("a", b"abc")]).read_bytes()
    end = data.rfind(b"PK\5\6")
    path.write_bytes(data[:end] + b"PK\6\7" + bytes(16) + data[end:])
    return path


def stored_larger(path: Path) -> Path:
    data = bytearray(zipped(path, [("a", b"abc")]).read_bytes())
    data[data.rfind(b"PK\1\2") + 24] += 1
    path.write_bytes(data)
    return path


def linked(path: Path) -> Path:
    member = zipfile.ZipInfo("a")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "/etc/passwd")
    return path


def cut(path: Path) -> Path:
    path.write_bytes(zipped(path, [("a", b"abc" * 100)]).read_bytes()[:-30])
    return path


def text(path: Path) -> Path:
    path.write_text("no archive")
    return path


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "many members": (listed_often, "more than 10,000 members"),
    "encrypted": (encrypted, "'a' is encrypted"),
    "Zip64": (zip64, "Zip64"),
    "stored size": (stored_larger, "'a' has 3 bytes instead of 4"),
    "link": (linked, "'a' is a link"),
    "bzip2": (lambda p: zipped(p, [("a", b"abc")], zipfile.ZIP_BZIP2), "than deflate"),
    "lzma": (lambda p: zipped(p, [("a", b"abc")], zipfile.ZIP_LZMA), "than deflate"),
    "cut": (cut, "no zip file"),
    "text": (text, "no zip file"),
    "absent": (lambda p: p, "No such file"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_zip_file_is_one_line(case: str, tmp_path: Path) -> None:
    make, reason = FILES[case]
    path = make(tmp_path / "a.zip")
    error = refused(lambda: archives.check_zip(path))
    assert error.startswith(f"{path}: expected a whole zip file (")
    assert reason in error


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    assert "no plain file" in refused(lambda: archives.load_npz(tmp_path / "a.npz"))
    assert "no plain file" in refused(lambda: archives.load_npz(tmp_path))


def test_names_are_those_that_are_expected(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.keras", [("config.json", b"{}"), ("assets/x", b"")])
    archives.check_zip(path, names=r"config\.json|assets/\w+")
    assert "'assets/x' is not expected" in refused(
        lambda: archives.check_zip(path, names=r"config\.json|model\.weights\.h5")
    )


def test_every_changed_byte_is_loaded_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=ONES, b=np.arange(300))
    whole = path.read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x81
        path.write_bytes(damaged)
        try:
            archives.load_npz(path)
        except UsageError as error:
            assert "\n" not in str(error)


def test_bytes_before_the_archive_are_refused(tmp_path: Path) -> None:
    """zipfile skips them; numpy takes the file for a pickle."""
    np.savez(tmp_path / "x.npz", a=np.zeros(3, np.float32))
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(b"junk" + content)
    with pytest.raises(UsageError, match="other bytes before the first member"):
        archives.npz_shapes(tmp_path / "x.npz")
