"""What several tests share: the real data, small models that are built once, a finished run."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

TESTS = Path(__file__).parent
SHARED_DATA = TESTS / "../../shared/data"
# With several workers a group of tests stays on one, so that what they share is created once. The
# longest groups start first, so that the workers end together.
LONGEST = (
    "finished_run",
    "compression/pruning",
    "compression/int8",
    "export",
    "training",
    "models",
    "compression/post_training",
    "commands",
    "compression",
    "tf1_loader",
    "fuzz",
)


def pytest_configure() -> None:
    """A shell starts a background job with Ctrl-C ignored; the tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _group(item: pytest.Item) -> str:
    """A test's own group, else that of the finished run, its folder, or its file in this folder."""
    if own := item.get_closest_marker("xdist_group"):
        return str(own.args[0])
    if "finished_run" in getattr(item, "fixturenames", ()):
        return "finished_run"
    path = item.path.relative_to(TESTS)
    return path.parent.as_posix() if len(path.parts) > 1 else path.stem


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: ranks.get(_group(item), len(ranks)))


def pytest_collection_finish() -> None:
    """The garbage collector need not look at the hundred thousands of objects of TensorFlow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 10)  # a model is a hundred thousand objects


@pytest.fixture(autouse=True)
def random_seed() -> None:
    """Every test starts from one seed, so that random kernels are the same in each run."""
    if tf_keras := sys.modules.get("tf_keras"):
        tf_keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of tables are one line; `test_tables.py` and others narrow it."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints and photos; tests that need it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real checkpoints and photos are not at {SHARED_DATA.resolve()}")
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def small_model() -> Callable[..., Any]:
    """`small_model(name)`: a narrow model of that name, 32 x 32 x 3 to 10 logits, built once; do
    not change it. `short=True`: the first row of each kind alone."""

    @functools.cache
    def make(name: str, short: bool = False, **overrides: Any) -> Any:
        from small_models import short_blocks

        from mobilenet.configs import archs
        from mobilenet.models.builder import build

        fields = {
            "width_multiplier": 0.25,
            "num_classes": 10,
            "classifier_activation": None,
            **overrides,
        }
        if short:
            fields["blocks"] = short_blocks(name)
        return build(archs.get(name, **fields), (32, 32, 3))

    return make


@pytest.fixture(scope="session")
def float_file(small_model: Callable[..., Any]) -> Callable[..., bytes]:
    """`float_file(name)`: the float flatbuffer of `small_model(name)`, converted once."""

    @functools.cache
    def make(name: str, short: bool = False) -> bytes:
        from mobilenet.export import tflite_converter

        return tflite_converter.float_flatbuffer(small_model(name, short=short))

    return make


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run with all stages on the digits, and the process that created it.

    Copy the folder to change it.
    """
    import command_runs

    folder = tmp_path_factory.mktemp("finished")
    args = (*command_runs.LEARNED, "--model_dir=run")
    done = command_runs.start_command("trainer", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`written(family, ...)`: a narrow model in a TF1 checkpoint: model, values, prefix."""
    import slim_checkpoints as slim

    def write(family: str, **fields: Any) -> tuple[Any, Any, Path]:
        model = slim.Slim(family, **fields)
        return model, *slim.written(tmp_path_factory.getbasetemp(), model)

    return write
