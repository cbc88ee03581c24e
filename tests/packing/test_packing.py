"""The packed model: bits are preserved, sizes reach the entropy, and no file is trusted."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_models import families

from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.packing import array_codec, container, entropy_coding
from mobilenet.reporting import packed_size as reports

PREAMBLE = struct.Struct("<8sIIIQ32s")
MAGIC, VERSION = b"\x89MNPACK\n", 2


def there_and_back(array: np.ndarray[Any, Any]) -> int:
    """Bytes of an array that was unpacked bit by bit."""
    data = array_codec.pack_array(array)
    back = array_codec.unpack_array(data, str(array.dtype), array.shape)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    return len(data)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=300),
    st.integers(0, 4000),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
@example([], 500, 0.5, 0)  # no codebook: all zeros
@example([0x80000000], 9, 1.0, 0)  # -0.0 alone
@example([1, 0x7F7FFFFF, 0xFF7FFFFF, 0x007FFFFF], 50, 0.3, 1)  # least, largest, denormal
def test_layers_are_unpacked_bit_by_bit(
    book: list[int], size: int, share: float, seed: int
) -> None:
    """Any codebook of any bits, any share of zeros."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([*book, 0] if book else [0], np.uint32), size)
    values[rng.random(size) > share] = 0
    there_and_back(values.view(np.float32))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3000), st.sampled_from(array_codec.DTYPES), st.integers(0, 2**32 - 1))
def test_arrays_of_every_type_are_unpacked_unchanged(size: int, dtype: str, seed: int) -> None:
    raw = np.random.default_rng(seed).bytes(size * np.dtype(dtype).itemsize)
    array = np.frombuffer(raw, np.uint8) % 2 == 1 if dtype == "bool" else np.frombuffer(raw, dtype)
    there_and_back(array)


@pytest.mark.parametrize("paths", [[], [0], [9999], [4094], [4095], [4096], [0, 8191], [1, 8192]])
def test_long_runs_of_zeros_are_unpacked_unchanged(paths: list[int]) -> None:
    array = np.zeros((100, 100), np.float32)
    array.reshape(-1)[paths] = 1.5
    assert there_and_back(array) < 40


def test_special_shapes_are_unpacked_unchanged() -> None:
    for shape in [(), (0,), (3, 0, 2), (1, 1, 1, 1)]:
        there_and_back(np.full(shape, -0.0, np.float32))


def test_values_of_sixteen_bits_take_sixteen_bits() -> None:
    halves = np.random.default_rng(0).normal(size=900).astype(np.float16)
    assert there_and_back(halves.astype(np.float32)) <= 2 * 900 + 8


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("values", [2, 16, 256])
def test_size_is_that_of_the_entropy(share: float, values: int) -> None:
    """Entropy by numpy here: whether a weight is zero, and which value a non-zero has."""
    rng = np.random.default_rng(values)
    size = 1 << 18
    chances = rng.dirichlet(np.ones(values))
    book = rng.normal(size=values).astype(np.float32)
    array = book[rng.choice(values, size, p=chances)]
    array[rng.random(size) > share] = 0

    def bits(labels: np.ndarray[Any, Any]) -> float:
        _, counts = np.unique(labels, return_counts=True)
        return -float((counts * np.log2(counts / counts.sum())).sum())

    remaining = array[array != 0]
    entropy = (bits(array != 0) + bits(remaining)) / 8
    assert entropy > 3000 or values == 2
    packed = there_and_back(array.reshape(512, 512))
    assert packed <= 1.05 * (entropy + 4 * values) + 64
    zeros, distinct, message, _ = reports.measure(array)
    assert (zeros, distinct) == (size - len(remaining), len(np.unique(remaining)))
    assert message == pytest.approx(entropy, rel=1e-9)


def test_runs_code_better_than_their_entropy() -> None:
    """Zero rows: positions as gaps take less than a bit per weight."""
    array = np.random.default_rng(0).choice(np.array([1, 2, 3, 4], np.float32), (512, 256))
    array[::2] = 0
    _, _, entropy, _ = reports.measure(array)
    assert there_and_back(array) < 0.6 * entropy


