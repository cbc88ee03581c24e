"""Invalid input costs one line and leaves no files."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_runs import SHORT, TINY, start_command
from PIL import Image

from mobilenet import converter, evaluator, predict, trainer
from mobilenet.errors import UsageError

pytest.importorskip("tensorflow")

# Flags after the trainer's, and what the message must contain: value, expectation, remedy.
BEFORE_TENSORFLOW = [
    ("--model_name=mobilenet_v4", ["got 'mobilenet_v4'", "one of ", "did you mean mobilenet_v"]),
    ("--stages=train,purne", ["got 'purne'", "one of train, prune", "did you mean prune?"]),
    ("--learning_scheduler_name=cosin", ["got 'cosin'", "one of expon", "did you mean cosine?"]),
    ("--optimizer_name=addam", ["got 'addam'", "one of sgd,", "did you mean adam?"]),
    ("--pruning=magnitud", ["--pruning: got 'magnitud'", "did you mean magnitude?"]),
    ("--quantization=qta", ["--quantization: got 'qta'", "one of qat"]),
    ("--distribution_strategy=mirored", ["got 'mirored'", "did you mean mirrored?"]),
    ("--width_multiplier=0", ["--width_multiplier: got 0.0", "a number above 0", "0.25"]),
    ("--width_multiplier=-1", ["--width_multiplier: got -1.0", "a number above 0"]),
    ("--lr=nan", ["--lr: got nan", "a number above 0", "0.001"]),
    ("--lr=-1", ["--lr: got -1.0", "a number above 0"]),
    ("--batch_size=0", ["--batch_size: got 0", "at least 1", "32"]),
    ("--epochs=-2", ["--epochs: got -2", "at least 0"]),
    ("--final_sparsity=1.0", ["--final_sparsity", "got 1.0", "below 1", "0.5"]),
    ("--final_sparsity=-0.1", ["--final_sparsity", "got -0.1", "at least 0"]),
    ("--final_sparsity=abc", ["--final_sparsity", "got 'abc'"]),
    ("--distill_weight=1.5", ["--distill_weight: got 1.5", "at least 0 and at most 1"]),
    ("--distill_temperature=0", ["--distill_temperature: got 0.0", "above 0"]),
    ("--image_size=0", ["--image_size: got 0", "at least 1"]),
    ("--image_size=48,0", ["--image_size: got 0", "at least 1", "48,96"]),
    ("--image_size=1,2,3", ["--image_size: got '1,2,3'", "2 values"]),
    ("--image_size=48x96", ["--image_size: got '48x96'", "a whole number"]),
    ("--channels=2", ["--channels: got 2", "one of (1, 3)"]),
    ("--mixed_precision=float8", ["got 'float8'", "did you mean"]),
    ("--config_file=none.json", ["none.json", "a JSON file; there is none"]),
    ("--override=train.lrr=1", ["train.lrr", "did you mean train.lr?"]),
]  # fmt: skip

# The same for what only the data, the model or the folder shows; {} is an empty folder.
AFTER_TENSORFLOW = [
    ("--dataset_name=digit", ["--dataset_name", "'digit'", "did you mean digits?"]),
    ("--image_size=16", ["--image_size: got 16", "at least 32", "use 32"]),
    ("--image_size=32,16", ["--image_size: got (32, 16)", "at least 32", "use 32"]),
    ("--num_classes=7", ["--num_classes: got 7", "10, the classes of digits", "leave it out"]),
    ("--batch_size=2000", ["--batch_size: got 2000", "at most 1257"]),
    (
        "--stages=prune",
        ["--stages: got 'prune'", "a trained model in the run folder", "train,prune"],
    ),
    ("--stages=quantize,convert", ["got 'quantize'", "a trained model", "--init_checkpoint"]),
    ("--stages=convert", ["--stages: got 'convert'", "a trained model", "train,convert"]),
    ("--final_sparsity=no_such_layer=0.5", ["--final_sparsity: got 'no_such_layer'", "a role"]),
    ("--final_sparsity=a[=0.5", ["--final_sparsity: got 'a['", "a regular expression"]),
    ("--distill=nobody", ["--distill: nobody", "there is no"]),
    ("--distill=none.keras", ["--distill: none.keras", "there is nothing there"]),
    ("--distill=start --stages=train", ["--distill: got 'start'", "a stage", "leave it out"]),
    ("--init_checkpoint=none.keras", ["none.keras", "there is nothing there"]),
    ("--init_checkpoint=none.h5", ["none.h5", "there is none"]),
    ("--dataset_name=image_folder", ["--data_dir", "a folder of class folders"]),
    ("--dataset_name=image_folder --data_dir=nowhere", ["--data_dir: got 'nowhere'", "exists"]),
    ("--dataset_name=image_folder --data_dir={}", ["--data_dir", "class folders", "is empty"]),
]  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_message(parts: list[str], message: str) -> None:
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands of this process run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("flag", "parts"), BEFORE_TENSORFLOW, ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_invalid_flag_is_reported_before_anything_is_written(
    flag: str, parts: list[str], here: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        trainer.run([*SHORT, flag, "--model_dir=run"])
    assert_message(parts, str(caught.value))
    assert files_in(here) == []


@pytest.mark.parametrize(
    ("flags", "parts"), AFTER_TENSORFLOW, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_mismatch_is_reported_and_leaves_no_files(
    flags: str, parts: list[str], here: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError) as caught:
        trainer.run([*SHORT, *flags.replace("{}", str(empty)).split(), "--model_dir=deep/run"])
    assert_message(parts, str(caught.value))
    assert files_in(here) == []


@pytest.mark.parametrize("flag", ["--lr=nan", "--image_size=16"])
def test_as_a_process_it_is_one_line_and_status_2(flag: str, tmp_path: Path) -> None:
    done = start_command("trainer", *SHORT, flag, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert re.match(r"--\w+: got .*, expected .*; .+\n$", done.stderr)
    assert files_in(tmp_path) == []


def test_a_set_that_is_not_there_names_what_needs_no_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilenet.data import tfds

    monkeypatch.setattr(tfds, "_has_network", lambda: False)
    with pytest.raises(UsageError) as caught:
        trainer.run(["--dataset_name=cifar10", "--data_dir=sets"])
    assert_message(
        ["--data_dir: got 'sets'", "cifar10", "digits, image_folder or tfrecord"], str(caught.value)
    )
    assert not (here / "runs").exists()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight noisy images, to train, and three of each held out."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


FOLDER = (*TINY, "--dataset_name=image_folder", "--epochs=1", "--batch_size=8", "--stages=train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_photo_is_named_before_anything_is_written(
    split: str, photos: Path, here: Path
) -> None:
    bad = photos / split / "dog" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UsageError) as caught:
        trainer.run([*FOLDER, f"--data_dir={photos}", "--model_dir=run"])
    assert_message([str(bad), "an image that can be decoded", "--skip_corrupt"], str(caught.value))
    assert files_in(here) == []


def test_a_corrupt_photo_is_left_out_when_asked_and_counted(
    photos: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "train" / "dog" / "1.jpg"
    bad.write_bytes(b"no photo")
    trainer.run(
        [*FOLDER, "--epochs=0", f"--data_dir={photos}", "--skip_corrupt", "--model_dir=run"]
    )
    out, err = capfd.readouterr()
    assert "15 images, 1 steps an epoch" in out
    assert out.count("left out 1 corrupt images: " + str(bad)) == 1
    assert err == ""
    (photos / "val/cat/0.jpg").write_bytes(b"no photo")
    with pytest.raises(UsageError, match="0.jpg: expected an image that can be decoded"):
        evaluator.run(["--model=run/train", f"--data_dir={photos}"])


def test_a_photo_that_breaks_in_the_middle_of_an_epoch_is_named(
    photos: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilenet.data import datasets

    monkeypatch.setattr(datasets, "_CHECKED", 0)  # as with more files than are looked at first
    bad = photos / "train" / "cat" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:150])
    with pytest.raises(UsageError) as caught:
        trainer.run([*FOLDER, f"--data_dir={photos}", "--model_dir=run"])
    assert_message([str(bad), "an image that can be decoded", "--skip_corrupt"], str(caught.value))


def test_too_few_photos_for_a_batch(photos: Path, here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        trainer.run([*FOLDER, f"--data_dir={photos}", "--batch_size=17"])
    assert_message(["--batch_size: got 17", "at most 16"], str(caught.value))
    assert files_in(here) == []


def test_a_file_instead_of_the_run_folder(here: Path) -> None:
    (here / "run").write_text("mine")
    for path in ("run", "run/deeper"):
        with pytest.raises(UsageError) as caught:
            trainer.run([*SHORT, f"--model_dir={path}"])
        assert_message(["--model_dir", "expected", "choose another"], str(caught.value))
    assert files_in(here) == ["run"]
    assert (here / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        trainer.run([*SHORT, "--model_dir=/proc/run"])
    assert_message(
        ["--model_dir: got '/proc/run'", "a folder that can be written"], str(caught.value)
    )


def test_a_folder_of_something_else_is_left_alone(here: Path) -> None:
    (here / "letters").mkdir()
    (here / "letters/one.txt").write_text("dear")
    for args in ([], ["--overwrite"]):
        with pytest.raises(UsageError) as caught:
            trainer.run([*SHORT, "--model_dir=letters", *args])
        assert_message(
            ["--model_dir: got 'letters'", "a new folder or one that holds a run"],
            str(caught.value),
        )
    assert files_in(here) == ["letters", "letters/one.txt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_no_half_file(small_disk: Path) -> None:
    done = start_command("trainer", *SHORT, "--stages=train", f"--model_dir={small_disk}/run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert_message(["No space left on device", "free space"], done.stderr.strip())
    assert not list(small_disk.rglob("model.keras"))
    assert not list(small_disk.rglob(".writing*"))


@dataclasses.dataclass(frozen=True)
class Broken:
    name: str
    content: bytes | None
    message: str


BROKEN = [
    Broken("none.keras", None, "there is no"),
    Broken("cut.keras", b"PK\x03\x04 cut", "a whole"),
    Broken("none.tflite", None, "there is no"),
    Broken("cut.tflite", b"\x1c\x00\x00\x00TFL3" + b"\x00" * 40, "cut.tflite"),
    Broken("text.txt", b"hello", "expected"),
    Broken("folder", None, "there is no"),
]


@pytest.mark.parametrize("module", [evaluator, converter, predict], ids=lambda m: m.__name__)
@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_every_command_reports_a_broken_model(module: object, broken: Broken, here: Path) -> None:
    if broken.content is not None:
        (here / broken.name).write_bytes(broken.content)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(here / "photo.png")
    before = files_in(here)
    args = [f"--model={broken.name}", *(["photo.png"] if module is predict else [])]
    with pytest.raises(UsageError) as caught:
        module.run(args)  # type: ignore[attr-defined]
    assert_message([broken.name, "expected", broken.message], str(caught.value))
    assert files_in(here) == before


@pytest.mark.parametrize("module", [evaluator, converter, predict], ids=lambda m: m.__name__)
def test_no_model_at_all(module: object, here: Path) -> None:
    with pytest.raises(UsageError, match="--model: expected a saved model; "):
        module.run([])  # type: ignore[attr-defined]
