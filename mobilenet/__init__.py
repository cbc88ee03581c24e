"""MobileNets and your own Keras models to small, fast, verified int8 TFLite files.

Everything here is loaded when it is first used: `import mobilenet` does not wait for TensorFlow.
docs/own_models.md shows the functions at work, docs/api.md says what is stable.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet import configs, runtime, surgery, tf1_loader
    from mobilenet.api import (
        build,
        convert,
        evaluate,
        find_learning_rate,
        list_models,
        list_weights,
        pack,
        profile,
        prune,
        quantize,
        quantize_aware,
        save_model,
        sweep,
        thin,
        train,
        unpack,
        verify,
        write_report,
    )
    from mobilenet.errors import UsageError, VerificationError
    from mobilenet.loading import load_model
    from mobilenet.models.counting import count
    from mobilenet.models.end_points import end_points

    __version__: str

if importlib.util.find_spec("mobilenet.configs") is None:
    raise ImportError(
        "mobilenet.configs was not found, as this mobilenet/ is the folder of a checkout and not"
        " the installed package: pip install -c constraints.txt -e . in the checkout, or run from"
        " another folder"
    )

_FUNCTIONS = (
    *("build", "convert", "evaluate", "find_learning_rate", "list_models", "list_weights"),
    *("pack", "profile", "prune", "quantize", "quantize_aware", "save_model", "sweep", "thin"),
    *("train", "unpack", "verify", "write_report"),
)
_ERRORS = ("UsageError", "VerificationError")
_PACKAGES = ("configs", "runtime", "surgery", "tf1_loader")
_SOURCES = {
    **dict.fromkeys(_FUNCTIONS, "mobilenet.api"),
    **dict.fromkeys(_ERRORS, "mobilenet.errors"),
    "count": "mobilenet.models.counting",
    "end_points": "mobilenet.models.end_points",
    "load_model": "mobilenet.loading",
    **{name: f"mobilenet.{name}:" for name in (*_PACKAGES, "weights")},
}
_BUILDERS = ("edgetpu", "v1", "v2", "v3", "v3_large", "v3_small")
_DEPRECATED = {  # gone in 0.3; source, and what to write instead
    **{
        f"mobilenet_{name}": ("mobilenet.models.builder", f'mobilenet.build("mobilenet_{name}")')
        for name in _BUILDERS
    },
    "nonzero_weights": ("mobilenet.models.counting", "mobilenet.profile(model).nonzero_weights"),
}

__all__ = [
    "UsageError",
    "VerificationError",
    "__version__",
    "build",
    "configs",
    "convert",
    "count",
    "end_points",
    "evaluate",
    "find_learning_rate",
    "list_models",
    "list_weights",
    "load_model",
    "pack",
    "profile",
    "prune",
    "quantize",
    "quantize_aware",
    "runtime",
    "save_model",
    "surgery",
    "sweep",
    "tf1_loader",
    "thin",
    "train",
    "unpack",
    "verify",
    "write_report",
]


_load = attributes(__name__, _SOURCES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mobilenet")
    if name in _DEPRECATED:
        import warnings

        module, replacement = _DEPRECATED[name]
        message = f"mobilenet.{name} goes in version 0.3; write {replacement}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(module), name)
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
