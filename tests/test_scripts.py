"""The scripts run from any folder, with `bash` and `sh`, and call the commands as documented."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilenet import cli
from mobilenet.configs.pruning import ChannelPruning

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
MODELS = {"1": "mobilenet_v1", "2": "mobilenet_v2", "3": "mobilenet_v3_large"}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fake Python that prints its arguments, one per line."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    return fake


def call(
    script: str, *args: str, python: Path, shell: str = "bash", status: int = 0, **variables: str
) -> tuple[list[str], str]:
    """The arguments of the script's calls of Python, and its stderr; run from another folder."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("DATA_DIR", "MODEL_DIR", "DATASET_NAME")
    }
    done = subprocess.run(
        [shell, os.path.relpath(SCRIPTS / script, python.parent), *args],
        cwd=python.parent,
        env={**environment, "PYTHON": str(python), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines(), done.stderr


def flags_of(args: list[str], module: str) -> dict[str, str]:
    """Flags by name of `-m module --flag value ...`; 'true' for one without a value."""
    assert args[:2] == ["-m", module]
    flags: dict[str, str] = {}
    name = ""
    for word in args[2:]:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = "true"
        else:
            flags[name] = word
    return flags


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("number", MODELS)
def test_train_runs_the_imagenet_recipe(number: str, shell: str, python: Path) -> None:
    args, _ = call(f"train_mbnv{number}.sh", "train", python=python, shell=shell, DATA_DIR="/a b")
    flags = flags_of(args, "mobilenet.trainer")
    assert flags.pop("model_dir") == str(ROOT / "runs" / f"{MODELS[number]}_imagenet2012")
    assert flags == {
        "model_name": MODELS[number],
        "dataset_name": "imagenet2012",
        "data_dir": "/a b",
        "stages": "train",
    }


@pytest.mark.parametrize("number", MODELS)
def test_test_is_two_short_epochs_of_digits(number: str, python: Path) -> None:
    args, _ = call(f"train_mbnv{number}.sh", "test", "--seed", "3", python=python, MODEL_DIR="m")
    flags = flags_of(args, "mobilenet.trainer")
    assert (flags["model_name"], flags["dataset_name"]) == (MODELS[number], "digits")
    assert (flags["epochs"], flags["seed"], flags["model_dir"]) == ("2", "3", "m")
    assert int(flags["batch_size"]) <= 8


@pytest.mark.parametrize("mode", ["train", "test"])
def test_the_trainer_accepts_every_flag_of_the_scripts(mode: str, python: Path) -> None:
    from mobilenet import trainer

    for number in MODELS:
        args, _ = call(f"train_mbnv{number}.sh", mode, python=python, DATA_DIR="/data")
        parsed = trainer.COMMAND.parse(args[2:])
        assert cli.run_config(parsed).stages == ("train",)


def test_released_models_are_scored_by_the_benchmark(python: Path) -> None:
    args, _ = call("score_released.sh", "--data_dir", "a b", python=python)
    assert Path(args[0]).resolve() == ROOT / "benchmarks" / "released_models.py"
    assert args[1:] == ["--data_dir", "a b"]


@pytest.mark.parametrize("args", [(), ("Train",), ("--help",)])
def test_an_unknown_mode_costs_one_line(args: tuple[str, ...], python: Path) -> None:
    output, error = call("train_mbnv1.sh", *args, python=python, status=2)
    assert output == []
    assert f"got '{''.join(args)}', expected train or test" in error
    assert error.count("\n") == 1


def test_training_on_imagenet_requires_its_folder(python: Path) -> None:
    output, error = call("train_mbnv2.sh", "train", python=python, status=2)
    assert (output, error.count("\n")) == ([], 1)
    assert error.startswith("DATA_DIR: expected the folder of ImageNet; ")
    args, _ = call("train_mbnv2.sh", "train", "--data_dir=/data", python=python)
    assert args[-1] == "--data_dir=/data"


@pytest.mark.parametrize(
    ("mode", "stages", "ratio", "epochs"), [("8stage", 7, 0.875, 30), ("16stage", 15, 0.9375, 15)]
)
def test_pruning_stages_are_those_of_the_original(
    mode: str, stages: int, ratio: float, epochs: int, python: Path
) -> None:
    """Ratios that grow by an eighth or a sixteenth per stage; four epochs of each stage prune."""
    from mobilenet import trainer

    args, _ = call("multistage_prune.sh", "mobilenet_v1", mode, "--seed=3", python=python)
    config = cli.run_config(trainer.COMMAND.parse(args[2:]))
    pruning, recipe = config.pruning, config.prune
    assert isinstance(pruning, ChannelPruning)
    assert (pruning.stages, pruning.ratio, pruning.round_to) == (stages, {"all": ratio}, 1)
    assert (pruning.schedule, pruning.importance, pruning.frequency) == (
        *("polynomial", "magnitude"),
        2000,
    )
    assert pruning.end * epochs == pytest.approx(4, abs=1e-3)
    assert (recipe.epochs, recipe.batch_size, recipe.keep_best) == (epochs, 256, True)
    assert (recipe.optimizer_name, recipe.lr, recipe.op_momentum) == ("momentum", 0.01, 0.9)
    decay = (recipe.learning_scheduler_name, recipe.lr_decay_rate, recipe.lr_decay_epochs)
    assert decay == ("exponential", 0.96, 1)
    assert (config.distillation.teacher, config.seed) == ("none", 3)


@pytest.mark.parametrize("args", [(), ("mobilenet_v1",), ("mobilenet_v1", "4stage")])
def test_unknown_stages_cost_one_line(args: tuple[str, ...], python: Path) -> None:
    output, error = call("multistage_prune.sh", *args, python=python, status=2)
    assert (output, error.count("\n")) == ([], 1)
    assert "expected a model and 8stage or 16stage" in error


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("number", MODELS)
def test_evaluation_uses_the_trained_model(number: str, shell: str, python: Path) -> None:
    script = f"eval_mbnv{number}.sh"
    args, _ = call(script, "--batch_size", "8", python=python, shell=shell, DATA_DIR="/data")
    assert flags_of(args, "mobilenet.evaluator") == {
        "model": str(ROOT / "runs" / f"{MODELS[number]}_imagenet2012" / "train"),
        "dataset_name": "imagenet2012",
        "data_dir": "/data",
        "batch_size": "8",
    }
    args, _ = call(script, python=python, MODEL_DIR="/m", DATASET_NAME="digits")
    flags = flags_of(args, "mobilenet.evaluator")
    assert (flags["model"], flags["dataset_name"]) == ("/m/train", "digits")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_tf1_checkpoint_is_loaded_and_evaluated(shell: str, python: Path) -> None:
    args, _ = call(
        "load_evaluate_tf1_ckpt.sh",
        *("a model.tgz", "--batch_size", "8"),
        python=python,
        shell=shell,
        DATA_DIR="/a b",
    )
    second = args.index("-m", 1)
    loaded = flags_of(args[:second], "mobilenet.tf1_loader")
    evaluated = flags_of(args[second:], "mobilenet.evaluator")
    assert loaded["checkpoint"] == "a model.tgz"
    assert evaluated.pop("model") == loaded["output"]
    assert not Path(loaded["output"]).parent.exists()  # removed at the end
    assert evaluated == {"dataset_name": "imagenet2012", "data_dir": "/a b", "batch_size": "8"}


def test_a_checkpoint_must_be_named(python: Path) -> None:
    args, error = call("load_evaluate_tf1_ckpt.sh", python=python, status=2)
    assert not args
    assert "expected a checkpoint" in error


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_tensorboard_shows_all_runs_or_one(shell: str, python: Path) -> None:
    args, _ = call("start_tensorboard.sh", "--port", "7", python=python, shell=shell)
    assert args == ["-m", "tensorboard.main", "--logdir", str(ROOT / "runs"), "--port", "7"]
    args, _ = call("start_tensorboard.sh", python=python, shell=shell, MODEL_DIR="here")
    assert args[-1] == "here"


def test_tensorboard_starts_with_the_installed_packages() -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "start_tensorboard.sh"), "--version_tb"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()[0].isdigit()


def checkout(folder: Path) -> Path:
    """A copy of the files that determine the environment, and an empty folder for programs."""
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "scripts").mkdir()
    for name in ("environment.sh", "quickstart.sh"):
        (folder / "scripts" / name).write_text((SCRIPTS / name).read_text())
    (folder / "bin").mkdir()
    return folder


