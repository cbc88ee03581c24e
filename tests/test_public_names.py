"""The package's public list is true, sorted, and loads nothing before it is used."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import mobilenet

PUBLIC = [
    "UsageError",
    "VerificationError",
    "__version__",
    "build",
    "configs",
    "convert",
    "count",
    "end_points",
    "evaluate",
    "find_learning_rate",
    "list_models",
    "list_weights",
    "load_model",
    "pack",
    "profile",
    "prune",
    "quantize",
    "quantize_aware",
    "runtime",
    "save_model",
    "surgery",
    "sweep",
    "tf1_loader",
    "thin",
    "train",
    "unpack",
    "verify",
    "write_report",
]


def test_the_list_is_this_one() -> None:
    assert mobilenet.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_importable_and_documented(name: str) -> None:
    value = getattr(mobilenet, name)
    if name == "__version__":
        assert value == importlib.metadata.version("mobilenet")
    elif inspect.ismodule(value):
        assert value.__name__ == f"mobilenet.{name}"
    else:
        assert inspect.getdoc(value)


def test_dir_lists_what_is_not_loaded_yet() -> None:
    code = (
        "import mobilenet, sys; print('build' in dir(mobilenet), 'mobilenet.models' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_dir_shows_the_api_and_nothing_else() -> None:
    assert dir(mobilenet) == PUBLIC


@pytest.mark.parametrize("name", ["mobilenet_v2", "nonzero_weights"])
def test_a_deprecated_name_says_what_to_write(name: str) -> None:
    with pytest.warns(DeprecationWarning, match="write mobilenet"):
        assert callable(getattr(mobilenet, name))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'mobilenet_v4'"):
        _ = mobilenet.mobilenet_v4


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(mobilenet))
    block = next(
        n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    )
    seen = {
        a.asname or a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    seen |= {ast.unparse(n.target) for n in block.body if isinstance(n, ast.AnnAssign)}
    assert seen == set(PUBLIC)
