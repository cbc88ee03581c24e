"""The notebooks of docs/notebooks run from top to bottom, in a kernel, as a reader runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs/notebooks"
SECONDS = 900  # a cell, on a busy machine


def execute(name: str, folder: Path) -> str:
    """Runs a notebook in a folder; returns what its cells print."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=place
    ).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_its_links_lead_to_files(path: Path) -> None:
    notebook: dict[str, Any] = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        for link in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
            assert (FOLDER / link).is_file(), link


@pytest.mark.slow
def test_own_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the digits, without a network."""
    for name in ("PHOTOS", "WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    printed = execute("own_photos.ipynb", tmp_path)
    run = tmp_path / "runs/own_photos"
    stages = json.loads((run / "report.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["train", "quantize", "convert"]
    assert all(stage["top1"] > 90 for stage in stages)
    assert (run / "export/model.tflite").stat().st_size < (run / "train/model.keras").stat().st_size
    assert re.search(r"digit_photos/\d/\d+\.png\n\d: \d+\.\d %", printed)


@pytest.mark.slow
def test_tf1_to_microcontroller(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the checkpoint of person detection, and on photos; the array is the file."""
    pytest.importorskip("tflite_micro")
    checkpoint = shared_data / "checkpoints/tinypose_v1_0.25_96_gray"
    monkeypatch.setenv("CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("PHOTOS", str(shared_data / "photos/calibration"))
    printed = execute("tf1_to_microcontroller.ipynb", tmp_path)
    assert "mobilenet_v1 of width 0.25" in printed
    match = re.search(r"the class of the TF1 model on (\d+) % of 50 images", printed)
    assert match is not None and int(match[1]) >= 96
    sources = tmp_path / "microcontroller"
    values = re.findall(r"0x([0-9a-f]{2})", (sources / "model_data.cc").read_text())
    content = np.array([int(value, 16) for value in values], np.uint8).tobytes()
    assert content == (sources / "model.tflite").read_bytes()
