"""The functions of the public API: each takes models and arrays in memory, or paths, and calls the
package that does the work.

Nothing heavy is imported before a function needs it: `import mobilenet` does not wait for
TensorFlow.
"""

from __future__ import annotations


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that `build` knows.

    Args:
        pattern: a shell pattern; all names by default.

    Example:
        >>> list_models("*v3*minimalistic")
        ['mobilenet_v3_large_minimalistic', 'mobilenet_v3_small_minimalistic']
    """
    from mobilenet.configs import archs

    return archs.names(pattern)


def list_weights(pattern: str = "*") -> list[str]:
    """Names of the released weights whose published figures the library knows.

    `python -m mobilenet.tf1_loader --list` shows their accuracy, size and address. V1 was released
    twice under the same names, which are listed once.

    Args:
        pattern: a shell pattern; all names by default.

    Example:
        >>> list_weights("mobilenet_v2_1.[34]*")
        ['mobilenet_v2_1.4_224', 'mobilenet_v2_1.3_224']
    """
    from mobilenet.configs import released_models

    return released_models.names(pattern)
