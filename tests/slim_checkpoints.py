"""TF1 checkpoints as slim writes them, with names and shapes from rules written out here.

Sources: tensorflow/models research/slim/models (mobilenet_v1.py, mobilenet/mobilenet_v2.py,
mobilenet/mobilenet_v3.py) for names, widths and blocks; contrib/quantize for the ranges.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Values = dict[str, np.ndarray]
Ranges = dict[str, tuple[float, float]]

V1 = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
# Factor, channels, repeats, stride of the first: the paper's table.
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
      (6, 320, 1, 1))  # fmt: skip
# Kernel, factor, channels, then s for squeeze-excite and h for hard-swish.
LARGE = ("3 1 16", "3 4 24", "3 3 24", "5 3 40 s", "5 3 40 s", "5 3 40 s", "3 6 80 h",
         "3 2.5 80 h", "3 2.3 80 h", "3 2.3 80 h", "3 6 112 sh", "3 6 112 sh", "5 6 160 sh",
         "5 6 160 sh", "5 6 160 sh")  # fmt: skip
SMALL = ("3 1 16 s", "3 4.5 24", "3 3.667 24", "5 4 40 sh", "5 6 40 sh", "5 6 40 sh", "5 3 48 sh",
         "5 3 48 sh", "5 6 96 sh", "5 6 96 sh", "5 6 96 sh")  # fmt: skip
EXACT = {"2.3": 184 / 80, "3.667": 88 / 24}
# f: one full convolution expands and there is no depthwise one; 1 as factor: only the projection.
EDGETPU = ("3 1 16 f", "3 8 32 f", *["3 4 32 f"] * 3, "3 8 48 f", *["3 4 48 f"] * 3, "3 8 96",
           *["3 4 96"] * 3, "3 8 96", *["3 4 96"] * 3, "5 8 160", *["5 4 160"] * 3,
           "3 8 192")  # fmt: skip

FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v3_large_minimalistic",
    "mobilenet_edgetpu",
)
V3_HEADS = {"mobilenet_v3_small": (576, 1024), "mobilenet_v3_large": (960, 1280)}
AVERAGE = "/ExponentialMovingAverage"
PIXELS = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Slim:
    """A model as slim would build it; `classes` 0 is headless, `root` is slim's own when `None`."""

    family: str
    width: float = 0.1
    classes: int = 5
    channels: int = 3
    finegrain: bool = False
    root: str | None = None

    @property
    def base(self) -> str:
        return self.family.removesuffix("_minimalistic")

    @property
    def scope(self) -> str:
        """The root scope with its slash."""
        if self.root is not None:
            return self.root
        if self.family.startswith("mobilenet_v3"):
            return "MobilenetV3/"
        names = {"mobilenet_v1": "V1", "mobilenet_v2": "V2", "mobilenet_edgetpu": "EdgeTPU"}
        return f"Mobilenet{names[self.family]}/"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One convolution: its scope below the root, the shape of its kernel, whether it is depthwise
    and whether it has biases (else a batch normalization), and its activation."""

    scope: str
    shape: tuple[int, int, int, int]
    depthwise: bool = False
    biases: bool = False
    activation: str = ""


def divisible(value: float) -> int:
    """The nearest multiple of 8 (ties up), at least 8, never more than a tenth below `value`."""
    rounded = max(8, 8 * int((value + 4) // 8))
    return rounded + 8 if rounded < 0.9 * value else rounded


def _v1(model: Slim) -> Iterator[Unit]:
    def narrow(channels: int) -> int:
        return max(int(channels * model.width), 8)

    before = narrow(32)
    yield Unit("Conv2d_0", (3, 3, model.channels, before), activation="relu6")
    for index, channels in enumerate(V1, start=1):
        depthwise = (3, 3, before, 1)
        yield Unit(f"Conv2d_{index}_depthwise", depthwise, depthwise=True, activation="relu6")
        shape = (1, 1, before, narrow(channels))
        yield Unit(f"Conv2d_{index}_pointwise", shape, activation="relu6")
        before = narrow(channels)


def rows(model: Slim) -> list[tuple[int, float, int, str]]:
    """Kernel, factor, channels at width 1 and flags of every block but V1's."""
    if model.base == "mobilenet_v2":
        return [
            (3, factor, channels, "") for factor, channels, count, _ in V2 for _ in range(count)
        ]
    table = {"mobilenet_v3_small": SMALL, "mobilenet_v3_large": LARGE, "mobilenet_edgetpu": EDGETPU}
    blocks = []
    for row in table[model.base]:
        kernel, factor, channels, flags = (row + " -").split()[:4]
        if model.family.endswith("minimalistic"):
            kernel, flags = "3", "-"
        blocks.append((int(kernel), EXACT.get(factor, float(factor)), int(channels), flags))
    return blocks


