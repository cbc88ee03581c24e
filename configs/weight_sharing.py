"""Weight sharing: kernels of few distinct values, with a number of bits for each kind of layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from mobilenet.configs.base import Config, flag
from mobilenet.errors import UsageError

_BITS: dict[str, Any] = {"least": 2, "most": 8, "integer": True}
CELLS = ("kmeans", "even")
_SIGNED = 3  # bits of a kernel that spends one on the sign and has a level besides zero


@dataclasses.dataclass(frozen=True)
class FewValues(Config):
    """What the methods of weight sharing have in common. Each ends with a float model.

    Attributes:
        depthwise, pointwise, dense: bits of k x k kernels (the stem too), of 1x1 kernels, and of
            the classifier; `None` takes those of the kind before it.
        momentum: of batch-norm statistics in this stage; `None` leaves it. A smaller one lets them
            follow the coarser weights in fewer steps.
    """

    depthwise: int = flag(8, "bits of k x k kernels, 2 to 8", "num_bits_depthwise", **_BITS)
    pointwise: int | None = flag(
        None, "bits of 1x1 kernels; those of k x k when left out", "num_bits_pointwise", **_BITS
    )
    dense: int | None = flag(
        None, "bits of the classifier; those of 1x1 when left out", "num_bits_dense", **_BITS
    )
    momentum: float | None = flag(
        None,
        "momentum of batch-norm statistics in that stage",
        "batch_norm_momentum",
        least=0,
        most=1,
    )

    def bits(self, kind: str) -> int:
        """Bits of a kind: `depthwise`, `pointwise` or `dense`."""
        pointwise = self.depthwise if self.pointwise is None else self.pointwise
        dense = pointwise if self.dense is None else self.dense
        return {"depthwise": self.depthwise, "pointwise": pointwise, "dense": dense}[kind]


@dataclasses.dataclass(frozen=True)
class LinearQuantization(FewValues):
    """Evenly spaced values between two trained limits, by tf.quantization's fake quantization.

    1x1 kernels and the classifier spend a bit on the sign; what is zero there stays zero.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("pointwise", "dense"):
            if self.bits(kind) < _SIGNED:
                raise UsageError(
                    kind,
                    self.bits(kind),
                    f"at least {_SIGNED}, one of which is the sign",
                    "`quantization=codebook` works with 2",
                )


@dataclasses.dataclass(frozen=True)
class CodebookQuantization(FewValues):
    """2^bits - 1 values that train, one for each cluster of the weights that are not zero; zero
    stays.

    Attributes:
        cells: what a cluster is. `kmeans`: of least squared error. `even`: cells of one width from
            the least weight to the largest, each with its mean (the linear initialization of Han
            et al. 2016, arXiv:1510.00149, without its k-means). Small weights, of which there are
            most, then share values, so that an entropy coder needs fewer bits for as many values.
        restarts: starts of k-means, the best of which is used.
    """

    cells: str = flag(
        "kmeans", "clusters of a codebook: " + " or ".join(CELLS), "codebook_cells", choices=CELLS
    )
    restarts: int = flag(
        10,
        "starts of k-means, the best of which is used",
        "kmeans_restarts",
        least=1,
        integer=True,
    )


@dataclasses.dataclass(frozen=True)
class TfmotClustering(FewValues):
    """tfmot's `cluster_weights`: 2^bits values, weights change clusters while all of them train.

    It clusters no depthwise kernel and does not train under mixed precision.
    """
