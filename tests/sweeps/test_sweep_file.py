"""A sweep as a file: YAML as people write it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet.configs.sweep import Choices, Metric, Range, SweepConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps import sweep_file

TEXT = """
method: random  # comment
trials: 7
seed: 3
seeds: [0, 1]
metric: {name: val_top1, goal: maximize}
parameters:
  train.lr: {min: 1e-4, max: 1E-2, log: true}
  train.decoupled_weight_decay: [0, 5e-2, .1]
  train.best_metric: [null, loss]
"""


def read(tmp_path: Path, text: str | bytes) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return sweep_file.read(path)


def test_a_file_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, TEXT)
    assert config == SweepConfig(
        {
            "train.lr": Range(1e-4, 1e-2, True),
            "train.decoupled_weight_decay": Choices((0.0, 0.05, 0.1)),
            "train.best_metric": Choices((None, "loss")),
        },
        *("random", 7, 3, (0, 1)),
        Metric("val_top1", "maximize"),
    )
    assert sweep_file.read(config) is config


def test_a_mapping_is_the_same() -> None:
    as_tuples = {"parameters": {"train.lr": (0.1, 0.2)}, "seeds": (1, 2)}
    as_lists = {"parameters": {"train.lr": [0.1, 0.2]}, "seeds": [1, 2]}
    assert sweep_file.read(as_tuples) == sweep_file.read(as_lists)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["expected a mapping", "parameters"]),
        ("- a", ["got ['a']", "a mapping"]),
        ("parameters", ["got 'parameters'", "a mapping"]),
        ("parameters: {train.lr: [1], train.lr: [2]}", ["the key train.lr twice", "line 1"]),
        ("seed: 1\nparameters: {train.lr: [1]}\nseed: 2", ["the key seed twice", "line 3"]),
        ("parameters: [", ["a YAML file (", "line 1"]),
        ("parameters: {? [1] : 2}", ["a YAML file (", "unhashable"]),
        ("parameters: !!python/object:os.system {}", ["a YAML file ("]),
        ("a: &a [1]\nb: *a", ["an alias", "line 2"]),
        ("a: " + "[" * 1200, ["a YAML file ("]),
        (b"\xff\xfe\x00", ["a YAML file ("]),
        ("x" * (1 << 21), ["more than 1048576 bytes"]),
        ("parameters: {train.lr: [1]}\ntrails: 1", ["key: got 'trails'", "did you mean trials?"]),
        ("parameters: {train.lr: [1]}\nseeds: 3", ["yaml: seeds: got 3"]),
        ("parameters: {train.lr: [fast]}", ["yaml: train.lr: got 'fast'", "float"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(text: str | bytes, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in ["sweep.yaml", *parts]:
        assert part in message


def test_other_objects_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sweep: got 'int', expected the path of a YAML file"):
        sweep_file.read(3)
    with pytest.raises(UsageError, match="a YAML file; there is none"):
        sweep_file.read(tmp_path)
    with pytest.raises(UsageError, match="a path of this machine"):
        sweep_file.read("gs://bucket/sweep.yaml")
