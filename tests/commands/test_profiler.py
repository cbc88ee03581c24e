"""`python -m mobilenet.profiler` of a model or a file alone: counts, zeros, groups, times."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet import cli, profiler, surgery
from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.tflite import model as tflite_model

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

from mobilenet import text_tables  # noqa: E402
from mobilenet.export import tflite_converter  # noqa: E402
from mobilenet.models import counting, saving  # noqa: E402
from mobilenet.packing import model as packed_model  # noqa: E402
from mobilenet.reporting import (  # noqa: E402
    int8_comparison,
    layer_latency,
    model_profile,
    packed_size,
    plots,
    sparsity,
    tables,
    tflite_profile,
)


def planted(small_model: Callable[..., Any]) -> Any:
    """The first rows of V1, two zero output channels and one unread input channel in one kernel."""
    source = small_model("mobilenet_v1", blocks=archs.get("mobilenet_v1").blocks[:7])
    model = tf_keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    layer = model.get_layer("Conv2d_3_pointwise")
    kernel = layer.get_weights()[0]
    kernel[..., [1, 7]] = 0
    kernel[:, :, 4] = 0
    layer.set_weights([kernel])
    return model


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_every_parameter_and_product_is_in_one_line(
    name: str, small_model: Callable[..., Any]
) -> None:
    model = small_model(name)
    result = model_profile.profile(model, latency=False)
    total, counted = result.total(), counting.count(model)
    assert total.params == model.count_params()
    assert (total.macs, total.thop) == (counted.macs, counted.thop_flops)
    assert total.bytes == 4 * model.count_params()
    assert total.seconds is None and result.whole is None


def test_a_line_is_what_one_computes_by_hand(small_model: Callable[..., Any]) -> None:
    """Conv2d_3_pointwise of a quarter: 32 to 32 channels on 8 x 8, two zero columns, a zero row."""
    result = model_profile.profile(planted(small_model), latency=False)
    line = next(line for line in result.layers if line.layer == "Conv2d_3_pointwise")
    assert (line.role, line.shape) == ("pointwise", (8, 8, 32))
    assert line.params == 32 * 32 + 4 * 32
    assert line.macs == 8 * 8 * 32 * 32
    assert line.thop == line.macs + 2 * 8 * 8 * 32  # the batch norm's
    assert line.zeros == 2 * 32 + 32 - 2
    assert line.sparsity == pytest.approx(94 / 1024)
    assert line.distinct == 1024 - 94 + 1
    assert line.group == 3


def test_packed_bytes_are_those_of_the_file(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    """Conv2d_3_pointwise with three values of 1024: entropy by hand, bytes by the packer's file."""
    model = planted(small_model)
    layer = model.get_layer("Conv2d_3_pointwise")
    values = np.repeat(np.float32([0, 0.5, -2]), [512, 384, 128])
    layer.set_weights([np.random.default_rng(0).permutation(values).reshape(1, 1, 32, 32)])
    card = Card(input_shape=(32, 32, 3))
    result = model_profile.profile(model, latency=False, card=card)
    line = next(line for line in result.layers if line.layer == "Conv2d_3_pointwise")
    index_bits = 512 * -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert line.entropy == pytest.approx((1024 + index_bits) / 8)
    assert line.entropy < line.packed < line.entropy + 60  # tables, the codebook, even norms
    path = tmp_path / "model"
    path.write_bytes(packed_model.pack(saving.LoadedModel(model, card)))
    contents = packed_size.contents(path)
    header = next(line.packed for line in contents.arrays if line.name == "header")
    assert result.sizes["packed"] == path.stat().st_size
    assert result.total().packed == path.stat().st_size - header
    assert result.total().entropy is None  # of the other kernels
    file = tflite_converter.float_flatbuffer(model)
    assert result.sizes["bytes of float flatbuffer"] == len(file)
    assert result.sizes["under gzip"] == len(gzip.compress(file, mtime=0))
    assert model_profile.profile(model, latency=False).total().packed is None


def test_channels_count_as_zero_only_whole(small_model: Callable[..., Any]) -> None:
    model = planted(small_model)
    depthwise = model.get_layer("Conv2d_5_depthwise")
    kernel = depthwise.get_weights()[0]
    kernel[:, :, 2] = 0
    kernel[0, 0, 3, 0], kernel[0, 1, 3, 0] = 1, -1  # a sum that cancels is no zero
    kernel[1:, :, 3] = kernel[0, 2, 3] = 0
    depthwise.set_weights([kernel])
    lines = {line.layer: line for line in sparsity.zeros(model)}
    line = lines["Conv2d_3_pointwise"]
    assert (line.zero_outputs, line.outputs, line.zero_inputs, line.inputs) == (2, 32, 1, 32)
    line = lines["Conv2d_5_depthwise"]
    assert (line.zero_outputs, line.outputs, line.zero_inputs) == (1, 64, 1)
    assert line.zeros == 9 + 7
    assert sum(x.zeros for x in lines.values()) == 94 + 16


