"""The table of a benchmark: printed under a line on the machine, and written as CSV where asked."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the time of int8 depends on, as the kernel names it (x86, then ARM); the best comes first.
_INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp")


def processor() -> str:
    """The name of the CPU."""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def machine(threads: int) -> str:
    """One line: CPU and its instructions for int8, cores, threads in use, versions."""
    from importlib.metadata import version

    known = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        words = {word for x in lines if x.startswith(("flags", "Features")) for word in x.split()}
        known = f" ({'/'.join(x for x in _INSTRUCTIONS if x in words) or 'no SIMD known'})"
    parts = [f"{name} {version(name)}" for name in ("tensorflow", "ai-edge-litert")]
    cores = f"{os.cpu_count()} cores, {threads} thread(s)"
    return f"{processor()}{known}, {cores}, {', '.join(parts)}"


def show(heads: Sequence[str], rows: Sequence[Sequence[object]], threads: int, path: Any) -> None:
    """Prints a table under a line on the machine, and writes the same as CSV where asked."""
    from mobilenet.cli import table

    print(machine(threads))
    print(table(heads, rows))
    if path is not None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*heads, "machine"])
            writer.writerows([*row, machine(threads)] for row in rows)
