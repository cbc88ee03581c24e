"""The sections of a report of one run, each from what the run has recorded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from mobilenet import text_tables
from mobilenet.configs import released_models
from mobilenet.configs.base import sides
from mobilenet.configs.run import RunConfig
from mobilenet.evaluation import calibration_error, confusion
from mobilenet.reporting import charts
from mobilenet.reporting.charts import Curve, Mark, finite
from mobilenet.reporting.recorded_run import RecordedRun
from mobilenet.reporting.sections import (
    Code,
    Figure,
    Gallery,
    Note,
    Section,
    Table,
    Thumbnail,
    columns,
    pictures,
    section,
)
from mobilenet.reporting.themed_svg import ACCENT, MUTED, data_uri
from mobilenet.training import stage_data
from mobilenet.training.run_folder import CONFIG, EXPORT
from mobilenet.training.stage_data import Kernel, Pixels, ScoredImages
from mobilenet.training.stage_report import RunReport, StageReport
from mobilenet.typing import Array

_LISTED = 20  # classes and layers before a table is folded
_FEW = 12  # classes, whose confusion matrix is next to their table
_HISTOGRAMS = 24
_LEAST_SHARE = 0.005  # of a class in a mixed image that is named
_NONE = "–"

Build = Callable[[RecordedRun], Section | None]


def subtitle(run: RecordedRun) -> str:
    """Model, data and image size in a line."""
    config = run.config
    width = getattr(config.model, "width_multiplier", None)
    height, across = sides(config.image_size)
    size = f"{height} × {across}"
    parts = [run.model_name, f"width {width:g}" if width is not None else "", config.dataset.name]
    date = run.environment.get("date")
    day = date[:10] if isinstance(date, str) else ""
    return " · ".join(part for part in (*parts, f"{size} pixels", day) if part)


def figures(run: RecordedRun) -> list[Figure]:
    """The three figures that matter: accuracy, size and latency of the file or last model."""
    last = run.last
    if last is None:
        return []
    of_file = last.part.stage == "convert"
    what = "of the file" if of_file else f"after {last.part}"
    name = "top-1" if last.f1 is None else "accuracy"
    first = next((stage for stage in run.stages if stage.part != last.part), None)
    change = f"{first.part} {first.top1:.2f} %" if first is not None else ""
    shown = [Figure(f"{name} {what}", f"{last.top1:.2f} %", change)]
    sized = next((stage for stage in reversed(run.stages) if stage.bytes is not None), None)
    if sized is not None:
        float_file = next((stage for stage in run.stages if stage.bytes is not None), sized)
        assert sized.bytes is not None and float_file.bytes is not None
        ratio = float_file.bytes / max(sized.bytes, 1)
        note = f"{ratio:.1f} × smaller than {float_file.part} in float32" if ratio > 1.05 else ""
        label = "size of the file" if sized.part.stage == "convert" else f"size after {sized.part}"
        shown.append(Figure(label, size_of(sized.bytes), note))
    timed = next((stage for stage in reversed(run.stages) if stage.latency_ms is not None), None)
    if timed is not None:
        processor = run.environment.get("processor")
        note = processor if isinstance(processor, str) else ""
        value = f"{text_tables.milliseconds(timed.latency_ms or 0.0)} ms"
        shown.append(Figure("an image, on one thread", value, note))
    return shown


def size_of(count: int) -> str:
    """A number of bytes with a unit."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} B"


def stages(run: RecordedRun) -> Section | None:
    """The table of the stages."""
    if not run.stages:
        return None
    headers, rows = RunReport(run.stages).table()
    minutes = [_NONE if s.minutes is None else f"{s.minutes:.1f}" for s in run.stages]
    cells = (
        (*(_NONE if cell is None else cell for cell in row), minute)
        for row, minute in zip(rows, minutes, strict=True)
    )
    return section("stages", "Stages", [Table((*headers, "minutes"), tuple(cells))])


