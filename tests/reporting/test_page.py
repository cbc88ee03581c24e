"""The report page: what it has of a run, that names stay text, and that it needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet import report
from mobilenet.configs import recipes
from mobilenet.configs.card import Card
from mobilenet.configs.run import Part
from mobilenet.errors import UsageError
from mobilenet.reporting import page
from mobilenet.training import stage_data
from mobilenet.training.run_folder import RunFolder
from mobilenet.training.stage_report import RunReport, StageReport
from mobilenet.training.training_run import TrainingRun

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$\\frac{a}", "d" * 300)
SECTIONS = ["stages", "curves", "classes", "mistakes", "training", "cost", "weights"]
SECTIONS += ["quantization", "config", "commands", "environment"]
PIXELS = np.random.default_rng(9).integers(0, 256, (48, 20, 20, 3), np.uint8)
PNG = re.compile(r"data:image/png;base64,([^\"]*)")


class Page(HTMLParser):
    """Tags with their attributes, the text, and tables as rows of cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def all(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for own, attrs in self.tags if own == tag and name in attrs]

    @property
    def sections(self) -> list[str]:
        return self.all("section", "id")


def row(epoch: int, **more: float) -> dict[str, float]:
    values = {"loss": 2 / epoch, "top1": 20.0 * epoch, "val_loss": 2.5 / epoch, "lr": 0.01}
    return {"epoch": epoch, **values, "val_top1": 15.0 * epoch, **more}


def make_run(folder: Path, labels: tuple[str, ...], images: int = 40, width: float = 0.25) -> Path:
    """A finished run of all sections, without training."""
    config = recipes.get("mobilenet_v1", "digits")
    config = config.replace(model=config.model.replace(width_multiplier=width))
    rng = np.random.default_rng(0)
    truth = np.arange(images) % len(labels)
    predicted = np.where(rng.random(images) < 0.7, truth, rng.integers(0, len(labels), images))
    scored = stage_data.ScoredImages(
        *(truth, predicted, rng.random(images, np.float32), rng.random(images, np.float32)),
        rng.random(images, np.float32),
        *(np.arange(24), np.arange(16, 40)),
        PIXELS,
        tuple(f"{labels[0]}/{n}.png" for n in [*range(24), *range(16, 40)]),
    )
    (folder / "export").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    (folder / "environment.json").write_text(
        json.dumps({"command": ["/x/trainer.py", "--seed", "a b"], "processor": HOSTILE[1]})
    )
    (folder / "export/card.json").write_text(json.dumps(Card(labels=labels).to_json()))
    stage_data.save_scored(folder, "convert", scored)
    examples = stage_data.TrainingImages(scored.pixels[:24, :, :, :1], truth[:24])
    stage_data.save_training_images(folder, examples)
    for stage, outputs, zeros in (("train", 64, 0), ("prune", 48, 30)):
        kernel = stage_data.Kernel("c1", "pointwise", 60, zeros, outputs, 0, -1, 1, (3, 4, 5))
        stage_data.save_kernels(folder, stage, [kernel])
    layers = [{"layer": HOSTILE[0], "signal_to_noise": 12.5, "diagnosis": "noise of its input"}]
    run = RunFolder(folder, config)
    size = {"macs": 800_000, "bytes": 900_000, "params": 220_000, "latency_ms": 0.5}
    pruned = (row(1, sparsity=0.2, target_sparsity=0.3), row(2, sparsity=0.5, target_sparsity=0.5))
    run.record(StageReport(Part("train"), 61.25, 92, history=(row(1), row(2)), **size))
    run.record(StageReport(Part("prune"), 60, 91, history=pruned, mask_changes=((0, 9, 2),)))
    file = {**size, "bytes": 300_000}
    details: dict[str, Any] = {"verification": {"layers": layers}}
    run.record(StageReport(Part("convert"), 59.5, 90, **file, details=details))
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write([make_run(tmp_path_factory.mktemp("hostile") / "run", HOSTILE)])


