"""MobileNets from a table of blocks to a small, fast, proved int8 flatbuffer.

Everything here is loaded when it is first used: `import mobilenet`, the configs and `--help` never
wait for TensorFlow. `mobilenet.build(config)` is the way in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenet import (
        compression,
        configs,
        data,
        export,
        runtime,
        surgery,
        tf1_loader,
        training,
    )
    from mobilenet.configs.archs import names as list_models
    from mobilenet.errors import UsageError
    from mobilenet.models.builder import (
        build,
        mobilenet_edgetpu,
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v3,
        mobilenet_v3_large,
        mobilenet_v3_small,
    )
    from mobilenet.models.counting import count, nonzero_weights
    from mobilenet.models.end_points import end_points
    from mobilenet.models.folder import load as load_model
    from mobilenet.models.folder import save as save_model

    __version__: str

_BUILDER = "mobilenet.models.builder"
_HOMES = {
    "UsageError": ("mobilenet.errors", "UsageError"),
    "build": (_BUILDER, "build"),
    "count": ("mobilenet.models.counting", "count"),
    "end_points": ("mobilenet.models.end_points", "end_points"),
    "list_models": ("mobilenet.configs.archs", "names"),
    "load_model": ("mobilenet.models.folder", "load"),
    "mobilenet_edgetpu": (_BUILDER, "mobilenet_edgetpu"),
    "mobilenet_v1": (_BUILDER, "mobilenet_v1"),
    "mobilenet_v2": (_BUILDER, "mobilenet_v2"),
    "mobilenet_v3": (_BUILDER, "mobilenet_v3"),
    "mobilenet_v3_large": (_BUILDER, "mobilenet_v3_large"),
    "mobilenet_v3_small": (_BUILDER, "mobilenet_v3_small"),
    "nonzero_weights": ("mobilenet.models.counting", "nonzero_weights"),
    "save_model": ("mobilenet.models.folder", "save"),
}
_ROOMS = (
    *("compression", "configs", "data", "export", "runtime"),
    *("surgery", "tf1_loader", "training"),
)

__all__ = [
    "UsageError",
    "__version__",
    "build",
    "compression",
    "configs",
    "count",
    "data",
    "end_points",
    "export",
    "list_models",
    "load_model",
    "mobilenet_edgetpu",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "nonzero_weights",
    "runtime",
    "save_model",
    "surgery",
    "tf1_loader",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home, attribute = _HOMES[name]
        value = getattr(importlib.import_module(home), attribute)
    elif name in _ROOMS:
        value = importlib.import_module(f"mobilenet.{name}")
    elif name == "__version__":
        from importlib import metadata

        value = metadata.version("mobilenet")
    else:
        raise AttributeError(f"module 'mobilenet' has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