def learning_curves(run: RecordedRun) -> Section | None:
    """Loss, top-1, learning rate and sparsity of all stages on one axis."""
    histories = run.histories
    rows = list(histories.values())
    bands = [(part.name, len(own)) for part, own in histories.items()]

    def curve(label: str, name: str, color: str, scale: float = 1.0, dashed: bool = False) -> Curve:
        return Curve(label, charts.points(rows, name, scale), color, dashed)

    several = any("val_auc" in row for own in rows for row in own)
    auc = [curve("validation", "val_auc", ACCENT)] if several else []
    drawn = [
        charts.curves(
            *("loss", "Loss", ""),
            [curve("training", "loss", MUTED), curve("validation", "val_loss", ACCENT)],
            bands,
        ),
        charts.curves(
            *("top1", "Accuracy" if several else "Top-1", "%"),
            [curve("training", "top1", MUTED), curve("validation", "val_top1", ACCENT)],
            bands,
        ),
        charts.curves("auc", "Area under the ROC curve", "", auc, bands),
        charts.curves(
            "learning_rate", "Learning rate", "", [curve("rate", "lr", ACCENT)], bands, least=0
        ),
        charts.curves(
            *("sparsity", "Sparsity", "%"),
            [
                curve("target", "target_sparsity", MUTED, 100, dashed=True),
                curve("now", "sparsity", ACCENT, 100),
            ],
            bands,
            least=0,
        ),
    ]
    finished = {stage.part for stage in run.stages}
    names = ", ".join(part.name for part in run.unfinished if part not in finished)
    note = Note(f"Not finished: {names}.") if names else None
    return section("curves", "Learning curves", [pictures(drawn), note])


def classes(run: RecordedRun) -> Section | None:
    """Confusion matrix, and precision and recall of each class, the worst first."""
    if run.scored is None:
        return None
    part, scored = run.scored
    names = run.labels
    if scored.has_several_labels:
        listed = confusion.label_figures(scored.labels, scored.predictions.astype(bool), names)
        return section("classes", "Labels", [*_class_tables(listed, "label")])
    count = 1 + int(max(scored.labels.max(), scored.predictions.max()))
    if count > len(names):
        names = tuple(map(str, range(count)))
    listed = confusion.class_figures(scored.labels, scored.predictions, names)
    pairs = confusion.top_confusions(scored.labels, scored.predictions, names, 12)
    right = scored.labels == scored.predictions
    fit = calibration_error.calibration(scored.probabilities, right)
    rows = ((p.label, p.prediction, f"{p.images:,}", f"{p.count:,}") for p in pairs)
    headers = ("class", "taken for", "images", "of")
    tables = _class_tables(listed, "class")
    matrix = charts.confusion_matrix(scored.labels, scored.predictions, names)
    frequent = Table(headers, tuple(rows), "Most frequent confusions", names=2) if pairs else None
    first = tables[0] if tables else None
    if len(names) <= _FEW:
        drawn = [columns(pictures([matrix], "stacked"), first), frequent]
    else:
        drawn = [pictures([matrix], "wide"), columns(first, frequent)]
    return section(
        "classes",
        "Classes",
        [
            Note(
                f"{int(right.sum()):,} of {len(right):,} test images are right after {part}. "
                f"Stated probabilities are {100 * fit.probability:.1f} % on average, with a "
                f"calibration error of {100 * fit.error:.1f} points."
            ),
            *drawn,
            *tables[1:],
        ],
    )


def _class_tables(listed: Sequence[confusion.ClassFigures], what: str) -> list[Table]:
    def share(value: float | None) -> str:
        return _NONE if value is None else f"{100 * value:.1f}"

    ordered = confusion.worst_first(listed)
    rows = tuple(
        (c.name, f"{c.count:,}", share(c.precision), share(c.recall), share(c.f1)) for c in ordered
    )
    headers = (what, "images", "precision %", "recall %", "F1 %")
    plural = {"class": "classes", "label": "labels"}[what]
    if len(rows) <= _LISTED:
        title = f"{plural.capitalize()}, the lowest F1 first"
        return [Table(headers, rows, title)] if rows else []
    return [
        Table(headers, rows[:_LISTED], f"The {_LISTED} {plural} of the lowest F1"),
        Table(headers, rows[_LISTED:], f"The other {len(rows) - _LISTED:,} {plural}", True),
    ]


