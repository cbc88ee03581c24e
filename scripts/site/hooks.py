"""What MkDocs calls while it builds the site: pages from outside docs/, and links between pages."""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import command_reference
import config_reference
import package_diagram
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
STYLE = "site.css"
# Pages of the site by the file of the checkout that is shown; all others are in docs/.
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",
}
_SOURCES_COPY = tempfile.TemporaryDirectory(prefix="mobilenet-site-")
DIAGRAM = "<!-- package diagram -->"  # where a page has it
_SOURCES = {page: source for source, page in COPIED.items()}
# Code, which stays as it is, or a link to a file: text, path and anchor.
_LINK = re.compile(
    r"```.*?```|`[^`]*`\w*(?!\])|\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]"
    r"\((?!\w+:)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL,
)


@event_priority(100)  # before mkdocstrings reads it
def on_config(config: MkDocsConfig, **kwargs: Any) -> None:
    """Gives mkdocstrings the sources as they are installed: with the top-level folders inside."""
    package = Path(_SOURCES_COPY.name) / "mobilenet"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.npz")
    shutil.copytree(ROOT / "mobilenet", package, ignore=ignored)
    for folder in ("configs", "tf1_loader"):
        shutil.copytree(ROOT / folder, package / folder, ignore=ignored)
    plugin: Any = config.plugins["mkdocstrings"]
    plugin.config.handlers["python"]["paths"] = [_SOURCES_COPY.name]


def on_files(files: Files, config: MkDocsConfig, **kwargs: Any) -> Files:
    """Adds the pages that are not in docs/."""
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, STYLE, content=(SITE / STYLE).read_text(encoding="utf-8")))
    generated = {
        **command_reference.pages(),
        config_reference.PAGE: config_reference.page(),
        **notebook_pages(),
    }
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


def notebook_pages() -> dict[str, str]:
    """The Markdown of each notebook by its page; the notebook itself is a file next to it."""
    pages = {}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
        blocks = [f"```python\n{text}\n```" if is_code else text for text, is_code in texts]
        link = f"This page is a notebook: [{path.name}]({path.name})."
        pages[f"notebooks/{path.stem}.md"] = "\n\n".join([blocks[0], link, *blocks[1:]]) + "\n"
    return pages


def on_page_content(html: str, page: Page, **kwargs: Any) -> None:
    """Leaves the flags of a command out of the table of contents, which would have a hundred."""
    if page.file.src_uri.startswith(f"{command_reference.FOLDER}/"):
        for title in page.toc:
            for group in (group for part in title.children for group in part.children):
                group.children.clear()


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Makes links of the checkout links of the site, and draws the diagram of the packages."""
    if DIAGRAM in markdown:
        picture = f'<div class="package-diagram">{package_diagram.svg()}</div>'
        markdown = markdown.replace(DIAGRAM, picture)
    return site_links(markdown, page.file.src_uri)


def on_post_template(output_content: str, template_name: str, **kwargs: Any) -> str:
    """Leaves out the page of a server for wrong addresses, whose links begin at its root."""
    return "" if template_name == "404.html" else output_content


def site_links(markdown: str, page: str) -> str:
    """Replaces paths between files of the checkout by paths between pages of the site.

    Args:
        markdown: of the page.
        page: its path in the site's sources, such as `index.md`.
    """
    folder = posixpath.dirname(_SOURCES.get(page, f"docs/{page}"))

    def replace(match: re.Match[str]) -> str:
        if match["path"] is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        if target not in COPIED and not target.startswith("docs/"):
            return match["text"]  # of a file that the site does not have
        target = COPIED.get(target, target.removeprefix("docs/"))
        if not page.startswith("notebooks/"):  # a notebook is linked as its page
            target = target.replace(".ipynb", ".md")
        path = os.path.relpath(target, posixpath.dirname(page) or ".")
        return f"[{match['text']}]({path}{match['anchor'] or ''})"

    return _LINK.sub(replace, markdown)
