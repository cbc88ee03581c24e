"""Programs that classify an image with a file: Python, and C++ and Kotlin for LiteRT, each with
the file's own shape, normalization, scales and zero points.
"""

from __future__ import annotations

from mobilenet.configs.card import SIGMOID, Card, TensorType
from mobilenet.configs.dataset import ANTIALIASED_BICUBIC, BILINEAR, Preprocessing
from mobilenet.export import tflite_metadata
from mobilenet.runtime.classifier import LABELS, MODEL

KOTLIN_PACKAGE = "com.google.ai.edge.litert:litert:1.4.0"
_INT8_MEAN = 128.0  # of an int8 file: quantized value = pixel - 128
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
_CPP_TYPES = {
    "int8": "std::int8_t",
    "uint8": "std::uint8_t",
    "int16": "std::int16_t",
    "float32": "float",
}
_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "float32": 4}


def python(card: Card, batch: int = 1, outputs: int | None = None) -> str:
    """Python that classifies `photo.jpg`: crop, half-pixel resize, quantize, top-1.

    Args:
        card: of the file.
        batch: images a call.
        outputs: of the file, where they are those of a sigmoid: the program prints probabilities.
    """
    height, width, channels = card.input_shape
    source, sink = _io(card)
    name, images = card.outputs, tflite_metadata.IMAGES
    is_turned, opened = card.preprocessing.exif, 'Image.open("photo.jpg")'
    if is_turned:
        opened = f"ImageOps.exif_transpose({opened})"
    repeated = f".repeat({batch}, axis=0)" if batch > 1 else ""
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "from PIL import Image, ImageOps" if is_turned else "from PIL import Image",
        "",
        f'image = {opened}.convert("{"L" if channels == 1 else "RGB"}")',
        *_resize(card.preprocessing, height, width),
        f"batch = {_input_expression(card.preprocessing, source)}[None]{repeated}",
        f'model = Interpreter("{MODEL}")',
        f'{name} = model.get_signature_runner()({images}=batch)["{name}"][0]',
    ]
    if sink.scale:
        lines.append(f"{name} = ({name}.astype(np.float32) - {sink.zero_point}) * {sink.scale!r}")
    lines.append(f'labels = open("{LABELS}", encoding="utf-8").read().splitlines()')
    if card.activation != SIGMOID:
        return "\n".join([*lines, f"print(labels[{name}.argmax()])"])
    if card.outputs == "logits":
        lines.append(f"probabilities = 1 / (1 + np.exp(-{name}))")
    if outputs == 1:
        lines.append("probabilities = np.append(1 - probabilities, probabilities)")
    lines.append('rows = [f"{p:.2%} {label}" for p, label in zip(probabilities, labels)]')
    return "\n".join([*lines, 'print("\\n".join(rows))'])


def _io(card: Card) -> tuple[TensorType, TensorType]:
    assert card.input is not None
    assert card.output is not None
    return card.input, card.output


def _input_expression(preprocessing: Preprocessing, source: TensorType) -> str:
    """The expression that turns `bands` into the file's input."""
    pixels = "np.stack(bands, axis=-1)"
    normal = f"({pixels} - {_literal(preprocessing.mean)}) / {_literal(preprocessing.std)}"
    if not source.scale:
        return f"({normal}).astype(np.float32)"
    offset = pixel_offset(preprocessing, source)
    if offset is not None:
        shift = f" - {offset}" if offset else ""
        return f"(np.round({pixels}){shift}).astype(np.{source.dtype})"
    low, high = _LIMITS[source.dtype]
    values = f"np.round({normal} / {source.scale!r}) + {source.zero_point}"
    return f"np.clip({values}, {low}, {high}).astype(np.{source.dtype})"


def pixel_offset(preprocessing: Preprocessing, source: TensorType) -> int | None:
    """What is subtracted from a pixel to get its quantized value, where that is all.

    Args:
        preprocessing: of the file.
        source: type of its input.
    """
    is_grid = set(preprocessing.mean) == {_INT8_MEAN} and abs(source.scale * 127.5 - 1) < 1e-6
    return 128 - source.zero_point if is_grid else None


def _resize(preprocessing: Preprocessing, height: int, width: int) -> list[str]:
    """Lines that turn `image` into `bands` of the size of the file."""
    is_plain = preprocessing.interpolation == BILINEAR
    if preprocessing.crop == "center":
        lines = _center(preprocessing, height, width)
        box = f"x * w / wide, y * h / high, (x + {width}) * w / wide, (y + {height}) * h / high"
        cut = f"image = image.crop((x, y, x + {width}, y + {height}))"
        resized = "(wide, high)"
    else:
        lines = _crop(preprocessing, min(height, width))
        box, cut, resized = "0, 0, *image.size", "", f"({width}, {height})"
    if is_plain:
        return [
            *lines,
            f"size, box = ({width}, {height}), ({box})",
            "how = size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR",
            'bands = [band.convert("F").transform(*how) for band in image.split()]',
        ]
    how = "BICUBIC" if preprocessing.interpolation == ANTIALIASED_BICUBIC else "BILINEAR"
    lines.append(f"image = image.resize({resized}, Image.Resampling.{how})")
    lines += [cut] if cut else []
    return [*lines, 'bands = [band.convert("F") for band in image.split()]']


