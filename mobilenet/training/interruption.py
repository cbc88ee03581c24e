"""Ctrl-C and SIGTERM during training: they wait for the end of a step, so that its state can be
saved.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """In this block a signal ends the process, by the action of the system.

    For waiting inside TensorFlow, during which Python's handlers are not called, when there is
    nothing to save. A signal that is ignored stays so; outside the main thread nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (SIGNALS if is_main else ())}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Interrupted(BaseException):
    """A signal arrived; like KeyboardInterrupt it is no error that code may handle."""


class Interruption:
    """Receives signals inside its `with` block; outside the main thread it does nothing.

    The first signal is noted: `check` raises `Interrupted`, and so does a block under `immediate`.
    A second one goes to the handler that was there before, at once. A signal that is ignored stays
    so.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers: dict[int, Any] = {}
        self._raises = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._restore()
        if kind is None and self.number is not None:
            self.deliver()

    def check(self) -> None:
        """Raises `Interrupted` if a signal has arrived."""
        if self.number is not None:
            raise Interrupted

    def note(self, number: int) -> None:
        """Notes a signal that another process of the same run has received."""
        self.number = self.number or number

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """A signal ends the block where it is; for work that changes nothing that is saved."""
        self.check()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def deliver(self) -> NoReturn:
        """Passes the signal on to the handler that was there before.

        Raises:
            KeyboardInterrupt: by Python's handler of SIGINT.
            SystemExit: by the handler of a command; or here, if the handler returns.
        """
        assert self.number is not None
        number, handler = self.number, self._handlers.get(self.number)  # none if it is ignored
        self._restore()
        if callable(handler):
            handler(number, None)
        else:
            signal.raise_signal(number)  # the default action ends the process
        raise SystemExit(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            self.number = number
            self.deliver()
        self.number = number
        if self._raises:
            raise Interrupted

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
