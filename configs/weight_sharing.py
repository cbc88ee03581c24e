"""Kernels of few distinct values: how many bits by kind of layer, and how the values are found."""

from __future__ import annotations

import dataclasses

from mobilenet.configs.base import Config, flag, number
from mobilenet.errors import UsageError, one_of

_BITS = (2, 8)
CELLS = ("kmeans", "even")
_SIGNED = 3  # bits of a kernel that spends one on the sign and has a level besides zero


@dataclasses.dataclass(frozen=True)
class FewValues(Config):
    """What the ways to give a kernel few values share. Each ends with a float model.

    Attributes:
        depthwise, pointwise, dense: bits of k x k kernels (the stem too), of 1x1 kernels, and of
            the classifier; `None` takes those of the kind in front.
        momentum: of batch-norm statistics in this stage; `None` leaves it. A smaller one lets them
            follow the coarser weights in fewer steps.
    """

    depthwise: int = flag(8, "bits of k x k kernels, 2 to 8", "num_bits_depthwise")
    pointwise: int | None = flag(
        None, "bits of 1x1 kernels; those of k x k when left out", "num_bits_pointwise"
    )
    dense: int | None = flag(
        None, "bits of the classifier; those of 1x1 when left out", "num_bits_dense"
    )
    momentum: float | None = flag(
        None, "momentum of batch-norm statistics in that stage", "batch_norm_momentum"
    )

    def __post_init__(self) -> None:
        for name in ("depthwise", "pointwise", "dense"):
            bits = getattr(self, name)
            if bits is not None:
                number(f"--num_bits_{name}", bits, least=_BITS[0], most=_BITS[1], integer=True)
        if self.momentum is not None:
            number("--batch_norm_momentum", self.momentum, least=0, most=1)

    def bits(self, kind: str) -> int:
        """Bits of a kind: `depthwise`, `pointwise` or `dense`."""
        pointwise = self.depthwise if self.pointwise is None else self.pointwise
        dense = pointwise if self.dense is None else self.dense
        return {"depthwise": self.depthwise, "pointwise": pointwise, "dense": dense}[kind]


@dataclasses.dataclass(frozen=True)
class LinearQuantization(FewValues):
    """Evenly spaced values between two ends that train, by tf.quantization's fake quantization.

    1x1 kernels and the classifier spend a bit on the sign; what is zero there stays zero.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("pointwise", "dense"):
            if self.bits(kind) < _SIGNED:
                raise UsageError(
                    f"--num_bits_{kind}",
                    self.bits(kind),
                    f"at least {_SIGNED}, one of which is the sign",
                    "--quantization codebook works with 2",
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
        restarts: starts of k-means, of which the best is kept.
    """

    cells: str = flag("kmeans", "clusters of a codebook: " + " or ".join(CELLS), "codebook_cells")
    restarts: int = flag(10, "starts of k-means, of which the best is kept", "kmeans_restarts")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("--codebook_cells", self.cells, CELLS)
        number("--kmeans_restarts", self.restarts, least=1, integer=True)


@dataclasses.dataclass(frozen=True)
class TfmotClustering(FewValues):
    """tfmot's `cluster_weights`: 2^bits values, weights change clusters while all of them train.

    It clusters no depthwise kernel and does not train under mixed precision.
    """
