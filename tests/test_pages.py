"""The pages of ``docs``: their blocks run, their links lead somewhere, and a build of them warns of what is wrong."""

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import slt

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(params=["small", pytest.param("as it stands", marks=pytest.mark.slow)])
def size(request, monkeypatch):
    """Estimates of few draws, and in the slow tests as they stand."""
    if request.param != "small":
        return
    estimate_llc, sweep, estimate_rlct = slt.estimate_llc, slt.sweep, slt.estimate_rlct

    def few(honest):
        def call(model, data, *given, **named):
            if "num_draws" in named:
                named |= {"num_draws": 16, "num_warmup": 8}
            elif data is not None:
                named |= {"num_draws": 12, "num_warmup": 8, "sampler": "mala", "num_chains": 2}
            else:
                named |= {"budget": 600}
            return honest(model, data, *given, **named)

        return call

    monkeypatch.setattr(slt, "estimate_llc", few(estimate_llc))
    monkeypatch.setattr(
        slt, "sweep", lambda *given, **named: sweep(*given, **named, num_draws=40, num_warmup=20, sampler="mala")
    )
    monkeypatch.setattr(
        slt, "estimate_rlct", lambda *given, **named: estimate_rlct(*given, **named, budget=1_000_000, max_rounds=1)
    )


def run(blocks):
    namespace: dict = {"__name__": "page"}
    for block in blocks:
        exec(block, namespace)
    plt.close("all")
    return namespace


def blocks_of(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_estimating(size, folder):
    found = run(blocks_of("estimating.md"))
    assert np.isfinite(found["estimate"].llc)
    assert found["exact"].n_beta == 1000.0
    assert np.isfinite(found["exact"].llc)
    assert found["bias"].config["parameters"][0] == 1
    task = found["task"]()
    assert task.options == {"tolerance": 0.1}
    assert np.isfinite(slt.estimate_llc(*task[:3], num_draws=12, num_warmup=8, **task.options).llc)


def test_recipes(size, folder):
    found = run(blocks_of("recipes.md"))
    assert found["losses"].isfinite().all()


def test_samplers(folder):
    """The page's kernel on a Gaussian: of 64 chains, each error beyond four of its own in 1 run of 5,000."""
    found = run(blocks_of("samplers.md"))
    of_chains = (found["trace"].positions.square() * found["curvatures"]).mean(dim=1)
    error = of_chains.std(dim=0) / len(of_chains) ** 0.5
    assert len(of_chains) == 64
    assert (error < 0.05).all()  # and sgld is 9 % and fourfold off
    assert ((of_chains.mean(dim=0) - 1).abs() < 4 * error).all()
    assert ((found["variances"] - 1).abs() < 5 * error).all()


def test_known_truths(size, folder):
    found = run(blocks_of("known.md"))
    assert abs(found["estimate"].llc - found["exact"]) < 5 * found["estimate"].mcse
    assert abs(found["found"].rlct - 0.75) < 0.05


def test_parts(size, folder):
    pytest.importorskip("transformers")
    found = run(blocks_of("parts.md"))
    assert list(found["parts"]) == ["head 0.0", "head 0.1", "mlp 0"]
    assert np.isfinite(found["estimate"].llc)


def test_reports(size, folder):
    run(blocks_of("reports.md"))
    assert {path.name for path in folder.iterdir()} == {"llc.html", "llc.png", "ranks.png", "sweep.html", "sweep.png"}


@pytest.mark.parametrize("size", ["small"], indirect=True)
def test_training(size, folder):
    """As it stands it is among the slow tests of the documents, with what it says of verdicts."""
    assert list(run(blocks_of("training.md"))["monitor"].estimates) == [1, 4, 20]


def test_processes(size, folder):
    assert run(blocks_of("processes.md"))["group"] is None


def test_links_lead_somewhere(tmp_path):
    broken = runpy.run_path(str(DOCS / "extensions" / "links.py"))["broken"]
    for page in (*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"):
        assert broken(page) == [], page
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing\n[a](page.md#one-thing) [b](page.md#another) [c](none.md) `[d](none.md)` [e](https://x.y)\n"
    )
    assert broken(page) == ["page.md#another", "none.md"]


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{name}$", index, re.MULTILINE), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_build_of_the_pages_warns_of_what_is_wrong(tmp_path):
    """References, formulas, links and public names; what is right passes."""
    pytest.importorskip("sphinx")
    from sphinx.application import Sphinx

    source = tmp_path / "docs"
    source.mkdir()
    for name in ("README.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("[gone](docs/none.md)\n" if name == "README.md" else "")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "README.md").write_text("")
    extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "mathml", "public_names", "links"]
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / 'extensions')!r})\nextensions = {extensions!r}\nnitpicky = True\n"
    )
    (source / "index.md").write_text(
        "# Page\n\n[away](none.md) [log](../CHANGELOG.md)\n\n```{eval-rst}\n"
        ".. math:: \\lambda = \\nonsense x\n\n.. math:: \\lambda = \\tfrac{1}{2}\n\n"
        ".. autofunction:: slt.load_into\n\n:func:`slt.no_such_name` :func:`slt.checkpoints.load_into`\n```\n"
    )
    warnings = (tmp_path / "warnings.txt").open("w+")
    Sphinx(source, source, tmp_path / "out", tmp_path / "trees", "html", status=None, warning=warnings).build()
    warnings.seek(0)
    said = warnings.read()
    for wrong in ("'docs/none.md'", "'none.md'", "nonsense", "slt.no_such_name", "slt.estimate_llc is public"):
        assert wrong in said
    assert "slt.load_into is public" not in said
    assert "CHANGELOG" not in said
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<mfrac" in page
    assert page.count('href="#slt.load_into"') >= 2
