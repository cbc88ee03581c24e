"""The layers: a package imports only from layers below its own, and nothing in a circle;
TensorFlow stays out of the light packages.
"""

from __future__ import annotations

import ast
import io
import tokenize

import pytest
from package_imports import (
    COMMANDS,
    FOUNDATION,
    LEVEL,
    MODULES,
    imports,
    package_of,
    top_level,
    tree,
    what_runs,
)

LIGHT = (*FOUNDATION, "tflite", "runtime", "cli", "__main__", "__init__")
LIGHT_SUBPACKAGES = (
    "mobilenet.data.in_memory",
    "mobilenet.data.sources",
    "mobilenet.evaluation.arrays",
    "mobilenet.evaluation.calibration_error",
    "mobilenet.evaluation.confusion",
    "mobilenet.evaluation.data_source",
    "mobilenet.evaluation.pipeline",
    "mobilenet.evaluation.predictions",
    "mobilenet.evaluation.result",
    "mobilenet.evaluation.saving",
    "mobilenet.models.input_preprocessing",
    "mobilenet.reporting.charts",
    "mobilenet.reporting.comparison_sections",
    "mobilenet.reporting.page",
    "mobilenet.reporting.recorded_run",
    "mobilenet.reporting.run_sections",
    "mobilenet.reporting.sections",
    "mobilenet.reporting.tables",
    "mobilenet.reporting.themed_svg",
    "mobilenet.sweeps",
    "mobilenet.training.resolve_config",
    "mobilenet.training.run_folder",
    "mobilenet.training.run_parameters",
    "mobilenet.training.stage_data",
    "mobilenet.training.stage_report",
    "mobilenet.training.training_run",
    "mobilenet.weights.pretrained",
)
HEAVY = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "tensorflow_datasets")
# The fallback for machines that have TensorFlow and no ai_edge_litert.
MAY_FALL_BACK = {"mobilenet.runtime.interpreter"}


def is_heavy(imported: str) -> bool:
    return imported.split(".")[0] in HEAVY


def test_imports_of_every_form_are_seen() -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n"
    source += "def h():\n    from .i import j\n    importlib.import_module('k')\n"
    seen = set(imports("mobilenet.models.builder", ast.walk(ast.parse(source))))
    assert seen == {
        "a.b",
        "c.d",
        "mobilenet.models.e",
        "mobilenet.f.g",
        "mobilenet.models.i.j",
        "k",
    }


@pytest.mark.parametrize("name", [n for n in MODULES if package_of(n) != "__init__"])
def test_a_module_imports_only_from_layers_below(name: str) -> None:
    own = package_of(name)
    assert own in LEVEL, (
        f"{name}: give its package a layer in scripts/site/package_imports.py and CONTRIBUTING.md"
    )
    for imported in imports(name, ast.walk(tree(name))):
        parts = imported.split(".")
        if parts[0] != "mobilenet":
            continue
        assert len(parts) > 1, f"{name} imports the whole package"
        other = parts[1]
        if other == own or other not in LEVEL:  # a public name of the package, as `__version__`
            assert other == own or other.startswith("__"), (
                f"{name} imports {imported} by the package"
            )
            continue
        # The modules of the foundation may use each other: test_nothing_is_imported_in_a_circle.
        foundation = LEVEL[own] == LEVEL[other] == 0
        assert foundation or LEVEL[other] < LEVEL[own], (
            f"{name} imports {imported} of layer {LEVEL[other]}"
        )


def test_nothing_is_imported_in_a_circle() -> None:
    """By what runs when modules load, so that any module can be the first to be imported."""
    needs = {
        name: {
            target
            for imported in imports(name, top_level(tree(name).body))
            for target in (imported, imported.rpartition(".")[0])
            if target in MODULES and target != name
        }
        for name in MODULES
    }
    done: set[str] = set()
    while ready := {name for name in needs if name not in done and needs[name] <= done}:
        done |= ready
    assert not sorted(set(needs) - done)


def is_light(name: str) -> bool:
    return package_of(name) in LIGHT or name.startswith(LIGHT_SUBPACKAGES)


@pytest.mark.parametrize("name", [n for n in MODULES if is_light(n) and n not in MAY_FALL_BACK])
def test_light_packages_never_import_tensorflow(name: str) -> None:
    is_init = package_of(name) == "__init__"
    nodes = top_level(tree(name).body) if is_init else what_runs(tree(name))
    assert not [i for i in imports(name, nodes) if is_heavy(i)]


@pytest.mark.parametrize(
    "name", [n for n in MODULES if package_of(n) in (*COMMANDS, "api") or n in MAY_FALL_BACK]
)
def test_commands_and_the_api_import_tensorflow_inside_functions_alone(name: str) -> None:
    heavy = {p for p, level in LEVEL.items() if 1 <= level < LEVEL["api"] and p not in LIGHT}
    for imported in imports(name, top_level(tree(name).body)):
        parts = imported.split(".")
        own = parts[:2] == name.split(".")[:2]  # what that file loads is in test_startup.py
        allowed = own or imported.startswith(LIGHT_SUBPACKAGES)
        loads = parts[0] == "mobilenet" and parts[1] in heavy and not allowed
        assert not is_heavy(imported) and not loads, f"{name} imports {imported} when it loads"


@pytest.mark.parametrize("name", MODULES)
def test_keras_is_imported_as_tf_keras(name: str) -> None:
    """`tf.keras` is Keras 3 under this TensorFlow; tfmot works on Keras 2 alone."""
    for imported in imports(name, ast.walk(tree(name))):
        assert not imported.startswith("tensorflow.keras"), f"{name} imports {imported}"
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("tf.keras", "tensorflow.keras"), f"line {node.lineno}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_what_it_is_for(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", MODULES)
def test_no_code_is_commented_out(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("#").strip()
        if token.type == tokenize.COMMENT and text.startswith(
            ("import ", "from ", "def ", "return ")
        ):
            with pytest.raises(SyntaxError):
                ast.parse(text)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_read_by_what_runs_code(name: str) -> None:
    """docs/security.md: no pickles, and no loader of Keras that builds what a file describes."""
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & {
        imported.split(".")[0] for imported in imports(name, ast.walk(tree(name)))
    }
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("load_model", "model_from_json"), f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"line {node.value.lineno}"
