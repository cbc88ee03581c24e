"""Damage inside containers whose own checksums and structure stay true, so that it is reached:
archives, TensorFlow's tables and records, protocol buffers, packed files, PNG and HDF5."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz import mutations

_BOMB = 1 << 26  # bytes of a member that packs to a thousandth
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
_PACKED = struct.Struct("<8sIIIQ32s")  # docs/packed.md
_CRC_MASK = 0xA282EAD8
_EXTREMES: tuple[Any, ...] = (0, 1, -1, 7, 127, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)


# Zip files: .keras, .npz


def damaged_zip(rng: random.Random, data: bytes) -> bytes:
    """An archive with sound checksums and one odd member; one time in four, noise."""
    if rng.random() < 0.25:
        return mutations.noise(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    documents = [i for i, (name, _) in enumerate(members) if name.endswith(".json")]
    index = (
        rng.choice(documents) if documents and rng.random() < 0.6 else rng.randrange(len(members))
    )
    name, content = members[index]
    action = rng.random()
    if action < 0.75:
        members[index] = name, _damaged_member(rng, name, content)
    elif action < 0.8:
        del members[index]
    elif action < 0.85:
        members.append((name, rng.choice((content, b"", mutations.noise(rng, content)))))
    elif action < 0.9:
        members[index] = rng.choice((f"../{name}", f"/{name}", name * 40, name.upper())), content
    elif action < 0.93:
        members[index] = name, bytes(_BOMB)
    else:
        members[index] = name, members[rng.randrange(len(members))][1]
    return zipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; of members of one name all remain."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members:
            how = zipfile.ZIP_DEFLATED if len(content) >= _BOMB else method
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            if entry.filename in archive.NameToInfo:  # `writestr` would warn
                del archive.NameToInfo[entry.filename]
            archive.writestr(entry, content, how)
    return packed.getvalue()


def _damaged_member(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json"):
        return mutations.damaged_json(rng, content)
    if name.endswith(".npy"):
        return damaged_npy(rng, content)
    if name.endswith(".h5"):
        return damaged_h5(rng, content)
    return mutations.noise(rng, content)


def damaged_npy(rng: random.Random, content: bytes) -> bytes:
    """An array with an odd header, or of odd values."""
    if rng.random() < 0.3:
        return mutations.noise(rng, content)
    length = struct.unpack_from("<H", content, 8)[0]
    header, body = content[10 : 10 + length].rstrip(), content[10 + length :]
    if rng.random() < 0.3:
        body = rng.choice((b"\0", b"\xff", b"\x7f\x80")) * len(body)
    else:
        old, new = rng.choice(
            (
                (b"<f4", rng.choice((b"<f8", b"<i4", b"|O", b"|S9", b"<U1", b">f4", b"<M8[s]"))),
                (
                    b"'shape': (",
                    rng.choice((b"'shape': (9, ", b"'shape': (-1, ", b"'shape': (0, ")),
                ),
                (b"'shape': (", b"'shape': (99999999999, "),
                (b"'shape': (", b"'shape': (" + b"1, " * 70),
                (b"False", b"True"),
                (b"{", b"("),
                (b"'descr'", b"'other'"),
                (b"}", b", 'more': " + b"[" * 200 + b"]" * 200 + b"}"),
            )
        )
        header = header.replace(old, new)
    return content[:8] + struct.pack("<H", len(header) + 1) + header + b"\n" + body


# Tar archives


def damaged_tar(rng: random.Random, data: bytes) -> bytes:
    """A packed tar archive with an odd member or entry; one time in four, noise."""
    if rng.random() < 0.25:
        return mutations.noise(rng, data)
    entries: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            entries.append((entry, content.read() if content else b""))
    index = rng.randrange(len(entries))
    entry, content = entries[index]
    action = rng.random()
    if action < 0.35:
        content = mutations.noise(rng, content)
    elif action < 0.55:
        name = entry.name
        odd = (f"../{name}", f"/tmp/{name}", f"a/../{name}", "", name * 60, f"{name}\n", ".", "\0")
        entry.name = rng.choice(odd)
    elif action < 0.75:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
        entry.type = rng.choice((*kinds, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, b"9"))
        entry.linkname = rng.choice(("/etc/hostname", "../..", entry.name, ""))
    elif action < 0.85:
        entries.append(entries[rng.randrange(len(entries))])
    else:
        del entries[index]
    if index < len(entries) and entries[index][0] is entry:
        entries[index] = entry, content
    return _tarred(entries, rng)


def _tarred(entries: Sequence[tuple[tarfile.TarInfo, bytes]], rng: random.Random) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=rng.choice(("w", "w:gz", "w:bz2"))) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            if rng.random() < 0.05:  # the next header is looked for in the wrong position
                archive.offset += rng.choice((-512, 512, 100))
    return packed.getvalue()


# Protocol buffers


def damaged_message(rng: random.Random, message: Any) -> None:
    """Changes one field, of any depth, of a protocol buffer: another value, absent, or doubled."""
    fields = list(_fields(message))
    if not fields:
        return
    holder, field = rng.choice(fields)
    value = getattr(holder, field.name)
    if hasattr(value, "append") or hasattr(value, "add"):  # a repeated field
        _change_items(rng, value)
    elif hasattr(value, "keys") or field.message_type is not None or rng.random() < 0.2:
        holder.ClearField(field.name)
    else:
        _assign(rng, holder, field.name, value)


def _fields(message: Any) -> Any:
    """Every field that is set, of the message and of those in it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is None:
            continue
        if hasattr(value, "keys"):
            inner = [value[key] for key in value if hasattr(value[key], "ListFields")]
        else:
            inner = list(value) if hasattr(value, "add") else [value]
        for part in inner:
            yield from _fields(part)


