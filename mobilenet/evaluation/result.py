"""The figures of a model on held-out images."""

from __future__ import annotations

import dataclasses

from mobilenet import text_tables


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier; `str()` shows them as a table.

    Attributes:
        top1, top5: percent of the images whose class is the likeliest, or among the five likeliest.
        loss: mean cross entropy in nats an image.
        images: their number.
        seconds: for reading the images and running the model.
        model, data: what was evaluated: a path or name.
        split: of a data set; empty for arrays and batches.
        notes: how the classes of model and data differ, and which images were left out.
        published: what was published of the model's weights.
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

    def __str__(self) -> str:
        row = [f"{self.top1:.2f}", f"{self.top5:.2f}", f"{self.loss:.4f}", f"{self.images:,}"]
        heads = ["top-1 %", "top-5 %", "loss", "images", "seconds"]
        lines = [
            f"{self.model} on {', '.join(filter(None, (self.data, self.split)))}",
            text_tables.table(heads, [[*row, f"{self.seconds:.1f}"]]),
        ]
        if self.published:
            lines.append(f"published: {self.published}")
        return "\n".join(lines)
