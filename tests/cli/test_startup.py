"""Configs, help texts and bad flags respond at once: nothing of TensorFlow is loaded for them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    *("mobilenet.trainer", "mobilenet.evaluator", "mobilenet.converter", "mobilenet.predict"),
    *(
        "mobilenet.profiler",
        "mobilenet.packer",
        "mobilenet.report",
        "mobilenet.data",
        "mobilenet.tf1_loader",
    ),
)
HEAVY = "{'tensorflow', 'tf_keras', 'keras', 'ai_edge_litert', 'sklearn', 'tensorflow_datasets'}"


def entry(module: str) -> str:
    """The file that `python -m module` runs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    return f"{module}.__main__" if spec.submodule_search_locations else module


def seconds(
    *args: str, below: float, status: int = 0
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Least CPU time of up to three runs, as the machine may be busy; the first below is enough."""
    times: list[float] = []
    while len(times) < 3 and not (times and times[-1] < below):
        before = os.times()
        done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False)
        after = os.times()
        times.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        assert done.returncode == status, done.stderr
    return min(times), done


def loaded_after(code: str) -> str:
    """The heavy libraries that `code` left loaded."""
    report = f"\nimport sys; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_the_import_costs_under_a_third_of_a_second() -> None:
    taken, _ = seconds("-c", "import mobilenet", below=0.3)
    assert taken < 0.3


@pytest.mark.parametrize(
    "code",
    [
        "import mobilenet; mobilenet.UsageError, mobilenet.list_models('*v3*'), dir(mobilenet)",
        "import mobilenet.configs.archs, mobilenet.configs.recipes, mobilenet.configs.card",
        "import mobilenet.cli, mobilenet.__main__; mobilenet.__main__.run([])",
    ],
)
def test_light_packages_load_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == "[]"


def test_configs_load_in_under_a_second() -> None:
    taken, _ = seconds(
        "-c", "import mobilenet.configs.archs as a; print(a.get('mobilenet_v2'))", below=1
    )
    assert taken < 1


def test_the_list_of_commands_takes_under_a_second() -> None:
    taken, done = seconds("-m", "mobilenet", below=1)
    assert taken < 1
    for name in ("mobilenet_v1", "mobilenet_v3_large_minimalistic", "mobilenet_edgetpu"):
        assert name in done.stdout
    for module in COMMANDS:
        assert f"python -m mobilenet {module.rpartition('.')[2]}" in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
@pytest.mark.parametrize("module", COMMANDS)
def test_help_takes_under_a_second(module: str, flag: str) -> None:
    taken, done = seconds("-m", module, flag, below=1)
    assert taken < 1
    assert f"python -m {module}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("module", COMMANDS)
def test_a_bad_flag_costs_one_line_and_under_a_second(module: str) -> None:
    taken, done = seconds("-m", module, "--bad_flag", below=1, status=2)
    assert taken < 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"--bad_flag: expected a flag of {module}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", COMMANDS)
def test_help_loads_nothing_heavy(module: str) -> None:
    code = f"import contextlib, {entry(module)} as m\n"
    code += "with contextlib.suppress(SystemExit): m.run(['--helpfull'])"
    assert loaded_after(code) == "[]"


def test_every_command_is_there() -> None:
    """And each is a file next to its entry in `[project.scripts]`."""
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for module in COMMANDS:
        assert importlib.util.find_spec(module), module
        assert f'"{entry(module)}:main"' in settings
