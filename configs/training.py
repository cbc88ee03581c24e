"""How one stage trains: epochs, optimizer and learning rate."""

from __future__ import annotations

import dataclasses
import math

from mobilenet.errors import UsageError

from .base import MAX_BATCH, Config, flag

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw", "lion", "lamb")
SCHEDULERS = ("exponential", "stepwise", "cosine", "constant")
BEST_METRICS = ("top1", "top5", "loss", "auc", "f1")
NO_CLASS_WEIGHTS, BALANCED = "none", "balanced"
NO_FREEZE, BACKBONE, STRIDE = "none", "backbone", "stride_"


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How one stage trains. Epochs may be fractions where they measure a schedule.

    Attributes:
        lr: peak learning rate of a step, whatever the batch size; it is never rescaled. With
            `warmup_epochs` the highest rate may be a little below it, as the schedule counts from
            the start of the stage.
        lr_decay_rate: factor every `lr_decay_epochs` (exponential, in steps of whole
            periods), or at each of `lr_boundaries` (stepwise).
        warmup_epochs: the rate climbs from 0 to the schedule's value over these.
        op_decay_rate: rho of rmsprop.
        op_epsilon: epsilon of rmsprop and adam; 0.002 is the MobileNetV3 recipe's.
        ma_decay_rate: decay of the moving average of the weights, which then is what is evaluated
            and saved; 0 is off. Early on it is lowered to (1 + step) / (10 + step).
        batch_size: images at a time on a replica; with `accumulation_steps` several of these make
            one step.
        accumulation_steps: batches whose mean gradient makes one update: batches of 32 with 4 are
            steps of 128 images in the memory of 32. Batch norms see 32 images.
        clip_norm: longer gradients of all weights together are scaled to this norm; 0 is off.
        class_weights: of the loss of an image with its label, not with a teacher: `balanced` gives
            all classes the same share, images / (classes * images of the class); or weights by
            name, as in `cat=2,dog=0.5`.
        mixup: alpha of mixup (arXiv 1710.09412): batches are blended with themselves in reversed
            order, image and label, by a share of Beta(alpha, alpha); 0 is off, 0.1 to 0.8 are
            usual.
        cutmix: alpha of CutMix (arXiv 1905.04899): a rectangle comes from the other image; 0 is
            off, 1 is usual. With both, one of them is drawn for each batch.
        random_erasing: probability that a rectangle of an image is noise (arXiv 1708.04896).
        decoupled_weight_decay: share of each kernel that is subtracted at each step, times the
            learning rate (arXiv 1711.05101); biases and the gains and offsets of norms do not
            decay. `lamb` has it inside of its norm. The model's own `weight_decay` is an L2 in the
            loss, which optimizers with moments scale: with both, kernels decay twice.
        layer_decay: factor on the learning rate from each block to the one before it: 0.8 moves
            early layers less than late ones; 1 is off.
        drop_path_rate: stochastic depth (arXiv 1603.09382): each image leaves out the branch of
            the last residual sum with this probability, of the n-th of L sums with n / L of it; 0
            is off. Branches that stay are scaled by 1 / (1 - probability). The model and its files
            have no layer of it.
        keep_best: the stage ends with the (averaged) weights of the epoch of the best validation
            metric, the lower loss deciding between equals; only epochs after which its method has
            reached its target count.
        best_metric: of the validation images, which selects the best epoch; `None` is top-1, of
            several labels an image the AUC. `auc` and `f1` (means over the labels) are those of a
            sigmoid.
        early_stopping: the stage ends after so many epochs without a better one, and with the
            weights of the best; 0 trains all epochs. The learning rate follows the schedule of all
            `epochs`.
        freeze: layers that the optimizer does not move, and whose batch norms run in inference
            mode: `backbone` is every layer but the classifier; `stride_8` every layer up to the
            last map of that stride (`mobilenet.end_points`); else every layer up to and including
            the one of that name.
        head_epochs: at first so many of the epochs train the classifier alone, at the rate `lr`, as
            if the backbone were frozen. Then the optimizer starts anew, and the schedule runs over
            the remaining epochs. A classifier that is still random would send large gradients into
            trained layers.
        freeze_batch_norm: all batch norms run in inference mode; statistics, gains and offsets stay
            as they are.
    """

    epochs: int = flag(30, "epochs to train", least=0, integer=True)
    batch_size: int = flag(
        32,
        "images a step, on each replica",
        least=1,
        most=MAX_BATCH,
        integer=True,
        remedy="common values are 32, 64, 96",
    )
    optimizer_name: str = flag("rmsprop", ", ".join(OPTIMIZERS), choices=OPTIMIZERS)
    op_momentum: float = flag(
        0.9,
        "momentum of momentum and rmsprop, beta 1 of adam, adamw, lion and lamb",
        least=0,
        below=1,
    )
    op_decay_rate: float = flag(0.9, "decay of the squared gradients in rmsprop", least=0, below=1)
    op_epsilon: float = flag(0.002, "epsilon of rmsprop, adam, adamw and lamb", above=0)
    learning_scheduler_name: str = flag("exponential", ", ".join(SCHEDULERS), choices=SCHEDULERS)
    lr: float = flag(0.008, "peak learning rate", above=0, remedy="common values are 0.001 to 0.1")
    lr_decay_rate: float = flag(
        0.97, "factor of the exponential and stepwise schedules", above=0, most=1
    )
    lr_decay_epochs: float = flag(2.4, "epochs from one decay to the next", above=0)
    lr_boundaries: tuple[float, ...] = flag((), "epochs at which the stepwise schedule decays")
    warmup_epochs: float = flag(0.0, "epochs over which the rate climbs from 0", least=0)
    label_smoothing: float = flag(
        0.0, "share of the label spread over all classes", least=0, below=1
    )
    ma_decay_rate: float = flag(0.0, "decay of the averaged weights; 0 is off", least=0, below=1)
    decoupled_weight_decay: float = flag(
        0.0, "weight decay of kernels, outside of the loss, times the learning rate", least=0
    )
    accumulation_steps: int = flag(
        1,
        "batches whose mean gradient makes one update",
        least=1,
        most=MAX_BATCH,
        integer=True,
    )
    clip_norm: float = flag(0.0, "greatest norm of the gradients of all weights; 0 is off", least=0)
    layer_decay: float = flag(
        1.0, "factor on the learning rate from each block to the one before it", above=0, most=1
    )
    class_weights: str = flag(
        NO_CLASS_WEIGHTS,
        "of the loss: none, balanced (by the number of images), or as in cat=2,dog=0.5",
    )
    mixup: float = flag(0.0, "alpha of mixup, which blends images and labels; 0 is off", least=0)
    cutmix: float = flag(
        0.0, "alpha of CutMix, which replaces rectangles by another image; 0 is off", least=0
    )
    random_erasing: float = flag(
        0.0, "probability that a rectangle of an image becomes noise", least=0, most=1
    )
    drop_path_rate: float = flag(
        0.0,
        "probability that training leaves out the last residual branch, less for earlier ones",
        least=0,
        below=1,
    )
    keep_best: bool = flag(False, "end with the weights of the best epoch on validation images")
    best_metric: str | None = flag(
        None,
        "what selects the best epoch: " + ", ".join(BEST_METRICS) + "; by default top1, or auc of "
        "several labels an image",
        choices=BEST_METRICS,
    )
    early_stopping: int = flag(
        0,
        "end after so many epochs without a better one, with the best; 0 is off",
        least=0,
        integer=True,
    )
    freeze: str = flag(
        NO_FREEZE,
        "layers that are not trained: none, backbone (all but the classifier), stride_8 (up to the "
        "last map of that stride), or up to a layer of that name",
    )
    head_epochs: int = flag(
        0, "of the epochs, those that train the classifier alone, at first", least=0, integer=True
    )
    freeze_batch_norm: bool = flag(False, "batch norms run in inference mode and are not trained")

    @property
    def images_per_update(self) -> int:
        """Of one replica."""
        return self.batch_size * self.accumulation_steps

    @property
    def augments_batches(self) -> bool:
        """Whether the training step varies its batches."""
        return max(self.mixup, self.cutmix, self.random_erasing) > 0

    @property
    def selects_best(self) -> bool:
        """Whether the stage ends with the weights of its best epoch."""
        return self.keep_best or self.early_stopping > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_freezing()
        if self.class_weights not in (NO_CLASS_WEIGHTS, BALANCED):
            weights_by_class(self.class_weights)
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and self.class_weights != NO_CLASS_WEIGHTS:
                expected = f"{NO_CLASS_WEIGHTS} with `{name}`, whose images are of two classes"
                raise UsageError("class_weights", self.class_weights, expected)
            if getattr(self, name) and self.batch_size == 1:
                expected = "0 with batches of one image"
                raise UsageError(name, getattr(self, name), expected, "raise `batch_size`")
        if self.best_metric is not None and not self.selects_best:
            expected = "a stage that ends with its best epoch"
            raise UsageError("best_metric", self.best_metric, expected, "set `keep_best` too")
        if list(self.lr_boundaries) != sorted(set(self.lr_boundaries)):
            raise UsageError("lr_boundaries", self.lr_boundaries, "epochs in rising order")

    def _check_freezing(self) -> None:
        stride = self.freeze.removeprefix(STRIDE)
        if self.freeze.startswith(STRIDE) and not stride.isdecimal():
            raise UsageError("freeze", self.freeze, f"{STRIDE} and a number, as in {STRIDE}8")
        if not self.head_epochs:
            return
        if self.head_epochs > self.epochs:
            expected = f"at most {self.epochs}, the epochs of the stage"
            raise UsageError("head_epochs", self.head_epochs, expected)
        if self.freeze == BACKBONE:
            expected = "0 where the backbone is frozen in all epochs"
            raise UsageError("head_epochs", self.head_epochs, expected, "leave one of them out")


def weights_by_class(setting: str) -> dict[str, float]:
    """The weights in a text such as `cat=2,dog=0.5`.

    Raises:
        UsageError: it is another text, or a weight is not positive.
    """
    weights: dict[str, float] = {}
    for pair in setting.split(","):
        name, _, number = pair.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = math.nan
    if "" in weights or not all(0 < weight < math.inf for weight in weights.values()):
        expected = f"{NO_CLASS_WEIGHTS}, {BALANCED}, or positive weights by class"
        raise UsageError("class_weights", setting, expected, "as in cat=2,dog=0.5")
    return weights
