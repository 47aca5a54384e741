"""What the documents show is run: the README's ten lines, its pages, the example of the command line."""

import re
from pathlib import Path

import numpy as np
import pytest

import slt
from slt.cli import load_task

ROOT = Path(__file__).parent.parent


def python_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("budget", [1200, pytest.param(None, marks=pytest.mark.slow)])
def test_the_ten_lines_of_the_readme(budget, capsys, monkeypatch):
    """With few draws; in the slow tests as they stand."""
    honest = slt.estimate_llc
    monkeypatch.setattr(slt, "estimate_llc", lambda *arguments: honest(*arguments, budget=budget))
    block = python_blocks()[0]
    assert len(block.strip().splitlines()) <= 11
    namespace: dict = {}
    exec(block, namespace)
    assert isinstance(namespace["estimate"], slt.LLCEstimate)
    assert np.isfinite(namespace["estimate"].llc)
    assert namespace["estimate"].verdict.ok or budget  # which the text beside them promises
    assert "LLC" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [1_500_000, pytest.param(None, marks=pytest.mark.slow)])
def test_the_ladder_of_the_readme(budget, capsys, monkeypatch):
    """On a short ladder; in the slow tests as it stands."""
    honest = slt.estimate_rlct
    options = {"budget": budget, "max_rounds": 1} if budget else {}
    monkeypatch.setattr(slt, "estimate_rlct", lambda *given, **named: honest(*given, **named, **options))
    namespace: dict = {}
    exec(python_blocks()[1], namespace)
    assert "verdict" in capsys.readouterr().out
    assert abs(namespace["estimate"].rlct - 0.5) < (0.2 if budget else 0.02)


def test_the_known_truths_of_the_readme(capsys):
    *_, block = python_blocks()
    exec(block, {})
    out = capsys.readouterr().out
    for shown in ("Fraction(87, 2), multiplicity=5", "Fraction(1, 2)", "5/4 1 0.3", "0.43754"):
        assert shown in out
    assert abs(float(out.splitlines()[-1]) - 0.75) <= 0.03 * 0.75


@pytest.mark.slow
def test_the_verdicts_of_their_page():
    """Block after block; the text under each shows the names that were found."""
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    namespace: dict = {}
    checked = 0
    for block, after in re.findall(r"```python\n(.*?)```\n(.*?)(?=\n## |\Z)", page, re.DOTALL):
        exec(block, namespace)
        shown = re.search(r"^    LLC .* · (.*)$", after, re.MULTILINE)
        if shown:
            assert set(shown[1].split(", ")) == set(namespace["estimate"].verdict.names)
            checked += 1
    assert checked == 6


@pytest.mark.slow
def test_the_page_on_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, namespace)
    assert capsys.readouterr().out.rstrip().endswith("[1, 4, 20]")
    assert (tmp_path / "llc.csv").is_file()
    verdicts = [row.estimate.verdict for row in namespace["sweep"].rows]
    told = page.partition("## A series")[2].partition("### ")[0]
    assert "No row of it is healthy" in told
    assert not any(verdict.ok for verdict in verdicts)
    # which of them a row has depends on the last digits of training, and so on the machine
    assert all(any(f"`{name}`" in told for name in verdict.names) for verdict in verdicts)


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_have_what_their_build_relies_on(notebook):
    """They are run by `make notebooks-test`, each in a process of its own."""
    source = notebook.read_text(encoding="utf-8")
    cells = source.split("# %%")[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert 'SMALL = os.environ.get("SLT_NOTEBOOK_SIZE") == "small"' in source
    assert any(re.search(r"^ *assert ", cell, re.MULTILINE) for cell in cells)
    compile(source, str(notebook), "exec")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"notebooks/{notebook.name}" in readme


def test_the_example_of_the_command_line():
    pytest.importorskip("sklearn")
    task = load_task(str(ROOT / "examples/digits.py") + ":task")
    assert isinstance(task, slt.Task)
    assert task.data[0].shape == (1797, 64)
    estimate = slt.estimate_llc(*task[:3], num_draws=5, num_warmup=5, num_chains=2, **task.options)
    assert np.isfinite(estimate.llc)


def test_public_names_have_docstrings_and_packages_are_typed():
    import samplers

    for package in (slt, samplers):
        assert (Path(package.__file__).parent / "py.typed").is_file()
        for name in package.__all__:
            text = getattr(package, name).__doc__
            assert text, name
            assert not text.startswith(f"{name}("), (
                f"{name} has the text that a dataclass or a named tuple makes itself"
            )
