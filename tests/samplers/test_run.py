"""The run loop: reproducibility, blocks, divergence, interrupts, thinning, progress."""

import io
import itertools
import sys

import numpy as np
import pytest
import torch

import samplers
from tests.samplers.laws import Quadratic

KERNELS = [samplers.sgld(0.05), samplers.mala(0.05)]
KERNEL_NAMES = [kernel.name for kernel in KERNELS]


def run(kernel, target, **changes):
    arguments = {"num_chains": 4, "num_warmup": 5, "num_draws": 40, "keep_positions": True, **changes}
    initial = arguments.pop("initial", torch.zeros(target.dim, dtype=torch.float64))
    return samplers.sample(kernel, target, initial, **arguments)


@pytest.mark.parametrize("kernel", KERNELS, ids=KERNEL_NAMES)
class TestEveryKernel:
    def test_blocks_are_what_a_run_of_each_alone_would_be(self, kernel):
        target = Quadratic((1.0, 2.0))
        target.max_chains = 2
        trace = run(kernel, target, num_chains=5)
        assert trace.loss.shape == (5, 40)
        assert trace.configuration["block_size"] == 2
        alone = run(kernel, target, num_chains=2)
        np.testing.assert_array_equal(trace.loss[:2], alone.loss)
        assert len(np.unique(trace.loss[:, -1])) == 5

    def test_continuing_a_run_gives_the_unbroken_one(self, kernel):
        target = Quadratic((1.0, 2.0))
        whole = run(kernel, target, num_draws=100, num_warmup=7, thinning=2)
        parts = samplers.Run(kernel, target, target.anchor, num_chains=4, num_warmup=7, thinning=2, keep_positions=True)
        for count in (1, 30, 69):
            parts.draw(count)
        np.testing.assert_array_equal(parts.trace().loss, whole.loss)
        assert torch.equal(parts.trace().positions, whole.positions)


class Explosive(Quadratic):
    """Chain 1 meets a loss that is not a number at its 70th gradient."""

    def __init__(self, when=70, chains=(1,)):
        super().__init__((1.0, 2.0))
        self.calls, self.when, self.chains = 0, when, list(chains)

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        self.calls += 1
        if self.calls > self.when:
            loss[self.chains] = torch.nan
        return loss, gradient


def test_a_diverged_chain_is_stopped_and_reported_by_chain_and_step():
    trace = run(samplers.sgld(0.05), Explosive(), num_draws=200)
    assert trace.diverged == (samplers.Divergence(chain=1, step=70),)
    assert np.isnan(trace.loss[1, 65:]).all()
    assert np.isfinite(trace.loss[1, :65]).all()
    assert np.isfinite(trace.loss[[0, 2, 3]]).all()
    assert trace.surviving.tolist() == [True, False, True, True]


def test_an_exploding_step_size_is_a_divergence():
    trace = run(samplers.sgld(10.0), Quadratic((1.0, 2.0)), num_draws=3000)
    assert len(trace.diverged) == 4


def test_a_block_of_diverged_chains_is_not_computed_to_its_end():
    target = Explosive(chains=(0, 1, 2, 3))
    trace = run(samplers.sgld(0.05), target, num_draws=5000)
    assert target.calls < 300
    assert trace.loss.shape == (4, 5000)
    assert np.isnan(trace.loss[:, 100:]).all()
    assert torch.isnan(trace.positions[:, 1000:]).all()


def test_positions_of_a_diverged_chain_are_not_a_number():
    trace = run(samplers.sgld(0.05), Explosive(), num_draws=200, thinning=2)
    assert torch.isnan(trace.positions[1, 33:]).all()
    assert torch.isfinite(trace.positions[1, :33]).all()
    assert np.isfinite(trace.loss[1, :33]).all()
    assert np.isnan(trace.loss[1, 33:]).all()
    early = run(samplers.sgld(1e10), Quadratic((1.0, 2.0)), num_warmup=300, num_draws=20)
    assert torch.isnan(early.positions).all()


class Interrupting(Quadratic):
    def __init__(self, when, max_chains=None):
        super().__init__((1.0, 2.0))
        self.calls, self.when, self.max_chains = 0, when, max_chains

    def loss_and_grad(self, position, batch=None):
        self.calls += 1
        if self.calls == self.when:
            raise KeyboardInterrupt
        return super().loss_and_grad(position)