def mistakes(run: RecordedRun) -> Section | None:
    """The test images of the highest loss, and those that the model is least certain of."""
    if run.scored is None:
        return None
    part, scored = run.scored
    names = scored.names or [""] * len(scored.pixels)
    thumbnails = [
        _thumbnail(scored, run.labels, index, pixels, name)
        for index, pixels, name in zip(scored.shown, scored.pixels, names, strict=True)
    ]
    split = len(scored.worst)
    note = "Below each image its class, and what it was taken for with its probability."
    if scored.has_several_labels:
        note = "Below each image its labels, and those that were predicted."
    if scored.names:
        note += " The last line is its file."
    return section(
        "mistakes",
        "Mistakes",
        [
            Note(f"Test images after {part}. {note}"),
            Gallery(f"The {split} of the highest loss", tuple(thumbnails[:split])),
            Gallery(
                f"The {len(thumbnails) - split} least certain: the two likeliest classes are close"
                if not scored.has_several_labels
                else f"The {len(thumbnails) - split} least certain",
                tuple(thumbnails[split:]),
            ),
        ],
    )


def _thumbnail(
    scored: ScoredImages, labels: Sequence[str], index: int, pixels: Pixels, path: str
) -> Thumbnail:
    label, prediction = scored.labels[index], scored.predictions[index]
    probability = f"{100 * float(scored.probabilities[index]):.0f} %" if label.ndim == 0 else ""
    return Thumbnail(
        data_uri(*stage_data.encoded(pixels)),
        _named(labels, label),
        _named(labels, prediction),
        probability,
        path,
        is_wrong=bool((label != prediction).any()),
        is_small=stage_data.is_small(pixels),
    )


def _named(names: Sequence[str], label: Any) -> str:
    """The name of a class, or of each label that is 1."""
    if label.dtype.kind == "f":
        return _shares(names, np.atleast_1d(label))
    indices = [int(label)] if label.ndim == 0 else label.nonzero()[0].tolist()
    every = (names[index] if index < len(names) else str(index) for index in indices)
    return ", ".join(every) or "none"


def _shares(names: Sequence[str], shares: Array) -> str:
    """Classes of a mixed image, as in `cat 0.7, dog 0.3`."""
    if len(shares) == 1:  # of the second of two classes
        shares = np.array([1 - shares[0], shares[0]])
    largest = [n for n in np.argsort(-shares, kind="stable").tolist() if shares[n] >= _LEAST_SHARE]
    every = ((names[n] if n < len(names) else str(n), shares[n]) for n in largest)
    texts = [name if share > 1 - _LEAST_SHARE else f"{name} {share:.2g}" for name, share in every]
    return ", ".join(texts) or "none"


def training_images(run: RecordedRun) -> Section | None:
    """Training images as the model sees them."""
    images = run.training_images
    if images is None:
        return None
    thumbnails = []
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        uri, small = data_uri(*stage_data.encoded(pixels)), stage_data.is_small(pixels)
        thumbnails.append(Thumbnail(uri, _named(run.labels, label), is_small=small))
    title = "The first images of training, augmented, as the model sees them"
    return section("training", "Training images", [Gallery(title, tuple(thumbnails))])


def cost(run: RecordedRun) -> Section | None:
    """Accuracy against bytes and multiply-adds, with the published models."""
    return cost_section([(run, ACCENT)])


