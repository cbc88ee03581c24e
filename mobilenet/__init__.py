"""MobileNets from a table of blocks to a small, fast, verified int8 flatbuffer.

Everything here is loaded when it is first used: `import mobilenet`, the configs and `--help` never
wait for TensorFlow. `mobilenet.build(config)` is the way in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobilenet.lazy import attributes

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
    from mobilenet.loading import load_model
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
    from mobilenet.models.saving import save as save_model

    __version__: str

_BUILDER = "mobilenet.models.builder"
_PACKAGES = (
    *("compression", "configs", "data", "export", "runtime"),
    *("surgery", "tf1_loader", "training"),
)
_SOURCES = {
    "UsageError": "mobilenet.errors",
    "build": _BUILDER,
    "count": "mobilenet.models.counting",
    "end_points": "mobilenet.models.end_points",
    "list_models": "mobilenet.configs.archs:names",
    "load_model": "mobilenet.loading",
    "mobilenet_edgetpu": _BUILDER,
    "mobilenet_v1": _BUILDER,
    "mobilenet_v2": _BUILDER,
    "mobilenet_v3": _BUILDER,
    "mobilenet_v3_large": _BUILDER,
    "mobilenet_v3_small": _BUILDER,
    "nonzero_weights": "mobilenet.models.counting",
    "save_model": "mobilenet.models.saving:save",
    **{name: f"mobilenet.{name}:" for name in _PACKAGES},
}

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


_load = attributes(__name__, _SOURCES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mobilenet")
    return _load(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