def run_quickstart(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_bash(folder, "scripts/quickstart.sh", *args)


def run_bash(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """With only the copy's bin/ and the base tools on the path."""
    for tool in ("bash", "cat", "cksum", "dirname", "rm", "sh", "chmod", "cp", "mkdir"):
        target = folder / "bin" / tool
        if not target.exists():
            folders = (d for d in ("/usr/bin", "/bin") if Path(d, tool).exists())
            target.symlink_to(Path(next(folders), tool))
    return subprocess.run(
        ["bash", *args],
        cwd=folder,
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_supported_python_the_scripts_end_with_one_line(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    old = folder / "bin" / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run_quickstart(folder)
    assert done.returncode == 2
    assert done.stderr == (
        "python3: expected version 3.10, 3.11, 3.12 or 3.13; "
        "apt-get install python3 python3-venv on Debian 12 or 13, Ubuntu 22.04 or 24.04\n"
    )
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_python_without_venv_names_the_package(version: str, tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    bare = folder / "bin" / f"python{version}"
    package = f"python{version}-venv"
    bare.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *venv*) echo {package};; esac\n'
    )
    bare.chmod(0o755)
    done = run_quickstart(folder)
    assert done.returncode == 2
    expected = f"python{version}: expected its venv module; apt-get install {package}\n"
    assert done.stderr == expected


def test_an_environment_is_updated_only_after_a_change(tmp_path: Path) -> None:
    """A fake Python records its calls: venv, pip, then the trainer."""
    folder = checkout(tmp_path)
    record = folder / "calls"
    fake_python = folder / "bin" / "python3.11"
    fake_python.write_text(
        "#!/bin/bash\n"
        f'echo "$*" >>{record}\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    fake_python.chmod(0o755)

    def calls(*args: str, script: str = "scripts/quickstart.sh") -> list[str]:
        record.write_text("")
        done = run_bash(folder, script, *args)
        assert done.returncode == 0, done.stderr
        return [c for c in record.read_text().splitlines() if c.startswith("-m")]

    (folder / "dev.sh").write_text("set -e\n. scripts/environment.sh\nmake_environment dev\n")
    first = calls("--epochs", "1")
    assert first[0] == f"-m venv {folder}/.venv"
    assert f"-c {folder}/constraints.txt -e {folder}" in first[1]
    assert first[2:] == ["-m mobilenet.trainer --model_name mobilenet_v1 --epochs 1"]
    assert calls() == ["-m mobilenet.trainer --model_name mobilenet_v1"]
    (folder / "constraints.txt").write_text("numpy==2.0\n")
    assert [c.partition(" --")[0] for c in calls()] == [
        "-m pip",
        "-m pip install",
        "-m mobilenet.trainer",
    ]
    assert calls(script="dev.sh")[-1].endswith(f"-e {folder}[dev]")
    assert calls(script="dev.sh") == []
    assert calls() == ["-m mobilenet.trainer --model_name mobilenet_v1"]


def test_every_script_is_valid_and_can_be_executed() -> None:
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) == 17
    for path in [*scripts, ROOT / ".ci" / "run"]:
        subprocess.run(["bash", "-n", str(path)], check=True)
        if path.name != "environment.sh":
            assert os.access(path, os.X_OK), path
            assert "set -euo pipefail" in path.read_text()


def test_fuzzing_passes_its_arguments_on(python: Path) -> None:
    args, _ = call("fuzz.sh", "flags", "--cases", "5", python=python)
    assert args == ["-m", "fuzz", "flags", "--cases", "5"]


WORKER = """#!/bin/sh
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "$TF_CONFIG"
printf '%s\\n' "$@"
case "$TF_CONFIG" in *'"index": 1'*) {second};; *) {first};; esac
"""


def start_workers(
    tmp_path: Path, *args: str, first: str = ":", second: str = ":"
) -> subprocess.Popen[str]:
    """The script that starts workers, which are a fake Python."""
    fake = tmp_path / "worker"
    fake.write_text(WORKER.format(python=sys.executable, first=first, second=second))
    fake.chmod(0o755)
    return subprocess.Popen(
        ["sh", SCRIPTS / "train_multi_worker.sh", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(fake), "LOG_DIR": "logs", "GRACE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(tmp_path: Path, *args: str, first: str = ":", second: str = ":") -> tuple[int, str]:
    """Exit status and stderr of the script."""
    with start_workers(tmp_path, *args, first=first, second=second) as script:
        _, error = script.communicate()
    return script.returncode, error


def test_workers_get_the_flags_and_a_description_of_all(tmp_path: Path) -> None:
    assert workers(tmp_path, "2", "--seed", "3", "--a=b c") == (0, "")
    for index in range(2):
        config, *words = (tmp_path / "logs" / f"worker_{index}.log").read_text().splitlines()
        described = json.loads(config)
        assert described["task"] == {"type": "worker", "index": index}
        assert len(set(described["cluster"]["worker"])) == 2
        flags = ["--distribution_strategy", "multi_worker", "--seed", "3", "--a=b c"]
        assert words == ["-m", "mobilenet.trainer", *flags]


def test_a_failed_worker_ends_the_others(tmp_path: Path) -> None:
    status, error = workers(tmp_path, "2", first="exec sleep 60", second="echo bad; exit 3")
    assert status == 3
    assert error.splitlines()[0] == "a worker ended with status 3; last lines by worker:"
    assert error.splitlines()[2] == "worker 1: bad"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_workers_that_do_not_hear_it(tmp_path: Path, number: int) -> None:
    """As TensorFlow does while it waits for the others."""
    second = "echo ready; trap '' TERM; exec sleep 60"
    with start_workers(tmp_path, "2", first="exec sleep 60", second=second) as script:
        log = tmp_path / "logs" / "worker_1.log"
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.1)
        script.send_signal(number)
        assert script.wait(30) == 128 + number


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "got '', expected the number of workers"),
        (("two",), "got 'two', expected the number of workers"),
        (("0",), "got '0', expected the number of workers"),
        (("2", "--distribution_strategy", "mirrored"), "--distribution_strategy: expected none"),
    ],
)
def test_wrong_words_for_workers_cost_one_line(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    status, error = workers(tmp_path, *args)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
