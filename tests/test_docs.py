"""README and docs are right: Python blocks run, commands are parsed, links lead to files."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_runs
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)
NEEDS_RUN, NEEDS_THIN, NEEDS_DATA = "a run", "a thin model", "real checkpoints"
NEEDS_TIMM = "files of timm"
NEEDS = {  # what a block with this text needs
    "runs/mobilenet_v1_digits": NEEDS_RUN,
    '"runs/photos/': NEEDS_RUN,
    '"runs/thin/': NEEDS_THIN,
    '"checkpoints/': NEEDS_DATA,
    '"timm/': NEEDS_TIMM,
}
ONE_SCRIPT = "own_models.md"  # its blocks build on each other
TWO_PROGRAMS = "keras3.md"  # Keras takes its backend once in a process


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", text)
        for page in PAGES
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text()))
        if language == kind
    ]


def need_of(text: str) -> str | None:
    return next((need for mark, need in NEEDS.items() if mark in text), None)


def python_blocks(needs: str | None = None) -> list[object]:
    """Blocks that need a run or real checkpoints, or neither."""
    params: list[object] = []
    for name, text in blocks("python"):
        need = need_of(text)
        if need == needs and not name.startswith((ONE_SCRIPT, TWO_PROGRAMS)):
            params.append(pytest.param(text, id=name))
    return params


@pytest.mark.parametrize("text", python_blocks())
def test_python_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "block", "exec"), {})  # noqa: S102


def test_the_page_on_own_models_runs_as_one_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for _, text in (block for block in blocks("python") if block[0].startswith(ONE_SCRIPT)):
        exec(compile(text, "block", "exec"), names)  # noqa: S102
    assert names["verification"].agreement > 0.95
    assert names["evaluated"].top1 > 80


# What the model computes in JAX, in float32 and on pixels that the second program also has.
OUTPUTS = """
import numpy as np
keras.config.set_dtype_policy("float32")
exact = mobilenet.build(config, (SIDE, SIDE, 3), keras=keras)
exact.set_weights(model.get_weights())
pixels = np.random.default_rng(0).uniform(-1, 1, (8, SIDE, SIDE, 3)).astype(np.float32)
np.savez("outputs.npz", pixels=pixels, outputs=exact.predict(pixels, verbose=0))
"""


@pytest.mark.slow
def test_a_model_trained_with_jax_goes_on_in_tf_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jax")
    training, rest = (text for name, text in blocks("python") if name.startswith(TWO_PROGRAMS))
    changes = {
        "64, 30": "64, 1",
        'info.sizes["train"] // BATCH': "2",
        '"mixed_bfloat16"': '"float32"',
    }
    for text, replacement in changes.items():
        assert text in training
        training = training.replace(text, replacement)
    monkeypatch.chdir(tmp_path)
    program = [sys.executable, "-c", training + OUTPUTS]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: dict[str, Any] = {}
    exec(compile(rest, "block", "exec"), names)  # noqa: S102
    expected = np.load("outputs.npz")
    outputs = names["model"](expected["pixels"], training=False).numpy()
    assert np.ptp(outputs) > 0.01
    np.testing.assert_allclose(outputs, expected["outputs"], atol=1e-5)


@pytest.mark.parametrize("text", python_blocks(NEEDS_RUN))
def test_python_runs_on_a_finished_run(
    text: str,
    finished_run: command_runs.FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name in ("mobilenet_v1_digits", "photos"):
        Path("runs", name).symlink_to(finished_run[0])
    Path("photo.jpg").symlink_to(finished_run[0] / "example.png")
    exec(compile(text, "block", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("text", python_blocks(NEEDS_DATA))
def test_python_runs_on_real_checkpoints(
    text: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with `checkpoints/` and `photos/labels.csv`, as the pages assume."""
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


