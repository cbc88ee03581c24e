"""What a training image costs on its way from its file to a batch, on one core.

    python benchmarks/input_pipeline.py --csv input.csv

480 JPEGs of 500x375 pixels are cut at random from the two photos of scikit-learn (640x427), saved
with quality 87 (49 kB each; --quality 96 --subsampling 0 makes 120 kB, as ImageNet's have), and
written as class folders and as records. Each variant gives batches of 32 float images of 224
pixels:

* `ours` is `mobilenet.data.load` without and with the variation of colors, in its first epoch, in
  which images are decoded to their end, and later; `256` reads what `mobilenet.data.reencode`
  writes;
* `tf.data` decodes the whole image, cuts the same random window, resizes, mirrors and scales it;
* `decode` reads and decodes the whole image and does nothing else;
* `Pillow` does what `tf.data` does; `simplejpeg`, where it is installed, decodes by libjpeg-turbo.

All take turns in one process of one core: some batches are read, then the process rests until what
reads ahead has caught up, so that a batch read is a batch made. The clock is the CPU time of the
threads that make batches, without that of waiting for them. Turns are long, since the first images
of one find the caches full of other things. Figures are medians over the rounds: images a second,
the ratio of times to `tf.data` (whole), and the ratio of rates to `decode`. `--scaling 2` compares
two threads with one by wall clock instead, which needs idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tables

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
BATCH, SIZE = 32, 224
PHOTO = (500, 375)
ASPECT = 4 / 3
WHOLE, DECODE = "tf.data, whole image", "decode alone"


@dataclasses.dataclass
class Variant:
    """A source of batches.

    Attributes:
        read: makes the next batch.
        clock: of the work, in seconds.
        seconds: of each round, for an image.
    """

    read: Callable[[], Any]
    clock: Callable[[], float]
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, in all forms that are read."""

    folders: Path
    records: Path
    shards: Path

    @property
    def paths(self) -> list[str]:
        return sorted(str(path) for path in (self.folders / "train").rglob("*.jpg"))


def cuts(images: int) -> Iterator[Any]:
    """Cuts of `PHOTO` pixels from two photos of scikit-learn, by turns, as Pillow images."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(images):
        photo = photos[number % 2]
        left = int(rng.integers(0, photo.width - PHOTO[0]))
        top = int(rng.integers(0, photo.height - PHOTO[1]))
        yield photo.crop((left, top, left + PHOTO[0], top + PHOTO[1]))


def write_data(root: Path, images: int, quality: int, subsampling: int) -> Data:
    """Class folders of cuts from two photos, the same as records, and re-encoded."""
    from mobilenet import data
    from mobilenet.configs import dataset as datasets
    from mobilenet.configs.reencoding import ReencodingConfig

    for number, cut in enumerate(cuts(images)):
        for split in ("train", "val") if number < 2 else ("train",):
            folder = root / "folders" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            cut.save(folder / f"{number:04d}.jpg", quality=quality, subsampling=subsampling)
    folders = datasets.get("image_folder").replace(data_dir=str(root / "folders"))
    as_they_are = ReencodingConfig(short_side=PHOTO[1])  # small enough: copied byte for byte
    data.reencode(folders, root / "records", as_they_are)
    data.reencode(folders, root / "shards")
    return Data(root / "folders", root / "records", root / "shards")


def whole_image(encoded: Any, area_min: float) -> Any:
    """A training image as tf.data's users decode it."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(encoded, channels=3)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        area_range=(area_min, 1.0),
        aspect_ratio_range=(1 / ASPECT, ASPECT),
        min_object_covered=0.1,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, extent), [SIZE, SIZE])
    image = tf.image.random_flip_left_right(tf.ensure_shape(image, [SIZE, SIZE, 3]))
    return image / 127.5 - 1


