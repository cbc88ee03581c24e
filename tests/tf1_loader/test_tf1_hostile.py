"""Archives and checkpoints that were crafted to do harm end in one line, soon and in little
memory.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim

from mobilenet import archives
from mobilenet.errors import UsageError
from mobilenet.tf1_loader import checkpoint, locate
from mobilenet.weights import tf2_object

tf = pytest.importorskip("tensorflow")

MODEL = slim.Slim("mobilenet_v3_small_minimalistic")
DATA = ".data-00000-of-00001"
WEIGHTS = np.arange(72, dtype="<f4").tobytes()  # of one variable of [3, 3, 8]


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught, checkpoint.open_checkpoint(path) as source:
        for name in source.shapes:
            source.read(name)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}") and tempfile.gettempdir() + "/mobilenet-" not in text
    return text


# Archives


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry


def block(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.GNU_FORMAT)


def long_name(name: bytes, count: int = 1) -> bytes:
    padded = name + bytes(-len(name) % 512)
    return (block(member("././@LongLink", len(name), tarfile.GNUTYPE_LONGNAME)) + padded) * count


def negative() -> bytes:
    """A size of -512 in base 256, and the checksum that goes with it."""
    data = bytearray(block(member("b")))
    data[124:136] = (-512).to_bytes(12, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def sparse() -> bytes:
    data = bytearray(block(member("a.index", kind=tarfile.GNUTYPE_SPARSE)))
    data[483:495] = b"%011o\0" % (1 << 30)  # the size with its holes
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "declared": (lambda: block(member("m" + DATA, 900 << 20)), "at most 10 times its size"),
    "too much": (lambda: block(member("m" + DATA, 10**12)), "at most 1,073,741,824 bytes"),
    "long header": (
        lambda: block(member("././@LongLink", 500 << 20, tarfile.GNUTYPE_LONGNAME)),
        "a whole tar archive",
    ),
    "long headers": (lambda: block(member("a")) + long_name(b"n" * (1 << 20), 40), "inflates to"),
    "chained headers": (lambda: block(member("a")) + long_name(b"n", 5000), "recursion"),
    "negative size": (lambda: block(member("a")) + negative(), "'b' is none"),
    "sparse": (lambda: block(member("b")) + sparse(), "'a.index' is none"),
    "twice": (lambda: block(member("a.index")) * 2, "occurs twice"),
    "device": (lambda: block(member("a.index", kind=tarfile.CHRTYPE)), "is none"),
}


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.parametrize("packed", [True, False])
def test_an_archive_is_refused_before_it_is_inflated(
    case: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = ARCHIVES[case]
    path, content = tmp_path / "model.tgz", make() + bytes(1024)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    if case == "long headers" and not packed:
        reason = "a whole tar archive"  # its bytes are there
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    tracemalloc.start()
    start = time.process_time()
    text = refused(path)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in text
    assert seconds < 2 and peak < 100 << 20
    assert not list(folder.iterdir())


def test_a_real_archive_that_inflates_is_refused(tmp_path: Path) -> None:
    """600 MB in 0.6 MB, all of it there."""
    path = tmp_path / "model.tgz"
    one = gzip.compress(block(member("m" + DATA, 600 << 20)), 1)
    zeros = gzip.compress(bytes(60 << 20), 1)
    path.write_bytes(one + zeros * 10)
    start = time.process_time()
    refused(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", ["many streams", "bzip2", "xz", "cut"])
def test_another_compression_is_no_archive(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tgz"
    buffer = io.BytesIO()
    if kind == "many streams":
        buffer.write(gzip.compress(b"") * 200_000)
    elif kind == "cut":
        buffer.write(gzip.compress(block(member("a.index", 9999)) + bytes(9999))[:60])
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind[:2].replace('bz', 'bz2')}") as tar:
            tar.addfile(member("a.index"))
    path.write_bytes(buffer.getvalue())
    start = time.process_time()
    assert "a whole tar archive" in refused(path)
    assert time.process_time() - start < 1


def test_a_message_names_the_archive_and_not_where_it_was_unpacked(tmp_path: Path) -> None:
    prefix = slim.write_checkpoint(tmp_path / "model.ckpt", {"a": np.ones((3, 3), np.float32)})
    members = slim.parts(prefix)
    data = prefix.with_name(prefix.name + DATA).read_bytes()
    flipped = slim.write_archive(
        tmp_path / "a.tgz", {**members, prefix.name + DATA: data[:-1] + b"x"}
    )
    assert refused(flipped).startswith(f"{flipped}: model.ckpt: a: expected undamaged data")
    short = slim.write_archive(tmp_path / "b.tgz", {**members, prefix.name + DATA: data[:-1]})
    assert refused(short).startswith(
        f"{short}: model.ckpt: expected a whole checkpoint (a declares"
    )


def test_no_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slim.write_archive(tmp_path / "a.tgz", {"a.index": b"x"})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with (
        pytest.raises(UsageError, match="temporary folder.*set TMPDIR"),
        locate.checkpoint_prefix(path),
    ):
        pass


# Indices, written here from the description of the format


def crc32c(data: bytes) -> int:
    """Castagnoli's, masked as LevelDB stores it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    head = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return head + (varint(value >> 7) if value > 0x7F else b"")


