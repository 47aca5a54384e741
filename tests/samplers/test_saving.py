"""Runs that are saved and go on elsewhere: what an adaptation found, batches, blocks, divergence, refusals."""

import io
import itertools

import numpy as np
import pytest
import torch

import samplers
from samplers.adaptation import Adapted
from tests.samplers.laws import Quadratic


def new_run(kernel=None, target=None, **changes):
    target = target or Quadratic((1.0, 2.0))
    settings = {"num_chains": 4, "num_warmup": 5, "keep_positions": True, **changes}
    return samplers.Run(kernel or samplers.sgld(0.05), target, target.anchor, **settings)


def through_a_file(stored):
    file = io.BytesIO()
    torch.save(stored, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def continued(run, fresh, num_draws=50):
    """The traces of a run and of the one that took over from it, after as many draws."""
    fresh.load_state_dict(through_a_file(run.state_dict()))
    for one in (run, fresh):
        one.draw(num_draws)
    return run.trace(), fresh.trace()


def assert_equal(one, other):
    np.testing.assert_array_equal(one.loss, other.loss)
    assert torch.equal(*(trace.positions.nan_to_num(1e300) for trace in (one, other)))  # of a chain that diverged too
    assert one.diverged == other.diverged
    assert one.num_gradients == other.num_gradients
    assert one.configuration == other.configuration


def test_what_an_adaptation_found_is_taken_over():
    def adaptation(kernel, potential, position, batches, generator):
        scale = torch.rand(2, dtype=torch.float64, generator=generator) + 0.5
        return Adapted(kernel.tune(step_size=0.0321, preconditioner=samplers.Diagonal(scale)), 7)

    run = new_run(samplers.mala(1.0))
    run.adapt(adaptation)
    run.draw(10)
    fresh = new_run(samplers.mala(1.0))
    one, other = continued(run, fresh)
    assert_equal(one, other)
    assert fresh.kernel.settings["step_size"] == 0.0321
    assert torch.equal(fresh.kernel.settings["preconditioner"].root, run.kernel.settings["preconditioner"].root)
    assert not np.array_equal(one.loss, _drawn(new_run(samplers.mala(1.0))).loss)


def _drawn(run, num_draws=60):
    run.draw(num_draws)
    return run.trace()


def test_tensors_of_settings_are_taken_over():
    steps = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)
    run = new_run(samplers.hmc((0.1 * steps, steps), 2))
    run.draw(10)
    assert_equal(*continued(run, new_run(samplers.hmc((0.1 * steps, steps), 2))))


def test_the_random_streams_of_a_vector_in_chunks_go_on(monkeypatch):
    monkeypatch.setattr("samplers.noise.CHUNK_COLUMNS", 2)
    target = Quadratic((1.0, 2.0, 3.0, 4.0, 5.0))
    run = new_run(target=target)
    run.draw(10)
    assert len(run.blocks[0].state.streams.generators) == 3
    assert_equal(*continued(run, new_run(target=target)))


def test_blocks_that_have_not_begun_begin_later():
    target = Quadratic((1.0, 2.0))
    target.max_chains = 2
    run = new_run(target=target, num_chains=5)
    assert_equal(*continued(run, new_run(target=target, num_chains=5)))


class Exploding(Quadratic):
    """Chain 1 meets a loss that is not a number once it is beyond 1."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        loss[1] = torch.where(position[1, 0] > 1, torch.nan, loss[1])
        return loss, gradient


def test_a_chain_that_diverged_stays_reported():
    run = new_run(target=Exploding((0.1, 2.0)))
    run.draw(200)
    assert run.trace().diverged
    assert_equal(*continued(run, new_run(target=Exploding((0.1, 2.0)))))


class Counter:
    """Batches 0, 1, 2, …, with a place."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return self.place - 1

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, stored):
        self.place = stored["place"]


def test_batches_go_on_from_their_place():
    class Recording(Quadratic):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position)
            return loss + batch, gradient

    run = new_run(target=Recording((1.0, 2.0)), batches=lambda *_: Counter())
    run.draw(10)
    one, other = continued(run, new_run(target=Recording((1.0, 2.0)), batches=lambda *_: Counter()))
    assert_equal(one, other)
    assert one.loss[0, -1] >= 64


def test_batches_without_a_place_are_refused():
    run = new_run(batches=lambda *_: itertools.count())
    run.draw(3)
    with pytest.raises(TypeError, match="batches: an iterator of type count without state_dict"):
        run.state_dict()


def moved(target, anchor):
    """The same loss, localised elsewhere."""
    target.localizer = samplers.GaussianLocalizer(anchor.double(), 1.0)
    return target


def weighed(metric):
    """A quadratic with a localiser in a metric."""
    target = Quadratic((1.0, 2.0))
    target.localizer = samplers.GaussianLocalizer(target.anchor, 1.0, torch.tensor(metric, dtype=torch.float64))
    return target


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_chains": 3}, "num_chains 4, this one has 3"),
        ({"num_warmup": 6}, "num_warmup 5"),
        ({"seed": 1}, "seed 0"),
        ({"thinning": 2}, "thinning 1"),
        ({"target": Quadratic((1.0, 2.0), n_beta=2.0)}, "n_beta 1.0, this one has 2.0"),
        ({"target": Quadratic((1.0, 2.0), localization=3.0)}, "energy of the localiser"),
        ({"target": moved(Quadratic((1.0, 2.0)), torch.full((2,), 2.0))}, "energy of the localiser"),
        ({"target": weighed((99.0, 1.0)), "of": weighed((1.0, 99.0))}, "energy of the localiser"),
        ({"kernel": samplers.baoab(0.05)}, "kernel"),
        ({"kernel": samplers.sgld(0.9)}, "step_size"),
        ({"kernel": samplers.sgld(0.05, samplers.Diagonal(torch.tensor([1.0, 2.0], dtype=torch.float64)))}, "precond"),
        ({"keep_positions": False}, "keep_positions"),
        ({"batches": lambda *_: Counter()}, "batches False, this one has True"),
        ({"target": Quadratic((1.0, 2.0, 3.0), localization=2 / 3)}, "initial"),
    ],
)
def test_a_run_with_other_arguments_is_refused(changes, named):
    changes = dict(changes)
    stored = new_run(**({"target": changes.pop("of")} if "of" in changes else {})).state_dict()
    fresh = new_run(**changes)
    with pytest.raises(ValueError, match=f"stored: of a run .*{named}"):
        fresh.load_state_dict(stored)


def test_a_run_that_has_drawn_is_refused():
    run = new_run()
    run.draw(2)
    with pytest.raises(ValueError, match="has drawn 2 times"):
        run.load_state_dict(new_run().state_dict())


def test_a_state_that_cannot_be_saved_is_named():
    run = new_run()
    run.draw(1)
    run.blocks[0].state.position = object()
    with pytest.raises(TypeError, match="state: holds a object, which cannot be saved"):
        run.state_dict()


def test_where_chains_ended_is_known_of_released_states_too():
    run, released = new_run(), new_run()
    assert run.ends is None
    run.draw(3)
    released.draw(3, release=True)
    assert torch.equal(released.ends, run.ends)
    assert torch.equal(run.ends, run.blocks[0].state.position)
    run.draw(1)
    assert not torch.equal(released.ends, run.ends)


def test_states_that_were_released_are_missed():
    run = new_run()
    run.draw(3, release=True)
    for go_on in (lambda: run.draw(3), run.state_dict):
        with pytest.raises(ValueError, match="release: set in an earlier call"):
            go_on()
