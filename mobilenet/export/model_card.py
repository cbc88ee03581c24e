"""The README of an export folder: a model card with the metadata that the Hugging Face Hub reads,
the figures of each stage, limits, preprocessing and programs.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import yaml

from mobilenet.configs import released_models
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import SIGMOID, Card, StageFigures, TensorType
from mobilenet.configs.dataset import (
    ANTIALIASED_BICUBIC,
    ANTIALIASED_BILINEAR,
    BILINEAR,
    FILES,
    FOLDER,
    LIST,
    RECORDS,
)
from mobilenet.export import programs
from mobilenet.export.verification.verify import Verification
from mobilenet.runtime.classifier import LABELS

UNKNOWN_LICENSE = "unknown"  # the Hub's identifier
_OWN_DATA = tuple(kind.name for kind in (FOLDER, LIST, FILES, RECORDS))
# Of TFDS sets whose name on the Hugging Face Hub is another one.
_HUB_DATA = MappingProxyType(
    {
        "cifar10": "uoft-cs/cifar10",
        "cifar100": "uoft-cs/cifar100",
        "fashion_mnist": "zalando-datasets/fashion_mnist",
        "food101": "ethz/food101",
        "imagenet2012": "ILSVRC/imagenet-1k",
        "imagenette": "frgfm/imagenette",
        "mnist": "ylecun/mnist",
    }
)
_SHOWN_LABELS = 20
_SHOWN_NOTES = 8
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#|~&!$@:()]")


def render(card: Card, verification: Verification) -> str:
    """The README of the export folder; its Python block runs as printed, in this folder.

    Args:
        card: of the file.
        verification: of the file.
    """
    outputs, title = verification.output_shape[-1], _title(card, verification)
    metadata = yaml.safe_dump(
        _metadata(card, title), sort_keys=False, allow_unicode=True, width=100
    )
    sections = [
        f"---\n{metadata}---\n\n# {escape(title)}",
        _introduction(card),
        _table(["what", "value"], _file_rows(card, verification)),
        "## How it was made",
        *_origin(card),
        "## Limits",
        _bullets(_limits(card, verification)),
        "## Preprocessing",
        "\n".join(f"{n}. {step}" for n, step in enumerate(_preprocessing(card), 1)),
        _meaning(card),
        "## Run it",
        "Python (`pip install ai-edge-litert numpy pillow`), in this folder, with a `photo.jpg`:",
        _block("python", programs.python(card, verification.input_shape[0], outputs)),
        "C++ with [LiteRT](https://ai.google.dev/edge/litert):",
        _block("cpp", programs.cpp(card, outputs)),
        f"Kotlin on Android (`{programs.KOTLIN_PACKAGE}`):",
        _block("kotlin", programs.kotlin(card, outputs)),
    ]
    return "\n\n".join(sections) + "\n"


def escape(text: str) -> str:
    """Text as Markdown that shows it in one line, without markup, links or HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _block(language: str, program: str) -> str:
    return f"```{language}\n{program}\n```"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _title(card: Card, verification: Verification) -> str:
    height, width, channels = card.input_shape
    config = card.model_config()
    name = "Image classifier" if card.title == "model" else card.title
    parts = [name if config is None else f"{name} {_width(config)}", f"{height} x {width}"]
    gray = [f"{channels} channel{'s' * (channels > 1)}"] if channels != 3 else []
    return ", ".join([*parts, *gray, verification.contents])


def _width(config: MobileNetConfig) -> str:
    return f"{config.width_multiplier:g}{', thinned' * bool(config.channels)}"


def _metadata(card: Card, title: str) -> dict[str, Any]:
    """The front matter; what is not known is left out, except for the license."""
    is_classifier = card.outputs != "features"
    data = _dataset(card.dataset)
    base = released_models.hub_repository(card.initial_weights)
    metrics = _metrics(card)
    results = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": "own_images", "name": "own images", **data, "split": "test"},
        "metrics": metrics,
    }
    fields = {
        "library_name": "litert",
        "pipeline_tag": "image-classification" if is_classifier else "image-feature-extraction",
        "license": card.license or UNKNOWN_LICENSE,
        "base_model": base,
        "datasets": [data["type"]] if data else None,
        "metrics": list(dict.fromkeys(metric["type"] for metric in metrics)),
        "tags": ["tflite", "mobilenet", "vision"],
        "model-index": [{"name": title, "results": [results]}] if metrics else None,
    }
    return {name: value for name, value in fields.items() if value}


def _dataset(name: str) -> dict[str, str]:
    """Identifier and name of a public data set; empty for the user's own images."""
    if not name or name in _OWN_DATA:
        return {}
    base, _, config = name.partition(":")[0].partition("/")
    public = {"type": _HUB_DATA.get(base, base), "name": base}
    return {**public, "config": config} if config else public