def _change_items(rng: random.Random, items: Any) -> None:
    index, action = rng.randrange(len(items)), rng.random()
    if action < 0.4:
        del items[index]
    elif action < 0.6:
        items.append(items[index])
    elif hasattr(items, "add"):
        items.add()
    else:
        odd = _odd_like(rng, items[index])
        try:
            items[index] = odd
        except (ValueError, TypeError):
            del items[:]


def _assign(rng: random.Random, holder: Any, name: str, value: Any) -> None:
    try:
        setattr(holder, name, _odd_like(rng, value))
    except (ValueError, TypeError):  # out of the field's range
        holder.ClearField(name)


def _odd_like(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*_EXTREMES, value + 1, -value))
    if isinstance(value, float):
        return rng.choice((0.0, -value, float("nan"), float("inf"), 1e300))
    if isinstance(value, bytes):
        return mutations.noise(rng, value)
    return rng.choice(("", value + "x", "x" * 5000, "../x", value.upper(), "\x1b[2J"))


# TensorFlow: checksums, records, the sorted table of a checkpoint's index


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def masked_crc(data: bytes) -> bytes:
    """CRC-32C as TensorFlow stores it (tsl/lib/hash/crc32c.h)."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF)


def records(data: bytes) -> list[bytes]:
    """The payloads of a TFRecord file."""
    payloads, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<Q", data, position)
        payloads.append(data[position + 12 : position + 12 + size])
        position += size + 16
    return payloads


def framed(payload: bytes, size: int | None = None) -> bytes:
    """One record with true checksums; `size` is what its head claims."""
    head = struct.pack("<Q", len(payload) if size is None else size)
    return head + masked_crc(head) + payload + masked_crc(payload)


def damaged_records(rng: random.Random, data: bytes) -> bytes:
    """Records with sound framing and one odd example, or unsound framing; sometimes noise."""
    action = rng.random()
    if action < 0.2:
        return mutations.noise(rng, data)
    payloads = records(data)
    index = rng.randrange(len(payloads))
    sizes: list[int | None] = [None] * len(payloads)
    if action < 0.3:
        sizes[index] = rng.choice((0, 1, 2**31, 2**62, 2**63, 2**64 - 1, len(payloads[index]) + 1))
    elif action < 0.5:
        payloads[index] = mutations.noise(rng, payloads[index])
    else:
        payloads[index] = _damaged_example(rng, payloads[index])
    return b"".join(map(framed, payloads, sizes))


def _damaged_example(rng: random.Random, payload: bytes) -> bytes:
    import tensorflow as tf

    example = tf.train.Example.FromString(payload)
    feature = example.features.feature
    key = rng.choice(sorted(feature))
    if rng.random() < 0.3:
        content = feature["image/encoded"].bytes_list.value
        content[0] = mutations.noise(rng, content[0])
    elif rng.random() < 0.3:
        label = feature["image/class/label"].int64_list.value
        label[0] = rng.choice((-1, 0, 5, 999, 2**31, 2**62, -(2**63), 2**63 - 1))
    elif rng.random() < 0.3:
        feature[key].CopyFrom(feature[rng.choice(sorted(feature))])
    elif rng.random() < 0.3:
        feature[key].float_list.value[:] = [1.5, float("nan")]
    else:
        damaged_message(rng, example)
    return bytes(example.SerializeToString())


def damaged_table(rng: random.Random, data: bytes) -> bytes:
    """The index of a checkpoint with true checksums and one odd entry; one time in four, noise.

    Its other files get noise.
    """
    if not data.endswith(_TABLE_MAGIC) or rng.random() < 0.25:
        return mutations.noise(rng, data)
    (_, handle), *_ = _entries(_block(data, _footer(data)[1]))
    start, size = _handle(handle)
    if rng.random() < 0.3:  # the block itself: restarts, prefixes, lengths
        content = mutations.noise(rng, data[start : start + size] or b"\0")
        content = content[:size].ljust(size, b"\0")
        sealed = content + b"\0" + masked_crc(content + b"\0")
        return data[:start] + sealed + data[start + len(sealed) :]
    entries = _entries(data[start : start + size])
    _damage_entry(rng, entries)
    return _table(entries)


def _damage_entry(rng: random.Random, entries: list[tuple[bytes, bytes]]) -> None:
    from tensorflow.core.protobuf import tensor_bundle_pb2

    index = rng.randrange(len(entries)) if rng.random() < 0.8 else 0
    name, value = entries[index]
    action = rng.random()
    if action < 0.6:
        kind = tensor_bundle_pb2.BundleEntryProto if name else tensor_bundle_pb2.BundleHeaderProto
        message = kind.FromString(value)
        damaged_message(rng, message)
        entries[index] = name, message.SerializeToString()
    elif action < 0.7:
        entries[index] = name, mutations.noise(rng, value)
    elif action < 0.85:
        odd = (name + b"x", name.upper(), b"\xff\xfe", name + b"\0", name * 50, b"a\nb", b"\x1b[2J")
        entries[index] = rng.choice(odd), value
        if rng.random() < 0.9:
            entries.sort()
    elif action < 0.95:
        del entries[index]
    else:
        entries[index] = name, entries[rng.randrange(len(entries))][1]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _handle(data: bytes, position: int = 0) -> tuple[int, int]:
    start, position = _varint(data, position)
    return start, _varint(data, position)[0]


def _footer(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Handles of the two index blocks, in the last 48 bytes."""
    foot = data[-48:]
    meta, position = _varint(foot, 0)
    size, position = _varint(foot, position)
    return (meta, size), _handle(foot, position)


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    return data[handle[0] : handle[0] + handle[1]]


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """Keys, which share prefixes, and values of a block."""
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    entries, position, key = [], 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        size, position = _varint(block, position)
        key = key[:shared] + block[position : position + rest]
        position += rest
        entries.append((key, block[position : position + size]))
        position += size
    return entries


