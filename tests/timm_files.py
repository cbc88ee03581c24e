"""Small state dicts as timm writes them, with names and shapes written down here."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

V1_BLOCKS = {  # MobileNetV1 0.25: outputs of each block, by stage
    0: (16,),
    1: (32, 32),
    2: (64, 64),
    3: (128,) * 6,
    4: (256, 256),
}


def v1_state(classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """The state dict of `mobilenetv1_100` at width 0.25, random and well scaled."""
    random = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def conv(name: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        shape = (outputs, inputs, side, side)
        scale = np.sqrt(2 / (inputs * side * side))
        state[f"{name}.weight"] = random.normal(0, scale, shape).astype(np.float32)
        state[f"{norm}.weight"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
        state[f"{norm}.bias"] = random.normal(0, 0.3, outputs).astype(np.float32)
        state[f"{norm}.running_mean"] = random.normal(0, 0.3, outputs).astype(np.float32)
        state[f"{norm}.running_var"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
        state[f"{norm}.num_batches_tracked"] = np.array(7, np.int64)

    conv("conv_stem", "bn1", 8, 3, 3)
    inputs = 8
    for stage, widths in V1_BLOCKS.items():
        for number, outputs in enumerate(widths):
            block = f"blocks.{stage}.{number}"
            conv(f"{block}.conv_dw", f"{block}.bn1", inputs, 1, 3)
            conv(f"{block}.conv_pw", f"{block}.bn2", outputs, inputs, 1)
            inputs = outputs
    if classes:
        state["classifier.weight"] = random.normal(0, 0.1, (classes, inputs)).astype(np.float32)
        state["classifier.bias"] = random.normal(0, 0.1, classes).astype(np.float32)
    return state


def hub_config(**changes: Any) -> dict[str, Any]:
    """`config.json` of a MobileNetV1 as timm's hub has it, with other values."""
    values = {
        "tag": "mine",
        "input_size": [3, 96, 128],
        "interpolation": "bilinear",
        "crop_pct": 0.92,
        "crop_mode": "center",
        "mean": [0.5, 0.25, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    return {"architecture": "mobilenetv1_100", "pretrained_cfg": {**values, **changes}}


def write(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    """A safetensors file."""
    save_file(dict(state), path)
    return path


def raw(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> Any:
    """A tensor in a header."""
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
