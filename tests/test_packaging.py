"""Wheel and sdist are complete, and the wheel works without the checkout."""

from __future__ import annotations

import email
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mobilenet.configs import archs

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "mobilenet": "mobilenet",
    "configs": "mobilenet/configs",
    "tf1_loader": "mobilenet/tf1_loader",
}
COMMANDS = ("trainer", "evaluator", "converter", "predict", "profiler", "packer", "report")
SCRIPTS = {
    "": "__main__",
    "-data": "data.__main__",
    "-tf1-loader": "tf1_loader.__main__",
}
SCRIPTS |= {f"-{name}": name for name in COMMANDS}
# What the sdist has besides the package: enough to read the docs and to run the tests.
FILES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "LICENSE", "README.md"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"),
    *(".editorconfig", ".pre-commit-config.yaml"),
)
EXTRA_FOLDERS = (".ci", ".github", "benchmarks", "docs", "scripts", "tests")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[str]]:
    """The sdist, the wheel that is built from it, and the files of the copy they are made of."""
    pytest.importorskip("build", reason="the build package (extra `dev`) is not installed")
    setuptools = pytest.importorskip("setuptools")
    isolation = int(setuptools.__version__.partition(".")[0]) < 77  # then pip fetches a newer one
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    excluded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*FOLDERS, *EXTRA_FOLDERS):
        shutil.copytree(ROOT / folder, source / folder, ignore=excluded)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    args = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(
        [*args, *([] if isolation else ["--no-isolation"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel, files_of(source)


def files_of(source: Path) -> set[str]:
    """Names of all files that the wheel must contain."""
    names = set()
    for folder, inside in FOLDERS.items():
        for path in (source / folder).rglob("*"):
            if path.suffix in (".py", ".npz", ".html") or path.name == "py.typed":
                names.add(f"{inside}/{path.relative_to(source / folder).as_posix()}")
    return names


def test_the_wheel_holds_every_file_and_nothing_else(built: tuple[Path, Path, set[str]]) -> None:
    names = {n for n in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in n}
    assert names == built[2]
    assert {"mobilenet/digits.npz", "mobilenet/py.typed", "mobilenet/configs/archs.py"} <= names


def test_the_wheel_has_license_metadata_and_console_scripts(
    built: tuple[Path, Path, set[str]],
) -> None:
    wheel = zipfile.ZipFile(built[1])
    names = [name for name in wheel.namelist() if ".dist-info/" in name]
    texts = {name.partition(".dist-info/")[2]: wheel.read(name).decode() for name in names}
    assert "Apache License" in texts["licenses/LICENSE"]
    entries = texts["entry_points.txt"].split()
    expected = [f"mobilenet{suffix}=mobilenet.{module}:main" for suffix, module in SCRIPTS.items()]
    assert sorted("".join(entries[1:]).replace(":main", ":main ").split()) == sorted(expected)
    metadata = email.message_from_string(texts["METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    assert "tensorflow-datasets>=4.9" in metadata.get_all("Requires-Dist")


def test_the_sdist_holds_sources_tests_docs_and_scripts(
    built: tuple[Path, Path, set[str]],
) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    outside = {f.replace("mobilenet/configs/", "configs/") for f in built[2]}
    outside = {f.replace("mobilenet/tf1_loader/", "tf1_loader/") for f in outside}
    assert outside | set(FILES) <= names
    for folder in EXTRA_FOLDERS:
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file()}
        relative = {path.relative_to(ROOT).as_posix() for path in files}
        assert relative and {x for x in relative if "__pycache__" not in x} <= names, folder


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
    assert lines[3] == f"1797 {len(archs.ALL)}"


@pytest.mark.parametrize("args", [["-c", "import mobilenet"], ["-m", "mobilenet.trainer"]])
def test_a_checkout_that_is_not_installed_says_what_to_do(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-S", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )  # -S: without site-packages, so without the installed package
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "pip install -c constraints.txt -e ." in last and "another folder" in last


def test_no_text_installs_the_package_from_an_index() -> None:
    """It is on no package index: a checkout or a wheel is installed."""
    for folder in (*FOLDERS, "docs", "scripts", "."):
        for pattern in ("*.py", "*.md", "*.sh"):
            walk = (ROOT / folder).glob if folder == "." else (ROOT / folder).rglob
            for path in walk(pattern):
                assert not re.search(r"pip install \W?mobilenet\b(?!-)", path.read_text()), path


def requirement_groups() -> list[str]:
    """Every requirement of pyproject.toml, of the package and of its extras."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = r"^(?:dependencies|edge|micro|dev) = \[(.*?)\]$"
    blocks = re.findall(lists, text, flags=re.M | re.S)
    assert len(blocks) == 4
    return [requirement for block in blocks for requirement in re.findall(r'"(.*?)"', block)]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_pins_fit_the_declared_ranges(python: str) -> None:
    """Every declared dependency has one tested version per Python version, inside its range.

    TensorFlow Lite Micro is not pinned: it has nightly builds only, and old ones are deleted.
    """
    requirements = pytest.importorskip("packaging.requirements")
    utils = pytest.importorskip("packaging.utils")
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            if pin.marker and not pin.marker.evaluate({"python_version": python}):
                continue
            name = utils.canonicalize_name(pin.name)
            assert name not in pins, f"{name} has two pins for Python {python}"
            pins[name] = next(iter(pin.specifier)).version
    declared = [requirements.Requirement(text) for text in requirement_groups()]
    assert len(declared) > 15
    for requirement in (x for x in declared if x.name != "tflite-micro"):
        version = pins.get(utils.canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_every_supported_python_is_declared() -> None:
    """The range, the classifiers, the workflow and the search for an interpreter agree."""
    versions = ["3.10", "3.11", "3.12", "3.13"]
    text = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"Python :: (3\.\d+)", text) == versions
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix is not None
    assert re.findall(r"[\d.]+", matrix[1]) == versions
    script = (ROOT / "scripts/environment.sh").read_text()
    assert sorted(set(re.findall(r"python(3\.\d+)\b", script))) == versions


def install_on_a_device() -> list[str]:
    """The `pip install` lines of docs/tflite.md."""
    text = (ROOT / "docs/tflite.md").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("pip install")]


@pytest.mark.slow
def test_a_device_runs_files_without_tensorflow(
    built: tuple[Path, Path, set[str]], tmp_path: Path
) -> None:
    """predict, evaluator and profiler in an empty environment, created as in docs/tflite.md."""
    index = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(tmp_path), "absl-py"],
        capture_output=True,
        check=False,
    )
    if index.returncode:
        pytest.skip("no package index is reachable")
    run = functools.partial(
        subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    trained = run(
        [sys.executable, "-m", "mobilenet.trainer", "--width_multiplier=0.25", "--image_size=32"]
        + ["--epochs=1", "--stages=train,convert", "--model_dir=run"]
    )
    assert trained.returncode == 0, trained.stderr
    lines = install_on_a_device()
    assert len(lines) == 3
    run([sys.executable, "-m", "venv", "device"])
    python = str(tmp_path / "device/bin/python")
    for line in lines:
        words = [word for word in line.split() if word != "-e"]  # the wheel instead of a checkout
        args = [str(built[1]) if word == "." else word for word in words]
        pins = ["-c", str(ROOT / "constraints.txt")]
        done = run([python, "-m", *args, *pins])
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert run([python, "-c", "import tensorflow"]).returncode == 1
    for args in (
        ["predict", "--model=run/export", "run/example.png"],
        ["evaluator", "--model=run/export", "--dataset_name=digits", "--limit=10"],
        ["profiler", "run/export"],
    ):
        done = run([python, "-m", f"mobilenet.{args[0]}", *args[1:]])
        assert (done.returncode, done.stderr) == (0, ""), args[0]
        assert done.stdout
