"""Any JSON value and any arguments of a command line are a config or one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet import cli, converter, evaluator, packer, predict, profiler, trainer
from mobilenet.configs import archs
from mobilenet.configs.base import Config
from mobilenet.configs.card import Card
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.models import layer_plan

_LONGEST = 1000
_FAST = settings(deadline=None, max_examples=150, derandomize=True, database=None)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, -1, 0]),
    st.floats(),
    st.text(max_size=20),
    st.just("x" * 10_000),
)
_NAMES = st.sampled_from(["type", "model", "train", "blocks", "lr", "labels", "stages", "channels"])
_CLASSES = st.sampled_from(sorted(Config._classes))
_VALUES = st.recursive(
    st.one_of(_SCALARS, _CLASSES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES | st.text(), inner),
    max_leaves=8,
)


def line_of(error: UsageError) -> str:
    line = str(error)
    assert len(line) <= _LONGEST
    assert line.isprintable()
    return line


@pytest.mark.parametrize("kind", [RunConfig, Card, archs.MobileNetConfig])
@_FAST
@given(data=st.data())
def test_any_json_is_a_config_or_one_line(kind: type[Config], data: st.DataObject) -> None:
    """One field at a time, so that no other one is refused first; or the whole value."""
    value: Any = kind().to_json()
    if data.draw(st.booleans()):
        value[data.draw(st.sampled_from(sorted(value)) | st.text())] = data.draw(_VALUES)
    else:
        value = data.draw(_VALUES)
    try:
        config = kind.from_json(value)
    except UsageError as error:
        line_of(error)
        return
    assert isinstance(config, kind)
    assert kind.from_json(config.to_json()).to_json().keys() == config.to_json().keys()


_COMMANDS = (trainer, evaluator, converter, predict, profiler, packer)


@_FAST
@given(data=st.data())
def test_any_arguments_are_flags_or_one_line(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(_COMMANDS)).COMMAND
    names = st.sampled_from([spec.name for spec in command.flags() if spec.name != "config_file"])
    text = st.text(st.characters(exclude_characters="\0"), max_size=20)
    numbers = st.integers().map(str) | st.floats().map(str) | st.just("9" * 5000)
    argument = st.builds("--{}={}".format, names, text | numbers) | names.map("--{}".format) | text
    try:
        parsed = command.parse(data.draw(st.lists(argument, max_size=4)))
        if command is trainer.COMMAND:
            layer_plan.plan_rows(cli.run_config(parsed).model)
    except UsageError as error:
        line_of(error)
    except SystemExit as end:
        assert end.code == 0  # --help


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"width_multiplier": 1e308}, "at most 100"),
        ({"num_classes": 10**400}, "of at most 63 bits"),
    ],
)
def test_numbers_that_no_network_has_are_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        archs.get("mobilenet_v1", **fields)


def test_a_network_of_thousands_of_rows_is_refused() -> None:
    config = archs.get("mobilenet_v2")
    with pytest.raises(UsageError, match="at most 128 rows"):
        layer_plan.plan_rows(config.replace(blocks=config.blocks * 10))


def test_a_line_has_neither_a_megabyte_nor_a_control_character() -> None:
    line = line_of(UsageError("a\x1b[2J\nb" * 1000, "x" * 2**20, "a\0name"))
    assert "\\x1b[2J" in line and "a\\x00name" in line
    with pytest.raises(UsageError) as many:
        one_of("field", "nmae0", [f"name{number}" for number in range(999)])
    assert line_of(many.value).endswith("did you mean name0?")
    line = line_of(UsageError("names", None, shorten(["y" * 999] * 9)))
    assert line.count("yyy ... yyy") == 5 and line.endswith("... (9)")
