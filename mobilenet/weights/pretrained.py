"""Weights by name: fetched into the cache, verified, and loaded as the model that they are of.

Addresses and checksums of keras.applications' files are those of the installed tf_keras.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet.configs import archs, released_weights
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.released_weights import IMAGENET, KERAS, TIMM, ReleasedWeights
from mobilenet.downloads import Cache, RemoteFile
from mobilenet.tf1_loader import locate

if TYPE_CHECKING:
    from mobilenet.models.saving import LoadedModel

log = logging.getLogger("mobilenet")
_BUCKETS = "https://storage.googleapis.com"
_HUB, _HUB_MIRROR = "https://huggingface.co", "HF_ENDPOINT"


def find(text: str | os.PathLike[str]) -> ReleasedWeights | None:
    """The weights that a text names; `None` of a path, also of one that has such a name."""
    weights = released_weights.find(os.fspath(text))
    is_path = weights is not None and (Path(text).exists() or locate.is_checkpoint(text))
    return None if is_path else weights


def nearest_name(text: str | os.PathLike[str]) -> str:
    """What to do about a path where nothing is: the name of weights that it resembles, or empty."""
    known = [IMAGENET, *released_weights.names()]
    near = difflib.get_close_matches(os.fspath(text), known, 1, 0.8)
    return f"did you mean the released weights {near[0]}?" if near else ""


def resolve(text: str, config: MobileNetConfig, longer_side: int | None) -> str:
    """The name of the best weights of a model for `imagenet`; another text as it is.

    Args:
        text: a path, the name of weights, or `imagenet`.
        config: of the model.
        longer_side: of its images in pixels; `None` where it is open.

    Raises:
        UsageError: none were released for the model.
    """
    if text != IMAGENET:
        return text
    model_name = next((n for n, kind in archs.ALL.items() if type(config) is kind), config.name)
    width, classes = config.width_multiplier, config.num_classes or 0
    return released_weights.best(model_name, width, longer_side or 224, classes).name


def fetch(name: str, offline: bool = False) -> Path:
    """The file of weights, which is fetched unless the cache has it, and verified.

    Args:
        name: of released weights.
        offline: use no network.

    Raises:
        UsageError: there are no such weights; or see `Cache.fetch`.
    """
    cache = Cache.of_environment(offline)
    weights = released_weights.get(name)
    if not (cache.folder / weights.file).is_file():
        log.info("weights are kept in %s", cache.folder)
    return cache.fetch(remote_file(weights))


def local_path(text: str, offline: bool = False) -> str:
    """The path of the file of weights that are named, see `fetch`; another text as it is."""
    weights = find(text)
    return text if weights is None else str(fetch(weights.name, offline))


def load(name: str, offline: bool = False) -> LoadedModel:
    """The model whose weights have a name, with them.

    Args:
        name, offline: see `fetch`.

    Returns:
        The model, of the size and classes that it was released with, and its card.

    Raises:
        UsageError: see `fetch`; or the file is damaged.
    """
    return load_file(released_weights.get(name), fetch(name, offline))


def load_file(weights: ReleasedWeights, path: Path) -> LoadedModel:
    """The model of a file of released weights.

    Args:
        weights: what the file has.
        path: of the file; of Google's weights of any form of checkpoint.

    Raises:
        UsageError: there is no such file, or it is damaged or of another model.
    """
    from mobilenet.models.saving import LoadedModel
    from mobilenet.tf1_loader import loading as tf1_loading

    if weights.source == KERAS:
        return _load_keras(weights, path)
    if weights.source == TIMM:
        return _load_timm(weights, path)
    loaded = tf1_loading.load_tf1_checkpoint(path)
    return LoadedModel(loaded.model, loaded.card)


def _load_keras(weights: ReleasedWeights, path: Path) -> LoadedModel:
    from mobilenet.configs.card import Card
    from mobilenet.models import builder
    from mobilenet.models.saving import LoadedModel
    from mobilenet.weights import keras_applications

    config = archs.get(
        weights.model_name, width_multiplier=weights.width, num_classes=weights.num_classes
    ).for_loaded_weights()
    shape = (weights.image_size, weights.image_size, 3)
    model = builder.build(config, shape)
    keras_applications.load_weights(model, path, config)
    card = Card(
        architecture=config.to_json(),
        input_shape=shape,
        outputs="probabilities",
        stage="keras.applications",
        initial_weights=weights.name,
        published=str(weights),
    )
    return LoadedModel(model, card)


def _load_timm(weights: ReleasedWeights, path: Path) -> LoadedModel:
    from mobilenet.models.saving import LoadedModel
    from mobilenet.weights import timm

    loaded = timm.load(path, weights.name)
    return LoadedModel(loaded.model, loaded.card)


def remote_file(weights: ReleasedWeights) -> RemoteFile:
    """Where weights can be fetched, and their checksum, if one was published."""
    if weights.source == KERAS:
        address, checksum = _keras_source(weights)
        addresses: tuple[str, ...] = (address,)
    else:
        addresses, checksum = _addresses(weights.address), ""
    return RemoteFile(weights.name, weights.file, addresses, weights.megabytes, checksum)


def _addresses(address: str) -> tuple[str, ...]:
    """Where a file can be fetched, https first.

    Google's buckets can be read at storage.googleapis.com without an account, which
    storage.cloud.google.com asks for. `HF_ENDPOINT` is a mirror of the Hugging Face Hub.
    """
    endpoint = os.environ.get(_HUB_MIRROR, "").rstrip("/")
    if endpoint and address.startswith(f"{_HUB}/"):
        return (f"{endpoint}{address.removeprefix(_HUB)}",)
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    if host == "storage.cloud.google.com":
        return (f"{_BUCKETS}/{path}", address)
    if scheme == "http":
        return (f"{_BUCKETS}/{rest}", f"https://{rest}", address)
    return (address,)


def _keras_source(weights: ReleasedWeights) -> tuple[str, str]:
    """Address and checksum of a file of keras.applications, from tf_keras."""
    import importlib

    family = weights.model_name[: len("mobilenet_v1")]
    module = "mobilenet" if family == "mobilenet_v1" else family
    source = importlib.import_module(f"tf_keras.src.applications.{module}")
    file = weights.file.rpartition("/")[2]
    key = file.removeprefix("weights_mobilenet_v3_").removesuffix(".h5")
    md5 = getattr(source, "WEIGHTS_HASHES", {}).get(key, ("",))[0]
    return f"{source.BASE_WEIGHT_PATH}{file}", f"md5:{md5}" if md5 else ""