def test_pieces_hold_all_layers_and_follow_the_activation(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v3_small")
    spans = layer_latency.spans(model)
    names = [layer.name for span in spans for layer in span.layers]
    assert sorted(names) == sorted(x.name for x in model.layers if not x.name.startswith("input"))
    stem = [layer.name.removeprefix("Conv_") for layer in spans[0].layers]
    assert stem[:2] == ["Conv", "batch_norm"] and len(stem) == 6  # and the four of a hard-swish
    gate = next(s for s in spans if s.layers[0].name == "expanded_conv_squeeze_excite_multiply")
    assert gate.piece.inputs == ((8, 8, 8), (1, 1, 8))


@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_piece_computes_what_its_layers_do(index: int, small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v3_small")
    span = layer_latency.spans(model)[index]
    piece = span.piece.build()
    weights = [w for layer in span.layers for w in layer.get_weights()]
    images = np.random.default_rng(0).normal(size=(2, *span.piece.inputs[0])).astype(np.float32)
    if len(span.piece.inputs) == 1:
        piece.set_weights(weights)
        own = tf_keras.Model(span.layers[0].input, span.layers[-1].output)
        np.testing.assert_allclose(piece(images), own(images), atol=1e-5)
    else:  # the other side of the product is a constant of 0.5 to 1.5
        ratio = piece(images).numpy() / images
        assert ratio.min() >= 0.49 and ratio.max() <= 1.51
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1, :1, :1], ratio.shape), 1e-3)


