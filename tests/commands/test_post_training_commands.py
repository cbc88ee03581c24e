"""Post-training int8 from the command line: converter, trainer, evaluator and profiler."""

from __future__ import annotations

import json
from pathlib import Path

import command_runs
import pytest
from command_runs import FinishedRun, report, run_command, start_command

from mobilenet.runtime import micro
from mobilenet.tflite import model as tflite_model

pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def trained(finished_run: FinishedRun) -> Path:
    """A float model of the digits, V1 at a quarter of its width, 32 px."""
    return finished_run[0] / "train"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `converter --quantization ptq` wrote, and what it printed; next to it
    `fitted`, the model that it ended with."""
    target = tmp_path_factory.mktemp("ptq") / "export"
    args = ("--quantization=ptq", "--calibration_images=64", f"--output={target}")
    args = (*args, f"--fitted={target.parent / 'fitted'}")
    done = start_command("converter", f"--model={trained}", *args)
    assert done.returncode == 0, done.stderr
    return target, done.stdout


def test_a_float_model_becomes_an_int8_file(exported: tuple[Path, str], trained: Path) -> None:
    folder, printed = exported
    content = tflite_model.read(folder / "model.tflite")
    assert not content.float_tensors()
    kernels = [content.tensors[op.inputs[1]] for op in content.operators if "CONV_2D" in op.name]
    assert kernels and all(len(k.scales) == k.shape[k.quantized_dimension] for k in kernels)
    assert "operators verified" in printed and "1 steps apart at most" in printed
    assert "ptq bias: offsets of" in printed
    card = json.loads((folder / "card.json").read_text())
    assert any("fitted on 32 images, accepted on 32 others" in note for note in card["notes"])
    assert any(note.startswith("calibrated on 64 images of digits") for note in card["notes"])
    assert (card["calibration"]["images"], card["calibration"]["source"]) == (64, "digits")
    steps = card["quantization_steps"]
    assert [step["name"] for step in steps] == ["maximum", "bias"]
    assert all(0 <= step["agreement"] <= 1 and step["seconds"] >= 0 for step in steps)
    fitted = json.loads((folder.parent / "fitted" / "card.json").read_text())
    assert fitted["quantization_steps"] == steps
    assert not (trained / "ranges.npz").exists()


def test_the_file_is_about_as_accurate_as_the_model(
    exported: tuple[Path, str], trained: Path
) -> None:
    assert top1(exported[0]) >= top1(trained) - 2.0


def top1(model: Path, *args: str) -> float:
    done = run_command("evaluator", f"--model={model}", "--dataset_name=digits", *args)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1].split()[0])


def test_a_micro_controller_scores_the_same_and_its_needs_are_reported(
    exported: tuple[Path, str],
) -> None:
    pytest.importorskip(micro.MODULE)
    here, there = top1(exported[0]), top1(exported[0], "--runtime=micro")
    assert there == pytest.approx(here, abs=1.0)
    done = run_command("profiler", exported[0], "--micro", "--nolatency")
    assert done.returncode == 0, done.stderr
    assert "bytes of arena" in done.stdout
    assert "AddConv2D, AddDepthwiseConv2D" in done.stdout


def test_the_profiler_shows_every_quantized_tensor(
    exported: tuple[Path, str], trained: Path, tmp_path: Path
) -> None:
    """An overlay for Model Explorer has the same figures by the names of tensors."""
    fitted, flags = exported[0].parent / "fitted", ("--images=8", f"--overlay={tmp_path}")
    done = start_command("profiler", exported[0], f"--against={fitted}", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if "CONV_2D" in line]
    assert len(lines) == 28  # 27 convolutions and the classifier
    assert {"Conv2d_0_relu6", "Conv2d_13_pointwise_relu6", "Logits"} <= {
        x.split()[0] for x in lines
    }
    assert "dB alone" in done.stdout
    overlay = json.loads((tmp_path / "quantization_noise.json").read_text())["results"]
    (stem,) = (node["value"] for name, node in overlay.items() if name.startswith("Conv2d_0_relu6"))
    (line,) = (line for line in lines if line.startswith("Conv2d_0_relu6 "))
    assert f"{stem:.1f}" in line.split()
    content = tflite_model.read(exported[0] / "model.tflite")
    outputs = {content.tensors[op.outputs[0]].name for op in content.operators}
    assert set(overlay) <= outputs and len(overlay) >= 28
    assert set(json.loads((tmp_path / "sparsity.json").read_text())["results"]) <= outputs
    few = run_command("profiler", exported[0], f"--against={trained}", "--images=8", "--worst=3")
    assert len(few.stdout.splitlines()) == 5


FLOAT_LAYERS = ("Conv2d_0", "Conv2d_1_depthwise", "Conv2d_3_pointwise")


def float_kernels(file: Path) -> set[str]:
    """Layers whose kernel is float in a file."""
    content = tflite_model.read(file)
    return {
        name
        for op in content.operators
        if "CONV_2D" in op.name and content.tensors[op.inputs[1]].dtype == "float32"
        for name in FLOAT_LAYERS
        if name in content.tensors[op.outputs[0]].name.split(";")
    }


def test_the_quantize_stage_needs_no_training(trained: Path, tmp_path: Path) -> None:
    args = (
        *(*command_runs.TINY, f"--init_checkpoint={trained}", "--stages=quantize,convert"),
        *("--quantization=ptq", "--calibration_images=40", "--ptq_steps=maximum,bias,repair"),
        "--keep_float=Conv2d_[01](_depthwise)?,Conv2d_3_pointwise",
    )
    done = run_command("trainer", *args, "--model_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stages = report(tmp_path / "run")
    assert stages["quantize"]["history"] == []
    assert stages["convert"]["top1"] >= stages["quantize"]["top1"] - 1.0
    assert float_kernels(tmp_path / "run/export/model.tflite") == set(FLOAT_LAYERS)
    card = json.loads((tmp_path / "run/quantize/card.json").read_text())
    assert card["keep_float"] == [*FLOAT_LAYERS]
    assert card["calibration"]["images"] == 40
    assert [step["name"] for step in card["quantization_steps"]] == ["maximum", "bias"]
    again = run_command("trainer", *args, "--model_dir=run", cwd=tmp_path)
    assert "quantize: finished before" in again.stdout
    # A later conversion of the folder knows.
    later = run_command("converter", "--model=run/quantize", "--output=later", cwd=tmp_path)
    assert later.returncode == 0, later.stderr
    assert "int8, 3 layers in float" in later.stdout
    assert float_kernels(tmp_path / "later/model.tflite") == set(FLOAT_LAYERS)
    assert json.loads((tmp_path / "later/card.json").read_text())["keep_float"] == [*FLOAT_LAYERS]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--quantization=ptq", "--calibration_images=3"), "--calibration_images: got 3"),
        (("--quantization=ptq", "--ptq_steps=bias"), "--ptq_steps: got 'bias'"),
        (("--ptq_steps=maximum",), "--ptq_steps: expected a float model and --number_format int8"),
        (
            ("--fitted=there",),
            "--fitted: got 'there', expected a float model and --number_format int8",
        ),
        (
            ("--keep_float=Conv2d_0",),
            "--keep_float: expected a float model and --number_format int8",
        ),
        (("--quantization=ptq", "--keep_float=Conv2d_0_relu6"), "a layer with a kernel: Conv2d_0,"),
        (("--quantization=ptq", "--calibration_dir=nowhere"), "--calibration_dir: got 'nowhere'"),
    ],
)
def test_bad_arguments_cost_one_line(
    args: tuple[str, ...], message: str, trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "export"
    done = run_command("converter", f"--model={trained}", f"--output={target}", *args)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "MODEL: expected one model"),
        (("FILE", "--against=nowhere"), "nowhere: expected a model folder"),
        (("FILE", "--against=MODEL", "--images=0"), "--images: got 0"),
        (("MODEL", "--micro"), "--micro: got True, expected a flatbuffer alone"),
    ],
)
def test_bad_arguments_for_the_profiler(
    args: tuple[str, ...], message: str, exported: tuple[Path, str], trained: Path
) -> None:
    filled = [w.replace("FILE", str(exported[0])).replace("MODEL", str(trained)) for w in args]
    done = run_command("profiler", *filled)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
