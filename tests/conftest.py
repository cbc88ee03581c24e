"""What several tests share: the real data, and small models that are built once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SHARED_DATA = Path(__file__).parents[1] / ".." / "shared/data"


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
    not change it."""

    @functools.cache
    def make(name: str, **overrides: Any) -> Any:
        from mobilenet.configs import archs
        from mobilenet.models.builder import build

        fields = {
            "width_multiplier": 0.25,
            "num_classes": 10,
            "classifier_activation": None,
            **overrides,
        }
        return build(archs.get(name, **fields), (32, 32, 3))

    return make


@pytest.fixture(scope="session")
def float_file(small_model: Callable[..., Any]) -> Callable[[str], bytes]:
    """`float_file(name)`: the float flatbuffer of `small_model(name)`, converted once."""

    @functools.cache
    def make(name: str) -> bytes:
        from mobilenet.export import tflite_converter

        return tflite_converter.float_flatbuffer(small_model(name))

    return make


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`written(family, ...)`: a narrow model in a TF1 checkpoint: model, values, prefix."""
    import slim_checkpoints as slim

    def write(family: str, **fields: Any) -> tuple[Any, Any, Path]:
        model = slim.Slim(family, **fields)
        return model, *slim.written(tmp_path_factory.getbasetemp(), model)

    return write
