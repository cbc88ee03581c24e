"""The teacher of each stage of a run: the model that it begins with, or another one."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

from mobilenet import data
from mobilenet.configs.distillation import START
from mobilenet.configs.run import RunConfig
from mobilenet.export import freeze
from mobilenet.training.distillation import loading
from mobilenet.training.distillation.teacher_model import TeacherModel

log = logging.getLogger("mobilenet")


class Teachers:
    """The teacher of each stage of a run.

    Args:
        config: of the run.
        info: its data.
    """

    def __init__(self, config: RunConfig, info: data.DatasetInfo) -> None:
        self.config, self.info = config, info
        self.preprocessing = config.preprocessing

    def of(self, stage: str, start: Any, origin: str | None) -> TeacherModel | None:
        """The teacher of a stage, or `None`; must be called outside any strategy.

        Args:
            stage: one that trains.
            start: the model that it starts from.
            origin: where its weights come from; `None` if some of them are untrained.

        Raises:
            UsageError: see `loading.load`.
        """
        if self.config.distillation.model is not None:
            return self._other
        if self.config.distillation.teacher != START or stage == "train":
            return None
        if origin is None:
            log.info("%s: distillation skipped, the starting weights are untrained", stage)
            return None
        return TeacherModel(freeze.float32_copy(start), self.preprocessing, origin)

    @functools.cached_property
    def _other(self) -> TeacherModel:
        info = dataclasses.replace(self.info, num_classes=self.config.model.num_classes or 0)
        return loading.load(
            self.config.distillation, info, self.config.input_shape, self.preprocessing
        )
