"""The documentation site: each page is in the navigation, links lead to pages, it builds without
warnings.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import os
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import command_reference
import package_diagram
import package_imports
import pytest

from mobilenet.configs.pruning import ChannelPruning

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "scripts/site/mkdocs.yml"


def test_each_page_of_docs_is_in_the_navigation() -> None:
    navigation = CONFIG.read_text(encoding="utf-8").partition("\nnav:")[2].partition("\ntheme:")[0]
    pages = re.findall(r"[\w/]+\.md", navigation)
    assert len(pages) == len(set(pages))
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name in pages, f"{name} needs an entry in `nav` of scripts/site/mkdocs.yml"


def public_names(module: str) -> set[str]:
    """What a module has in `__all__`, with its name before; it is not imported."""
    for node in package_imports.tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            name = module.removesuffix(".__init__")
            return {f"{name}.{attribute}" for attribute in ast.literal_eval(node.value)}
    raise AssertionError(module)


def test_each_public_name_is_on_one_page_of_the_reference() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    shown = re.findall(r"^::: (mobilenet\.\S+)$", pages, re.MULTILINE)
    public = public_names("mobilenet.__init__") - {"mobilenet.__version__", "mobilenet.configs"}
    for package in ("runtime.__init__", "surgery", "tf1_loader.__init__"):
        names = public_names(f"mobilenet.{package}")
        public = (public - {f"mobilenet.{package.removesuffix('.__init__')}"}) | names
    assert len(public) > 40 and len(shown) == len(set(shown))
    assert public <= set(shown)


def test_each_config_of_a_run_has_its_fields_in_the_reference() -> None:
    config_reference = pytest.importorskip("config_reference", reason="the extra `docs` is missing")
    page = config_reference.page()
    for name in (
        "training.TrainConfig",
        "pruning.DnsPruning",
        "weight_sharing.CodebookQuantization",
    ):
        assert f"::: mobilenet.configs.{name}\n" in page
    fields = page.split("::: mobilenet.configs.pruning.ChannelPruning\n")[1].split("\n:::")[0]
    expected = {field.name for field in dataclasses.fields(ChannelPruning)}
    assert set(re.findall(r"^`(\w+)`$", fields, re.MULTILINE)) == expected
    assert "a whole number at least 1; default: 16</small>" in fields.split("`round_to`\n")[1]


def test_a_notebook_is_a_page_with_its_code_and_a_link_to_itself() -> None:
    hooks = pytest.importorskip("hooks", reason="mkdocs (extra `docs`) is not installed")
    pages = hooks.notebook_pages()
    navigation = CONFIG.read_text(encoding="utf-8")
    assert all(name in navigation for name in pages) and len(pages) == 2
    page = pages["notebooks/own_photos.md"]
    assert page.startswith("# ") and "](own_photos.ipynb)" in page
    assert "```python\nfound = run.evaluate()\n" in page
    assert hooks.site_links("[a](own_photos.ipynb)", "notebooks/own_photos.md") == (
        "[a](own_photos.ipynb)"
    )


def test_blocks_in_a_list_are_indented_by_four_spaces() -> None:
    """As Python-Markdown needs it; GitHub takes two as well."""
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("[A-Z]*.md")]
    for page in pages:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not re.findall(r"\n\n {1,3}\S.*", text), page.name


def test_names_of_a_docstring_that_share_a_description_each_get_it() -> None:
    module = pytest.importorskip("shared_descriptions", reason="the extra `docs` is missing")
    text = "Bounds, of two: kinds.\n\nAttributes:\n"
    text += "    low, high: bounds of\n        both.\n    end: last."
    assert module.separated(text) == (
        "Bounds, of two: kinds.\n\nAttributes:\n    low: bounds of\n        both.\n"
        "    high: bounds of\n        both.\n    end: last."
    )


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
    links = "[n](notebooks/own_photos.ipynb)"
    assert hooks.site_links(links, "tf1.md") == "[n](notebooks/own_photos.md)"
    links = "[g](../data.md) [h](../../README.md)"
    assert hooks.site_links(links, "reference/api.md") == "[g](../data.md) [h](../index.md)"
    code = "```python\nsteps[0](state)\n```\n`[a](b)`"
    assert hooks.site_links(code, "index.md") == code


@pytest.fixture(scope="module")
def trainer_page() -> str:
    return command_reference.pages()["commands/trainer.md"]


def entry(page: str, flag: str) -> str:
    """The text on a flag, without escapes."""
    return page.split(f"{{ .flag #{flag} }}\n")[1].split("\n#### `--")[0].replace("\\", "")


def test_each_command_has_a_page_with_each_flag_once() -> None:
    pages = command_reference.pages()
    navigation = CONFIG.read_text(encoding="utf-8")
    assert all(name in navigation for name in pages) and len(pages) == 10
    for name, command in command_reference.commands().items():
        shown = re.findall(r"^#### `--(\w+)`", pages[f"commands/{name}.md"], re.MULTILINE)
        assert sorted(shown) == sorted({spec.name for spec in command.flags()}), name


def test_flags_are_headings_outside_the_table_of_contents() -> None:
    hooks = pytest.importorskip("hooks", reason="mkdocs (extra `docs`) is not installed")
    from mkdocs.structure.toc import get_toc

    def item(level: int, *children: Any) -> dict[str, Any]:
        name = f"level-{level}"
        return {"level": level, "id": name, "name": name, "children": list(children)}

    for path, flags in (("commands/trainer.md", 0), ("training.md", 1)):
        toc = get_toc([item(1, item(2, item(3, item(4))))])
        page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=path), toc=toc)
        hooks.on_page_content("", page)
        (title,) = toc
        assert len(title.children[0].children[0].children) == flags


def test_the_page_of_a_command_has_its_main_flags_first(trainer_page: str) -> None:
    main, _, other = trainer_page.partition("## Other flags")
    assert "#lr }" in main and "#model_dir }" in main
    assert "#dns_base }" in other and "#warmup_epochs }" in other


@pytest.mark.parametrize(
    ("flag", "facts"),
    [
        ("lr", ("a number above 0; default: 0.004 (digits), 0.045 or 0.02 or ", "0.002 (others)")),
        ("image_size", ("or height,width; default: 64 (digits),", "; [image_size]")),
        (
            "dropout_rate",
            ("a number at least 0 and below 1; default: 0.2", "[model.dropout_keep_prob]"),
        ),
        ("pruning", ("one of magnitude, channel, dns, tfmot; default: magnitude; [pruning]",)),
        ("final_sparsity", ("or name=number,name=number; default: pointwise=0.5;",)),
        ("channel_ratio", ("default: all=0.5; [pruning.ratio]",)),
        ("stages", ("default: train,prune,quantize,convert;",)),
        ("num_classes", ("default: the number of classes in the data;",)),
        ("distribution_strategy", ("default: none;",)),
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


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_the_diagram_has_the_fewest_arrows_that_say_what_depends_on_what() -> None:
    graph = package_diagram.grouped(package_imports.imported_packages())
    assert graph["export"] >= {"compression", "tflite", "models"} and "commands" in graph
    reduced = package_diagram.reduced(graph)
    for package in graph:
        assert reachable(reduced, package) == reachable(graph, package)
        for other in reduced[package]:
            without = {**reduced, package: reduced[package] - {other}}
            assert other not in reachable(without, package)


def test_boxes_of_the_diagram_do_not_overlap_and_arrows_lead_down() -> None:
    root = ElementTree.fromstring(package_diagram.svg())
    svg = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in root.iter(f"{svg}rect")
    ]
    drawn = {text.text for text in root.iter(f"{svg}text")}
    graph = package_diagram.grouped(package_imports.imported_packages())
    assert set(graph) <= drawn and len(boxes) == len(graph)
    for x, y, w, h in boxes:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for (x, y, w, h), (other_x, other_y, other_w, other_h) in itertools.combinations(boxes, 2):
        apart = x + w < other_x or other_x + other_w < x
        assert apart or y + h < other_y or other_y + other_h < y
    arrows = [path for path in root.iter(f"{svg}path") if path.find(f"{svg}title") is not None]
    assert len(arrows) == sum(map(len, package_diagram.reduced(graph).values()))
    for arrow in arrows:
        numbers = [float(n) for n in re.findall(r"-?[0-9]+", arrow.attrib["d"])]
        assert numbers[1] < numbers[-1]


def test_contributing_lists_each_package_with_its_layer() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    listed = {}
    for layer, names in rows:
        for name in re.findall(r"`([^`]+)`", re.sub(r" \(.*?\)", "", names)):
            module = re.sub(r"/$|\.py$", "", name).replace("/", ".")
            module = f"mobilenet.{module}" if module.endswith("__main__") else module
            listed[module] = int(layer)
    assert listed == {n: layer for n, layer in package_imports.LEVEL.items() if n != "__main__"}


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs (extra `docs`) is not installed")
    args = ["--strict", "--config-file", str(CONFIG), "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", *args],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")}
    assert Path("index.html") in pages and len(pages) > 20
    assert Path("404.html") not in pages  # its links would begin at the root of a server
    command = (tmp_path / "site/commands/trainer.html").read_text()
    assert 'href="../index.html" title="mobilenet" class="md-header' in command  # the logo
    for path in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//', path.read_text()
        )
        assert not loaded, path.name  # nothing is requested from another host
