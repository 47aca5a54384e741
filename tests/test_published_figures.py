"""Pages say what the results say: every figure of ``benchmarks/published.py`` stands on its page."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = list(runpy.run_path(str(ROOT / "benchmarks" / "published.py"))["published"]())


@pytest.mark.parametrize("page", sorted({page for page, _ in PUBLISHED}))
def test_pages_say_what_the_results_say(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert [says for where, says in PUBLISHED if where == page and says not in text] == []
