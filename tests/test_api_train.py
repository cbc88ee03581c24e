"""`mobilenet.api.train`: the run of the trainer command, from Python."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import EPOCHS, FinishedRun, run_command

tf_keras = pytest.importorskip("tf_keras")

from mobilenet import api  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training.stage_report import RunReport  # noqa: E402
from mobilenet.training.training_run import TrainingRun  # noqa: E402

TINY: dict[str, Any] = {"width_multiplier": 0.25, "image_size": 32}
SHORT: dict[str, Any] = {**TINY, "epochs": 1, "stages": ("train", "convert")}
WORDS = ("--width_multiplier=0.25", "--image_size=32", "--epochs=1", "--stages=train,convert")


@pytest.fixture(scope="module")
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, printed: io.StringIO) -> TrainingRun:
    """A run of the API, in a process that builds its own models in another precision."""
    folder = tmp_path_factory.mktemp("api") / "run"
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        with contextlib.redirect_stdout(printed):
            done = api.train("digits", model_dir=folder, **SHORT)
        assert tf_keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    return done


def again(run: TrainingRun, **values: Any) -> TrainingRun:
    return api.train("digits", **{"model_dir": run.folder, **SHORT, **values})


def test_a_run_holds_its_models_its_file_and_its_report(
    run: TrainingRun, printed: io.StringIO
) -> None:
    assert printed.getvalue() == ""
    assert not run.is_unchanged
    assert "train    epoch   1/1" in (run.folder / "log.txt").read_text()
    assert run.file == run.folder / "export/model.tflite"
    assert run.file.read_bytes()[4:8] == b"TFL3"
    assert [str(report.part) for report in run.report] == ["train", "convert"]
    entries = json.loads((run.folder / "report.json").read_text())["stages"]
    assert run.report["train"].top1 == entries[0]["top1"]
    assert run.report["convert"].bytes == run.file.stat().st_size
    assert RunConfig.from_file(run.folder / "config.json") == run.config
    table = str(run).splitlines()
    assert [line.split()[0] for line in table if "-" not in line[:1]] == [
        *("stage", "train", "convert")
    ]


def test_the_model_of_a_stage_is_loaded(run: TrainingRun) -> None:
    model = run.model()
    assert model.output_shape == (None, 10)
    assert {w.dtype.name for w in model.weights} == {"float32"}
    assert model.count_params() == run.report["train"].params
    with pytest.raises(UsageError, match="stage: got 'quantize', expected one of train"):
        run.model("quantize")


def test_the_file_is_evaluated_on_the_data_of_the_run(run: TrainingRun, tmp_path: Path) -> None:
    found = run.evaluate()
    assert (found.images, found.split) == (360, "test")
    assert found.top1 == pytest.approx(run.report["convert"].top1, abs=1e-3)
    assert run.evaluate(split="validation").images == 180
    shutil.copytree(run.folder / "train", tmp_path / "run/train")
    alone = dataclasses.replace(
        run, folder=tmp_path / "run", report=RunReport(run.report.stages[:1])
    )
    assert alone.file is None
    assert alone.evaluate("digits").top1 == pytest.approx(run.report["train"].top1, abs=1e-3)


def test_the_same_call_returns_the_finished_run(run: TrainingRun) -> None:
    second = again(run)
    assert second.is_unchanged
    assert (second.folder, second.config, str(second)) == (run.folder, run.config, str(run))
    reports = [json.dumps([report.to_json() for report in r.report]) for r in (second, run)]
    assert reports[0] == reports[1]


def test_it_does_so_without_tensorflow(run: TrainingRun) -> None:
    code = (
        "import sys\nfrom mobilenet import api\n"
        f"run = api.train('digits', model_dir={str(run.folder)!r}, **{SHORT})\n"
        "print(run.is_unchanged, sorted({'tensorflow', 'tf_keras', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
    assert done.stderr == ""


def test_the_command_finds_its_own_run_there(run: TrainingRun) -> None:
    before = (run.folder / "config.json").read_bytes()
    done = run_command("trainer", *WORDS, f"--model_dir={run.folder}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: finished before, top-1 " in done.stdout
    assert str(run) in done.stdout
    assert (run.folder / "config.json").read_bytes() == before


def test_a_run_of_the_command_is_found(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    epochs = {"epochs": EPOCHS["train"]}
    epochs |= {f"{stage}_epochs": EPOCHS[stage] for stage in ("prune", "quantize")}
    found = api.train("digits", model_dir=folder, **TINY, **epochs)
    assert found.is_unchanged
    assert [str(report.part) for report in found.report] == [*EPOCHS, "convert"]
    assert str(found) in finished_run[1].stdout


def test_the_folder_of_another_config_is_refused(run: TrainingRun) -> None:
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        again(run, lr=0.5)
    assert caught.value.what == "model_dir"
    assert "there train.lr is 0.004, here 0.5" in caught.value.expected
    assert caught.value.remedy == "choose another `model_dir`, or `overwrite` to start again"
    assert (run.folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("data", "values", "what", "text"),
    [
        ("digit", {}, "data", "did you mean digits?"),
        ("digits", {"num_classes": 7}, "num_classes", "10, the classes of digits"),
        ("digits", {"image_size": 16}, "image_size", "at least 32"),
        ("digits", {"batch_size": 5000}, "batch_size", "at most 1257"),
        ("digits", {"stages": ("prune",)}, "stages", "or give `weights`"),
        ("digits", {"weights": "nowhere"}, "weights", "there is nothing there"),
        ("digits", {"widht_multiplier": 1}, "widht_multiplier", "did you mean width_multiplier?"),
        (Path(), {}, "data", "class folders"),
    ],
)
def test_bad_input_names_the_parameter_and_leaves_nothing(
    data: Any,
    values: dict[str, Any],
    what: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        api.train(data, **{**SHORT, **values})
    assert caught.value.what == what
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []
