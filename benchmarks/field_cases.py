"""Cases of real users: what a model's inputs and outputs mean, from a saved model to its file.

    python benchmarks/field_cases.py [--cases WORD ...] [--list] [--data FOLDER]

Every case builds what it needs (models, images) in a folder of its own and downloads nothing. A row
is a function with the decorator `case`: it takes the folder and returns what is seen, as text that
starts with what is expected. Two cases need real weights and photos, and run with `--data` alone.
What version 0.1 gave was recorded from its commands (commit 9106992) on the same input, but for the
accuracy of the fit and its momentum, which its users reported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mobilenet import converter, errors, predict, text_tables, trainer
from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.data.sources import image_csv, image_folder
from mobilenet.runtime.images import decode
from mobilenet.tflite import model as tflite_model

CASES: list[Case] = []


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: unique; what is tried.
        expected: the right result.
        before: the result of version 0.1.
        run: takes an empty folder, returns the result that is seen.
        needs_data: runs with `--data` alone, and takes a folder with that folder's content.
    """

    name: str
    expected: str
    before: str
    run: Callable[[Path], str]
    needs_data: bool = False


def case(
    name: str, expected: str, before: str = "", needs_data: bool = False
) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Adds a function to the table."""

    def add(run: Callable[[Path], str]) -> Callable[[Path], str]:
        CASES.append(Case(name, expected, before, run, needs_data))
        return run

    return add


# What cases are made of


def output_of(command: Callable[[list[str]], object], *words: object) -> str:
    """What a command prints to both streams; of one that refuses its input, the line."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            command([str(word) for word in words])
        except errors.UsageError as error:
            print(error)
    return written.getvalue()


def plain_image(path: Path, value: int, size: int = 32) -> Path:
    """An image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path)
    return path


def save_keras(model: Any, path: Path) -> Path:
    """A model in one `.keras` file, without anything that this library stores with a model."""
    model.save(path)
    return path


def best(text: str) -> str:
    """The first label and its probability of each table that `predict` printed."""
    lines = text.splitlines()
    rows = [lines[index + 1] for index, line in enumerate(lines) if line and set(line) == {"-"}]
    return ", ".join(" ".join(row.split()) for row in rows) or text.strip().rpartition("\n")[2]


# What a model's inputs mean


def brightness_model(*first: Any) -> Any:
    """Two classes, dark and bright, by the mean of `first(pixels)`, which is in [0, 1]."""
    import tf_keras

    layers = tf_keras.layers
    pool, dense = layers.GlobalAveragePooling2D(), layers.Dense(2)
    model = tf_keras.Sequential([layers.Input((32, 32, 3)), *first, pool, dense])
    dense.set_weights([np.tile([[-2.0, 2.0]], (3, 1)), np.array([3.0, -3.0])])
    return model


@case("Rescaling(1/255) first: white, black", "1 99.75 %, 0 99.75 %", "0 99.74 %, 0 99.76 %")
def rescaling_first(folder: Path) -> str:
    import tf_keras

    model = brightness_model(tf_keras.layers.Rescaling(1 / 255))
    path = save_keras(model, folder / "model.keras")
    return white_and_black(path, folder)


@case(
    "scaled by 255, as int8 file",
    "1 99.7 %, 0 99.7 %",
    "0 99.7 %, 0 99.7 %, said: same top-1 100 %",
)
def rescaling_first_int8(folder: Path) -> str:
    import tf_keras

    model = brightness_model(tf_keras.layers.Rescaling(1 / 255))
    return white_and_black_int8(model, folder)


def gray_folders(folder: Path) -> Path:
    """Class folders 0 and 1 of 40 images, each of one gray with a little noise."""
    noise = np.random.default_rng(0).integers(0, 3, (40, 32, 32, 3))
    for number, pixels in enumerate(np.uint8(noise + np.linspace(0, 253, 40)[:, None, None, None])):
        target = folder / str(number % 2) / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return folder


def white_and_black(path: Path, folder: Path, *words: object) -> str:
    images = [plain_image(folder / f"{value}.png", value) for value in (255, 0)]
    return best(output_of(predict.run, "--model", path, *words, *images))


def white_and_black_int8(model: Any, folder: Path) -> str:
    """What predict shows for the int8 file of a model, with one decimal."""
    path, photos = save_keras(model, folder / "model.keras"), gray_folders(folder / "photos")
    words = ["--number_format", "int8", "--dataset_name", "image_folder", "--data_dir", photos]
    said = output_of(converter.run, "--model", path, *words, "--output", folder / "export")
    if not (folder / "export").is_dir():
        return said.strip().splitlines()[-1]
    seen = white_and_black(folder / "export", folder)
    return re.sub(r"(\d\.\d)\d", r"\1", seen)


# What a model's outputs mean


def sigmoid_model(kernel: Any, bias: Any) -> Any:
    """Sigmoids of the mean of each channel, which is in [-1, 1]."""
    import tf_keras

    layers = tf_keras.layers
    dense = layers.Dense(len(bias), activation="sigmoid")
    pool = layers.GlobalAveragePooling2D()
    model = tf_keras.Sequential([layers.Input((32, 32, 3)), pool, dense])
    dense.set_weights([np.asarray(kernel, np.float32), np.asarray(bias, np.float32)])
    return model


@case("Dense(1, sigmoid): white, black", "1 95.26 %, 0 95.26 %", "0 95.26 %, 0 4.74 %")
def one_sigmoid(folder: Path) -> str:
    path = save_keras(sigmoid_model(np.ones((3, 1)), [0.0]), folder / "model.keras")
    return white_and_black(path, folder)


@case("sigmoid as int8 file", "1 95 %, 0 95 %", "refused: sigmoid")
def one_sigmoid_int8(folder: Path) -> str:
    seen = white_and_black_int8(sigmoid_model(np.ones((3, 1)), [0.0]), folder)
    return re.sub(r"\.\d", "", seen)


@case("sigmoid with --labels of both classes", "day 95.26 %, night 95.26 %", "no such flag")
def names_of_one_sigmoid(folder: Path) -> str:
    path = save_keras(sigmoid_model(np.ones((3, 1)), [0.0]), folder / "model.keras")
    (folder / "labels.txt").write_text("night\nday\n")
    return white_and_black(path, folder, "--labels", folder / "labels.txt")


@case("Dense(3, sigmoid) of logits 3, 2, -3", "95.26 88.08 4.74", "95.26 88.08 4.74")
def three_sigmoids(folder: Path) -> str:
    path = save_keras(sigmoid_model(np.zeros((3, 3)), [3, 2, -3]), folder / "model.keras")
    text = output_of(predict.run, "--model", path, plain_image(folder / "white.png", 255))
    return " ".join(re.findall(r"([\d.]+) %", text))


# What training assumes


def small_v1(**settings: Any) -> Any:
    import mobilenet

    return mobilenet.build("mobilenet_v1", (32, 32, 3), width_multiplier=0.25, **settings)


@case("batch-norm momentum: random, loaded", "0.99, 0.9", "0.9997, 0.9997")
def momentum(folder: Path) -> str:
    path = save_keras(small_v1(num_classes=3), folder / "model.keras")
    models = (small_v1(num_classes=2), small_v1(num_classes=2, weights=path))
    norms = [[x for x in model.layers if hasattr(x, "momentum")] for model in models]
    return ", ".join(f"{layers[0].momentum:g}" for layers in norms)


@case("fit of 4 epochs on ten classes", "70 % or more", "42.4 %", needs_data=True)
def short_fit(folder: Path) -> str:
    """V1 0.25 with Google's 128 px weights and a new head, Adam 1e-3, batch 32, 96 px."""
    import tf_keras

    import mobilenet

    tf_keras.utils.set_random_seed(0)
    weights = folder / "checkpoints" / "mobilenet_v1_0.25_128.ckpt"
    model = mobilenet.build(
        "mobilenet_v1", (96, 96, 3), width_multiplier=0.25, num_classes=10, weights=weights
    )
    train, test = (
        tf_keras.utils.image_dataset_from_directory(
            folder / "photos10" / split, image_size=(96, 96), batch_size=32, seed=0
        ).map(lambda x, y: (x / 127.5 - 1, y))
        for split in ("train", "val")
    )
    optimizer = tf_keras.optimizers.Adam(1e-3)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, epochs=4, verbose=0, validation_data=test).history
    share = 100 * history["val_accuracy"][-1]
    return f"70 % or more: {share:.1f}" if share >= 70 else f"{share:.1f} %"


# Gray images, and inputs that are not square


