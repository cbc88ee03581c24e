"""The floors: a file imports only from below its own; TensorFlow stays out of the light rooms."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"configs": "mobilenet.configs", "tf1_loader": "mobilenet.tf1_loader"}
COMMANDS_OF_ROOMS = ("mobilenet.tf1_loader.__main__",)
COMMANDS = (
    *("trainer", "evaluator", "converter", "predict", "profiler", "packer", "report"),
    *COMMANDS_OF_ROOMS,
)
GROUND = (
    *("errors", "files", "archives", "console", "metrics", "digits", "class_folders"),
    *("image_files", "image_list", "configs", "strict_json"),
)
DESK = ("cli", "process", "settling", "specs", "values", "__main__")  # what commands are made of
EDGE = (*DESK, *COMMANDS)
FLOORS = {
    **dict.fromkeys(GROUND, 0),
    **dict.fromkeys(("models", "data", "runtime"), 1),
    **dict.fromkeys(("tf1_loader", "compression", "export"), 2),
    **dict.fromkeys(("surgery", "training", "reporting"), 3),
    **dict.fromkeys(EDGE, 4),
}
LIGHT = (*GROUND, "runtime", *DESK, "__init__")
HEAVY = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "tensorflow_datasets")
# The fallback for machines that have TensorFlow and no ai_edge_litert.
MAY_FALL_BACK = {"mobilenet.runtime.interpreter"}


def modules() -> dict[str, Path]:
    """Path by dotted name of every file of the package."""
    found = {}
    for folder in ("mobilenet", "configs", "tf1_loader"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [
                FOLDERS.get(folder, folder),
                *path.relative_to(ROOT / folder).with_suffix("").parts,
            ]
            found[".".join(parts)] = path
    return found


MODULES = modules()


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def room(name: str) -> str:
    """`models` for `mobilenet.models.builder`; `__init__` for the package's own file.

    A command inside a room is one of the commands.
    """
    if name in COMMANDS_OF_ROOMS:
        return name
    return name.split(".")[1] if "." in name else "__init__"


def imports(name: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of what is imported; `from a import b` counts as both `a` and `a.b`."""
    package = name.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{home}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def top_level(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """What runs when the module is imported: not functions, not `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from top_level(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from top_level(handler.body)


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


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) != "__init__"])
def test_a_file_imports_only_from_floors_below(name: str) -> None:
    own = room(name)
    assert own in FLOORS, f"{name}: give its room a floor here and in CONTRIBUTING.md"
    for imported in imports(name, ast.walk(tree(name))):
        parts = imported.split(".")
        if parts[0] != "mobilenet":
            continue
        assert len(parts) > 1, f"{name} imports the whole package"
        other = parts[1]
        if other == own or other not in FLOORS:  # a public name of the package, as `__version__`
            assert other == own or other.startswith("__"), (
                f"{name} imports {imported} by the package"
            )
            continue
        # The ground floor and the commands' parts may lean on each other: they are single files.
        level = FLOORS[own] in (0, 4) and FLOORS[other] == FLOORS[own]
        assert level or FLOORS[other] < FLOORS[own], (
            f"{name} imports {imported} from floor {FLOORS[other]}"
        )


@pytest.mark.parametrize(
    "name", [n for n in MODULES if room(n) in LIGHT and n not in MAY_FALL_BACK]
)
def test_light_rooms_never_import_tensorflow(name: str) -> None:
    nodes = ast.walk(tree(name)) if room(name) != "__init__" else top_level(tree(name).body)
    assert not [i for i in imports(name, nodes) if is_heavy(i)]


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) in COMMANDS or n in MAY_FALL_BACK])
def test_commands_import_tensorflow_inside_functions_alone(name: str) -> None:
    heavy_rooms = [r for r, floor in FLOORS.items() if floor in (1, 2, 3) and r != "runtime"]
    for imported in imports(name, top_level(tree(name).body)):
        parts = imported.split(".")
        own = parts[:2] == name.split(".")[:2]  # what that file loads is in test_startup.py
        heavy_room = parts[0] == "mobilenet" and parts[1] in heavy_rooms and not own
        assert not is_heavy(imported) and not heavy_room, f"{name} imports {imported} when it loads"


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    most = 149 if room(name) in COMMANDS else 399
    assert len(source.splitlines()) <= most
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            length = (node.end_lineno or first) - first + 1
            assert length < 60, f"{name}.{node.name} has {length} lines"


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
