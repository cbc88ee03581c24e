"""The image files that words of a command line stand for: files, folders, patterns and lines of
standard input.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from mobilenet.data.sources.image_folder import EXTENSIONS
from mobilenet.errors import UsageError

STDIN = "-"


def expand(words: Sequence[str]) -> list[str]:
    """The files, in the order of the words; those of a folder or a pattern are sorted.

    Args:
        words: a file is taken whatever its name ends in; of a folder, and of all below it, the
            files that end as images do are taken, but no hidden ones and none behind links to
            folders; `*`, `?`, `[...]` and `**` are a pattern where no file has that name. `STDIN`
            stays as it is.

    Raises:
        UsageError: a word stands for no file.
    """
    return [path for word in words for path in ([word] if word == STDIN else _files(word))]


def from_stdin() -> Iterator[str]:
    """The files of each line of standard input, as it is read; empty lines are passed over.

    A line is a file or a folder, never a pattern: names that `find` prints are taken as they are.
    One that does not exist is given as well; reading it says so.

    Raises:
        UsageError: standard input cannot be read.
    """
    try:
        for line in sys.stdin.buffer:
            name = os.fsdecode(line.rstrip(b"\r\n"))
            if name:
                yield from _below(name) if os.path.isdir(name) else [name]
    except OSError as error:
        expected = f"paths on standard input ({error.strerror or error})"
        raise UsageError(STDIN, None, expected) from None


def _files(word: str) -> list[str]:
    is_pattern = glob.has_magic(word) and not os.path.exists(word)
    matches = sorted(glob.glob(word, recursive=True)) if is_pattern else [word]
    files: dict[str, None] = {}  # a pattern with ** matches folders and what is in them
    for match in matches:
        files.update(dict.fromkeys(_below(match) if os.path.isdir(match) else [match]))
    if not files:
        kind = "a pattern that matches images" if is_pattern else "a folder with images"
        expected = f"{kind} ({' '.join(EXTENSIONS)}); there are none"
        raise UsageError(word, None, expected)
    if not is_pattern and not os.path.exists(word):
        raise UsageError(word, None, "an image file or a folder of images; there is none")
    return list(files)


def _below(folder: str) -> list[str]:
    """The image files in a folder and in the folders below it."""
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (n for n in sorted(names) if n.lower().endswith(EXTENSIONS))
        found += [os.path.join(above, name) for name in images if not name.startswith(".")]
    return found
