"""A model to one small file and back, bit by bit: weights, architecture, card, and ranges if
any.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError, VerificationError
from mobilenet.models import builder, layer_plan, safe_loading, saving
from mobilenet.models.graph import variables
from mobilenet.packing import array_codec, container
from mobilenet.packing.entropy_coding import MalformedPackError
from mobilenet.typing import Array


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """The contents of a packed file.

    Attributes:
        loaded: the model and its card.
        ranges: of a quantized model, by layer name; `None` for a float one.
    """

    loaded: saving.LoadedModel
    ranges: dict[str, Array] | None


def pack(model: saving.LoadedModel, ranges: Mapping[str, Array] | None = None) -> bytes:
    """The bytes of a packed model, read back and compared first; see `pack_with_records`."""
    return pack_with_records(model, ranges)[0]


def pack_with_records(
    model: saving.LoadedModel, ranges: Mapping[str, Array] | None = None
) -> tuple[bytes, list[container.Record]]:
    """The bytes of a packed model, and the arrays that are in them.

    Args:
        model: a tf_keras model and its card.
        ranges: of a quantized model, by layer name.

    Raises:
        UsageError: a weight is not finite or of a type that cannot be packed, or the model is not
            made of stock layers.
        VerificationError: what was packed is not what it was packed from.
    """
    variables.check_finite(model.model)
    records = _weights(model.model)
    for name, values in (ranges or {}).items():
        records.append(_record(name, "", container.RANGE, values))
    header = {
        "card": model.card.to_json(),
        "config": None,
        "keras": None,
        "ranges": ranges is not None,
        **_architecture(model.model),
    }
    return container.assemble(header, records), records


def unpack(path: str | os.PathLike[str]) -> Unpacked:
    """Builds the model of a file, with its weights bit by bit.

    Raises:
        UsageError: see `container.read`; or the file has an architecture that cannot be built, or
            weights of another one.
    """
    header, records = container.read(path)
    try:
        card = Card.from_json(_object(header, "card"))
        weights = [record for record in records if record.kind == container.WEIGHT]
        model = _build(header, sum(record.size for record in weights))
        range_records = [record for record in records if record.kind == container.RANGE]
        _check_weights(model, weights)
        model.set_weights([record.array() for record in weights])
        ranges = {record.name: record.array() for record in range_records}
    except MalformedPackError as error:
        raise container.damaged_file_error(path, error) from None
    except UsageError as error:
        raise error.within(str(path)) from None
    if builder.config_of(model) is None:
        model.mobilenet_config = card.model_config()
    model.mobilenet_preprocessing = card.preprocessing
    return Unpacked(saving.LoadedModel(model, card), ranges if header.get("ranges") else None)


def _weights(model: Any) -> list[container.Record]:
    owners = {id(weight): layer.name for layer in model.layers for weight in layer.weights}
    return [
        _record(weight.name, owners.get(id(weight), ""), container.WEIGHT, values)
        for weight, values in zip(model.weights, model.get_weights(), strict=True)
    ]


def _record(name: str, layer: str, kind: str, values: Array) -> container.Record:
    dtype = str(values.dtype)
    if dtype not in array_codec.DTYPES:
        raise UsageError(name, dtype, f"values of {', '.join(array_codec.DTYPES)}")
    data = array_codec.pack_array(values)
    record = container.Record(name, layer, kind, dtype, values.shape, data)
    if record.array().tobytes() != values.tobytes():
        raise VerificationError(
            name, None, "bits that are the same after unpacking", "nothing was written"
        )
    return record


def _architecture(model: Any) -> dict[str, Any]:
    """Our config if it builds the same model, else Keras' own description."""
    config = builder.config_of(model)
    if config is not None:
        same = builder.build(config, model.input_shape[1:])
        if _plain(same.get_config()) == _plain(model.get_config()):
            return {"config": config.to_json(), "input_shape": model.input_shape[1:]}
    plain = tf_keras.Model(model.inputs, model.outputs, name=model.name)
    described = _plain(tf_keras.saving.serialize_keras_object(plain))
    rebuilt = _from_keras(described, plain.count_params())
    shapes = [(weight.name, weight.shape) for weight in plain.weights]
    if [(weight.name, weight.shape) for weight in rebuilt.weights] != shapes:
        raise UsageError(
            "model", model.name, "a model that Keras builds again from its description"
        )
    return {"keras": described}


def _plain(value: Any) -> Any:
    """The value after a round trip through JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError("model", None, f"stock Keras layers alone ({error})") from None


def _build(header: Mapping[str, Any], values: int) -> Any:
    """The model of a header, once it is known to have no more weights than `values`."""
    if header.get("config") is None:
        return _from_keras(_object(header, "keras"), values)
    config, shape = MobileNetConfig.from_json(_object(header, "config")), header.get("input_shape")
    if not isinstance(shape, list) or not all(s is None or type(s) is int for s in shape):
        raise MalformedPackError("a header without an input shape")
    if len(shape) == 3 and shape[2] and layer_plan.count_parameters(config, shape[2]) != values:
        raise MalformedPackError("weights that are not those of its model")
    return builder.build(config, shape)


def _from_keras(described: Any, values: int) -> Any:
    return safe_loading.build(safe_loading.sanitize(described), values)


def _object(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = header.get(name)
    if not isinstance(value, dict):
        raise MalformedPackError(f"a header without its {name}")
    return value


def _check_weights(model: Any, records: Sequence[container.Record]) -> None:
    expected = [(tuple(w.shape), w.dtype.name) for w in model.weights]
    if expected != [(record.shape, record.dtype) for record in records]:
        raise MalformedPackError("weights that are not those of its model")
