"""What imports what in the package, read with `ast`, and the layers that may import each other."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"configs": "mobilenet.configs", "tf1_loader": "mobilenet.tf1_loader"}
# Commands inside a package.
COMMAND_MODULES = ("mobilenet.data.__main__", "mobilenet.tf1_loader.__main__")
COMMANDS = (
    *("trainer", "evaluator", "converter", "predict", "profiler", "packer", "report"),
    *COMMAND_MODULES,
)
FOUNDATION = (
    *("configs", "errors", "files", "metrics", "console", "lazy", "strict_json", "archives"),
    *("downloads", "image_files", "image_orientation", "text_tables", "typing"),
)
# From the bottom; CONTRIBUTING.md lists what each package contains.
LAYERS = (
    FOUNDATION,
    ("object_storage",),
    ("tflite", "models", "data"),
    ("runtime", "tf1_loader"),
    ("weights",),
    ("compression", "evaluation"),
    ("export",),
    ("packing",),
    ("loading",),
    ("training",),
    ("reporting",),
    ("sweeps",),
    ("surgery",),
    ("api",),
    ("cli",),
    (*COMMANDS, "__main__"),
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def modules() -> dict[str, Path]:
    """Path by dotted name of every file of the package."""
    paths = {}
    for folder in ("mobilenet", "configs", "tf1_loader"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [
                FOLDERS.get(folder, folder),
                *path.relative_to(ROOT / folder).with_suffix("").parts,
            ]
            paths[".".join(parts)] = path
    return paths


MODULES = modules()


def tree(name: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def package_of(name: str) -> str:
    """`models` for `mobilenet.models.builder`; `__init__` for the package's own file.

    A command inside a package is one of the commands.
    """
    if name in COMMAND_MODULES:
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


def what_runs(body: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those of functions too, but for `if TYPE_CHECKING`."""
    yield body
    for child in ast.iter_child_nodes(body):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from what_runs(child)


@functools.cache
def imported_packages() -> dict[str, set[str]]:
    """The packages that each package imports, in functions too; the commands are one of them."""
    graph: dict[str, set[str]] = {package: set() for package in LEVEL}
    for name in MODULES:
        own = package_of(name)
        for imported in imports(name, what_runs(tree(name))):
            other = next((c for c in COMMAND_MODULES if imported.startswith(c)), None)
            other = other or (package_of(imported) if imported.startswith("mobilenet.") else "")
            if own in graph and other in graph and own != other:
                graph[own].add(other)
    return graph
