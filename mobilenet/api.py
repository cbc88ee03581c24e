"""The functions of the public API: each takes models and arrays in memory, or paths, and calls the
package that does the work.

Nothing heavy is imported before a function needs it: `import mobilenet` does not wait for
TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mobilenet.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf

    from mobilenet.compression.pruning.channel.surgery import Thinned
    from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
    from mobilenet.configs.archs import MobileNetConfig
    from mobilenet.configs.base import ImageSize
    from mobilenet.configs.card import Card
    from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
    from mobilenet.configs.dataset import DatasetConfig, Preprocessing
    from mobilenet.configs.pruning import Pruning
    from mobilenet.configs.quantization import PostTraining, QuantizationAwareTraining
    from mobilenet.configs.released_weights import WeightNames
    from mobilenet.configs.sweep import SweepConfig
    from mobilenet.configs.weight_sharing import FewValues, TfmotClustering
    from mobilenet.evaluation.result import Evaluation
    from mobilenet.export.converted_file import ConvertedFile
    from mobilenet.export.verification.verify import Verification
    from mobilenet.models.saving import LoadedModel
    from mobilenet.packing.packed_file import PackedFile
    from mobilenet.reporting.model_profile import ModelProfile
    from mobilenet.reporting.tflite_profile import FileProfile
    from mobilenet.runtime.classifier import Classifier
    from mobilenet.sweeps.results import SweepResult
    from mobilenet.tflite.model import Flatbuffer
    from mobilenet.training.compression import Compression
    from mobilenet.training.optimization.rate_finder import RateCurve
    from mobilenet.training.training_run import TrainingRun
    from mobilenet.typing import KerasModel


def build(
    name_or_config: str | MobileNetConfig,
    input_shape: int | Sequence[int | None] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    keras: Any = None,
    offline: bool = False,
    **fields: Any,
) -> KerasModel:
    """Builds a MobileNet from stock Keras layers.

    Args:
        name_or_config: one of `list_models()`, such as `"mobilenet_v2"`, or a config of
            `mobilenet.configs.archs`.
        input_shape: `(height, width, channels)`, or one number for square RGB images. 224 when left
            out, as in the papers. Height and width may be `None` unless `global_pool` is off.
        weights: what to start from. `"imagenet"`: the best weights that were released for the
            model, its width and the nearest image size. A name of `list_weights()`. Or the path of
            a model folder, a `.keras` file, a SavedModel, a checkpoint of TF1 or TF2, a `.h5`
            file, of this library or of keras.applications, also with a head of its own, or timm's
            `.safetensors` file. They are matched by layer; the head stays new where the number of
            classes differs or the head is another one. A model by name without `num_classes` has
            the classes of released weights. Random when left out. Batch norms then have a momentum
            of 0.9 instead of 0.99, as fine-tuning takes few steps; `batch_norm_decay=` says
            otherwise.
        keras: the package of the layers: `tf_keras` when left out, or Keras 3's `keras`. Only
            tf_keras models can be pruned, quantized and converted.
        offline: fetch no released weights; those in the cache can be used. `MOBILENET_OFFLINE=1`
            does the same everywhere.
        **fields: fields of the config that differ from its own, such as `width_multiplier=0.35`,
            `num_classes=10` or `classifier_activation=None`, which gives logits.

    Returns:
        A functional model from images `[batch, height, width, channels]`, in [-1, 1], to
        probabilities `[batch, num_classes]`; to logits without a `classifier_activation`, to
        features with `num_classes=0`.

    Raises:
        UsageError: there is no such model, field or file of weights; a value is not legal; the
            input is too small for the strides; the weights are another model's; or released ones
            cannot be fetched or have another checksum.

    Examples:
        >>> import mobilenet
        >>> model = mobilenet.build("mobilenet_v2", 96, width_multiplier=0.35, num_classes=10)
        >>> model.output_shape
        (None, 10)
    """
    from mobilenet.configs import archs
    from mobilenet.models import builder

    config = archs.config_of(name_or_config, fields)
    shape = builder.IMAGENET_SHAPE if input_shape is None else input_shape
    if weights is None:
        return cast("KerasModel", builder.build(config, shape, keras))
    from mobilenet.training import initial_weights

    keeps_classes = "num_classes" in fields or not isinstance(name_or_config, str)
    return initial_weights.build(config, shape, weights, keras, offline, keeps_classes)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that `build` knows.

    Args:
        pattern: a shell pattern; all names by default.

    Examples:
        >>> list_models("*v3*minimalistic")
        ['mobilenet_v3_large_minimalistic', 'mobilenet_v3_small_minimalistic']
    """
    from mobilenet.configs import archs

    return archs.names(pattern)


