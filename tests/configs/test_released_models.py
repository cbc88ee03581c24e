"""Tables of released models: rows as printed, against what our models count, found by real
names.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import pytest

from mobilenet.configs import archs, released_models
from mobilenet.configs.released_models import Release
from mobilenet.errors import UsageError

BY_ARCHIVE = {release.archive: release for release in released_models.ALL}
PIXELS = ("Pixel 1", "Pixel 2", "Pixel 3")
V1_ROOT = "http://download.tensorflow.org/models/mobilenet_v1"
ROOT, CLOUD = "https://storage.googleapis.com", "https://storage.cloud.google.com"
# Cells of the two pages, by the archive that their row links to.
PRINTED = {
    f"{V1_ROOT}_2018_08_02/mobilenet_v1_0.25_128.tgz": (
        ("mobilenet_v1", 0.25, 128, "float", 14, 0.47, 41.5, 66.3, {})
    ),
    f"{V1_ROOT}_2018_08_02/mobilenet_v1_0.5_160_quant.tgz": (
        ("mobilenet_v1", 0.5, 160, "quantized", 77, 1.34, 57.7, 80.4, {})
    ),
    f"{V1_ROOT}_2018_02_22/mobilenet_v1_0.75_128_quant.tgz": (
        ("mobilenet_v1", 0.75, 128, "quantized", 104, 2.59, 59.8, 82.8, {})
    ),
    f"{ROOT}/mobilenet_v2/checkpoints/mobilenet_v2_0.35_96.tgz": (
        ("mobilenet_v2", 0.35, 96, "float", 11, 1.66, 45.5, 70.4, {"Pixel 1": 4.5})
    ),
    f"{ROOT}/mobilenet_v2/checkpoints/quantized_v2_224_75.tgz": (
        ("mobilenet_v2", 0.75, 224, "quantized", 209, 2.61, None, None, {})
    ),
    f"{ROOT}/mobilenet_v3/checkpoints/v3-small_224_1.0_float.tgz": (
        ("mobilenet_v3_small", 1.0, 224, "float", 66, 2.9, 67.5, None)
        + (dict(zip(PIXELS, (15.8, 19.4, 14.4), strict=True)),)
    ),
    f"{ROOT}/mobilenet_v3/checkpoints/v3-large-minimalistic_224_1.0_uint8.tgz": (
        ("mobilenet_v3_large_minimalistic", 1.0, 224, "quantized", 209, 3.9, 71.3, None)
        + (dict(zip(PIXELS, (37, 35, 27), strict=True)),)
    ),
    f"{CLOUD}/mobilenet_edgetpu/checkpoints/mobilenet_edgetpu_224_0.75.tgz": (
        ("mobilenet_edgetpu", 0.75, 224, "quantized", 624, 2.9, 73.5, None)
        + ({"Pixel 4 Edge TPU": 3.1, "Pixel 4 CPU": 13.8},)
    ),
}


@pytest.mark.parametrize("archive", PRINTED)
def test_rows_are_as_printed(archive: str) -> None:
    r = BY_ARCHIVE[archive]
    figures = r.macs_million, r.params_million, r.top1, r.top5, dict(r.latency_ms)
    assert (r.model_name, r.width, r.image_size, r.kind, *figures) == PRINTED[archive]


def test_every_row_of_the_pages_is_there_once() -> None:
    counted = Counter((r.model_name, r.kind) for r in released_models.ALL)
    assert counted == {
        ("mobilenet_v1", "float"): 2 * 16,
        ("mobilenet_v1", "quantized"): 2 * 16,
        ("mobilenet_v2", "float"): 22,
        ("mobilenet_v2", "quantized"): 22,
        ("mobilenet_v3_large", "float"): 2,
        ("mobilenet_v3_large", "quantized"): 1,
        ("mobilenet_v3_small", "float"): 2,
        ("mobilenet_v3_small", "quantized"): 1,
        ("mobilenet_v3_large_minimalistic", "float"): 1,
        ("mobilenet_v3_large_minimalistic", "quantized"): 1,
        ("mobilenet_v3_small_minimalistic", "float"): 1,
        ("mobilenet_edgetpu", "quantized"): 2,
    }
    assert len(BY_ARCHIVE) == len(released_models.ALL)
    # Sums of the columns, added up from the pages' text.
    for release, kind, sums in (
        ("2018_08_02", "float", (962.0, 1310.9)),
        ("2018_02_22", "float", (962.0, 1310.9)),
        ("2018_08_02", "quantized", (930.7, 1284.5)),
        ("2018_02_22", "quantized", (940.4, 1303.6)),
    ):
        releases = [r for r in released_models.ALL if release in r.archive and r.kind == kind]
        assert totals(releases) == pytest.approx((2776, 34.56, *sums))
    v2 = [r for r in released_models.ALL if r.model_name == "mobilenet_v2" and r.kind == "float"]
    assert totals(v2) == pytest.approx((2929, 59.85, 1382.9, 1857.7))
    assert sum(r.latency_ms["Pixel 1"] for r in v2) == pytest.approx(776.4)


def totals(releases: list[Release]) -> tuple[float, ...]:
    columns = ((r.macs_million, r.params_million, r.top1, r.top5) for r in releases)
    return tuple(sum(map(float, column)) for column in zip(*columns, strict=True))


@functools.cache
def built_model(name: str, width: float) -> Any:
    pytest.importorskip("tf_keras")
    from mobilenet.models.builder import build

    return build(archs.get(name, width_multiplier=width, num_classes=1001), (224, 224, 3))


def counted(release: Release) -> tuple[float, float, float, float]:
    """Of our model of 1001 classes, in millions: MACs, those of the stem, kernels with biases, and
    these with three of the four values of a batch normalization channel."""
    from mobilenet.models import counting

    model = built_model(release.model_name, release.width)
    size = (release.image_size, release.image_size, 3)
    macs = counting.layer_macs(model, size)
    norms = [w for w in model.weights if w.name.split("/")[-1].startswith(("gamma", "moving_mean"))]
    channels = sum(math.prod(w.shape) for w in norms) / 2
    plain = model.count_params() - 4 * channels
    stem = macs.get("Conv2d_0") or macs["Conv"]
    counts = sum(macs.values()), stem, plain, plain + 3 * channels
    return tuple(value / 1e6 for value in counts)  # type: ignore[return-value]


MODELS = sorted({(r.model_name, r.width) for r in released_models.ALL})


def check_v1(r: released_models.Release, macs: float, stem: float, with_norms: float) -> None:
    notes = " ".join(r.notes)
    assert r.params_million == round(with_norms, 2)
    assert "three values" in notes
    if r.width == 0.75:
        assert r.macs_million == round(macs - stem) and "first convolution" in notes
        assert f"{round(macs)}" in notes
    elif (r.width, r.image_size) == (0.5, 224):
        assert r.macs_million == 150 and f"{macs:.3f}" == "149.498" and "149.498" in notes
    elif (r.width, r.image_size) == (0.25, 192):
        assert r.macs_million == 34 and f"{macs:.1f}" == "30.2" and "30.2" in notes
    else:
        assert r.macs_million == round(macs)
        assert "misprint" not in notes and "first convolution" not in notes


@pytest.mark.parametrize(("name", "width"), MODELS)
def test_counts_are_those_of_our_models_on_the_basis_that_the_notes_state(
    name: str, width: float
) -> None:
    for r in released_models.ALL:
        if (r.model_name, r.width) != (name, width):
            continue
        macs, stem, plain, with_norms = counted(r)
        notes = " ".join(r.notes)
        if name == "mobilenet_v1":
            check_v1(r, macs, stem, with_norms)
        elif name == "mobilenet_v2":
            assert r.macs_million == math.floor(macs) and r.params_million == round(plain, 2)
        elif name == "mobilenet_edgetpu":
            assert r.macs_million == math.floor(macs)
            assert r.params_million == math.floor(10 * plain) / 10
        elif name == "mobilenet_v3_small":
            assert r.params_million - plain > 0.3 and "do not match" in notes
            assert {1.0: "66 M", 0.75: "2.4 M"}[width] in notes
        elif name == "mobilenet_v3_small_minimalistic":
            assert r.macs_million - macs > 12 and "do not match" in notes
            assert r.params_million == round(plain, 1)
        else:
            assert r.macs_million == round(macs)
            assert r.params_million in (round(plain, 1), math.floor(10 * plain) / 10)
            assert "do not match" not in notes


def test_other_errors_of_the_pages_are_marked() -> None:
    def notes(*key: Any) -> str:
        release = released_models.find(*key)
        assert release is not None
        return " ".join(release.notes)

    assert "71 %" in notes("mobilenet_v1", 1.0, 224)
    assert "71 %" not in notes("mobilenet_v1", 1.0, 192)
    assert "72 %" in notes("mobilenet_v2", 1.0, 224)
    assert "75.1 %" in notes("mobilenet_v3_large", 1.0, 224)
    assert "labelled 0.50" in notes("mobilenet_v1", 0.5, 128)
    assert "checkpoint is float" in notes("mobilenet_edgetpu", 1.0, 224, "quantized")
    assert "no accuracy" in notes("mobilenet_v2", 1.4, 224, "quantized")
    assert "2018_02_22 states other" in notes("mobilenet_v1", 0.5, 128, "quantized")


V1, V2, V3 = "mobilenet_v1", "mobilenet_v2", "mobilenet_v3"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mobilenet_v1_0.25_128.ckpt", (V1, 0.25, 128, "float", 41.5)),
        ("data/mobilenet_v1_0.25_224.ckpt.index", (V1, 0.25, 224, "float", 49.8)),
        ("x.ckpt.data-00000-of-00001", None),
        ("MobileNet_v1_0.50_192", (V1, 0.5, 192, "float", 61.7)),
        ("mobilenet_v1_1.0_224_quant", (V1, 1.0, 224, "quantized", 70.1)),
        (
            "mobilenet_v1_2018_02_22/mobilenet_v1_1.0_224_quant.tgz",
            (V1, 1.0, 224, "quantized", 69.7),
        ),
        ("mobilenet_v1_0.5_160_quant.ckpt.meta", (V1, 0.5, 160, "quantized", 57.7)),
        ("mobilenet_v2_1.0_224.tgz", (V2, 1.0, 224, "float", 71.8)),
        ("/nets/float_v2_1.4_224/checkpoint", (V2, 1.4, 224, "float", 75.0)),
        ("quantized_v2_192_100.tgz", (V2, 1.0, 192, "quantized", None)),
        ("quantized_v2_96_35/model.ckpt", (V2, 0.35, 96, "quantized", None)),
        ("mobilenet_v2_1.0_224_slim_f16.npz", (V2, 1.0, 224, "float", 71.8)),
        ("v3-small_224_1.0_float/ema/model-388500", (f"{V3}_small", 1.0, 224, "float", 67.5)),
        ("v3-large_224_0.75_float.tgz", (f"{V3}_large", 0.75, 224, "float", 73.3)),
        ("v3-large_224_1.0_uint8.tgz", (f"{V3}_large", 1.0, 224, "quantized", 73.9)),
        (
            "v3-large-minimalistic_224_1.0_float/pristine/model.ckpt-342500.index",
            (f"{V3}_large_minimalistic", 1.0, 224, "float", 72.3),
        ),
        ("mobilenet_v3_small_1.0_224_slim_f16.npz", (f"{V3}_small", 1.0, 224, "float", 67.5)),
        ("mobilenet_edgetpu_224_0.75.tgz", ("mobilenet_edgetpu", 0.75, 224, "quantized", 73.5)),
        ("mobilenet_v2_1.0_224/mobilenet_v1_0.25_160.ckpt", (V1, 0.25, 160, "float", 45.5)),
        ("mobilenet_v1_1.0_224/a/b/model.ckpt", None),  # too far above
        ("mobilenet_v1_1.0_2244.ckpt", None),
        ("mobilenet_v1_0.3_128.ckpt", None),
        ("mobilenet_v2_1.3_192.tgz", None),  # never released
        ("mobilenet_v1_4_0.5.ckpt", None),
        ("inception_v3_2016_08_28.tar.gz", None),
        ("model.ckpt-963849", None),
        ("", None),
    ],
)
def test_a_path_names_its_release(path: str, expected: tuple[Any, ...] | None) -> None:
    release = released_models.of_path(path)
    if expected is None:
        assert release is None
    else:
        assert release is not None
        shown = (release.model_name, release.width, release.image_size, release.kind, release.top1)
        assert shown == expected
        assert release is released_models.of_path(path.replace("/", "\\"))


@pytest.mark.parametrize("release", released_models.ALL, ids=lambda r: r.archive.split("/", 3)[-1])
def test_every_archive_names_its_own_row(release: Release) -> None:
    assert released_models.of_path(release.archive) is release


def test_the_newest_release_is_found() -> None:
    release = released_models.find("mobilenet_v1", 0.25, 128, "quantized")
    assert release is not None and release.top1 == 39.5 and "2018_08_02" in release.archive
    assert released_models.find("mobilenet_edgetpu", 1.0, 224) is None
    assert released_models.find("mobilenet_v2", 1.0, 300) is None
    with pytest.raises(UsageError, match="did you mean quantized"):
        released_models.find("mobilenet_v2", 1.0, 224, "quantised")


def test_the_table_shows_every_row_and_every_note() -> None:
    headers, rows = released_models.rows()
    notes = released_models.footnotes()
    assert len(rows) == len(released_models.ALL) and {len(row) for row in rows} == {len(headers)}
    row = dict(zip(headers, rows[-1], strict=True))
    assert row["archive"].endswith("/mobilenet_edgetpu_224_1.0.tgz")
    assert (row["MACs M"], row["params M"], row["top-1 %"], row["top-5 %"]) == (
        ("990", "4", "75.6", "-")
    )
    assert row["ms an image"] == "Pixel 4 Edge TPU 3.6, Pixel 4 CPU 20.6"
    assert [note.split("  ")[0] for note in notes] == [str(n + 1) for n in range(len(notes))]
    cited = [notes[int(n) - 1].split("  ", 1)[1] for n in row["notes"].split()]
    assert cited == list(released_models.ALL[-1].notes)
