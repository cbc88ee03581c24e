"""The run folder: one process, one config; stages are added, resumed, replaced, never mixed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from command_runs import LEARNED, TINY, FinishedRun, report, start_command

from mobilenet import trainer
from mobilenet.configs import recipes
from mobilenet.configs.archs import MobileNetV1Config
from mobilenet.configs.distillation import Distillation
from mobilenet.configs.run import Part, RunConfig
from mobilenet.errors import UsageError
from mobilenet.models import builder
from mobilenet.training import initial_weights, run_folder

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

CONFIG = recipes.get("mobilenet_v1", "digits")


@pytest.fixture(scope="module")
def finished(finished_run: FinishedRun) -> Path:
    return finished_run[0]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def error_of(*args: object) -> str:
    with pytest.raises(UsageError) as caught:
        trainer.run([*map(str, args)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("args", "first"),
    [
        (["--lr=0.5"], "train.lr is {lr}, here 0.5"),
        (["--seed=3"], "seed is 0, here 3"),
        (["--width_multiplier=0.5"], "model.width_multiplier is 0.25, here 0.5"),
        (["--lr=0.5", "--seed=3"], "train.lr is {lr}, here 0.5 and 1 more"),
        (["--model_name=mobilenet_v2"], "type is 'MobileNetV1Config', here 'MobileNetV2Config'"),
    ],
)
def test_the_folder_of_another_config_is_refused(run: Path, args: list[str], first: str) -> None:
    before = content(run)
    message = error_of(*LEARNED, *args, "--model_dir", run)
    assert "a run of this config; there " in message
    assert first.format(lr=CONFIG.train.lr) in message
    assert "choose another --model_dir, or --overwrite to start again" in message
    assert content(run) == before


def loaded_by(args: list[str]) -> subprocess.CompletedProcess[str]:
    """The trainer in a process of its own; its last line lists the heavy libraries it loaded."""
    heavy = "{'tensorflow', 'tf_keras', 'keras', 'ai_edge_litert', 'sklearn', 'matplotlib'}"
    code = (
        "import sys\nfrom mobilenet import trainer\n"
        f"try: trainer.run({args!r})\nexcept ValueError as error: print(error)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def cpu_seconds(args: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """CPU time of `loaded_by`, the least of three, as other processes may slow one down."""
    times = []
    for _ in range(3):
        before = os.times()
        done = loaded_by(args)
        after = os.times()
        times.append(
            sum(after[2:4]) - sum(before[2:4])  # user and system time of the children
        )
    return min(times), done


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "convert: finished before, top-1 "),
        (["--stages=train,prune"], "prune: finished before, top-1 "),
        (["--num_classes=10"], "convert: finished before, top-1 "),
        (["--lr=0.5"], "expected a run of this config; there train.lr is "),
        (["--num_classes=7"], "there model.num_classes is 10, here 7"),
        (["--batch_norm_decay=0.5"], "there model.batch_norm_decay is "),
        (["--distill=start"], "there distillation.teacher is 'none', here 'start'"),
    ],
)
def test_a_finished_run_and_a_refusal_need_no_tensorflow(
    run: Path, args: list[str], expected: str
) -> None:
    before = content(run)
    seconds, done = cpu_seconds([*LEARNED, *args, f"--model_dir={run}"])
    assert seconds < 1
    assert expected in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert content(run) == before


def test_a_replayed_config_of_a_finished_run_needs_no_tensorflow(run: Path) -> None:
    done = loaded_by([f"--config_file={run / 'config.json'}", f"--model_dir={run}"])
    assert "convert: finished before, top-1 " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_noresume_requires_a_new_folder(run: Path) -> None:
    before = content(run)
    assert "--model_dir" in error_of(*LEARNED, "--noresume", "--model_dir", run)
    assert content(run) == before


def test_a_second_process_is_refused(run: Path) -> None:
    """This process has the lock; the other one is real."""
    with filelock.FileLock(run / ".lock"):
        done = start_command("trainer", *LEARNED, "--model_dir", run)
    assert done.returncode == 2
    assert done.stderr.startswith("--model_dir: got ")
    assert "that no other process trains in" in done.stderr
    assert done.stderr.count("\n") == 1


def test_overwrite_that_fails_restores_the_old_run(run: Path) -> None:
    before = content(run)
    for args in (["--image_size=16"], ["--final_sparsity=nothing=0.5"], ["--stages=convert"]):
        error_of(*LEARNED, *args, "--overwrite", "--model_dir", run)
        assert content(run) == before


def test_overwrite_starts_again(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = [*TINY, "--epochs=0", "--stages=train", "--batch_size=100", "--model_dir", str(run)]
    trainer.run([*args, "--overwrite"])
    assert list(report(run)) == ["train"]
    assert not (run / "export").exists()
    assert not (run / ".replaced").exists()
    assert json.loads((run / "config.json").read_text())["train"]["epochs"] == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "train: 1,257 images, 12 steps an epoch, 0 epochs" in out  # whole batches


def test_a_process_killed_before_it_began_is_undone_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_folder.opened(folder, CONFIG) as opened:
        opened.begin()
        (folder / "mine").write_text("kept")
    # What a SIGKILL leaves in the middle of an --overwrite.
    (folder / ".replaced").mkdir()
    for name in ("config.json", "mine", "environment.json", "log.txt"):
        (folder / name).rename(folder / ".replaced" / name)
    (folder / "config.json").write_text("{")
    with run_folder.opened(folder, CONFIG) as opened:
        assert opened.begun
    assert (folder / "mine").read_text() == "kept"
    assert not (folder / ".replaced").exists()


def test_the_resume_state_of_a_finished_stage_is_removed_when_the_run_is_opened(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is there where a process was killed after recording the stage; others are needed."""
    assert not list((run / "checkpoints").glob("*"))
    for stage in ("train", "prune_1", "prune"):
        (run / "checkpoints" / stage / "state-00001-0000000039").mkdir(parents=True)
    config = RunConfig.from_json(json.loads((run / "config.json").read_text()))
    shutil.rmtree(run / "quantize")
    (run / "checkpoints/quantize").mkdir()
    with run_folder.opened(run, config) as opened:
        assert opened.finished(Part("train")) and not opened.finished(Part("quantize"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["quantize"]


@pytest.mark.parametrize("error", [UsageError("x", 1, "y"), KeyboardInterrupt(), SystemExit(143)])
def test_before_it_begins_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), run_folder.opened(tmp_path / "a/b/run", CONFIG):
        raise error
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(type(error)), run_folder.opened(tmp_path / "empty", CONFIG):
        raise error
    assert [str(p) for p in tmp_path.rglob("*")] == [str(tmp_path / "empty")]


@pytest.mark.slow
def test_stages_are_added_in_the_same_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the config grows with them, so that it replays the whole run."""
    args = [*TINY, "--epochs=0", "--prune_epochs=1", f"--model_dir={tmp_path / 'run'}"]
    trainer.run([*args, "--stages=train"])
    first = content(tmp_path / "run")
    trainer.run([*args, "--stages=train,prune"])
    out = capfd.readouterr().out
    assert out.count("prune    epoch   1/1") == 1
    assert "train: finished before" in out
    after = content(tmp_path / "run")
    assert after["train/model.keras"] == first["train/model.keras"]
    assert list(report(tmp_path / "run")) == ["train", "prune"]
    trainer.run([*args, "--stages=prune"])  # is there
    trainer.run([*args, "--stages=convert"])
    assert list(report(tmp_path / "run")) == ["train", "prune", "convert"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["stages"] == ["train", "prune", "convert"]
    # How a stage trains that has not begun may still change; of one that has, not.
    trainer.run([*args, "--quantize_epochs=7", "--stages=train"])
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["quantize"]["epochs"] == 7
    message = error_of(*args, "--prune_lr=0.5")
    assert f"there prune.lr is {CONFIG.prune.lr}, here 0.5" in message


def test_a_teacher_may_change_until_a_stage_learned_from_it(tmp_path: Path) -> None:
    folder, start = tmp_path / "run", CONFIG.replace(distillation=Distillation("start"))
    none, other = (
        CONFIG.replace(distillation=Distillation(name)) for name in ("none", "models/other")
    )

    def go(config: RunConfig, *begins: str) -> None:
        with run_folder.opened(folder, config) as opened:
            opened.begin()
            for stage in begins:
                opened.checkpoints(Part(stage)).mkdir(parents=True)

    go(start)
    go(other)
    go(none, "train")
    go(start)  # a teacher of its own would have taught `train`
    with pytest.raises(UsageError, match="there distillation.teacher is 'start', here 'models/o"):
        go(other)
    go(none, "quantize")
    with pytest.raises(UsageError, match="there distillation.teacher is 'none', here 'start'"):
        go(start)


@pytest.mark.slow
def test_a_stage_whose_files_are_gone_runs_again(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = (run / "export/model.tflite").read_bytes()
    shutil.rmtree(run / "export")
    trainer.run([*LEARNED, f"--model_dir={run}"])
    out, err = capfd.readouterr()
    assert "quantize: finished before" in out
    assert "convert: finished before" not in out
    assert err == ""
    assert (run / "export/model.tflite").read_bytes() == old  # the same model gives the same file


@pytest.fixture
def keras_mobilenet() -> Callable[..., Any]:
    def build(classes: int, width: float = 0.25) -> Any:
        tf_keras.utils.set_random_seed(4)
        return tf_keras.applications.MobileNet(
            (32, 32, 3), alpha=width, weights=None, classes=classes
        )

    return build


def weights(model: Any) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def loaded(checkpoint: Path) -> dict[str, list[np.ndarray]]:
    """The weights that a model of ten classes has after `--init_checkpoint`."""
    config = MobileNetV1Config(width_multiplier=0.25, num_classes=10, classifier_activation=None)
    model = builder.build(config, (32, 32, 3))
    initial_weights.load_into(model, str(checkpoint), config)
    return weights(model)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_run_starts_from_a_saved_model(finished: Path, form: str) -> None:
    file = finished / "train/model.keras"
    result = loaded(file if form == "file" else file.parent)
    expected = weights(tf_keras.models.load_model(file, compile=False))
    assert set(result) == set(expected)
    for name, arrays in expected.items():
        for one, other in zip(result[name], arrays, strict=True):
            np.testing.assert_array_equal(one, other)


def assert_same_weights(result: dict[str, list[np.ndarray]], theirs: Any) -> None:
    for ours, name in (("Conv2d_0", "conv1"), ("Conv2d_13_pointwise", "conv_pw_13")):
        np.testing.assert_array_equal(result[ours][0], theirs.get_layer(name).get_weights()[0])


def test_a_run_starts_from_a_file_of_keras_applications(
    keras_mobilenet: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = keras_mobilenet(10)
    theirs.save_weights(tmp_path / "weights.h5")
    result = loaded(tmp_path / "weights.h5")
    assert_same_weights(result, theirs)
    head = theirs.get_layer("conv_preds").get_weights()[0]
    np.testing.assert_array_equal(result["Logits"][0], head)


def test_a_file_of_other_classes_gives_all_but_the_head(
    keras_mobilenet: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = keras_mobilenet(7)
    theirs.save_weights(tmp_path / "weights.h5")
    args = [*TINY, "--epochs=0", "--stages=train", f"--model_dir={tmp_path / 'run'}"]
    trainer.run([*args, f"--init_checkpoint={tmp_path / 'weights.h5'}"])
    result = weights(tf_keras.models.load_model(tmp_path / "run/train/model.keras", compile=False))
    assert_same_weights(result, theirs)
    assert result["Logits"][0].shape == (1, 1, 256, 10)
    assert "; new: Logits" in capfd.readouterr().out


def test_weights_of_another_model_are_refused(
    keras_mobilenet: Callable[..., Any], tmp_path: Path
) -> None:
    keras_mobilenet(10, 0.5).save_weights(tmp_path / "weights.h5")
    other = tmp_path / "other"
    args = [*TINY, "--stages=train", f"--model_dir={other}"]
    assert "width_multiplier" in error_of(*args, "--init_checkpoint", tmp_path / "weights.h5")
    assert not other.exists()
    keras_mobilenet(10, 0.5).save(tmp_path / "model.keras")
    message = r"model\.keras: expected weights of .*width_multiplier=0\.25\); 55 of 55 layers"
    with pytest.raises(UsageError, match=message):
        loaded(tmp_path / "model.keras")


@pytest.mark.slow
def test_prune_may_start_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    trainer.run(
        [*TINY, "--stages=prune", "--prune_epochs=1", f"--init_checkpoint={finished / 'train'}",
         f"--model_dir={tmp_path / 'run'}"]
    )  # fmt: skip
    entries = report(tmp_path / "run")
    assert list(entries) == ["prune"]
    assert entries["prune"]["nonzero_weights"] < 0.6 * report(finished)["train"]["nonzero_weights"]


@pytest.mark.slow
def test_a_nan_ends_the_run_in_one_line(tmp_path: Path) -> None:
    args = [*TINY, "--optimizer_name=sgd", "--lr=1e30", "--epochs=3", "--stages=train"]
    message = error_of(*args, "--warmup_epochs=0", f"--model_dir={tmp_path / 'run'}")
    assert re.search(r"loss: got '(nan|inf) at step \d+ in epoch 1, learning rate 1e\+30'", message)
    assert "expected a finite number; try --lr=1e+29" in message
    assert "--overwrite" in message


def started(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mobilenet.trainer", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts what runs in its background with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(folder: Path, pattern: str, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_run_continues_with_the_same_command(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "run"
    args = [*TINY, "--epochs=40", "--stages=train", f"--model_dir={folder}"]
    running = started(*args)
    try:
        wait_for(folder, "checkpoints/train/state-00003-*")
        running.send_signal(number)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == status
    line = "" if number == signal.SIGKILL else "interrupted; the same command continues the run\n"
    assert err == line
    assert not (folder / "train").exists()
    done = start_command("trainer", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        r"^train: continues after epoch \d+ of 40(, step .*)?$", done.stdout, re.MULTILINE
    )
    epochs = [line for line in done.stdout.splitlines() if line.startswith("train    epoch")]
    assert 30 < len(epochs) <= 37
    assert epochs[-1].startswith("train    epoch  40/40")
    card = json.loads((folder / "train/card.json").read_text())
    assert [row["epoch"] for row in card["history"]] == list(range(1, 41))
    assert not list(folder.rglob(".writing*"))


def test_the_card_describes_the_run(finished: Path) -> None:
    card = json.loads((finished / "prune/card.json").read_text())
    assert card["architecture"]["type"] == MobileNetV1Config.__name__
    assert (card["dataset"], card["stage"], card["input_shape"]) == ("digits", "prune", [32, 32, 3])
    assert card["metrics"]["top1"] == report(finished)["prune"]["top1"]
    assert any("Conv2d_13_pointwise" in note and "zeros" in note for note in card["notes"])