def with_threads(batches: Any, threads: int) -> Iterator[Any]:
    """Batches that are made by a number of threads."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return iter(batches.with_options(options))


def batches_of(items: Any, function: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    every = items.shuffle(4096).repeat().map(function, tf.data.AUTOTUNE)
    return every.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def ours(data: Data, source: str, area_min: float, color: float, first: bool = False) -> Any:
    """Batches of later epochs, or of the first one again and again."""
    from mobilenet import data as library
    from mobilenet.configs import dataset as datasets

    name = "image_folder" if source == "folders" else "tfrecord"
    config = datasets.get(name).replace(
        data_dir=str(getattr(data, source)), area_min=area_min, aspect_max=ASPECT, color=color
    )
    options: dict[str, Any] = {
        "image_size": SIZE,
        "batch_size": BATCH,
        "training": True,
        "start_epoch": int(not first),
    }
    batches = library.load(config, "train", **options)
    return batches.take(len(data.paths) // BATCH).repeat() if first else batches


def tensorflow_variants(data: Data, area_min: float) -> dict[str, Any]:
    """Data sets by name."""
    import tensorflow as tf

    from mobilenet.data.record_scan import RecordKeys

    files = tf.data.Dataset.from_tensor_slices(data.paths).map(tf.io.read_file)
    names = sorted(str(path) for path in data.records.glob("train-*"))

    def images_of(names: list[str]) -> Any:
        return tf.data.TFRecordDataset(names).map(lambda record: RecordKeys().parse(record)[0])

    records = images_of(names)
    shards = images_of(sorted(str(path) for path in data.shards.glob("train-*")))
    plain = functools.partial(whole_image, area_min=area_min)
    return {
        WHOLE: batches_of(files, plain),
        "ours, no color": ours(data, "folders", area_min, 0.0),
        "ours, color": ours(data, "folders", area_min, 1.0),
        "ours, no color, first epoch": ours(data, "folders", area_min, 0.0, first=True),
        "records: tf.data, whole": batches_of(records, plain),
        "records: ours, no color": ours(data, "records", area_min, 0.0),
        "records: ours, color": ours(data, "records", area_min, 1.0),
        "256: tf.data, whole": batches_of(shards, plain),
        "256: ours, no color": ours(data, "shards", area_min, 0.0),
        "256: ours, color": ours(data, "shards", area_min, 1.0),
        DECODE: batches_of(files, lambda x: tf.shape(tf.io.decode_jpeg(x, channels=3))),
    }


def other_variants(data: Data, area_min: float) -> dict[str, Callable[[], Any]]:
    """What reads a batch without TensorFlow, by name."""
    import numpy as np
    from PIL import Image

    rng, paths = np.random.default_rng(1), data.paths

    def contents() -> list[bytes]:
        return [Path(path).read_bytes() for path in rng.choice(paths, BATCH)]

    def pillow(content: bytes) -> Any:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        area = image.width * image.height * rng.uniform(area_min, 1)
        aspect = rng.uniform(1 / ASPECT, ASPECT)
        width = min(round((area * aspect) ** 0.5), image.width)
        height = min(round((area / aspect) ** 0.5), image.height)
        left = rng.integers(0, image.width - width + 1)
        top = rng.integers(0, image.height - height + 1)
        box = (left, top, left + width, top + height)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image, np.float32) / 127.5 - 1

    variants: dict[str, Callable[[], Any]] = {
        "Pillow": lambda: np.stack([pillow(content) for content in contents()])
    }
    try:
        import simplejpeg
    except ImportError:
        return variants

    def decode() -> Any:
        return [simplejpeg.decode_jpeg(content) for content in contents()]

    return {**variants, "simplejpeg, decode alone": decode}


def rest() -> None:
    """Waits until no other thread of the process runs."""
    own, quiet = str(os.getpid()), 0
    while quiet < 3:
        time.sleep(0.004)
        states = []
        for task in os.listdir("/proc/self/task"):
            if task != own:
                try:
                    text = Path(f"/proc/self/task/{task}/stat").read_text()
                except OSError:  # it has ended
                    continue
                states.append(text.rpartition(")")[2].split()[0])
        quiet = 0 if "R" in states or "D" in states else quiet + 1


def other_threads() -> float:
    """CPU time of all threads but this one."""
    return time.process_time() - time.thread_time()


def measure(variants: dict[str, Variant], rounds: int, batches: int) -> None:
    """Interleaved; before the first round each variant has had a turn."""
    for number in range(rounds + 1):
        for variant in variants.values():
            started = variant.clock()
            for _ in range(batches):
                variant.read()
            rest()
            if number:
                variant.seconds.append((variant.clock() - started) / (batches * BATCH))


def rows_of(variants: dict[str, Variant]) -> list[list[str]]:
    import numpy as np

    def ratio(one: str, other: str) -> float:
        return float(np.median(np.divide(variants[one].seconds, variants[other].seconds)))

    return [
        [
            name,
            f"{1 / np.median(variant.seconds):,.0f}",
            f"{ratio(name, WHOLE):.3f}",
            f"{ratio(DECODE, name):.3f}",
        ]
        for name, variant in variants.items()
    ]


def scaling_rows(data: Data, area_min: float, threads: int, words: Any) -> list[list[str]]:
    """Rates by wall clock of one thread and several, and the share of the CPU that they had."""
    import numpy as np

    counts = (1, threads)
    variants = {
        f"ours, color, {count} thread(s)": Variant(
            functools.partial(next, with_threads(ours(data, "folders", area_min, 1.0), count)),
            time.perf_counter,
        )
        for count in counts
    }
    cpu, wall = time.process_time(), time.perf_counter()
    measure(variants, words.rounds, 3 * words.batches)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    one, several = (np.array(variant.seconds) for variant in variants.values())
    return [
        *([name, f"{1 / np.median(v.seconds):,.0f}", "", ""] for name, v in variants.items()),
        [f"ratio (CPU time / wall {share:.2f})", f"{np.median(one / several):.2f}", "", ""],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=480, help="JPEGs that are written (480)")
    parser.add_argument("--quality", type=int, default=87, help="of the JPEGs (87)")
    parser.add_argument("--subsampling", type=int, default=2, help="2 is 4:2:0, 0 is 4:4:4 (2)")
    parser.add_argument("--area_min", type=float, default=0.25, help="of a random crop (0.25)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each variant (12)")
    parser.add_argument("--batches", type=int, default=15, help="batches a turn (15)")
    parser.add_argument("--scaling", type=int, help="compare so many threads with one")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    threads = words.scaling or 1
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), words.images, words.quality, words.subsampling)
        total = sum(Path(path).stat().st_size for path in data.paths)
        print(f"{words.images} JPEGs of {total / words.images / 1000:.0f} kB")
        if words.scaling:
            rows = scaling_rows(data, words.area_min, threads, words)
        else:
            variants = {
                name: Variant(functools.partial(next, with_threads(batches, 1)), other_threads)
                for name, batches in tensorflow_variants(data, words.area_min).items()
            }
            others = other_variants(data, words.area_min)
            variants |= {name: Variant(read, time.thread_time) for name, read in others.items()}
            measure(variants, words.rounds, words.batches)
            rows = rows_of(variants)
    heads = ("variant", "images/s", "time / tf.data", "rate / decode")
    tables.show(heads, rows, threads, words.csv)


if __name__ == "__main__":
    main()
