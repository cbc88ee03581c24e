"""`python -m mobilenet.packer`: pack, unpack and info on folders, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet import packer
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter

pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models import saving  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., Any]) -> Path:
    """The folder of a quantized stage: model, card and ranges."""
    source = small_model("mobilenet_v1")
    model = tf_keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    path = tmp_path_factory.mktemp("saved") / "quantize"
    config = source.mobilenet_config.to_json()
    card = Card(architecture=config, input_shape=(32, 32, 3), dataset="digits", stage="quantize")
    saving.save(model, path, card)
    np.savez(path / "ranges.npz", Conv2d_0=np.float32([0, 1 / 3]), Logits=np.float32([-7, 9.1]))
    return path


@pytest.fixture(scope="module")
def file(saved: Path) -> Path:
    """That folder, packed."""
    path = saved.parent / "model.packed"
    packer.run(["pack", str(saved), str(path)])
    return path


def test_a_folder_is_unpacked_with_card_and_ranges(
    saved: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packer.run(["unpack", str(file), str(tmp_path / "back")])
    assert "ranges" in capsys.readouterr().out
    first, second = saving.load(saved), saving.load(tmp_path / "back")
    assert first.card == second.card
    for a, b in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    with np.load(saved / "ranges.npz") as a, np.load(tmp_path / "back/ranges.npz") as b:
        assert a.files == b.files
        assert all(a[n].tobytes() == b[n].tobytes() and a[n].dtype == b[n].dtype for n in a.files)


def test_a_file_becomes_a_flatbuffer_with_equal_outputs(
    saved: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packer.run(["unpack", str(file), str(tmp_path / "model.tflite")])
    assert "without its ranges" in capsys.readouterr().out
    model = saving.load(saved).model
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    runner = interpreter.make_interpreter((tmp_path / "model.tflite").read_bytes())
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], images)
    runner.invoke()
    outputs = runner.get_tensor(runner.get_output_details()[0]["index"])
    np.testing.assert_allclose(outputs, model(images), atol=1e-4)
    named = runner.get_signature_runner()(images=images)["logits"]
    np.testing.assert_allclose(named, outputs, atol=1e-6)


def test_info_lists_layers_and_totals(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packer.run(["info", str(file)])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["Conv2d_3_pointwise"][1:3] == ["1,024", "0.00"]
    assert lines["total"][-2] == f"{file.stat().st_size:,}"
    assert "bytes float flatbuffer" in out and "bytes under gzip" in out
    packer.run(["info", str(file), "--noflatbuffer"])
    assert "flatbuffer" not in capsys.readouterr().out


def test_folding_is_smaller_and_reports_its_effect(
    saved: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folded = tmp_path / "folded"
    packer.run(["pack", str(saved), str(folded), "--fold_batch_norm", "--images", "4"])
    assert "output difference" in capsys.readouterr().out
    assert folded.stat().st_size < file.stat().st_size
    packer.run(["unpack", str(folded), str(tmp_path / "back")])
    model, card = saving.load(tmp_path / "back").model, saving.load(tmp_path / "back").card
    assert "float16" in card.notes[-1]
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    before = saving.load(saved).model(images).numpy()
    assert 0 < np.abs(model(images) - before).max() < 0.02 * np.abs(before).max()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "one of pack, unpack, info"),
        (["pak", "a", "b"], "did you mean pack?"),
        (["pack", "{model}"], "MODEL and FILE"),
        (["info", "{file}", "{file}"], "expected FILE"),
        (["pack", "{tmp}/absent", "{tmp}/new"], "there is nothing there"),
        (["pack", "{model}", "{tmp}/mine"], "a new file or an earlier packed model"),
        (["pack", "{model}", "{tmp}"], "a new file or an earlier packed model"),
        (["pack", "{model}", "{tmp}/new", "--images", "3"], "--fold_batch_norm, which uses it"),
        (
            ["pack", "{model}", "{tmp}/new", "--image_size", "32"],
            "--fold_batch_norm, which uses it",
        ),
        (["pack", "{model}", "{tmp}/new", "--fold_batch_norm", "--images", "0"], "--images"),
        (["unpack", "{file}", "{tmp}"], "a new folder or one that holds a model"),
        (["unpack", "{file}", "{tmp}/mine"], "a file has that name"),
        (["unpack", "{file}", "{tmp}/new", "--fold_batch_norm"], "expected pack, which uses it"),
        (["unpack", "{tmp}/mine", "{tmp}/new"], "another kind of file"),
        (["unpack", "{tmp}/absent", "{tmp}/new"], "there is no such file"),
        (["info", "{model}"], "there is no such file"),
    ],
)
def test_bad_commands_cost_one_line(
    args: list[str], message: str, saved: Path, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    paths = {"{model}": str(saved), "{file}": str(file), "{tmp}": str(tmp_path)}
    for mark, folder in paths.items():
        args = [word.replace(mark, folder) for word in args]
    with pytest.raises(UsageError) as caught:
        packer.run(args)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_broken_ranges_are_refused(saved: Path, tmp_path: Path) -> None:
    model = saving.load(saved)
    saving.save(model.model, tmp_path / "model", model.card)
    (tmp_path / "model/ranges.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"ranges\.npz"):
        packer.run(["pack", str(tmp_path / "model"), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
