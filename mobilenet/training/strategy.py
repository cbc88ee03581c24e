"""Strategies of tf.distribute by name, what their workers agree on, and the precision in which
models are built.
"""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.run import STRATEGIES
from mobilenet.errors import UsageError, one_of
from mobilenet.training import interruption
from mobilenet.training.workers import Worker, this_worker

log = logging.getLogger("mobilenet")
_NO_PEER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def create_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy with this name.

    Raises:
        UsageError: no such name, or its devices are not available.
    """
    one_of("distribution_strategy", name, STRATEGIES)
    try:
        if name == "mirrored":
            return tf.distribute.MirroredStrategy()
        if name == "multi_worker":
            return _of_all_workers()
        if name == "tpu":
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            "distribution_strategy", name, f"its devices ({error})", "none runs anywhere"
        ) from None
    return tf.distribute.get_strategy()


def _of_all_workers() -> tf.distribute.Strategy:
    """The strategy of this worker and the others, as soon as all of them run."""
    worker = this_worker("multi_worker")
    if worker.count == 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    log.info("this is worker %d; waiting for all %d", worker.index, worker.count)
    with interruption.ends_at_once():  # on Ctrl-C; TensorFlow catches SIGTERM until all run
        return tf.distribute.MultiWorkerMirroredStrategy()


def worker_of(strategy: tf.distribute.Strategy) -> Worker:
    """The worker that this process is."""
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return this_worker("multi_worker") if is_multi_worker else Worker()


def any_worker(strategy: tf.distribute.Strategy, *flags: bool) -> list[bool]:
    """For each flag whether it is set on any worker; all workers call it at the same point."""
    if worker_of(strategy).count == 1:
        return list(flags)
    sums = strategy.run(_total, args=(tf.constant(flags, tf.float32),))
    return [bool(value > 0) for value in strategy.experimental_local_results(sums)[0].numpy()]


@tf.function  # compiled once for each strategy; TensorFlow warns of an eager `run`
def _total(values: tf.Tensor) -> Any:
    """The sums over all replicas of all workers."""
    context = tf.distribute.get_replica_context()
    on_device = tf.identity(values)  # an argument has none, to which sums could go
    return context.all_reduce(tf.distribute.ReduceOp.SUM, on_device)


def wait_for_workers(strategy: tf.distribute.Strategy) -> None:
    """Returns when all workers have called it."""
    if worker_of(strategy).count > 1:
        with interruption.ends_at_once():
            any_worker(strategy, False)


@contextlib.contextmanager
def ended_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Errors of a collective operation, once another worker has ended, are one line.

    Raises:
        UsageError: another worker has ended.
    """
    worker = worker_of(strategy)
    try:
        yield
    except _NO_PEER as error:
        if worker.count == 1:
            raise
        # TensorFlow's pool of threads in one of them would fail with a traceback at exit.
        traceback.clear_frames(error.__traceback__)
        other = _other_task(strategy, error.message)
        raise UsageError(
            "distribution_strategy",
            f"multi_worker, {f'whose {other}' if other else 'of which a worker'} has ended",
            f"all {worker.count} workers until the end",
            "the same command on all of them continues from the last saved state",
        ) from None


def _other_task(strategy: tf.distribute.Strategy, message: str) -> str | None:
    """The task that an error of a collective operation names besides this one."""
    resolver = strategy.cluster_resolver
    own = (resolver.task_type, str(resolver.task_id))
    tasks = re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", message)
    others = [f"{kind} {index}" for kind, index in tasks if (kind, index) != own]
    return others[-1] if others else None


def set_precision(name: str) -> None:
    """Sets the dtype policy of models that are built from now on."""
    policy: Any = tf_keras.mixed_precision.Policy(name)
    tf_keras.mixed_precision.set_global_policy(policy)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """The dtype policy of models that are built in the block; the process's own afterwards."""
    before = tf_keras.mixed_precision.global_policy()
    set_precision(name)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