def test_plain_floats_are_never_larger() -> None:
    for size in (1, 10, 1000, 100_000):
        array = np.random.default_rng(1).normal(size=size).astype(np.float32)
        assert there_and_back(array) <= 4 * size + 8


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.sampled_from([(), (0,), (7,), (30, 10)]))
def test_any_bytes_are_an_array_or_refused(data: bytes, shape: tuple[int, ...]) -> None:
    try:
        assert array_codec.unpack_array(data, "float32", shape).shape == shape
    except entropy_coding.MalformedPackError as error:
        assert str(error)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_changed_bytes_are_an_array_or_refused(index: int, value: int, seed: int) -> None:
    """Without the digest before it: the codec by itself never fails otherwise."""
    rng = np.random.default_rng(seed % 5)
    array = rng.choice(np.float32([0, 0, 1, 2, -3]), 800)
    data = bytearray(array_codec.pack_array(array))
    data[index % len(data)] = value
    try:
        assert array_codec.unpack_array(bytes(data), "float32", (800,)).shape == (800,)
    except entropy_coding.MalformedPackError as error:
        assert str(error)


def small_file(folder: Path) -> Path:
    array = np.float32([[0, 1], [2, 0]])
    data = array_codec.pack_array(array)
    record = container.Record("a/kernel:0", "a", "weight", "float32", (2, 2), data)
    path = folder / "small.packed"
    path.write_bytes(container.assemble({"card": {}}, [record]))
    return path


