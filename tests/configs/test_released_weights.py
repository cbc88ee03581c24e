"""Names of released weights, their figures, and which of them are the best of a model."""

from __future__ import annotations

from collections import Counter

import pytest

from mobilenet import api
from mobilenet.configs import released_models, released_weights
from mobilenet.errors import UsageError


def test_all_checkpoints_and_files_have_a_name_of_their_own() -> None:
    """119 rows of Google's pages; 16 files of V1, 22 of V2 and 6 of V3 in keras.applications; 26
    weights of 1000 classes of timm's models that are built here."""
    listed = api.list_weights()
    assert len(listed) == len(set(listed)) == len(released_models.ALL) + 16 + 22 + 6 + 27
    files = [weights.file for weights in released_weights.ALL]
    assert len(set(files)) == len(files)
    assert Counter(weights.source for weights in released_weights.ALL) == {
        "google": 119,
        "keras": 44,
        "timm": 27,
    }


def test_a_pattern_is_of_names_with_or_without_their_source_or_of_models() -> None:
    assert api.list_weights("mobilenet_v1_0.25_128*") == [
        "mobilenet_v1_0.25_128",
        "mobilenet_v1_0.25_128_quant",
        "2018_02_22/mobilenet_v1_0.25_128",
        "2018_02_22/mobilenet_v1_0.25_128_quant",
        "keras/mobilenet_v1_0.25_128",
    ]
    assert len(api.list_weights("keras/*")) == 44
    small = api.list_weights("mobilenet_v3_small")
    assert small[0] == "v3-small_224_1.0_float" and len(small) == 3 + 2 + 5
    assert api.list_weights("resnet*") == []


def test_the_table_of_names_has_the_published_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = str(api.list_weights())
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[3:]}
    assert len(rows) == 190
    assert rows["mobilenet_v2_1.4_224"] == ["224", "582", "6.06", "75.0"]
    assert rows["2018_02_22/mobilenet_v1_0.75_128_quant"] == ["128", "104", "2.59", "59.8"]
    assert rows["keras/mobilenet_v1_1.0_160"] == ["160", "291", "4.24", "67.2"]
    assert rows["quantized_v2_224_75"][-1] == "-"  # none was published
    v4 = rows["timm/mobilenetv4_conv_medium.e500_r256_in1k"]
    assert v4 == ["256", "1080", "9.72", "79.9"]


@pytest.mark.parametrize(
    ("model", "expected", "figure"),
    [
        (("mobilenet_v1", 1.0, 224, 1001), "mobilenet_v1_1.0_224", 70.9),
        # keras.applications has 50.6 %, but not the background class.
        (("mobilenet_v1", 0.25, 224, 1001), "mobilenet_v1_0.25_224", 49.8),
        (("mobilenet_v1", 0.25, 224, 1000), "keras/mobilenet_v1_0.25_224", 50.6),
        (("mobilenet_v1", 0.25, 140, 10), "mobilenet_v1_0.25_128", 41.5),
        (("mobilenet_v1", 1.0, 32, 10), "mobilenet_v1_1.0_128", 65.2),
        # Of equal figures the smaller download.
        (("mobilenet_v2", 0.35, 96, 10), "keras/mobilenet_v2_0.35_96", 45.5),
        (("mobilenet_v2", 1.4, 96, 1001), "mobilenet_v2_1.4_224", 75.0),
        (("mobilenet_v3_large", 0.75, 224, 0), "timm/tf_mobilenetv3_large_075.in1k", 73.44),
        (("mobilenet_v3_small", 1.0, 224, 10), "keras/v3-small_224_1.0_float", 68.1),
        (("mobilenet_v1", 1.0, 224, 10), "timm/mobilenetv1_100.ra4_e3600_r224_in1k", 75.39),
        # timm has 72.91 % for inputs that are normalized by ImageNet's mean and deviation.
        (("mobilenet_v2", 1.0, 224, 10), "keras/mobilenet_v2_1.0_224", 71.8),
        (
            ("mobilenet_v4_conv_medium", 1.0, 250, 10),
            "timm/mobilenetv4_conv_medium.e500_r256_in1k",
            79.92,
        ),
        (("mobilenet_edgetpu", 0.75, 224, 10), "mobilenet_edgetpu_224_0.75", 73.5),
    ],
)
def test_the_best_weights_of_a_model(
    model: tuple[str, float, int, int], expected: str, figure: float
) -> None:
    best = released_weights.best(*model)
    assert (best.name, best.top1) == (expected, figure)
    assert f"{figure:g} %" in str(best) and best.kind == "float"


def test_a_width_without_weights_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(UsageError, match=r"width 0\.6; `width_multiplier` can be 0\.5, 0\.75, 1$"):
        released_weights.best("mobilenet_v3_small", 0.6, 224, 10)
    with pytest.raises(UsageError, match="none are released"):
        released_weights.best("mobilenet_v9", 1.0, 224, 10)


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean mobilenet_v2_1\.0_224\?"):
        released_weights.get("mobilenet_v2_1.0_225")
