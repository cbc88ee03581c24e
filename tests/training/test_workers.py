"""Two workers of one run on this machine: what each writes, the losses, and the end of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_runs import TINY, report

from mobilenet.configs import recipes
from mobilenet.errors import UsageError
from mobilenet.training import run_folder, workers
from mobilenet.training.workers import Worker

CONFIG = recipes.get("mobilenet_v1", "digits")


def describe(monkeypatch: pytest.MonkeyPatch, kind: str, index: int, **cluster: list[str]) -> None:
    text = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
    monkeypatch.setenv("TF_CONFIG", text)


def test_the_chief_is_the_first_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert workers.this_worker("multi_worker") == Worker(0, 1)
    describe(monkeypatch, "worker", 1, worker=["a:1", "b:1", "c:1"])
    assert workers.this_worker("multi_worker") == Worker(1, 3)
    assert workers.this_worker("mirrored").is_chief
    describe(monkeypatch, "worker", 0, worker=["b:1", "c:1"], chief=["a:1"])
    assert workers.this_worker("multi_worker") == Worker(1, 3)
    assert not workers.this_worker("multi_worker").is_chief
    describe(monkeypatch, "chief", 0, worker=["b:1", "c:1"], chief=["a:1"])
    assert workers.this_worker("multi_worker").is_chief


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'],
)
def test_a_wrong_description_costs_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"^TF_CONFIG: got .* expected \{.cluster.*") as error:
        workers.this_worker("multi_worker")
    assert "\n" not in str(error.value)


def test_a_worker_joins_the_folder_that_the_chief_has_locked_and_writes_nothing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    new = run_folder.joined(folder, CONFIG)
    new.begin()
    assert new.begun and not folder.exists()
    with run_folder.opened(folder, CONFIG) as chief:
        chief.begin()
        before = sorted(folder.rglob("*"))
        joined = run_folder.joined(folder, CONFIG)
        assert joined.config == chief.config and joined.reports == [] and joined.begun
        with pytest.raises(UsageError, match=r"there seed is 0, here 1"):
            run_folder.joined(folder, CONFIG.replace(seed=1))
        assert not run_folder.joined(folder, CONFIG.replace(seed=1), overwrite=True).begun
        assert sorted(folder.rglob("*")) == before
        assert run_folder.finished_reports(folder, CONFIG, is_chief=False) is None


SIGNALED = """
import os, signal
from mobilenet import cli
from mobilenet.training import interruption
def run(argv):
    with interruption.ends_at_once():
        {inside}
    {after}
cli.main(run)
"""


def test_a_signal_ends_a_worker_that_waits_for_others() -> None:
    """By the system, as TensorFlow's waiting does not return to Python; afterwards by Python."""
    send = "os.kill(os.getpid(), signal.SIGTERM)"
    for inside, after, status in ((send, "pass", -signal.SIGTERM), ("pass", send, 143)):
        code = SIGNALED.format(inside=inside, after=after)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == status


def start(code: list[str], cwd: Path) -> list[subprocess.Popen[str]]:
    """Two processes that are workers; each writes to a file `worker_I` in `cwd`."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    hosts = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for one in sockets:
        one.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        with (cwd / f"worker_{index}").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *code],
                    cwd=cwd,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )  # fmt: skip
            )
    return processes


def end(processes: list[subprocess.Popen[str]], seconds: float = 600) -> list[int]:
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


CURVES = """
import json, pathlib, sys
import tensorflow as tf
two = tf.distribute.MultiWorkerMirroredStrategy()
from replica_training import curve
print(json.dumps({name: curve(name, two, pathlib.Path("two")) for name in sys.argv[1:]}))
"""
ONE = """
import json, pathlib, sys
import tensorflow as tf
from replica_training import curve
one = tf.distribute.get_strategy()
print(json.dumps({name: curve(name, one, pathlib.Path("one")) for name in sys.argv[1:]}))
"""


@pytest.mark.parametrize(
    "names",
    [
        ["float"],
        pytest.param(["magnitude", "channel", "surgery", "qat"], marks=pytest.mark.slow),
    ],
)
def test_losses_of_two_workers_are_those_of_one_device(names: list[str], tmp_path: Path) -> None:
    assert end(start(["-c", CURVES, *names], tmp_path)) == [0, 0], (
        tmp_path / "worker_0"
    ).read_text()[-3000:]
    alone = subprocess.run(
        [sys.executable, "-c", ONE, *names], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, check=True,
    )  # fmt: skip
    expected = json.loads(alone.stdout.splitlines()[-1])
    for index in range(2):
        text = (tmp_path / f"worker_{index}").read_text()
        curves = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
        for name in names:
            got, one = curves[name]["losses"], expected[name]["losses"]
            assert len(one) == 20
            np.testing.assert_allclose(got, one, atol=1e-3, rtol=0, err_msg=name)


TRAINER = ["-m", "mobilenet.trainer", "--distribution_strategy=multi_worker", "--model_dir=run"]


@pytest.mark.slow
def test_a_killed_worker_ends_the_other_and_both_continue(tmp_path: Path) -> None:
    """The same command then trains on, scores what was trained and converts it; only the chief has
    written.
    """
    flags = [*TRAINER, *TINY, "--batch_size=16", "--epochs=8", "--stages=train,quantize,convert"]
    flags += ["--quantize_epochs=1", "--override=model.batch_norm_decay=0.9"]
    first = start(flags, tmp_path)
    deadline = time.monotonic() + 400
    while "epoch   2/8" not in (tmp_path / "worker_0").read_text():
        assert time.monotonic() < deadline and first[0].poll() is None
        time.sleep(0.2)
    first[1].kill()
    killed = time.monotonic()
    assert end(first[:1], 60) == [2]
    assert time.monotonic() - killed < 60
    line = (tmp_path / "worker_0").read_text().splitlines()[-1]
    assert "whose worker 1 has ended" in line and "the same command on all of them" in line
    assert "Traceback" not in (tmp_path / "worker_0").read_text()
    first[1].wait()
    assert end(start(flags, tmp_path)) == [0, 0], (tmp_path / "worker_0").read_text()[-3000:]
    texts = [(tmp_path / f"worker_{index}").read_text() for index in range(2)]
    for text in texts:
        assert "train: continues after epoch" in text
        assert "train: 1,257 images, 39 steps an epoch" in text
    entries = report(tmp_path / "run")
    assert list(entries) == ["train", "quantize", "convert"]
    assert entries["train"]["top1"] > 40 and entries["convert"]["top1"] > 40
    events = (tmp_path / "run" / "tensorboard" / "quantize").glob("*/events.*")
    assert sorted(path.parent.name for path in events) == ["train", "validation"]
    assert "continues" in (tmp_path / "run" / "log.txt").read_text()
    assert end(start(flags, tmp_path)) == [0, 0]  # all say that it is finished
    assert all("finished" in (tmp_path / f"worker_{index}").read_text() for index in range(2))