def test_every_section_is_there_with_the_figures_of_the_run(hostile: Path) -> None:
    parsed = Page(hostile)
    assert parsed.sections == SECTIONS
    assert [own[:3] for own in parsed.rows if own[0] == "train"] == [["train", "61.25", "92.00"]]
    text = " ".join(parsed.texts)
    for figure in ("59.50 %", "300 kB", "3.0 × smaller", "0.500 ms"):
        assert figure in text
    assert "python -m mobilenet.trainer --seed 'a b'" in text
    assert ["model.width_multiplier", "0.25", "1.0"] in parsed.rows
    scored = stage_data.load_scored(hostile.parent, "convert")
    assert scored is not None
    for number, name in enumerate(HOSTILE):
        own, taken = scored.labels == number, scored.predictions == number
        precision, recall = (100 * (own & taken).sum() / part.sum() for part in (taken, own))
        cells = next(cells for cells in parsed.rows if cells[0] == name)
        assert cells[1:4] == ["10", f"{precision:.1f}", f"{recall:.1f}"]
    names = {path.stem for path in (hostile.parent / "plots").iterdir()}
    assert {"loss", "top1", "learning_rate", "sparsity", "confusion_matrix"} < names
    assert {"channels", "sparsity_by_layer", "prune_mask_changes", "weights_00"} < names


def test_names_stay_text_and_nothing_is_loaded_or_run(hostile: Path) -> None:
    parsed = Page(hostile)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "svg"}
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    pictures = parsed.all("img", "src")
    assert len(pictures) > 80
    assert all(source.startswith("data:image/") for source in pictures)
    links = [link for tag in ("a", "link") for link in parsed.all(tag, "href")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    style = hostile.read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    for source in (source for source in pictures if "svg" in source):
        root = ET.fromstring(base64.b64decode(source.partition(",")[2]))
        inside = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not inside & {"script", "foreignObject", "a"}
        references = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(reference.startswith(("#", "data:")) for reference in references)


def test_images_are_those_that_were_scored(hostile: Path) -> None:
    """Also after the contact sheet; the worst, the least certain, then training images."""
    sources = [source for source in Page(hostile).all("img", "src") if PNG.match(source)]
    assert len(sources) == 48 + 24
    titles = Page(hostile).all("span", "title")
    for path in (f"{HOSTILE[0]}/0.png", f"{HOSTILE[0]}/39.png"):
        assert path in titles
    assert titles.count(f"{HOSTILE[0]}/20.png") == 2  # a worst one that is also uncertain
    for number in (0, 9, 24, 47):
        content = base64.b64decode(sources[number].partition(",")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), PIXELS[number])


def test_a_run_without_a_finished_stage_has_what_there_is(tmp_path: Path) -> None:
    config = recipes.get("mobilenet_v2", "digits")
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert Page(page.write([tmp_path])).sections == ["config", "commands", "environment"]
    state = tmp_path / "checkpoints/train/state-00002-0000000078"
    state.mkdir(parents=True)
    rows = [row(1), row(2, val_loss=float("1e400"))]
    text = json.dumps({"step": 78, "rows": rows, "seconds": 0.0}).replace("Infinity", "1e9")
    (state / "position.json").write_text(text)
    parsed = Page(page.write([tmp_path]))
    assert parsed.sections == ["curves", "config", "commands", "environment"]
    assert any("Not finished: train." in text for text in parsed.texts)


def test_damaged_records_are_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", ("a", "b"))
    (run / "report_data/convert/scored_images.npz").write_bytes(b"PK\3\4 damaged")
    with caplog.at_level(logging.WARNING, "mobilenet"):
        parsed = Page(page.write([run]))
    assert parsed.sections == [s for s in SECTIONS if s not in ("classes", "mistakes")]
    assert len(caplog.messages) == 2
    assert "scored test images" in caplog.messages[0]


