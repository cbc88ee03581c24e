"""What a saved Keras model may contain: known layers, known functions, numbers and names.

The parsed JSON of a model is copied part by part; what is not recognized is refused. Keras gets the
copy and never the file, so that no class, function or module that a file names is looked up unless
it is listed in `allowed`. Compilation settings, assets and build shapes are not copied.
"""

from mobilenet.models.safe_loading.allowed import MAX_ACTIVATION, MAX_LAYERS
from mobilenet.models.safe_loading.building import build
from mobilenet.models.safe_loading.connections import RefusedModel
from mobilenet.models.safe_loading.description import sanitize

__all__ = ["MAX_ACTIVATION", "MAX_LAYERS", "RefusedModel", "build", "sanitize"]
