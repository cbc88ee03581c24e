"""Channel pruning as a method: masked channels while it trains, a thin model at the end."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from command_runs import CHAIN, SHORT, report, run_command
from short_training import stage_context, train
from small_models import inputs, randomize_batch_norm, short_blocks, toy

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.channel import dependency_groups, importance, surgery
from mobilenet.configs import archs
from mobilenet.configs.pruning import IMPORTANCES, PRUNING, ChannelPruning
from mobilenet.errors import UsageError
from mobilenet.models import builder, counting, saving
from mobilenet.models.layer_plan import layer_channels

STEPS = 12


def prepared(model: Any, steps: int = STEPS, **fields: Any) -> tuple[Any, Any]:
    common = {"round_to": 1, "frequency": 2, "schedule": "polynomial", "reconstruct": 0}
    config = ChannelPruning(**{**common, **fields})
    method = methods.create(config, stage_context(steps, model.input_shape[1]))
    return method, method.apply(model)


def run(method: Any, model: Any, steps: int = STEPS, watch: Any = lambda step: None) -> None:
    def after_step(step: int) -> None:
        watch(step)
        if step < steps:  # as the engine does before the next one
            assert method.before_step(step) is False

    method.before_step(0)
    train(model, method, steps, model.input_shape[1], rate=0.01, watch=after_step)


def pruned_channels(model: Any, name: str) -> list[int]:
    """Channels of a group without a nonzero weight, read layer by layer without masks."""
    group = dependency_groups.ChannelGraph(model).by_layer()[name]
    active = np.zeros(group.channels, bool)
    for member in group.members:
        for weight in member.layer.trainable_weights:
            value = np.abs(weight.numpy())
            kernel = "kernel" in weight.name
            depthwise = "depthwise_kernel" in weight.name
            axis = 2 if depthwise or (kernel and member.side == "in") else -1
            if kernel or member.side != "in":
                active |= np.moveaxis(value, axis, 0).reshape(group.channels, -1).any(1)
    return np.flatnonzero(~active).tolist()


def test_channels_are_pruned_by_the_schedule_and_cut_out() -> None:
    model = randomize_batch_norm(toy())
    method, trained = prepared(model, ratio={"all": 0.5}, end=1.0)
    counts: list[tuple[int, int]] = []

    def watch(step: int) -> None:
        counts.append((len(pruned_channels(trained, "a")), len(pruned_channels(trained, "d"))))

    run(method, trained, watch=watch)
    # tfmot's cubic from 0 to one half in 10 steps, every second one; a step later it is seen
    shares = [
        0.5 * (1 - (1 - min(t, 10) / 10) ** 3) for t in (0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10)
    ]
    expected = [tuple(c - int(c * (1 - s) + 0.5) for c in (8, 16)) for s in shares]
    assert counts == expected and counts[-1] == (4, 8)
    outputs = trained(inputs(8), training=False).numpy()
    thin = method.finalize(trained)
    assert [thin.get_layer(name).output.shape[-1] for name in "abcde"] == [4, 4, 4, 8, 4]
    np.testing.assert_allclose(thin(inputs(8), training=False).numpy(), outputs, atol=1e-5)
    first, second, *_ = method.notes(trained)
    macs = {model: sum(counting.layer_macs(model).values()) for model in (thin, trained)}
    assert first == f"{macs[thin]:,} MACs, {macs[thin] / macs[trained]:.1%} of the original model's"
    assert second == "a (stem): 4 of 8 channels remain, by magnitude"


def test_one_shot_prunes_all_at_once() -> None:
    method, trained = prepared(randomize_batch_norm(toy()), schedule="constant", begin=0.3)
    counts: list[int] = []
    run(method, trained, watch=lambda step: counts.append(len(pruned_channels(trained, "d"))))
    assert counts == [0] * 3 + [8] * 9


def test_the_least_important_are_pruned_and_none_regrows() -> None:
    model = randomize_batch_norm(toy())
    method, trained = prepared(model, ratio={"d": 0.75}, end=1.0, importance="l2")
    seen: list[set[int]] = []
    run(method, trained, watch=lambda step: seen.append(set(pruned_channels(trained, "d"))))
    assert all(before <= after for before, after in zip(seen, seen[1:], strict=False))
    assert len(seen[-1]) == 12 and pruned_channels(trained, "a") == []


def test_channels_pruned_before_go_first() -> None:
    model = randomize_batch_norm(toy())
    kernel, bias = model.get_layer("d").get_weights()
    kernel[..., [1, 5]], bias[[1, 5]] = 0, 0
    model.get_layer("d").set_weights([kernel, bias])
    method, trained = prepared(model, ratio={"d": 0.25}, importance="random")
    run(method, trained)
    gone = pruned_channels(trained, "d")
    assert {1, 5} <= set(gone) and len(gone) == 4


def small_v1(**fields: Any) -> tuple[Any, Any]:
    tf_keras.utils.set_random_seed(0)
    fields = {"num_classes": 4, "classifier_activation": None, **fields}
    config = archs.get("mobilenet_v1", **{"width_multiplier": 0.25, **fields})
    return config, randomize_batch_norm(builder.build(config, (32, 32, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["group", "global"])
def test_a_model_of_ours_ends_with_its_config(scope: str) -> None:
    _, model = small_v1()
    method, trained = prepared(model, 4, scope=scope, round_to=8, frequency=1)
    run(method, trained, 4)
    thin = method.finalize(trained)
    config = builder.config_of(thin)
    assert config is not None and all(count % 8 == 0 for count in config.channels.values())
    assert builder.build(config, (32, 32, 3)).count_params() == thin.count_params()
    assert thin.count_params() < 0.6 * model.count_params()


@pytest.mark.slow
def test_parts_prune_equal_shares_of_the_original_model() -> None:
    """As in the seed, the first and the last one: of the original model's channels, halves up."""
    original, model = small_v1()
    config = ChannelPruning(ratio={"all": 0.875}, stages=7, round_to=1, frequency=1, reconstruct=0)
    for part in (1, 7):
        context = dataclasses.replace(
            stage_context(3, 32), original_channels=layer_channels(original), part=part, parts=7
        )
        method = methods.create(config, context)
        trained = method.apply(model)
        run(method, trained, 3)
        model = method.finalize(trained)
        widths = layer_channels(builder.config_of(model))
        assert widths == {
            name: channels if name == "Logits" else int(channels * (1 - part / 8) + 0.5)
            for name, channels in layer_channels(original).items()
        }
    assert "; part 7 of 7" in method.notes(trained)[0]


