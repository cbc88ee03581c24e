"""How a data set is written again as records of small JPEGs."""

from __future__ import annotations

import dataclasses

from .base import MAX_SIDE, Config, flag


@dataclasses.dataclass(frozen=True)
class ReencodingConfig(Config):
    """The choices of `mobilenet.data.reencode`.

    Attributes:
        short_side: longer short sides are reduced to it; images are never enlarged. 256 is what a
            crop of 224 for evaluation takes (`square`), and what ImageNet is usually reduced to.
        quality: of JPEG, as libjpeg counts. 90 changes pixels by 3.7 of 255 (root mean square) and
            takes 26 kB for a detailed photo of 341x256; 95 by 2.7 in 37 kB, 75 by 6.0 in 16 kB.
        shard_images: images a file: of 26 kB each 27 MB, which is what a kill can lose.
        threads: images that are re-encoded at a time; the number of cores when left out.
    """

    short_side: int = flag(
        256, "reduce longer short sides to so many pixels", least=1, most=MAX_SIDE, integer=True
    )
    quality: int = flag(90, "of the JPEGs, 1 to 100", least=1, most=100, integer=True)
    shard_images: int = flag(1024, "images a file", least=1, integer=True)
    threads: int | None = flag(
        None,
        "images that are re-encoded at a time; the number of cores when left out",
        least=1,
        most=1024,
        integer=True,
    )
