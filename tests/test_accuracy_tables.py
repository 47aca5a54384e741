"""Tables of hours: which rows are kept, of which code they are, and whether a row comes out as published."""

import ast
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    """The modules of rows, in whose place of processes there are threads."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from accuracy_tables import again, library, rows

    for module in (again, rows):
        monkeypatch.setattr(
            module, "ProcessPoolExecutor", lambda processes, mp_context: ThreadPoolExecutor(max(processes, 1))
        )
    return rows, again, library


def test_a_row_is_gone_on_from_while_the_library_is_the_same(tables, tmp_path, monkeypatch):
    rows, _, _ = tables
    calls, output = [], tmp_path / "table.json"

    def measured(task):
        calls.append(task)
        return {"name": task, "llc": len(calls) / 2}

    first = rows.finished_rows(measured, ["a", "b"], output, 1)
    assert [row["name"] for row in first] == ["a", "b"]
    assert rows.finished_rows(measured, ["b", "c", "a"], output, 1)[::2] == first[::-1]
    assert len(calls) == 3

    monkeypatch.setattr(rows, "library", lambda: "of tomorrow")
    changed = rows.finished_rows(measured, ["a"], output, 1)
    assert changed[0]["library"] == "of tomorrow"
    assert changed[0]["llc"] == 2.0
    # nothing is measured without a process: the newest row of each, and none of the tasks that have none
    assert rows.finished_rows(measured, ["a", "b", "d"], output, 0) == [changed[0], first[1]]
    assert len(calls) == 4


def test_the_digest_is_of_what_code_says(tables):
    _, _, library = tables

    def meaning(code: str) -> object:
        return library.meaning(ast.parse(code))

    plain = meaning("def f(x):\n    return [x + 1, None]")
    assert plain == meaning(
        '"""Doc."""\ndef f(x):  # why\n    """Doc."""\n    return [\n        x + 1,\n        None]\n'
    )
    for other in ("return [x + 2, None]", "return [x + 1]", "return [x - 1, None]", "y = 1; return [x + 1, None]"):
        assert plain != meaning(f"def f(x):\n    {other}")
    # a docstring alone is a body, and a string that is not first is code
    assert meaning('def f():\n    "a"') == meaning('def f():\n    "b"') != meaning("def f():\n    pass")
    assert meaning('def f():\n    pass\n    "a"') != meaning('def f():\n    pass\n    "b"')
    assert meaning('f"{x:<{n}}"') != meaning('f"{x:<{m}}"')
    assert len(library.library()) == library.DIGITS


def test_what_the_digest_leaves_out_is_loaded_by_no_row(tables):
    _, _, library = tables
    left_out = {name.removesuffix("/").removesuffix(".py").replace("/", ".") for name in library.NO_ROW_RUNS}
    assert left_out == {"slt.__main__", "slt.cli", "slt.plots"}
    loads = "import sys, slt, accuracy_tables.deep_linear, accuracy_tables.rlct; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", loads], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "slt.verdict" in loaded
    assert not left_out & set(loaded)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "same"),
        ({"llc": 1.5 * (1 + 1e-12)}, "same"),
        ({"llc": 1.5 * (1 + 1e-7)}, "OTHER"),
        ({"problems": []}, "same λ̂, OTHER PROBLEMS"),
        ({"problems": ["imprecise", "not_converged"]}, "same λ̂, OTHER PROBLEMS"),
        ({"seed": 4}, "OTHER"),  # which is another row's
        ({"failed": "ValueError"}, "OTHER"),
        ({"reference": {"llc": 1.4}}, "OTHER"),
    ],
)
def test_a_row_is_as_published_when_its_figures_and_problems_are(tables, change, says):
    _, again, _ = tables
    row = {"case": "quartic", "seed": 3, "llc": 1.5, "problems": ["imprecise"], "seconds": 2.0}
    other = {**row, "seed": 4, "llc": 7.0}
    published = {"about": {"seconds": 1.0}, "runs": [other, {**row, "problems": {"imprecise": "0.03 > 0.02"}}]}
    assert again.compared({**row, **change, "seconds": 9.0}, list(again.rows_of(published))) == says


def test_rows_measured_again_are_counted(tables, tmp_path, capsys):
    rows, again, _ = tables
    output = tmp_path / "table.json"
    output.write_text(json.dumps({"rows": [{"seed": seed, "llc": seed / 3, "seconds": 1.0} for seed in range(4)]}))

    def measured(seed):
        return {"seed": seed, "llc": seed / 3 + (seed == 2), "seconds": 2.0}

    with pytest.raises(again.MeasuredAgainError, match="3 of 4 rows"):
        rows.finished_rows(measured, range(4), output, 1, again=4)
    assert capsys.readouterr().out.count("OTHER") == 1
