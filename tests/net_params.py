"""The seven names as test parameters: two that cover every kind of layer, the rest as slow."""

from __future__ import annotations

import pytest

from mobilenet.configs import archs

QUICK = ("mobilenet_v1", "mobilenet_v3_small")
EACH_MODEL = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in archs.ALL
]
