"""What README and docs show, runs: Python blocks are executed, commands are parsed."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)
NEEDS_RUN = "runs/mobilenet_v1_digits"
NEEDS_THIN = '"runs/thin/'
NEEDS_DATA = '"checkpoints/'


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", text)
        for page in PAGES
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text()))
        if found == kind
    ]


def python_blocks(needs: str | None = None) -> list[object]:
    """Blocks that need a run or real checkpoints, or neither."""
    found = []
    for name, text in blocks("python"):
        need = next((mark for mark in (NEEDS_RUN, NEEDS_THIN, NEEDS_DATA) if mark in text), None)
        if need == needs:
            found.append(pytest.param(text, id=name))
    return found


@pytest.mark.parametrize("text", python_blocks())
def test_python_runs(text: str) -> None:
    exec(compile(text, "block", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("text", python_blocks(NEEDS_DATA))
def test_python_runs_on_real_checkpoints(
    text: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with `checkpoints/` and `photos/labels.csv`, as the pages suppose."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").symlink_to(shared_data / "checkpoints")
    Path("photos").mkdir()
    with (shared_data / "photos/labels.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))[:64]
    with Path("photos/labels.csv").open("w", newline="") as target:
        written = csv.writer(target)
        written.writerow(["file", "label"])
        for row in rows:
            path = shared_data / "photos/imagenet_samples" / row["file"]
            written.writerow([path, row["class_index_0_999"]])
    exec(compile(text, "block", "exec"), {})  # noqa: S102


def test_the_steps_of_a_thin_net_follow_each_other(
    small_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page's order, on a model that stands for the trained one."""
    from mobilenet.configs import recipes
    from mobilenet.configs.card import Card
    from mobilenet.models import builder, saving
    from mobilenet.training import resolve_config

    monkeypatch.chdir(tmp_path)
    model = small_model("mobilenet_v1")
    config = builder.config_of(model)
    card = Card(input_shape=(32, 32, 3), architecture=config.to_json())
    saving.save(model, "runs/thin/train", card)
    steps = [text for _, text in blocks("python") if NEEDS_THIN in text]
    assert len(steps) == 2
    for text in steps:
        exec(compile(text, "block", "exec"), {})  # noqa: S102
    thin = saving.load("runs/thin/cut").model
    run = recipes.get("mobilenet_v1", "digits").replace(init_checkpoint="runs/thin/cut")
    run, _ = resolve_config.resolve(
        run.replace(model=config),
        resolve_config.Explicit(num_classes=True, batch_norm_decay=True),
    )
    assert run.model.channels["Conv2d_3_pointwise"] == 19  # 0.58 of 32
    assert builder.build(run.model, (32, 32, 3)).count_params() == thin.count_params()
    assert thin.count_params() < 0.4 * saving.load("runs/thin/masked").model.count_params()


def test_every_page_starts_with_its_command() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert re.match(r"# .+\n\n```bash\n", page.read_text()), page.name


def commands() -> list[object]:
    lines = []
    for name, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.split("   #")[0].strip()
            if line.startswith("python -m mobilenet."):
                lines.append(pytest.param(line, id=f"{name}: {line[:40]}"))
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_take_their_flags(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, module, *argv = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    module += ".__main__" * bool(spec.submodule_search_locations)
    parsed = importlib.import_module(module).COMMAND.parse(argv)
    assert parsed.given or parsed.arguments


def test_scripts_that_pages_name_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"scripts/\w+\.sh", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