def test_an_interrupt_keeps_what_was_drawn():
    whole = run(samplers.sgld(0.05), Quadratic((1.0, 2.0)), num_draws=200)
    trace = run(samplers.sgld(0.05), Interrupting(106), num_draws=200)
    assert trace.interrupted
    assert trace.loss.shape == (4, 100)
    assert trace.positions.shape == (4, 100, 2)
    np.testing.assert_array_equal(trace.loss, whole.loss[:, :100])


def test_positions_stay_with_their_losses_after_an_interrupt():
    target = Interrupting(20)
    run = samplers.Run(samplers.sgld(0.05), target, torch.zeros(2, dtype=torch.float64), num_chains=4, num_warmup=5,
                       keep_positions=True)  # fmt: skip
    run.draw(100)
    assert run.interrupted
    run.draw(100)
    assert not run.interrupted
    trace = run.trace()
    assert trace.positions.shape == (4, 200, 2)  # what the interrupt left out is made up for
    flat = Quadratic((1.0, 2.0)).loss_and_grad(trace.positions.flatten(0, 1))[0]
    np.testing.assert_allclose(flat.view(4, -1), trace.loss, rtol=1e-12)


def test_an_interrupt_between_blocks_keeps_whole_chains():
    trace = run(samplers.sgld(0.05), Interrupting(105 + 105 + 20, max_chains=1), num_draws=100)
    assert trace.loss.shape == (2, 100)
    assert np.isfinite(trace.loss).all()