def block_activation(model: Slim, flags: str) -> str:
    if model.base == "mobilenet_v2":
        return "relu6"
    return "hard_swish" if "h" in flags else "relu"


def head_activation(model: Slim) -> str:
    """Of the stem and the last convolutions."""
    swish = model.family in V3_HEADS
    return "hard_swish" if swish else block_activation(model, "")


def _blocks(model: Slim) -> Iterator[Unit]:
    first = 16 if model.family.startswith("mobilenet_v3") else 32
    before = divisible(first * model.width)
    yield Unit("Conv", (3, 3, model.channels, before), activation=head_activation(model))
    for index, (kernel, factor, channels, flags) in enumerate(rows(model)):
        scope = f"expanded_conv_{index}" if index else "expanded_conv"
        activation = block_activation(model, flags)
        expanded = divisible(before * factor) if factor != 1 else before
        if factor != 1:
            side = kernel if "f" in flags else 1
            shape = (side, side, before, expanded)
            yield Unit(f"{scope}/expand", shape, activation=activation)
        if "f" not in flags:
            shape = (kernel, kernel, expanded, 1)
            yield Unit(f"{scope}/depthwise", shape, depthwise=True, activation=activation)
        if "s" in flags:
            inner = divisible(expanded / 4)
            squeeze = f"{scope}/squeeze_excite/Conv"
            yield Unit(squeeze, (1, 1, expanded, inner), biases=True, activation="relu")
            yield Unit(squeeze + "_1", (1, 1, inner, expanded), biases=True)
        before_last, before = expanded, divisible(channels * model.width)
        yield Unit(f"{scope}/project", (1, 1, before_last, before))


def _last(model: Slim, before: int) -> Iterator[Unit]:
    activation = head_activation(model)
    if model.base in V3_HEADS:
        inner, outer = V3_HEADS[model.base]
        inner = divisible(inner * model.width)
        outer = outer if model.finegrain else divisible(outer * model.width)
        yield Unit("Conv_1", (1, 1, before, inner), activation=activation)
        yield Unit("Conv_2", (1, 1, inner, outer), biases=True, activation=activation)
        return
    width = model.width
    if model.finegrain:  # V2 wider than 1 still widens it, EdgeTPU never does
        width = max(width, 1.0) if model.base == "mobilenet_v2" else 1.0
    yield Unit("Conv_1", (1, 1, before, divisible(1280 * width)), activation=activation)


def units(model: Slim) -> list[Unit]:
    """The convolutions of a model in order, the logits last."""
    convolutions = list(_v1(model) if model.family == "mobilenet_v1" else _blocks(model))
    if model.family != "mobilenet_v1":
        convolutions += _last(model, convolutions[-1].shape[3])
    if model.classes:
        shape = (1, 1, convolutions[-1].shape[3], model.classes)
        convolutions.append(Unit("Logits/Conv2d_1c_1x1", shape, biases=True))
    return convolutions


