"""The configs of a run: JSON and back, rules and their messages, unknown keys, the recipes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet.configs import archs, card, dataset, recipes, run
from mobilenet.configs.base import Config, check_number, flag
from mobilenet.configs.distillation import Distillation
from mobilenet.configs.pruning import ChannelPruning, MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.configs.run import RunConfig
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError

# Learning rate, decay and epochs between decays, images a step, averaging, L2 (Keras' form), kernel
# deviation, batch-norm decay: tensorflow/models research/mobilenet/scripts/train_mbnv{1,2,3}.sh.
# V3's L2 is slim's 1e-5 halved, as V1's and V2's are there.
IMAGENET = {
    "mobilenet_v1": (0.045, 0.94, 2.5, 64, 0.0, 2e-5, 0.09, 0.9997),
    "mobilenet_v2": (0.045, 0.98, 1.0, 96, 0.0, 2e-5, 0.09, 0.9997),
    "mobilenet_v3_large": (0.02, 0.99, 3.0, 192, 0.9999, 5e-6, 0.008, 0.997),
}
SETS = ("digits", "image_folder", "imagenet2012", "tfrecord", "imagenette")


def through_json(config: Config) -> Config:
    return type(config).from_json(json.loads(json.dumps(config.to_json(), allow_nan=False)))


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("model", list(archs.ALL))
def test_every_recipe_survives_json(model: str, data: str) -> None:
    config = recipes.get(model, data)
    again = through_json(config)
    assert again == config
    assert isinstance(again, RunConfig)
    assert type(again.model) is archs.ALL[model]
    assert isinstance(again.stages, tuple)
    assert hash(again) == hash(config)


fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)


@given(
    st.builds(
        TrainConfig,
        epochs=st.integers(0, 10**6),
        lr=st.floats(1e-9, 1e3),
        label_smoothing=fractions,
        lr_boundaries=st.lists(st.floats(0, 100), unique=True).map(lambda x: tuple(sorted(x))),
    )
)
def test_any_legal_training_survives_json(config: TrainConfig) -> None:
    assert through_json(config) == config


@given(st.dictionaries(st.text(max_size=8), fractions))
def test_any_legal_pruning_survives_json(shares: dict[str, float]) -> None:
    config = MagnitudePruning(final_sparsity=shares)
    assert through_json(config) == config


def test_a_whole_number_in_json_becomes_the_number_of_the_field() -> None:
    lr = TrainConfig.from_json({"lr": 1}).lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"stages": 5}, "RunConfig stages: got 5, expected a value of type tuple[str, ...]"),
        ({"stages": "train"}, "RunConfig stages: got 'train', expected"),
        ({"stages": [1]}, "RunConfig stages: got (1,), expected"),
        ({"train": 3}, "RunConfig train: got 3, expected a value of type TrainConfig"),
        ({"train": {"type": "MagnitudePruning"}}, "expected a value of type TrainConfig"),
        ({"train": {"lr": "fast"}}, "TrainConfig lr: got 'fast', expected a value of type float"),
        ({"train": {"lr": True}}, "TrainConfig lr: got True, expected a value of type float"),
        ({"train": {"epochs": 1.5}}, "TrainConfig epochs: got 1.5, expected a value of type int"),
        (
            {"train": {"learning_rate": 1}},
            "TrainConfig field: got 'learning_rate', expected one of",
        ),
        (
            {"dataset": {"flip": "yes"}},
            "DatasetConfig flip: got 'yes', expected a value of type bool",
        ),
        ({"model": {"kernel": 3}}, "MobileNetConfig field: got 'kernel'"),
        ({"model": {"blocks": [{"kernel": [3]}]}}, "BlockConfig kernel: got (3,), expected"),
        ({"pruning": {"final_sparsity": {"stem": "x"}}}, "MagnitudePruning final_sparsity: got"),
        ({"type": "RunConfg"}, "did you mean RunConfig?"),
        (
            {"type": "TrainConfig"},
            "type: got 'TrainConfig', expected RunConfig or a config derived",
        ),
    ],
)
def test_json_of_another_shape_is_refused(value: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig.from_json(value)
    assert expected in str(caught.value)


BAD: list[tuple[type[Config], dict[str, Any], str]] = [
    (TrainConfig, {"epochs": -1}, "epochs: got -1, expected a whole number at least 0"),
    (TrainConfig, {"epochs": 1.5}, "epochs: got 1.5, expected a whole number at least 0"),
    (TrainConfig, {"batch_size": 0}, "batch_size: got 0, expected a whole number at least 1"),
    (TrainConfig, {"batch_size": True}, "batch_size: got True, expected a whole number"),
    (TrainConfig, {"lr": math.nan}, "lr: got nan, expected a number above 0"),
    (TrainConfig, {"lr": math.inf}, "lr: got inf, expected a number above 0"),
    (TrainConfig, {"lr": 0.0}, "lr: got 0.0, expected a number above 0"),
    (TrainConfig, {"lr": "1"}, "lr: got '1', expected a number above 0"),
    (
        TrainConfig,
        {"op_momentum": 1.0},
        "op_momentum: got 1.0, expected a number at least 0 and bel",
    ),
    (TrainConfig, {"op_decay_rate": -0.1}, "op_decay_rate: got -0.1"),
    (TrainConfig, {"op_epsilon": 0.0}, "op_epsilon: got 0.0, expected a number above 0"),
    (
        TrainConfig,
        {"lr_decay_rate": 1.1},
        "lr_decay_rate: got 1.1, expected a number above 0 and at",
    ),
    (
        TrainConfig,
        {"lr_decay_epochs": 0.0},
        "lr_decay_epochs: got 0.0, expected a number above 0",
    ),
    (TrainConfig, {"warmup_epochs": -1.0}, "warmup_epochs: got -1.0"),
    (TrainConfig, {"label_smoothing": 1.0}, "label_smoothing: got 1.0"),
    (TrainConfig, {"ma_decay_rate": 1.0}, "ma_decay_rate: got 1.0"),
    (TrainConfig, {"decoupled_weight_decay": -1.0}, "decoupled_weight_decay: got -1.0"),
    (TrainConfig, {"optimizer_name": "adm"}, "optimizer_name: got 'adm', expected one of sgd, "),
    (TrainConfig, {"learning_scheduler_name": "cosin"}, "did you mean cosine?"),
    (
        TrainConfig,
        {"lr_boundaries": (2.0, 1.0)},
        "lr_boundaries: got (2.0, 1.0), expected epochs in",
    ),
    (
        RunConfig,
        {"stages": ()},
        "stages: got '', expected at least one of train, prune, quantize",
    ),
    (
        RunConfig,
        {"stages": ("prune", "train")},
        "expected stages in the order train,prune,quantize",
    ),
    (
        RunConfig,
        {"stages": ("train", "train")},
        "expected stages in the order train,prune,quantize",
    ),
    (
        RunConfig,
        {"stages": ("pune",)},
        "stages: got 'pune', expected one of train, prune, quantize",
    ),
    (RunConfig, {"image_size": 0}, "image_size: got 0, expected a whole number at least 1"),
    (RunConfig, {"image_size": (1, 2, 3)}, "image_size: got [1, 2, 3], expected one number, or"),
    (RunConfig, {"channels": 4}, "channels: got 4, expected one of (1, 3)"),
    (RunConfig, {"seed": -1}, "seed: got -1, expected a whole number at least 0"),
    (RunConfig, {"distribution_strategy": "miror"}, "did you mean mirrored?"),
    (
        RunConfig,
        {"mixed_precision": "float16"},
        "mixed_precision: got 'float16', expected one of",
    ),
    (
        MagnitudePruning,
        {"final_sparsity": {"pointwise": 1.0}},
        "`final_sparsity` pointwise: got 1.0",
    ),
    (MagnitudePruning, {"final_sparsity": {"stem": -0.1}}, "`final_sparsity` stem: got -0.1"),
    (
        MagnitudePruning,
        {"final_sparsity": 1.5},
        "final_sparsity: got 1.5, expected a dictionary, as in {'pointwise': 0.5}",
    ),
    (MagnitudePruning, {"schedule": "linear"}, "schedule: got 'linear', expected one of"),
    (
        MagnitudePruning,
        {"begin": 0.7},
        "end: got 0.6, expected a share above `begin`",
    ),
    (MagnitudePruning, {"frequency": 0}, "frequency: got 0"),
    (MagnitudePruning, {"power": 0.0}, "power: got 0.0, expected a number above 0"),
    (QuantizationAwareTraining, {"calibration_images": 0}, "calibration_images: got 0"),
    (QuantizationAwareTraining, {"range_decay": 1.0}, "range_decay: got 1.0"),
    (QuantizationAwareTraining, {"freeze": 1.1}, "freeze: got 1.1"),
    (Distillation, {"weight": 1.1}, "weight: got 1.1, expected a number at least 0 and"),
    (Distillation, {"weight": -0.1}, "weight: got -0.1"),
    (Distillation, {"temperature": 0.0}, "temperature: got 0.0, expected a number above"),
    (dataset.DatasetConfig, {"preprocessing": "incepton"}, "did you mean inception?"),
    (
        dataset.DatasetConfig,
        {"area_min": 0.0},
        "area_min: got 0.0, expected a number above 0 and at",
    ),
    (
        dataset.DatasetConfig,
        {"color": 2.0},
        "color: got 2.0, expected a number at least 0 and at m",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "expected"), BAD)
def test_a_broken_rule_names_its_parameter(
    kind: type[Config], fields: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as direct:
        kind(**fields)
    assert expected in str(direct.value) and "--" not in str(direct.value)
    with pytest.raises(UsageError) as replaced:
        kind().replace(**fields)
    assert str(replaced.value) == str(direct.value)


def test_nothing_changes_a_config_and_replace_makes_the_next() -> None:
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]
    assert config.replace(lr=1.0) == TrainConfig(lr=1.0)
    assert config == TrainConfig()
    with pytest.raises(UsageError, match="TrainConfig field: got 'l_r'.*did you mean lr"):
        config.replace(l_r=1.0)


def test_two_configs_share_no_dictionary() -> None:
    first, second = MagnitudePruning(), MagnitudePruning()
    first.final_sparsity["stem"] = 0.1
    assert second.final_sparsity == {"pointwise": 0.5} == MagnitudePruning().final_sparsity
    shares = {"pointwise": 0.3}
    config = MagnitudePruning(final_sparsity=shares)
    shares["pointwise"] = 0.9
    assert config.final_sparsity == {"pointwise": 0.3}


def test_a_dictionary_as_default_of_a_flag_is_each_configs_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Example(Config):
        shares: dict[str, float] = flag({"a": 0.5}, "shares")

    Example().shares["a"] = 1.0
    assert Example().shares == {"a": 0.5}
    assert hash(Example()) == hash(Example(shares={"a": 0.1}))


def test_rules_hold_for_items_and_none_only_where_the_type_allows_it() -> None:
    @dataclasses.dataclass(frozen=True)
    class Example(Config):
        numbers: tuple[float, ...] = flag((1.0,), "numbers", least=0)
        size: int | None = flag(3, "size", least=1, integer=True)
        count: int = flag(3, "count", least=1, integer=True)
        step: int = flag(2, "step", choices=(1, 2))

    assert Example(numbers=(0.0, 5.0), size=None).size is None
    for fields, expected in (
        ({"numbers": (0.0, -1.0)}, "numbers: got -1.0, expected a number at least 0"),
        ({"size": 0}, "size: got 0, expected a whole number at least 1"),
        ({"count": None}, "count: expected a whole number at least 1"),
        ({"step": 3}, "step: got 3, expected one of"),
    ):
        with pytest.raises(UsageError, match=expected):
            Example(**fields)  # type: ignore[arg-type]


def test_a_config_of_version_0_1_still_loads() -> None:
    """The field was `colour` then."""
    old = dataset.DIGITS.to_json()
    old["colour"] = old.pop("color")
    assert dataset.DatasetConfig.from_json(old) == dataset.DIGITS
    assert dataset.DIGITS.to_json()["color"] == 0.0


@given(st.floats() | st.integers(), st.floats(-10, 10), st.floats(-10, 10))
def test_a_number_is_legal_inside_its_bounds(value: float, low: float, high: float) -> None:
    inside = math.isfinite(value) and low < value <= high
    if inside:
        check_number("x", value, above=low, most=high)
    else:
        with pytest.raises(UsageError, match="expected a number above .* and at most "):
            check_number("x", value, above=low, most=high)


@pytest.mark.parametrize("name", list(IMAGENET))
def test_imagenet_recipes_are_the_published_ones(name: str) -> None:
    config = recipes.get(name, "imagenet2012")
    train, model = config.train, config.model
    assert IMAGENET[name] == (
        train.lr,
        train.lr_decay_rate,
        train.lr_decay_epochs,
        train.batch_size,
        train.ma_decay_rate,
        model.weight_decay,
        model.stddev,
        model.batch_norm_decay,
    )
    assert (train.optimizer_name, train.op_momentum, train.op_decay_rate) == ("rmsprop", 0.9, 0.9)
    assert (train.op_epsilon, train.label_smoothing, train.warmup_epochs) == (0.002, 0.1, 5.0)
    assert (train.epochs, train.learning_scheduler_name) == (30, "exponential")
    assert (model.dropout_keep_prob, config.image_size) == (0.8, 224)


@pytest.mark.parametrize(
    ("size", "images", "expected"),
    [
        # as in tensorflow/models official/vision/configs/experiments/image_classification
        ("small", 4096, (3002368, 1560, 2e-3, 0.6, 0.01, 0.9999, 0.3, 1e-5, 0.95, 1e-6, 224, 0)),
        ("medium", 4096, (156000, 1560, 4e-3, 0.9, 0.1, 0, 0.2, 0, 0.997, 1e-3, 256, 0.075)),
        (
            "large",
            16384,
            (39000, 1560, 4e-3, 0.9, 0.2, 0, 0.2, 0, 0.997, 1e-3, 384, 0),
        ),  # the same for all blocks
    ],
)
def test_imagenet_recipes_of_v4_are_the_published_ones(
    size: str, images: int, expected: tuple[float, ...]
) -> None:
    config = recipes.get(f"mobilenet_v4_conv_{size}", "imagenet2012")
    train, model = config.train, config.model
    steps = 1_281_167 // images  # of an epoch
    assert images % train.batch_size == 0
    assert expected == (
        pytest.approx(train.epochs * steps, rel=1e-5),
        train.warmup_epochs * steps,
        train.lr,
        train.op_momentum,
        train.decoupled_weight_decay,
        train.ma_decay_rate,
        pytest.approx(1 - model.dropout_keep_prob),
        2 * model.weight_decay,
        model.batch_norm_decay,
        model.batch_norm_epsilon,
        config.image_size,
        train.drop_path_rate,
    )
    assert (train.optimizer_name, train.learning_scheduler_name) == ("adamw", "cosine")


@pytest.mark.parametrize("model", list(archs.ALL))
@pytest.mark.parametrize("data", SETS)
def test_a_recipe_is_of_its_model_and_data_set_and_later_stages_are_gentler(
    model: str, data: str
) -> None:
    config = recipes.get(model, data)
    assert (type(config.model), config.dataset.name) == (archs.ALL[model], data)
    assert config.stages == ("train", "prune", "quantize", "convert")
    for stage in (config.prune, config.quantize):
        assert stage.lr < config.train.lr
        assert 0 < stage.epochs < config.train.epochs
        assert stage.warmup_epochs == 0


def test_names_that_are_not_known_are_refused_or_left_to_tfds() -> None:
    with pytest.raises(UsageError, match="^model_name: got 'mobilenet_v5'"):
        recipes.get("mobilenet_v5", "digits")
    assert recipes.get("mobilenet_v1", "oxford_flowers102").dataset.name == "oxford_flowers102"
    assert recipes.get("mobilenet_v1", "tfrecord").dataset.label_offset == 1


@pytest.mark.parametrize("steps", [1, 100, 1_000, 10_000, 1_000_000])
def test_batch_norm_memory_fits_the_run(steps: int) -> None:
    decay = recipes.batch_norm_decay(steps, 0.9997)
    assert 0.9 <= decay <= 0.9997
    assert 1 / (1 - decay) <= max(10.0, steps / 10) * (1 + 1e-6)


@pytest.mark.parametrize("name", list(archs.ALL))
def test_the_published_momentum_is_for_imagenet_alone(name: str) -> None:
    assert recipes.get(name, "digits").model.batch_norm_decay is None
    assert recipes.get(name, "image_folder").model.batch_norm_decay is None
    published = {
        **dict.fromkeys(("mobilenet_v1", "mobilenet_v2"), 0.9997),
        "mobilenet_v4_conv_small": 0.95,
        **dict.fromkeys(archs.names("*edgetpu_v2*"), 0.99),
    }.get(name, 0.997)
    assert recipes.get(name, "imagenet2012").model.batch_norm_decay == published


def test_a_long_run_keeps_the_published_batch_norm_memory() -> None:
    assert recipes.batch_norm_decay(10**6, 0.9997) == 0.9997


def test_a_card_survives_json() -> None:
    model = archs.get("mobilenet_v3_small", width_multiplier=0.75)
    full = card.Card(
        architecture=model.to_json(),
        input_shape=(96, 64, 3),
        preprocessing=dataset.PREPROCESSING["imagenet"],
        labels=("cat", "dög"),
        metrics={"top1": 98.0, "loss": 1},
        history=({"epoch": 1.0, "loss": 0.5},),
        input=card.TensorType("int8", 1 / 127.5, 0),
        notes=("pruned",),
    )
    again = through_json(full)
    assert again == full
    assert isinstance(again, card.Card)
    assert archs.MobileNetConfig.from_json(again.architecture) == model


def test_parts_run_in_order_and_the_last_has_the_name_of_its_stage() -> None:
    pruning = ChannelPruning(stages=3)
    config = recipes.get("mobilenet_v1", "digits").replace(pruning=pruning)
    parts = config.parts(("prune", "convert"))
    assert [part.name for part in parts] == ["prune_1", "prune_2", "prune", "convert"]
    every = config.parts(run.STAGES)
    assert sorted(set(every), key=lambda part: part.order) == list(every)
    assert [part.stage for part in parts] == ["prune", "prune", "prune", "convert"]
    assert [part.is_last for part in parts] == [False, False, True, True]
    assert [run.Part.parse(part.name) for part in every] == list(every)
    plain = recipes.get("mobilenet_v1", "digits").parts(run.STAGES)
    assert tuple(part.name for part in plain) == run.STAGES


@pytest.mark.parametrize(
    "name", ["", "trian", "prune_", "prune_x", "prune_\u00b2", "_1", "prune_-1"]
)
def test_only_names_of_parts_are_parsed(name: str) -> None:
    with pytest.raises(ValueError):
        run.Part.parse(name)


def test_parts_before_the_last_may_be_shorter() -> None:
    config = recipes.get("mobilenet_v1", "digits")
    for epochs, expected in ((None, (24, 8, 8, 8, 4)), (2, (24, 2, 2, 8, 4))):
        several = config.replace(pruning=ChannelPruning(stages=3, stage_epochs=epochs))
        parts = several.parts(("train", "prune", "quantize"))
        assert tuple(several.training(part).epochs for part in parts) == expected
    assert several.training(run.Part("prune", 1)) == config.prune.replace(epochs=2)