def table_block(records: Iterable[tuple[bytes, bytes]], restart: int = 0) -> bytes:
    data = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in records
    )
    data += struct.pack("<II", restart, 1) + b"\0"
    return data + struct.pack("<I", crc32c(data))


def table(records: Iterable[tuple[bytes, bytes]], restart: int = 0) -> bytes:
    data = table_block(records, restart)
    handle = varint(0) + varint(len(data) - 5)
    index = table_block([(b"\xff", handle)])
    handles = handle + varint(len(data)) + varint(len(index) - 5)
    return data + index + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def header(shards: int = 1, endianness: int = 0) -> bytes:
    from tensorflow.core.protobuf import tensor_bundle_pb2

    proto = tensor_bundle_pb2.BundleHeaderProto(num_shards=shards, endianness=endianness)
    proto.version.producer = 1
    return bytes(proto.SerializeToString())


def entry(
    shape: Iterable[int] = (3, 3, 8),
    sliced: bool = False,
    unknown_rank: bool = False,
    **fields: int,
) -> bytes:
    from tensorflow.core.protobuf import tensor_bundle_pb2

    values = {"dtype": 1, "size": len(WEIGHTS), "crc32c": crc32c(WEIGHTS), **fields}
    proto = tensor_bundle_pb2.BundleEntryProto(**values)
    for size in shape:
        proto.shape.dim.add(size=size)
    proto.shape.unknown_rank = unknown_rank
    if sliced:
        proto.slices.add().extent.add()
    return bytes(proto.SerializeToString())


def written(folder: Path, index: bytes) -> Path:
    (folder / "m.index").write_bytes(index)
    (folder / f"m{DATA}").write_bytes(WEIGHTS)
    return folder / "m"


SOUND = [(b"", header()), (b"a", entry())]
INDICES: dict[str, tuple[Callable[[], bytes], str]] = {
    "huge": (lambda: table([SOUND[0], (b"a", entry((1 << 40, 1 << 20)))]), "a declares"),
    "huge and sized": (
        lambda: table([SOUND[0], (b"a", entry((1 << 40,), size=1 << 42))]),
        "after the end of its data file",
    ),
    "offset": (lambda: table([SOUND[0], (b"a", entry(offset=4))]), "after the end"),
    "negative offset": (lambda: table([SOUND[0], (b"a", entry(offset=-4))]), "after the end"),
    "negative axes": (lambda: table([SOUND[0], (b"a", entry((-9, -8)))]), "no fixed shape"),
    "no rank": (lambda: table([SOUND[0], (b"a", entry((), unknown_rank=True))]), "no fixed shape"),
    "many axes": (lambda: table([SOUND[0], (b"a", entry([1] * 300))]), "no fixed shape"),
    "bytes shared": (
        lambda: table([*SOUND, (b"b", entry())]),
        "variables of more bytes than the data files",
    ),
    "slices": (lambda: table([SOUND[0], (b"a", entry(sliced=True))]), "a is partitioned"),
    "reference": (lambda: table([SOUND[0], (b"a", entry(dtype=101))]), "a is a reference"),
    "unknown type": (lambda: table([SOUND[0], (b"a", entry(dtype=9999))]), "an unknown type"),
    "strings": (lambda: table([SOUND[0], (b"a", entry((1,), dtype=7))]), "a declares strings"),
    "many strings": (lambda: table([SOUND[0], (b"a", entry((10**9,), dtype=7))]), "a declares"),
    "other shard": (lambda: table([SOUND[0], (b"a", entry(shard_id=1))]), "data file 1 of 1"),
    "no shard": (lambda: table([(b"", header(1 << 30)), SOUND[1]]), "no m.data-00000-of-"),
    "big-endian": (lambda: table([(b"", header(1, 1)), SOUND[1]]), "big-endian"),
    "no header": (lambda: table(SOUND[1:]), "no header"),
    "nothing": (lambda: table([]), "no header"),
    "order": (lambda: table([*SOUND, (b"A", entry())]), "out of order"),
    "twice": (lambda: table([*SOUND, SOUND[1]]), "out of order"),
    "no proto": (lambda: table([SOUND[0], (b"a", b"\xff" * 9)]), "a whole checkpoint"),
    "no text": (lambda: table([SOUND[0], (b"\xff\xfe", entry())]), "is no name"),
    "long name": (lambda: table([SOUND[0], (b"n" * 2000, entry())]), "longer than its block"),
    "restart": (lambda: table(SOUND, restart=3), "a restart inside an entry"),
    "lost block": (lambda: table(SOUND)[20:], "a whole checkpoint"),
    "long": (lambda: bytes(9 << 20) + table(SOUND), "bytes of index"),
}


