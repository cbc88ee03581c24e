"""Network surgery: channels are cut out of every weight of their group, and the model is rebuilt.

The result is a config (`channels` by layer) with weights for a model of ours, and a rebuilt
functional model for any other. Surgery is verified against the original model with the removed
channels masked: its outputs must be those of the thin model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tf_keras

from mobilenet.compression.method import check_plain
from mobilenet.compression.pruning.channel import importance as channel_importance
from mobilenet.compression.pruning.channel import reconstruction, selection
from mobilenet.compression.pruning.channel.constant_channels import Leftover, constant_channels
from mobilenet.compression.pruning.channel.dependency_groups import ChannelGraph
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, VerificationError, one_of
from mobilenet.models.builder import build, config_of
from mobilenet.models.graph import rebuild, variables
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.models.layer_plan import layer_channels
from mobilenet.typing import Array, Float32Array, Float64Array

ChannelIndices: TypeAlias = Mapping[str, npt.NDArray[np.int64]]  # by the group's first layer
WeightChanges: TypeAlias = Mapping[tuple[str, str], Float64Array]  # by layer and weight
TOLERANCE = 1e-5  # of the largest output, or of 1


@dataclasses.dataclass(frozen=True)
class Thinned:
    """A thin model and where it came from.

    Attributes:
        model: the thin model.
        config: rebuilds it (`build(config).set_weights(model.get_weights())`); `None` for a model
            whose config is not known.
        remaining: indices of the channels that remain, by the group's first layer, rising.
        reference: the model of the original shapes that `verify` compares with: the original model,
            or the one whose consumers were reconstructed (`reconstruct`).
        unchanged: the outputs are those of `reference` itself, not of `reference` with the removed
            channels masked.
        leftovers: constant channels that were not removed, with the reason
            (`remove_zero_channels`).
    """

    model: Any
    config: MobileNetConfig | None
    remaining: ChannelIndices = dataclasses.field(repr=False)
    reference: Any = dataclasses.field(repr=False)
    unchanged: bool = False
    leftovers: tuple[Leftover, ...] = ()

    def __str__(self) -> str:
        before, after = self.reference.count_params(), self.model.count_params()
        return f"{self.model.name}, thinned: {before:,} parameters before, {after:,} after"

    def verify(self, images: Float32Array) -> float:
        """Compares the thin model's outputs with those of the masked original model.

        Both compute in float64, so that nothing but the surgery shows.

        Args:
            images: `[n, height, width, channels]`, preprocessed.

        Returns:
            The largest difference of an output, over the largest output (or 1, if that is more).

        Raises:
            VerificationError: it is above 1e-5.
        """
        masked = self.reference
        if not self.unchanged:
            masked = mask_channels(self.reference, self.remaining)
        expected = np.asarray(_in_float64(masked)(images, training=False), np.float64)
        outputs = np.asarray(_in_float64(self.model)(images, training=False), np.float64)
        difference = float(np.abs(outputs - expected).max() / max(1.0, np.abs(expected).max()))
        if not difference <= TOLERANCE:
            raise VerificationError(
                "thin model", difference, f"outputs within {TOLERANCE:g} of the masked model's"
            )
        return difference


def thin(
    model: Any,
    ratio: float | Mapping[str, float] = 0.5,
    round_to: int = 16,
    importance: str | channel_importance.UserImportance = "magnitude",
    *,
    scope: str = "group",
    gradients: Mapping[str, Array] | None = None,
    seed: int = 0,
    config: MobileNetConfig | None = None,
) -> Thinned:
    """Removes the least important channels of a model. `model` is left as it is.

    Args:
        model: a plain model of tf_keras.
        ratio: the share of channels to remove from every group (squeezes apart), or a share by
            role or by a regular expression of layer names (see `selection.ratios_by_group`).
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

    Examples:
        >>> model = build(archs.MobileNetV1Config(), (32, 32, 3))
        >>> thin(model, 0.5, round_to=1).config.channels["Conv2d_1_pointwise"]
        32
    """
    check_plain(model)
    channel_graph = ChannelGraph(model)
    groups = channel_graph.groups
    shares = selection.ratios_by_group(groups, ratio)
    evidence = channel_importance.Evidence(gradients or {}, seed)
    if isinstance(importance, str):
        one_of("importance", importance, channel_importance.REGISTRY)
    remaining = selection.choose_channels(
        groups,
        shares,
        lambda group: channel_importance.score_channels(group, importance, evidence),
        round_to,
        scope,
    )
    by_name = {group.name: remaining[group.number] for group in groups}
    return cut_channels(channel_graph, by_name, config)


def reconstruct(
    model: Any,
    thinned: Thinned,
    images: Float32Array,
    *,
    config: MobileNetConfig | None = None,
) -> Thinned:
    """Fits a thin model to the original one's features, layer by layer, without labels or training.

    Args:
        model: the model before the surgery.
        thinned: the result of the surgery; left as it is.
        images: `[n, height, width, channels]`, preprocessed. 500 are enough; with few images the
            fit follows those few.
        config: of the model before, where it was neither built nor loaded here.

    Returns:
        The same channels with other weights.

    Raises:
        UsageError: the images do not fit the model.

    Examples:
        >>> thinned = thin(model, 0.3, round_to=16)
        >>> thinned = reconstruct(model, thinned, images)
    """
    shape = tuple(model.input_shape[1:])
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise UsageError("images", images.shape, f"[n, {', '.join(map(str, shape))}], n above 0")
    masked = _mask(ChannelGraph(rebuild.copy(model)), thinned.remaining)
    reconstruction.reconstruct_consumers(Graph(model), masked.graph, images)
    return cut_channels(masked, thinned.remaining, config_of(model) if config is None else config)


def remove_channels(
    model: Any, channels: Mapping[str, Sequence[int]], *, config: MobileNetConfig | None = None
) -> Thinned:
    """Removes chosen channels, and those that depend on them. `model` is left as it is.

    Args:
        model: a plain model of tf_keras.
        channels: indices by a layer that outputs the channels; layers of one group add up.
        config: of the model, where it was neither built nor loaded here.

    Raises:
        UsageError: an unknown layer, one whose channels are fixed, an index that is not there, or
            a group of which nothing would remain.
    """
    check_plain(model)
    channel_graph = ChannelGraph(model)
    by_layer = channel_graph.by_layer()
    removed: dict[str, set[int]] = {}
    for layer, indices in channels.items():
        group = by_layer[one_of("layer", layer, by_layer)]
        if group.fixed:
            raise UsageError(f"layer {layer}", None, f"channels that can be removed; {group.fixed}")
        for index in indices:
            if not isinstance(index, (int, np.integer)) or not 0 <= index < group.channels:
                raise UsageError(
                    f"channels of {layer}", index, f"indices from 0 to {group.channels - 1}"
                )
        removed.setdefault(group.name, set()).update(int(index) for index in indices)
    remaining = {}
    for group in channel_graph.groups:
        indices = sorted(removed.get(group.name, ()))
        if len(indices) == group.channels:
            raise UsageError(
                f"channels of {group.name}", f"all {group.channels}", "at least one that remains"
            )
        remaining[group.name] = np.setdiff1d(np.arange(group.channels), indices)
    return cut_channels(channel_graph, remaining, config)


def remove_zero_channels(
    model: Any, *, borders: bool = False, config: MobileNetConfig | None = None
) -> Thinned:
    """Removes channels whose weights are zero, so that the outputs stay as they are.

    Such a channel is the same at every position and for every image: what its bias, batch norm and
    activation make of 0. The layer that reads it takes that constant into its own bias or batch
    norm. Where padding adds zeros around a constant that is not zero, the map is not constant at
    its borders: such a channel is not removed but listed in `leftovers`, unless `borders` is set.

    Args:
        model: a plain model of tf_keras.
        borders: remove those too, with the constant of the inner positions; outputs change a
            little.
        config: of the model, where it was neither built nor loaded here.

    Raises:
        UsageError: a layer whose channels cannot be followed.
    """
    check_plain(model)
    channel_graph = ChannelGraph(model)
    remaining, changes, leftovers = constant_channels(channel_graph, borders)
    thinned = cut_channels(channel_graph, remaining, config, changes)
    return dataclasses.replace(thinned, unchanged=not borders, leftovers=tuple(leftovers))


def cut_channels(
    channel_graph: ChannelGraph,
    remaining: ChannelIndices,
    config: MobileNetConfig | None = None,
    changes: WeightChanges | None = None,
) -> Thinned:
    """Rebuilds the model with the remaining channels only.

    Args:
        channel_graph: of a plain model of tf_keras, which is left as it is.
        remaining: indices by the group's first layer.
        config: of the model; the one that it was built or loaded with when left out.
        changes: what is added to a weight first, by layer and weight.

    Raises:
        UsageError: the config is of another model.
    """
    model = channel_graph.model
    values = {layer.name: _weights_by_name(layer) for layer in model.layers}
    for (layer, weight), change in (changes or {}).items():
        values[layer][weight] = (values[layer][weight] + change).astype(np.float32)
    widths: dict[str, int] = {}
    for group in channel_graph.groups:
        indices = np.asarray(remaining[group.name], np.int64)
        for member in group.members:
            weights = values[member.layer.name]
            positions = member.positions(indices, group.channels)
            for weight, axis in member.axes().items():
                weights[weight] = weights[weight].take(positions, axis)
            if member.side in ("out", "shape"):
                widths[member.layer.name] = len(positions)
    config = config_of(model) if config is None else config
    if config is None:
        thin_model = tf_keras.models.clone_model(
            model, clone_function=lambda layer: _resized(layer, widths)
        )
    else:
        config = thinned_config(config, widths)
        thin_model = build(config, model.input_shape[1:])
    _set_weights(thin_model, model, values)
    indices_by_name = {name: np.asarray(indices) for name, indices in remaining.items()}
    return Thinned(thin_model, config, indices_by_name, reference=model)


def thinned_config(config: MobileNetConfig, widths: Mapping[str, int]) -> MobileNetConfig:
    """The config with the channels of `widths`; those that the width rule gives are left out."""
    rule = layer_channels(config.replace(channels={}))
    now = {**layer_channels(config), **{n: c for n, c in widths.items() if n in rule}}
    return config.replace(channels={name: c for name, c in now.items() if c != rule[name]})


def mask_channels(model: Any, remaining: ChannelIndices) -> Any:
    """A copy of the model in which all weights of the other channels are zero.

    Args:
        model: a plain model of tf_keras.
        remaining: indices of the channels to keep, by the group's first layer.
    """
    return _mask(ChannelGraph(rebuild.copy(model)), remaining).model


def _mask(channel_graph: ChannelGraph, remaining: ChannelIndices) -> ChannelGraph:
    """Zeroes the other channels of a model in place."""
    for group in channel_graph.groups:
        pruned = np.setdiff1d(np.arange(group.channels), remaining[group.name])
        for member in group.members:
            weights = _weights_by_name(member.layer)
            positions = member.positions(pruned, group.channels)
            for weight, axis in member.axes().items():
                if weight != "moving_variance":  # batch norm divides by its square root
                    np.moveaxis(weights[weight], axis, 0)[positions] = 0
            member.layer.set_weights(list(weights.values()))
    return channel_graph


def _in_float64(model: Any) -> Any:
    """A copy that computes in float64: in float32 the order of sums shows in a deep model."""
    copy = tf_keras.models.clone_model(
        model, clone_function=lambda x: type(x).from_config({**x.get_config(), "dtype": "float64"})
    )
    copy.set_weights(model.get_weights())
    return copy


def _weights_by_name(layer: Any) -> dict[str, Array]:
    names = variables.named(layer)
    return dict(zip(names, layer.get_weights(), strict=True))


def _resized(layer: Any, widths: Mapping[str, int]) -> Any:
    """A new layer of the same config but its number of channels."""
    config = layer.get_config()
    if layer.name in widths:
        width = widths[layer.name]
        if kind(layer) == "Reshape":
            config["target_shape"] = (*config["target_shape"][:-1], width)
        else:
            config["units" if kind(layer) == "Dense" else "filters"] = width
    return type(layer).from_config(config)


def _set_weights(thin_model: Any, model: Any, values: Mapping[str, Mapping[str, Array]]) -> None:
    """Sets the weights by layer name; refuses a config that does not describe the model."""
    names = [layer.name for layer in model.layers if layer.weights]
    if [layer.name for layer in thin_model.layers if layer.weights] != names:
        odd = sorted({layer.name for layer in thin_model.layers if layer.weights} ^ set(names))
        raise UsageError("config", odd[0] if odd else "other layers", "the config of this model")
    for name in names:
        layer, weights = thin_model.get_layer(name), list(values[name].values())
        shapes = [tuple(value.shape) for value in weights]
        if shapes != [tuple(weight.shape) for weight in layer.weights]:
            raise UsageError("config", f"{name} of another shape", "the config of this model")
        layer.set_weights(weights)
