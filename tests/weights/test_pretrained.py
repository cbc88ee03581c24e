"""Weights by name: fetched from a mirror on this machine, and loaded as the right model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from command_runs import run_command
from file_server import File, Server, serving

from mobilenet import api
from mobilenet.configs import recipes, released_weights
from mobilenet.errors import UsageError
from mobilenet.training import resolve_config
from mobilenet.weights import pretrained

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.loading import load_model  # noqa: E402

TF1, KERAS = "mobilenet_v1_0.25_128", "keras/mobilenet_v1_0.25_128"
V1 = {"width_multiplier": 0.25}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any, Any]]:
    """A mirror with random weights under two names, and the variables and the model of these."""
    folder = tmp_path_factory.mktemp("mirror")
    model = slim.Slim("mobilenet_v1", width=0.25, classes=1001)
    values = slim.values(model)
    source = slim.write_checkpoint(folder / "in/model.ckpt", values | slim.STEP)
    slim.write_archive(folder / "v1.tgz", slim.parts(source, "./"))
    peer = tf_keras.applications.MobileNet((128, 128, 3), alpha=0.25, weights=None)
    peer.save_weights(folder / "v1.h5")
    with serving() as server:
        server.files[f"{TF1}.tgz"] = File((folder / "v1.tgz").read_bytes())
        server.files["keras/mobilenet_2_5_128_tf.h5"] = File((folder / "v1.h5").read_bytes())
        yield server, slim.by_weight_name(model, values), peer


@pytest.fixture
def mirror(
    mirrored: tuple[Server, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Server, Any, Any]:
    """The mirror, with a cache that is empty."""
    monkeypatch.setenv("MOBILENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOBILENET_MIRROR", mirrored[0].address)
    monkeypatch.delenv("MOBILENET_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    mirrored[0].requests.clear()
    return mirrored


def test_build_takes_the_best_weights_and_says_which(
    mirror: tuple[Server, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """All layers but the head, at another size; the second time without the network."""
    server, values, _ = mirror
    with caplog.at_level(logging.INFO, "mobilenet"):
        model = api.build("mobilenet_v1", 32, weights="imagenet", num_classes=10, **V1)
    assert f"{TF1}: top-1 41.5 % (ImageNet validation" in caplog.text
    assert "trained at 128 x 128 pixels, here 32 x 32" in caplog.text
    for layer in model.layers:
        for weight in layer.weights:
            if layer.name != "Logits":
                name = f"{layer.name}/{weight.name.split('/')[-1].split(':')[0]}"
                np.testing.assert_array_equal(weight.numpy(), values[name], err_msg=name)
    again = api.build("mobilenet_v1", 32, weights=TF1, num_classes=10, offline=True, **V1)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    assert len(server.requests) == 1


def test_files_of_keras_applications_load_as_the_model_that_they_are_of(
    mirror: tuple[Server, Any, Any],
) -> None:
    loaded = load_model(KERAS)
    inputs = np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3)).astype(np.float32)
    outputs = loaded.model(inputs, training=False).numpy()
    expected = mirror[2](inputs, training=False).numpy().reshape(2, 1000)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-7)
    assert loaded.card.initial_weights == KERAS and loaded.card.outputs == "probabilities"


@pytest.mark.slow
def test_named_weights_load_under_keras_3(mirror: tuple[Server, Any, Any]) -> None:
    """A model by its name has the 1000 classes of the weights."""
    keras = pytest.importorskip("keras", minversion="3")
    model = api.build("mobilenet_v1", 128, weights=KERAS, keras=keras, **V1)
    inputs = np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3)).astype(np.float32)
    expected = mirror[2](inputs, training=False).numpy().reshape(2, 1000)
    np.testing.assert_allclose(np.asarray(model(inputs)), expected, rtol=1e-3, atol=1e-7)


def test_a_released_checkpoint_loads_by_its_name(mirror: tuple[Server, Any, Any]) -> None:
    loaded = load_model(TF1)
    assert loaded.model.input_shape == (None, 128, 128, 3)
    assert loaded.model.output_shape == (None, 1001) and "41.5 %" in loaded.card.published
    assert Path("cache/weights", f"{TF1}.tgz").is_file()


def test_a_path_of_such_a_name_is_a_path(mirror: tuple[Server, Any, Any]) -> None:
    assert pretrained.find(TF1) is not None
    Path(TF1).write_bytes(b"not a checkpoint")
    assert pretrained.find(TF1) is None
    with pytest.raises(UsageError, match=f"^{TF1}: expected a model folder"):
        load_model(TF1)
    assert not mirror[0].requests


def test_weights_that_cannot_be_fetched_cost_one_line(mirror: tuple[Server, Any, Any]) -> None:
    name = "mobilenet_v2_1.0_224"
    for weights in (name, "imagenet"):
        options = {"weights": weights, "num_classes": 1001}
        with pytest.raises(UsageError, match=f"weights: got '{name}', .*offline.*at least 14 MB"):
            api.build("mobilenet_v2", offline=True, **options)
    with pytest.raises(UsageError, match=f"weights: got '{name}', .*404 Not Found"):
        api.build("mobilenet_v2", weights=name)
    with pytest.raises(UsageError, match=f"^{name}: .*404 Not Found"):
        load_model(name)
    with pytest.raises(UsageError, match=f"did you mean the released weights {name}"):
        api.build("mobilenet_v2", 32, weights="mobilenet_v2_1.0_225", width_multiplier=0.1)
    with pytest.raises(UsageError, match=r"weights: got 'imagenet'.*width 0\.3; .* 0\.25, 0\.5"):
        api.build("mobilenet_v1", weights="imagenet", width_multiplier=0.3)
    with pytest.raises(UsageError, match="weights: got 'mobilenet_v1_0.25_128'.*MobileNetV2"):
        api.build("mobilenet_v2", 32, weights=TF1, width_multiplier=0.1)


@pytest.mark.slow
def test_the_loader_of_checkpoints_takes_a_name(mirror: tuple[Server, Any, Any]) -> None:
    written = run_command("tf1_loader", "-i", TF1, "-o", "out", "--num_classes", 1000)
    assert written.returncode == 0 and "top-1 41.5 %" in written.stdout


def test_commands_take_names_and_fetch_nothing_offline(mirror: tuple[Server, Any, Any]) -> None:
    for name, words in (
        ("tf1_loader", ("-i", "mobilenet_v2_1.0_224", "-o", "v2", "--offline")),
        ("evaluator", ("--model", "mobilenet_v2_1.0_224", "--offline")),
        ("converter", ("--model", "mobilenet_v2_1.0_224", "--offline")),
        ("trainer", ("--init_checkpoint", "imagenet", "--offline", "--image_size", 96)),
    ):
        ended = run_command(name, *words)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert "offline" in ended.stderr and f"{mirror[0].address}/" in ended.stderr
    assert not Path("runs").exists()
    refused = run_command("tf1_loader", "-i", KERAS, "-o", "out2")
    assert refused.returncode == 2 and f"load_model('{KERAS}')" in refused.stderr


@pytest.mark.slow
def test_a_run_starts_from_imagenet_and_continues_offline(
    mirror: tuple[Server, Any, Any],
) -> None:
    """Its config has the name; a finished run needs no weights."""
    options = {"weights": "imagenet", "model_dir": "run", "image_size": 32, "epochs": 1, **V1}
    run = api.train("digits", stages=("train",), **options)
    assert run.config.init_checkpoint == TF1
    assert f'"initial_weights": "{TF1}"' in Path("run/train/card.json").read_text()
    shutil.rmtree("cache")
    again = api.train("digits", stages=("train",), offline=True, **options)
    assert again.is_unchanged and len(mirror[0].requests) == 1
    later = api.train("digits", stages=("train", "convert"), offline=True, **options)
    assert later.file is not None and len(mirror[0].requests) == 1


GOLDEN = Path(__file__).parents[2] / "../shared/data/timm_golden/mobilenetv3_small_050"


@pytest.mark.skipif(not GOLDEN.with_suffix(".npz").is_file(), reason="no golden cases of timm")
def test_weights_of_timm_load_by_their_name(mirror: tuple[Server, Any, Any]) -> None:
    """The logits that PyTorch computed, of the model as `build` has it with these weights."""
    name = "timm/mobilenetv3_small_050.lamb_in1k"
    content = GOLDEN.with_suffix(".safetensors").read_bytes()
    mirror[0].files[f"{name}.safetensors"] = File(content)
    options = {"width_multiplier": 0.5, "num_classes": 10, "classifier_activation": None}
    model = api.build("mobilenet_v3_small", 64, weights=name, **options)
    with np.load(GOLDEN.with_suffix(".npz")) as golden:
        logits = model(golden["input"], training=False).numpy()
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    assert model.mobilenet_preprocessing.mean[0] == 255 * 0.485
    card = load_model(name, offline=True).card
    assert card.input_shape == (224, 224, 3) and card.preprocessing.mean[0] == 255 * 0.485


def test_a_run_has_structure_and_preprocessing_of_named_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is fetched; `imagenet` is resolved with the classes of the data."""
    monkeypatch.chdir(tmp_path)
    resolved = {}
    for name, width in (("timm/mobilenetv2_050.lamb_in1k", 0.5), ("imagenet", 0.35)):
        config = recipes.get("mobilenet_v2", "digits").replace(init_checkpoint=name)
        config = config.replace(model=config.model.replace(width_multiplier=width))
        resolved[name] = resolve_config.resolve(config)[0]
    timm = resolved["timm/mobilenetv2_050.lamb_in1k"]
    assert timm.model.batch_norm_epsilon == 1e-5 and timm.model.use_explicit_padding
    assert timm.preprocessing.mean[0] == 255 * 0.485
    usual = resolved["imagenet"]
    assert usual.init_checkpoint == "keras/mobilenet_v2_0.35_96"
    assert usual.model.batch_norm_epsilon == 1e-3 and usual.preprocessing.mean == (127.5,)