def list_weights(pattern: str = "*") -> WeightNames:
    """Names of the released weights that `build`, `train` and `load_model` fetch.

    Google's have the names of its archives (the first V1 release `2018_02_22/` before it), the
    files of keras.applications `keras/` and the name of the archive with the same model.

    Args:
        pattern: a shell pattern of names, of what follows a `/`, or of names of models; all names
            by default.

    Returns:
        A list of names; `str()` shows a table with image sizes, multiply-adds, parameters and the
        published top-1.

    Examples:
        >>> list_weights("mobilenet_v2_1.4*")
        ['mobilenet_v2_1.4_224', 'keras/mobilenet_v2_1.4_224']
    """
    from mobilenet.configs import released_weights

    return released_weights.names(pattern)


def save_model(
    model: Any,
    path: str | os.PathLike[str],
    card: Card | None = None,
    *,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model as a folder of `model.keras` and `card.json`, whole or not at all.

    The optimizer is left out. `load_model` reads the folder.

    Args:
        model: a functional or Sequential tf_keras model.
        path: the folder.
        card: what is known of the model (preprocessing, labels); by default what can be read from
            it.
        preprocessing: for a card that is not given; see `quantize`.
        overwrite: replace a model that is there.

    Returns:
        The folder.

    Raises:
        UsageError: there is a model and `overwrite` is false, the folder holds other files, or it
            cannot be written.

    Examples:
        >>> model = build("mobilenet_v1", (32, 32, 3), width_multiplier=0.25)
        >>> save_model(model, "models/small")
    """
    from mobilenet import files
    from mobilenet.models import input_preprocessing, saving

    files.check_target(path, "path", replaces=(saving.MODEL, "a model"), overwrite=overwrite)
    if card is None:
        card = input_preprocessing.complete_card(
            saving.with_card(model).card, model.name, preprocessing, from_files=False
        )
    return saving.save(model, path, card)


def prune(
    model: Any,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    steps: int,
    config: Pruning | None = None,
    data: Any = None,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Compression:
    """Prunes a model while a training loop of your own trains it.

    Weights of the smallest magnitude become zero, more and more of them, until 60 % of the steps
    are done; the rest lets the others recover (Zhu and Gupta, arXiv 1710.01878).

    Args:
        model: a functional or Sequential tf_keras model that is trained; left as it is.
        sparsity: share of zeros. A number is for all kernels but those of stem, depthwise
            convolutions, squeeze-excites and classifier, which hold few weights and lose accuracy
            first; a model that has no others is pruned everywhere. A mapping names roles
            (`pointwise`, `fused`, `depthwise`, ...) or regular expressions of layer names. 0.5 by
            default.
        steps: updates of the weights that training will take, batches an epoch times epochs: the
            schedule is laid out over them.
        config: another method or schedule instead of `sparsity`: `MagnitudePruning` (with N:M and
            block patterns), `DnsPruning`, `ChannelPruning`, `TfmotPruning` of
            `mobilenet.configs.pruning`.
        data: for channel pruning, images `[n, height, width, channels]` as the model takes them,
            or `(images, labels)`, or batches of either.
        preprocessing: how pixels became `data`; see `quantize`.
        seed: of everything random in the method.

    Returns:
        `.model` to compile and fit, `.callbacks`, `.report`, and `.finish()`, which returns the
        pruned float32 model.

    Raises:
        UsageError: an argument is wrong, or the method cannot be applied to the model.

    Examples:
        >>> pruning = prune(model, sparsity=0.75, steps=40)
        >>> pruning.model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = pruning.model.fit(images, labels, epochs=10, callbacks=pruning.callbacks)
        >>> pruned = pruning.finish()
    """
    from mobilenet.training import compression

    return compression.prune(model, sparsity, steps, config, data, preprocessing, seed)


def quantize_aware(
    model: Any,
    images: Any,
    *,
    steps: int,
    config: QuantizationAwareTraining | FewValues | TfmotClustering | None = None,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Compression:
    """Quantization-aware training in a training loop of your own.

    The model is trained with the arithmetic of the int8 file in its forward pass (Jacob et al.,
    arXiv 1712.05877). A learning rate of a tenth of that of the float training, and a tenth of its
    epochs, are usual.

    Args:
        model: a functional or Sequential tf_keras model that is trained; left as it is. A softmax
            or sigmoid at its end stays in training, in float, and is left out of the result.
        images: training images `[n, height, width, channels]` as the model takes them, or batches
            of them; the first ones (256 by default) set the activation ranges.
        steps: updates of the weights that training will take, batches an epoch times epochs. After
            70 % of them batch-norm statistics and ranges are frozen.
        config: other settings of `QuantizationAwareTraining`, or `CodebookQuantization`,
            `LinearQuantization` or `TfmotClustering` of `mobilenet.configs.quantization`, which
            leave few distinct weights in a float model.
        preprocessing: how pixels became `images`; see `quantize`.
        seed: of everything random in the method.

    Returns:
        `.model` to compile and fit, `.callbacks`, `.report`, and `.finish()`, which returns a
        `QuantizedModel`, as `quantize` does (a float model with few distinct weights if `config` is
        one of those).

    Raises:
        UsageError: an argument is wrong, or a layer of the model has no int8 form.

    Examples:
        >>> training = quantize_aware(model, images, steps=20)
        >>> training.model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = training.model.fit(images, labels, epochs=5, callbacks=training.callbacks)
        >>> quantized = training.finish()
    """
    from mobilenet.training import compression

    return compression.quantize_aware(model, images, steps, config, preprocessing, seed)


def thin(
    model: Any,
    ratio: float | Mapping[str, float] = 0.5,
    *,
    images: Any = None,
    round_to: int = 16,
    importance: str = "magnitude",
    scope: str = "group",
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Thinned:
    """Removes the least important channels of a model, without training.

    Args:
        model: a functional or Sequential tf_keras model; left as it is.
        ratio: the share of channels to remove from every group of layers that share them, or a
            share by role or by regular expression of layer names.
        images: `[n, height, width, channels]` as the model takes them, or batches of them; with
            them the layers that read removed channels are fitted again to their former outputs by
            least squares (He et al., arXiv 1707.06168). 500 are enough, labels are not needed.
        round_to: channel counts are multiples of it: 16 for int8 files and 32 for float ones, whose
            kernels work in such tiles; 1 for exact ratios.
        importance: `magnitude`, `l2`, `batch_norm_scale`, `geometric_median` or `random`.
        scope: rank channels by `group` or `global`.
        preprocessing: how pixels became `images`, whose range is checked where it is known; see
            `quantize`.
        seed: for `random`.

    Returns:
        `.model`; `.config`, which builds it (`None` for your own models); `.verify(images)`, which
        compares it with the original model without the removed channels.

    Raises:
        UsageError: an argument is wrong, or the channels of a layer cannot be followed.

    Examples:
        >>> thinned = thin(model, 0.5, images=images)
        >>> thinned.verify(images) < 1e-5
        True
    """
    from mobilenet.compression.pruning.channel import surgery
    from mobilenet.data import in_memory
    from mobilenet.models import input_preprocessing
    from mobilenet.models.graph import flatten

    flat = flatten.flatten(model)
    thinned = surgery.thin(flat, ratio, round_to, importance, scope=scope, seed=seed)
    if images is None:
        return thinned
    known = input_preprocessing.known(model, preprocessing)
    shape = flat.input_shape[1:]
    array = in_memory.load_examples(images, shape, 500, preprocessing=known).images
    if known is not None:
        in_memory.check_range(array, known)
    return surgery.reconstruct(flat, thinned, array)


def evaluate(
    model: KerasModel | LoadedModel | ConvertedFile | Classifier | str | os.PathLike[str],
    data: str | os.PathLike[str] | DatasetConfig | tuple[Any, Any] | tf.data.Dataset,
    *,
    preprocessing: str | Preprocessing | Sequence[Any] | None = None,
    crop: str | float | None = None,
    split: str = "test",
    batch_size: int = 32,
    limit: int | None = None,
    labels: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    exif: bool | None = None,
) -> Evaluation:
    """Top-1, top-5 and loss of a classifier on labeled images; of a sigmoid AUC and F1.

    And what explains them: each class, what it is taken for, calibration, the prediction for each
    image. A file on arrays, the digits, class folders or a list is evaluated without TensorFlow.

    Args:
        model: a functional or Sequential tf_keras model with one output a class, as logits or
            after a softmax or sigmoid (one output for two classes is that of the second); what
            `load_model` or `quantize` returns; a file that `convert` returns; the path of a saved
            model in any form or of a `.tflite` file; or the name of released weights.
        data: images with labels, as

            - a path: class folders (`ROOT/<class>/*.jpg`, maybe below `train`, `val` and `test`), a
              CSV list with the columns `file` and `label`, or a folder of ImageNet-like records;
            - the name of a data set: `digits`, or one of TFDS;
            - `(images, labels)`: `[n, height, width, channels]` as the model takes them (of a file
              also uint8 pixels), and class indices `[n]` or one-hot vectors `[n, classes]`; of a
              sigmoid with several labels 0 or 1 for each, `[n, labels]`;
            - a batched `tf.data.Dataset` of such pairs;
            - a `DatasetConfig`, to leave out corrupt images or shift labels.
        preprocessing: how pixels 0..255 become the model's inputs, which arrays and batches are
            already: the name of a `mobilenet.configs.dataset.PREPROCESSING` or a `Preprocessing`,
            or `(mean, std)`. By default what is stored with the model or read from its first
            layers; otherwise a line of the log says what is assumed.
        crop: the part of each image that is read from a path or a data set: `central` (0.875 of
            each side), `square` or `none`, or the share of each side that is kept. By default that
            of the preprocessing.
        split: of a path or name: `train`, `validation` or `test`. Where only one set is held out,
            validation and test are both that set.
        batch_size: images a call of a Keras model. 32 fits into any memory.
        limit: the largest number of images, spread evenly; all by default.
        labels: class names by index, where they are not stored with the model. Class folders are
            then matched by name. Of one output the names of both classes, or of the second alone.
        data_dir: where a data set that is named lies.
        exif: of a path or name: turn images upright, by the orientation in their EXIF data. By
            default as the model was trained.

    Returns:
        The figures; `str()` shows them as a table. `.per_class`, `.confusion`, `.confusions`,
        `.calibration` and `.predictions` explain them, `.classification_report()` as text;
        `.save(folder)` writes all as CSV, JSON and a picture.

    Raises:
        UsageError: the model is no classifier or cannot be read; images have another shape or range
            than the model's inputs or are not finite; labels are no class indices; there are no
            images; or the classes of data and model do not match. Names the parameter.

    Examples:
        >>> images = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
        >>> evaluate(model, (images, np.arange(8))).images
        8
    """
    from mobilenet.evaluation import pipeline

    options = pipeline.Options(split, batch_size, limit, labels, preprocessing, exif, crop)
    if isinstance(model, (str, os.PathLike)):
        return pipeline.evaluate(_opened(model), data, options, data_dir, os.fspath(model))
    return pipeline.evaluate(model, data, options, data_dir)


def profile(
    model: KerasModel | LoadedModel | ConvertedFile | Classifier | str | os.PathLike[str],
    *,
    latency: bool = True,
    packed: bool = True,
    image_size: ImageSize | None = None,
    micro: bool = False,
    isolated: bool = False,
) -> ModelProfile | FileProfile:
    """Parameters, cost, zeros and time of each layer of a model or each operator of a file.

    Args:
        model: a functional or Sequential tf_keras model; what `load_model`, `quantize` or
            `convert` returns; or the path of a saved model or a `.tflite` file. Of a quantized
            model the float model is shown, whose layers it has; layers of nested models count as
            the model's own.
        latency: measure every layer, and the whole, on one thread of this machine; takes seconds.
        packed: of a model: pack and convert it to show its sizes.
        image_size: of a model that leaves its size open: the side of a square, or height and width,
            in pixels.
        micro: of a file: find out what a microcontroller needs to run it.
        isolated: run a file in a process of its own, which a damaged one may crash. Use it for
            files from others.

    Returns:
        For a model its layers, groups of channels that must be pruned together, and zeros; for a
        file its operators. `str()` shows a table as wide as the terminal at most.

    Raises:
        UsageError: the model or file cannot be read; a size is open; or an option is of the other
            kind. Names the parameter.

    Examples:
        >>> found = profile(model, latency=False, packed=False)
        >>> found.total().params == model.count_params()
        True
    """
    file = _flatbuffer_of(model)
    foreign = {"micro": micro, "isolated": isolated} if file is None else {"image_size": image_size}
    for name, value in foreign.items():
        if value:
            raise UsageError(name, value, "a file" if file is None else "a model")
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    if file is not None:
        from mobilenet.reporting import tflite_profile

        return tflite_profile.profile(file, latency, micro, isolated, path or "flatbuffer")
    from mobilenet.loading import load_keras_model
    from mobilenet.reporting import model_profile

    opened = load_keras_model(path) if path else model
    return model_profile.profile_model(opened, latency, packed, image_size)


def pack(
    model: KerasModel | LoadedModel | QuantizedModel | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    fold_batch_norm: bool = False,
    overwrite: bool = False,
    preprocessing: str | Preprocessing | Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
) -> PackedFile:
    """Packs a model into one small file: zeros and repeated weights cost next to nothing.

    Weights, architecture, card, and the ranges of a quantized model are given back bit by bit by
    `unpack`; all are read back and compared before anything is written. Best after `prune` or
    weight sharing.

    Args:
        model: a functional or Sequential tf_keras model of stock layers; what `load_model`,
            `quantize` or `unpack` returns; or the path of a model folder, `.keras` or `.h5` file or
            SavedModel.
        path: the file, of any name; nothing is written without it.
        fold_batch_norm: round batch norms to a float16 scale and offset a channel, half of their
            bytes; this is not lossless.
        overwrite: replace an earlier packed model.
        preprocessing: for the card, see `evaluate`; by default what is stored with the model or
            read from its first layers.
        labels: class names by index, for the card, where they are not stored with the model.

    Returns:
        `.content`, the bytes; `.ratio`, how many times smaller they are than the weights; and
        `.save(path)`.

    Raises:
        UsageError: the model cannot be read, is not made of stock layers, or has a weight that is
            not finite; or there is such a file already. Names the parameter.
        VerificationError: what was packed differs from the model.

    Examples:
        >>> packed = pack(model, "model.packed")
        >>> unpack("model.packed").model.count_params() == packed.weights
        True
    """
    from mobilenet.packing import pipeline

    return pipeline.pack(model, path, fold_batch_norm, overwrite, preprocessing, labels)


def unpack(path: str | os.PathLike[str]) -> LoadedModel:
    """The model of a packed file, with its weights bit by bit.

    Args:
        path: a file that `pack` wrote.

    Returns:
        As `load_model(path)`: the model and its card; a `QuantizedModel` where the file has ranges.

    Raises:
        UsageError: there is no such file, or it is no packed model or damaged.
    """
    from mobilenet.packing import container

    container.read(path)  # names what another kind of file is, before TensorFlow is loaded
    from mobilenet.loading import load_model

    return load_model(path)


def train(
    data: str | os.PathLike[str] | DatasetConfig,
    *,
    model: str | os.PathLike[str] | MobileNetConfig | KerasModel | LoadedModel = "mobilenet_v1",
    weights: str | os.PathLike[str] | None = None,
    stages: Sequence[str] = ("train", "prune", "quantize", "convert"),
    model_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    offline: bool = False,
    **config: Any,
) -> TrainingRun:
    """Trains a MobileNet or your own model, prunes, quantizes and converts it, in one run folder.

    The same call on the same folder continues a run that was interrupted. Where all stages are
    finished it returns at once, without TensorFlow. `python -m mobilenet.trainer` calls it too.
    Progress goes to the log "mobilenet": `logging.basicConfig(level=logging.INFO)` shows it.

    Args:
        data: a path: class folders (`ROOT/<class>/*.jpg`, maybe below `train`, `val` and `test`), a
            CSV list with the columns `file` and `label`, or a folder of ImageNet-like records; or
            the name of a data set: `digits`, or one of TFDS; or a `DatasetConfig`.
        model: one of `list_models()`, or a config of `mobilenet.configs.archs`. The number of
            classes is that of the data. Or a trained model of your own, as a tf_keras model or the
            path of a saved one: `train` fine-tunes it, the other stages work on it as it is. Its
            classes must be those of the data; its image size, channels and final activation stay.
        weights: what to start from, as `build` takes it: `"imagenet"`, a name of `list_weights()`
            or a path. Random when left out. Your own model has its own.
        stages: any of train, prune, quantize and convert, in this order. Further stages can be
            added to the same folder later.
        model_dir: the run folder; `runs/MODEL_DATASET` when left out. Text with `://`, such as
            `gs://bucket/run`, is on object storage; so may be the records of `data`.
        overwrite: replace the run in the folder.
        offline: see `build`.
        **config: fields of the run's config that differ from the recipe of model and data, by the
            names of the trainer's flags, such as `epochs=10`, `image_size=96` or `(48, 96)`,
            `channels=1` for gray, `width_multiplier=0.5`, `pruning="channel"` or a config of
            `mobilenet.configs.pruning`.
            Further fields by their path, as in `**{"train.op_momentum": 0.8}`.

    Returns:
        The run: `.report` (a table by `str()`), `.file` (path of the `.tflite` file), `.model()`,
        `.evaluate()`, `.folder` and `.config`. The folder has a page of it, `report.html`.

    Raises:
        UsageError: a value is not legal, the data cannot be used, the folder holds another run, or
            a stage has no model to start from. Before training begins, nothing is written.
        VerificationError: the file does not agree with the model; no file is written.

    Examples:
        >>> import mobilenet
        >>> stages = ("train", "convert")
        >>> run = mobilenet.train("digits", stages=stages, width_multiplier=0.25, epochs=1)
        >>> run.file.name
        'model.tflite'
    """
    from mobilenet.training import run_parameters, training_run

    request = run_parameters.request(data, model, weights, stages, config, model_dir)
    with request.naming_parameters():
        run = training_run.execute(
            request.config, request.folder, request.explicit, overwrite, request.loaded, offline
        )
    from mobilenet.reporting import page

    page.write_after_run(run)
    run.publish()
    return run


def sweep(
    data: str | os.PathLike[str],
    sweep: str | os.PathLike[str] | Mapping[str, Any] | SweepConfig,
    *,
    model: str | os.PathLike[str] = "mobilenet_v1",
    weights: str | os.PathLike[str] | None = None,
    stages: Sequence[str] = ("train", "prune", "quantize", "convert"),
    model_dir: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    overwrite: bool = False,
    offline: bool = False,
    **config: Any,
) -> SweepResult:
    """Trains many settings of a config, each with each seed, and compares them.

    Each run is a process of the trainer command with a folder of its own in `model_dir`. One that
    fails does not end the sweep. The same call on the same folder continues: finished runs are not
    run again, interrupted ones resume, settings and seeds that were added are run.

    Args:
        data, weights, stages, overwrite, offline: as for `train`, data and weights by name or path.
        sweep: the path of a YAML file, or a mapping as it has: `parameters`, the values of each
            field by its path, such as `{"train.lr": [0.001, 0.01]}` or
            `{"train.lr": {"min": 1e-4, "max": 1e-2, "log": True}}`; `method`: grid, random or bayes
            (by Optuna); `trials`, the settings of the last two; `seed` of their choice; `seeds` of
            the runs; and `metric`, as in `{"name": "val_top1"}`.
        model: the name of a MobileNet or the path of a saved model of your own.
        model_dir: the folder of the sweep; `runs/MODEL_DATASET_sweep` when left out.
        jobs: runs at once.
        **config: as for `train`, of all runs, plain values alone.

    Returns:
        The settings, the best first: `.best`, `.trials` with `.settings`, `.mean`, `.std` and
        `.runs`, `.failed`; a table by `str()`. The folder has them as `results.json` and
        `results.csv`, and a page, `report.html`.

    Raises:
        UsageError: a value is not legal, or the folder holds another sweep. Before the first run,
            nothing is written.

    Examples:
        >>> import mobilenet
        >>> result = mobilenet.sweep(
        ...     "digits", {"parameters": {"train.lr": [0.001, 0.004]}, "seeds": [0, 1, 2]}
        ... )
        >>> result.best.settings
        {'train.lr': 0.004}
    """
    from mobilenet.sweeps import parameters
    from mobilenet.sweeps import sweep as sweeps

    request = parameters.request(
        *(data, sweep, model, weights, stages, config, model_dir),
        jobs=jobs,
        overwrite=overwrite,
        offline=offline,
    )
    return sweeps.execute(request)


def find_learning_rate(
    data: str | os.PathLike[str] | DatasetConfig,
    *,
    model: str | os.PathLike[str] | MobileNetConfig | KerasModel | LoadedModel = "mobilenet_v1",
    weights: str | os.PathLike[str] | None = None,
    stages: Sequence[str] = ("train",),
    steps: int = 100,
    lowest: float = 1e-6,
    highest: float = 1.0,
    offline: bool = False,
    **config: Any,
) -> RateCurve:
    """Suggests a peak learning rate, from the losses of some steps at rising rates.

    Trains a copy of what the first of `stages` starts from, one step a rate; nothing is saved. The
    search ends early where the loss has diverged (Smith, arXiv 1506.01186).

    Args:
        data, model, weights, offline: as for `train`.
        stages: the first of them is tried, with its optimizer, batches, augmentation and method.
        steps: updates; each takes as long as one of training.
        lowest: rate of the first step.
        highest: rate of the last step; in between they rise by a constant factor.
        **config: as for `train`.

    Returns:
        The curve: `.suggestion`, `.rates`, `.losses`, `.smoothed`, `.save_plot(path)`; a table by
        `str()`.

    Raises:
        UsageError: a value is not legal, the data cannot be used, or the stage does not train; of
            `.suggestion` also where the loss does not fall.

    Examples:
        >>> curve = mobilenet.find_learning_rate(
        ...     "digits", width_multiplier=0.25, image_size=32, steps=60
        ... )
        >>> 1e-5 < curve.suggestion < 1
        True
    """
    from mobilenet.training import run_parameters, training_run
    from mobilenet.training.optimization.rate_finder import RateSearch

    search = RateSearch(steps, lowest, highest)
    request = run_parameters.request(data, model, weights, stages, config)
    with request.naming_parameters():
        return training_run.find_rate(
            request.config, request.explicit, search, request.loaded, offline
        )


def quantize(
    model: Any,
    images: Any,
    *,
    config: PostTraining | None = None,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> QuantizedModel:
    """Quantizes a trained model to int8 without training.

    Kernels have one scale a channel, activations one range each, taken from `images`. Steps that
    lessen the loss (cross-layer equalization, bias correction and more, chosen by the activations
    of the model) are fitted on one half of the images and reverted unless they help on the other.

    Args:
        model: a functional or Sequential tf_keras model that is trained, or what `load_model`
            returns; left as it is. Models called as layers are flattened; augmentation layers,
            which do nothing in inference, and a softmax or sigmoid at the end are left out: the
            outputs are logits.
        images: float32 `[n, height, width, channels]` as the model takes them, or batches of them
            or of `(images, labels)`, as of a `tf.data.Dataset`; labels are not used. At least 8;
            100 are enough for most models. Of more than `config.calibration_images` (200 by
            default) that many are taken: of an array spread evenly, of batches the first ones.
        config: which steps, for how long, and layers that compute in float (`keep_float`).
        preprocessing: how pixels 0..255 became the model's inputs, which decides the input grid of
            the file: the name of a `mobilenet.configs.dataset.PREPROCESSING` or a `Preprocessing`,
            or `(mean, std)`. By default what is stored with the model or read from its first
            layers; otherwise [-1, 1] is assumed, which a line of the log says.
        labels: class names by index, for the card of the file.
        seed: of sampling and of the order of tuning.

    Returns:
        `.model` with quantizers, which computes as the int8 file will; `.steps`, with their
        effect; `.save(path)`; and `convert` makes it a file.

    Raises:
        UsageError: the model has a layer without an int8 form or a weight that is not finite; or
            the images are too few, of another shape, type or range than the model takes, or not
            finite. Names the parameter.

    Examples:
        >>> quantized = quantize(model, images)
        >>> [step.name for step in quantized.steps if step.accepted][0]
        'maximum'
    """
    from mobilenet.export import in_memory

    return in_memory.quantize(model, images, config, preprocessing, labels, seed)


def convert(
    model: Any,
    *,
    number_format: str | None = None,
    images: Any = None,
    config: ConversionConfig | None = None,
    calibration: Any = None,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
    labels: Sequence[str] | None = None,
    limits: VerificationLimits | None = None,
) -> ConvertedFile:
    """Converts a model to a TFLite file in memory, which is verified against it.

    Of an int8 file every operator is compared with its layer, of other files the outputs.

    Args:
        model: what `quantize` or `quantize_aware` gives becomes int8; a float model (functional or
            Sequential tf_keras model, or what `load_model` returns) becomes float32 or another
            `number_format`. Left as it is.
        number_format: one of `mobilenet.configs.number_formats.FORMATS`, such as `"float16"` or
            `"dynamic_range"`; `"float32"` of a quantized model is its float model.
        images: float32 `[n, height, width, channels]` as the model takes them, or batches of them,
            on which the file is verified; 100 are enough. Without any that is done on images of
            noise, which `.notes` says.
        config: type of the input and output, batch, image size of a model that leaves it open,
            softmax or sigmoid at the end, and target.
        calibration: images for the ranges of `int16x8` and `edge_static`; by default `images`.
        preprocessing: of a float model; see `quantize`.
        labels: class names by index, where they are not known yet.
        limits: figures that the file must reach; by default an operator may differ by one
            quantization step, and agreement is reported alone.

    Returns:
        `.content`, the bytes; `.verification`; `.save(path)`, which writes the file, or a folder
        with its card, labels and a README; `.classifier()`, which runs it.

    Raises:
        VerificationError: the file differs from the model.
        UsageError: the model cannot be converted to that format, or images are of another shape,
            type or range than the model takes. Names the parameter.

    Examples:
        >>> file = convert(quantized, images=images)
        >>> file.verification.contents
        'int8'
        >>> path = file.save("model.tflite")
    """
    from mobilenet.export import in_memory

    return in_memory.convert(
        model, number_format, images, config, calibration, preprocessing, labels, limits
    )


def verify(
    file: str | os.PathLike[str] | bytes | ConvertedFile,
    model: Any,
    images: Any,
    *,
    limits: VerificationLimits | None = None,
    preprocessing: Preprocessing | str | tuple[Any, Any] | None = None,
) -> Verification:
    """Compares a TFLite file with the model that it was made from; writes nothing.

    Args:
        file: the path of a `.tflite` file or of an export folder, the bytes of a file, or what
            `convert` returns.
        model: a `QuantizedModel` is compared operator by operator with an int8 file; a float model
            by its outputs with a file of any number format.
        images: float32 `[n, height, width, channels]` as the model takes them, or batches of them.
        limits: figures that the file must reach. By default an operator of an int8 file may differ
            from its layer by one quantization step. Outputs must have the float model's top-1 on
            0.9 of the images whose margin exceeds two steps, and a signal-to-noise ratio of 6 dB,
            of float32 files 60 dB; a file of another model misses both.
        preprocessing: of a float model; see `quantize`.

    Returns:
        What the file contains, and the comparison.

    Raises:
        VerificationError: the file differs from the model.
        UsageError: the file or the images cannot be used. Names the parameter.

    Examples:
        >>> verify("model.tflite", quantized, images).agreement > 0.9
        True
    """
    from mobilenet.export import in_memory

    return in_memory.verify(file, model, images, limits, preprocessing)


def write_report(
    *runs: str | os.PathLike[str] | TrainingRun, output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes what a run reached as one HTML page that needs no network, with its pictures.

    `train` does so at its end. Of a run that is not finished the page has what there is.

    Args:
        *runs: folders of runs, or what `train` returns; the page compares several. Or the folder
            of one sweep, whose results are written too.
        output: the folder of `report.html` and `plots/`; when left out that of the run, or
            `comparison` for several.

    Returns:
        The path of the page.

    Raises:
        UsageError: a folder is no run or a file of it is damaged, or the page cannot be written.

    Examples:
        >>> write_report("runs/mobilenet_v1_digits").name
        'report.html'
    """
    from mobilenet.reporting import page
    from mobilenet.sweeps import report

    if (sweep := report.sweep_of(runs, output)) is not None:
        return report.write(sweep) or sweep.folder
    return page.write(
        [run if isinstance(run, (str, os.PathLike)) else run.folder for run in runs], output
    )


def _flatbuffer_of(model: Any) -> Flatbuffer | None:
    """The file that a model is or whose path it is; `None` for another model."""
    from mobilenet.runtime import classifier
    from mobilenet.tflite import model as tflite_model

    if isinstance(model, (str, os.PathLike)):
        is_file = classifier.is_flatbuffer(model)
        return tflite_model.read(classifier.resolve_flatbuffer(model)) if is_file else None
    if isinstance(model, classifier.Classifier):
        return model.flatbuffer
    content = getattr(model, "content", None)
    return tflite_model.read(content) if isinstance(content, bytes) else None


def _opened(path: str | os.PathLike[str]) -> LoadedModel | Classifier:
    """The model or file at a path."""
    from mobilenet import files
    from mobilenet.runtime import classifier

    if files.is_remote(path):
        from mobilenet import object_storage

        with object_storage.local_copy(str(path)) as copy:
            return _opened(copy)

    if classifier.is_flatbuffer(path):
        return classifier.Classifier(path)
    from mobilenet.loading import load_model

    return load_model(path)