def cost_section(runs: Sequence[tuple[RecordedRun, str]]) -> Section | None:
    """The same of several runs, each with its color."""
    by_size, by_macs = [], []
    for run, color in runs:
        for stage in run.stages:
            label = stage.part.name if len(runs) == 1 else run.name
            is_last = stage is run.stages[-1]
            if stage.bytes and (len(runs) == 1 or is_last):
                by_size.append(Mark(label, stage.bytes, stage.top1, color if is_last else MUTED))
            if stage.macs and (is_last or (len(runs) == 1 and _changes(run, stage, "macs"))):
                by_macs.append(Mark(label, stage.macs, stage.top1, color if is_last else MUTED))
    published = charts.published_models
    return section(
        "cost",
        "Accuracy and cost",
        [
            pictures(
                [
                    charts.accuracy_by_cost(
                        *("accuracy_by_bytes", "Top-1 by size of the file", "bytes"),
                        by_size,
                        published("", "bytes"),
                    ),
                    charts.accuracy_by_cost(
                        *("accuracy_by_macs", "Top-1 by multiply-adds", "multiply-adds an image"),
                        by_macs,
                        published(released_models.FLOAT, "macs"),
                    ),
                ]
            ),
            Note(
                "Gray: the models that Google released, with their published top-1 on ImageNet, "
                "which is not that of other data. Their bytes are computed: four a parameter of a "
                "float model, one of a quantized one."
            ),
        ],
    )


def _changes(run: RecordedRun, stage: StageReport, name: str) -> bool:
    """Whether no later stage has the same value of a figure."""
    after = run.stages[run.stages.index(stage) + 1 :]
    return all(getattr(later, name) != getattr(stage, name) for later in after)


def weights(run: RecordedRun) -> Section | None:
    """Sparsity by layer, remaining channels, changes of masks, histograms before and after."""
    kernels = run.kernels
    changes = [
        charts.mask_changes(f"{stage.part}_mask_changes", stage.mask_changes)
        for stage in run.stages
        if stage.mask_changes
    ]
    if not kernels:
        return section("weights", "Weights", [pictures(changes)])
    after = list(kernels.values())[-1]
    before = {kernel.layer: kernel for kernel in next(iter(kernels.values()))}
    first, last = next(iter(kernels)), list(kernels)[-1]
    sparse = [kernel for kernel in after if kernel.sparsity >= 0.005]
    rows = [(k.layer, 100 * k.sparsity, f"{100 * k.sparsity:.0f}") for k in after]
    title = f"Zeros in each kernel after {last}"
    drawn = [charts.bars("sparsity_by_layer", title, rows, "%", highest=100) if sparse else None]
    histograms = pictures(
        _histograms(before if first != last else {}, after),
        "small",
        f"Weights that are not zero after {last}"
        + (f", in gray those after {first}" if first != last else ""),
    )
    return section(
        "weights",
        "Weights",
        [
            columns(pictures([*drawn, _channels(before, after), *changes], "stacked"), histograms),
        ],
    )


def _channels(before: dict[str, Kernel], after: Sequence[Kernel]) -> Any:
    """Output channels of each layer, if some were removed."""
    pairs = [(before[k.layer], k) for k in after if k.layer in before and k.role != "depthwise"]
    if all(old.outputs == new.outputs for old, new in pairs):
        return None
    rows = [(new.layer, new.outputs, f"{new.outputs} of {old.outputs}") for old, new in pairs]
    widths = [old.outputs for old, _ in pairs]
    return charts.bars("channels", "Remaining channels", rows, "output channels", widths)


def _histograms(before: dict[str, Kernel], after: Sequence[Kernel]) -> list[Any]:
    """Of the layers with most zeros where there are many layers."""
    chosen = set(
        sorted(range(len(after)), key=lambda n: (-after[n].sparsity, -after[n].weights))[
            :_HISTOGRAMS
        ]
    )
    return [
        charts.histogram(f"weights_{number:02d}", before.get(kernel.layer), kernel)
        for number, kernel in enumerate(after)
        if number in chosen
    ]


