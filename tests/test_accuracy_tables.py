"""Tables of hours: which rows are kept, of which code they are, and whether a row comes out as published."""

import ast
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import slt
from tests.slt.models import fitted_regression, half_squares

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


ROWS = """
import sys, torch, slt
from slt import known

called = set()
sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_filename))
x = torch.randn(60, 3)
data, model = (x, x.sum(1, keepdim=True)), torch.nn.Linear(3, 1)
loss_fn = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1)
for options in (
    {}, {"sampler": "sgld"}, {"sampler": "baoab", "control_variates": True}, {"metric": "curvature"},
    {"engine": "in_place", "batch_size": 8},
):
    slt.estimate_llc(model, data, loss_fn, budget=100, **options)
case = known.case("quartic")
slt.estimate_llc(case.build(), None, case.loss_fn, n_beta=100.0, budget=100)
slt.estimate_rlct(case.build(), None, case.loss_fn, radius=case.radius, budget=20_000, max_rounds=1)
sys.setprofile(None)
print(*called, sep="\\n")
"""


def test_of_what_the_digest_leaves_out_a_row_calls_nothing(tables):
    _, _, library = tables
    root = BENCHMARKS.parent
    run = subprocess.run([sys.executable, "-c", ROWS], cwd=root, capture_output=True, text=True, check=True)
    called = [Path(name).relative_to(root).as_posix() for name in run.stdout.splitlines() if name.startswith(str(root))]
    assert {"slt/verdict.py", "slt/rlct.py", "samplers/run.py"} <= set(called)
    assert [name for name in called if name.startswith(library.NO_ROW_RUNS)] == []
    assert all((root / name).exists() for name in library.NO_ROW_RUNS)


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


def test_the_seconds_of_a_call_are_those_of_its_parts(tables):
    """What the table of costs replaces for its clocks is there, and is called."""
    from accuracy_tables.cost import stages

    model, data, _ = fitted_regression()
    with stages() as spent:
        slt.estimate_llc(model, data, half_squares, num_draws=200, num_warmup=20, num_chains=2)
    assert all(spent[part] for part in ("pilot", "draw", "surroundings"))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_potential_of_populations_is_the_loss_of_the_network(tables, activation):
    from accuracy_tables import annealed, growth

    network = growth.Growth(activation, 2, 3, "silent", 0.0)
    model, data = growth.start(network, 0), growth.data_of(network, 50)
    weights = torch.cat([parameter.detach().flatten() for parameter in (model.a, model.b)])
    target = annealed.TwoLayerPotential(network, data, weights, 10.0)
    others = weights + torch.randn(40, len(weights), generator=torch.Generator().manual_seed(0), dtype=weights.dtype)
    found, gradients = target.loss_and_grad(others)

    def loss(values):
        parameters = {"a": values[:3].view(1, 3), "b": values[3:].view(3, 2)}
        return growth.squares(growth.NOISE)(lambda x: torch.func.functional_call(model, parameters, (x,)), data).mean()

    for value, gradient, position in zip(found, gradients, others, strict=True):
        torch.testing.assert_close(value, loss(position))
        torch.testing.assert_close(gradient, torch.func.grad(loss)(position))
