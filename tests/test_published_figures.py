"""Tables of accuracy and of speed stand on the pages as in the results: what ``benchmarks/published.py`` yields.

Other figures of these pages, in running text, are held to nothing here, nor is a page searched for rows that no result
has.
"""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = list(runpy.run_path(str(ROOT / "benchmarks" / "published.py"))["published"]())


def test_no_table_is_empty():
    """As many rows and sentences as there are: one that vanished from a result would not be looked for."""
    assert {page: sum(where == page for where, _ in PUBLISHED) for page in ("README.md", "benchmarks/README.md")} == {
        "README.md": 21, "benchmarks/README.md": 106
    }  # fmt: skip


@pytest.mark.parametrize("page", sorted({page for page, _ in PUBLISHED}))
def test_pages_say_what_the_results_say(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert [says for where, says in PUBLISHED if where == page and says not in text] == []
