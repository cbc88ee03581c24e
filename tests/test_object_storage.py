"""Objects and folders on storage, in TensorFlow's `ram://` and `file://`."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from command_runs import run_command  # noqa: E402
from small_models import inputs, model_outputs, tiny_v1  # noqa: E402

import mobilenet  # noqa: E402
from mobilenet import files, object_storage  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402


@pytest.fixture(params=["ram", "file"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/bucket"


def write(folder: Path, **contents: str) -> Path:
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_an_object_is_replaced_as_a_whole(root: str, tmp_path: Path) -> None:
    assert not object_storage.exists(f"{root}/a") and object_storage.list_names(root) == []
    object_storage.write_bytes(f"{root}/a", b"first and longer")
    object_storage.write_bytes(f"{root}/a", b"second")
    object_storage.upload_file(write(tmp_path, x="1") / "x", f"{root}/deep/er/x")
    object_storage.upload_file(write(tmp_path, x="22") / "x", f"{root}/deep/er/x")
    assert object_storage.read_bytes(f"{root}/a") == b"second"
    assert object_storage.list_names(root) == ["a", "deep/er/x"]
    object_storage.download_file(f"{root}/deep/er/x", tmp_path / "back/x")
    assert (tmp_path / "back/x").read_text() == "22"
    object_storage.remove(f"{root}/a")
    object_storage.remove(f"{root}/a")
    assert object_storage.list_names(root) == ["deep/er/x"]
    with pytest.raises(FileNotFoundError):
        object_storage.read_bytes(f"{root}/a")


def test_a_folder_counts_with_its_marker(root: str, tmp_path: Path) -> None:
    target = f"{root}/model"
    object_storage.upload_folder(write(tmp_path / "one", a="1", b="old"), target)
    object_storage.upload_folder(write(tmp_path / "two", a="2", inner__c="3"), target)
    names = object_storage.list_names(target)
    assert names == ["a", "complete.json", "inner/c"]
    sums = json.loads(object_storage.read_bytes(f"{target}/complete.json"))
    # sha256sum of the text "2"
    assert sums["a"] == "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"
    object_storage.download_folder(target, tmp_path / "back", names)
    assert (tmp_path / "back/a").read_text() == "2"
    assert (tmp_path / "back/inner/c").read_text() == "3"
    for damage in ("a", "inner/c", "complete.json"):
        object_storage.upload_folder(tmp_path / "two", target)
        object_storage.write_bytes(f"{target}/{damage}", b"{}")
        with pytest.raises(ValueError):
            names = [name for name in object_storage.list_names(target) if name != damage]
            object_storage.download_folder(target, tmp_path / damage, names)
        if damage != "complete.json":
            with pytest.raises(ValueError, match="checksum"):
                names = object_storage.list_names(target)
                object_storage.download_folder(target, tmp_path / damage, names)
    object_storage.remove_folder(target)
    assert object_storage.list_names(root) == []


def test_an_unknown_scheme_is_one_line() -> None:
    with pytest.raises(UsageError) as error:
        object_storage.check("s4://bucket/run", "data_dir")
    line = str(error.value)
    assert line.startswith("data_dir: got 's4://bucket/run'") and "gs://" in line
    assert "tensorflow-io" in line


def test_storage_without_a_response_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow itself would try again for many minutes."""
    ended = threading.Event()
    monkeypatch.setattr(object_storage, "_SECONDS", 0.05)
    monkeypatch.setattr(tf.io.gfile, "stat", lambda path: ended.wait())
    with pytest.raises(UsageError, match="no response in 0 seconds"):
        object_storage.check("gs://bucket/run", "model_dir")
    ended.set()


def test_storage_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise tf.errors.PermissionDeniedError(None, None, "no credentials\n for it")

    monkeypatch.setattr(tf.io.gfile, "stat", refuse)
    with pytest.raises(UsageError, match=r"\(no credentials for it\); check the name"):
        object_storage.check("gs://bucket/run", "model_dir")


def test_a_saved_model_is_read_from_storage(root: str, tmp_path: Path) -> None:
    mobilenet.save_model(tiny_v1(), tmp_path / "small")
    images = inputs(2, 32)
    expected = model_outputs(tiny_v1(), images)
    object_storage.upload_folder(tmp_path / "small", f"{root}/small")
    object_storage.upload_file(tmp_path / "small/model.keras", f"{root}/lone.keras")
    for name in ("small", "small/", "lone.keras"):
        loaded = mobilenet.load_model(f"{root}/{name}")
        np.testing.assert_array_equal(model_outputs(loaded.model, images), expected)
    object_storage.remove(f"{root}/small/card.json")
    for name, message in (("small", "it has not all files"), ("other", "there is nothing there")):
        with pytest.raises(UsageError, match=message) as error:
            mobilenet.load_model(f"{root}/{name}")
        assert error.value.what == f"{root}/{name}"
    object_storage.remove(f"{root}/small/complete.json")
    object_storage.remove(f"{root}/small/model.keras")
    object_storage.write_bytes(f"{root}/small/note", b"x")
    with pytest.raises(UsageError, match="nothing there|a model folder") as error:
        mobilenet.load_model(f"{root}/small")
    assert error.value.what == f"{root}/small"


def test_nothing_is_written_to_a_local_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (
        lambda: mobilenet.save_model(tiny_v1(), "gs://bucket/model"),
        lambda: mobilenet.train("digits", model="gs://bucket/model.keras"),
        lambda: mobilenet.train("digits", weights="gs://bucket/model.keras"),
        lambda: files.write_text("gs://bucket/text", "x"),
        lambda: files.check_file_target("gs://bucket/file"),
    ):
        with pytest.raises(UsageError, match="a path of this machine; copy it here first"):
            action()
    assert not any(tmp_path.iterdir())


def test_flags_of_paths_of_this_machine_refuse_others(tmp_path: Path) -> None:
    for command, flag in (("trainer", "model"), ("converter", "model"), ("predict", "labels")):
        done = run_command(command, f"--{flag}=gs://bucket/x", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"--{flag}: got 'gs://bucket/x', expected a path of this")
    done = run_command("evaluator", "--model=ram://nothing/there", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("--model: ram://nothing/there: expected a complete saved model")