def refused(path: Path) -> str:
    """The error line, raised within a second and 100 MB."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        reports.contents(path)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    return message


def test_a_file_is_read_back_and_its_preamble_is_as_documented(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    header, (record,) = container.read(path)
    assert header == {"card": {}}
    np.testing.assert_array_equal(record.array(), np.float32([[0, 1], [2, 0]]))
    data = path.read_bytes()
    magic, version, packed, text, body, digest = PREAMBLE.unpack(data[: PREAMBLE.size])
    assert (magic, version) == (MAGIC, VERSION)
    assert len(zlib.decompress(data[PREAMBLE.size :][:packed])) == text
    assert PREAMBLE.size + packed + body == len(data)
    assert hashlib.sha256(data[: PREAMBLE.size - 32] + data[PREAMBLE.size :]).digest() == digest


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(path)
    path.write_bytes(data + b"\0")
    refused(path)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    data = path.read_bytes()
    for folder in range(len(data)):
        for bit in (0, 3, 7):
            changed = bytearray(data)
            changed[folder] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(UsageError):
                container.read(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1c\0\0\0TFL3" * 40, b"PK\x03\x04" * 100])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    assert "this is another kind of file" in refused(path)
    assert "there is no such file" in refused(tmp_path / "absent")
    assert "there is no such file" in refused(tmp_path)


def forged(
    path: Path, text: bytes, body: bytes = b"", lengths: tuple[int, int, int] | None = None
) -> Path:
    """A file whose digest is right, whatever else it holds."""
    packed = zlib.compress(text)
    lengths = lengths or (len(packed), len(text), len(body))
    preamble = PREAMBLE.pack(MAGIC, VERSION, *lengths, b"")[:-32]
    digest = hashlib.sha256(preamble + packed + body).digest()
    path.write_bytes(preamble + digest + packed + body)
    return path


def test_a_later_version_is_named(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[8] = VERSION + 1
    path.write_bytes(data)
    assert f"version: got {VERSION + 1}, expected {VERSION}" in refused(path)


@pytest.mark.parametrize(
    "lengths",
    [(2**32 - 1, 10, 0), (10, 2**32 - 1, 0), (10, 10, 2**63), (10, 10, 2**64 - 1), (0, 0, 0)],
)
def test_lengths_that_cannot_be_are_refused(lengths: tuple[int, int, int], tmp_path: Path) -> None:
    refused(forged(tmp_path / "x", b"{}", lengths=lengths))


ENTRY = ["k", "k", "weight", "float32", [2], 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({4: [2**63]}, "cannot be"),
        ({4: [2**31]}, "cannot be"),
        ({4: [2**30, 2**30]}, "weights where"),
        ({4: [2**30]}, "weights where"),
        ({4: [-1]}, "cannot be"),
        ({4: [True]}, "cannot be"),
        ({4: [1.0]}, "cannot be"),
        ({4: [1] * 9}, "8 axes"),
        ({4: "2"}, "8 axes"),
        ({5: 2**63}, "cannot be"),
        ({5: 3}, "are left"),
        ({5: 1}, "no array has"),
        ({3: "object"}, "'object'"),
        ({3: "float128"}, "'float128'"),
        ({2: "code"}, "without a name"),
        ({0: 5}, "without a name"),
    ],
)
def test_entries_that_cannot_be_are_refused(
    change: dict[int, Any], message: str, tmp_path: Path
) -> None:
    entry = [change.get(folder, value) for folder, value in enumerate(ENTRY)]
    path = forged(tmp_path / "x", json.dumps({"arrays": [entry]}).encode(), b"\0\0")
    assert message in refused(path)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"{", b"\xff", b"{}", b'{"arrays": 3}', b'{"arrays": [3]}', b"[" * 100_000],
)
def test_headers_that_cannot_be_are_refused(text: bytes, tmp_path: Path) -> None:
    refused(forged(tmp_path / "x", text))


def test_a_header_that_swells_is_refused(tmp_path: Path) -> None:
    text = b" " * (1 << 23)
    packed = len(zlib.compress(text))
    refused(forged(tmp_path / "x", text))
    refused(forged(tmp_path / "x", text, lengths=(packed, 1000, 0)))


MANY = 2_000_000  # bytes, of a header that is not too long


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (b'{"arrays": [%s0]}' % (b"0," * (MANY // 2)), "values in the header"),
        (b'{"arrays": [%s[]]}' % (b"[]," * (MANY // 3)), "values in the header"),
        (b'{"arrays": [], "x": [%s0]}' % (b"[[[[[[[{}]]]]]]]," * (MANY // 17)), "values in the"),
        (b'{%s"arrays": []}' % b"".join(b'"%x":0,' % n for n in range(200_000)), "values in the"),
        (b'{"arrays": [%s3]}' % (b'["","","weight","int8",[0],4],' * 5000), "5001 arrays where"),
        (b" " * (1 << 22), "bytes of header"),
    ],
)
def test_headers_of_a_million_values_are_not_parsed(
    what: bytes, message: str, tmp_path: Path
) -> None:
    assert message in refused(forged(tmp_path / "x", what, b"\0\0\0\0" * 5000))


def test_a_file_cannot_claim_gigabytes(tmp_path: Path) -> None:
    """Kernels of zeros take no bytes: what a file asks for grows with it alone."""
    zeros = b"\x01\x00\x00\x00\x01\x00"
    text = json.dumps({"arrays": [[*ENTRY[:4], [3 * 10**8], 1 << 20]]}).encode()
    path = forged(tmp_path / "x", text, zeros.ljust(1 << 20, b"\0"))
    assert "300000000 weights where" in refused(path)


HUGE = b"\xff" * 8 + b"\x7f"  # 2^63 - 1


@pytest.mark.parametrize(
    "body",
    [
        b"\x00\x02" + HUGE,  # codebook
        b"\x02" + HUGE,  # gaps
        b"\x00\x00\x02" + HUGE,  # table
        b"\x00\x00\x02\x02\x00" + HUGE,  # bytes of the table
        b"\x00\x00\x02\x02\x10\x01\x48",  # its order
        b"\x00\x00\x02\x02\x00\x01\x08",  # one count of the two
        b"\x00\x00\x02\x02\x00\x01\x00",  # none
        b"\x00\x00\x02\x02\x00\x02\x48\x00",  # a byte after them
        b"\x00\x00\x02\x02\x00\x01\x4a",  # a bit after them
        b"\x00\x00\x02\x02\x00\x01\x48" + HUGE,  # words
        b"\x00\x00\x00" + HUGE,  # symbol
        b"\x02\x01\x00\x00\xff",  # a number that goes on
        b"\xff" * 12,
        b"\x07",
    ],
)
def test_lengths_inside_arrays_are_not_trusted(body: bytes, tmp_path: Path) -> None:
    entry = [*ENTRY[:4], [2, 1], len(body)]
    path = forged(tmp_path / "x", json.dumps({"arrays": [entry]}).encode(), body)
    assert "whole packed model" in refused(path)


tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models import builder, saving  # noqa: E402
from mobilenet.packing import fp16_batch_norm  # noqa: E402
from mobilenet.packing import model as packed_model  # noqa: E402

L = tf_keras.layers


def packed(model: Any, path: Path, card: Card | None = None, ranges: Any = None) -> Any:
    """The model in a file."""
    loaded = saving.LoadedModel(model, card or Card(input_shape=(32, 32, 3)))
    path.write_bytes(packed_model.pack(loaded, ranges))
    return packed_model.unpack(path)


def same_bits(first: Any, second: Any) -> bool:
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in pairs)


FILLS: dict[str, Callable[[np.random.Generator, Any], Any]] = {
    "empty": lambda rng, shape: np.zeros(shape),
    "minus zero": lambda rng, shape: np.full(shape, -0.0),
    "full": lambda rng, shape: rng.normal(size=shape),
    "one value": lambda rng, shape: np.full(shape, rng.normal()),
    "few values": lambda rng, shape: rng.choice([0, 0, 0, 0.25, -1.5, 1 / 3], shape),
    "extremes": lambda rng, shape: rng.choice([3.4028235e38, -3.4028235e38, 1e-45, -1e-40], shape),
}


def filled(model: Any, seed: int) -> None:
    """Every array of a model with values that are hard to preserve."""
    rng = np.random.default_rng(seed)
    fills = list(FILLS.values())
    indices = (seed + np.arange(len(model.weights))) % len(fills)
    model.set_weights([fills[p](rng, w.shape) for p, w in zip(indices, model.weights, strict=True)])


@pytest.mark.parametrize("name", families())
def test_every_model_is_rebuilt_from_its_config(
    name: str, small_model: Callable[..., Any], tmp_path: Path
) -> None:
    source = small_model(name, short=True)
    model = tf_keras.models.clone_model(source)
    model.mobilenet_config = source.mobilenet_config
    filled(model, 1)
    card = Card(architecture=model.mobilenet_config.to_json(), labels=("a", "b"), notes=("n",))
    actual = packed(model, tmp_path / "model", card)
    assert same_bits(model, actual.loaded.model)
    assert actual.loaded.model.get_config() == model.get_config()
    assert actual.loaded.card == card and actual.ranges is None
    assert builder.config_of(actual.loaded.model) == model.mobilenet_config
    assert container.read(tmp_path / "model")[0]["keras"] is None
    contents = reports.contents(tmp_path / "model")
    assert contents.total.weights == model.count_params()
    assert contents.total.packed == (tmp_path / "model").stat().st_size
    assert sum(line.packed for line in contents.arrays) == contents.total.packed


def foreign() -> Any:
    """A model of other layers, with weights that are easily lost."""
    source = L.Input((8, 8, 3))
    x = L.SeparableConv2D(8, 3, name="separable")(source)
    x = L.BatchNormalization(scale=False, name="no_gamma")(x)
    x = L.BatchNormalization(center=False, name="no_beta")(L.ReLU()(x))
    x = L.BatchNormalization(scale=False, center=False, name="neither")(L.PReLU()(x))
    x = L.BatchNormalization(epsilon=0.01, name="whole")(L.Conv2D(4, 3)(x))
    model = tf_keras.Model(source, L.Dense(5, "softmax")(L.GlobalAveragePooling2D()(x)))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 1.5, w.shape) for w in model.get_weights()])
    weights = model.get_weights()
    weights[0].reshape(-1)[:5] = [-0.0, 0.0, 1e-45, -3.4e38, 1.1754942e-38]
    model.set_weights(weights)
    return model


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(list(FILLS)), min_size=7, max_size=7), st.integers(0, 2**32 - 1))
@example(["empty"] * 7, 0)
@example(["extremes"] * 7, 0)
def test_any_weights_of_a_model_are_unpacked_unchanged(fills: list[str], seed: int) -> None:
    source = L.Input((6, 6, 3))
    x = L.BatchNormalization(scale=False)(L.Conv2D(5, 3, name="c")(source))
    model = tf_keras.Model(source, L.Dense(4)(L.Flatten()(x)))
    rng = np.random.default_rng(seed)
    model.set_weights([FILLS[w](rng, v.shape) for w, v in zip(fills, model.weights, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        assert same_bits(model, packed(model, Path(folder) / "model").loaded.model)


@pytest.mark.slow
def test_a_whole_v1_is_packed_in_twenty_seconds_of_one_core(tmp_path: Path) -> None:
    model = saving.LoadedModel(builder.build(archs.get("mobilenet_v1"), (224, 224, 3)), Card())
    start = time.process_time()
    packed_model.pack(model)
    assert time.process_time() - start < 20


def test_a_foreign_model_is_rebuilt_from_its_description(tmp_path: Path) -> None:
    model = foreign()
    actual = packed(model, tmp_path / "model").loaded.model
    assert same_bits(model, actual)
    assert np.signbit(actual.get_weights()[0].reshape(-1)[0])
    assert [layer.name for layer in actual.layers] == [layer.name for layer in model.layers]
    assert container.read(tmp_path / "model")[0]["config"] is None


def test_a_model_that_differs_from_its_config_is_described(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    source = small_model("mobilenet_v1")
    model = tf_keras.Model(source.inputs, source.layers[-4].output)
    model.mobilenet_config = source.mobilenet_config
    assert same_bits(model, packed(model, tmp_path / "model").loaded.model)
    assert container.read(tmp_path / "model")[0]["config"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = foreign()
    weights = model.get_weights()
    weights[2][0] = value
    model.set_weights(weights)
    with pytest.raises(UsageError, match="NaN or infinity"):
        packed_model.pack(saving.LoadedModel(model, Card()))


def test_a_model_with_code_is_refused_on_both_sides(tmp_path: Path) -> None:
    source = L.Input((4,))
    model = tf_keras.Model(source, L.Lambda(lambda x: x + 1)(source))
    with pytest.raises(UsageError, match="Lambda"):
        packed_model.pack(saving.LoadedModel(model, Card()))
    described = tf_keras.saving.serialize_keras_object(model)
    text = json.dumps({"card": Card().to_json(), "keras": described, "arrays": []}).encode()
    with pytest.raises(UsageError, match="Lambda"):
        packed_model.unpack(forged(tmp_path / "x", text))


@pytest.mark.parametrize(
    "header",
    [
        {"card": 3},
        {"card": Card().to_json()},
        {"card": Card().to_json(), "keras": {}},
        {"card": Card().to_json(), "keras": {"class_name": "Dense", "module": "keras.layers"}},
        {"card": Card().to_json(), "keras": {"class_name": "Popen", "module": "subprocess"}},
        {"card": Card().to_json(), "config": {"nothing": 1}},
        {"card": Card().to_json(), "config": archs.get("mobilenet_v1").to_json()},
    ],
)
def test_architectures_that_cannot_be_are_refused(header: dict[str, Any], tmp_path: Path) -> None:
    path = forged(tmp_path / "x", json.dumps({**header, "arrays": []}).encode())
    with pytest.raises(UsageError) as caught:
        packed_model.unpack(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = small_model("mobilenet_v1")
    header = {"card": Card().to_json(), "config": model.mobilenet_config.to_json()}
    text = json.dumps({**header, "input_shape": [32, 32, 3], "arrays": []}).encode()
    with pytest.raises(UsageError, match="not those of its model"):
        packed_model.unpack(forged(tmp_path / "x", text))


def test_folded_batch_norms_are_float16_with_equal_outputs() -> None:
    model = foreign()
    model.get_layer("separable").set_weights(
        [np.full(w.shape, 0.1, np.float32) for w in model.get_layer("separable").get_weights()]
    )
    halved = fp16_batch_norm.fold_to_float16(model)
    gamma, beta, mean, variance = (
        w.astype(np.float64) for w in model.get_layer("whole").get_weights()
    )
    scale = gamma / np.sqrt(variance + 0.01)
    new = halved.get_layer("whole").get_weights()
    np.testing.assert_array_equal(new[0], scale.astype(np.float16))
    np.testing.assert_allclose(new[1], beta - mean * scale, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(new[2], 0)
    np.testing.assert_allclose(new[3], 0.99, rtol=1e-6)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    for name in ("no_gamma", "no_beta", "neither", "whole"):
        before, after = (
            tf_keras.Model(m.input, m.get_layer(name).output)(images).numpy()
            for m in (model, halved)
        )
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(after, before, rtol=0.01, atol=0.01 * np.abs(before).max())
    remaining = [w for w in model.get_weights() if w.ndim > 1]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(remaining, [w for w in halved.get_weights() if w.ndim > 1], strict=True)
    )


def test_a_batch_norm_beyond_float16_is_refused() -> None:
    model = foreign()
    layer = model.get_layer("whole")
    layer.set_weights([np.full(w.shape, 1e6) for w in layer.get_weights()])
    layer.moving_variance.assign(np.ones(4))
    with pytest.raises(UsageError, match="whole scale"):
        fp16_batch_norm.fold_to_float16(model)


@pytest.mark.parametrize("reader", ["ranges", "model"])
def test_ranges_that_inflate_or_hold_objects_are_one_line(reader: str, tmp_path: Path) -> None:
    from mobilenet.compression.quantization.int8 import saving as int8_saving

    def read() -> object:
        if reader == "ranges":
            return int8_saving.read_ranges(tmp_path)
        return int8_saving.load(tmp_path, model=cast(Any, "not looked at"))

    path = tmp_path / "ranges.npz"
    np.savez(path, Conv2d_0=np.array([{}]))
    with pytest.raises(UsageError, match="the ranges of a quantized model .*holds Python objects"):
        read()
    np.savez_compressed(path, Conv2d_0=np.zeros(40 << 20, np.uint8))
    with pytest.raises(UsageError, match="at most 20 times as many.*quantize it again"):
        read()