def _metrics(card: Card) -> list[dict[str, Any]]:
    """The file's own figures; shares from 0 to 1, as the Hub's metrics have them."""
    stage = card.file_stage
    if stage is None:
        return []
    multiple = card.activation == SIGMOID
    names = {
        "top1": ("accuracy", "Accuracy" if multiple else "Top-1 accuracy", 100),
        **({} if multiple else {"top5": ("accuracy", "Top-5 accuracy", 100)}),
        "auc": ("roc_auc", "AUC, mean of the labels", 1),
        "f1": ("f1", "F1, mean of the labels", 1),
    }
    return [
        {"type": kind, "name": name, "value": round(stage.metrics[key] / divisor, 6)}
        for key, (kind, name, divisor) in names.items()
        if key in stage.metrics
    ]


def _introduction(card: Card) -> str:
    count = len(card.labels)
    if card.outputs == "features":
        text = "A LiteRT (TensorFlow Lite) file that turns an image into features."
    else:
        shown = ", ".join(escape(label) for label in card.labels[:_SHOWN_LABELS])
        rest = f" and {count - _SHOWN_LABELS} more" if count > _SHOWN_LABELS else ""
        what = f"classifies images as one of {count} classes"
        if card.activation == SIGMOID:
            what = f"gives the probabilities of {count} labels of an image"
        text = f"A LiteRT (TensorFlow Lite) file that {what}: {shown}{rest}."
    return f"{text} `{LABELS}` has their names, `card.json` all that follows as data."


def _file_rows(card: Card, verification: Verification) -> list[tuple[str, str]]:
    height, width, channels = card.input_shape
    operators = ", ".join(f"{count} {op}" for op, count in sorted(verification.operators.items()))
    activation = " of a sigmoid" if card.activation == SIGMOID else ""
    outputs = f"{verification.output_shape[-1]} {card.outputs}{activation}"
    return [
        ("contents", verification.contents),
        ("input", f"{_describe_io(verification.input)}, {height} x {width} x {channels}"),
        ("output", f"{_describe_io(verification.output)}, {outputs}"),
        ("bytes", f"{verification.bytes:,} ({verification.gzip_bytes:,} under gzip)"),
        *_score_rows(card),
        (f"same {card.decided} as the Keras model", escape(verification.same_decision)),
        *_operator_rows(verification),
        ("delegate partitions", str(verification.partitions)),
        ("operators", escape(operators)),
    ]


def _score_rows(card: Card) -> list[tuple[str, str]]:
    """Held-out figures, with what they were measured on."""
    stage = card.file_stage
    metrics = card.metrics if stage is None else stage.metrics
    of = "the Keras model before conversion" if stage is None else f"{stage.images:,} test images"
    names = {"top1": "top-1", "top5": "top-5", "auc": "AUC", "f1": "F1"}
    if card.activation == SIGMOID:
        names = {"top1": "accuracy", **{k: v for k, v in names.items() if k in ("auc", "f1")}}
    percent = ("top1", "top5")
    return [
        (f"{name} of {of}", f"{metrics[key]:.2f} %" if key in percent else f"{metrics[key]:.4f}")
        for key, name in names.items()
        if key in metrics
    ]


def _operator_rows(verification: Verification) -> list[tuple[str, str]]:
    if not verification.layers:
        return []
    steps = max(layer.max_steps for layer in verification.layers)
    text = f"{len(verification.layers)}, at most {steps} steps from their simulated layers"
    return [("operators verified one by one", text)]


def _origin(card: Card) -> list[str]:
    """Where the weights are from, and each stage with its figures."""
    facts = []
    if card.initial_weights:
        facts.append(f"Initial weights: {escape(card.initial_weights)}.")
    if card.dataset:
        own = " (the owner's images)" if card.dataset in _OWN_DATA else ""
        facts.append(f"Data: {escape(card.dataset)}{own}.")
    if card.published:
        facts.append(f"Published for the initial weights: {escape(card.published)}.")
    blocks = [" ".join(facts)] if facts else []
    if card.stages:
        blocks.append(_stage_table(card.stages, card.activation == SIGMOID))
    else:
        blocks.append("There is no record of how the model was trained.")
    lines = [*card.notes, *(str(step) for step in card.quantization_steps)]
    if card.keep_float:
        lines.append(f"computed in float: {', '.join(card.keep_float)}")
    if len(lines) > _SHOWN_NOTES:
        lines[_SHOWN_NOTES:] = [f"{len(lines) - _SHOWN_NOTES} more in card.json"]
    return [*blocks, _bullets([escape(line) for line in lines])] if lines else blocks


