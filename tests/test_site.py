"""The documentation site: each page is in the navigation, links lead to pages, it builds without
warnings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "scripts/site/mkdocs.yml"


def test_each_page_of_docs_is_in_the_navigation() -> None:
    navigation = CONFIG.read_text(encoding="utf-8").partition("\nnav:")[2].partition("\ntheme:")[0]
    pages = re.findall(r"[\w/]+\.md", navigation)
    assert len(pages) == len(set(pages))
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name in pages, f"{name} needs an entry in `nav` of scripts/site/mkdocs.yml"


def test_links_between_files_become_links_between_pages() -> None:
    hooks = pytest.importorskip("hooks", reason="mkdocs (extra `docs`) is not installed")
    links = "[a](docs/tf1.md#names), [`b`](CHANGELOG.md), [c](configs/run.py), [d](https://x.org/)"
    assert hooks.site_links(links, "index.md") == (
        "[a](tf1.md#names), [`b`](changelog.md), c, [d](https://x.org/)"
    )
    links = "[![e](pictures/e.png)](../SECURITY.md) [f](data.md)"
    assert hooks.site_links(links, "tf1.md") == (
        "[![e](pictures/e.png)](security_policy.md) [f](data.md)"
    )
    links = "[g](../data.md) [h](../../README.md)"
    assert hooks.site_links(links, "reference/api.md") == "[g](../data.md) [h](../index.md)"
    code = "```python\nsteps[0](state)\n```\n`[a](b)`"
    assert hooks.site_links(code, "index.md") == code


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs (extra `docs`) is not installed")
    args = ["--strict", "--config-file", str(CONFIG), "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", *args],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")}
    assert Path("index.html") in pages and len(pages) > 20
    for path in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//', path.read_text()
        )
        assert not loaded, path.name  # nothing is requested from another host
