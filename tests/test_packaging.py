"""The wheel and the sdist hold the whole package, and the wheel works where the checkout is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "mobilenet": "mobilenet",
    "configs": "mobilenet/configs",
    "tf1_loader": "mobilenet/tf1_loader",
}
SCRIPTS = {"": "__main__", "-tf1-loader": "tf1_loader.__main__"}
SCRIPTS |= {f"-{name}": name for name in ("trainer", "evaluator", "converter", "predict")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[str]]:
    """The sdist, the wheel that is built from it, and the files of the copy they are made of."""
    pytest.importorskip("build", reason="the build package (extra `dev`) is not installed")
    setuptools = pytest.importorskip("setuptools")
    isolation = int(setuptools.__version__.partition(".")[0]) < 77  # then pip fetches a newer one
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(
        [*words, *([] if isolation else ["--no-isolation"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel, files_of(source)


def files_of(source: Path) -> set[str]:
    """Names inside the wheel of every file that belongs there."""
    found = set()
    for folder, inside in FOLDERS.items():
        for path in (source / folder).rglob("*"):
            if path.suffix in (".py", ".npz") or path.name == "py.typed":
                found.add(f"{inside}/{path.relative_to(source / folder).as_posix()}")
    return found


def test_the_wheel_holds_every_file_and_nothing_else(built: tuple[Path, Path, set[str]]) -> None:
    names = {n for n in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in n}
    assert names == built[2]
    assert {"mobilenet/digits.npz", "mobilenet/py.typed", "mobilenet/configs/archs.py"} <= names


def test_the_wheel_carries_licence_and_console_scripts(built: tuple[Path, Path, set[str]]) -> None:
    wheel = zipfile.ZipFile(built[1])
    names = [name for name in wheel.namelist() if ".dist-info/" in name]
    texts = {name.partition(".dist-info/")[2]: wheel.read(name).decode() for name in names}
    assert "Apache License" in texts["licenses/LICENSE"]
    for suffix, module in SCRIPTS.items():
        assert f"mobilenet{suffix} = mobilenet.{module}:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]


def test_the_sdist_holds_what_a_build_needs(built: tuple[Path, Path, set[str]]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    outside = {f.replace("mobilenet/configs/", "configs/") for f in built[2]}
    outside = {f.replace("mobilenet/tf1_loader/", "tf1_loader/") for f in outside}
    assert outside | {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_the_wheel_works_in_a_clean_folder(
    built: tuple[Path, Path, set[str]], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(built[1]).extractall(site)
    code = (
        "import mobilenet, mobilenet.configs.archs as archs\n"
        "import mobilenet.tf1_loader, mobilenet.data.sources.digits as digits\n"
        "print(mobilenet.__file__)\nprint(archs.__file__)\nprint(mobilenet.tf1_loader.__file__)\n"
        "print(len(digits.load().labels), len(mobilenet.list_models()))\n"
        "import mobilenet.__main__ as m; m.run([])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(Path(line).is_relative_to(site) for line in lines[:3])
    assert lines[3] == "1797 7"


def test_the_pins_fit_the_declared_ranges() -> None:
    """Every dependency that is declared has a tested version, inside its range.

    Of TensorFlow Lite Micro there are nightly builds alone, and old ones go.
    """
    requirements = pytest.importorskip("packaging.requirements")
    utils = pytest.importorskip("packaging.utils")
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            pins[utils.canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    text = (ROOT / "pyproject.toml").read_text()
    lists = r"^(?:dependencies|tfds|edge|micro|dev) = \[(.*?)\]$"
    blocks = re.findall(lists, text, flags=re.M | re.S)
    declared = [
        requirements.Requirement(w) for block in blocks for w in re.findall(r'"(.*?)"', block)
    ]
    assert len(declared) > 15
    for requirement in (x for x in declared if x.name != "tflite-micro"):
        version = pins.get(utils.canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
