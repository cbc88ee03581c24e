"""The config of a run from the parameters of `mobilenet.train`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import files
from mobilenet.configs import archs, parameters, recipes
from mobilenet.configs import dataset as datasets
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.own_model import OwnModel, check_settings
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError, one_of, rename_parameters
from mobilenet.evaluation import data_source
from mobilenet.training import training_run
from mobilenet.training.resolve_config import Explicit

if TYPE_CHECKING:
    from mobilenet.models.saving import LoadedModel

_RENAMED = {"model_name": "model", "dataset_name": "data", "init_checkpoint": "weights"}


@dataclasses.dataclass(frozen=True)
class Request:
    """A run that was asked for.

    Attributes:
        folder: the run folder; text if it lies on object storage.
        config: of the run, before what depends on the data is filled in.
        explicit: which of the fields that depend on it were set.
        has_data_dir: `data_dir` is a parameter of its own; else errors of it are errors of `data`.
        loaded: a model of the user's own in memory, and its card.
    """

    folder: Path | str
    config: RunConfig
    explicit: Explicit
    has_data_dir: bool
    loaded: LoadedModel | None = None

    @contextlib.contextmanager
    def naming_parameters(self) -> Iterator[None]:
        """Errors of the block name the parameters of `mobilenet.train`."""
        names = _RENAMED if self.has_data_dir else {**_RENAMED, "data_dir": "data"}
        try:
            yield
        except UsageError as error:
            renamed = rename_parameters(error, names.get)
            if renamed.what != self.config.init_checkpoint:
                raise renamed from None
            path = self.config.init_checkpoint
            raise UsageError("weights", path, renamed.expected, renamed.remedy) from None


def request(
    data: str | os.PathLike[str] | DatasetConfig,
    model: Any,
    weights: str | os.PathLike[str] | None,
    stages: Sequence[str],
    values: Mapping[str, Any],
    model_dir: str | os.PathLike[str] | None = None,
) -> Request:
    """The run that the parameters of `mobilenet.train` ask for.

    Args:
        data, model, weights, stages, model_dir: see there.
        values: of its further parameters.

    Raises:
        UsageError: a value is not legal, or there is no such parameter.
    """
    for name, other in (*_RENAMED.items(), ("dataset", "data")):
        if name in values:
            raise UsageError(name, values[name], f"this value as `{other}`")
    if isinstance(stages, str):
        raise UsageError("stages", stages, "a tuple of stages", f'as in ("{stages}",)')
    architecture, loaded = _architecture(model)
    dataset = _dataset(data, values.get("data_dir"))
    settings = parameters.settings_of(RunConfig, {"stages": stages, **values})
    if weights is not None:
        files.check_local(weights, "weights")
        settings["init_checkpoint"] = _path("weights", weights, "a path or the name of weights")
    if isinstance(architecture, OwnModel):
        names = {p.path: p.name for p in parameters.parameters_of(RunConfig)}
        check_settings(settings, lambda path: names.get(path, path))
        recipe = recipes.of_own_model(architecture, dataset.name, settings.get("recipe"))
        images = _with_images_of(recipe.dataset, dataset)
        config = parameters.apply(recipe.replace(dataset=images), settings)
        config = recipes.pruning_large_kernels(config)
    else:
        config = parameters.apply(_of_recipe(model, architecture, dataset, settings), settings)
    default = training_run.default_folder(config)
    folder = default if model_dir is None else _run_folder(model_dir)
    explicit = _explicit(model, settings, dataset)
    return Request(folder, config, explicit, "data_dir" in values, loaded)


def _of_recipe(
    model: object,
    architecture: MobileNetConfig,
    dataset: DatasetConfig,
    settings: Mapping[str, Any],
) -> RunConfig:
    """The recipe of a MobileNet and a data set."""
    has_weights = settings.get("init_checkpoint") is not None
    name = settings.get("recipe")
    recipe = recipes.get(archs.name_of(architecture), dataset.name, name, has_weights)
    config = recipe.replace(dataset=_with_images_of(recipe.dataset, dataset))
    if not isinstance(model, MobileNetConfig):
        return config
    if model.batch_norm_decay is None:
        assert isinstance(recipe.model, MobileNetConfig)
        model = model.replace(batch_norm_decay=recipe.model.batch_norm_decay)
    return config.replace(model=model)


def _with_images_of(recipe: DatasetConfig, own: DatasetConfig) -> DatasetConfig:
    """The recipe's data set, with what is set of a data set."""
    usual = datasets.get(own.name)
    names = [field.name for field in dataclasses.fields(own)]
    values = {name: getattr(own, name) for name in names}
    return recipe.replace(**{n: x for n, x in values.items() if x != getattr(usual, n)})


def _architecture(model: object) -> tuple[MobileNetConfig | OwnModel, LoadedModel | None]:
    """The config of a model, and a model in memory with its card."""
    if isinstance(model, MobileNetConfig):
        return model, None
    if isinstance(model, str) and not _is_path(model):
        return archs.ALL[one_of("model", model, archs.ALL)](), None
    if isinstance(model, (str, os.PathLike)):
        return OwnModel.at(model), None
    if type(model).__module__.split(".")[0] in ("builtins", "numpy"):
        expected = "the name or config of a MobileNet, a saved model, or a tf_keras model"
        raise UsageError("model", type(model).__name__, expected)
    from mobilenet.export import source
    from mobilenet.models import saving

    loaded = source.source_of(saving.with_card(model)).loaded
    return OwnModel(loaded.model.name), loaded


def _is_path(text: str) -> bool:
    return text not in archs.ALL and (Path(text).suffix != "" or Path(text).expanduser().exists())


def _dataset(data: object, data_dir: str | os.PathLike[str] | None) -> DatasetConfig:
    if isinstance(data, DatasetConfig):
        return data
    if not isinstance(data, (str, os.PathLike)):
        expected = "the name of a data set, or a path of class folders, a CSV list or records"
        raise UsageError("data", type(data).__name__, expected)
    return data_source.find_dataset(data, data_dir)


def _run_folder(value: object) -> Path | str:
    text = _path("model_dir", value)
    return text if files.is_remote(text) else Path(text)


def _path(name: str, value: object, expected: str = "a path") -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(name, type(value).__name__, expected)
    return os.path.expanduser(os.fspath(value))


def _explicit(model: object, settings: Mapping[str, Any], dataset: DatasetConfig) -> Explicit:
    """Fields count as set where a setting, or the config of the model, differs from its default."""

    def is_set(field: str) -> bool:
        if f"model.{field}" in settings:
            return True
        if not isinstance(model, MobileNetConfig):
            return False
        return bool(getattr(model, field) != getattr(type(model)(), field))

    return Explicit(
        num_classes=is_set("num_classes"),
        batch_norm_decay=is_set("batch_norm_decay"),
        teacher="distillation.teacher" in settings or "distillation" in settings,
        image_size="image_size" in settings,
        channels="channels" in settings,
        preprocessing="dataset.preprocessing" in settings
        or dataset.preprocessing != datasets.get(dataset.name).preprocessing,
    )