def _center(preprocessing: Preprocessing, height: int, width: int) -> list[str]:
    """Lines for the sides of the resized image, and the corner of its center."""
    high, wide = (int(side / preprocessing.crop_fraction) for side in (height, width))
    return [
        "w, h = image.size",
        f"high, wide = ({wide} * h // w, {wide}) if {wide} * h >= {high} * w"
        f" else ({high}, {high} * w // h)",
        f"x, y = round((wide - {width}) / 2), round((high - {height}) / 2)",
    ]


def _crop(preprocessing: Preprocessing, size: int) -> list[str]:
    if preprocessing.crop == "central":
        share = preprocessing.crop_fraction
        return [
            "w, h = image.size",
            f"x, y = int((w - w * {share}) / 2), int((h - h * {share}) / 2)  # {share:.1%}",
            "image = image.crop((x, y, w - x, h - y))",
        ]
    if preprocessing.crop == "square":
        return [
            "w, h = image.size",
            f"side = int({size} / {size + 32} * min(w, h))",
            "x, y = (w - side + 1) // 2, (h - side + 1) // 2",
            "image = image.crop((x, y, x + side, y + side))",
        ]
    return []


def _literal(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"np.array({list(values)})"


def cpp(card: Card, outputs: int) -> str:
    """A C++17 program for LiteRT that classifies the pixels in `pixels.raw`.

    Args:
        card: of the file.
        outputs: of the file.
    """
    height, width, channels = card.input_shape
    source, sink = _io(card)
    uses_scale = pixel_offset(card.preprocessing, source) is None
    constants = [
        f"constexpr int kPixels = {height} * {width} * {channels}, kOutputs = {outputs};",
        *(cpp_constants("kInput", source) if uses_scale else []),
        *cpp_constants("kOutput", sink),
    ]
    value = "output[i]"
    if sink.scale:
        value = f"kOutputScale * ({value} - kOutputZeroPoint)"
    return f"""#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "tflite/interpreter.h"
#include "tflite/interpreter_builder.h"
#include "tflite/kernels/register.h"
#include "tflite/model_builder.h"

{chr(10).join(constants)}

// pixels: {_pixel_order(card)}
std::vector<float> Classify(tflite::Interpreter& interpreter, const std::uint8_t* pixels) {{
  auto* input = interpreter.typed_input_tensor<{_CPP_TYPES[source.dtype]}>(0);
{_indented(_cpp_input(card, source), 2)}
  std::vector<float> {card.outputs}(kOutputs);
  if (interpreter.Invoke() != kTfLiteOk) return {{}};
  const auto* output = interpreter.typed_output_tensor<{_CPP_TYPES[sink.dtype]}>(0);
  for (int i = 0; i < kOutputs; ++i) {card.outputs}[i] = {value};
  return {card.outputs};
}}

int main() {{
  std::vector<std::uint8_t> pixels(kPixels);
  std::FILE* file = std::fopen("pixels.raw", "rb");
  if (!file || std::fread(pixels.data(), 1, kPixels, file) != kPixels) return 1;
  auto model = tflite::FlatBufferModel::BuildFromFile("{MODEL}");
  tflite::ops::builtin::BuiltinOpResolver resolver;
  std::unique_ptr<tflite::Interpreter> interpreter;
  if (!model) return 1;
  tflite::InterpreterBuilder(*model, resolver)(&interpreter);
  if (!interpreter || interpreter->AllocateTensors() != kTfLiteOk) return 1;
  const std::vector<float> {card.outputs} = Classify(*interpreter, pixels.data());
  if ({card.outputs}.empty()) return 1;
{_indented(_cpp_output(card), 2)}
}}"""


def cpp_constants(name: str, tensor: TensorType) -> list[str]:
    """Declarations of the scale and zero point of a quantized tensor in C++."""
    if not tensor.scale:
        return []
    return [
        f"constexpr float {name}Scale = {tensor.scale!r}f;",
        f"constexpr int {name}ZeroPoint = {tensor.zero_point};",
    ]


def _pixel_order(card: Card) -> str:
    height, width, channels = card.input_shape
    kind = "gray values" if channels == 1 else "RGB pixels" if channels == 3 else "pixels"
    return f"{height} rows of {width} {kind}, 0 to 255, cropped and resized as above"


def _cpp_input(card: Card, source: TensorType) -> list[str]:
    kind, channels = _CPP_TYPES[source.dtype], card.input_shape[2]
    offset = pixel_offset(card.preprocessing, source)
    if offset is not None:
        value = f"static_cast<{kind}>(pixels[i] - {offset})" if offset else "pixels[i]"
        return [f"for (int i = 0; i < kPixels; ++i) input[i] = {value};"]
    normal = f"(pixels[i] - kMean[i % {channels}]) / kStd[i % {channels}]"
    lines = [
        f"constexpr float kMean[] = {{{_per_channel(card.preprocessing.mean, channels)}}};",
        f"constexpr float kStd[] = {{{_per_channel(card.preprocessing.std, channels)}}};",
        "for (int i = 0; i < kPixels; ++i) {",
    ]
    if not source.scale:
        return [*lines, f"  input[i] = {normal};", "}"]
    low, high = _LIMITS[source.dtype]
    return [
        *lines,
        f"  const long value = std::lrint({normal} / kInputScale) + kInputZeroPoint;",
        f"  input[i] = static_cast<{kind}>(std::clamp(value, {low}L, {high}L));",
        "}",
    ]


def _per_channel(values: tuple[float, ...], channels: int) -> str:
    listed = values * channels if len(values) == 1 else values
    return ", ".join(f"{float(value)!r}f" for value in listed)


def _cpp_output(card: Card) -> list[str]:
    name = card.outputs
    if card.activation != SIGMOID:
        return [
            f"const auto best = std::max_element({name}.begin(), {name}.end()) - {name}.begin();",
            f'std::printf("%d\\n", static_cast<int>(best));  // line of {LABELS}, the first is 0',
        ]
    probability = "1 / (1 + std::exp(-value))" if name == "logits" else "value"
    return [f'for (const float value : {name}) std::printf("%.6f\\n", {probability});']


def kotlin(card: Card, outputs: int) -> str:
    """A Kotlin function for LiteRT on Android.

    Args:
        card: of the file.
        outputs: of the file.
    """
    height, width, channels = card.input_shape
    source, sink = _io(card)
    size = f"{height} * {width} * {channels}"
    return f"""import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter  // {KOTLIN_PACKAGE}

{_kotlin_constants(card, source, sink)}
/** pixels: {_pixel_order(card)}. */
fun classify(interpreter: Interpreter, pixels: ByteArray): FloatArray {{
    val input = buffer({size} * {_BYTES[source.dtype]})
    for (i in pixels.indices) {{
        val pixel = pixels[i].toInt() and 0xFF
{_indented(_kotlin_input(card, source), 8)}
    }}
    val output = buffer({outputs} * {_BYTES[sink.dtype]})
    interpreter.run(input.rewind(), output)
    output.rewind()
    return FloatArray({outputs}) {{ {_kotlin_output(sink)} }}  // {card.outputs}
}}

private fun buffer(bytes: Int) =
    ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())"""


def _kotlin_constants(card: Card, source: TensorType, sink: TensorType) -> str:
    lines, normalizes = [], pixel_offset(card.preprocessing, source) is None
    for name, tensor, is_used in (("INPUT", source, normalizes), ("OUTPUT", sink, True)):
        if tensor.scale and is_used:
            lines += [
                f"private const val {name}_SCALE = {tensor.scale!r}f",
                f"private const val {name}_ZERO_POINT = {tensor.zero_point}",
            ]
    if normalizes:
        for name in ("mean", "std"):
            values = _per_channel(getattr(card.preprocessing, name), card.input_shape[2])
            lines.append(f"private val {name} = floatArrayOf({values})")
    return "\n".join([*lines, ""]) if lines else ""


_KOTLIN_PUT = {
    "int8": "input.put({}.toByte())",
    "uint8": "input.put({}.toByte())",
    "int16": "input.putShort({}.toShort())",
}
_KOTLIN_GET = {
    "int8": "output.get()",
    "uint8": "(output.get().toInt() and 0xFF)",
    "int16": "output.getShort()",
}


def _kotlin_input(card: Card, source: TensorType) -> list[str]:
    channels, offset = card.input_shape[2], pixel_offset(card.preprocessing, source)
    if offset is not None:
        value = f"(pixel - {offset})" if offset else "pixel"
        return [_KOTLIN_PUT[source.dtype].format(value)]
    normal = f"(pixel - mean[i % {channels}]) / std[i % {channels}]"
    if not source.scale:
        return [f"input.putFloat({normal})"]
    low, high = _LIMITS[source.dtype]
    value = f"Math.rint(({normal} / INPUT_SCALE).toDouble()).toInt() + INPUT_ZERO_POINT"
    put = _KOTLIN_PUT[source.dtype].format(f"value.coerceIn({low}, {high})")
    return [f"val value = {value}", put]


def _kotlin_output(sink: TensorType) -> str:
    if not sink.scale:
        return "output.getFloat()"
    return f"OUTPUT_SCALE * ({_KOTLIN_GET[sink.dtype]} - OUTPUT_ZERO_POINT)"


def _indented(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)
