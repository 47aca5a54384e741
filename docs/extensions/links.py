"""Links of Markdown pages to files outside ``docs``, and those of the README: each must lead to a file and a heading.

Within ``docs`` the links are checked by MyST. One to a file elsewhere in the project becomes a download.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
OTHERS = ("README.md", "CHANGELOG.md", "benchmarks/README.md")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: str) -> set[str]:
    """Of the headings of a page, as GitHub and MyST write them."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    """The links of a page that lead nowhere.

    Args:
        path: A Markdown file.

    Returns:
        The links as they stand in it.
    """
    page = path.read_text()
    found = []
    for file, anchor in LINK.findall(re.sub(r"^```.*?^```|`[^`\n]*`", "`", page, flags=re.DOTALL | re.MULTILINE)):
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(file + (f"#{anchor}" if anchor else ""))
    return found


def check(app: Sphinx) -> None:
    """Warn of broken links outside ``docs``."""
    root = Path(app.srcdir).parent
    for name in OTHERS:
        for link in broken(root / name):
            logger.warning("%s: the link to %r leads nowhere", name, link)


def leave(app: Sphinx, docname: str, source: list[str]) -> None:
    """Mark links to files outside ``docs`` as such."""
    page = Path(app.env.doc2path(docname))
    for link in broken(page):
        logger.warning("%s: the link to %r leads nowhere", docname, link)

    def marked(link: re.Match[str]) -> str:
        outside = link[1] and Path(app.srcdir).resolve() not in (page.parent / link[1]).resolve().parents
        return f"](path:{link[1]})" if outside else link[0]

    source[0] = LINK.sub(marked, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", check)
    app.connect("source-read", leave)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
