"""A saved model runs no code, reads no other file, fetches nothing and takes no other memory."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")
import h5py  # noqa: E402
import tensorflow as tf  # noqa: E402

from mobilenet import loading  # noqa: E402
from mobilenet.models import safe_loading, saving  # noqa: E402
from mobilenet.packing import container  # noqa: E402
from mobilenet.packing import model as packed_model  # noqa: E402

SECONDS, MEGABYTES = 2.0, 200
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in every form."""
    folder = tmp_path_factory.mktemp("sound")
    layers = tf_keras.layers
    image = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2", name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = tf_keras.Model(image, layers.Dense(2, name="dense")(x), name="sound")
    for name in ("x.keras", "x.h5"):
        model.save(folder / name)
    model.save(folder / "saved", save_format="tf")
    (folder / "x.packed").write_bytes(
        packed_model.pack(saving.LoadedModel(model, saving.card_of(model)))
    )
    return {path.name: path for path in folder.iterdir()}


FORMS = ("x.keras", "x.h5", "saved", "x.packed")


def edited(sound: dict[str, Path], form: str, tmp_path: Path, edit: Edit) -> Path:
    """A copy of the model whose description was changed."""
    source, target = sound[form], tmp_path / form
    if form == "x.keras":
        with zipfile.ZipFile(source) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"])
        edit(config)
        parts["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
    elif form == "x.h5":
        shutil.copy(source, target)
        with h5py.File(target, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            edit(config)
            file.attrs["model_config"] = json.dumps(config)
    elif form == "saved":
        from tf_keras.protobuf import saved_metadata_pb2

        shutil.copytree(source, target)
        nodes = saved_metadata_pb2.SavedMetadata()
        nodes.ParseFromString((target / "keras_metadata.pb").read_bytes())
        for node in nodes.nodes:
            if node.node_path == "root":
                config = json.loads(node.metadata)
                edit(config)
                node.metadata = json.dumps(config)
        (target / "keras_metadata.pb").write_bytes(nodes.SerializeToString())
    else:
        header, records = container.read(source)
        edit(header["keras"])
        target.write_bytes(container.assemble(header, records))
    return target


def load(path: Path) -> Any:
    return loading.load_model(path).model


def refused(path: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and "/mobilenet-" not in message


@pytest.fixture
def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras must not be asked to build anything."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("Keras was asked to build what must be refused")

    monkeypatch.setattr(tf_keras.models, "model_from_config", fail)
    monkeypatch.setattr(tf_keras.models, "load_model", fail)


def operator_layer(function: str, value: Any, arguments: dict[str, Any]) -> Edit:
    """Adds a stock layer that calls a function with constants as the model is built."""

    def edit(config: dict[str, Any]) -> None:
        config["config"]["layers"].append(
            {
                "class_name": "TFOpLambda",
                "config": {"name": "extra", "trainable": True, "function": function},
                "name": "extra",
                "inbound_nodes": [["_CONSTANT_VALUE", -1, value, arguments]],
            }
        )

    return edit


@pytest.fixture
def fetched() -> Iterator[tuple[str, list[str]]]:
    """Address of a server on this machine, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x", asked
        server.shutdown()


def test_the_attack_works_on_keras_alone(sound: dict[str, Path], tmp_path: Path) -> None:
    """Else the tests below would verify nothing."""
    marker = tmp_path / "written"
    edit = operator_layer("io.write_file", str(marker), {"contents": "x"})
    with pytest.raises(Exception, match="."):  # it writes first and fails afterwards
        tf_keras.models.load_model(edited(sound, "x.h5", tmp_path, edit), compile=False)
    assert marker.exists()


@pytest.mark.usefixtures("no_building")
@pytest.mark.parametrize("form", FORMS)
def test_no_function_of_a_file_is_called(
    form: str, sound: dict[str, Path], tmp_path: Path, fetched: tuple[str, list[str]]
) -> None:
    marker = tmp_path / "written"
    attacks: list[tuple[str, Any, dict[str, Any]]] = [
        ("io.write_file", str(marker), {"contents": "x"}),
        ("io.read_file", "/etc/hostname", {}),
        ("load_op_library", str(tmp_path / "evil.so"), {}),
        ("keras.utils.get_file", "x", {"origin": fetched[0], "cache_dir": str(tmp_path)}),
        ("py_function", "x", {"inp": [], "Tout": "float32"}),
        ("math.add", 1.0, {"y": 2.0}),  # harmless, but of constants alone
    ]
    for number, (function, value, arguments) in enumerate(attacks):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = edited(sound, form, folder, operator_layer(function, value, arguments))
        refused(path, "layer 'extra'")
    assert not marker.exists() and not fetched[1]


@pytest.mark.parametrize("command", ["evaluator", "predict", "converter", "profiler", "packer"])
def test_commands_refuse_before_anything_is_built(
    command: str, sound: dict[str, Path], tmp_path: Path, no_building: None
) -> None:
    import importlib

    marker = tmp_path / "written"
    edit = operator_layer("io.write_file", str(marker), {"contents": "x"})
    path = str(edited(sound, "x.keras", tmp_path, edit))
    image = tmp_path / "x.png"
    tf.io.write_file(str(image), tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8)))
    argv = {
        "predict": ["--model", path, str(image)],
        "packer": ["pack", path, str(tmp_path / "out")],
        "profiler": [path],
        "converter": ["--model", path, "--output", str(tmp_path / "out")],
    }.get(command, ["--model", path])
    with pytest.raises(UsageError, match="layer 'extra'"):
        importlib.import_module(f"mobilenet.{command}").run(argv)
    assert not marker.exists() and not (tmp_path / "out").exists()


def first(config: dict[str, Any], name: str) -> dict[str, Any]:
    layer_config: dict[str, Any] = next(x for x in config["config"]["layers"] if x["name"] == name)
    return layer_config


def vocabulary(config: dict[str, Any]) -> None:
    first(config, "conv").update(
        class_name="StringLookup", config={"name": "conv", "vocabulary": "/etc/passwd"}
    )


def initializer(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["kernel_initializer"] = {
        "module": "os",
        "class_name": "system",
        "config": {"command": "true"},
        "registered_name": None,
    }


def regularizer(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["kernel_regularizer"] = {
        "class_name": "StringLookup",
        "config": {"vocabulary": "/etc/passwd"},
    }


def constraint(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["kernel_constraint"] = "deserialize"


def activation(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": "eval",
        "registered_name": "eval",
    }


def policy(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["dtype"] = {
        "class_name": "Functional",
        "config": {"name": "float32x"},
    }


def nested(config: dict[str, Any]) -> None:
    inner = json.loads(json.dumps(config))
    inner["config"]["name"] = "inner"
    first(inner, "conv")["class_name"] = "Lambda"
    config["config"]["layers"].append(
        {**inner, "name": "inner", "inbound_nodes": [[["image", 0, 0, {}]]]}
    )


def wrapped(config: dict[str, Any]) -> None:
    conv = first(config, "conv")
    conv["config"] = {"name": "conv", "layer": {"class_name": "Conv2D", "config": conv["config"]}}


def registered(config: dict[str, Any]) -> None:
    first(config, "conv")["registered_name"] = "Evil>Conv2D"


@pytest.mark.usefixtures("no_building")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "edit",
    [
        *(vocabulary, initializer, regularizer, constraint, activation, policy, nested, wrapped),
        registered,
    ],
)
def test_no_object_of_a_file_is_created(
    edit: Edit, form: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    refused(edited(sound, form, tmp_path, edit), "expected")


@pytest.mark.parametrize("form", FORMS)
def test_settings_to_compile_or_build_with_are_not_read(
    form: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["compile_config"] = {"optimizer": {"module": "os", "class_name": "system"}}
        for layer in config["config"]["layers"]:
            layer["build_config"] = {"input_shape": [None, 1 << 40]}

    model = load(edited(sound, form, tmp_path, edit))
    assert getattr(model, "optimizer", None) is None
    for mine, theirs in zip(model.get_weights(), load(sound[form]).get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_graph_of_a_saved_model_is_not_run(sound: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "written"

    class Evil(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
        def __call__(self, images: Any) -> Any:
            with tf.control_dependencies([tf.io.write_file(str(marker), "x")]):
                return tf.reduce_mean(images, [1, 2])

    tf.saved_model.save(Evil(), str(tmp_path / "evil"))
    tf.saved_model.load(str(tmp_path / "evil"))(tf.zeros([1, 8, 8, 3]))
    assert marker.exists()
    marker.unlink()
    shutil.copytree(sound["saved"], tmp_path / "saved")
    shutil.copy(tmp_path / "evil" / "saved_model.pb", tmp_path / "saved" / "saved_model.pb")
    images = np.ones((2, 8, 8, 3), np.float32)
    outputs = load(tmp_path / "saved")(images).numpy()
    np.testing.assert_array_equal(outputs, load(sound["x.keras"])(images).numpy())
    assert not marker.exists()


@pytest.mark.slow
def test_what_keras_applications_save_is_read(tmp_path: Path) -> None:
    """Operators on tensors, models inside models, augmentation, mixed precision."""
    layers = tf_keras.layers
    base = tf_keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.75, weights=None, include_top=False
    )
    image = layers.Input((32, 32, 3))
    x = layers.RandomFlip("horizontal")(image)
    x = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])(x)
    x = tf_keras.applications.mobilenet_v2.preprocess_input(x)
    x = base(x)[:, ::2, :1, :]
    x = layers.GlobalAveragePooling2D()(1.0 - tf.nn.relu6(tf.concat([x, x], -1)))
    x = tf_keras.Sequential([layers.Dense(8, activation="swish"), layers.Dense(2)])(x)
    model = tf_keras.Model(image, layers.Activation("softmax", dtype="float32")(x))
    model.compile("adam", "mse")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    for name in ("x.keras", "x.h5"):
        model.save(tmp_path / name)
        loaded = load(tmp_path / name)
        assert loaded.get_config() == tf_keras.models.load_model(tmp_path / name).get_config()
        np.testing.assert_array_equal(loaded(images).numpy(), model(images).numpy())


def test_loading_draws_no_random_numbers(sound: dict[str, Path]) -> None:
    tf.random.set_seed(1)
    expected = tf.random.uniform([4]).numpy()
    tf.random.set_seed(1)
    load(sound["x.keras"])
    np.testing.assert_array_equal(tf.random.uniform([4]).numpy(), expected)


@pytest.fixture
def small() -> Iterator[None]:
    """What runs here takes at most 2 s and 200 MB."""
    refs = Path("/proc/self/clear_refs")
    if not refs.exists():
        pytest.skip("memory is measured by Linux' /proc")
    status = Path("/proc/self/status")

    def megabytes(key: str) -> float:
        line = next(x for x in status.read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024

    refs.write_text("5")  # the peak starts anew
    before, start = megabytes("VmRSS"), time.thread_time()
    yield
    assert time.thread_time() - start < SECONDS
    assert megabytes("VmHWM") - before < MEGABYTES


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("units", [1 << 14, 1 << 31, 10**15])
def test_a_layer_is_no_larger_than_what_the_file_holds(
    units: int, form: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    def edit(config: dict[str, Any]) -> None:
        first(config, "dense")["config"]["units"] = units

    refused(edited(sound, form, tmp_path, edit), "weights|build")


@pytest.mark.usefixtures("small")
def test_outputs_have_a_bound(sound: dict[str, Path], tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        pool = first(config, "pool")
        pool.update(class_name="UpSampling2D", config={"name": "pool", "size": [1 << 16, 1 << 16]})

    refused(edited(sound, "x.keras", tmp_path, edit), "at most 268435456 outputs")


@pytest.mark.usefixtures("small")
def test_a_packed_config_builds_no_more_than_its_arrays(tmp_path: Path) -> None:
    for fields in ({"width_multiplier": 16.0}, {"num_classes": 10**6}, {"width_multiplier": 0.25}):
        config = archs.get("mobilenet_v1", **fields)
        header = {"card": Card().to_json(), "config": config.to_json(), "keras": None}
        data = container.assemble({**header, "ranges": False, "input_shape": [224, 224, 3]}, [])
        assert len(data) < 2000
        (tmp_path / "x.packed").write_bytes(data)
        refused(tmp_path / "x.packed", "weights that are not those")


def test_a_model_has_a_bound() -> None:
    from mobilenet.models.builder import build

    for fields in ({"width_multiplier": 16.0}, {"num_classes": 10**6}):
        with pytest.raises(UsageError, match="parameters"):
            build(archs.get("mobilenet_v1", **fields), (224, 224, 3))
    with pytest.raises(UsageError, match="num_classes.*at most 1000000"):
        archs.get("mobilenet_v1", num_classes=10**7)


@pytest.mark.usefixtures("small")
def test_archives_do_not_inflate(sound: dict[str, Path], tmp_path: Path) -> None:
    zeros = bytes(1 << 20)

    def written(name: str, member: str, size: int) -> Path:
        with zipfile.ZipFile(sound["x.keras"]) as archive:
            parts = {n: archive.read(n) for n in archive.namelist() if n != member}
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
            for part, data in parts.items():
                target.writestr(part, data)
            with target.open(member, "w", force_zip64=False) as file:
                for _ in range(size):
                    file.write(zeros)
        return tmp_path / name

    refused(written("bomb.keras", "model.weights.h5", 300), "alone|bytes|times")
    refused(written("extra.keras", "padding", 1), "alone")
    refused(written("config.keras", "config.json", 100), "bytes|times")


def test_weights_come_from_the_file_alone(sound: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    shutil.copy(sound["x.h5"], tmp_path / "other.h5")

    def external_storage(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        group.create_dataset(name, shape, "f4", external=[(str(tmp_path / "secret"), 0, 432)])

    def external_link(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        group[name] = h5py.ExternalLink("other.h5", "/model_weights/conv/conv/kernel:0")

    def soft_link(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        group[name] = h5py.SoftLink("/model_weights/dense/dense/kernel:0")

    def virtual(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource("other.h5", "/model_weights/conv/conv/kernel:0", shape)
        group.create_virtual_dataset(name, layout)

    def unwritten(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        group.create_dataset(name, (1 << 20, *shape[1:]), "f4")

    def compressed(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        data = np.zeros((1 << 18, *shape[1:]), "f4")
        group.create_dataset(name, data=data, compression="gzip")

    def texts(group: h5py.Group, name: str, shape: tuple[int, ...]) -> None:
        group.create_dataset(name, data=["a", "b"])

    for change in (
        *(external_storage, external_link, soft_link, virtual, unwritten, compressed, texts),
    ):
        path = tmp_path / "x.h5"
        shutil.copy(sound["x.h5"], path)
        with h5py.File(path, "r+") as file:
            group = file["model_weights/conv/conv"]
            shape = group["kernel:0"].shape
            del group["kernel:0"]
            change(group, "kernel:0", shape)
        refused(path, "an HDF5 file of its own")


def test_an_object_has_one_name(sound: dict[str, Path], tmp_path: Path) -> None:
    """Links in a circle would be followed without end, one array read many times."""
    for target in ("model_weights", "model_weights/dense/dense/kernel:0"):
        shutil.copy(sound["x.h5"], tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            file["model_weights/conv/again"] = file[target]
        refused(tmp_path / "x.h5", "another name of the same object")


def test_a_weight_is_named_once(sound: dict[str, Path], tmp_path: Path) -> None:
    """Keras reads each array that is named before it counts them."""
    shutil.copy(sound["x.h5"], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        layer = file["model_weights/dense"]
        layer.attrs["weight_names"] = [b"dense/kernel:0", b"./dense/kernel:0"]
    refused(tmp_path / "x.h5", "named twice")


def test_a_text_is_not_listed_without_end(sound: dict[str, Path], tmp_path: Path) -> None:
    """Each of a list may be the same megabyte."""
    shutil.copy(sound["x.h5"], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["model_config"] = "x" * (1 << 20)
        file.attrs["names"] = ["a"] * 1025
    refused(tmp_path / "x.h5", "attribute names of / may have")


def test_a_description_is_one_text(sound: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(sound["x.h5"], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["model_config"] = ["a", "b"]
    refused(tmp_path / "x.h5", "model_config is not a text")


def circle(config: dict[str, Any]) -> None:
    first(config, "conv")["inbound_nodes"] = [[["pool", 0, 0, {}]]]


def absent_call(config: dict[str, Any]) -> None:
    first(config, "dense")["inbound_nodes"] = [[["pool", 7, 0, {}]]]


def unknown_layer(config: dict[str, Any]) -> None:
    first(config, "dense")["inbound_nodes"] = [[["nobody", 0, 0, {}]]]


def two_names(config: dict[str, Any]) -> None:
    first(config, "dense")["config"]["name"] = "other"


def same_name(config: dict[str, Any]) -> None:
    config["config"]["layers"].append(first(config, "dense"))


def many(config: dict[str, Any]) -> None:
    config["config"]["layers"] = [first(config, "image")] * (safe_loading.MAX_LAYERS + 1)


def deep(config: dict[str, Any]) -> None:
    for _ in range(10):
        inner = json.loads(json.dumps(config))
        inner["config"]["name"] = "inner"
        config["config"]["layers"] = [
            *config["config"]["layers"][:1],
            {**inner, "name": "inner", "inbound_nodes": [[["image", 0, 0, {}]]]},
        ]
        config["config"]["output_layers"] = [["inner", 1, 0]]


def inner_model(config: dict[str, Any], calls: int) -> dict[str, Any]:
    """A copy of the model as a layer of itself."""
    inner = json.loads(json.dumps(config))
    inner["config"]["name"] = "inner"
    nodes = [[["image", 0, 0, {}]]] * calls
    return {**inner, "name": "inner", "inbound_nodes": nodes}


def laughs(config: dict[str, Any]) -> None:
    """Ten calls of a model that calls a model ten times, and so on: 10^6 of the innermost."""
    for _ in range(6):
        inner = inner_model(config, 10)
        config["config"]["layers"] = [config["config"]["layers"][0], inner]
        config["config"]["output_layers"] = [["inner", 10, 0]]


def absent_output(config: dict[str, Any]) -> None:
    first(config, "dense")["inbound_nodes"] = [[["pool", 0, 7, {}]]]


def absent_keyword(config: dict[str, Any]) -> None:
    first(config, "dense")["inbound_nodes"] = [[["pool", 0, 0, {"mask": ["image", 0, 7]}]]]


def odd_keyword(config: dict[str, Any]) -> None:
    first(config, "dense")["inbound_nodes"] = [[["pool", 0, 0, {"mask": ["image", None, 0]}]]]


def no_inner_input(config: dict[str, Any]) -> None:
    dense = {"class_name": "Dense", "config": {"name": "inner_dense", "units": 2}}
    dense["config"]["input_shape"] = [4]  # type: ignore[index]
    config["config"]["layers"].append(
        {
            "class_name": "Sequential",
            "config": {"name": "inner", "layers": [dense]},
            "name": "inner",
            "inbound_nodes": [[["pool", 0, 0, {}]]],
        }
    )


def large_input(config: dict[str, Any]) -> None:
    first(config, "image")["config"]["batch_input_shape"] = [None, 1 << 20, 1 << 20, 3]


def odd_function(config: dict[str, Any]) -> None:
    first(config, "pool").update(class_name="TFOpLambda", config={"name": "pool", "function": [1]})


def odd_activation(config: dict[str, Any]) -> None:
    first(config, "conv")["config"]["activation"] = {"class_name": [1], "config": {}}


def no_outputs(config: dict[str, Any]) -> None:
    config["config"]["output_layers"] = []


@pytest.mark.usefixtures("no_building", "small")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "edit",
    [
        *(circle, absent_call, unknown_layer, two_names, same_name, many, deep, no_outputs),
        *(laughs, absent_output, absent_keyword, odd_keyword, no_inner_input, large_input),
        *(odd_function, odd_activation),
    ],
)
def test_models_that_cannot_be_computed_are_refused(
    edit: Edit, form: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    """Keras waits without end for an output that never comes."""
    refused(edited(sound, form, tmp_path, edit), "expected")


def test_an_unknown_layer_is_named() -> None:
    layer = {"class_name": "LSTM", "module": "keras.layers", "config": {"name": "memory"}}
    config = {"class_name": "Sequential", "config": {"name": "x", "layers": [layer]}}
    with pytest.raises(safe_loading.RefusedModel, match="LSTM.*image models"):
        safe_loading.sanitize(config)


def test_a_heap_that_hdf5_never_leaves_is_refused(sound: dict[str, Path], tmp_path: Path) -> None:
    """An entry of length 0: HDF5 would read it again and again."""
    data = bytearray(sound["x.h5"].read_bytes())
    start = data.find(b"GCOL") + 16
    data[start : start + 64] = bytes(64)
    data[start - 11] = 7  # a reserved byte, which HDF5 does not look at
    (tmp_path / "x.h5").write_bytes(data)
    refused(tmp_path / "x.h5", "a heap with an entry")
