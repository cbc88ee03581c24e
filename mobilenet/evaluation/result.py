"""The figures of a model on held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mobilenet import metrics, text_tables
from mobilenet.metrics import LabelFigures


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier; `str()` shows them as a table.

    Attributes:
        top1, top5: percent of the images whose class is the likeliest, or among the five likeliest;
            of several labels an image, percent of the labels decided right.
        loss: mean cross entropy in nats an image.
        images: their number.
        seconds: for reading the images and running the model.
        model, data: what was evaluated: a path or name.
        split: of a data set; empty for arrays and batches.
        notes: how the classes of model and data differ, and which images were left out.
        published: what was published of the model's weights.
        labels: AUC and F1 of each label of a sigmoid by its name, of one output for two classes
            those of the second; empty for other models, and where a sigmoid of several labels is
            evaluated on images of one class each.
    """

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float
    model: str
    data: str
    split: str = ""
    notes: tuple[str, ...] = ()
    published: str = ""
    labels: Mapping[str, LabelFigures] = dataclasses.field(default_factory=dict)

    @property
    def auc(self) -> float | None:
        """Mean area under the ROC curve over the labels of a sigmoid."""
        return metrics.mean_of(figures.auc for figures in self.labels.values())

    @property
    def f1(self) -> float | None:
        """Mean F1 over the labels of a sigmoid."""
        return metrics.mean_of(figures.f1 for figures in self.labels.values())

    def __str__(self) -> str:
        first: dict[str, str | None] = {
            "top-1 %": f"{self.top1:.2f}",
            "top-5 %": f"{self.top5:.2f}",
        }
        if self.labels:
            first = {"accuracy %": f"{self.top1:.2f}", "AUC": _share(self.auc)}
            first["F1"] = _share(self.f1)
        row = [*first.values(), f"{self.loss:.4f}", f"{self.images:,}", f"{self.seconds:.1f}"]
        lines = [
            f"{self.model} on {', '.join(filter(None, (self.data, self.split)))}",
            text_tables.table([*first, "loss", "images", "seconds"], [row]),
        ]
        if len(self.labels) > 1:
            rows = [
                [name, f"{figures.positives:,}", _share(figures.auc), _share(figures.f1)]
                for name, figures in self.labels.items()
            ]
            lines += ["", text_tables.table(["label", "images", "AUC", "F1"], rows)]
        if self.published:
            lines.append(f"published: {self.published}")
        return "\n".join(lines)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
