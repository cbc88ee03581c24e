"""From a saved model to the folder of its frozen graph, verified on held-out images."""

from __future__ import annotations

import os
from collections.abc import Callable

from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import arrays
from mobilenet.export import frozen_graph, number_formats
from mobilenet.export import pipeline as export_pipeline


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    form: ConversionConfig,
    batch: int | None,
    images: int,
    data_of: Callable[[str], DatasetConfig],
) -> list[tuple[str, object]]:
    """Freezes a model and verifies the file before it gets its name.

    Of a quantized folder the float model is frozen, without its ranges.

    Args:
        source: a model folder or another saved model.
        target: the folder that is written.
        form: size and head.
        batch: images a call; `None` leaves it open.
        images: how many held-out images it is verified on.
        data_of: gives the data set, from the name of the one that the model was trained on.

    Returns:
        What a person wants to know of the file, a row each.

    Raises:
        VerificationError: the file answers otherwise than the model; nothing is written.
        UsageError: the model cannot be read or frozen, or the target not written.
    """
    frozen_graph.check_target(target)
    opened = number_formats.open_source(source)
    model, card = opened.net.model, opened.net.card
    shape = form.input_shape(model.input_shape[1:])
    data = data_of(card.dataset)
    pictures = arrays.load_images(
        data, "test", shape, export_pipeline.preprocessing_of(card, data), images
    )
    content = frozen_graph.serialise(model, batch, shape, form.softmax)
    card = card.replace(outputs=export_pipeline.outputs_of(card, form))
    net = frozen_graph.reference(model, form.softmax)
    path, apart = frozen_graph.write(target, content, card, net, pictures)
    notes = [("made", "the float model; its ranges are left out")] if opened.quantized else []
    classes = net.output_shape[-1]
    return [
        ("file", path),
        *notes,
        ("bytes", f"{len(content):,}"),
        ("input", f"{frozen_graph.INPUT}:0, float32 {[batch or -1, *shape]}"),
        ("output", f"{frozen_graph.OUTPUT}:0, float32 {[batch or -1, classes]}, {card.outputs}"),
        ("outputs apart", f"{apart:.1e} of the largest, on {len(pictures)} images"),
    ]
