"""Quantization, conversion and verification of models in memory, a user's own among them."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import check_images
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.card import ACTIVATIONS, Card, checked_labels
from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.configs.number_formats import AS_TRAINED, CALIBRATED, FLOAT32, FORMATS, INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.data import in_memory as image_arrays
from mobilenet.errors import UsageError, VerificationError
from mobilenet.export import freeze, number_formats, pipeline
from mobilenet.export.calibration_data import Calibration
from mobilenet.export.converted_file import ConvertedFile
from mobilenet.export.source import source_of
from mobilenet.export.verification import structure
from mobilenet.export.verification import verify as verification
from mobilenet.export.verification.verify import Verification
from mobilenet.models import input_preprocessing
from mobilenet.models.builder import config_of
from mobilenet.models.graph import final_activation
from mobilenet.models.saving import LoadedModel, card_of
from mobilenet.runtime import classifier
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import Float32Array

log = logging.getLogger("mobilenet")

# What a file of a float model reaches and one of another model misses, in dB of its outputs.
_MIN_FLOAT_RATIO = 60.0  # float32 arithmetic alone leaves more than 80
_MIN_QUANTIZED_RATIO = 6.0  # an error of half the signal
_FLOAT_LIMITS = VerificationLimits(min_clear_agreement=0.9)


def plain_model(
    model: Any,
    preprocessing: input_preprocessing.Choice = None,
    labels: Sequence[str] | None = None,
) -> LoadedModel:
    """A float model as quantization and conversion take it, and its card.

    Args:
        model: functional or Sequential tf_keras model, or a `LoadedModel`, whose card then gives
            what is not given here; it is left as it is.
        preprocessing: how pixels become the model's inputs; see `input_preprocessing.resolve`.
        labels: class names by index.

    Returns:
        A flat float32 model of stock layers outside any strategy, up to its logits; its card.

    Raises:
        UsageError: names `model`, `preprocessing` or `labels`.
    """
    stored = None
    if isinstance(model, QuantizedModel):
        raise UsageError(
            "model", "a QuantizedModel", "a float model", "`.float_model` is its float model"
        )
    if isinstance(model, LoadedModel):
        stored = model.card
        model = model.model
    logits, activation = final_activation.split_final_activation(model)
    plain = freeze.float32_copy(logits, logits=False)
    card = _card(model, plain) if stored is None else stored
    card = input_preprocessing.complete_card(card, model.name, preprocessing, from_files=False)
    if labels is not None:
        card = card.replace(labels=checked_labels(labels, plain.output_shape[-1]))
    outputs = "features" if card.outputs == "features" else "logits"
    cut = (f"the {activation} at the end is left out",) if activation != "linear" else ()
    if activation in ACTIVATIONS:
        card = card.replace(activation=activation)
    return LoadedModel(plain, card.replace(outputs=outputs, notes=(*card.notes, *cut)))


def _card(model: Any, plain: Any) -> Card:
    """A card of what can be seen in a model.

    Args:
        model: as it was given.
        plain: the flat model.
    """
    config = config_of(model)
    preprocessing, assumed = input_preprocessing.of_model(model)
    card = card_of(plain).replace(preprocessing=preprocessing, assumed=assumed)
    return card if config is None else card.replace(architecture=config.to_json())


def quantize(
    model: Any,
    images: Any,
    config: PostTraining | None = None,
    preprocessing: input_preprocessing.Choice = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> QuantizedModel:
    """Post-training int8; see `mobilenet.quantize`."""
    chosen: object = PostTraining() if config is None else config
    if not isinstance(chosen, PostTraining):
        expected = "a PostTraining config"
        raise UsageError("config", type(config).__name__, expected, "quantize_aware trains")
    loaded = plain_model(model, preprocessing, labels)
    shape = loaded.model.input_shape[1:]
    count = chosen.calibration_images
    array = image_arrays.load_examples(
        images, shape, count, "images", loaded.card.preprocessing
    ).images
    return post_training_pipeline.quantize_model(loaded, array, chosen, seed=seed)


def convert(
    model: Any,
    number_format: str | None = None,
    images: Any = None,
    config: ConversionConfig | None = None,
    calibration: Any = None,
    preprocessing: input_preprocessing.Choice = None,
    labels: Sequence[str] | None = None,
    limits: VerificationLimits | None = None,
) -> ConvertedFile:
    """A verified file; see `mobilenet.convert`."""
    config = _config(model, number_format, config)
    if config.number_format is None and not isinstance(model, QuantizedModel):
        log.info("the file of a float model is float32; that of quantize(model, images) is int8")
    loaded = _described(model, preprocessing, labels)
    source = source_of(loaded)
    shape = source.model.input_shape[1:]
    verified_on = None
    if images is not None:
        verified_on = image_arrays.load_examples(
            images, shape, None, "images", loaded.card.preprocessing
        ).images
        image_arrays.check_range(verified_on, loaded.card.preprocessing)
        if config.image_size is None and None in shape:
            config = _with_size(config, verified_on)
    shape = config.input_shape(shape)
    ranges_of = None
    if config.number_format in CALIBRATED and not source.quantized:
        ranges_of = _calibration(calibration, verified_on, shape, loaded.card, config)
    elif calibration is not None:
        expected = "a number format that takes ranges from images"
        raise UsageError("calibration", "images", expected, "leave it out")
    try:
        return pipeline.convert(
            source, verified_on, config, limits or VerificationLimits(), ranges_of
        )
    except RuntimeError as error:  # the converter knows no such layer, or a bug of it
        raise UsageError("model", None, f"one that can be converted ({error})") from error


def _described(
    model: Any, preprocessing: input_preprocessing.Choice, labels: Sequence[str] | None
) -> LoadedModel:
    """The model with its card; a quantized one has them."""
    if not isinstance(model, QuantizedModel):
        return plain_model(model, preprocessing, labels)
    own = model.card.preprocessing
    if preprocessing is not None:
        resolved = input_preprocessing.resolve(model.float_model, preprocessing)
        if resolved != own:
            expected = f"{own.name}, which the model was quantized for"
            raise UsageError("preprocessing", resolved.name, expected, "leave it out")
    if labels is None:
        return model
    checked = checked_labels(labels, model.float_model.output_shape[-1])
    return dataclasses.replace(model, card=model.card.replace(labels=checked))


def _config(
    model: Any, number_format: str | None, config: ConversionConfig | None
) -> ConversionConfig:
    """The config with the number format.

    Raises:
        UsageError: there are two number formats, or the model cannot have it.
    """
    config = ConversionConfig() if config is None else config
    if number_format is not None:
        if config.number_format not in (None, number_format):
            expected = f"{config.number_format}, as in `config`"
            raise UsageError("number_format", number_format, expected, "give one of them")
        config = config.replace(number_format=number_format)
    name = config.number_format
    if isinstance(model, QuantizedModel):
        if name not in (None, *AS_TRAINED):
            expected = f"{' or '.join(AS_TRAINED)} for a QuantizedModel"
            raise UsageError("number_format", name, expected, "convert its `float_model`")
    elif name == INT8:
        remedy = "mobilenet.quantize(model, images) or mobilenet.quantize_aware makes one"
        raise UsageError("number_format", name, "a QuantizedModel for int8", remedy)
    return config


def _with_size(config: ConversionConfig, images: Float32Array) -> ConversionConfig:
    """The config with the size of the images, for a model that leaves it open."""
    height, width = images.shape[1:3]
    return config.replace(image_size=(height, width))


def _calibration(
    calibration: Any,
    images: Float32Array | None,
    shape: tuple[int, int, int],
    card: Card,
    config: ConversionConfig,
) -> Calibration:
    """The images that the ranges are taken from."""
    parameter = "images" if calibration is None else "calibration"
    if calibration is not None:
        images = image_arrays.load_examples(
            calibration, shape, None, parameter, card.preprocessing
        ).images
    if images is None:
        expected = f"images, as {config.number_format} takes ranges from them"
        raise UsageError(parameter, None, expected)
    check_images(images, card.preprocessing, parameter)
    return Calibration(images, "")


def verify(
    file: str | os.PathLike[str] | bytes | ConvertedFile,
    model: Any,
    images: Any,
    limits: VerificationLimits | None = None,
    preprocessing: input_preprocessing.Choice = None,
) -> Verification:
    """Compares a file with the model that it was made from; see `mobilenet.verify`."""
    data = _bytes_of(file)
    content = tflite_model.read(data)
    loaded = _described(model, preprocessing, None)
    source = source_of(loaded)
    shape = _checked_shape(content, source.model)
    array = image_arrays.load_examples(
        images, shape, None, "images", loaded.card.preprocessing
    ).images
    image_arrays.check_range(array, loaded.card.preprocessing)
    is_int8 = structure.is_int8(content)
    if source.quantized and not is_int8:
        source = source.without_quantizers()
    config = _config_of(content, INT8 if source.quantized else FLOAT32)
    job = number_formats.ConversionJob(source, array, config, shape)
    if source.quantized:
        conversion = number_formats.prepare_int8(job)
        result = pipeline.compare(data, conversion, job, limits or VerificationLimits())
    else:
        result = _compare_outputs(data, content, job, limits)
    pipeline.raise_faults(result, _name_of(file))
    return result


def _bytes_of(file: Any) -> bytes:
    if isinstance(file, ConvertedFile):
        return file.content
    if isinstance(file, bytes):
        return file
    if not isinstance(file, (str, os.PathLike)):
        expected = "a path, the bytes of a file or what `convert` returns"
        raise UsageError("file", type(file).__name__, expected)
    return classifier.resolve_flatbuffer(file).read_bytes()


def _name_of(file: Any) -> str:
    return str(Path(file)) if isinstance(file, (str, os.PathLike)) else "file"


def _checked_shape(content: tflite_model.Flatbuffer, model: Any) -> tuple[int, int, int]:
    """`[height, width, channels]` of the file.

    Raises:
        VerificationError: the model has other inputs or outputs.
    """
    source, target = content.tensors[content.inputs[0]], content.tensors[content.outputs[0]]
    own, sides = tuple(source.shape[1:]), model.input_shape[1:]
    fits = len(own) == len(sides) and all(b in (None, a) for a, b in zip(own, sides, strict=True))
    if not fits:
        raise VerificationError("file", list(own), f"the input of its model, {list(sides)}")
    if target.shape[-1] != model.output_shape[-1]:
        expected = f"as many as its model, {model.output_shape[-1]}"
        raise VerificationError("file", f"{target.shape[-1]} outputs", expected)
    return own[0], own[1], own[2]


def _config_of(content: tflite_model.Flatbuffer, number_format: str) -> ConversionConfig:
    """How a file was made, as far as that changes what the model must compute."""
    io = content.tensors[content.inputs[0]].dtype
    return ConversionConfig(
        number_format=number_format,
        io=io if number_format == INT8 else "float32",
        batch=max(1, content.tensors[content.inputs[0]].shape[0]),
        output_activation=classifier.final_activation(content) or "none",
        target="generic" if any(op.name == "HARD_SWISH" for op in content.operators) else "xnnpack",
    )


def _compare_outputs(
    data: bytes,
    content: tflite_model.Flatbuffer,
    job: number_formats.ConversionJob,
    limits: VerificationLimits | None,
) -> Verification:
    """Compares the outputs of a file of any number format with those of its float model."""
    preprocessing = job.source.card.preprocessing
    conversion = number_formats.compared_with_float(job, data)
    deviations = set(preprocessing.std)
    inputs = conversion.inputs
    if len(deviations) == 1 and structure.has_pixel_grid(content, deviations.pop()):
        inputs = scheme.to_grid(inputs, preprocessing)
    result = verification.verify(
        data,
        conversion.reference,
        inputs,
        expect_int8=False,
        io=content.tensors[content.inputs[0]].dtype,
        activation=job.activation,
        are_logits=job.config.activation is None,
        limits=_FLOAT_LIMITS if limits is None else limits,
    )
    name = structure.find_format(content)
    contents = "a mixture of types" if name is None else FORMATS[name].contents
    least = _MIN_FLOAT_RATIO if name == FLOAT32 else _MIN_QUANTIZED_RATIO
    faults, ratio = result.faults, result.signal_to_noise
    if limits is None and ratio is not None and ratio < least:
        text = f"outputs at a signal-to-noise ratio of {ratio:.1f} dB, below {least:g} dB"
        faults = (*faults, text)
    return dataclasses.replace(result, quantized=name == INT8, contents=contents, faults=faults)