@case("--channels 1 --image_size 32,48: int8 file", "int8 [1, 32, 48, 1]", "no such flags")
def gray_and_not_square(folder: Path) -> str:
    words = ["--image_size", "32,48", "--channels", "1", "--width_multiplier", "0.25"]
    words += ["--dataset_name", "image_folder", "--data_dir", str(gray_folders(folder / "photos"))]
    words += ["--epochs", "1", "--quantization", "ptq", "--batch_size", "8"]
    words += ["--stages", "train,quantize,convert"]
    text = output_of(trainer.run, *words, "--model_dir", folder / "run")
    path = folder / "run" / "export" / "model.tflite"
    if not path.is_file():
        return text.strip().splitlines()[-1]
    content = tflite_model.read(path)
    source = content.tensors[content.inputs[0]]
    return f"{source.dtype} {list(source.shape)}"


@case("gray TF1 checkpoint: largest error of logits", "below 1e-4", "-", needs_data=True)
def gray_checkpoint(folder: Path) -> str:
    import mobilenet

    path = folder / "checkpoints" / "tinypose_v1_0.25_96_gray"
    golden = np.load(path / "golden.npz")
    model = mobilenet.build(
        "mobilenet_v1",
        (96, 96, 1),
        width_multiplier=0.25,
        num_classes=2,
        weights=path / "model.ckpt-963849",
        classifier_activation=None,
    )
    error = np.abs(model(golden["input"]).numpy() - golden["logits_ema"]).max()
    return "below 1e-4" if error < 1e-4 else f"{error:.1g}"


# Models of other origin


def own_head(layers: Any, base: Any, model: Callable[..., Any]) -> Any:
    x = layers.GlobalAveragePooling2D()(base.output)
    return model(base.input, layers.Dense(5, activation="softmax", name="mine")(x))


@case(
    "keras.applications with a head: weights taken",
    ".keras 135, .h5 135, saved 135",
    "refused: 109 layers do not fit; .h5: mine is left over",
)
def own_heads(folder: Path) -> str:
    import tf_keras

    base = tf_keras.applications.MobileNet((32, 32, 3), 0.25, include_top=False, weights=None)
    theirs = own_head(tf_keras.layers, base, tf_keras.Model)
    arrays = {array.tobytes() for array in base.get_weights()}
    seen = []
    for name in (".keras", ".h5", "saved"):
        theirs.save(folder / f"model{name}")
        try:
            ours = small_v1(num_classes=2, weights=folder / f"model{name}").get_weights()
            seen.append(f"{name} {sum(array.tobytes() in arrays for array in ours)}")
        except errors.UsageError as error:
            seen.append(f"{name} {error}")
    return ", ".join(seen)


def keras_3_outputs(folder: Path, function: Callable[[Any, Any], Any]) -> str:
    """How a model of Keras 3 computes once it is loaded."""
    import keras

    import mobilenet

    theirs = function(keras, keras.layers.Input((32, 32, 3)))
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    seen = []
    for ending in (".keras", ".h5"):
        theirs.save(folder / f"model{ending}")
        try:
            ours = mobilenet.load_model(folder / f"model{ending}").model
        except errors.UsageError as error:
            return str(error)
        expected = np.asarray(theirs(images))
        seen.append(bool(np.allclose(ours(images), expected, atol=1e-5 * np.abs(expected).max())))
    return "the same outputs" if all(seen) else "other outputs"


@case("keras.applications of Keras 3, .keras and .h5", "the same outputs", "refused: of Keras 3")
def keras_3_model(folder: Path) -> str:
    def function(keras: Any, source: Any) -> Any:
        base = keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
        pooled = keras.layers.GlobalAveragePooling2D()(base(source / 127.5 - 1.0))
        return keras.Model(source, keras.layers.Dense(5)(pooled))

    return keras_3_outputs(folder, function)


@case("keras.ops in a model of Keras 3", "the same outputs", "refused: of Keras 3")
def keras_3_operators(folder: Path) -> str:
    def function(keras: Any, source: Any) -> Any:
        ops = keras.ops
        x = ops.relu(keras.layers.Conv2D(8, 3, strides=2)(source / 255.0))
        x = ops.concatenate([x, ops.hard_silu(x)], axis=-1)
        pooled = ops.mean(x, axis=(1, 2))
        return keras.Model(source, ops.softmax(keras.layers.Dense(5)(pooled)))

    return keras_3_outputs(folder, function)


