"""A flatbuffer in a process of its own: a file that crashes the runtime, hangs it or takes all
memory ends that process and becomes one line.

The child reads nothing but the bytes that were checked here, and its replies are as untrusted as
the file: each is raw bytes whose length follows from the file. It is no sandbox: code that a file
smuggled into the child would run with the rights of the user.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter, micro, worker
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors

TIMEOUT = 120.0  # seconds of one request; the slowest of ours takes a tenth on a small board
_GRACE = 5.0  # seconds in which a process that has closed its socket ends
# The parent's own module path, so that both run the same code: `-m` would put the current folder,
# which may be that of a stranger's files, at its head.
_START = "import sys; sys.path[:] = sys.argv[2:]; from mobilenet.runtime.worker import main; main()"
_REMEDY = "the file is damaged or hostile"


class Interpreter:
    """A file in a child process, with the methods of a TFLite interpreter that a classifier uses.

    The child ends with this object, and with this process. After a failure the next call starts
    another one, and so does the first call in a process that was forked off. For one thread at a
    time.

    Attributes:
        pid: of the child.
    """

    def __init__(
        self,
        content: tflite_model.Flatbuffer,
        runtime: str = "litert",
        keep_tensors: bool = False,
        name: str = "flatbuffer",
        timeout: float = TIMEOUT,
    ) -> None:
        """Starts the child, which opens the file.

        Args:
            content: the file, read and checked.
            runtime: `litert` or `micro`.
            keep_tensors: inner tensors can be read after an invocation, see
                `interpreter.make_interpreter`.
            name: its name in errors, usually the path.
            timeout: seconds that a call may take.

        Raises:
            UsageError: the runtime refuses the file or does not survive it, or there is no runtime.
        """
        for index in content.inputs:
            if not content.tensors[index].has_numpy_type:
                raise UsageError(name, content.tensors[index].dtype, "an input of a numpy type")
        self._content, self._name = content, name
        self._settings = {"runtime": runtime, "keep_tensors": keep_tensors, "timeout": timeout}
        self._sources = {index: content.tensors[index] for index in content.inputs}
        self._inputs = {i: bytes(_size(tensor)) for i, tensor in self._sources.items()}
        self._readable = worker.readable(content, keep_tensors)
        self._outputs: dict[int, npt.NDArray[Any]] = {}
        self._child = self._start()

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def get_input_details(self) -> list[dict[str, Any]]:
        """Of each input its `index`, `shape`, `dtype` and `quantization` (scale, zero point)."""
        return [_detail(tensor) for tensor in self._sources.values()]

    def set_tensor(self, index: int, values: npt.NDArray[np.generic]) -> None:
        """Copies the values of the input that is tensor `index` of the graph."""
        tensor = self._sources[index]
        if values.shape != tensor.shape or values.dtype != tensor.dtype:
            got = f"{list(values.shape)} {values.dtype}"
            raise UsageError(self._name, got, f"{list(tensor.shape)} {tensor.dtype} as input")
        self._inputs[index] = values.tobytes()

    def invoke(self) -> None:
        """Runs the graph.

        Raises:
            UsageError: the runtime gave up, ended or took too long.
        """
        size = sum(map(_size, self._readable))
        reply = self._request("ran", worker.INVOKE, b"".join(self._inputs.values()), size)
        start = 0
        for tensor in self._readable:
            values = np.frombuffer(reply, tensor.dtype, tensor.elements, start)
            self._outputs[tensor.index] = values.reshape(tensor.shape)
            start += values.nbytes

    def get_tensor(self, index: int) -> npt.NDArray[Any]:
        """The values of tensor `index` of the graph after the last invocation."""
        return self._outputs[index]

    def arena(self) -> micro.Arena:
        """The memory that TensorFlow Lite Micro has allocated."""
        reply = self._request("counted memory of", worker.ARENA, b"", worker.ARENA_SIZES.size)
        return micro.Arena(*worker.ARENA_SIZES.unpack(reply))

    def _request(self, verb: str, kind: int, payload: bytes, size: int) -> bytearray:
        if not self._child.is_usable():
            self._child = self._start()
        return self._child.request(verb, kind, payload, size)

    def _start(self) -> _Child:
        child = _Child(self._name, self._settings)
        child.request("read", worker.FILE, self._content.content)
        child.request("opened", worker.OPEN)
        return child


def open_interpreter(
    content: tflite_model.Flatbuffer,
    isolated: bool,
    name: str,
    runtime: str = "litert",
    keep_tensors: bool = False,
) -> Any:
    """An interpreter of a file, in this process or in one of its own.

    Args:
        content: the file, read and checked.
        isolated: in a process of its own.
        name: its name in errors, usually the path.
        runtime: `litert` or `micro`.
        keep_tensors: inner tensors can be read after an invocation, of `litert` alone.

    Raises:
        UsageError: see `Interpreter`.
    """
    if isolated:
        return Interpreter(content, runtime, keep_tensors, name)
    try:
        return worker.make_runner(content, runtime, keep_tensors)
    except UsageError as error:
        raise error.within(name) from None


def latency(content: tflite_model.Flatbuffer, isolated: bool, name: str) -> float:
    """Median seconds of an invocation, by `interpreter.latency` in the process that runs the file.

    Args:
        content, isolated, name: see `open_interpreter`.

    Raises:
        UsageError: see `Interpreter`.
    """
    if not isolated:
        return interpreter.latency({name: content})[name]
    child = _Child(name, {"runtime": "litert", "keep_tensors": False, "timeout": TIMEOUT})
    child.request("read", worker.FILE, content.content)
    reply = child.request("timed", worker.LATENCY, size=worker.SECONDS.size)
    child.close()
    (seconds,) = worker.SECONDS.unpack(reply)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise _failure(name, f"took {seconds} s", "timed")
    return float(seconds)


class _Child:
    """The process and the socket to it; any failure ends both."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self._name, self._timeout = name, float(settings["timeout"])
        self._owner = os.getpid()
        if os.name != "posix":
            raise _not_started("it needs the sockets and limits of POSIX")
        self._socket, theirs = _socket_pair()
        paths = [path for path in sys.path if isinstance(path, str)]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(settings), *paths],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # of numpy, which computes nothing
                start_new_session=True,  # Ctrl-C and a closed terminal are its parent's to handle
            )
        except OSError as error:
            self._socket.close()
            raise _not_started(f"{sys.executable}: {error.strerror}") from None
        finally:
            theirs.close()
        # Not by PR_SET_PDEATHSIG: that is sent when the thread ends that started the process.
        self.close = weakref.finalize(self, _end, self.process, self._socket)
        self._wait_until_ready()

    def is_usable(self) -> bool:
        """Not after a failure, nor in a process that was forked off and shares the socket."""
        return self.close.alive and self._owner == os.getpid()

    def request(self, verb: str, kind: int, payload: bytes = b"", size: int = 0) -> bytearray:
        """Sends one request and waits for its reply.

        Args:
            verb: what the runtime does with the file, for errors: `opened`.
            kind: of `worker`.
            payload: the bytes of the request.
            size: bytes of the reply.

        Raises:
            UsageError: the runtime refuses, ends, takes too long, or replies anything else.
        """
        with self._ending_with(lambda reason: _failure(self._name, reason, verb)):
            deadline = time.monotonic() + self._timeout
            self._socket.settimeout(self._timeout)
            self._socket.sendall(worker.HEADER.pack(kind, len(payload)))
            self._socket.sendall(payload)
            header = worker.receive(self._socket, worker.HEADER.size, deadline)
            status, length = worker.HEADER.unpack(header)
            if (status, length) == (worker.DONE, size):
                return worker.receive(self._socket, size, deadline)
            if status == worker.REFUSED and length <= worker.MAX_TEXT:
                text = worker.receive(self._socket, length, deadline)
                raise _refusal(bytes(text)).within(self._name)
            raise _failure(self._name, f"gave {length:,} bytes instead of {size:,}", verb)

    def _wait_until_ready(self) -> None:
        with self._ending_with(lambda reason: _not_started(f"it {reason}")):
            deadline = time.monotonic() + self._timeout
            greeting = worker.receive(self._socket, len(worker.READY), deadline)
            if greeting != worker.READY:
                raise _not_started(f"it gave {bytes(greeting)!r} instead of {worker.READY!r}")

    @contextlib.contextmanager
    def _ending_with(self, error: Callable[[str], UsageError]) -> Iterator[None]:
        """Ends the child on any exception, and raises `error` with what happened to it."""
        try:
            yield
        except TimeoutError:
            self.close()
            raise error(f"took more than {self._timeout:g} s") from None
        except (EOFError, OSError):
            raise error(self._ending()) from None
        except BaseException:  # Ctrl-C too: the reply that is under way would be taken for the next
            self.close()
            raise

    def _ending(self) -> str:
        """How the process ended, after its socket was closed."""
        try:
            status = self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        finally:
            self.close()
        if status >= 0:
            return f"ended with status {status}"
        known = {number.value: number.name for number in signal.Signals}
        suspicion = ", as where memory runs out" if -status == signal.SIGKILL else ""
        return f"ended by {known.get(-status, f'signal {-status}')}{suspicion}"


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, ours not on a number of the standard streams.

    Where one of those is closed its number is free, and what a library prints would go to the
    child.
    """
    import fcntl  # not on Windows, where this module is imported as well

    ours, theirs = socket.socketpair()
    with ours:
        number = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    return socket.socket(fileno=number), theirs


def _size(tensor: tensors.Tensor) -> int:
    return tensor.elements * tensors.item_bits(tensor.dtype) // 8


def _detail(tensor: tensors.Tensor) -> dict[str, Any]:
    one = len(tensor.scales) == 1
    scale = (float(tensor.scales[0]), int(tensor.zero_points[0])) if one else (0.0, 0)
    return {
        "index": tensor.index,
        "shape": np.array(tensor.shape, np.int32),
        "dtype": np.dtype(tensor.dtype).type,
        "quantization": scale,
    }


def _refusal(text: bytes) -> UsageError:
    """A refusal of the child's, without characters that would move a terminal's cursor."""
    lines = text.decode("utf-8", "replace").split("\n")
    shown = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
    what, expected, remedy = (*shown, "", "", "")[:3]
    return UsageError(what, None, expected, remedy)


def _failure(name: str, reason: str, verb: str) -> UsageError:
    expected = f"a file that the runtime can run (it {reason} while it {verb} the file)"
    return UsageError(name, None, expected, _REMEDY)


def _not_started(reason: str) -> UsageError:
    expected = f"a child process that can import mobilenet.runtime ({reason})"
    return UsageError("isolated", None, expected, "`isolated=False` runs the file in this process")