def test_as_few_channels_are_pruned_as_the_macs_allow() -> None:
    original, model = small_v1(width_multiplier=0.5, blocks=short_blocks("mobilenet_v1"))
    dense = sum(counting.layer_macs(model).values())
    for target, round_to in ((0.5, 1), (0.3, 1), (0.5, 8)):
        method, _ = prepared(model, 4, target_macs=target, round_to=round_to)
        (share,) = set(method.shares.numpy())

        def macs(ratio: float, round_to: int = round_to) -> int:
            thin = surgery.thin(model, ratio, round_to, config=original)
            return sum(counting.layer_macs(thin.model).values())

        assert macs(share) <= target * dense < macs(share - 2e-6)
    message = (
        f"target_macs: got 0.001, expected at least {macs(0.999, 8) / dense:.4f}, what is left"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        prepared(model, 4, target_macs=0.001, round_to=8)
    with pytest.raises(UsageError, match=re.escape(message)):
        config = ChannelPruning(target_macs=0.001, round_to=8)
        methods.create(config, stage_context(4)).check(model)


def test_a_latency_target_is_measured() -> None:
    """With a clock that counts MACs, time is what MACs are."""
    original, model = small_v1(width_multiplier=0.5, blocks=short_blocks("mobilenet_v1"))

    def macs(model: Any) -> float:
        return 1e-9 * sum(counting.layer_macs(model).values())

    def clock(original: Any) -> Any:
        return lambda other: (macs(other), macs(original))

    fields: dict[str, Any] = {"round_to": 1, "frequency": 2}
    context = dataclasses.replace(
        stage_context(4, 32), measure_latency=clock, original_channels=layer_channels(original)
    )
    timed = methods.create(ChannelPruning(target_latency=0.4, **fields), context)
    trained = timed.apply(model)
    counted, _ = prepared(model, 4, target_macs=0.4)
    np.testing.assert_array_equal(timed.shares.numpy(), counted.shares.numpy())
    assert any("ms of " in note for note in timed.notes(trained))


def test_gradients_of_the_first_batch_rank_channels() -> None:
    """Channels that the outputs do not depend on go first, however large their weights."""
    model = randomize_batch_norm(toy())
    kernel, bias = model.get_layer("e").get_weights()
    kernel[:, :, [2, 5, 7, 11]] = 0  # what reads these channels of d
    model.get_layer("e").set_weights([kernel, bias])
    images = inputs(16)
    labels = np.arange(16) % int(model.output_shape[-1])
    context = dataclasses.replace(
        stage_context(4), labeled_examples=lambda n: (images[:n], labels[:n])
    )
    fields: dict[str, Any] = {"ratio": {"d": 0.25}, "round_to": 1, "reconstruct": 0}
    method = methods.create(ChannelPruning(importance="taylor", **fields), context)
    trained = method.apply(model)
    method.before_step(0)
    assert pruned_channels(trained, "d") == [2, 5, 7, 11]


def test_consumers_of_pruned_channels_are_reconstructed_once() -> None:
    """Before the first step, on images as an evaluation sees them."""
    model, asked = randomize_batch_norm(toy()), []

    def calibration(count: int) -> Any:
        asked.append(count)
        return inputs(count)

    context = dataclasses.replace(stage_context(STEPS), calibration_images=calibration)
    config = ChannelPruning(ratio={"all": 0.5}, round_to=1, reconstruct=40)
    method = methods.create(config, context)
    trained = method.apply(model)
    for step in range(STEPS):
        method.before_step(step)
    assert asked == [40]
    thinned = surgery.cut_channels(dependency_groups.ChannelGraph(model), method._remaining())
    expected_model = surgery.reconstruct(model, thinned, inputs(40)).model
    got = method.finalize(trained)
    np.testing.assert_allclose(got(inputs(8)), expected_model(inputs(8)), atol=1e-4)


def test_statistics_and_averages_follow_the_thinner_model() -> None:
    """A stage is shorter than the first training: its statistics would be those of wider ones."""
    model = randomize_batch_norm(toy())
    for layer in model.layers:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.99
    method, trained = prepared(model, 200, end=0.5, frequency=10)
    momentum = {layer.momentum for layer in trained.layers if hasattr(layer, "momentum")}
    assert momentum == {0.9}
    method.before_step(0)
    thin = method.finalize(trained)
    assert {x.momentum for x in thin.layers if hasattr(x, "momentum")} == {0.99}
    assert not method.target_reached(method.average_restart_step - 1) and method.target_reached(
        method.average_restart_step
    )


def test_names_in_the_config_are_those_of_the_registry() -> None:
    assert set(IMPORTANCES) == set(importance.REGISTRY)
    assert PRUNING["channel"] is ChannelPruning


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": {"all": 1.0}}, "^`ratio` all: got 1.0, expected a number at least 0"),
        ({"ratio": {"all": -0.5}}, "^`ratio` all: got -0.5"),
        ({"importance": "beauty"}, "^importance: got 'beauty'"),
        ({"stages": 0}, "^stages: got 0"),
        ({"stages": 3, "stage_epochs": 0}, "^stage_epochs: got 0"),
        ({"target_macs": 1.0}, "^target_macs: got 1.0, expected a number above 0 and below 1"),
        ({"target_latency": 0.0}, "^target_latency: got 0.0"),
        ({"target_macs": 0.5, "target_latency": 0.5}, "^target_latency: got 0.5, expected one of"),
        ({"target_macs": 0.5, "scope": "global"}, "^scope: got 'global'"),
        ({"scope": "model"}, "^scope: got 'model'"),
        ({"round_to": 0}, "^round_to: got 0"),
        ({"reconstruct": -1}, "^reconstruct: got -1"),
        ({"end": 0.0}, "^end: got 0.0"),
    ],
)
def test_invalid_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChannelPruning(**fields)


