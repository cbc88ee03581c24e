"""A converted file in memory, verified against its model, until it is written or run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from mobilenet import files, text_tables
from mobilenet.compression.quantization.int8.converter_workarounds import Repair
from mobilenet.configs.card import SIGMOID, Card
from mobilenet.configs.conversion import C_ARRAY, TFLITE
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.export import bundle, c_array
from mobilenet.export.verification import operator_parity
from mobilenet.export.verification.verify import Verification
from mobilenet.runtime.classifier import MODEL, Classifier

FLATBUFFER = ".tflite"


@dataclasses.dataclass(frozen=True, eq=False)
class ConvertedFile:
    """A flatbuffer that equals its model.

    Attributes:
        content: its bytes.
        verification: its comparison with the model.
        card: of the file.
        repairs: layers that were changed to avoid faults of the converter.
        notes: how the file was made, where that needs a remark.
        figures: of the model that was converted, as in `model_figures`.
    """

    content: bytes = dataclasses.field(repr=False)
    verification: Verification
    card: Card
    repairs: tuple[Repair, ...]
    notes: tuple[str, ...]
    figures: Mapping[str, int]

    def save(
        self, path: str | os.PathLike[str], overwrite: bool = False, format: str = TFLITE
    ) -> Path:
        """Writes the file, or a folder with its card, labels and a README, whole or not at all.

        Args:
            path: a name that ends in `.tflite` is the file, which holds its labels and the
                normalization of its input as metadata; any other is the folder, as the converter
                writes it.
            overwrite: replace an earlier file or folder.
            format: `tflite`; `c_array` writes C++ sources for TensorFlow Lite Micro into the
                folder, too: the bytes as an array, the operators of its resolver, the arena.

        Returns:
            The path of the `.tflite` file.

        Raises:
            UsageError: there is a file or a folder and `overwrite` is false, or it cannot be
                written; or TensorFlow Lite Micro lacks what the file has.
        """
        is_array = one_of("format", format, (TFLITE, C_ARRAY)) == C_ARRAY
        if Path(path).suffix == FLATBUFFER:
            if is_array:
                raise UsageError("path", str(path), f"a folder for the sources of {C_ARRAY}")
            files.check_file_target(path, overwrite=overwrite)
            files.write_bytes(path, self.content)
            return Path(path)
        files.check_target(path, replaces=(MODEL, "an export"), overwrite=overwrite)
        texts = c_array.write_sources(self.content, self.card).texts if is_array else {}
        return bundle.write_export(path, self.content, self.card, self.verification, texts)

    def classifier(self, threads: int | None = None) -> Classifier:
        """A classifier that runs the file.

        Args:
            threads: images at once; by default one per core.
        """
        return Classifier(self.content, threads, card=self.card)

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table about the file: what, value."""
        verified = self.verification
        floats = self.card.keep_float
        rows: list[tuple[str, object]] = [
            ("contents", verified.contents),
            *(("note", note) for note in self.notes),
            ("bytes", f"{verified.bytes:,} ({verified.gzip_bytes:,} under gzip)"),
            ("input", f"{verified.input.dtype} {list(verified.input_shape)}"),
            (
                "output",
                f"{verified.output.dtype} {list(verified.output_shape)}, {self.card.outputs}"
                f"{' of a sigmoid' if self.card.activation == SIGMOID else ''}",
            ),
            *((("layers in float", shorten(floats)),) if floats else ()),
            ("float tensors inside", verified.float_tensors),
            ("delegate partitions", verified.partitions),
            (f"same {self.card.decided} as the model", verified.same_decision),
            ("output difference", verified.output_difference),
            ("channels repaired", sum(repair.channels for repair in self.repairs)),
        ]
        if verified.layers:
            steps = max(layer.max_steps for layer in verified.layers)
            rows.append(
                ("operators verified", f"{len(verified.layers)}, {steps} steps apart at most")
            )
        return rows

    def __str__(self) -> str:
        warnings = [line for text in self.verification.warnings for line in text_tables.wrap(text)]
        return "\n".join([text_tables.table(["what", "value"], self.summary()), *warnings])

    def noisiest_layers(self, count: int) -> list[tuple[str, str, str, str, str]]:
        """The layers that add most noise: name, operator, dB before and after, likeliest cause."""

        def decibels(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f}"

        return [
            (
                layer.layer,
                layer.operator,
                decibels(layer.input_signal_to_noise),
                decibels(layer.signal_to_noise),
                layer.diagnosis,
            )
            for layer in operator_parity.noisiest(self.verification.layers, count)
        ]
