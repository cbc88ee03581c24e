"""Thin models: channels are cut out of every weight of their group, and the model is built anew.

The result is a config (`channels` by layer) with weights for a model of ours, a rebuilt functional
model for any other. The verification of a surgery is the model whose channels are silenced in
place: it answers as the thin one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from mobilenet.compression.method import check_plain
from mobilenet.compression.pruning.channel import importance as importances
from mobilenet.compression.pruning.channel import reconstruction, selection
from mobilenet.compression.pruning.channel.constant_channels import Leftover, constant_channels
from mobilenet.compression.pruning.channel.dependency_groups import Group, by_layer, find
from mobilenet.compression.pruning.channel.slicing import axes, positions
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, VerificationError, one_of
from mobilenet.models.builder import build, config_of
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import kind
from mobilenet.models.layer_plan import layer_channels

Kept = Mapping[str, npt.NDArray[np.int64]]
Changes = Mapping[tuple[str, str], npt.NDArray[np.float64]]
TOLERANCE = 1e-5  # of the largest output, or of 1


@dataclasses.dataclass(frozen=True)
class Thinned:
    """A thin model and how it came about.

    Attributes:
        model: the thin model.
        config: rebuilds it (`build(config).set_weights(model.get_weights())`); `None` for a model
            whose config is not known.
        kept: indices of the channels that stay, by the group's first layer, rising.
        unchanged: the outputs are those of the model before, not of the one with silenced channels.
        left: channels that are constant and stay all the same, with the reason.
        silenced: the model of the old shapes that answers as the thin one, where that is another
            than the model before with the other channels silent (`reconstruct`).
    """

    model: Any
    config: MobileNetConfig | None
    kept: Kept
    unchanged: bool = False
    left: tuple[Leftover, ...] = ()
    silenced: Any = None


def thin(
    model: Any,
    ratio: float | Mapping[str, float] = 0.5,
    round_to: int = 16,
    importance: str | Callable[[Group], Any] = "magnitude",
    *,
    scope: str = "group",
    gradients: Mapping[str, npt.NDArray[Any]] | None = None,
    seed: int = 0,
    config: MobileNetConfig | None = None,
) -> Thinned:
    """Removes the least important channels of a model. `model` is left as it is.

    Args:
        model: a plain model of tf_keras.
        ratio: the share of channels that goes from every group (squeezes apart), or a share by
            role or by a regular expression of layer names (see `selection.ratios`).
        round_to: counts are multiples of it: 16 for int8 files and 32 for float ones, where
            kernels work in such tiles; 1 for exact ratios.
        importance: `magnitude`, `l2`, `batch_norm_scale`, `taylor`, `geometric_median`, `random`,
            or a function from a group to a vector `[channels]`.
        scope: `group` ranks within each group, `global` over all.
        gradients: for `taylor`, from `gradients(model, loss)`.
        seed: for `random`.
        config: of the model, where it was neither built nor loaded here.

    Raises:
        UsageError: a ratio outside [0, 1), a pattern that matches nothing, an unknown importance,
            or a layer whose channels cannot be followed.

    Example:
        >>> model = build(archs.MobileNetV1Config(), (32, 32, 3))
        >>> thin(model, 0.5, round_to=1).config.channels["Conv2d_1_pointwise"]
        32
    """
    check_plain(model)
    found = find(model)
    shares = selection.ratios(found, ratio)
    evidence = importances.Evidence(gradients or {}, seed)
    if isinstance(importance, str):
        one_of("--importance", importance, importances.REGISTRY)
    kept = selection.choose(
        found,
        shares,
        lambda group: importances.scores(group, importance, evidence),
        round_to,
        scope,
    )
    return cut(model, {group.name: kept[group.number] for group in found}, config)


def reconstruct(
    model: Any,
    thinned: Thinned,
    images: npt.NDArray[np.float32],
    *,
    config: MobileNetConfig | None = None,
) -> Thinned:
    """Fits a thin model to what the model before gave, layer by layer, without labels or training.

    Args:
        model: the model before the surgery.
        thinned: what the surgery gave; left as it is.
        images: `[n, height, width, channels]`, preprocessed. 500 do; what few show, few decide.
        config: of the model before, where it was neither built nor loaded here.

    Returns:
        The same channels with other weights.

    Raises:
        UsageError: the images do not fit the model.

    Example:
        >>> thinned = thin(model, 0.3, round_to=16)
        >>> thinned = reconstruct(model, thinned, images)
    """
    shape = tuple(model.input_shape[1:])
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise UsageError("images", images.shape, f"[n, {', '.join(map(str, shape))}], n above 0")
    masked = silenced(model, thinned.kept)
    reconstruction.fit(model, masked, images)
    made = cut(masked, thinned.kept, config_of(model) if config is None else config)
    return dataclasses.replace(made, silenced=masked)


def remove_channels(
    model: Any, channels: Mapping[str, Sequence[int]], *, config: MobileNetConfig | None = None
) -> Thinned:
    """Removes chosen channels, and what goes with them. `model` is left as it is.

    Args:
        model: a plain model of tf_keras.
        channels: indices by a layer that gives the channels; layers of one group add up.
        config: of the model, where it was neither built nor loaded here.

    Raises:
        UsageError: an unknown layer, one whose channels are fixed, an index that is not there, or
            a group of which nothing would stay.
    """
    check_plain(model)
    owners = by_layer(find(model, fixed=True))
    gone: dict[str, set[int]] = {}
    for layer, indices in channels.items():
        group = owners[one_of("layer", layer, owners)]
        if group.fixed:
            raise UsageError(f"layer {layer}", None, f"channels that can go; {group.fixed}")
        for index in indices:
            if not isinstance(index, (int, np.integer)) or not 0 <= index < group.channels:
                raise UsageError(
                    f"channels of {layer}", index, f"indices from 0 to {group.channels - 1}"
                )
        gone.setdefault(group.name, set()).update(int(index) for index in indices)
    for group in owners.values():
        if len(gone.get(group.name, ())) == group.channels:
            raise UsageError(
                f"channels of {group.name}", f"all {group.channels}", "at least one that stays"
            )
    kept = {
        group.name: np.setdiff1d(np.arange(group.channels), sorted(gone.get(group.name, ())))
        for group in owners.values()
        if not group.fixed
    }
    return cut(model, kept, config)


def remove_zero_channels(
    model: Any, *, borders: bool = False, config: MobileNetConfig | None = None
) -> Thinned:
    """Removes channels whose weights are zero, so that the outputs stay as they are.

    Such a channel is the same at every place and for every image: what its bias, batch norm and
    activation make of 0. What reads it gets that constant into its own bias or batch norm. Where a
    padding puts zeros beside a constant that is not zero, a map is not constant at its borders:
    such a channel stays, and `left` says so, unless `borders` is given up.

    Args:
        model: a plain model of tf_keras.
        borders: remove those too, with the constant of the inner places; outputs change a little.
        config: of the model, where it was neither built nor loaded here.

    Raises:
        UsageError: a layer whose channels cannot be followed.
    """
    check_plain(model)
    found = find(model)
    kept, changes, left = constant_channels(model, found, borders)
    return dataclasses.replace(
        cut(model, kept, config, changes), unchanged=not borders, left=tuple(left)
    )


def cut(
    model: Any, kept: Kept, config: MobileNetConfig | None = None, changes: Changes | None = None
) -> Thinned:
    """Keeps the channels named and builds the model again.

    Args:
        model: a plain model of tf_keras.
        kept: indices by the group's first layer.
        config: of the model; the one that it was built or loaded with when left out.
        changes: what is added to a weight first, by layer and weight.

    Raises:
        UsageError: the config is of another model.
    """
    groups = find(model)
    values = {layer.name: _read(layer) for layer in model.layers}
    for (layer, weight), change in (changes or {}).items():
        values[layer][weight] = (values[layer][weight] + change).astype(np.float32)
    widths: dict[str, int] = {}
    for group in groups:
        stay = np.asarray(kept[group.name], np.int64)
        for member in group.members:
            own, places = values[member.layer.name], positions(member, stay, group.channels)
            for weight, axis in axes(member).items():
                own[weight] = own[weight].take(places, axis)
            if member.side in ("out", "shape"):
                widths[member.layer.name] = len(places)
    config = config_of(model) if config is None else config
    if config is None:
        made = tf_keras.models.clone_model(model, clone_function=lambda x: _resized(x, widths))
    else:
        config = thinned_config(config, widths)
        made = build(config, model.input_shape[1:])
    _fill(made, model, values)
    return Thinned(made, config, {name: np.asarray(stay) for name, stay in kept.items()})


def thinned_config(config: MobileNetConfig, widths: Mapping[str, int]) -> MobileNetConfig:
    """The config with the channels of `widths`; those that the width rule gives are left out."""
    rule = layer_channels(config.replace(channels={}))
    now = {**layer_channels(config), **{n: c for n, c in widths.items() if n in rule}}
    return config.replace(channels={name: c for name, c in now.items() if c != rule[name]})


def silenced(model: Any, kept: Kept) -> Any:
    """A copy of the model in which the other channels are silent: no weight makes or reads them."""
    copy = copied(model)
    for group in find(copy):
        gone = np.setdiff1d(np.arange(group.channels), kept[group.name])
        for member in group.members:
            own, places = _read(member.layer), positions(member, gone, group.channels)
            for weight, axis in axes(member).items():
                if weight != "moving_variance":
                    np.moveaxis(own[weight], axis, 0)[places] = 0
            member.layer.set_weights(list(own.values()))
    return copy


def copied(model: Any) -> Any:
    """A model of the same layers and weights."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def prove(model: Any, thinned: Thinned, images: npt.NDArray[np.float32]) -> float:
    """Compares the thin model with the model before, whose channels are silenced where they were
    cut.

    Both compute in float64, so that nothing but the surgery shows.

    Args:
        model: the model before the surgery.
        thinned: what the surgery gave.
        images: `[n, height, width, channels]`, preprocessed.

    Returns:
        The largest difference of an output, over the largest output (or 1, if that is more).

    Raises:
        VerificationError: it is above 1e-5.
    """
    before = thinned.silenced
    if before is None:
        before = model if thinned.unchanged else silenced(model, thinned.kept)
    expected = np.asarray(_float64(before)(images, training=False), np.float64)
    got = np.asarray(_float64(thinned.model)(images, training=False), np.float64)
    apart = float(np.abs(got - expected).max() / max(1.0, np.abs(expected).max()))
    if not apart <= TOLERANCE:
        raise VerificationError(
            "thin model", apart, f"outputs within {TOLERANCE:g} of the masked model's"
        )
    return apart


