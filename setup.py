"""Maps two top-level folders into the package; all metadata is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {"mobilenet.configs": "configs", "mobilenet.tf1_loader": "tf1_loader"}

setup(
    packages=[*find_packages(include=["mobilenet", "mobilenet.*"]), *FOLDERS],
    package_dir=FOLDERS,
)
