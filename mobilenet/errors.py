"""Errors that a user can correct: the value, what was expected, and a remedy.

Every command prints a `UsageError` as one line and exits with status 2. The library raises it with
the parameter or layer that it knows; callers add the file with `within`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

_SHOWN = 5  # names in a list before it is cut, with a count
_LONGEST_VALUE = 120  # characters of a value
_LONGEST_NAME = 200  # of a flag, field or file
_LONGEST_LISTED = 100  # of one name in a list; the longest of a TF1 checkpoint has 90
_LONGEST_CHOICES = 300  # of all legal names


class UsageError(ValueError):
    """Input that cannot be used, as one line.

    Attributes:
        what: the flag, field, file or layer that is wrong.
        got: the value; `None` leaves the clause out.
        expected: the rule that the value breaks.
        remedy: a command or the nearest legal value; may be empty.
        status: exit status of the command.

    Examples:
        >>> print(UsageError("width_multiplier", 0, "a number above 0"))
        width_multiplier: got 0, expected a number above 0
    """

    status = 2

    def __init__(self, what: str, got: object, expected: str, remedy: str = "") -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        name, value = _cut(_printable(what), _LONGEST_NAME), f"got {shown(got)}, "
        rule = _printable(f"{expected}; {remedy}" if remedy else expected)
        line = f"{name}: {'' if got is None else value}expected {rule}"
        super().__init__(" ".join(line.split()))

    def within(self, context: str) -> UsageError:
        """The same error with the file or field that contains `what` before it."""
        return type(self)(f"{context}: {self.what}", self.got, self.expected, self.remedy)

    def renamed(self, old: str, new: str) -> UsageError:
        """The same error with a path replaced, which was a temporary one."""
        got = self.got.replace(old, new) if isinstance(self.got, str) else self.got
        texts = (text.replace(old, new) for text in (self.what, self.expected, self.remedy))
        what, expected, remedy = texts
        return type(self)(what, got, expected, remedy)


class VerificationError(UsageError):
    """A result failed its verification and was not written."""

    status = 3


_PARAMETER = re.compile(r"`([a-z_][\w.]*)((?:=[^`]*)?)`")


def rename_parameters(error: UsageError, name_of: Callable[[str], str | None]) -> UsageError:
    """The error of a library function in the names of another interface.

    The library names parameters: `what` is one, or its texts have some in backquotes, as in
    `lr=0.1`. Flags stand without them: on the command line these become --lr and --lr=0.1.

    Args:
        error: any error; one whose texts have no such names comes out equal.
        name_of: gives the name of a parameter there, of a flag with its dashes; `None` where it
            has no other.
    """

    def in_text(text: str) -> str:
        return _PARAMETER.sub(renamed, text)

    def renamed(match: re.Match[str]) -> str:
        name = name_of(match[1])
        if not name:
            return match[0]
        text = name + match[2]
        return text if name.startswith("-") else f"`{text}`"

    what = name_of(error.what) or in_text(error.what)
    return type(error)(what, error.got, in_text(error.expected), in_text(error.remedy))


def shown(value: object) -> str:
    """The representation of a value, its middle left out where it is long.

    A value comes from a file or flag, and may be a megabyte of text.
    """
    try:
        return _cut(repr(value), _LONGEST_VALUE)
    except (RecursionError, ValueError):  # nested too deep; an integer of thousands of digits
        return f"a {type(value).__name__}"


def _cut(text: str, most: int) -> str:
    half = (most - len(" ... ")) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def _printable(text: str) -> str:
    """Control characters, which a file's names may have, are escaped: a terminal would obey."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def shorten(names: Iterable[object]) -> str:
    """Joins names with commas; from the sixth on they are only counted."""
    listed = [str(name) for name in names]
    more = f", ... ({len(listed)})" if len(listed) > _SHOWN else ""
    return ", ".join(_cut(_printable(name), _LONGEST_LISTED) for name in listed[:_SHOWN]) + more


def one_of(what: str, got: str, choices: Iterable[str]) -> str:
    """Returns `got` when it is one of `choices`.

    Raises:
        UsageError: lists the choices and offers the nearest name.
    """
    choices = list(choices)
    if got in choices:
        return got
    near = difflib.get_close_matches(str(got), choices, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else ""
    raise UsageError(what, got, f"one of {_cut(', '.join(choices), _LONGEST_CHOICES)}", remedy)