FILES = [weights for weights in released_weights.ALL if weights.source == "keras"]
QUICK = ("keras/mobilenet_v1_0.25_128", "keras/v3-small-minimalistic_224_1.0_float")


@pytest.mark.parametrize(
    "weights",
    [pytest.param(w, marks=[] if w.name in QUICK else pytest.mark.slow, id=w.name) for w in FILES],
)
def test_addresses_and_checksums_are_those_that_keras_applications_uses(
    weights: released_weights.ReleasedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def get_file(name: str, address: str, **options: Any) -> None:
        raise Asked(name, address, options.get("file_hash"))

    monkeypatch.setattr("tf_keras.src.utils.data_utils.get_file", get_file)
    base = weights.model_name.removesuffix("_minimalistic")
    kind = {
        "mobilenet_v1": "MobileNet",
        "mobilenet_v2": "MobileNetV2",
        "mobilenet_v3_small": "MobileNetV3Small",
        "mobilenet_v3_large": "MobileNetV3Large",
    }[base]
    options = {"minimalistic": base != weights.model_name} if "v3" in base else {}
    shape = (weights.image_size, weights.image_size, 3)
    with pytest.raises(Asked) as asked:
        getattr(tf_keras.applications, kind)(shape, alpha=weights.width, **options)
    name, address, md5 = asked.value.args
    file = pretrained.remote_file(weights)
    assert (file.path, file.addresses) == (f"keras/{name}", (address,))
    assert file.checksum == (f"md5:{md5}" if md5 else "")
    tf_keras.backend.clear_session()


def test_google_files_are_fetched_by_https_first() -> None:
    v1 = pretrained.remote_file(released_weights.get("mobilenet_v1_1.0_224")).addresses
    assert [address.split("//")[0] for address in v1] == ["https:", "https:", "http:"]
    folder = "download.tensorflow.org/models/mobilenet_v1_2018_08_02/mobilenet_v1_1.0_224.tgz"
    assert v1[0] == f"https://storage.googleapis.com/{folder}" and v1[2] == f"http://{folder}"
    edge = pretrained.remote_file(released_weights.get("mobilenet_edgetpu_224_1.0")).addresses
    assert edge[0].startswith("https://storage.googleapis.com/mobilenet_edgetpu/")
