"""Interpreters of checked files: their delegate partitions and latency."""

from __future__ import annotations

import importlib
import os
import random
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilenet.console import quiet
from mobilenet.errors import UsageError
from mobilenet.tflite import model as tflite_model

Source = str | os.PathLike[str] | bytes | tflite_model.Flatbuffer
_RUNTIMES = (("ai_edge_litert.interpreter", "Interpreter"), ("tensorflow", "lite.Interpreter"))


def make_interpreter(source: Source, threads: int = 1, keep_tensors: bool = False) -> Any:
    """An interpreter with its tensors allocated.

    Args:
        source: a path, bytes, or a `Flatbuffer` that was already read. All are checked first.
        threads: threads of one invocation.
        keep_tensors: inner tensors can be read after an invocation; every operator is then a
            partition of its own, by the same kernels and slower.

    Returns:
        `ai_edge_litert.interpreter.Interpreter`, or `tf.lite.Interpreter` where the former is not
        installed.

    Raises:
        UsageError: the file is malformed, the runtime refuses it, or there is no runtime.
    """
    name = (
        "flatbuffer" if isinstance(source, (bytes, tflite_model.Flatbuffer)) else os.fspath(source)
    )
    checked = source if isinstance(source, tflite_model.Flatbuffer) else tflite_model.read(source)
    interpreter_class = load_runtime()
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the memory that preserved tensors take
            interpreter = interpreter_class(
                model_content=checked.content,
                num_threads=threads,
                experimental_preserve_all_tensors=keep_tensors,
            )
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            name, None, f"a file that the runtime takes ({reason})", "convert it again"
        ) from None
    return interpreter


def load_runtime() -> Any:
    """The interpreter's class, imported; that of `ai_edge_litert`, else of TensorFlow."""
    for module, attribute in _RUNTIMES:
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        for part in attribute.split("."):
            loaded = getattr(loaded, part)
        return loaded
    raise UsageError(
        "ai_edge_litert", None, "an installed TensorFlow Lite runtime", "pip install ai-edge-litert"
    )


def _nodes(interpreter: Any) -> list[dict[str, Any]]:
    listing = getattr(interpreter, "_get_ops_details", None)  # there is no public call
    if listing is None:
        raise UsageError(
            "partitions",
            type(interpreter).__module__,
            "a runtime that lists its operators",
            "ai_edge_litert 2.3 does",
        )
    return list(listing())


def partitions(interpreter: Any) -> int:
    """Stretches of the graph that the delegate (XNNPACK) runs; 0 without a delegate."""
    return sum(node["op_name"] == "DELEGATE" for node in _nodes(interpreter))


def outside(interpreter: Any) -> list[str]:
    """Names of the operators that no delegate took, in execution order.

    The runtime's list keeps the replaced nodes, so they are found by walking back from the outputs
    of each delegate node to its inputs.
    """
    nodes = _nodes(interpreter)
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    originals = [node for node in nodes if node["op_name"] != "DELEGATE"]
    producer = {
        int(tensor): number for number, node in enumerate(originals) for tensor in node["outputs"]
    }
    delegated: set[int] = set()
    for delegate in delegates:
        stop = {int(tensor) for tensor in delegate["inputs"]}
        pending = [int(tensor) for tensor in delegate["outputs"]]
        while pending:
            tensor = pending.pop()
            number = producer.get(tensor)
            if tensor in stop or number is None or number in delegated:
                continue
            delegated.add(number)
            pending.extend(int(t) for t in originals[number]["inputs"])
    return [node["op_name"] for number, node in enumerate(originals) if number not in delegated]


def latency(
    models: Mapping[str, Source],
    rounds: int = 12,
    invokes: int = 4,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Median seconds of one invocation of each model, measured interleaved in this process.

    In each round every model runs `invokes` times, in a new random order, so that a slow moment of
    the machine affects all of them. With one thread the clock is the thread's CPU time, which
    another process on the core does not change; with more it is the wall clock. Inputs are random.

    Raises:
        UsageError: a model cannot be run, or a number is below 1.
    """
    for what, value in (("rounds", rounds), ("invokes", invokes), ("threads", threads)):
        if value < 1:
            raise UsageError(what, value, "a whole number of at least 1")
    clock = time.thread_time if threads == 1 else time.perf_counter
    interpreters = {name: make_interpreter(source, threads) for name, source in models.items()}
    noise = np.random.default_rng(seed)
    for interpreter in interpreters.values():
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], _random(noise, detail))
        interpreter.invoke()
    order = list(interpreters)
    shuffle = random.Random(seed).shuffle
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            interpreter = interpreters[name]
            start = clock()
            for _ in range(invokes):
                interpreter.invoke()
            times[name].append((clock() - start) / invokes)
    return {name: statistics.median(times[name]) for name in models}


def _random(noise: np.random.Generator, detail: dict[str, Any]) -> Any:
    kind = np.dtype(detail["dtype"])
    if kind.kind in "iu" and kind.itemsize == 1:
        limits = np.iinfo(kind)
        return noise.integers(limits.min, limits.max, detail["shape"], kind, endpoint=True)
    return noise.uniform(-1, 1, detail["shape"]).astype(kind)
