"""A sweep in its folder, with runs of milliseconds: results, failures, interruption, additions."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet import report, write_report
from mobilenet.configs import recipes
from mobilenet.configs.parameters import apply
from mobilenet.configs.sweep import SweepConfig
from mobilenet.errors import UsageError
from mobilenet.reporting import page
from mobilenet.sweeps import sweep
from mobilenet.sweeps.report import sweep_of
from mobilenet.sweeps.results import SweepResult
from mobilenet.sweeps.trials import Trial

FAKE = (sys.executable, str(Path(__file__).parent / "fake_trainer.py"))
RUN = recipes.get("mobilenet_v1", "digits").replace(stages=("train", "convert"))
RATES = {"train.lr": [0.02, 0.01]}


@dataclasses.dataclass
class Fake:
    """Executes sweeps of the fake trainer in a folder; pages, which take seconds, if asked."""

    folder: Path
    draws: bool = False

    def request(self, parameters: dict[str, Any] = RATES, **more: Any) -> sweep.Request:
        own = {f.name for f in dataclasses.fields(sweep.Request)} - {"config"}
        fields = {name: more.pop(name) for name in own & more.keys()}
        config = SweepConfig.from_json({"parameters": parameters, **more})
        run = fields.pop("run", RUN)
        words = fields.pop("words", ("--dataset_name=digits",))
        return sweep.Request(
            config,
            run,
            fields.pop("is_set", frozenset()),
            *(words, lambda settings: apply(run, settings)),
            **{"folder": self.folder, "program": FAKE, **fields},
        )

    def __call__(self, parameters: dict[str, Any] = RATES, **more: Any) -> SweepResult:
        return sweep.execute(self.request(parameters, **more))

    @property
    def started(self) -> list[str]:
        """The flags of all runs that were started."""
        log = self.folder.parent / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("FAKE_TRAINER_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_TRAINER_CONFIG", json.dumps(RUN.to_json()))
    fake = Fake(tmp_path / "sweep")
    write = page.write_comparison

    def written(*args: Any) -> Path:
        return write(*args) if fake.draws else fake.folder / "report.html"

    monkeypatch.setattr(page, "write_comparison", written)
    return fake


def test_settings_are_ranked_by_the_mean_of_their_seeds(fake: Fake) -> None:
    result = fake({"train.lr": [0.02, 0.01, 0.04]}, seeds=[0, 1, 5])
    assert fake.started[0] == (
        f"--dataset_name=digits --override=train.lr=0.02 --seed=0 "
        f"--model_dir={fake.folder}/lr=0.02_seed=0"
    )
    assert [trial.settings["train.lr"] for trial in result.trials] == [0.01, 0.02, 0.04]
    values = np.array([[90, 91, 95], [80, 81, 85], [60, 61, 65]])
    np.testing.assert_allclose([trial.values for trial in result.trials], values)
    np.testing.assert_allclose([trial.mean for trial in result.trials], values.mean(1))
    np.testing.assert_allclose([trial.std for trial in result.trials], values.std(1, ddof=1))
    assert result.trials[0].mean_of("bytes") == 1002
    assert result.best is result.trials[0] and not result.failed


def test_the_table_names_the_best_setting_with_its_command(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--dataset_name=digits", "--data_dir=my photos")
    text = str(fake(seeds=[0, 2], words=words))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["trial", "lr", "top-1", "%", "std", "n", "bytes", "ms"]
    assert lines[2].split() == ["2", "0.01", "91.00", "1.41", "2", "1,001", "0.250"]
    assert "Best: trial 2, top1 91.00 ± 1.41 (n = 2)" in lines
    command = text.partition("(n = 2)\n")[2].replace("\\\n", "")
    words = ("--dataset_name=digits", "--data_dir=my photos", "--override=train.lr=0.01")
    assert shlex.split(command) == ["python", "-m", "mobilenet.trainer", *words]


def test_results_are_files_and_a_page(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    result = fake({"train.lr": [0.5, 0.02, 0.01]}, seeds=[0, 1], metric={"name": "train/val_top1"})
    content = json.loads((fake.folder / "results.json").read_text())
    assert content["best"]["trial"] == 3
    assert content["trials"][0]["settings"] == {"train.lr": 0.01}
    assert [run["value"] for run in content["trials"][0]["runs"]] == [92, 93]  # of the kept epoch
    assert content["trials"][0]["runs"][0]["stages"][1]["latency_ms"] == 0.25
    with (fake.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train.lr"] for row in rows] == ["0.01", "0.01", "0.02", "0.02", "0.5", "0.5"]
    assert [(row["seed"], row["value"], row["top1"]) for row in rows[:2]] == [
        ("0", "92.0", "90.0"),
        ("1", "93.0", "91.0"),
    ]
    path, fake.draws = fake.folder / "report.html", True
    assert result.page is None and write_report(fake.folder) == path == result.page
    text = path.read_text()
    assert "train val top-1 %" in text and "--override=train.lr=0.01" in text
    assert "lr=0.5_seed=1: --lr: got 0.5, expected less" in text
    fake.draws = False
    report.run([str(fake.folder)])
    assert capsys.readouterr().out == f"{result}\n\n{path}\n"
    with pytest.raises(UsageError, match="output.*none for a sweep"):
        write_report(fake.folder, output="elsewhere")


def test_a_run_that_fails_does_not_end_the_sweep(fake: Fake) -> None:
    parameters = {"train.lr": [0.5, 0.01]}
    result = fake(parameters, seeds=[0, 1], jobs=2)
    assert [run.error for run in result.failed] == ["--lr: got 0.5, expected less"] * 2
    assert [(trial.mean, len(trial.values)) for trial in result.trials] == [(90.5, 2), (None, 0)]
    assert "failed: lr=0.5_seed=1: --lr: got 0.5, expected less" in str(result)
    assert (fake.folder / "logs/lr=0.5_seed=0.txt").read_text().startswith("first line\n")
    fake(parameters, seeds=[0, 1])
    assert len(fake.started) == 6  # failed runs are tried again, finished ones are not
    assert all("lr=0.5" in line for line in fake.started[4:])


def test_a_setting_of_which_a_run_failed_is_none_of_the_best(fake: Fake) -> None:
    fake({"train.lr": [0.01, 0.04]}, seeds=[0, 1])
    path = fake.folder / "sweep.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "errors": {"lr=0.01_seed=1": "no memory"}}))
    shutil.rmtree(fake.folder / "lr=0.01_seed=1")
    known = sweep_of([fake.folder])
    assert known is not None
    assert [(trial.mean, trial.has_failed) for trial in known.trials] == [(60.5, False), (90, True)]


def test_a_sweep_in_which_all_fails_has_no_best_setting(fake: Fake) -> None:
    result = fake({"train.lr": [0.5]})
    assert result.best is None and result.page is None
    assert json.loads((fake.folder / "results.json").read_text())["best"] is None


def test_settings_and_seeds_can_be_added(fake: Fake) -> None:
    fake(seeds=[1])
    fake({"train.lr": [0.04, 0.02, 0.01]}, seeds=[2, 1])
    assert len(fake.started) == 6
    result = fake({"train.lr": [0.04, 0.02, 0.01]}, seeds=[2, 1], metric={"name": "bytes"})
    assert len(fake.started) == 6
    assert result.best is not None and result.best.settings == {"train.lr": 0.04}  # all 1001.5


def test_random_settings_can_be_added(fake: Fake) -> None:
    ranges = {"train.lr": {"min": 0.001, "max": 0.1, "log": True}}
    first = fake(ranges, method="random", trials=2)
    more = fake(ranges, method="random", trials=5)
    assert len(fake.started) == 5
    assert {str(t.settings) for t in first.trials} < {str(t.settings) for t in more.trials}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parameters": {"train.lr": [0.01]}}, "lr=0.02_seed=0 is none of the new ones"),
        ({"seeds": [1]}, "all its seeds; 0 is none of the new ones"),
        ({"run": RUN.replace(image_size=96)}, "there image_size is 64, here 96"),
        ({"method": "random", "trials": 2}, "there method is 'grid', here 'random'"),
    ],
)
def test_another_sweep_is_refused(fake: Fake, changes: dict[str, Any], text: str) -> None:
    fake(seeds=[0])
    before = contents(fake.folder)
    with pytest.raises(UsageError, match="model_dir: got") as caught:
        fake(**{"seeds": [0], **changes})
    assert text in str(caught.value) and "`overwrite`" in str(caught.value)
    assert contents(fake.folder) == before
    assert len(fake(overwrite=True, **{"seeds": [0], **changes}).runs) == len(fake.started) - 2


def test_how_runs_are_computed_may_change(fake: Fake) -> None:
    fake()
    fake(run=RUN.replace(checkpoint_minutes=1.0))
    assert len(fake.started) == 2


def test_folders_of_something_else_and_of_a_running_sweep_are_refused(fake: Fake) -> None:
    import filelock

    fake.folder.mkdir()
    with filelock.FileLock(fake.folder / ".lock"), pytest.raises(UsageError, match="other sweep"):
        fake()
    (fake.folder / "photo.jpg").touch()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="a new folder or one that holds a sweep"):
            fake(overwrite=overwrite)
    assert fake.started == []


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"is_set": frozenset({"train.lr"})}, "train.lr: expected one value for all runs, or"),
        ({"is_set": frozenset({"seed"}), "seeds": [1]}, "seed: got 0, expected no seed where"),
        ({"metric": {"name": "prune/top1"}}, "a stage that runs: train, convert"),
        ({"parameters": {"train.lr": [0.1, -1]}}, "lr: got -1.0, expected a number above 0"),
        ({"parameters": {"pruning.ratio": [0.5]}}, "channel_ratio: expected pruning channel"),
        (
            {"run": RUN.replace(stages=("convert",)), "metric": {"name": "val_top1"}},
            "a metric of stage convert",
        ),
        (
            {"run": RUN.replace(distribution_strategy="multi_worker")},
            "distribution_strategy: got 'multi_worker'",
        ),
        (
            {
                "parameters": {"train.op_momentum": {"min": 0, "max": 1}},
                "method": "random",
                "trials": 1,
            },
            "got 1.0, expected a number at least 0 and below 1",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    fake: Fake, more: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError) as caught:
        fake(**more)
    assert text in str(caught.value)
    assert not fake.folder.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_ends_the_runs_which_are_resumed(fake: Fake) -> None:
    parameters = {"train.lr": [0.01, 0.25]}

    def interrupt() -> None:
        wait_for((fake.folder / "lr=0.25_seed=0/waits").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fake(parameters, seeds=[0, 1], jobs=2)
    thread.join()
    assert (fake.folder / "lr=0.25_seed=0/state").read_text() == "saved"
    before = len(fake.started)
    finished = {path.parent.name for path in fake.folder.glob("*/report.json")}
    (fake.folder / "lr=0.25_seed=1").mkdir(exist_ok=True)
    (fake.folder / "lr=0.25_seed=1/state").touch()
    result = fake(parameters, seeds=[0, 1])
    assert not result.failed and all(len(trial.values) == 2 for trial in result.trials)
    again = {
        line.rpartition("--model_dir=")[2].rpartition("/")[2] for line in fake.started[before:]
    }
    every = {f"lr={rate}_seed={seed}" for rate in (0.01, 0.25) for seed in (0, 1)}
    assert again == every - finished


def test_a_sweep_that_is_killed_goes_on(fake: Fake, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_sweep import Fake\n"
        f"Fake(Path({str(fake.folder)!r}))({{'train.lr': [0.01, 0.25, 0.02]}})\n"
    )
    process = subprocess.Popen([sys.executable, str(program)])
    wait_for((fake.folder / "lr=0.25_seed=0/waits").exists)
    process.kill()
    process.wait()
    (fake.folder / "lr=0.25_seed=0/state").touch()  # as its last checkpoint
    result = fake({"train.lr": [0.01, 0.25, 0.02]})
    assert [len(trial.values) for trial in result.trials] == [1, 1, 1]
    assert sum("lr=0.01" in line for line in fake.started) == 1
    assert sum("lr=0.25" in line for line in fake.started) == 2


def test_optuna_goes_on_where_it_was(fake: Fake) -> None:
    pytest.importorskip("optuna")
    ranges = {"train.lr": {"min": 0.001, "max": 0.1, "log": True}}
    fake(ranges, method="bayes", trials=2, seeds=[1])
    parts = fake(ranges, method="bayes", trials=4, seeds=[1])
    assert len(fake.started) == 4
    whole = fake(ranges, method="bayes", trials=4, seeds=[1], overwrite=True)
    assert [t.settings for t in whole.trials] == [t.settings for t in parts.trials]
    with pytest.raises(UsageError, match="is none of the new ones"):
        fake(ranges, method="bayes", trials=3, seeds=[1])


def test_names_of_folders_are_short_safe_and_differ() -> None:
    def name(**settings: Any) -> str:
        return Trial({k.replace("__", "."): v for k, v in settings.items()}, (3,)).runs[0].name

    assert name(train__lr=1e-5, image_size=(32, 48)) == "lr=1e-05_image_size=32_48_seed=3"
    assert name(train__lr=1, prune__lr=2) == "train.lr=1_prune.lr=2_seed=3"
    hostile = [name(train__freeze=text) for text in ("../a", "../b", "a" * 300, "a" * 301, "ü")]
    assert len(set(hostile)) == 5
    assert all("/" not in text and text.isascii() and len(text) < 150 for text in hostile)
