"""What is damaged, and what a user then does with it: one target for each kind of input."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import containers, mutations, seeds
from mobilenet import evaluator, packer, predict, profiler, trainer
from mobilenet.errors import UsageError


class Accepted(Exception):
    """The input was taken; what would come next is not what is tested."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: as on the command line of `scripts/fuzz.sh`.
        make: fills an empty folder with sound files.
        damage: changes files in a copy of that folder.
        use: does with them what a user would, by a command or a public function. The working
            folder is another one, and empty.
    """

    name: str
    make: Callable[[Path], object]
    damage: Callable[[random.Random, Path], object]
    use: Callable[[Path], object]


def damaging(name: str, *changes: mutations.Change) -> Callable[[random.Random, Path], None]:
    """Damage to the file of that name, or to one of those that match it, by one of `changes`."""

    def damage(rng: random.Random, folder: Path) -> None:
        files = sorted(path for path in folder.glob(name) if path.is_file())
        containers.rewritten(rng.choice(files), rng.choice(changes), rng)

    return damage


def stopped_by(expected: str, run: Callable[[], object]) -> None:
    """Runs what ends in one refusal that the case provides for; any other one counts."""
    try:
        run()
    except UsageError as error:
        if expected in str(error):
            raise Accepted from None
        raise


_OCCUPIED = "a new folder or one that holds"


def write_occupied(folder: Path) -> None:
    """A folder that no command writes to: what comes before that is tested, and not a training."""
    (folder / "occupied").mkdir()
    (folder / "occupied/notes.txt").write_text("mine")


# Flags

_VALUES = (
    "",
    "x",
    "0",
    "-1",
    "1",
    "0.5",
    "1e308",
    "-inf",
    "nan",
    "none",
    "true",
    "9" * 400,
    "1e-320",
)
_VALUES += (
    "/dev/zero",
    "/dev/null",
    ".",
    "/",
    "y" * 300,
    "a=b",
    "a[=0.5",
    "=",
    ",",
    "1,2,3",
    "٣",
    "é",
)
_VALUES += (
    "\udcff",
    "a\nb",
    "\x1b[2J",
    "--",
    "{}",
    "%s",
    "~",
    "digits",
    "int8",
    "9" * 19,
    "1_0",
    " ",
)
_TYPED = {
    int: ("3", "0", "-5", "10000000000"),
    float: ("0.3", "1e-9", "7"),
    bool: ("true", "maybe"),
}


def commands() -> dict[str, tuple[Any, list[str]]]:
    """Each command with valid arguments; a `{}` is the folder of the case."""
    from mobilenet import converter
    from mobilenet.tf1_loader import __main__ as tf1_loader

    return {
        "trainer": (trainer, ["--model_dir={}/occupied"]),
        "evaluator": (evaluator, ["--model={}/export", "--dataset_name=digits", "--limit=4"]),
        "predict": (predict, ["--model={}/export", "{}/photo.png"]),
        "profiler": (profiler, ["{}/export"]),
        "packer": (packer, ["info", "{}/model.packed", "--noflatbuffer"]),
        "converter": (converter, ["--model={}/small.keras", "--output=export"]),
        "tf1_loader": (tf1_loader, ["--checkpoint={}/photo.png", "--output={}/occupied"]),
    }


def make_flags(folder: Path) -> None:
    write_occupied(folder)
    seeds.write_export(folder / "export")
    seeds.write_photo(folder / "photo.png")
    (folder / "model.packed").write_bytes(seeds.packed())
    seeds.model().save(folder / "small.keras")


def damage_flags(rng: random.Random, folder: Path) -> None:
    """Writes a command and its arguments: one to three flags more, and sometimes one changed."""
    name = rng.choice(sorted(commands()))
    module, args = commands()[name]
    specs = module.COMMAND.flags()
    more = [_flag(rng, rng.choice(specs)) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.2 and name not in ("trainer", "tf1_loader"):
        args[rng.randrange(len(args))] = rng.choice(_VALUES)
    if rng.random() < 0.1:
        more.append(rng.choice(("--no_such_flag", "-", "-x", "--=", "---", "--lr", "--override")))
    seeds.write_json(folder / "words.json", [name, *more, *args])


def _flag(rng: random.Random, spec: Any) -> str:
    if spec.name in ("override", "config_file") and rng.random() < 0.5:
        paths = ("train.lr", "model", "model.channels", "seed", "train.lr_boundaries", "image_size")
        return f"--{spec.name}={rng.choice(paths)}={rng.choice(_VALUES)}"
    typed = _TYPED.get(spec.type, _VALUES)
    value = rng.choice(typed if rng.random() < 0.5 else _VALUES)
    if spec.type is bool and rng.random() < 0.5:
        return rng.choice((f"--{spec.name}", f"--no{spec.name}"))
    return f"--{spec.name}={value}"


def use_flags(folder: Path) -> None:
    name, *args = json.loads((folder / "words.json").read_text())
    module = commands()[name][0]
    args = [word.replace("{}/", f"{folder}/") for word in args]
    stopped_by(_OCCUPIED, lambda: module.run(args))


# Configs, cards, reports


def make_config(folder: Path) -> None:
    from mobilenet.configs import archs, recipes

    write_occupied(folder)
    seeds.write_json(folder / "config.json", seeds.run_config().to_json())
    other = recipes.get("mobilenet_v3_small", "digits")
    small = archs.get("mobilenet_v3_small", num_classes=seeds.CLASSES)
    other = other.replace(model=small, image_size=seeds.SIDE)
    seeds.write_json(folder / "other.json", other.to_json())


def damage_config(rng: random.Random, folder: Path) -> None:
    name = rng.choice(("config.json", "other.json"))
    path = folder / name
    if rng.random() < 0.6:  # a field near the root counts as much as one of the many in the rows
        value = json.loads(path.read_text())
        key = rng.choice([key for key in value if isinstance(value[key], dict)])
        part = {k: v for k, v in value[key].items() if k != "blocks"}
        odd = mutations.odd_json(rng, part) if rng.random() < 0.5 else {}
        value[key] |= odd if isinstance(odd, dict) else {"": odd}
        if rng.random() < 0.5:
            value[rng.choice(sorted(value))] = mutations.odd(rng)
        else:
            inner = rng.choice(sorted(value[key]))
            value[key][inner] = mutations.odd(rng)
        path.write_text(mutations.json_text(rng, value), "utf-8", "surrogatepass")
    else:
        containers.rewritten(path, mutations.damaged_json, rng)
    path.rename(folder / "damaged.json")


def use_config(folder: Path) -> None:
    """By the trainer, up to the run folder; then its model is built."""
    path = str(folder / "damaged.json")
    args = [f"--config_file={path}", f"--model_dir={folder / 'occupied'}"]
    try:
        stopped_by(_OCCUPIED, lambda: trainer.run(args))
    except Accepted:
        from mobilenet.configs.run import RunConfig
        from mobilenet.models import builder

        config = RunConfig.from_json(json.loads(Path(path).read_text()))
        builder.build(config.model, config.input_shape)


def make_card(folder: Path) -> None:
    seeds.write_export(folder / "export")
    seeds.write_model_folder(folder / "model")
    seeds.write_photo(folder / "photo.png")


def damage_card(rng: random.Random, folder: Path) -> None:
    """The card of a flatbuffer, which the runtime reads, or that of a Keras model."""
    chosen, other = rng.sample(("export", "model"), 2)
    containers.rewritten(folder / chosen / "card.json", mutations.damaged_json, rng)
    shutil.rmtree(folder / other)


def use_card(folder: Path) -> None:
    model = next(path for path in folder.iterdir() if path.is_dir())
    predict.run([f"--model={model}", str(folder / "photo.png")])


@functools.cache
def _completed_config() -> Any:
    from mobilenet.training import resolve_config

    return resolve_config.resolve(
        seeds.run_config(), resolve_config.Explicit(num_classes=True, batch_norm_decay=True)
    )[0]


def make_report(folder: Path) -> None:
    config = _completed_config().replace(init_checkpoint="absent.keras")
    seeds.write_run(folder / "run", config)
    shutil.copy(folder / "run/config.json", folder / "config.json")
    use_report(folder)


def use_report(folder: Path) -> None:
    """Goes on with the run; a stage that is not finished would begin with what is not there."""
    args = [f"--config_file={folder / 'config.json'}", f"--model_dir={folder / 'run'}"]
    stopped_by("absent.keras", lambda: trainer.run(args))


# TF1 checkpoints and archives


def use_checkpoint(path: Path) -> None:
    from mobilenet import tf1_loader

    tf1_loader.load_tf1_checkpoint(path, input_shape=(seeds.SIDE, seeds.SIDE))


def make_archive(folder: Path) -> None:
    import slim_checkpoints as slim

    prefix = seeds.write_checkpoint(folder / "files")
    slim.write_archive(folder / "model.tgz", slim.parts(prefix, "net/"))
    shutil.rmtree(folder / "files")


def make_npz(folder: Path) -> None:
    import slim_checkpoints as slim

    slim.write_npz(folder / "model.npz", seeds.slim_values())


# timm's files


def make_safetensors(folder: Path) -> None:
    import timm_files

    timm_files.write(folder / "model.safetensors", timm_files.v1_state(seeds.CLASSES))
    seeds.write_json(folder / "config.json", timm_files.hub_config())


def damage_safetensors(rng: random.Random, folder: Path) -> None:
    """The tensors, or timm's description of them."""
    if rng.random() < 0.6:
        path = folder / "model.safetensors"
        containers.rewritten(path, containers.damaged_safetensors, rng)
    else:
        containers.rewritten(folder / "config.json", mutations.damaged_json, rng)


