"""Names that look the same and differ in their Unicode form: composed (NFC) or decomposed (NFD)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mobilenet.errors import UsageError


def explain_forms(names: Iterable[str], expected: str, source: str) -> None:
    """Refuses names of which two are the same but for their Unicode form.

    macOS writes "e" and an accent where Windows and Linux write one letter.

    Args:
        names: that are different.
        expected: what the names are, for the error.
        source: where they are from.

    Raises:
        UsageError: names both, with the code points of what differs.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            both = " and ".join(f"{ascii(n)} ({form_of(n)})" for n in sorted((other, name)))
            expected = f"{expected} in one Unicode form; {name} is there twice, {both}"
            raise UsageError("data_dir", source, expected, "rename one to the form of the other")


def form_of(name: str) -> str:
    """The Unicode form of a name that has accents."""
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)]
    return forms[0] if len(forms) == 1 else "mixed"