def shapes(model: Slim) -> dict[str, tuple[int, ...]]:
    """Shape by name of a model's variables in a checkpoint."""
    variables: dict[str, tuple[int, ...]] = {}
    for unit in units(model):
        scope = model.scope + unit.scope
        channels = unit.shape[2] if unit.depthwise else unit.shape[3]
        variables[scope + ("/depthwise_weights" if unit.depthwise else "/weights")] = unit.shape
        if unit.biases:
            variables[scope + "/biases"] = (channels,)
            continue
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            variables[f"{scope}/BatchNorm/{part}"] = (channels,)
    return variables


def values(model: Slim, seed: int = 0) -> Values:
    """Random values under which signals neither die nor explode; no two variables are equal."""
    random = np.random.default_rng(seed)
    arrays: Values = {}
    for name, shape in shapes(model).items():
        leaf = name.rpartition("/")[2]
        if leaf.endswith("weights"):
            inputs = np.prod(shape[:2]) * (1 if leaf == "depthwise_weights" else shape[2])
            array = random.normal(0, np.sqrt(1.5 / inputs), shape)
        elif leaf in ("gamma", "moving_variance"):
            array = random.uniform(0.6, 1.4, shape)
        else:
            array = random.normal(0, 0.2, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


def averages(raw: Values, moving: bool = True) -> Values:
    """A shadow of every variable, of other values; without the moving statistics if asked."""
    return {
        name + AVERAGE: (array * 0.9 + 0.01).astype(np.float32)
        for name, array in raw.items()
        if moving or "/moving_" not in name
    }


def slots(raw: Values, *kinds: str) -> Values:
    """What optimizers keep of every trained variable."""
    return {
        f"{name}/{kind}": np.full_like(array, 0.5)
        for name, array in raw.items()
        for kind in kinds
        if "/moving_" not in name
    }


STEP: Values = {"global_step": np.asarray(7, np.int64)}
LOSSES: Values = {
    "total_loss/avg": np.asarray(2.5, np.float32),
    "softmax_cross_entropy_loss/value/avg": np.asarray(2.25, np.float32),
}


def layer_of(scope: str) -> str:
    """Our layer's name for slim's scope below the root."""
    if scope.startswith("Logits/"):
        return "Logits"
    scope = scope.replace("squeeze_excite/Conv_1", "squeeze_excite/excite")
    return scope.replace("squeeze_excite/Conv", "squeeze_excite/squeeze").replace("/", "_")


def weight_name(model: Slim, name: str) -> str:
    """`<layer>/<weight>` of our model for a variable's name."""
    scope, _, leaf = name.removeprefix(model.scope).rpartition("/")
    if scope.endswith("/BatchNorm"):
        return f"{layer_of(scope.removesuffix('/BatchNorm'))}_batch_norm/{leaf}"
    own = {"weights": "kernel", "depthwise_weights": "depthwise_kernel", "biases": "bias"}
    return f"{layer_of(scope)}/{own[leaf]}"


def by_weight_name(model: Slim, arrays: Values) -> Values:
    """The arrays by their names in our model; other variables than the model's are left out."""
    return {weight_name(model, name): arrays[name] for name in shapes(model)}


def weights(model: Any) -> Values:
    """The same of a built model."""
    return {
        f"{layer.name}/{weight.name.rpartition('/')[2].partition(':')[0]}": weight.numpy()
        for layer in model.layers
        for weight in layer.weights
    }


def _range(scope: str, kind: str, number: int, average: bool) -> tuple[Values, tuple[float, float]]:
    """Variables of one fake quantization, and the range they give."""
    low, high = -1.0 - number / 64, 2.0 + number / 64
    arrays = {f"{scope}/{kind}/min": low, f"{scope}/{kind}/max": high}
    if average:
        for end in ("min", "max"):
            helper = f"{scope}/{kind}/{scope}/{kind}/{end}"
            arrays |= {f"{helper}/biased": -50.0 - number, f"{helper}/local_step": 1000.0 + number}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}, (low, high)


