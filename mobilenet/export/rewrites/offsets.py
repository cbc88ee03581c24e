"""What the rounding of kernels adds to a layer's outputs on average, seen without any data.

Rounded kernels shift each output by their error times the mean of their inputs. Behind ReLU that
mean is far from 0, so the shift, not the noise, is what costs answers (Nagel et al., arXiv
1906.04721). Which photos give the mean matters little: pictures of 1/f noise, whose spectrum is
that of photographs, are enough.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from mobilenet.runtime import interpreter, quantized_io
from mobilenet.tflite import model as tflite_model

Floats = npt.NDArray[np.floating]

PICTURES = 8  # 32 change no figure
_BRIGHTNESS = 115.0, 25.0  # mean of the pictures' means, and its deviation
_CONTRAST = 64.0
# Opponent colors: grey carries most of a photo's contrast, blue to yellow and red to green little.
_COLOURS = np.array([[0.9, 0.9, 0.9], [0.3, 0.0, -0.3], [0.1, -0.2, 0.1]])


def noise_pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Floats:
    """Colored noise with the spectrum, brightness and contrast of photos.

    Args:
        count: how many.
        shape: `[height, width, channels]` of each; 1 or 3 channels.
        seed: of the noise.

    Returns:
        Pixels 0 to 255, `[count, height, width, channels]`.
    """
    noise = np.random.default_rng(seed)
    height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    fall = 1 / np.maximum(frequency, 1 / max(height, width))
    spectrum = np.fft.fft2(noise.normal(size=(count, 3, height, width))) * fall
    planes = np.fft.ifft2(spectrum).real
    planes -= planes.mean(axis=(2, 3), keepdims=True)
    planes *= _CONTRAST / planes.std(axis=(1, 2, 3), keepdims=True)
    colours = _COLOURS if channels == 3 else _COLOURS[:, :1]
    brightness = noise.normal(*_BRIGHTNESS, (count, 1, 1, 1))
    pixels: Floats = np.clip(np.moveaxis(planes, 1, -1) @ colours + brightness, 0, 255)
    return pixels


def input_means(
    content: tflite_model.Flatbuffer, pictures: Floats, operators: Collection[str]
) -> dict[int, Floats]:
    """Mean by channel of what operators take, over pictures and places.

    Args:
        content: a float file.
        pictures: `[images, height, width, channels]`, preprocessed as the file takes them.
        operators: names of those whose first input is looked at.

    Returns:
        `[channels]` by index of the input tensor.
    """
    runner = interpreter.make(content, keep_tensors=True)
    wanted = sorted({op.inputs[0] for op in content.operators if op.name in operators})
    sums = {index: np.zeros(content.tensors[index].shape[-1]) for index in wanted}
    for count in quantized_io.blocks(runner, pictures):
        for index in wanted:
            values = runner.get_tensor(index)[:count].astype(np.float64)
            sums[index] += values.reshape(count, -1, values.shape[-1]).mean(axis=1).sum(axis=0)
    return {index: total / len(pictures) for index, total in sums.items()}