def _float64(model: Any) -> Any:
    """A copy that computes in float64: in float32 a deep model makes much of the order of sums."""
    copy = tf_keras.models.clone_model(
        model, clone_function=lambda x: type(x).from_config({**x.get_config(), "dtype": "float64"})
    )
    copy.set_weights(model.get_weights())
    return copy


def _read(layer: Any) -> dict[str, npt.NDArray[Any]]:
    names = variables.named(layer)
    return dict(zip(names, layer.get_weights(), strict=True))


def _resized(layer: Any, widths: Mapping[str, int]) -> Any:
    config = layer.get_config()
    if layer.name in widths:
        width = widths[layer.name]
        if kind(layer) == "Reshape":
            config["target_shape"] = (*config["target_shape"][:-1], width)
        else:
            config["units" if kind(layer) == "Dense" else "filters"] = width
    return type(layer).from_config(config)


def _fill(made: Any, model: Any, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets the weights by layer name; refuses a config that does not describe the model."""
    names = [layer.name for layer in model.layers if layer.weights]
    if [layer.name for layer in made.layers if layer.weights] != names:
        odd = sorted({layer.name for layer in made.layers if layer.weights} ^ set(names))
        raise UsageError("config", odd[0] if odd else "other layers", "the config of this model")
    for name in names:
        layer, own = made.get_layer(name), list(values[name].values())
        shapes = [tuple(value.shape) for value in own]
        if shapes != [tuple(weight.shape) for weight in layer.weights]:
            raise UsageError("config", f"{name} of another shape", "the config of this model")
        layer.set_weights(own)