@pytest.mark.parametrize("text", python_blocks(NEEDS_TIMM))
def test_python_runs_on_files_of_timm(
    text: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timm").symlink_to(shared_data / "timm_golden")
    exec(compile(text, "block", "exec"), {})  # noqa: S102


def test_the_steps_to_a_thin_model_run_in_order(
    small_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page's order, on an untrained model instead of the trained one."""
    from mobilenet.configs import recipes
    from mobilenet.configs.card import Card
    from mobilenet.models import builder, saving
    from mobilenet.training import resolve_config

    monkeypatch.chdir(tmp_path)
    model = small_model("mobilenet_v1")
    config = builder.config_of(model)
    card = Card(input_shape=(32, 32, 3), architecture=config.to_json())
    saving.save(model, "runs/thin/train", card)
    steps = [text for _, text in blocks("python") if need_of(text) == NEEDS_THIN]
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


def test_every_page_starts_with_its_purpose_and_a_command() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert re.match(r"# .+\n\n([^#`\n|].*\n)+\n```bash\n", page.read_text()), page.name


def test_links_lead_to_files() -> None:
    for page in [*PAGES, *ROOT.glob("[A-Z]*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands() -> list[object]:
    lines = []
    for name, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.split("   #")[0].strip()
            if line.startswith("python -m mobilenet."):
                lines.append(pytest.param(line, id=f"{name}: {line[:40]}"))
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_accept_their_flags(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, module, *argv = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    module += ".__main__" * bool(spec.submodule_search_locations)
    parsed = importlib.import_module(module).COMMAND.parse(argv)
    assert parsed.typed or parsed.arguments


def string_constants() -> str:
    """All texts in the sources, one a line, their formatted values left out."""
    lines = []
    for package in ("mobilenet", "configs", "tf1_loader"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", "") for part in node.values]
                    lines.append("".join(p if isinstance(p, str) else "\0" for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(re.sub(r"%[\d.]*[a-z]", "\0", node.value).replace("%%", "%"))
    return "\n".join(lines)


def test_messages_of_the_troubleshooting_page_are_printed_by_the_code() -> None:
    """Each part of a message between what differs; flags are parameters in backquotes there."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^( *)```text\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    sources = re.sub("`|--", "", string_constants())
    joined = [block.replace(f"\n{indent}    ", " ") for indent, block in messages]
    lines = [line.strip() for block in joined for line in block.splitlines()]
    assert len(lines) > 25
    for line in lines:
        rule = re.sub(r"^\S+ ?\S*: (got '?[^']*'?, )?expected ", "", line).replace("--", "")
        parts = re.split(r"\.\.\.|top-1|[;()] ?|, or ", rule)  # `top-1` is a value
        parts = [part.strip(" ',:%") for part in parts]
        absent = [part for part in parts if len(part) > 5 and part not in sources]
        assert not absent, f"{line}: {absent}"


def test_scripts_named_in_pages_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"scripts/\w+\.sh", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"


def cluster_blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "distributed.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def check_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def described(script: str, **environment: str) -> dict[str, Any]:
    """The `TF_CONFIG` with which a script starts the trainer."""
    script = script.replace("exec python -m mobilenet.trainer", 'printf "%s" "$TF_CONFIG"; :')
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return dict(json.loads(done.stdout))


def test_the_kubernetes_manifest_names_all_workers() -> None:
    yaml = pytest.importorskip("yaml")
    (text,) = cluster_blocks("yaml")
    service, job = yaml.safe_load_all(text)
    name = job["metadata"]["name"]
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    assert service["spec"] == {"clusterIP": "None", "selector": {"job-name": name}}
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    count = int(container["env"][0]["value"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == count
    assert container["command"][:2] == ["bash", "-c"]
    check_shell(container["command"][2])
    config = described(container["command"][2], WORKERS="2", JOB_COMPLETION_INDEX="1")
    hosts = ["mobilenet-0.mobilenet:2222", "mobilenet-1.mobilenet:2222"]
    assert config == {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": 1}}


def test_the_slurm_script_names_all_workers(tmp_path: Path) -> None:
    (script,) = cluster_blocks("slurm")
    check_shell(script)
    for name, text in {
        "scontrol": "printf 'a\\nb\\n'",
        "srun": 'shift; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    config = described(script, PATH=path, SLURM_JOB_NODELIST="[a-b]", SLURM_PROCID="1")
    assert config["cluster"] == {"worker": ["a:2222", "b:2222"]}
    assert config["task"] == {"type": "worker", "index": 1}
