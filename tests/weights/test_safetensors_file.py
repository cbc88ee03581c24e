"""safetensors files that anyone may have written: refused in one line, before anything is large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from timm_files import entry, raw, v1_state, write

from mobilenet.errors import UsageError
from mobilenet.weights import safetensors_file

VALID = {"a": entry(0, 16), "b": entry(16, 32)}
HOSTILE = {
    "a header of 2^63 bytes": raw(b"{}", length=2**63),
    "a header of 2^64 - 1 bytes": raw(b"{}", length=2**64 - 1),
    "a header longer than the file": raw(b"{}", length=1_000_000),
    "empty": b"",
    "a header cut off": raw(VALID)[:20],
    "truncated": raw(VALID, b"\0" * 24),
    "more than the header names": raw(VALID, b"\0" * 40),
    "overlapping offsets": raw({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
    "a gap": raw({"a": entry(0, 16), "b": entry(20, 36)}, b"\0" * 36),
    "offsets beyond the file": raw({"a": entry(0, 2**62, shape=[2**60])}, b"\0" * 16),
    "a shape of 2^62 values": raw({"a": entry(0, 16, shape=[2**31, 2**31])}, b"\0" * 16),
    "a negative shape": raw({"a": entry(0, 16, shape=[-4])}, b"\0" * 16),
    "a shape that is text": raw({"a": {**entry(0, 16), "shape": "4"}}, b"\0" * 16),
    "another type": raw({"a": entry(0, 16, "F8_E4M3", [16])}, b"\0" * 16),
    "an unknown type": raw({"a": entry(0, 16, "PICKLE")}, b"\0" * 16),
    "a type that is a list": raw({"a": {**entry(0, 16), "dtype": ["F32"]}}, b"\0" * 16),
    "a name twice": raw(
        b'{"a":%b,"a":%b}' % ((b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}',) * 2),
        b"\0" * 16,
    ),
    "no object": raw(b"[]"),
    "no JSON": raw(b"{'a': 1}"),
    "too deep": raw(b'{"a":' * 500 + b"1" + b"}" * 500),
    "too many tensors": raw({str(n): entry(0, 0) for n in range(20_001)}),
    "NaN": raw({"a": entry(0, 4)}, np.float32("nan").tobytes()),
    "a pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'id'\ntR." * 4,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UsageError) as error:
        safetensors_file.read_tensors(path)
    line = str(error.value)
    assert "model.safetensors" in line and "\n" not in line and len(line) < 600


def test_sizes_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(safetensors_file.MAX_BYTES + 1)  # sparse
    with pytest.raises(UsageError, match="at most 1073741824"):
        safetensors_file.read_shapes(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl"])
def test_pickles_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(HOSTILE["a pickle"])
    with pytest.raises(UsageError, match="is a pickle, which can run code"):
        safetensors_file.read_tensors(path)


def test_types_become_float32(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 0.15625], np.float32)
    bfloat16 = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = {
        "half": entry(0, 6, "F16", [3]),
        "bfloat": entry(6, 12, "BF16", [3, 1]),
        "double": entry(12, 36, "F64", [3]),
        "steps": entry(36, 44, "I64", []),
    }
    data = values.astype(np.float16).tobytes() + bfloat16 + values.astype(np.float64).tobytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw(header, data + np.int64(3).tobytes()))
    read = safetensors_file.read_tensors(path)
    assert read.keys() == {"half", "bfloat", "double"}
    for name, array in read.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.ravel(), values, err_msg=name)
    assert read["bfloat"].shape == (3, 1)


def test_a_whole_state_dict_is_read(tmp_path: Path) -> None:
    state = v1_state()
    path = write(tmp_path / "model.safetensors", state)
    read = safetensors_file.read_tensors(path)
    assert safetensors_file.read_shapes(path) == {n: a.shape for n, a in state.items()}
    for name, array in read.items():
        np.testing.assert_array_equal(array, state[name])
