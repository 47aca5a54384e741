"""The page for users of devinterp: our column runs, and its figures are those that were found."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import slt

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results" / "migration.json"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "migration.py"))


@pytest.mark.parametrize("version", ["1", "2"])
def test_our_column(version, script, tmp_path, monkeypatch):
    """With few draws; ``benchmarks/migration.py`` runs it as it stands, and devinterp's."""
    if version == "2":
        pytest.importorskip("transformers")
    honest = slt.estimate_llc

    def few(*given, **named):
        sampler = {"sampler": "mala"} if "sampler" not in named else {}
        return honest(*given, **named | sampler | {"num_draws": 16, "num_warmup": 8, "num_chains": 4})

    monkeypatch.setattr(slt, "estimate_llc", few)
    monkeypatch.chdir(tmp_path)
    np.save("losses.npy", np.linspace(0.45, 0.55, 20).reshape(4, 5))  # of devinterp's column
    (part,) = (part for part in script["parts"](PAGE) if part.peer == version)
    namespace: dict = {"__name__": "page"}
    for block in script["columns"](part)[1]:
        exec(block, namespace)
    assert np.isfinite(namespace["estimate"].llc)


def test_figures_are_those_that_the_code_of_the_page_gave(script):
    """The code on the page is the code that was run, each pair agrees, and under it stands what was found.

    Z and its false-alarm rate stand in the script.
    """
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert script["fingerprint"](PAGE) == stored["code"]
    rows = [row for part in stored["parts"] for row in part["rows"]]
    pairs = [row for row in rows if "left" in row]
    quoted = re.findall(r"^<tr><td>([^<\n]+)</td><td>([^<\n]+)</td></tr>$", PAGE, re.MULTILINE)
    assert quoted == [(script["shown"](row["left"]), script["shown"](row["right"])) for row in pairs]
    alone = [row["right"]["estimate"] for row in rows if "left" not in row]
    assert re.findall(r"^    (LLC .*)$", PAGE, re.MULTILINE) == alone
    for row in pairs:
        left, right = row["left"], row["right"]
        error = np.hypot(left.get("mcse", 0.0), right.get("mcse", 0.0))
        assert abs(left["number"] - right["number"]) <= (script["Z"] * error or script["ROUNDING"] * right["number"])
        assert error < 0.05 * abs(right["number"]), "a pair that says little agrees with anything"


def test_code_that_was_not_run_and_pairs_that_differ_are_seen(script):
    assert script["fingerprint"](PAGE.replace("step_size=1e-3", "step_size=2e-3", 1)) != script["fingerprint"](PAGE)
    assert script["fingerprint"](PAGE.replace("±", "+")) == script["fingerprint"](PAGE)
    shared = "start = 1.0\n"
    blocks = [
        shared,
        script["Pair"]("same", "n = start + 1\n", "n = 2.0\n"),
        script["Pair"]("other", "n = 2\n", "n = 2.1\n"),
    ]
    rows = script["compare"](script["Part"]("1", blocks), sys.executable)["rows"]
    assert [row["agrees"] for row in rows] == [True, False]