def _block_of(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        b"\0" + _as_varint(len(key)) + _as_varint(len(value)) + key + value
        for key, value in entries
    )
    return body + struct.pack("<II", 0, 1)


def _table(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A sorted table of one block."""
    data, handles = b"", []
    content = _block_of(entries)
    last = entries[-1][0] if entries else b""
    for _ in range(3):  # entries, an empty index of metadata, the index
        handles.append(_as_varint(len(data)) + _as_varint(len(content)))
        data += content + b"\0" + masked_crc(content + b"\0")
        content = _block_of([]) if len(handles) == 1 else _block_of([(last, handles[0])])
    return data + (handles[1] + handles[2]).ljust(40, b"\0") + _TABLE_MAGIC


# Flatbuffers


def damaged_flatbuffer(rng: random.Random, data: bytes) -> bytes:
    """A flatbuffer that is packed anew with one odd field; one time in three, noise."""
    from mobilenet.tflite import editor

    if rng.random() < 0.33:
        return mutations.noise(rng, data)
    model = editor.open_flatbuffer(data)
    if rng.random() < 0.15:  # the task metadata, a flatbuffer of its own
        buffer = model.buffers[model.metadata[-1].buffer]
        buffer.data = list(mutations.noise(rng, bytes(buffer.data)))
    else:
        holder, name = rng.choice(list(_members(model)))
        setattr(holder, name, _odd_member(rng, getattr(holder, name)))
    try:
        return editor.pack_flatbuffer(model)
    except (struct.error, TypeError, AttributeError, ValueError, IndexError, OverflowError):
        return mutations.noise(rng, data)  # no flatbuffer can hold it


def _members(table: Any) -> Any:
    """Every field of a table and of those in it; of buffers, which are many, hardly any."""
    for name, value in vars(table).items():
        if value is None or name in ("buffers", "data"):
            continue
        yield table, name
        for part in value if isinstance(value, list) else [value]:
            if type(part).__name__.endswith("T"):
                yield from _members(part)


def _odd_member(rng: random.Random, value: Any) -> Any:
    if isinstance(value, (bool, int, float, bytes)):
        return _odd_like(rng, value)
    if not hasattr(value, "__len__") or rng.random() < 0.15:
        return None
    items = list(value)
    index = rng.randrange(len(items)) if items else 0
    action = rng.random()
    if action < 0.2 and items:
        del items[index]
    elif action < 0.4 and items:
        items.insert(index, items[index])
    elif items and not type(items[index]).__name__.endswith("T"):
        items[index] = _odd_like(rng, items[index].item())
    else:
        rng.shuffle(items)
    return items


# Packed models, PNG, HDF5


def damaged_packed(rng: random.Random, data: bytes) -> bytes:
    """A packed model with a true digest and an odd header or body; one time in four, noise."""
    if rng.random() < 0.25:
        return mutations.noise(rng, data)
    magic, version, packed, plain, body_size, _ = _PACKED.unpack_from(data)
    text = zlib.decompress(data[_PACKED.size : _PACKED.size + packed])
    body = data[_PACKED.size + packed :]
    action = rng.random()
    if action < 0.6:
        text = mutations.damaged_json(rng, text)
        plain = len(text)
    elif action < 0.9:
        body = mutations.noise(rng, body)
        body_size = len(body) if rng.random() < 0.8 else body_size
        if rng.random() < 0.7:  # one array longer or shorter, so that the sizes agree
            text = _resized(rng, text, len(body))
            plain = len(text)
    elif action < 0.93:
        text = bytes(_BOMB)
    else:
        plain = rng.choice((0, 1, 2**31, 2**32 - 1))
    header = zlib.compress(text)
    fields = struct.pack("<8sIIIQ", magic, version, len(header), plain, body_size)
    digest = hashlib.sha256(fields + header + body).digest()
    return fields + digest + header + body


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with an odd header; one time in four, noise."""
    if rng.random() < 0.25:
        return mutations.noise(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    text, body = data[8 : 8 + length], data[8 + length :]
    header = json.loads(text)
    name, action = rng.choice(sorted(header)), rng.random()
    if action < 0.5:  # one of some hundred tensors, which `odd_json` would rarely choose
        header[name] = mutations.odd_json(rng, header[name])
    elif action < 0.7:
        header[rng.choice(("bn1.weight", "x", "blocks.9.9.conv.weight", name))] = header.pop(name)
    else:
        header[name] |= {rng.choice(("dtype", "shape", "data_offsets")): mutations.odd(rng)}
    text = mutations.json_text(rng, header).encode("utf-8", "surrogatepass")
    size = len(text) if rng.random() < 0.9 else rng.choice((0, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + text + body


def _resized(rng: random.Random, text: bytes, size: int) -> bytes:
    header = json.loads(text)
    arrays = header["arrays"]
    entry = rng.choice(arrays)
    entry[5] += size - sum(array[5] for array in arrays)
    return json.dumps(header).encode()


def damaged_png(rng: random.Random, data: bytes) -> bytes:
    """A PNG with true checksums and an odd chunk."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        chunks.append((kind, data[position + 8 : position + 8 + size]))
        position += 12 + size
    index = rng.choice((0, rng.randrange(len(chunks))))
    kind, content = chunks[index]
    if kind == b"IHDR" and rng.random() < 0.6:
        sides = rng.choice(
            ((0, 1), (2**31 - 1,) * 2, (30_000, 30_000), (9000, 9000), (1, 2**31 - 1))
        )
        content = struct.pack(">II", *sides) + content[8:]
    elif content:
        content = mutations.noise(rng, content)
    chunks[index] = kind, content
    if rng.random() < 0.1:
        chunks.insert(
            1, (rng.choice((b"iCCP", b"zTXt", b"acTL", b"PLTE", b"eXIf")), rng.randbytes(40))
        )
    sealed = [
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    ]
    return data[:8] + b"".join(sealed)


def damaged_h5(rng: random.Random, data: bytes) -> bytes:
    """An HDF5 file with an odd attribute or array; one time in three, noise."""
    import h5py

    if rng.random() < 0.33:
        return mutations.noise(rng, data)
    file = io.BytesIO(data)
    with h5py.File(file, "r+") as root:
        attributes, arrays = _h5_parts(root)
        if "model_config" in root.attrs and rng.random() < 0.6:
            text = root.attrs["model_config"]
            root.attrs["model_config"] = _h5_text(mutations.damaged_json(rng, text.encode()))
        elif attributes and rng.random() < 0.4:
            holder, name = rng.choice(attributes)
            value = rng.choice(("", "x", 3, float("nan"), [b"a", b"b"], [[1, 2]]))
            holder.attrs[name] = value
            if rng.random() < 0.3:
                del holder.attrs[name]
        elif arrays:
            _damage_array(rng, rng.choice(arrays))
    return file.getvalue()


def _h5_text(content: bytes) -> Any:
    """What an attribute can hold of it: no NUL, at most 64 kB."""
    return content.replace(b"\0", b"")[:60_000] or b" "


def _h5_parts(root: Any) -> tuple[list[tuple[Any, str]], list[Any]]:
    import h5py

    attributes, arrays = [(root, name) for name in root.attrs], []

    def visit(_: str, item: Any) -> None:
        attributes.extend((item, name) for name in item.attrs)
        if isinstance(item, h5py.Dataset):
            arrays.append(item)

    root.visititems(visit)
    return attributes, arrays


def _damage_array(rng: random.Random, array: Any) -> None:
    import numpy as np

    parent, name, values = array.parent, array.name, array[()]
    if rng.random() < 0.3:
        array[...] = rng.choice((float("nan"), float("inf"), 1e30, 0))
        return
    del parent[name]
    action = rng.random()
    if action < 0.3:
        parent[name] = values.astype(rng.choice(("f8", "i4", "S4", "f2")))
    elif action < 0.6:
        parent[name] = values.reshape(-1)[: rng.choice((0, 1, 3))]
    elif action < 0.7:
        parent.create_dataset(name, (2**40,), np.float32)  # takes no bytes in the file
    elif action < 0.8:
        parent.create_group(name)


def rewritten(path: Path, change: mutations.Change, rng: random.Random) -> None:
    """Damages a file in its folder."""
    path.write_bytes(change(rng, path.read_bytes()))
