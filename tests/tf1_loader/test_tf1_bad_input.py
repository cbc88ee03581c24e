"""`python -m mobilenet.tf1_loader` reports bad input in one line and writes nothing."""

from __future__ import annotations

import contextlib
import resource
import runpy
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import slim_checkpoints as slim
from command_runs import start_command
from slim_checkpoints import Slim

from mobilenet.errors import UsageError
from mobilenet.tf1_loader import locate

pytest.importorskip("tensorflow")

# Of CPU time, which other work on the machine does not lengthen much; a process imports TensorFlow.
SECONDS = {"here": 5.0, "process": 20.0}
MODEL = Slim("mobilenet_v3_small_minimalistic")


Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """The command in this process, which has TensorFlow already."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mobilenet.tf1_loader", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("mobilenet.tf1_loader", run_name="__main__")
        status = caught.value.code
        assert isinstance(status, int)
        return Ended([], status, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint; copy it to damage it."""
    return slim.written(tmp_path_factory.getbasetemp(), MODEL)[1]


def copied(prefix: Path, folder: Path) -> Path:
    for path in prefix.parent.glob(prefix.name + ".*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / prefix.name


def part(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


INDEX, DATA = ".index", ".data-00000-of-00001"


def nothing_there(prefix: Path, folder: Path) -> Path:
    return folder / "model.ckpt"


def text(prefix: Path, folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("no weights here\n" * 99)
    return path


def empty_folder(prefix: Path, folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def index_alone(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    part(damaged, DATA).unlink()
    return damaged


def truncated_index(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    path = part(damaged, INDEX)
    path.write_bytes(path.read_bytes()[:-100])
    return damaged


def empty_index(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    part(damaged, INDEX).write_bytes(b"")
    return damaged


def keras_3(prefix: Path, folder: Path) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.5.0"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Functional"}')
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return path


def archive_of_none(prefix: Path, folder: Path) -> Path:
    return slim.write_archive(folder / "model.tgz", {"readme.txt": b"no weights"})


def archive_of_two(prefix: Path, folder: Path) -> Path:
    both = slim.parts(prefix, "a/") | slim.parts(prefix, "b/")
    return slim.write_archive(folder / "model.tgz", both)


def archive_with_two_names(prefix: Path, folder: Path) -> Path:
    members = slim.parts(prefix)
    members |= {"other.ckpt" + name.removeprefix(prefix.name): content
                for name, content in members.items()}  # fmt: skip
    return slim.write_archive(folder / "model.tgz", members)


def escaping(prefix: Path, folder: Path) -> Path:
    members = slim.parts(prefix) | {"../escaped.txt": b"out"}
    return slim.write_archive(folder / "model.tgz", members)


def escaping_checkpoint(prefix: Path, folder: Path) -> Path:
    return slim.write_archive(folder / "model.tgz", slim.parts(prefix, "a/../../"))


def absolute(prefix: Path, folder: Path) -> Path:
    members = slim.parts(prefix) | {str(folder.parent / "escaped.txt"): b"out"}
    return slim.write_archive(folder / "model.tgz", members)


def link(kind: bytes) -> Callable[[Path, Path], Path]:
    def make(prefix: Path, folder: Path) -> Path:
        entry = tarfile.TarInfo("model.ckpt" + DATA)
        entry.type, entry.linkname = kind, "/etc/passwd"
        members = {"model.ckpt" + INDEX: part(prefix, INDEX), entry.name: entry}
        return slim.write_archive(folder / "model.tgz", members)

    return make


def broken_archive(prefix: Path, folder: Path) -> Path:
    path = slim.write_archive(folder / "model.tgz", slim.parts(prefix))
    path.write_bytes(path.read_bytes()[:5000])
    return path


def truncated_npz(prefix: Path, folder: Path) -> Path:
    path = slim.write_npz(folder / "model.npz", slim.values(MODEL))
    path.write_bytes(path.read_bytes()[:-1000])
    return path


# What cannot be a checkpoint, and what the message must contain.
LIGHT: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nothing there": (nothing_there, "there is nothing there"),
    "text": (text, "checkpoint"),
    "empty folder": (empty_folder, "checkpoint"),
    "index alone": (index_alone, "data"),
    "truncated index": (truncated_index, "index"),
    "empty index": (empty_index, "index"),
    "keras 3": (keras_3, "eras"),
    "archive of none": (archive_of_none, "checkpoint"),
    "archive of two": (archive_of_two, "one"),
    "archive with two names": (archive_with_two_names, "one"),
    "escaping": (escaping, "escaped.txt"),
    "escaping checkpoint": (escaping_checkpoint, ".."),
    "absolute": (absolute, "escaped.txt"),
    "symlink": (link(tarfile.SYMTYPE), "link"),
    "hard link": (link(tarfile.LNKTYPE), "link"),
    "broken archive": (broken_archive, "model.tgz"),
    "truncated npz": (truncated_npz, "model.npz"),
}


@contextlib.contextmanager
def short(where: str) -> Iterator[None]:
    """What is done here takes seconds of the processor at most."""

    def spent() -> float:
        if where == "here":
            return time.process_time()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    start = spent()
    yield
    assert spent() - start < SECONDS[where]


def refused(ended: Ended, *fragments: str) -> None:
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.endswith("\n")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    for fragment in fragments:
        assert fragment in ended.stderr


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inner" / "work"
    folder.mkdir(parents=True)
    (tmp_path / "aside").mkdir()
    return folder


@pytest.mark.parametrize("case", LIGHT)
def test_what_is_no_checkpoint_is_one_line(case: str, folder: Path, prefix: Path) -> None:
    make, fragments = LIGHT[case]
    path = make(prefix, folder)
    aside = folder.parents[1] / "aside"
    before = tree(folder.parent)
    with short("process"):
        refused(
            start_command("tf1_loader", "-i", path, "-o", "out", cwd=folder, TMPDIR=str(aside)),
            fragments,
        )
    assert tree(folder.parent) == before
    assert not (folder / "out").exists()
    assert list(aside.iterdir()) == []


def flip(path: Path, share: int) -> None:
    """Changes one bit, at one part of `share` of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // share] ^= 4
    path.write_bytes(data)


def truncated_data(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    path = part(damaged, DATA)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return damaged


def flipped_data(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    path = part(damaged, DATA)
    flip(path, 2)
    return damaged


def flipped_index(prefix: Path, folder: Path) -> Path:
    damaged = copied(prefix, folder)
    path = part(damaged, INDEX)
    flip(path, 3)
    return damaged


def flipped_npz(prefix: Path, folder: Path) -> Path:
    path = slim.write_npz(folder / "model.npz", slim.values(MODEL))
    flip(path, 2)
    return path


def foreign(root: str, convolutions: tuple[str, ...]) -> Callable[[Path, Path], Path]:
    """A checkpoint of another of slim's models, by its names."""

    def make(prefix: Path, folder: Path) -> Path:
        arrays: slim.Values = {}
        for scope in convolutions:
            arrays[f"{root}/{scope}/weights"] = np.ones((3, 3, 3, 8), np.float32)
            for leaf in ("beta", "gamma", "moving_mean", "moving_variance"):
                arrays[f"{root}/{scope}/BatchNorm/{leaf}"] = np.ones(8, np.float32)
        arrays[f"{root}/Logits/Conv2d_1c_1x1/weights"] = np.ones((1, 1, 8, 10), np.float32)
        arrays[f"{root}/Logits/Conv2d_1c_1x1/biases"] = np.ones(10, np.float32)
        return slim.write_checkpoint(folder / "model.ckpt", arrays)

    return make


def object_based(prefix: Path, folder: Path) -> Path:
    import tensorflow as tf

    model = tf.train.Checkpoint(step=tf.Variable(1), kernel=tf.Variable(tf.ones((3, 3, 3, 8))))
    return Path(model.write(str(folder / "ckpt-1")))


def sound(prefix: Path, folder: Path) -> Path:
    return prefix


HEAVY: dict[str, tuple[Callable[[Path, Path], Path], tuple[str, ...], str]] = {
    "truncated data": (truncated_data, (), "data"),
    "flipped data": (flipped_data, (), "damaged"),
    "flipped index": (flipped_index, (), "a whole checkpoint"),
    "flipped npz": (flipped_npz, (), "model.npz"),
    "Inception": (
        foreign("InceptionV3", ("Conv2d_1a_3x3", "Mixed_5b/Branch_0/Conv2d_0a_1x1")),
        (),
        "MobileNet",
    ),
    "ResNet": (
        foreign("resnet_v1_50", ("conv1", "block1/unit_1/bottleneck_v1/conv1")),
        (),
        "MobileNet",
    ),
    "TF2": (object_based, (), "TF2"),
    "17 classes": (sound, ("--num_classes=17",), "num_classes"),
    "a narrow image": (sound, ("--image_size=0",), "image_size"),
    "no such folder": (sound, ("--output=/proc/out",), "/proc/out"),
}


@pytest.mark.parametrize("case", HEAVY)
def test_what_cannot_be_loaded_is_one_line(
    case: str, folder: Path, prefix: Path, here: Callable[..., Ended]
) -> None:
    make, args, fragments = HEAVY[case]
    path = make(prefix, folder)
    before = tree(folder)
    with short("here"):
        refused(here("-i", path, "-o", folder / "out", *args), fragments)
    assert tree(folder) == before
    assert not (folder / "out").exists()


def test_a_flipped_bit_is_one_line_in_a_process_too(folder: Path, prefix: Path) -> None:
    path = flipped_data(prefix, folder)
    with short("process"):
        refused(start_command("tf1_loader", "-i", path, "-o", "out", cwd=folder), "damaged")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("args", [(), ("-i", "x.ckpt"), ("-o", "out"), ("--chekpoint=x",)])
def test_missing_and_unknown_flags_are_one_line(args: tuple[str, ...], folder: Path) -> None:
    refused(start_command("tf1_loader", *args, cwd=folder), "--")


def test_an_existing_output_path_is_left_alone(
    folder: Path, prefix: Path, here: Callable[..., Ended]
) -> None:
    (folder / "letters").mkdir()
    (folder / "letters/one.txt").write_text("dear")
    for args in ((), ("--overwrite",)):
        refused(here("-i", prefix, "-o", folder / "letters", *args), "letters")
    (folder / "file").write_text("mine")
    refused(here("-i", prefix, "-o", folder / "file"), "file")
    assert tree(folder) == {"letters/one.txt": b"dear", "file": b"mine"}


@pytest.mark.parametrize(("limit", "most"), [("_MOST_BYTES", 10_000), ("_MOST_MEMBERS", 1)])
def test_an_archive_may_not_grow_without_bounds(
    limit: str, most: int, folder: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = slim.write_archive(folder / "model.tgz", slim.parts(prefix))
    with locate.checkpoint_prefix(path) as extracted:
        assert Path(extracted).with_name(Path(extracted).name + INDEX).exists()
    monkeypatch.setattr(locate, limit, most)
    with pytest.raises(UsageError, match="at most"), locate.checkpoint_prefix(path):
        pass
