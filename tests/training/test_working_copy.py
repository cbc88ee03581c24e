"""A run on object storage: what is there after a kill between any two writes, its owner record, and
training that continues there to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from short_training import Signal, make_job  # noqa: E402
from small_models import dropout_model  # noqa: E402

from mobilenet import api, files, object_storage  # noqa: E402
from mobilenet.configs import recipes  # noqa: E402
from mobilenet.configs.run import Part  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine, owner_record, run_folder, working_copy  # noqa: E402
from mobilenet.training import progress as progress_bars  # noqa: E402
from mobilenet.training.stage_report import StageReport  # noqa: E402

CONFIG = recipes.get("mobilenet_v1", "digits")
PART = Part("train")
OTHER = {"key": "0", "host": "other", "machine": "00000000", "process": 1}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_record, "_SETTLING", 0.0)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ram://{tmp_path}/run"


def write(folder: Path, content: str) -> None:
    """The files of a run, all with the same content; an old state is removed for a new one."""
    for name in ("train/model.keras", "train/card.json", "report.json", "tensorboard/train/events"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    files.write_text(folder / f"checkpoints/train/state-{content}/variables", content)


def contents(address: str) -> dict[str, str]:
    """What another process sees."""
    copy = working_copy.WorkingCopy(address, None)
    copy.download()
    return {name: (copy.path / name).read_text() for name in copy._digests()}


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, action: Any) -> bool:
    """Runs an action that is killed before its change of storage of this number; whether it was."""
    count = 0

    def counted(change: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return change(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for name in ("copy", "rename", "remove", "rmtree"):
            patch.setattr(tf.io.gfile, name, counted(getattr(tf.io.gfile, name)))
        try:
            action()
        except Killed:
            return True
    return False


def published(address: str, config: str) -> working_copy.WorkingCopy:
    """A copy whose run is on storage."""
    copy = working_copy.WorkingCopy(address, None)
    copy.path.mkdir()
    (copy.path / "config.json").write_text(config)
    write(copy.path, "1")
    copy.publish()
    return copy


def test_a_kill_between_any_two_writes_leaves_whole_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, was_killed, seen = 0, True, set()
    while was_killed:
        number += 1
        address = f"ram://{tmp_path}/{number}"
        copy = published(address, "{}")
        write(copy.path, "2")
        (copy.path / "checkpoints/train/state-1").rename(tmp_path / f"old{number}")
        was_killed = killed_at(number, monkeypatch, copy.publish)
        there = contents(address)
        train = {there.get(name) for name in ("train/model.keras", "train/card.json")}
        assert train in ({"1"}, {"2"}, {None})
        states = [name.split("/")[2] for name in there if name.startswith("checkpoints")]
        assert states and set(states) <= {"state-1", "state-2"}
        if there["report.json"] == "2":
            assert train == {"2"} and "state-2" in states
        seen.add((there["report.json"], *train, *states))
        copy.publish()
        assert set(contents(address).values()) == {"{}", "2"}
    assert number > 15 and len(seen) >= 5


def test_a_kill_as_a_run_is_replaced_leaves_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, was_killed = 0, True
    while was_killed:
        number += 1
        address = f"ram://{tmp_path}/{number}"
        published(address, "1")
        new = working_copy.WorkingCopy(address, None)
        new.download()
        for name in ("train", "checkpoints", "tensorboard", "report.json"):
            (new.path / name).rename(tmp_path / f"{name}{number}")
        (new.path / "config.json").write_text("2")
        was_killed = killed_at(number, monkeypatch, new.start)
        there = contents(address)
        assert there["config.json"] in ("1", "2")
        assert there["config.json"] == "1" or there == {"config.json": "2"}
    assert number > 7 and there == {"config.json": "2"}


def test_a_new_run_is_written_when_it_begins(address: str, tmp_path: Path) -> None:
    def run(begins: bool) -> None:
        with (
            working_copy.opened(address) as copy,
            run_folder.opened(copy.path, CONFIG, storage=copy) as opened,
        ):
            if begins:
                opened.begin()
            raise KeyboardInterrupt

    for begins in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(begins)
        names = object_storage.list_names(address)
        assert names == (["config.json", "environment.json", "log.txt"] if begins else [])


def test_errors_and_log_lines_name_the_address(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    object_storage.write_bytes(f"{address}/config.json", b"{}")
    object_storage.write_bytes(f"{address}/train/model.keras", b"x")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(UsageError) as error,
        working_copy.opened(address) as copy,
    ):
        assert not (copy.path / "train").exists()
        logging.getLogger("mobilenet").info("reads %s", copy.path / "train")
        raise UsageError(str(copy.path / "train"), None, "a model")
    assert str(error.value) == f"{address}/train: expected a model"
    assert f"{address}/train is not complete (it has no complete.json); it is left" in caplog.text
    assert f"reads {address}/train" in caplog.text


def test_a_folder_of_other_things_is_refused(address: str) -> None:
    object_storage.write_bytes(f"{address}/photo.jpg", b"x")
    refused = pytest.raises(UsageError, match="a new folder or one that holds a run")
    with refused, working_copy.opened(address):
        pass
    assert object_storage.list_names(address) == ["photo.jpg"]


def test_a_run_has_one_owner(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{address}/.owner.json"
    first, second = owner_record.OwnerRecord(address), owner_record.OwnerRecord(address)
    with first.held(), pytest.raises(UsageError) as error, second.held():
        pass
    line = str(error.value)
    assert f"process {os.getpid()} of " in line and f"or remove {path}" in line
    assert object_storage.list_names(address) == []

    def left(**changes: Any) -> None:
        """A record that a killed process has left."""
        times = {"started": time.time() - 900, "renewed": time.time() - 60}
        object_storage.write_json(path, {**OTHER, **times, **changes})

    left()
    with pytest.raises(UsageError, match="process 1 of other"), working_copy.opened(address):
        pass
    left(renewed=time.time() - 181)
    with working_copy.opened(address):
        assert json.loads(object_storage.read_bytes(path))["process"] == os.getpid()
    left(machine=files.machine(), process=2**22 + 1)  # above the largest process of Linux
    with working_copy.opened(address):
        pass
    object_storage.write_bytes(path, b"{")
    with pytest.raises(UsageError, match=f"remove {path}"), working_copy.opened(address):
        pass


def test_a_process_whose_run_was_taken_over_writes_nothing_more(address: str) -> None:
    refused = pytest.raises(UsageError, match="process 1 of other, since .* has taken it over")
    with refused, working_copy.opened(address) as copy:
        times = {"started": time.time(), "renewed": time.time()}
        object_storage.write_json(f"{address}/.owner.json", {**OTHER, **times})
        (copy.path / "config.json").write_text("{}")
        copy.publish()
    assert object_storage.list_names(address) == [".owner.json"]


def test_the_owner_record_is_renewed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_record, "_RENEWAL", 0.01)
    with owner_record.OwnerRecord(address).held():
        first = object_storage.read_bytes(f"{address}/.owner.json")
        deadline = time.monotonic() + 10
        while object_storage.read_bytes(f"{address}/.owner.json") == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def fit(address: str, *callbacks: Any) -> list[Any]:
    model = dropout_model()
    with (
        working_copy.opened(address) as copy,
        run_folder.opened(copy.path, CONFIG, storage=copy) as run,
    ):
        run.begin()
        job = make_job(run.checkpoints(PART), make_job(Path()).config, *callbacks)
        engine.fit(model, None, dataclasses.replace(job, publish=run.publish))
    return list(model.get_weights())


@pytest.fixture
def default_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def test_after_ctrl_c_a_stage_continues_to_the_same_bits(
    address: str, tmp_path: Path, default_signals: None
) -> None:
    whole = dropout_model()
    engine.fit(whole, None, make_job(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fit(address, Signal(8))
    states = f"{address}/checkpoints/train"
    assert f"{states}/state-00001-0000000008" in tf.io.gfile.glob(f"{states}/*")
    object_storage.remove(f"{states}/state-00001-0000000008/complete.json")
    for own, expected in zip(fit(address), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.slow
def test_a_run_on_storage_is_the_run_in_a_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the second epoch, and continued through conversion."""
    values: dict[str, Any] = {
        "width_multiplier": 0.25,
        "image_size": 32,
        "batch_size": 128,
        "epochs": 2,
        "stages": ("train", "convert"),
    }
    local = api.train("digits", model_dir=tmp_path / "run", **values)
    steps, finished = 0, progress_bars.Progress.on_train_batch_end

    def interrupt(self: Any, batch: int, logs: Any = None) -> None:
        nonlocal steps
        finished(self, batch, logs)
        steps += 1
        if steps == 12:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress_bars.Progress, "on_train_batch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        api.train("digits", model_dir=address, **values)
    run = api.train("digits", model_dir=address, **values)
    assert steps == 18
    for own, expected in zip(
        run.model("train").get_weights(), local.model("train").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(own, expected)
    assert local.file is not None
    content = local.file.read_bytes()
    assert object_storage.read_bytes(f"{address}/export/model.tflite") == content
    assert run.file is not None and run.file.read_bytes() == content
    assert run.location == address
    assert api.train("digits", model_dir=address, **values).is_unchanged


def test_a_worker_that_reads_sees_what_the_chief_has_published(address: str) -> None:
    """In one process, in the order that the barriers of the workers give."""
    with working_copy.opened(address) as copy:
        with run_folder.opened(copy.path, CONFIG, storage=copy) as chief:
            chief.begin()
            files.write_text(chief.folder(PART) / "model.keras", "model")
            report = StageReport(PART, top1=90.0, top5=99.0)
            with working_copy.opened(address, is_written=False) as other:
                worker = run_folder.joined(other.path, CONFIG, storage=other)
                assert worker.finished(PART) is None
                chief.record(report)
                worker.reload()
                assert worker.finished(PART) == report
                assert (worker.folder(PART) / "model.keras").read_text() == "model"
                files.write_text(other.path / "plots/own.svg", "of a worker")
                other.publish()
                assert "plots/own.svg" not in object_storage.list_names(address)
                replaced = run_folder.joined(other.path, CONFIG, overwrite=True, storage=other)
                assert not any(replaced.path.iterdir())
        assert "train/model.keras" in object_storage.list_names(address)
