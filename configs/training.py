"""How one stage trains: epochs, optimizer and learning rate."""

from __future__ import annotations

import dataclasses

from mobilenet.errors import UsageError

from .base import MAX_BATCH, Config, flag

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw")
SCHEDULERS = ("exponential", "stepwise", "cosine", "constant")


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
        batch_size: images a step and replica.
        keep_best: the stage ends with the (averaged) weights of the epoch of the best validation
            top-1, the lower loss deciding between equals; only epochs after which its method has
            reached its target count.
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
        0.9, "momentum of momentum and rmsprop, beta 1 of adam and adamw", least=0, below=1
    )
    op_decay_rate: float = flag(0.9, "decay of the squared gradients in rmsprop", least=0, below=1)
    op_epsilon: float = flag(0.002, "epsilon of rmsprop, adam and adamw", above=0)
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
    decoupled_weight_decay: float = flag(0.0, "weight decay of adamw", least=0)
    keep_best: bool = flag(False, "end with the weights of the best epoch on validation images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.lr_boundaries) != sorted(set(self.lr_boundaries)):
            raise UsageError("lr_boundaries", self.lr_boundaries, "epochs in rising order")
