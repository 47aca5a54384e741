"""Figures: they draw on the axes that they are given, and what they draw is what the estimates say."""

import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Polygon, StepPatch
from torch import nn

import slt
from slt.plots import (
    plot_estimate,
    plot_parts,
    plot_ranks,
    plot_rlct,
    plot_step_sizes,
    plot_sweep,
    plot_temperatures,
    plot_truth,
    save_figure,
)
from slt.plots.parts import SHADES
from slt.rlct_estimate import Curve, RLCTEstimate
from tests.slt.models import fitted_regression, half_squares
from tests.statistics import MINIMUM_ESS, Z

SHORT = {"num_draws": 100, "num_warmup": 30, "num_chains": 4, "progress": False, "sampler": "mala", "step_size": 0.02}
CURVATURE = torch.tensor([0.5, 4.0, 30.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def estimate():
    torch.manual_seed(0)
    model, data, _ = fitted_regression()
    return slt.estimate_llc(model, data, half_squares, **SHORT)


@pytest.fixture(scope="module")
def ladder():
    """An exact quadratic by replica exchange."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)

    def loss_fn(model):
        return 0.5 * (CURVATURE * model.weight.square()).sum()

    return slt.estimate_llc(model, None, loss_fn, n_beta=100.0, num_draws=500, num_warmup=100, progress=False)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def other(estimate, **changed):
    verdict = slt.Verdict((slt.Problem("not_converged", {}, ""),)) if changed.pop("named", False) else slt.Verdict()
    return replace(estimate, verdict=verdict, **changed)


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_figure_is_drawn_on_the_axes_that_it_is_given(estimate, ladder, tmp_path):
    model, data, _ = fitted_regression()
    series = {10: model.state_dict(), 20: {"weight": model.weight.detach() * 1.01}}
    sweep = slt.sweep(model, series, data, half_squares, **{**SHORT, "num_draws": 10})
    steps = [other(estimate, step_size=size) for size in (1e-3, 1e-2)]
    for draw, count in (
        (lambda axes: plot_estimate(estimate, axes), 2),
        (lambda axes: plot_ranks(estimate, axes), 2),
        (lambda axes: plot_sweep(sweep, axes), 2),
        (lambda axes: plot_temperatures(ladder, axes), 2),
        (lambda axes: plot_truth([1.4], [estimate], axes), 2),
        (lambda axes: plot_step_sizes(steps, 1.4, axes and axes[0]), 1),
    ):
        given = list(plt.subplots(1, count, squeeze=False)[1][0])
        assert draw(given) == given
        own = draw(None)
        assert len(own) == count
        assert own[0] is not given[0]
        assert all(axis.get_xlabel() or axis.get_shared_x_axes().joined(own[0], own[-1]) for axis in own)
        save_figure(own, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("part", ["", "whole"])
def test_a_sweep_is_drawn_on_given_axes_and_over_steps_on_the_scale_that_is_asked_for(estimate, part):
    def drawn(steps, *given, **asked):
        rows = [slt.SweepRow(step, f"step {step}", estimate, part=part) for step in steps]
        return slt.Sweep(tuple(rows)).plot(*given, **asked)

    early, even = (0, 10, 100, 1000, 10_000), (100, 200, 300)
    assert drawn(early)[1].get_xscale() == drawn(even, log=True)[1].get_xscale() == "symlog"
    assert drawn(even)[1].get_xscale() == drawn(early, log=False)[1].get_xscale() == "linear"
    assert drawn((0,), log=True)[1].get_xscale() == "symlog"
    given = plt.subplots(1, 2)[1]
    given[1].set_xscale("log")
    assert drawn(even, given, log=False) == list(given)
    assert given[1].get_xscale() == "linear"
    assert given[1].get_xlabel() == "training step"
    for wrong, told in (
        (given[0], r"axes: 1 \(Axes\); expected two"), (plt.subplots(3)[1], r"axes: 3 "), ([1, 2], r"axes: 2 \(int, "),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            drawn(even, wrong)
    with pytest.raises(ValueError, match="log: 'linear'; expected True or False"):
        drawn(even, log="linear")
    assert drawn((-5, 1, 2))[1].get_xscale() == "linear"
    with pytest.raises(ValueError, match="log: True, but step -5 is below 0"):
        drawn((-5, 1, 2), log=True)


def test_the_legend_names_what_stages_draw_once_each(estimate):
    levels = [1.0] * 8 + [5.0] * 8 + [9.0] * 8
    rows = [
        slt.SweepRow(step, f"step {step}", other(estimate, llc=level, mcse=0.01, interval=(level - 0.02, level + 0.02)))
        for step, level in enumerate(levels)
    ]
    top, _ = slt.Sweep(tuple(rows)).plot()
    assert sorted(texts(top)) == sorted({*texts(top)})
    assert {"where one stage ends", "plateau"} < {*texts(top)}
    top, _ = slt.Sweep(tuple(rows[:8])).plot()
    assert not {"where one stage ends", "plateau"} & {*texts(top)}


def bars(axes):
    """Heights of the histograms, in units of a flat one, ``(chain, bin)``."""
    filled = [patch for patch in axes.patches if isinstance(patch, StepPatch) and patch.get_fill()]
    return np.array([(patch.get_data().values - patch.get_data().baseline) / 0.4 for patch in filled])


def test_ranks_are_flat_where_chains_agree_and_lean_where_one_does_not(estimate):
    loss, distance = plot_ranks(estimate)
    assert (loss.get_title(), distance.get_title()) == ("loss", "distance from w*")
    heights = bars(loss)
    assert heights.shape == (4, 20)
    assert heights.mean() == pytest.approx(1.0, abs=0.01)  # the highest bars are cut
    shifted = estimate.trace.loss.copy()
    shifted[0] += 3 * shifted.std()
    planted = bars(plot_ranks(replace(estimate, trace=replace(estimate.trace, statistics={
        **estimate.trace.statistics, "loss": shifted,
    })))[0])  # fmt: skip
    assert heights[0, :10].mean() > 0.5
    assert planted[0, :10].mean() < 0.05


def test_the_rungs_of_replica_exchange_have_the_law_of_their_own_inverse_temperature(ladder, tmp_path):
    """λ̂(t) = ½ Σ t h / (t h + γ) at every rung; Z = 4 at a dozen of them: a false alarm once in 1,300."""
    rungs = ladder.rungs
    scaled = rungs.n_beta[:, None] * CURVATURE.numpy()
    truth = 0.5 * (scaled / (scaled + 1.0)).sum(1)
    assert ladder.ess >= MINIMUM_ESS
    assert (np.abs(rungs.llc - truth) <= Z * rungs.mcse).all()
    assert not (np.abs(rungs.llc[::-1] - truth) <= Z * rungs.mcse).all()
    assert rungs.llc[-1] == pytest.approx(ladder.llc)
    assert rungs.variance[-1] == pytest.approx((100.0 * ladder.trace.loss).var())
    ladder.save(tmp_path / "ladder.nc")
    np.testing.assert_array_equal(slt.load_estimate(tmp_path / "ladder.nc").rungs.llc, rungs.llc)


def test_temperatures_of_one_ladder_or_of_several_estimates(ladder, estimate):
    left, right = plot_temperatures(ladder)
    assert len(left.lines) > len(ladder.rungs.n_beta)  # a slope at every rung
    slope = float(next(text for text in texts(right) if "slope" in text).rsplit(" ", 1)[1])
    assert slope == pytest.approx(ladder.llc, rel=0.15)
    several = [replace(estimate, n_beta=estimate.n_beta * factor) for factor in (0.5, 1.0, 2.0)]
    assert "slope" in texts(plot_temperatures(several)[1])[0]
    with pytest.raises(ValueError, match="one by mala, at one nβ"):
        plot_temperatures(estimate)
    with pytest.raises(ValueError, match="several of one γ"):
        plot_temperatures([estimate, replace(estimate, localization=3.0, n_beta=1.0)])


def in_a_ball(llc, rlct):
    """An estimate of λ over a ladder with these λ̂(nβ)."""
    llc = np.array(llc, dtype=float)
    ones = np.ones_like(llc)
    n_beta, fitted = np.geomspace(1, 1e4, len(llc)), ones.astype(bool)
    curve = Curve(n_beta, llc, 0.05 * ones, np.abs(llc), 0 * ones, fitted, np.stack([llc, llc]))
    interval = (rlct - 0.1, rlct + 0.1)
    return RLCTEstimate(rlct, interval, None, (), curve, None, 1.0, None, 0.0, 1, 1.0, slt.Verdict(), {})


def test_a_curve_below_zero_is_seen_and_one_without_a_fit_is_not_called_fitted():
    (axes,) = plot_rlct(in_a_ball([-2.0, -0.5, 0.5, 1.0], 1.0))
    assert axes.get_ylim() == pytest.approx((-2.5, 1.375))
    assert {"λ = 1, m undecided", "λ̂(nβ), fitted"} < set(texts(axes))
    assert plot_rlct(in_a_ball([0.2, 0.5, 1.0], 1.0))[0].get_ylim() == pytest.approx((0.0, 1.375))
    (axes,) = plot_rlct(in_a_ball([0.5, np.nan, 1.0], np.nan))
    assert axes.get_ylim() == pytest.approx((0.0, 1.25))
    told = texts(axes)
    assert "λ: no number, since nothing was fitted" in told
    assert "λ̂(nβ), not fitted" in told
    assert not any("nan" in text or text.endswith(", fitted") for text in told)


def test_step_sizes_with_what_the_bias_predicts(estimate):
    steps = [
        other(estimate, step_size=1e-3, llc=1.4, step_size_bias=0.1),
        other(estimate, step_size=[1e-2, 3e-2], llc=1.4, step_size_bias=0.6, named=True),
    ]
    (axes,) = plot_step_sizes(steps[::-1], exact=1.4)
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["exact, and the predicted bias"].get_xydata(), [[1e-3, 1.5], [2e-2, 2.0]])
    np.testing.assert_allclose(lines["mean of the draws"].get_ydata(), [1.5, 2.0])
    assert {"λ̂, 95 %: healthy", "λ̂, 95 %: a problem is named"} <= set(texts(axes))
    with pytest.raises(ValueError, match="of 2 laws"):
        plot_step_sizes([steps[0], replace(steps[0], n_beta=3.0)])


def test_misses_are_marked(estimate):
    cases = [
        (1.0, other(estimate, llc=1.05, interval=(0.9, 1.2))),
        (2.0, other(estimate, llc=2.5, interval=(2.3, 2.7))),
        (3.0, other(estimate, llc=2.0, interval=(1.0, 2.5), named=True)),
    ]
    top, bottom = plot_truth(*zip(*cases, strict=True))
    assert texts(top)[1:] == [
        "1 contain the exact value",
        "1 miss the exact value",
        "1 miss the exact value, named",
    ]
    assert sorted(float(line.get_ydata()[0]) for line in bottom.lines[:-1]) == sorted(
        (found.llc - exact) / found.mcse for exact, found in cases
    )
    with pytest.raises(ValueError, match="truth: 1 values for 0 estimates"):
        plot_truth([1.0], [])


@pytest.mark.parametrize("truth", [(1.9, 1.95, 1.99), (2.0, 2.25, 2.75), (0.3, 0.9, 2.0), (0.02, 1.0, 30.0)])
def test_the_labels_of_exact_values_are_those_of_their_ticks(estimate, truth):
    estimates = [other(estimate, llc=exact, interval=(0.98 * exact, 1.02 * exact)) for exact in truth]
    top, bottom = plot_truth(truth, estimates)
    top.get_figure().canvas.draw()
    for axis in (top.yaxis, bottom.xaxis):
        low, high = axis.get_view_interval()
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        labels = [(tick.get_loc(), tick.label1.get_text()) for tick in ticks if low <= tick.get_loc() <= high]
        told = [(place, text) for place, text in labels if text]
        assert len(told) >= 3
        assert len({text for _, text in told}) == len(told)
        assert all(float(text) == pytest.approx(place) and "e" not in text for place, text in told)


def test_what_has_no_number_misses_no_exact_value(estimate):
    nothing = other(estimate, llc=np.nan, mcse=np.nan, interval=(np.nan, np.nan), named=True)
    found = other(estimate, llc=1.05, interval=(0.9, 1.2))
    top, _ = plot_truth([1.0, 2.0, 3.0], [found, nothing, nothing])
    assert texts(top)[1:] == ["2 without a number", "1 contain the exact value"]
    marked = next(line for line in top.lines if line.get_label() == "2 without a number")
    assert list(marked.get_xdata()) == [2.0, 3.0]
    assert top.get_xscale() == "log"
    assert texts(plot_truth([1.0, 2.0], [nothing, nothing])[0])[1:] == ["2 without a number"]


def test_the_heat_map_has_every_cell_and_marks_what_is_wrong(estimate):
    rows = [
        slt.SweepRow(10, "a", other(estimate, llc=1.25), part="first"),
        slt.SweepRow(10, "a", other(estimate, llc=-0.5, named=True), part="second"),
        slt.SweepRow(20, "b", other(estimate, llc=3.0, named=True), part="first"),
        slt.SweepRow(20, "b", None, "broken", part="second"),
        slt.SweepRow(30, "c", other(estimate, llc=2.0), part="first"),  # and there it was interrupted
    ]
    top, bottom = plot_parts(slt.Sweep(tuple(rows)))
    assert sorted(text.get_text() for text in top.texts) == ["-0.5", "1.25", "2", "3"]
    assert sum(isinstance(patch, Polygon) for patch in top.patches) == 2
    assert [tuple(line.get_xydata()[0]) for line in top.lines if line.get_marker() == "x"] == [(1.0, 1.0)]
    assert "corner: a problem is named · ×: without a number" in top.get_title()
    assert [label.get_text() for label in top.get_yticklabels()] == ["first", "second"]
    assert bottom.get_legend_handles_labels()[1] == ["first", "second"]
    assert slt.Sweep(tuple(rows)).plot()[0].get_title() == top.get_title()
    with pytest.raises(ValueError, match="without parts"):
        plot_parts(slt.Sweep((replace(rows[0], part=""),)))


def test_a_part_without_a_number_is_marked_as_one_that_failed(estimate):
    nothing = other(estimate, llc=np.nan, mcse=np.nan, interval=(np.nan, np.nan), named=True)
    rows = [slt.SweepRow(10, "a", nothing, part="first"), slt.SweepRow(10, "a", None, "broken", part="second")]
    top, _ = plot_parts(slt.Sweep(tuple(rows)))
    assert [tuple(line.get_xydata()[0]) for line in top.lines if line.get_marker() == "x"] == [(0, 0), (0, 1)]
    top, _ = plot_parts(slt.Sweep((replace(rows[1]),)))
    assert top.get_title() == "×: without a number"


def test_checkpoints_without_a_number_are_marked_whether_they_failed_or_diverged(estimate):
    nothing = other(estimate, llc=np.nan, mcse=np.nan, interval=(np.nan, np.nan), named=True)
    found = [estimate, nothing, None, other(estimate, named=True)]
    rows = [slt.SweepRow(step, str(step), each) for step, each in zip((10, 20, 30, 40), found, strict=True)]
    top, bottom = plot_sweep(slt.Sweep(tuple(rows)))
    marked = next(line for line in top.lines if line.get_marker() == "x")
    assert list(marked.get_xdata()) == [20, 30]
    assert set(texts(top)) == {
        "without a number", "λ̂, 95 % interval: healthy", "λ̂, 95 % interval: a problem is named",
    }  # fmt: skip
    assert len(bottom.lines[0].get_xdata()) == 3
    for lost in (rows[1:3], rows[2:3]):
        assert texts(plot_sweep(slt.Sweep(tuple(lost)))[0]) == ["without a number"]


@pytest.mark.parametrize("size", [(9, 3), (7, 6)])
def test_the_legend_of_a_sweep_lies_over_no_interval(estimate, size):
    values = 2 + 3 * torch.rand(20, generator=torch.Generator().manual_seed(0)).numpy()
    rows = [
        slt.SweepRow(step, str(step), other(estimate, llc=value, interval=(0.2, 1.8 * value), named=step % 3 == 0))
        for step, value in enumerate(values)
    ]
    axes = plt.subplots(*((1, 2) if size[0] > 7 else (2, 1)), figsize=size)[1]
    top, _ = plot_sweep(slt.Sweep(tuple(rows)), axes)
    top.get_figure().draw_without_rendering()
    box = top.get_legend().get_window_extent()
    highest = top.transData.transform((0, 1.8 * values.max()))[1]
    frame = top.get_window_extent()
    assert highest < box.y0
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1


def test_two_sweeps_on_the_same_axes_are_told_apart_and_both_are_in_the_frame(estimate):
    def of_level(level):
        rows = [
            slt.SweepRow(step, "", other(estimate, llc=level, interval=(level - 1, level + 1))) for step in (1, 2, 3)
        ]
        return slt.Sweep(tuple(rows))

    top, bottom = of_level(5.0).plot(label="seed 1")
    first = top.get_ylim()
    assert of_level(50.0).plot((top, bottom), label="seed 2") == [top, bottom]
    of_level(20.0).plot((top, bottom), label="seed 3")
    colors = [container.lines[0].get_color() for container in top.containers]
    assert len({*colors}) == 3
    assert [line.get_color() for line in bottom.lines] == colors
    assert texts(top) == ["seed 1: healthy", "seed 2: healthy", "seed 3: healthy"]
    low, high = top.get_ylim()
    assert first[1] < 51 < high
    assert low < 4
    assert top.get_title().count("nβ") == 1  # one law, said once


@pytest.mark.parametrize("count", [3, 8, 20])
@pytest.mark.parametrize("name", ["{}", "transformer.h.{}.attn.c_attn.weight"])
def test_the_key_of_many_parts_is_whole_and_covers_nothing(estimate, count, name):
    rows = [
        slt.SweepRow(step, str(step), estimate, part=name.format(place)) for step in (1, 2) for place in range(count)
    ]
    top, bottom = plot_parts(slt.Sweep(tuple(rows)))
    figure = top.get_figure()
    figure.draw_without_rendering()
    whole, cells = figure.bbox, top.get_window_extent()
    keys = [line for line in top.lines if not line.get_clip_on()]
    assert len(keys) == count
    assert bottom.get_legend() is None
    assert bottom.get_window_extent().width >= 4 * figure.dpi  # inches
    drawn = [each.lines[0] for each in bottom.containers]
    labels = top.get_yticklabels()
    for key, line, label in zip(keys, drawn, labels, strict=True):
        for said in ("get_color", "get_marker", "get_linestyle"):
            assert getattr(key, said)() == getattr(line, said)()
        assert label.get_text() == line.axes.containers[drawn.index(line)].get_label()
        left, marked = label.get_window_extent(), key.get_window_extent()
        assert whole.x0 <= left.x0 < left.x1 < marked.x0 < marked.x1 <= cells.x0
        assert left.y0 < (marked.y0 + marked.y1) / 2 < left.y1
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_the_names_of_many_parts_on_low_axes_do_not_overlap(estimate):
    rows = [slt.SweepRow(step, str(step), estimate, part=str(place)) for step in (1, 2) for place in range(40)]
    top, _ = plot_parts(slt.Sweep(tuple(rows)), plt.subplots(2, figsize=(7, 5))[1])
    top.get_figure().draw_without_rendering()
    boxes = [label.get_window_extent() for label in top.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_the_shades_are_told_apart_in_grey():
    luminance = SHADES(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()
    assert luminance[0] - luminance[-1] > 0.7


def test_no_label_is_cut_off_at_the_edge_of_a_picture(estimate, tmp_path):
    """Axes as in docs/reports.md, too low for what is written below them."""
    axes = plt.subplots(1, 2, figsize=(9, 3))[1]
    plot_estimate(estimate, axes)
    save_figure(axes, tmp_path / "llc.png")
    picture = plt.imread(tmp_path / "llc.png")[..., :3]
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert float(edge.min()) == 1.0  # white