def test_a_sound_index_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, table(SOUND))
    with checkpoint.open_checkpoint(path) as source:
        assert source.shapes == {"a": (3, 3, 8)}
        np.testing.assert_array_equal(source.read("a").ravel(), np.arange(72))
    assert not tf2_object.is_tf2_checkpoint(path)


@pytest.mark.parametrize("case", INDICES)
def test_an_index_is_refused_before_anything_is_allocated(case: str, tmp_path: Path) -> None:
    make, reason = INDICES[case]
    path = written(tmp_path, make())
    start = time.process_time()
    assert reason in refused(path)
    assert time.process_time() - start < 1


def test_a_pipe_instead_of_a_data_file_is_not_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path, table(SOUND))
    (tmp_path / f"m{DATA}").unlink()
    os.mkfifo(tmp_path / f"m{DATA}")
    assert "no m.data" in refused(path)


def test_no_damage_of_an_index_ends_the_process(tmp_path: Path) -> None:
    """Bytes zeroed, removed and changed, with and without the checksum that goes with them."""
    draw = random.Random(0)
    records = [*SOUND, *((b"b%02d" % i, entry((0,), size=0, crc32c=0)) for i in range(20))]
    whole = table(records)
    size = len(table_block(records))
    for round_ in range(300):
        data = bytearray(whole)
        start, length = draw.randrange(len(data)), draw.choice((1, 16, 200))
        if round_ % 3 == 0:
            del data[start : start + length]
        elif round_ % 3 == 1:
            data[start : start + length] = bytes(length)
        else:
            for _ in range(draw.choice((1, 2, 5))):
                data[draw.randrange(size - 5)] = draw.choice((0, 1, 127, 128, 255))
            data[size - 4 : size] = struct.pack("<I", crc32c(bytes(data[: size - 4])))
        try:
            with checkpoint.open_checkpoint(written(tmp_path, bytes(data))) as source:
                for name in source.shapes:
                    source.read(name)
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_checkpoint_in_one_file_declares_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("a", (3, 3), initializer=v1.ones_initializer(), use_resource=False)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=v1.train.SaverDef.V1)
        saver.save(session, str(tmp_path / "old"), write_meta_graph=False, write_state=False)
    with checkpoint.open_checkpoint(tmp_path / "old") as source:
        np.testing.assert_array_equal(source.read("a"), np.ones((3, 3)))
    monkeypatch.setattr(archives, "MAX_RATIO", 0.1)
    assert "variables of 36 bytes, more than the file holds" in refused(tmp_path / "old")


@pytest.mark.parametrize("case", ["objects", "records", "inflates"])
def test_an_npz_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "objects": np.array([{}]),
        "records": np.zeros(2, [("x", "f4"), ("y", "f4")]),
        "inflates": np.zeros(40 << 20, np.uint8),
    }
    np.savez_compressed(tmp_path / "model.npz", a=arrays[case])
    reasons = {"objects": "Python objects", "records": "undamaged data", "inflates": "20 times"}
    assert reasons[case] in refused(tmp_path / "model.npz")
