"""Runs one flatbuffer for another process: the child of `mobilenet.runtime.isolation`.

Its standard input is a socket. A request is a kind, a length and that many bytes, and each gets one
reply of the same form: raw bytes of tensors, never pickled objects. The process ends with that
socket, so with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import console
from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter, micro
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors

RUNTIMES = ("litert", "micro")
HEADER = struct.Struct("<BQ")  # kind, bytes that follow
FILE, OPEN, INVOKE, ARENA, LATENCY = range(5)  # requests
DONE, REFUSED = range(2)  # replies
READY = b"ready"
ARENA_SIZES = struct.Struct("<3Q")
SECONDS = struct.Struct("<d")
MAX_TEXT = 1 << 14  # bytes of a refusal
# What the runtime may take in addition to the process once it has read the file: packed weights
# and scratch memory as multiples of the tensors, and a fixed part for its own structures.
_COPIES, _ALLOWANCE = 4, 512 << 20
_FIRST_VICTIM = "1000"  # of the kernel, where the whole machine runs out of memory


def receive(connection: socket.socket, size: int, deadline: float | None = None) -> bytearray:
    """The next `size` bytes; `deadline` is a time of `time.monotonic`.

    Raises:
        EOFError: the other process has closed its side.
        TimeoutError: the deadline has passed.
    """
    data = bytearray(size)
    rest = memoryview(data)
    while len(rest):
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-6))
        count = connection.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def readable(content: tflite_model.Flatbuffer, keep_tensors: bool) -> list[tensors.Tensor]:
    """The tensors whose values follow an invocation, in the order of the reply.

    Args:
        content: the file.
        keep_tensors: the inputs and what every operator computes, not the outputs alone.
    """
    computed = (index for operator in content.operators for index in operator.outputs)
    indices = (*content.inputs, *computed) if keep_tensors else content.outputs
    tensors = (content.tensors[index] for index in dict.fromkeys(indices))
    return [tensor for tensor in tensors if tensor.has_numpy_type]


def memory_limit(content: tflite_model.Flatbuffer) -> int:
    """Bytes that the runtime may take for this file."""
    return _ALLOWANCE + _COPIES * (len(content.content) + content.computed_bytes())


def make_runner(content: tflite_model.Flatbuffer, runtime: str, keep_tensors: bool = False) -> Any:
    """An interpreter of the file in this process; the micro runtime has no inner tensors."""
    if runtime == "micro":
        return micro.Interpreter(content)
    return interpreter.make_interpreter(content, keep_tensors=keep_tensors)


class Worker:
    """One file and its interpreter.

    Attributes:
        runtime: `litert` or `micro`.
        keep_tensors: see `readable`.
        timeout: seconds of processor time that a request may take.
    """

    def __init__(self, runtime: str, keep_tensors: bool, timeout: float) -> None:
        self.runtime, self.keep_tensors, self.timeout = runtime, keep_tensors, timeout
        self._content: Any = None
        self._runner: Any = None
        self._calls = {
            FILE: self._read,
            OPEN: self._open,
            INVOKE: self._invoke,
            ARENA: self._arena,
            LATENCY: self._latency,
        }

    def reply(self, kind: int, payload: bytearray) -> bytes:
        """The reply to one request, with its header."""
        limit_processor_time(self.timeout)
        try:
            status, body = DONE, b"".join(self._calls[kind](payload))
        except UsageError as error:
            status, body = REFUSED, _text(error.what, error.expected, error.remedy)
        except Exception as error:  # whatever a runtime raises
            reason = str(error) or type(error).__name__
            expected = f"a file that the runtime can run ({reason.splitlines()[0]})"
            status, body = REFUSED, _text("flatbuffer", expected, "convert it again")
        return HEADER.pack(status, len(body)) + body

    def _read(self, payload: bytearray) -> Iterable[bytes]:
        self._content = tflite_model.read(bytes(payload))
        del payload[:]
        (
            micro if self.runtime == "micro" else interpreter
        ).load_runtime()  # no import under the limits
        limit_resources(memory_limit(self._content))
        return ()

    def _open(self, payload: bytearray) -> Iterable[bytes]:
        self._runner = make_runner(self._content, self.runtime, self.keep_tensors)
        return ()

    def _invoke(self, payload: bytearray) -> Iterable[Any]:
        start = 0
        for index in self._content.inputs:
            tensor = self._content.tensors[index]
            values = np.frombuffer(payload, tensor.dtype, tensor.elements, start)
            start += values.nbytes
            self._runner.set_tensor(index, values.reshape(tensor.shape))
        self._runner.invoke()
        tensors = readable(self._content, self.keep_tensors)
        return [np.ascontiguousarray(self._runner.get_tensor(t.index)) for t in tensors]

    def _arena(self, payload: bytearray) -> Iterable[bytes]:
        arena = self._runner.arena()
        return (ARENA_SIZES.pack(arena.total, arena.activations, arena.persistent),)

    def _latency(self, payload: bytearray) -> Iterable[bytes]:
        return (SECONDS.pack(interpreter.latency({"file": self._content})["file"]),)


def _text(*lines: str) -> bytes:
    """What a `UsageError` is made of, a line each."""
    return "\n".join(" ".join(line.split()) for line in lines).encode()[:MAX_TEXT]


def limit_resources(memory: int) -> None:
    """Bounds what this process can do to the machine from here on.

    Args:
        memory: bytes that it may take in addition; not bounded where the system does not show what
            a process has (`/proc`).
    """
    import resource  # not on Windows, where this module is imported as well

    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_VICTIM)
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, console.MAX_MESSAGE_BYTES)  # messages pass through a file


def limit_processor_time(seconds: float) -> None:
    """Ends this process after `seconds` more of computing, when no parent is left to do it."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 1, hard=False)


def _limit(kind: int, value: int, hard: bool = True) -> None:
    """Lowers a limit; one that the system has set lower stays."""
    import resource

    soft, highest = resource.getrlimit(kind)
    present = (soft, highest) if hard else (highest,)
    value = min([value, *(limit for limit in present if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(kind, (value, value if hard else highest))


def main() -> None:
    """Replies to requests until the other side closes."""
    connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    worker = Worker(**json.loads(sys.argv[1]))
    with contextlib.suppress(EOFError, ConnectionError):
        connection.sendall(READY)
        while True:
            kind, size = HEADER.unpack(receive(connection, HEADER.size))
            connection.sendall(worker.reply(kind, receive(connection, size)))