def use_safetensors(folder: Path) -> None:
    """All that is read of them, without a model, which takes longer to build."""
    from mobilenet.weights import safetensors_file, timm_architecture

    path = folder / "model.safetensors"
    detected = timm_architecture.detect(path)
    values = safetensors_file.read_tensors(path)
    for tensor in detected.tensors:
        tensor.value(values[tensor.name])


# Models


def make_keras(folder: Path) -> None:
    seeds.model().save(folder / "model.keras")


def make_h5(folder: Path) -> None:
    seeds.model().save(folder / "model.h5")


def make_saved_model(folder: Path) -> None:
    seeds.model().save(folder / "model", save_format="tf")


def damage_keras(rng: random.Random, folder: Path) -> None:
    """One odd part, or a layer of a class that would write a file in the working folder."""
    path = folder / "model.keras"
    if rng.random() < 0.85:
        containers.rewritten(path, containers.damaged_zip, rng)
        return
    containers.rewritten(path, _with_foreign_layer, rng)


def _with_foreign_layer(rng: random.Random, data: bytes) -> bytes:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(members["config.json"])
    layers = described["config"]["layers"]
    layers[rng.randrange(len(layers))] |= foreign(rng)
    members["config.json"] = json.dumps(described).encode()
    return containers.zipped(list(members.items()))


