"""JSON that would end in a traceback later is refused as it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilenet import strict_json
from mobilenet.configs.archs import MobileNetV1Config
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"a": NaN}', "NaN"),
        ("[Infinity]", "Infinity"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "does not fit"),
        ("9" * 400, "400 digits"),
        (str(1 << 63), "64 bits"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 65 + "]" * 65, "levels deep"),
        ("[" * 200_000 + "]" * 200_000, "levels deep"),
        ("{", "Expecting"),
        ("[1] 2", "Extra data"),
        ("[" + "0," * strict_json.MAX_VALUES + "0]", "values"),
        ('"' + " " * strict_json.MAX_BYTES + '"', "bytes"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(strict_json.InvalidJSON, match=reason):
        strict_json.loads(text)
    with pytest.raises(strict_json.InvalidJSON):
        strict_json.loads(text.encode("utf-8", "surrogatepass"))


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    with pytest.raises(strict_json.InvalidJSON, match="utf-8"):
        strict_json.loads(b'["\xff"]')


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        -1.5,
        "é",
        "\N{GRINNING FACE}",
        [],
        {},
        [[1], {"a": [None, True]}],
        -(1 << 63),
        1e-308,
    ],
)
def test_what_json_writes_is_read(value: object) -> None:
    assert strict_json.loads(json.dumps(value)) == value
    assert strict_json.loads(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value
    assert strict_json.loads(json.dumps(value, ensure_ascii=False)) == value


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UsageError, match="x.json.*there is none"):
        strict_json.read(path)
    path.write_text("[NaN]")
    with pytest.raises(UsageError, match="x.json.*NaN"):
        strict_json.read(path)
    path.write_text("[]")
    with pytest.raises(UsageError, match="x.json.*a JSON object that describes a card"):
        strict_json.read_object(path, "a card")
    with pytest.raises(UsageError, match="can be read"):
        strict_json.read(tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("preprocessing", {"type": "Preprocessing", "mean": []}),
        ("preprocessing", {"type": "Preprocessing", "std": [1.0, 2.0]}),
        ("preprocessing", []),
        ("input_shape", [32, 32]),
        ("input_shape", [32, -1, 3]),
        ("input_shape", [32, 10**12, 3]),
        ("input_shape", "abc"),
        ("labels", "abc"),
        ("labels", [1]),
        ("label_offset", -1),
        ("outputs", "answers"),
        ("input", {"type": "Edge", "scale": -1.0}),
        ("input", {"type": "Edge", "zero_point": 1000}),
        ("input", {"type": "Edge", "dtype": "float128"}),
        ("input", {"type": "Card"}),
        ("metrics", [1]),
        ("format", 10**6),
    ],
)
def test_a_card_that_makes_no_sense_costs_one_line(
    field: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**Card().to_json(), field: value}))
    with pytest.raises(UsageError) as error:
        Card.from_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_config_that_is_another_one_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(Card().to_json()))
    with pytest.raises(UsageError, match="MobileNetV1Config"):
        MobileNetV1Config.from_file(path)
