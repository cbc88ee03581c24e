"""No damaged input is more than one line: no traceback, no crash, no hang, no file left."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from fuzz import outcome  # noqa: E402
from fuzz.targets import TARGETS  # noqa: E402

LEAST, MOST = 10, 30  # cases of a target; scripts/fuzz.sh runs 2,000
BOTH = {outcome.ACCEPTED, outcome.REFUSED}
MEMORY = 6 << 30  # bytes on top of what the process has


@pytest.fixture(scope="session")
def seed_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`seed_files(target)`: a folder of its sound files, created once."""
    base = tmp_path_factory.mktemp("seeds")

    def make(name: str) -> Path:
        folder = base / name
        if not folder.exists():
            folder.mkdir()
            TARGETS[name].make(folder)
        return folder

    return make


@pytest.fixture(autouse=True)
def memory_limit() -> Iterator[None]:
    """What asks for too much fails, and leaves the machine alone."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's network is built once: it takes longer than all that is tested."""
    from mobilenet.tf1_loader import loading

    monkeypatch.setattr(loading, "build", functools.cache(loading.build))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_accepted_or_refused_in_one_line(
    name: str, seed_files: Callable[[str], Path], tmp_path: Path
) -> None:
    failures, kinds = [], set()
    for number in range(MOST):
        outcome.prepared(TARGETS[name], number, seed_files(name), tmp_path / "case")
        ended = outcome.tried(TARGETS[name], tmp_path / "case")
        kinds.add(ended.kind)
        if ended.kind in outcome.FAILURES:
            failures.append(f"case {number}, {ended.kind}: {ended.text}")
        if number + 1 >= LEAST and kinds >= BOTH:
            break
    assert not failures, "\n\n".join(failures)
    assert kinds == BOTH
