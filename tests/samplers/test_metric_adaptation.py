"""The metric of a pilot's gradients: its formula, what it leaves as it was, what it gains; adaptations in turn."""

import itertools
import re

import pytest
import torch

import samplers
from samplers.adaptation import Adapted
from samplers.metric_adaptation import gradient_metric, in_turn
from samplers.rmsprop_sgld import rmsprop_sgld
from tests.samplers.assertions import assert_quadratic
from tests.samplers.laws import Quadratic

SLOPE = torch.tensor([3.0, 0.4, 0.0, -1.0], dtype=torch.float64)


def linear():
    """A loss with the same gradient everywhere."""
    return samplers.from_log_density(lambda w: -(w * SLOPE).sum(-1), dim=4)


def run_of(adaptation, kernel, target, num_chains=16, batches=None):
    position = torch.zeros(num_chains, target.dim, dtype=torch.float64)
    return adaptation(kernel, target, position, batches, torch.Generator().manual_seed(0))


def test_the_metric_is_the_formula_of_the_docstring():
    adapted = run_of(gradient_metric(40, stabilization=0.2), samplers.sgld(0.1), linear())
    scale = adapted.kernel.settings["preconditioner"].root.square()
    expected = 1 / (SLOPE.abs() + 0.2 * SLOPE.square().mean().sqrt())
    torch.testing.assert_close(scale / scale[0], expected / expected[0])
    torch.testing.assert_close((scale * SLOPE.square()).sum(), SLOPE.square().sum())
    assert adapted.kernel.settings["step_size"] == 0.1
    assert adapted.num_gradients == 40 + 10


def test_the_running_mean_is_bias_corrected_and_forgets():
    """Gradients 1, 2, 3 … of one coordinate beside a constant one: the weights are those of (1 − b) bᵏ / (1 − bᵗ)."""

    class Rising(Quadratic):
        def loss_and_grad(self, position, batch=None):
            gradient = torch.ones_like(position)
            gradient[:, 0] = 0.0 if batch is None else float(batch)
            return position.sum(-1), gradient

    adapted = run_of(gradient_metric(12, decay=0.5), samplers.sgld(0.1), Rising((1.0, 1.0)), batches=itertools.count(1))
    scale = adapted.kernel.settings["preconditioner"].root.square()
    seen = torch.tensor([5.0, 10.0, 15.0], dtype=torch.float64)  # after every fourth step, a batch of its own
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) / 7
    square = torch.stack([(weights * seen.square()).sum(), torch.ones((), dtype=torch.float64)])
    expected = 1 / (square.sqrt() + 0.1 * square.mean().sqrt())
    torch.testing.assert_close(scale[1] / scale[0], expected[1] / expected[0])


@pytest.mark.parametrize("noise", [0.0, 4.0], ids=["full gradient", "noisy gradient"])
def test_a_step_size_keeps_its_bias_and_soft_directions_move_faster(noise):
    target = Quadratic((0.1, 1.0, 100.0), noise=noise)

    def run(adapt):
        return samplers.sample(
            samplers.sgld(0.005), target, target.anchor, num_chains=64, num_warmup=2000, num_draws=2000, adapt=adapt,
            keep_positions=True,
        )  # fmt: skip

    plain, adapted = run(None), run(gradient_metric())
    bias, plain_bias = (float(trace.statistics["discretization_bias"].mean()) for trace in (adapted, plain))
    assert bias == pytest.approx(plain_bias, rel=0.15)
    square = target.h.square() / target.stiffness + noise  # of the gradient, as ε → 0
    metric = 1 / (square.sqrt() + 0.1 * square.mean().sqrt())
    gain = float(metric[0] * square.sum() / (metric * square).sum())  # 15 without gradient noise, 3.3 with it
    ess, plain_ess = (samplers.diagnose(trace.positions[..., 0].numpy()).ess for trace in (adapted, plain))
    assert ess > 0.5 * gain * plain_ess


def test_an_exact_kernel_keeps_its_law_in_the_metric_and_meets_its_acceptance_rate():
    target = Quadratic((0.1, 1.0, 100.0), n_beta=3.0)
    adapt = in_turn(samplers.accept_at_rate(), gradient_metric(200), samplers.accept_at_rate())
    trace = samplers.sample(
        samplers.mala(1.0, small_step_share=0.0), target, target.anchor, num_chains=64, num_warmup=300, num_draws=1500,
        adapt=adapt, keep_positions=True,
    )  # fmt: skip
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.574, abs=0.1)
    assert re.fullmatch(r"Diagonal\(3 entries\), [0-9a-f]{16}", trace.configuration["preconditioner"])
    assert trace.num_gradients == 64 * (2 * 403 + 200 + 50 + 1 + 1 + 1800)
    assert_quadratic(target, trace)


def test_leapfrog_paths_are_counted():
    adapted = run_of(gradient_metric(20), samplers.hmc(0.3, num_steps=5), Quadratic((1.0, 4.0)))
    assert adapted.num_gradients == 20 * 5 + 5 + 1


def test_in_turn_hands_on_kernels_and_adds_up_gradients():
    seen = []

    def found(step_size, num_gradients):
        def adapt(kernel, potential, position, batches, generator):
            seen.append((kernel.settings["step_size"], float(position.sum())))
            position.add_(1.0)  # as a pilot that owns its position may
            return Adapted(kernel.tune(step_size=step_size), num_gradients)

        return adapt

    adapted = run_of(in_turn(found(0.2, 5), found(0.3, 7)), samplers.sgld(0.1), linear())
    assert seen == [(0.1, 0.0), (0.2, 0.0)]
    assert adapted.kernel.settings["step_size"] == 0.3
    assert adapted.num_gradients == 12


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: gradient_metric(3), "num_steps, decay, stabilization: 3, 0.99, 0.1; expected at least 4 steps"),
        (lambda: gradient_metric(decay=1.0), "num_steps, decay, stabilization: 500, 1.0, 0.1; .* between 0 and 1"),
        (lambda: gradient_metric(stabilization=0.0), "num_steps, decay, stabilization: 500, 0.99, 0.0; .* positive"),
        (lambda: in_turn(), "adaptations: none; expected at least one"),
    ],
)
def test_bad_settings_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_kernel_without_a_preconditioner_is_refused():
    with pytest.raises(ValueError, match="kernel: rmsprop_sgld has no setting preconditioner"):
        run_of(gradient_metric(), rmsprop_sgld(0.1), linear())


@pytest.mark.parametrize(
    ("kernel", "curvature", "message"),
    [
        (samplers.sgld(1e3), 1e6, "left the finite numbers"),
        (samplers.mala(1e6, small_step_share=0.0), 1e6, "accepted 0.0%"),
        (samplers.sgld(0.1), 0.0, "was zero throughout"),
    ],
)
def test_a_pilot_that_tells_nothing_is_an_error(kernel, curvature, message):
    with pytest.raises(FloatingPointError, match=f"preconditioner: .*{message}"):
        run_of(gradient_metric(), kernel, Quadratic((curvature, curvature), localization=0.0))
