"""The comparison of estimates with exact values, and what it calls outside its bound."""

import json
from dataclasses import replace

import numpy as np
import pytest

from slt.known import case, cases, summarize, validate
from slt.known.table import computed_rows
from slt.known.validate import QUICK, targets
from slt.plots import plot_validations
from slt.verdict import Problem, Verdict

FEW = {"num_draws": 200, "num_warmup": 50, "sampler": "mala"}


@pytest.fixture(scope="module")
def rows():
    return list(validate([case("quadratic"), case("rrr_323_r2")], seeds=(0, 1), **FEW))


def test_a_row_per_target_and_seed(rows):
    assert [row.case.name for row in rows] == ["quadratic"] * 6 + ["rrr_323_r2"] * 2
    assert rows[0].exact == pytest.approx(100 / (2 * 101), rel=1e-6)
    assert rows[-1].exact is None
    assert rows[-1].z is rows[-1].covered is rows[-1].relative_error is None
    assert "quadratic" in str(rows[0])
    assert rows[0].to_dict()["rlct"] == "1/2"


def test_a_wrong_and_healthy_row_is_outside_and_an_unsure_one_is_not(rows):
    row = next(row for row in rows if row.estimate.verdict.ok)
    assert not row.outside
    wrong = replace(row, exact=row.estimate.llc - 4.5 * row.estimate.mcse)
    assert wrong.outside
    assert not replace(row, exact=row.estimate.llc - 3.9 * row.estimate.mcse).outside
    assert not wrong.covered
    assert "OUTSIDE" in str(wrong)
    unsure = replace(wrong.estimate, verdict=Verdict((Problem("not_converged", {}, "draw more"),)))
    assert not replace(wrong, estimate=unsure).outside
    summary = summarize([row, wrong])
    assert not summary.ok
    assert summary.outside == (f"quadratic at nβ {row.n_beta:.4g}, γ {row.localization:.4g}, seed {row.seed}",)
    assert "outside the bound" in str(summary)


def test_a_row_without_a_number_is_a_failure(rows):
    nothing = replace(rows[0].estimate, llc=np.nan, interval=(np.nan, np.nan))
    summary = summarize([rows[1], replace(rows[0], estimate=nothing)])
    assert len(summary.failures) == 1
    assert not summary.ok
    assert np.isfinite(summary.median_error)  # it is counted, not averaged over
    assert summary.coverage == 0.5 * rows[1].covered


def test_a_summary_without_exact_values_is_not_a_number(rows):
    summary = summarize(rows[-2:])
    assert (summary.rows, summary.exact) == (2, 0)
    assert np.isnan(summary.coverage)
    assert summary.ok
    assert "nothing to compare with" in str(summary)
    assert summary.to_dict()["coverage"] is None
    json.dumps(summary.to_dict(), allow_nan=False)


def test_cases_with_a_prior_or_a_support_are_refused():
    with pytest.raises(ValueError, match="chosen: nmf_222_zero"):
        next(validate([case("nmf_222_zero")]))


def test_targets_are_the_rows_with_exact_values_or_one_without():
    published = [known for known in cases() if known.exact and not computed_rows(known.name)]
    assert sum(len(targets(known)) for known in published) == 33
    assert len(QUICK) == 12
    assert targets(case("poly_circle"))[0][2] is not None
    assert targets(case("rrr_545_r2")) == [(1000.0, 1.0, None)]
    assert [len(targets(case("poly_xy2"), every=every)) for every in (True, False)] == [5, 1]


def test_the_figure_leaves_out_what_has_no_exact_value(rows):
    axes = plot_validations(rows)
    assert axes[0].get_xscale() == "log"
    drawn = sum(len(line.get_xdata()) for line in axes[1].get_lines() if line.get_marker() == "o")
    assert drawn == sum(row.exact is not None for row in rows)
    figure = axes[0].get_figure()
    import matplotlib.pyplot as plt

    plt.close(figure)