def test_a_narrowed_piece_is_that_of_the_pruned_model(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v1")
    before = layer_latency.spans(model)
    after = layer_latency.spans(surgery.thin(model, 0.5, round_to=1).model)
    for old, new in list(zip(before, after, strict=True))[1:-1]:
        channels = new.piece.inputs[0][-1], new.layers[0].output_shape[-1]
        assert old.piece.narrowed(*channels) == new.piece


def test_equal_layers_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal convolutions and another one; the runtime is a fake."""
    source = x = tf_keras.Input((8, 8, 4))
    for number, width in enumerate((4, 4, 6)):
        x = tf_keras.layers.ReLU()(tf_keras.layers.Conv2D(width, 1, name=f"c{number}")(x))
    spans = layer_latency.spans(tf_keras.Model(source, x))
    asked: list[list[str]] = []

    def latency(models: Any, rounds: int, invokes: int) -> dict[str, float]:
        asked.append(list(models))
        return {name: 5.0 if name.startswith("piece") else 2.0 for name in models}

    monkeypatch.setattr(layer_latency.interpreter, "latency", latency)
    times = layer_latency.LayerTimes()
    data = layer_latency.tflite_converter.float_flatbuffer(spans[0].piece.build())
    assert times.measure([s.piece for s in spans], {"model": data}) == {"model": 2.0}
    assert len(asked[0]) == 2 + 2  # two pieces, a call, the whole
    assert [times.seconds[s.piece] for s in spans] == [3.0] * 3  # without that of a call
    times.measure([s.piece for s in spans])
    assert len(asked[1]) == 1


@pytest.mark.slow
def test_measured_layers_add_up_to_about_the_whole(small_model: Callable[..., Any]) -> None:
    result = model_profile.profile(small_model("mobilenet_v1"))
    assert result.whole and all(line.seconds is not None for line in result.layers)
    assert 0.3 < result.seconds / result.whole < 3.0  # another job on the core moves it
    assert not result.notes


def test_a_model_whose_channels_cannot_be_followed_has_no_groups() -> None:
    source = tf_keras.Input((8, 8, 4))
    x = tf_keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(source)
    result = model_profile.profile(tf_keras.Model(source, x), latency=False)
    assert result.groups == () and result.layers[0].group is None
    assert "no groups of channels" in result.notes[0]


def test_histograms_count_every_weight(small_model: Callable[..., Any], tmp_path: Path) -> None:
    model = planted(small_model)
    kernel = model.get_layer("Conv2d_3_pointwise").get_weights()[0]
    counts, edges, empty = plots.counted(kernel)
    assert empty == 94 and counts.sum() == 1024 - 94
    assert (edges[0], edges[-1]) == (kernel.min(), kernel.max())
    paths = plots.histograms(model, tmp_path / "h")
    assert len(paths) == 14 and sorted(paths) == sorted((tmp_path / "h").iterdir())
    assert paths[0].name == "01_Conv2d_0.png"
    with Image.open(paths[6]) as image:
        assert image.size == (640, 360)
    assert plots.counted(np.zeros((2, 2), np.float32))[2] == 4


def test_a_file_alone_is_read(float_file: Callable[[str], bytes]) -> None:
    content = tflite_model.read(float_file("mobilenet_v1"))
    result = tflite_profile.operators(content)
    buffer_bytes = sum(len(t.buffer) for t in content.tensors)
    assert sum(line.constant_bytes for line in result) == buffer_bytes
    assert [line.operator for line in result] == [op.name for op in content.operators]
    stem = result[0]
    assert (stem.shape, stem.kernel) == ((1, 16, 16, 8), "float32 8x3x3x3")
    assert stem.output_bytes == 4 * 16 * 16 * 8 and stem.distinct == 216 and stem.zeros == 0
    assert "15 CONV_2D, 13 DEPTHWISE_CONV_2D" in tflite_profile.operator_summary(content)


@pytest.fixture(scope="module")
def saved(small_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with ranges next to the model, as a quantized stage leaves it."""
    folder = tmp_path_factory.mktemp("profiled") / "model"
    saving.save(planted(small_model), folder, Card(input_shape=(32, 32, 3)))
    (folder / "ranges.npz").write_bytes(b"not read")
    return folder


def test_the_command_shows_layers_groups_and_zeros(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiler.run([str(saved), "--nolatency", "--groups", f"--histograms={tmp_path / 'h'}"])
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["total"][1] == f"{saving.load(saved).model.count_params():,}"
    assert "group 6: 128 channels of Conv2d_6_pointwise (pointwise)" in out
    assert "group 7: 10 channels of Logits (classifier), fixed" in out
    zero_row = [line.split() for line in out.splitlines() if line.startswith("Conv2d_3_pointwise ")]
    assert zero_row[-1][2:] == ["1,024", "94", "9.18", "32", "2", "32", "1"]
    assert re.search(r"[\d,]+ bytes of float flatbuffer, [\d,]+ under gzip, [\d,]+ packed", out)
    assert "14 histograms" in out and len(os.listdir(tmp_path / "h")) == 14


def test_the_command_shows_a_file_alone(
    float_file: Callable[[str], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.tflite").write_bytes(float_file("mobilenet_v1"))
    profiler.run([str(tmp_path / "model.tflite"), "--nolatency"])
    out = capsys.readouterr().out
    assert f"{len(float_file('mobilenet_v1')):,} bytes;" in out
    assert "CONV_2D" in out and "float32 8x3x3x3" in out and "ms" not in out


def test_every_table_fits_the_terminal(
    saved: Path,
    float_file: Callable[[str], bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "model.tflite"
    file.write_bytes(float_file("mobilenet_v1"))
    profiler.run([str(saved), "--nolatency", f"--histograms={tmp_path / 'h'}"])
    profiler.run([str(file), "--nolatency"])
    line = int8_comparison.TensorComparison(
        layer="expanded_conv_10_depthwise_activation",
        operator="DEPTHWISE_CONV_2D",
        low=-0.000123,
        high=123.4,
        reached=(-1.23e-5, 98.7),
        outliers=123.4,
        alone=43.21,
        accumulated=12.34,
        cause="a channel 12 times as large as the median channel sets the scale of all others",
        remedy="equalize the channels: quantize with --ptq_steps auto",
    )
    print(cli.table(*tables.of_comparison([line, line])))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    cells = {cell for line in lines for cell in line.split()}
    total = f"{saving.load(saved).model.count_params():,}"
    assert {total, "Conv2d_6_pointwise", "DEPTHWISE_CONV_2D", "43.2", "12.3"} <= cells


def test_times_have_three_digits() -> None:
    assert text_tables.milliseconds(0.12345) == "0.123"
    assert text_tables.milliseconds(1234.5) == "1,234.500"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere: expected a model folder"),
        (["{file}"], "expected a model folder, a .keras or .h5 file"),
        (
            ["{model}", "--histograms={file}"],
            "--histograms: got '{file}', expected a folder; a file",
        ),
        (["{model}", "--images=3"], "--images: got 3, expected a flatbuffer and --against"),
        (["{model}", "--against={model}"], "expected a flatbuffer to compare with it"),
        (["{model}", "--image_size=64"], "--image_size: got 64, expected 32 x 32"),
        (["{model}", "--overlay=x"], "--overlay: got 'x', expected a flatbuffer alone, or a flat"),
        (["nowhere.tflite"], "nowhere.tflite: expected a .tflite file"),
        (["x.tflite", "--groups"], "--groups: got True, expected a model; here is a flatbuffer"),
        (
            ["x.tflite", "--against=y", "--nolatency"],
            "--latency: got False, expected a model, or a",
        ),
        (["{model}", "{model}"], "MODEL: got ["),
    ],
)
def test_invalid_arguments_cost_one_line(
    args: list[str], message: str, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    named = {"{file}": str(tmp_path / "file"), "{model}": str(saved)}
    for mark, path in named.items():
        args, message = [w.replace(mark, path) for w in args], message.replace(mark, path)
    with pytest.raises(UsageError) as caught:
        profiler.run(args)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
