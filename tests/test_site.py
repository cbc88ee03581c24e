"""The documentation site: each page is in the navigation, links lead to pages, it builds without
warnings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import command_reference
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


@pytest.fixture(scope="module")
def trainer_page() -> str:
    return command_reference.pages()["commands/trainer.md"]


def entry(page: str, flag: str) -> str:
    """The text on a flag, without escapes."""
    return page.split(f"{{ #{flag} }}\n")[1].split("\n[`--")[0].replace("\\", "")


def test_each_command_has_a_page_with_each_flag_once() -> None:
    pages = command_reference.pages()
    navigation = CONFIG.read_text(encoding="utf-8")
    assert all(name in navigation for name in pages) and len(pages) == 10
    for name, command in command_reference.commands().items():
        shown = re.findall(r"^\[`--(?:\[no\])?(\w+)`", pages[f"commands/{name}.md"], re.MULTILINE)
        assert sorted(shown) == sorted({spec.name for spec in command.flags()}), name


def test_the_page_of_a_command_has_its_main_flags_first(trainer_page: str) -> None:
    main, _, other = trainer_page.partition("## Other flags")
    assert "#lr }" in main and "#model_dir }" in main
    assert "#dns_base }" in other and "#warmup_epochs }" in other


@pytest.mark.parametrize(
    ("flag", "facts"),
    [
        ("lr", ("a number above 0;", "0.004 (digits), by model (ImageNet), 0.002 (others)")),
        ("image_size", ("default: 64 (digits), 224 (ImageNet, others); [image_size]",)),
        ("dropout_rate", ("at least 0 and below 1; default: 0.2; [model.dropout_keep_prob]",)),
        ("pruning", ("one of magnitude, channel, dns, tfmot; default: magnitude; [pruning]",)),
        ("final_sparsity", ("or name=number,name=number; default: pointwise=0.5;",)),
        ("channel_ratio", ("default: all=0.5; [pruning.ratio]",)),
        ("stages", ("default: train,prune,quantize,convert;",)),
        ("num_classes", ("default: the number of classes in the data;",)),
        ("resume", ("default: on",)),
    ],
)
def test_a_flag_has_its_default_and_legal_values(
    trainer_page: str, flag: str, facts: tuple[str, ...]
) -> None:
    assert all(fact in entry(trainer_page, flag) for fact in facts)


def test_flags_on_data_have_no_default_where_data_sets_differ() -> None:
    pages = command_reference.pages()
    evaluator = pages["commands/evaluator.md"]
    assert "default" not in entry(evaluator, "dataset_name").replace("`", "")
    assert "default: 200000000" in entry(evaluator, "max_pixels")
    assert "at least" not in entry(pages["commands/converter.md"], "batch")  # 0 leaves it open


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