def quantization(run: RecordedRun) -> Section | None:
    """Signal-to-noise of each layer of the file, and what the noise comes from."""
    last = run.last
    verification = {} if last is None else last.details.get("verification")
    layers = verification.get("layers") if isinstance(verification, dict) else None
    measured = [
        (str(row.get("layer")), ratio, str(row.get("diagnosis", "")))
        for row in (layers if isinstance(layers, list) else [])
        if isinstance(row, dict) and (ratio := finite(row.get("signal_to_noise"))) is not None
    ]
    if not measured:
        return None
    bars = [(layer, max(ratio, 0.0), f"{ratio:.0f}") for layer, ratio, _ in measured]
    rows = tuple(
        (layer, f"{ratio:.1f}", diagnosis)
        for layer, ratio, diagnosis in sorted(measured, key=lambda row: row[1])
    )
    headers = ("layer", "dB", "noise comes from")
    title = "Signal-to-noise ratio of each layer"
    return section(
        "quantization",
        "Quantization noise",
        [
            Note(
                "The outputs of each layer in the file against those of the float model. 6 dB are "
                "one bit; a sudden drop from one layer to the next is where accuracy is lost."
            ),
            columns(
                pictures([charts.bars("quantization_noise", title, bars, "dB")], "stacked"),
                Table(headers, rows[:10], "The layers with most noise"),
            ),
            Table(headers, rows[10:], f"The other {len(rows) - 10} layers", True)
            if rows[10:]
            else None,
        ],
    )


def config(run: RecordedRun) -> Section | None:
    """The fields of the config that differ from the recipe, then all."""
    changed = tuple((d.field, d.values[1], d.values[0]) for d in run.differences())
    headers = ("field", "this run", "recipe")
    text = json.dumps(run.config.to_json(), indent=2, ensure_ascii=False)
    title = "Differences from the recipe of the model and data set"
    return section(
        "config",
        "Config",
        [Table(headers, changed, title) if changed else None, Code(text, "Whole config", True)],
    )


def commands(run: RecordedRun) -> Section | None:
    """Commands that reproduce the run and use its model."""
    lines = []
    typed = run.environment.get("command")
    if isinstance(typed, list) and typed and all(isinstance(word, str) for word in typed):
        module = {"trainer.py": "python -m mobilenet.trainer"}.get(PurePath(typed[0]).name)
        lines += [
            "# as it was started",
            " ".join([module or shlex.quote(typed[0]), *map(shlex.quote, typed[1:])]),
        ]
    folder, again = shlex.quote(run.location), shlex.quote(f"{run.location}_again")
    lines += [
        "# the same config again",
        f"python -m mobilenet.trainer --config_file {folder}/{CONFIG} --model_dir {again}",
    ]
    if run.last is not None:
        part = run.last.part
        is_file = part.stage == "convert"
        model = shlex.quote(f"{run.location}/{EXPORT if is_file else part.name}")
        lines += [
            "# its accuracy, class by class",
            f"python -m mobilenet.evaluator --model {model} {data_flags(run.config)}",
            "# the class of a photo",
            f"python -m mobilenet.predict --model {model} PHOTO.jpg",
        ]
    return section("commands", "Commands", [Code("\n".join(lines))])


def data_flags(config: RunConfig) -> str:
    """The flags of the data of a run."""
    name = f"--dataset_name {shlex.quote(config.dataset.name)}"
    folder = config.dataset.data_dir
    return f"{name} --data_dir {shlex.quote(str(folder))}" if folder else name


def environment(run: RecordedRun) -> Section | None:
    """Seed, date, commit, processor and versions."""
    values = run.environment
    rows = [("seed", str(run.config.seed))]
    for name in ("date", "commit", "processor", "cores", "platform", "python"):
        if name in values:
            rows.append((name, str(values[name])))
    packages = values.get("packages")
    if isinstance(packages, dict):
        rows += [(str(name), str(version)) for name, version in packages.items()]
    return section("environment", "Environment", [Table(("", ""), tuple(rows))])


ALL: tuple[Build, ...] = (
    stages,
    learning_curves,
    classes,
    mistakes,
    training_images,
    cost,
    weights,
    quantization,
    config,
    commands,
    environment,
)