def foreign(rng: random.Random) -> dict[str, Any]:
    """Keras' description of an object that is no layer: calling it leaves a file, no more."""
    written = {"file": "written", "mode": "w"}
    return rng.choice(
        (
            {"module": "builtins", "class_name": "open", "config": written},
            {"module": "io", "class_name": "open", "config": written},
            {"module": "os", "class_name": "mkdir", "config": {"path": "written"}},
            {"module": "builtins", "class_name": "function", "config": "open"},
            {"module": "keras.layers", "class_name": "Lambda"},
            {"module": "keras.src.saving", "class_name": "load_model", "config": {"path": "x"}},
            {"module": "numpy", "class_name": "zeros", "config": {"shape": 3}},
            {"class_name": "__lambda__", "config": {"value": "AAAA"}},
            {"registered_name": "builtins>open", "config": written},
            {"build_config": {"input_shape": [1 << 40]}},
            {"inbound_nodes": []},
        )
    )


def damage_saved_model(rng: random.Random, folder: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    model = folder / "model"
    action = rng.random()
    if action < 0.3:
        damaging("model/*", mutations.noise)(rng, folder)
    elif action < 0.45:
        damaging("model/variables/*", containers.damaged_table)(rng, folder)
    elif action < 0.7:
        path = model / "saved_model.pb"
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        containers.damaged_message(rng, saved)
        path.write_bytes(saved.SerializeToString())
    else:
        path = model / "keras_metadata.pb"
        metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
        node = rng.choice(metadata.nodes)
        if rng.random() < 0.7:
            text = mutations.damaged_json(rng, node.metadata.encode())
            node.metadata = text.decode("utf-8", "replace")
        else:
            containers.damaged_message(rng, metadata)
        path.write_bytes(metadata.SerializeToString())


def use_model(name: str) -> Callable[[Path], None]:
    """The classes of a photo, by that model."""

    def use(folder: Path) -> None:
        predict.run([f"--model={folder / name}", str(folder / "photo.png")])

    return use


def with_photo(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def make_both(folder: Path) -> None:
        seeds.write_photo(folder / "photo.png")
        make(folder)

    return make_both


def make_packed(folder: Path) -> None:
    (folder / "model.packed").write_bytes(seeds.packed())


def use_packed(folder: Path) -> None:
    packer.run(["info", str(folder / "model.packed"), "--noflatbuffer"])
    packer.run(["unpack", str(folder / "model.packed"), "model"])


def make_flatbuffer(folder: Path) -> None:
    for name, quantized in (("float", False), ("int8", True)):
        (folder / f"{name}.tflite").write_bytes(seeds.flatbuffer(quantized))


def damage_flatbuffer(rng: random.Random, folder: Path) -> None:
    """One odd field; half of the cases have no photo, so that the file is described and not run."""
    if rng.random() < 0.5:
        (folder / "photo.png").unlink()
    path = folder / rng.choice(("float.tflite", "int8.tflite"))
    containers.rewritten(path, containers.damaged_flatbuffer, rng)
    path.rename(folder / "model.tflite")


def use_flatbuffer(folder: Path) -> None:
    if (folder / "photo.png").exists():
        predict.run([f"--model={folder / 'model.tflite'}", str(folder / "photo.png")])
    else:
        profiler.run([str(folder / "model.tflite"), "--micro"])


# Data


def make_records(folder: Path) -> None:

    import data_sets

    seeds.model().save(folder / "small.keras")
    data_sets.write_records(folder / "records", list(range(1, 11)), files=1, split="validation")


def use_records(folder: Path) -> None:
    args = ["--dataset_name=tfrecord", f"--data_dir={folder / 'records'}", "--label_offset=1"]
    evaluator.run([f"--model={folder / 'small.keras'}", *args])


_KINDS = ("jpg", "png", "bmp", "webp", "gif")


def make_images(folder: Path) -> None:
    seeds.write_export(folder / "export")
    seeds.model().save(folder / "small.keras")
    for kind in _KINDS:
        seeds.write_photo(folder / f"photo.{kind}")


def damage_image(rng: random.Random, folder: Path) -> None:
    """Damages one image; one time in three it is one of the images of class folders."""
    kind = rng.choice(_KINDS)
    path = folder / f"photo.{kind}"
    structured = kind == "png" and rng.random() < 0.7
    containers.rewritten(path, containers.damaged_png if structured else mutations.noise, rng)
    suffix = rng.choice(_KINDS) if rng.random() < 0.1 else "jpg" if kind == "gif" else kind
    damaged = path.rename(folder / f"damaged.{suffix}")
    if rng.random() < 0.67:
        return
    for number in range(seeds.CLASSES):
        images = folder / "images/test" / str(number)
        images.mkdir(parents=True)
        shutil.copy(damaged if number == 3 else seeds.write_photo(folder / "sound.png"), images)


def use_image(folder: Path) -> None:
    """Decoded by TensorFlow for a Keras model where it is in class folders, else by Pillow."""
    if (folder / "images").is_dir():
        data = ["--dataset_name=image_folder", f"--data_dir={folder / 'images'}"]
        evaluator.run([f"--model={folder / 'small.keras'}", *data])
    else:
        damaged = next(folder.glob("damaged.*"))
        model = predict.open_classifier(str(folder / "export"))
        (result,) = predict.predict_images(model, [str(damaged)])
        if isinstance(result, UsageError):  # the command prints its line and goes on
            raise result


TARGETS = {
    target.name: target
    for target in (
        Target("flags", make_flags, damage_flags, use_flags),
        Target("config", make_config, damage_config, use_config),
        Target("card", make_card, damage_card, use_card),
        Target(
            "report",
            make_report,
            damaging("run/[cr]*.json", mutations.damaged_json),
            use_report,
        ),
        Target(
            "tf1_checkpoint",
            seeds.write_checkpoint,
            damaging("model.*", containers.damaged_table),
            lambda folder: use_checkpoint(folder / "model.ckpt-7"),
        ),
        Target(
            "tgz",
            make_archive,
            damaging("model.tgz", containers.damaged_tar),
            lambda folder: use_checkpoint(folder / "model.tgz"),
        ),
        Target(
            "npz",
            make_npz,
            damaging("model.npz", containers.damaged_zip),
            lambda folder: use_checkpoint(folder / "model.npz"),
        ),
        Target("safetensors", make_safetensors, damage_safetensors, use_safetensors),
        Target("keras", with_photo(make_keras), damage_keras, use_model("model.keras")),
        Target(
            "h5",
            with_photo(make_h5),
            damaging("model.h5", containers.damaged_h5),
            use_model("model.h5"),
        ),
        Target("saved_model", with_photo(make_saved_model), damage_saved_model, use_model("model")),
        Target(
            "packed",
            make_packed,
            damaging("model.packed", containers.damaged_packed),
            use_packed,
        ),
        Target("flatbuffer", with_photo(make_flatbuffer), damage_flatbuffer, use_flatbuffer),
        Target(
            "tfrecord",
            make_records,
            damaging("records/*", containers.damaged_records),
            use_records,
        ),
        Target("image", make_images, damage_image, use_image),
    )
}