def _stage_table(stages: Sequence[StageFigures], multiple: bool) -> str:
    names = ("macs", "params", "nonzero_weights", "bytes")
    headers = ["stage", "accuracy %" if multiple else "top-1 %", "loss"]
    headers += ["MACs", "parameters", "non-zero weights", "bytes"]
    rows = []
    for stage in stages:
        top1, loss = (stage.metrics.get(name) for name in ("top1", "loss"))
        counts = (getattr(stage, name) for name in names)
        rows.append(
            [
                escape(stage.name),
                "" if top1 is None else f"{top1:.2f}",
                "" if loss is None else f"{loss:.4f}",
                *("" if count is None else f"{count:,}" for count in counts),
            ]
        )
    return _table(headers, rows)


def _limits(card: Card, verification: Verification) -> list[str]:
    height, width, _ = card.input_shape
    stage = card.file_stage
    outside = "" if card.preprocessing.crop == "none" else "outside of that part, or "
    lines = [
        f"An image is reduced to {height} x {width} pixels of {card.preprocessing.part}: what is "
        f"{outside}too small at this size is not seen.",
    ]
    if card.outputs != "features" and card.activation != SIGMOID:
        lines.append("Every image gets one of the classes, an image of none of them too.")
    if stage is not None and stage.images:
        lines.append(
            f"Accuracy was measured on {stage.images:,} test images of the same data as the "
            "training images; other cameras, light and places may give another."
        )
    else:
        lines.append("The accuracy of this file was not measured, only that of its model.")
    lines.append(
        f"The file was compared with its model on {verification.images:,} images, on the CPU of "
        f"one {escape(platform.machine())} machine under XNNPACK."
    )
    lines.append(
        "Not tested: GPU, NPU and other accelerators, time and energy on a device, damaged or "
        "manipulated images, differences of accuracy between groups of people or places."
    )
    if card.assumed:
        lines.append(f"Assumed, not known, of the preprocessing: {', '.join(card.assumed)}.")
    if not card.license:
        lines.append("No license was chosen for the weights: set `license` above before sharing.")
    return lines


_FILTERS = {
    BILINEAR: "bilinear, half-pixel centers, no antialiasing",
    ANTIALIASED_BILINEAR: "bilinear with antialiasing, as Pillow does",
    ANTIALIASED_BICUBIC: "bicubic with antialiasing, as Pillow does",
}


def _preprocessing(card: Card) -> list[str]:
    height, width, channels = card.input_shape
    preprocessing, source = card.preprocessing, card.input
    assert source is not None
    steps = ["Turn the image upright by the orientation in its EXIF data."]
    steps = steps if preprocessing.exif else []
    steps.append(f"Decode it to {'gray values' if channels == 1 else 'RGB'}, 0 to 255.")
    how = _FILTERS[preprocessing.interpolation]
    if preprocessing.crop == "center":
        high, wide = (int(side / preprocessing.crop_fraction) for side in (height, width))
        sides = f"to {high} pixels" if high == wide else f"to cover {high} rows of {wide} pixels"
        steps.append(f"Resize its shorter side {sides}, the other in proportion: {how}.")
        steps.append(f"Keep the {height} rows of {width} pixels in the center.")
    else:
        if preprocessing.crop != "none":
            steps.append(f"Keep {preprocessing.part}.")
        steps.append(f"Resize it to {height} rows of {width} pixels: {how}.")
    mean, std = (_numbers(values) for values in (preprocessing.mean, preprocessing.std))
    normal = f"`(pixel - {mean}) / {std}`"
    if not source.scale:
        return [*steps, f"Normalize: {normal}."]
    offset = programs.pixel_offset(preprocessing, source)
    if offset is not None:
        value = f"pixel - {offset}" if offset else "pixel"
        return [*steps, f"Quantize: {source.dtype} `{value}`, which stands for {normal}."]
    quantized = f"`round(x / {source.scale!r}) + {source.zero_point}`"
    return [*steps, f"Normalize: x = {normal}; quantize: {source.dtype} {quantized}."]


def _numbers(values: tuple[float, ...]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:g}"
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _meaning(card: Card) -> str:
    """How outputs are read."""
    sink = card.output
    assert sink is not None
    text = f"The outputs are {card.outputs}."
    if sink.scale:
        sign, zero_point = "-+"[sink.zero_point < 0], abs(sink.zero_point)
        name = {"logits": "logit", "probabilities": "probability"}.get(card.outputs, "feature")
        text = (
            f"An output value stands for the {name} `{sink.scale!r} * (value {sign} {zero_point})`."
        )
    if card.outputs == "logits":
        name = "sigmoid" if card.activation == SIGMOID else "softmax"
        text += f" The {name} of the logits is the probabilities."
    return text


def _describe_io(tensor: TensorType) -> str:
    dtype, scale, zero = tensor.dtype, tensor.scale, tensor.zero_point
    return f"{dtype}, scale {scale:.6g}, zero point {zero}" if scale else dtype