def test_an_interrupt_before_the_first_draw_is_raised():
    with pytest.raises(KeyboardInterrupt):
        run(samplers.sgld(0.05), Interrupting(3))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    run(samplers.sgld(0.05), Quadratic((1.0, 2.0)))
    assert capsys.readouterr().err == ""
    run(samplers.sgld(0.05), Quadratic((1.0, 2.0)), progress=True)
    assert "sampling" in capsys.readouterr().err
    for progress, shown in ((None, True), (False, False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        run(samplers.sgld(0.05), Quadratic((1.0, 2.0)), progress=progress)
        assert ("sampling" in sys.stderr.getvalue()) == shown


def test_batches_come_from_the_blocks_own_generator():
    seen = []

    class Recording(Quadratic):
        max_chains = 2

        def loss_and_grad(self, position, batch=None):
            seen.append(batch)
            return super().loss_and_grad(position)

    def batches(generator, num_chains):
        return ((num_chains, float(torch.rand((), generator=generator))) for _ in itertools.count())

    run(samplers.sgld(0.05), Recording((1.0, 2.0)), batches=batches, num_chains=3)
    assert [count for count, _ in seen] == [2] * 45 + [1] * 45
    assert len({value for _, value in seen}) == 90


def test_step_sizes_per_chain_need_the_chains_side_by_side():
    target = Quadratic((1.0, 2.0))
    target.max_chains = 2
    with pytest.raises(ValueError, match="step_size: one value for each of 4 chains"):
        run(samplers.sgld(torch.full((4, 1), 0.1)), target)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_chains": 0}, "num_chains, num_warmup, thinning: 0, 5, 1; expected at least"),
        ({"num_warmup": -1}, "num_chains, num_warmup, thinning: 4, -1, 1; expected at least"),
        ({"thinning": 0}, "num_chains, num_warmup, thinning: 4, 5, 0; expected at least"),
        ({"num_draws": 0}, "num_draws: 0; expected at least 1"),
        ({"initial": torch.zeros(2, dtype=torch.int64)}, "initial: of dtype torch.int64; expected a floating-point"),
        ({"initial": torch.zeros(3, dtype=torch.float64)}, r"initial: shape \(3,\); expected \(2,\)"),
        ({"initial": torch.full((2,), torch.nan, dtype=torch.float64)}, "initial: 2 coordinates are not finite"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        run(samplers.sgld(0.05), Quadratic((1.0, 2.0)), **changes)


@pytest.mark.parametrize(
    ("n_beta", "problem"),
    [
        (torch.tensor([1.0, 100.0, 1.0]), r"n_beta: shape \(3,\)"),
        (torch.ones(2, 1), r"n_beta: shape \(2, 1\)"),
        (-0.5, "n_beta: .-0.5.; expected finite"),
        (torch.tensor([[1.0], [float("nan")], [1.0]]), "expected finite numbers of at least zero"),
    ],
)
def test_inverse_temperatures_that_would_broadcast_are_refused(n_beta, problem):
    target = Quadratic((1.0, 2.0, 3.0), n_beta=n_beta)
    with pytest.raises(ValueError, match=problem):
        run(samplers.sgld(0.05), target, num_chains=3)


def test_a_localizer_of_another_length_is_refused():
    target = Quadratic((1.0, 2.0, 3.0))
    target.localizer = samplers.GaussianLocalizer(torch.full((1,), 5.0, dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match=r"anchor: shape \(1,\) in the localiser; expected \(3,\)"):
        run(samplers.sgld(0.05), target)


def test_an_adaptation_comes_before_the_first_draw():
    begun = samplers.Run(samplers.mala(0.05), Quadratic((1.0, 2.0)), torch.zeros(2, dtype=torch.float64), num_chains=4,
                         num_warmup=5)  # fmt: skip
    begun.draw(3)
    with pytest.raises(ValueError, match="adaptation: given to a run that has begun"):
        begun.adapt(samplers.accept_at_rate())


def test_step_sizes_of_every_form_are_counted():
    wrong = torch.full((3, 1), 0.1)
    for kernel in (samplers.hmc((wrong, 2 * wrong), 2), samplers.hmc(wrong, 2)):
        with pytest.raises(ValueError, match="step_size: one value for each of 3 chains"):
            run(kernel, Quadratic((1.0, 2.0)))
    trace = run(samplers.sghmc(0.05, friction=torch.tensor(1.0)), Quadratic((1.0, 2.0)))
    assert trace.loss.shape == (4, 40)


class Offset(Quadratic):
    """A loss with a large constant, in float32."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position.double())
        return (loss + 2.3).float(), gradient.float()


def test_a_loss_that_its_precision_rounds_away_is_named():
    with pytest.warns(RuntimeWarning, match="initial: in torch.float32, nβ·loss is known to ±2"):
        run(samplers.hmc(1e-4, 4), Offset((1.0, 2.0), n_beta=1e7), initial=torch.zeros(2))
    run(samplers.hmc(1e-2, 4), Offset((1.0, 2.0), n_beta=1e4), initial=torch.zeros(2))  # and without a need, nothing


def test_settings_of_a_kernel_change_between_draws_and_are_written_down():
    target = Quadratic((1.0, 2.0))

    def make():
        return samplers.Run(samplers.sgld(0.1), target, target.anchor, num_chains=4, num_warmup=5, thinning=2, seed=1)

    whole, first, again = make(), make(), make()
    for each in (whole, first):
        each.draw(30)
        each.tune(step_size=0.02)
        each.draw(10)
    again.load_state_dict(first.state_dict())
    for each in (whole, again):
        each.tune(step_size=0.01)
        each.draw(20)
    trace = whole.trace()
    earlier = [{"draws": 30, "step_size": 0.1}, {"draws": 40, "step_size": 0.02}]
    assert trace.configuration["earlier_settings"] == again.trace().configuration["earlier_settings"] == earlier
    assert trace.configuration["step_size"] == 0.01
    np.testing.assert_array_equal(trace.loss, again.trace().loss)
    with pytest.raises(ValueError, match="step_size"):
        whole.tune(step_size=-1.0)
    with pytest.raises(ValueError, match=r"settings: \['friction'\] of sgld; expected some of"):
        whole.tune(friction=1.0)
    assert whole.earlier_settings == earlier
    bias = trace.statistics["discretization_bias"].mean(0)  # in proportion to the step, but for the gradient
    assert bias[30:40].mean() < 0.5 * bias[:30].mean()


def test_the_steps_since_are_those_of_the_trace():
    target = Quadratic((1.0, 2.0))
    target.max_chains = 2
    whole = samplers.Run(samplers.sgld(0.1), target, target.anchor, num_chains=5, num_warmup=20, thinning=3)
    for count in (1, 30, 70):
        whole.draw(count)
    every = np.concatenate([whole.trace().warmup["loss"], whole.recent_steps(20)["loss"]], axis=1)
    np.testing.assert_array_equal(every[:, 20::3], whole.trace().loss)
    for first in (0, 19, 64, 200, 323):
        np.testing.assert_array_equal(whole.recent_steps(first)["loss"], every[:, first:])
    assert whole.recent_steps(323)["loss"].shape == (5, 0)


def test_chains_that_have_all_diverged_take_no_more_gradients():
    lost = samplers.Run(
        samplers.sgld(0.1), Quadratic((1.0,)), torch.zeros(1, dtype=torch.float64), num_chains=4, num_warmup=0
    )
    lost.draw(10)
    lost.blocks[0].first_bad_step[:] = 5
    taken = lost.num_gradients
    lost.draw(100)
    assert lost.num_gradients == taken
    assert len(lost.trace().diverged) == 4
