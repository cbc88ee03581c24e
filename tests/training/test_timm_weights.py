"""Training, evaluation and files start from timm's weights, with their preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from timm_files import v1_state, write

import mobilenet
from mobilenet.configs import archs, recipes
from mobilenet.configs.dataset import ANTIALIASED_BICUBIC, PREPROCESSING, Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.training import resolve_config
from mobilenet.training.resolve_config import Explicit

WIDTH = {"width_multiplier": 0.25}
IMAGENET = {
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV1 0.25 of timm with ten classes, and a config that has ImageNet's scaling."""
    folder = tmp_path_factory.mktemp("timm")
    config = {"architecture": "mobilenetv1_100", "pretrained_cfg": {"tag": "mine", **IMAGENET}}
    (folder / "config.json").write_text(json.dumps(config))
    return write(folder / "model.safetensors", v1_state(classes=10))


def test_a_model_is_built_from_them_in_both_kerases(weights: Path) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    images = np.random.default_rng(0).uniform(-2, 2, (2, 32, 32, 3)).astype(np.float32)
    loaded = mobilenet.load_model(weights)
    assert loaded.card.input_shape == (224, 224, 3) and loaded.card.outputs == "logits"
    fields = {"num_classes": 10, "classifier_activation": None, **WIDTH}
    ours, theirs = (
        mobilenet.build("mobilenet_v1", 32, weights=weights, keras=package, **fields)
        for package in (None, keras)
    )
    expected = mobilenet.weights.timm.load(weights, input_shape=32).model(images).numpy()
    np.testing.assert_allclose(ours(images).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(theirs(images)), expected, atol=1e-4)
    for model in (ours, theirs):
        assert model.mobilenet_preprocessing == loaded.card.preprocessing
        assert model.mobilenet_preprocessing.interpolation == ANTIALIASED_BICUBIC
    other = mobilenet.build("mobilenet_v1", 32, weights=weights, num_classes=4, **WIDTH)
    assert other.output_shape == (None, 4)  # with a new head


@pytest.mark.parametrize(
    ("name", "fields", "remedy"),
    [
        ("mobilenet_v1", {}, "width_multiplier=0.25"),
        ("mobilenet_v2", WIDTH, "mobilenet_v1"),
        ("mobilenet_v1", {"channels": {"Conv2d_0": 7}, **WIDTH}, "1 thinned layers"),
    ],
)
def test_weights_of_another_model_are_refused(
    name: str, fields: dict[str, object], remedy: str, weights: Path
) -> None:
    with pytest.raises(UsageError, match=remedy):
        mobilenet.build(name, 32, weights=weights, num_classes=10, **fields)


def test_pickles_are_refused_wherever_models_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x04\x95cos\nsystem\n")
    with pytest.raises(UsageError, match="is a pickle"):
        mobilenet.load_model(path)
    with pytest.raises(UsageError, match="is a pickle"):
        mobilenet.build("mobilenet_v1", 32, weights=path)


def test_a_run_takes_structure_and_preprocessing_of_its_weights(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mobilenetv1_100.safetensors"
    path.write_bytes(weights.read_bytes())
    (tmp_path / "config.json").write_bytes((weights.parent / "config.json").read_bytes())
    recipe = recipes.get("mobilenet_v1", "digits")
    config = recipe.replace(
        init_checkpoint=str(path), model=recipe.model.replace(width_multiplier=0.25)
    )
    resolved, _ = resolve_config.resolve(config)
    assert isinstance(resolved.model, archs.MobileNetV1Config)
    assert (resolved.model.batch_norm_epsilon, resolved.model.divisor) == (1e-5, 8)
    assert resolved.model.use_explicit_padding
    how = resolved.preprocessing
    assert how.mean == PREPROCESSING["imagenet"].mean
    assert (how.crop, how.interpolation) == ("none", ANTIALIASED_BICUBIC)  # digits are whole
    photos = config.replace(dataset=config.dataset.replace(preprocessing="inception"))
    assert resolve_config.resolve(photos)[0].preprocessing.crop == "center"
    explicit = resolve_config.resolve(config, Explicit(preprocessing=True))[0]
    assert explicit.preprocessing == Preprocessing("inception_whole", crop="none")
    assert resolve_config.resolve_as(config, resolved, Explicit()) == resolved
    path.unlink()  # a run that is continued does not need it
    assert resolve_config.resolve_as(config, resolved, Explicit()) == resolved
    assert resolve_config.resolve(config, stored=resolved)[0] == resolved


@pytest.mark.slow
def test_from_a_file_of_timm_to_a_verified_int8_file(shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "timm_golden/mobilenetv3_small_050.safetensors"
    run = mobilenet.train(
        shared_data / "photos10",
        model="mobilenet_v3_small",
        weights=weights,
        width_multiplier=0.5,
        image_size=64,
        stages=("prune", "quantize", "convert"),
        batch_size=128,
        prune_epochs=1,
        quantization=PostTraining(steps=("equalize", "maximum", "bias")),
        model_dir=tmp_path / "run",
    )
    assert run.file is not None
    for folder in ("prune", "quantize", "export"):
        card = json.loads((tmp_path / "run" / folder / "card.json").read_text())
        how = Preprocessing.from_json(card["preprocessing"])
        assert (how.crop, how.crop_fraction) == ("center", 0.875)
        assert how.interpolation == ANTIALIASED_BICUBIC
        assert how.mean == PREPROCESSING["imagenet"].mean  # of the int8 file too
    classifier = mobilenet.runtime.Classifier(run.file.parent)
    photo = next((shared_data / "photos10/val").rglob("*.jpg"))
    pixels = classifier.pixels(photo)
    model = mobilenet.load_model(tmp_path / "run/prune").model
    inputs = (pixels - np.float32(how.mean)) / np.float32(how.std)
    logits, own = model(inputs[None]).numpy()[0], classifier.run(pixels)
    assert np.corrcoef(logits, own)[0, 1] > 0.95
    text = (run.file.parent / "README.md").read_text()
    assert "Resize its shorter side to 73 pixels" in text and "Resampling.BICUBIC" in text