def test_a_thousand_classes_make_a_page_that_can_be_read(tmp_path: Path) -> None:
    labels = tuple(f"class {number} & its rather long name" for number in range(1000))
    path = page.write([make_run(tmp_path / "run", labels, images=5000)])
    assert path.stat().st_size < 3_000_000
    parsed = Page(path)
    assert sum(cells[0].startswith("class ") for cells in parsed.rows) > 1000
    svg = (tmp_path / "run/plots/confusion_matrix.svg").read_text()
    assert "The 40 classes with most errors of 1,000" in svg
    assert svg.count("class ") >= 80


def test_several_labels_an_image_have_figures_of_each_label(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ("sky", "sea"))
    rng = np.random.default_rng(5)
    flags, likely = rng.integers(0, 2, (40, 2), np.uint8), rng.random((40, 2), np.float32)
    before = stage_data.load_scored(run, "convert")
    assert before is not None
    fields = {"labels": flags, "predictions": likely > 0.5, "probabilities": likely}
    stage_data.save_scored(run, "convert", dataclasses.replace(before, **fields))
    parsed = Page(page.write([run]))
    assert parsed.sections == SECTIONS
    assert not (run / "plots/confusion_matrix.svg").exists()
    for name, flag, decided in zip(("sky", "sea"), flags.T == 1, likely.T > 0.5, strict=True):
        share = [100 * (flag & decided).sum() / part.sum() for part in (decided, flag)]
        cells = next(cells for cells in parsed.rows if cells[0] == name)
        assert cells[1:4] == [f"{flag.sum()}", f"{share[0]:.1f}", f"{share[1]:.1f}"]
    assert "sky, sea" in parsed.texts and "none" in parsed.texts


def test_several_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / name, ("a", "b"), width=w) for name, w in (("x", 0.5), ("y", 0.25))]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text((runs[0] / "config.json").read_text())
    parsed = Page(page.write([*runs, tmp_path / "empty", runs[0]]))
    assert parsed.sections == ["runs", "curves", "cost", "config"]
    assert [cells[:3] for cells in parsed.rows[1:4]] == [
        *(["x", "convert", "59.50"], ["y", "convert", "59.50"], ["empty", "none finished", "–"]),
    ]
    assert ["model.width_multiplier", "0.5", "0.25", "0.5"] in parsed.rows
    assert (tmp_path / "comparison/plots/top1.svg").is_file()


def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([str(tmp_path)], [str(tmp_path / "missing")], []):
        with pytest.raises(UsageError, match="runs: got .*, expected .*folder"):
            report.run(arguments)
    make_run(tmp_path / "run", ("a", "b"))
    report.run([str(tmp_path / "run"), f"--output={tmp_path / 'out'}"])
    assert capsys.readouterr().out == f"{tmp_path / 'out/report.html'}\n"
    assert not (tmp_path / "run/report.html").exists()


def test_a_page_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no fonts\nat all")

    config = recipes.get("mobilenet_v1", "digits")
    run = TrainingRun(tmp_path, config, RunReport(()))
    monkeypatch.setattr(page, "_write", fail)
    monkeypatch.setattr(page.recorded_run, "read", lambda *args: None)
    with caplog.at_level(logging.WARNING, "mobilenet"):
        assert page.write_after_run(run) is None
    assert caplog.messages == ["the page is left out of the report: no fonts at all"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields.update(worst=fields["worst"] + 100),
        lambda fields: fields.update(labels=fields["labels"][:-1]),
        lambda fields: fields.update(sheet=np.array([48, 20, 20])),
        lambda fields: fields.update(losses=np.full(40, np.nan, np.float32)),
        lambda fields: fields.pop("margins"),
        lambda fields: fields.update(names=fields["names"][1:]),
    ],
)
def test_records_that_do_not_fit_are_refused(
    damage: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", ("a", "b"))
    path = run / "report_data/convert/scored_images.npz"
    with np.load(path) as opened:
        fields = dict(opened)
    damage(fields)
    np.savez(path, **fields)
    with pytest.raises(UsageError, match="scored test images"):
        stage_data.load_scored(run, "convert")