# What a file says


@case("signature of a file", "serving_default: images -> logits, as the model", "none")
def signature(folder: Path) -> str:
    import tensorflow as tf

    model = small_v1(num_classes=3, classifier_activation=None)
    path = save_keras(model, folder / "model.keras")
    words = ["--number_format", "float32", "--output", folder / "export"]
    output_of(converter.run, "--model", path, "--preprocessing", "inception", *words)
    file = tf.lite.Interpreter(str(folder / "export" / "model.tflite"))
    ((name, both),) = file.get_signature_list().items()
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    (outputs,) = file.get_signature_runner(name)(**{both["inputs"][0]: images}).values()
    same = np.allclose(outputs, model(images), atol=1e-4)
    text = f"{name}: {both['inputs'][0]} -> {both['outputs'][0]}"
    return f"{text}, as the model" if same else text


@case("names of a file's kernels", "28 of 28 of layers", "0 of 28 of layers")
def names_of_tensors(folder: Path) -> str:
    model = small_v1(num_classes=3)
    path = save_keras(model, folder / "model.keras")
    words = ["--number_format", "float32", "--output", folder / "export"]
    output_of(converter.run, "--model", path, "--preprocessing", "inception", *words)
    layers = [layer.name for layer in model.layers if "Conv2D" in type(layer).__name__]
    content = tflite_model.read(folder / "export" / "model.tflite")
    names = {re.split(r"[/;]", tensor.name)[0] for tensor in content.tensors}
    return f"{len(names & set(layers))} of {len(layers)} of layers"


# What images, folders and lists mean


def training_pixels(path: Path, exif: bool = True) -> np.ndarray | str:
    """Pixels as training decodes them, or the reason why it does not."""
    import tensorflow as tf

    from mobilenet.data import corrupt_images, decoding

    content = path.read_bytes()
    fault = corrupt_images.find_fault(content, MAX_PIXELS)
    return str(fault) if fault else decoding.decode(tf.constant(content), exif=exif).numpy()


def photo(height: int = 40, width: int = 50) -> Image.Image:
    """A smooth image of many colors."""
    coarse = np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@case(
    "EXIF orientations 1 to 8: training and predict", "as upright, 24 files", "as upright, 3 files"
)
def orientations(folder: Path) -> str:
    count = 0
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        for kind in ("jpg", "png", "webp"):
            path = folder / f"{number}.{kind}"
            photo().save(path, exif=exif)
            upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
            same = [np.array_equal(upright, seen) for seen in (training_pixels(path), decode(path))]
            count += all(same)
    return f"as upright, {count} files"


FORMATS: dict[str, Callable[[Path], None]] = {
    "CMYK.jpg": lambda path: photo().convert("CMYK").save(path),
    "16bit.png": lambda path: Image.fromarray(
        np.asarray(photo().convert("L"), np.uint16) * 257
    ).save(path),
    "1bit.png": lambda path: photo().convert("1").save(path),
    "alpha.webp": lambda path: photo().convert("RGBA").save(path, lossless=True),
    "palette.gif": lambda path: photo().quantize(64).save(path),
    "palette.bmp": lambda path: photo().quantize(64).save(path),
    "moving.webp": lambda path: photo().save(path, save_all=True, append_images=[photo(40, 50)]),
    "tiff.jpg": lambda path: photo().save(path, "tiff"),
    "avif.jpg": lambda path: photo().save(path, "avif"),
}


@case("formats: training and predict", "9 of 9 read alike or refused alike", "6 of 9 read alike")
def formats(folder: Path) -> str:
    alike = 0
    for name, write in FORMATS.items():
        write(folder / name)
        trained = training_pixels(folder / name)
        try:
            ours: np.ndarray | str = decode(folder / name)
        except errors.UsageError as error:
            ours = str(error)
        if isinstance(trained, str) or isinstance(ours, str):
            alike += str(trained) in str(ours)
        else:
            alike += bool(np.abs(trained.astype(int) - ours).max() <= 1)
    return f"{alike} of {len(FORMATS)} read alike or refused alike"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def sizes(root: Path) -> str:
    """Images by split, and what is said about the folder."""
    listed = image_folder.list_images(root)
    counts = ", ".join(f"{split} {len(items)}" for split, items in listed.splits.items())
    said = [*listed.notes, *dict.fromkeys(listed.assumed.values())]
    return "; ".join([counts, *(line.replace(str(root), "ROOT") for line in said)])