def test_patterns_without_a_match_are_refused_before_training() -> None:
    method = methods.create(ChannelPruning(ratio={"conv_pw.*": 0.5}), stage_context())
    with pytest.raises(UsageError, match=r"^ratio: got 'conv_pw.\*', expected a role"):
        method.check(toy())
    with pytest.raises(UsageError, match="train for at least two steps"):
        methods.create(ChannelPruning(), stage_context(1))


@pytest.mark.slow
def test_later_stages_work_on_the_thin_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = (*SHORT, "--image_size=64", "--pruning=channel", "--channel_ratio=0.5", "--round_to=8")
    first = run_command("trainer", *args, f"--model_dir={folder}", "--stages=train,prune")
    assert first.returncode == 0, first.stderr
    done = run_command("trainer", *args, f"--model_dir={folder}")
    assert done.returncode == 0, done.stderr
    entries = report(folder)
    assert tuple(entries) == CHAIN
    assert entries["prune"]["params"] < 0.5 * entries["train"]["params"]
    for name in ("quantize", "convert"):
        assert entries[name]["params"] == entries["prune"]["params"]
        assert entries[name]["macs"] == entries["prune"]["macs"]
    channels = [
        json.loads((folder / name / "card.json").read_text())["architecture"]["channels"]
        for name in ("train", "prune", "quantize", "export")
    ]
    assert channels[0] == {} and channels[1]["Conv2d_13_pointwise"] == 128
    assert channels[1] == channels[2] == channels[3]
    model = saving.load(folder / "prune")
    again = builder.build(builder.config_of(model.model), (64, 64, 3))
    assert again.count_params() == model.model.count_params() == entries["prune"]["params"]
    assert "Conv2d_13_pointwise (pointwise): 128 of 256 channels remain" in "\n".join(
        model.card.notes
    )


