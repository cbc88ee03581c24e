"""`python -m mobilenet.converter`: a proved file from each kind of net, or one line and no file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_runs

from mobilenet import converter
from mobilenet.errors import FailedProof, UsageError
from mobilenet.runtime import flatbuffer
from mobilenet.runtime.classifier import Classifier

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainer_runs.finished(tmp_path_factory.getbasetemp())[0] / "run"


def converted(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, str]:
    """The table that it prints."""
    capfd.readouterr()
    converter.run([*map(str, words)])
    out, err = capfd.readouterr()
    assert err == ""
    rows = [line.split("  ", 1) for line in out.splitlines() if "  " in line]
    return {row[0].strip(): row[1].strip() for row in rows}


def ends(path: Path) -> tuple[Any, Any, flatbuffer.Flatbuffer]:
    content = flatbuffer.read(path)
    return content.tensors[content.inputs[0]], content.tensors[content.outputs[0]], content


def test_a_quantized_folder_gives_the_file_of_the_chain(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = converted(capfd, "--model", run / "quantize", "--output", tmp_path / "out")
    data = (tmp_path / "out/model.tflite").read_bytes()
    assert data == (run / "export/model.tflite").read_bytes()
    assert said["float tensors inside"] == "0"
    assert said["input"] == "int8 [1, 32, 32, 3]"
    assert said["bytes"].startswith(f"{len(data):,} ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "card.json", "labels.txt", "model.tflite",
    ]  # fmt: skip


@pytest.mark.parametrize("io", ["uint8", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_ends_of_an_int8_file_are_chosen(
    run: Path, tmp_path: Path, io: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--io", io, "--verify_images=40"]
    said = converted(capfd, "--model", run / "quantize", "--output", tmp_path / "out", *words)
    source, target, content = ends(tmp_path / "out/model.tflite")
    assert source.dtype == target.dtype == io
    assert all(
        t.dtype != "float32" or t.index in (*content.inputs, *content.outputs)
        for t in content.tensors
    )
    assert "of 40 images" in said["same top-1 as the net"]
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    both = [Classifier(place).logits(images) for place in (tmp_path / "out", run / "export")]
    step = float(ends(run / "export/model.tflite")[1].scales[0])
    np.testing.assert_allclose(*both, atol=1.01 * step)


def test_a_float_folder_gives_a_float_file_that_answers_like_keras(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nothing said, it stands beside the model's folder."""
    shutil.copytree(run / "train", tmp_path / "net")
    said = converted(capfd, "--model", tmp_path / "net")
    assert said["file"] == str(tmp_path / "export/model.tflite")
    assert said["same top-1 as the net"].startswith("100.00%")
    source, target, _ = ends(tmp_path / "export/model.tflite")
    assert source.dtype == target.dtype == "float32"
    net = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    expected = net.predict(images / np.float32(127.5) - 1, verbose=0)
    np.testing.assert_allclose(Classifier(tmp_path / "export").logits(images), expected, atol=1e-4)


def test_a_lone_net_is_proved_on_the_digits(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    net.save(tmp_path / "net.keras")
    said = converted(capfd, "--model", tmp_path / "net.keras", "--output", tmp_path / "out")
    assert said["same top-1 as the net"] == "100.00% of 200 images"
    assert ends(tmp_path / "out/model.tflite")[0].dtype == "float32"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--io=int4"], ["--io: got 'int4'", "one of int8, uint8, float32", "did you mean int8?"]),
        (["--verify_images=0"], ["--verify_images: got 0", "at least 1"]),
        (["--dataset_name=digit"], ["'digit'", "did you mean digits?"]),
        (["--dataset_name=image_folder"], ["--data_dir", "a folder of class folders"]),
        (["--output={file}"], ["--output: got '{file}'", "a file is in its place"]),
        (["--output=/proc/out"], ["--output: got '/proc/out'", "that can be written", "another"]),
    ],
)
def test_wrong_words_leave_no_file(
    run: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    words = [word.replace("{file}", str(tmp_path / "file")) for word in words]
    if not words[0].startswith("--output"):
        words.append(f"--output={tmp_path / 'out'}")
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={run / 'train'}", *words])
    for part in parts:
        assert part.replace("{file}", str(tmp_path / "file")) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_int8_ends_of_a_float_net_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        converter.run([f"--model={run / 'train'}", "--io=int8", f"--output={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_flatbuffer_is_no_net_to_convert(run: Path) -> None:
    with pytest.raises(UsageError, match="a .keras or .h5 file"):
        converter.run([f"--model={run / 'export/model.tflite'}"])


def damaged(run: Path, tmp_path: Path, name: str) -> Path:
    folder = Path(shutil.copytree(run / "quantize", tmp_path / "net"))
    if name == "ranges cut":
        (folder / "ranges.npz").write_bytes((folder / "ranges.npz").read_bytes()[:300])
    elif name == "ranges of another net":
        np.savez(folder / "ranges.npz", Conv2d_99=np.array([-1, 1], np.float32))
    elif name == "ranges empty":
        with np.load(folder / "ranges.npz") as archive:
            np.savez(folder / "ranges.npz", **{key: archive[key] * 0 for key in archive.files})
    elif name == "card":
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "input_shape": "big"}))
    else:
        (folder / "model.keras").write_bytes((folder / "model.keras").read_bytes()[:5000])
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "ranges cut",
        pytest.param("ranges of another net", marks=pytest.mark.slow),
        pytest.param("ranges empty", marks=pytest.mark.slow),
        "card",
        "net",
    ],
)
def test_a_damaged_folder_is_told_by_its_file(run: Path, tmp_path: Path, name: str) -> None:
    folder = damaged(run, tmp_path, name)
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={folder}", f"--output={tmp_path / 'out'}"])
    file = {"card": "card.json", "net": "model.keras"}.get(name, "ranges.npz")
    assert str(folder) in str(caught.value)
    assert file in str(caught.value) or name == "net"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_prove_equal_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that returns another net's file."""
    from mobilenet.export import convert

    other = (run / "export/model.tflite").read_bytes()
    monkeypatch.setattr(convert, "float_flatbuffer", lambda model: other)
    with pytest.raises(FailedProof, match="it was not written") as caught:
        converter.run([f"--model={run / 'train'}", f"--output={tmp_path / 'out'}"])
    assert caught.value.status == 3
    assert list(tmp_path.iterdir()) == []
