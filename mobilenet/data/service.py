"""Decoding on other hosts by tf.data service."""

from __future__ import annotations

import queue
import socket
import threading

import tensorflow as tf

from mobilenet.errors import UsageError

_TIMEOUT = 10.0  # seconds for the dispatcher to answer


def distribute(batches: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The same batches, each read once by some worker of a service.

    Args:
        batches: from a source that can be divided (`range`, not `counter`): each worker gets the
            next element of it.
        address: of the dispatcher, `host:port` or `grpc://host:port`.

    Raises:
        UsageError: names `data_service`: there is no dispatcher.
    """
    protocol, _, target = address.rpartition("://")
    host, _, port = target.rpartition(":")
    if protocol not in ("", "grpc") or not host or not port.isdigit():
        raise UsageError("data_service", address, "the address of a dispatcher, as in host:5000")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreachable(address, reason) from None
    apply = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.DYNAMIC, f"grpc://{target}"
    )
    done: queue.Queue[tf.data.Dataset | Exception] = queue.Queue()

    def register() -> None:
        try:
            done.put(batches.apply(apply))
        except Exception as error:  # raised again below
            done.put(error)

    # TensorFlow tries again for an hour where something else listens.
    threading.Thread(target=register, daemon=True).start()
    try:
        distributed = done.get(timeout=_TIMEOUT)
    except queue.Empty:
        raise _unreachable(address, f"no answer in {_TIMEOUT:.0f} seconds") from None
    if isinstance(distributed, tf.errors.OpError):
        raise _unreachable(address, distributed.message.splitlines()[0]) from None
    if isinstance(distributed, Exception):
        raise distributed
    return distributed


def _unreachable(address: str, reason: str) -> UsageError:
    expected = f"a dispatcher of tf.data service that answers ({reason})"
    return UsageError("data_service", address, expected, "start it first, with its workers")