@pytest.mark.slow
def test_every_part_saves_a_thin_model_and_can_be_resumed(tmp_path: Path) -> None:
    """Each learns from the model before the first; one that was deleted is trained again."""
    folder = tmp_path / "run"
    args = [
        *(*SHORT, "--pruning=channel", "--channel_ratio=0.6", "--channel_stages=3"),
        *("--round_to=1", "--prune_keep_best", "--distill=start", f"--model_dir={folder}"),
    ]
    done = run_command("trainer", *args, "--stages=train,prune")
    assert done.returncode == 0, done.stderr
    entries = report(folder)
    assert list(entries) == ["train", "prune_1", "prune_2", "prune"]
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == list(entries)
    for name, share in zip(entries, (0.0, 0.2, 0.4, 0.6), strict=True):
        model = saving.load(folder / name)
        assert model.model.get_layer("Conv2d_1_pointwise").filters == int(16 * (1 - share) + 0.5)
        assert entries[name]["params"] == model.model.count_params()
        if share:
            assert any(note.startswith("distilled from train,") for note in model.card.notes)
    shutil.rmtree(folder / "prune")
    again = run_command("trainer", *args, "--stages=train,prune")
    epochs = re.compile(r"^\w+ +epoch +\d+/", re.MULTILINE)
    assert "prune_2: finished before" in again.stdout and len(epochs.findall(again.stdout)) == 1
    assert report(folder)["prune"]["top1"] == entries["prune"]["top1"]
    shutil.rmtree(folder / "prune_1")
    third = run_command("trainer", *args, "--stages=train,prune")
    assert third.returncode == 0 and not epochs.search(third.stdout)