def v2_residuals(model: Slim) -> list[bool]:
    """Whether each block of V2 adds its input."""
    strides = [stride if at == 0 else 1 for *_, count, stride in V2 for at in range(count)]
    outputs = [divisible(channels * model.width) for _, _, channels, _ in rows(model)]
    inputs = [divisible(32 * model.width), *outputs]
    return [stride == 1 and a == b for stride, a, b in zip(strides, inputs, outputs, strict=False)]


def ranges(model: Slim) -> tuple[Values, Ranges]:
    """What contrib/quantize adds to V1 (doubled scope) and V2 (single), and the ranges by layer."""
    variables: Values = {}
    expected: Ranges = {}

    def add(scope: str, kind: str, key: str) -> None:
        doubled = model.family == "mobilenet_v1" and not scope.startswith("Logits")
        scope = model.scope * (2 if doubled else 1) + scope
        more, pair = _range(scope, kind, len(expected), kind != "weights_quant")
        variables.update(more)
        expected[key] = pair

    for unit in units(model):
        layer = layer_of(unit.scope)
        add(unit.scope, "weights_quant", f"{layer}/kernel")
        block = unit.scope.removesuffix("/project")
        if block == unit.scope:
            ending = "_relu6" if unit.activation else ""
            add(unit.scope, "act_quant", layer + ending)
        elif v2_residuals(model)[int(block.removeprefix("expanded_conv").strip("_") or 0)]:
            add(unit.scope, "conv_quant", f"{layer}_batch_norm")
            add(block, "add_quant", layer_of(block) + "_add")
        else:
            add(unit.scope, "act_quant", f"{layer}_batch_norm")
    return variables, expected


def write_checkpoint(prefix: Path, arrays: Values, state: bool = False) -> Path:
    """Saves variables of these names with TF1's Saver; `state` also writes `checkpoint`."""
    import tensorflow as tf

    v1 = tf.compat.v1
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), v1.Session() as session:
        feed = {}
        for name, array in arrays.items():
            variable = v1.get_variable(
                name, array.shape, array.dtype, v1.zeros_initializer(), use_resource=False
            )
            feed[variable.initializer.inputs[1]] = array
        session.run(v1.global_variables_initializer(), feed)
        v1.train.Saver().save(session, str(prefix), write_meta_graph=False, write_state=state)
    return prefix


def write_npz(path: Path, arrays: Values) -> Path:
    np.savez(path, **arrays)
    return path


def write_archive(path: Path, members: Mapping[str, Path | bytes | tarfile.TarInfo]) -> Path:
    """A `.tgz` of these names: copies of files, bytes, or entries made by hand (links)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            data = content if isinstance(content, bytes) else content.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def parts(prefix: Path, under: str = "") -> dict[str, Path | bytes | tarfile.TarInfo]:
    """The files of a checkpoint as members of an archive."""
    return {under + path.name: path for path in sorted(prefix.parent.glob(prefix.name + ".*"))}


@functools.cache
def written(base: Path, model: Slim) -> tuple[Values, Path]:
    """Values and prefix of a checkpoint of the model and `global_step`, written once under
    `base`.
    """
    arrays = values(model)
    fields = "_".join(map(str, dataclasses.astuple(model))).replace("/", "-")
    return arrays, write_checkpoint(base / "slim" / fields / "model.ckpt-7", arrays | STEP)


@functools.cache
def loaded(path: Path, **options: Any) -> Any:
    """What `load_tf1_checkpoint` makes of a file at 32 x 32, loaded once: leave it as it is."""
    from mobilenet import tf1_loader

    return tf1_loader.load_tf1_checkpoint(path, **{"input_shape": PIXELS, **options})


def same(model: Any, expected: Values) -> None:
    """The weights of a model are these arrays by name, all of them."""
    actual = weights(model)
    assert set(actual) == set(expected), set(actual) ^ set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
