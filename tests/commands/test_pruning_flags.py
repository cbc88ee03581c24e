"""`--pruning NAME`: picked by flag, override and file; one line for what does not belong to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilenet import cli
from mobilenet.configs import recipes
from mobilenet.configs.pruning import PRUNING, MagnitudePruning, TfmotPruning
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.trainer import COMMAND


def config_of(*args: str) -> RunConfig:
    return cli.run_config(COMMAND.parse(args))


def test_magnitude_is_the_default() -> None:
    assert config_of().pruning == MagnitudePruning()
    assert config_of("--pruning=magnitude").pruning == MagnitudePruning()


@pytest.mark.parametrize("args", [["--pruning=tfmot"], ["--override", "pruning=tfmot"]])
def test_a_name_picks_the_class_and_flags_set_its_fields(args: list[str]) -> None:
    assert config_of(*args).pruning == TfmotPruning()
    args = ["--final_sparsity=0.7", *args, "--override=pruning.frequency=3"]
    assert config_of(*args).pruning == TfmotPruning({"pointwise": 0.7}, frequency=3)


@pytest.mark.parametrize("pruning", [kind() for kind in PRUNING.values()], ids=list(PRUNING))
def test_a_file_gives_the_same_class_back(
    pruning: MagnitudePruning | TfmotPruning, tmp_path: Path
) -> None:
    config = recipes.get("mobilenet_v1", "digits").replace(pruning=pruning)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_json()))
    assert config_of(f"--config_file={path}") == config


def test_another_name_keeps_what_both_methods_have(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"pruning": {"final_sparsity": {"fused": 0.3}, "pattern": "1:4"}}))
    assert config_of(f"--config_file={path}").pruning == MagnitudePruning(
        {"fused": 0.3}, pattern="1:4"
    )
    assert config_of(f"--config_file={path}", "--pruning=tfmot").pruning == TfmotPruning(
        {"fused": 0.3}
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--pruning=random"],
            "--pruning: got 'random', expected one of magnitude, channel, dns, tfmot",
        ),
        (
            ["--override=pruning=tfm"],
            "--pruning: got 'tfm', expected one of magnitude, channel, dns, tfmot; did",
        ),
        (
            ["--pruning=tfmot", "--sparsity_pattern=2:4"],
            "--sparsity_pattern: expected --pruning magnitude; tfmot has no such flag",
        ),
        (["--override=pruning.patern=2:4"], "did you mean pruning.pattern?"),
        (["--sparsity_pattern=4:2"], "--sparsity_pattern: got '4:2', expected unstructured, block"),
        (["--sparsity_pattern=0:4"], "--sparsity_pattern: got '0:4'"),
        (["--sparsity_pattern=2:64"], "--sparsity_pattern: got '2:64'"),
        (["--sparsity_pattern=two"], "--sparsity_pattern: got 'two'"),
        (["--block_size=1x1"], "--block_size: got '1x1', expected INPUTSxOUTPUTS"),
        (["--block_size=0x4"], "--block_size: got '0x4'"),
        (["--block_size=4"], "--block_size: got '4'"),
        (["--pruning=tfmot", "--final_sparsity=1"], "--final_sparsity pointwise: got 1.0"),
    ],
)
def test_invalid_flags_cost_one_line(args: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        config_of(*args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_patterns_are_read_once() -> None:
    config = MagnitudePruning(pattern="1:4", block_size="2x8")
    assert (config.group, config.block) == ((1, 4), None)
    config = config.replace(pattern="block")
    assert (config.group, config.block) == (None, (2, 8))
    config = config.replace(pattern="unstructured")
    assert (config.group, config.block) == (None, None)