@case(
    "Train, Valid and Test",
    "train 2, validation 2, test 2",
    "refused: no images in Test, Train, Valid",
)
def split_names(folder: Path) -> str:
    splits = ("Train", "Valid", "Test")
    return sizes(touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab")))


@case(
    "train and test alone",
    "train 2, validation 2, test 2; ROOT has no validation images: those of test are used for both",
    "train 2, validation 2, test 2, and no word",
)
def no_validation(folder: Path) -> str:
    splits = ("train", "test")
    return sizes(touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab")))


@case(
    "unlabeled test/, .tif",
    "train 2, validation 2, test 2; ROOT: 1 file is left out (1 .tif), first train/a/2.tif; "
    "ROOT: 1 folder is left out: test with 2 images; "
    "ROOT has no test images: those of validation are used for both",
    "refused: no class folders in test",
)
def left_out(folder: Path) -> str:
    splits = ("train", "val")
    touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab"))
    return sizes(touch(folder, "train/a/2.tif", "test/1.jpg", "test/2.jpg"))


@case("a class called test", "bus, test", "bus, test")
def class_called_test(folder: Path) -> str:
    touch(folder, *(f"{name}/{number}.jpg" for name in ("bus", "test") for number in range(5)))
    return ", ".join(image_folder.list_images(folder).labels)


@case(
    "lists of Excel and Windows",
    "(0, 1), (0, 1), (0, 1), classes cat, dog",
    "refused: columns, encoding",
)
def spreadsheets(folder: Path) -> str:
    touch(folder, "sub/a.jpg", "sub/b.jpg")
    texts = {
        "utf-8-sig": "File;Label\r\nsub\\a.jpg;0\r\nsub\\b.jpg;1\r\n",
        "utf-16": "file\tlabel\r\nsub/a.jpg\t0.0\r\nsub/b.jpg\t1.0\r\n",
        "utf-8": "LABEL,FILE\ncat,sub/a.jpg\ndog,sub/b.jpg\n",
    }
    labels, listed = [], None
    for encoding, text in texts.items():
        (folder / "list.csv").write_bytes(text.encode(encoding))
        listed = image_csv.read_list(folder / "list.csv")
        labels.append(str(tuple(label for _, label in listed.splits["test"])))
    return f"{', '.join(labels)}, classes {', '.join(listed.labels if listed else ())}"


@case(
    "a list that starts at 1",
    "refused: `label_offset=1` makes them start at 0",
    "read, as 4 classes",
)
def one_based(folder: Path) -> str:
    from mobilenet.configs import recipes
    from mobilenet.training import resolve_config

    photo().save(folder / "a.jpg")
    rows = "".join(f"a.jpg,{label},train\n" for label in (1, 2, 3))
    (folder / "list.csv").write_text(f"file,label,split\n{rows}")
    config = recipes.get("mobilenet_v1", "image_list")
    data = config.dataset.replace(data_dir=str(folder / "list.csv"))
    try:
        resolve_config.resolve(config.replace(dataset=data))
    except errors.UsageError as error:
        return f"refused: {error.remedy.partition(', ')[2]}"
    return "read"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=[], help="words of the names of cases; all")
    parser.add_argument("--list", action="store_true", help="print the names alone")
    parser.add_argument(
        "--data", type=Path, help="folder of `checkpoints` and `photos10`, for the cases with these"
    )
    arguments = parser.parse_args()
    chosen = [c for c in CASES if not arguments.cases or any(w in c.name for w in arguments.cases)]
    chosen = [c for c in chosen if arguments.data or not c.needs_data]
    if arguments.list:
        print(*(case.name for case in chosen), sep="\n")
        return
    rows, wrong = [], 0
    for row in chosen:
        of_keras = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(of_keras):
            seen = row.run(arguments.data if row.needs_data else Path(folder))
        is_right = seen.startswith(row.expected)
        wrong += not is_right
        now = seen if is_right else f"{seen} (expected: {row.expected})"
        rows.append([row.name, row.before, now])
    print(text_tables.table(["case", "version 0.1", "now"], rows))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
