"""The posterior as a potential: the engines agree, and the module comes back as it was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import samplers
from slt import LocalPosterior
from slt.isolation import preserved_random_state
from tests.slt.models import ALL, mean_squared, perceptron


def posterior(model, data, loss_fn, engine="auto", **changes):
    arguments = {"n_beta": 10.0, "localization": 2.0, "num_chains": 3, **changes}
    return LocalPosterior(model, data, loss_fn, engine=engine, **arguments)


@pytest.mark.parametrize("kind", ALL)
class TestEnginesAgree:
    def test_loss_and_gradient_of_the_full_data_and_of_a_minibatch(self, kind):
        model, data, loss_fn = ALL[kind]()
        results = {}
        for engine in ("batched", "in_place"):
            with posterior(model, data, loss_fn, engine) as potential:
                noise = torch.randn(3, potential.dim, generator=torch.Generator().manual_seed(4)).double()
                positions = potential.anchor + 0.1 * noise
                stream = potential.minibatches(8)(torch.Generator().manual_seed(5), 3)
                batch = next(stream)
                if engine == "batched":
                    full, part = potential.loss_and_grad(positions), potential.loss_and_grad(positions, batch)
                else:
                    from slt.data import map_tensors
                    from slt.minibatches import Minibatch

                    def of(chain, potential=potential, positions=positions, batch=batch):
                        own = Minibatch(map_tensors(lambda t: t[chain : chain + 1], batch.data))
                        row = positions[chain : chain + 1]
                        return (
                            [t.clone() for t in potential.loss_and_grad(row)],
                            [t.clone() for t in potential.loss_and_grad(row, own)],
                        )

                    rows = [of(chain) for chain in range(3)]
                    full = [torch.cat(parts) for parts in zip(*(row[0] for row in rows), strict=True)]
                    part = [torch.cat(parts) for parts in zip(*(row[1] for row in rows), strict=True)]
                results[engine] = (*full, *part)
        for one, other in zip(results["batched"], results["in_place"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("kernel", [samplers.sgld(1e-3), samplers.mala(1e-3)], ids=["sgld", "mala"])
    def test_the_same_seed_gives_the_same_draws(self, kind, kernel):
        model, data, loss_fn = ALL[kind]()
        traces = []
        for engine in ("batched", "in_place"):
            with posterior(model, data, loss_fn, engine) as potential:
                batches = None if kernel.exact else potential.minibatches(8)
                traces.append(
                    samplers.sample(
                        kernel, potential, potential.anchor, batches=batches, num_chains=1, num_warmup=3, num_draws=12,
                        keep_positions=True,
                    )
                )  # fmt: skip
        torch.testing.assert_close(traces[0].positions, traces[1].positions, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(traces[0].loss, traces[1].loss, rtol=1e-10)
        assert traces[0].positions.std() > 0

    def test_auto_takes_the_batched_engine(self, kind):
        assert posterior(*ALL[kind]()).engine.name == "batched"

    def test_gradient_is_that_of_the_loss(self, kind):
        model, data, loss_fn = ALL[kind]()
        loss_fn(model, data).backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        with posterior(model, data, loss_fn, eval_mode=False, engine="in_place") as potential:
            _, gradient = potential.loss_and_grad(potential.anchor[None].clone())
            for name, value in potential.sampled.unflatten(gradient[0]).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)

    def test_full_data_in_chunks_is_the_full_data(self, kind, monkeypatch):
        model, data, loss_fn = ALL[kind]()
        with posterior(model, data, loss_fn) as potential:
            positions = potential.anchor + 0.05 * torch.randn(2, potential.dim).double()
            whole = potential.loss_and_grad(positions)
            monkeypatch.setattr(potential.engine, "max_samples", lambda chains: 7)
            for one, other in zip(potential.loss_and_grad(positions), whole, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Snapshot:
    """Everything about a module and the process that a run must leave as it is."""

    def __init__(self, model):
        self.parameters = [(p, p.data_ptr(), p.detach().clone(), None if p.grad is None else p.grad.clone(), p.grad)
                           for p in model.parameters()]  # fmt: skip
        self.buffers = [(b, b.clone()) for b in model.buffers()]
        self.modes = [module.training for module in model.modules()]
        self.model = model
        self.random = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002

    def assert_unchanged(self):
        now = list(self.model.parameters())
        for (parameter, pointer, value, gradient, held), current in zip(self.parameters, now, strict=True):
            assert current is parameter
            assert current.data_ptr() == pointer
            assert torch.equal(current, value)
            assert current.grad is held
            assert gradient is None or torch.equal(current.grad, gradient)
        assert all(torch.equal(buffer, value) for buffer, value in self.buffers)
        assert [module.training for module in self.model.modules()] == self.modes
        python, array, cpu = self.random
        assert random.getstate() == python
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), array, strict=True))  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), cpu)


@pytest.mark.parametrize("engine", ["batched", "in_place"])
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_the_module_and_the_generators_come_back_as_they_were(kind, engine, failing):
    model, data, loss_fn = ALL[kind]()
    model.train()
    model[0].eval() if isinstance(model, nn.Sequential) else None
    loss_fn(model, data).backward()
    snapshot = Snapshot(model)

    def run():
        with posterior(model, data, loss_fn, engine) as potential:
            samplers.sample(
                samplers.sgld(1e-3), potential, potential.anchor, batches=potential.minibatches(8), num_chains=2,
                num_warmup=2, num_draws=3,
            )  # fmt: skip
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002  (a loss may draw from them)
            if failing:
                raise KeyboardInterrupt

    if failing:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    snapshot.assert_unchanged()


def test_batchnorm_statistics_come_back_even_in_train_mode():
    model, data, loss_fn = ALL["convolution"]()
    model.train()
    snapshot = Snapshot(model)
    with posterior(model, data, loss_fn, eval_mode=False) as potential:
        assert potential.engine.name == "in_place"
        assert potential.stochastic == ["1 (BatchNorm2d)"]
        potential.loss_and_grad(potential.anchor[None].clone())
    snapshot.assert_unchanged()


class DataDependent(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def test_a_model_that_vmap_refuses_goes_in_place_with_the_reason():
    data = (torch.randn(5, 2), torch.randn(5, 2))
    potential = posterior(DataDependent(2, 2), data, mean_squared)
    assert potential.engine.name == "in_place"
    assert "vmap refused" in potential.engine_reason
    with pytest.raises(ValueError, match="engine: 'batched'.*vmap refused"):
        posterior(DataDependent(2, 2), data, mean_squared, engine="batched")


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of fused attention on a CPU
def test_layers_whose_kernel_for_inference_has_no_gradient_are_vectorised():
    """In eval mode an encoder layer takes it where it sees no gradient, as inside vmap; training finds it as it was."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x = torch.randn(12, 3, 8, dtype=torch.float64)
    found = []
    for engine in ("batched", "in_place"):
        with posterior(model, x, lambda model, x: model(x).square().mean(), engine=engine) as potential:
            found.append(potential.loss_and_grad(potential.anchor.expand(1, -1).contiguous()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), lambda model, x, y: model(x).square().mean()])
def test_a_loss_of_outputs_and_targets_is_refused_with_what_is_expected(loss_fn):
    with pytest.raises(TypeError, match=r"loss_fn: .*expected loss_fn\(model, batch\), which calls the model itself"):
        posterior(nn.Linear(2, 2), (torch.randn(5, 2), torch.randn(5, 2)), loss_fn)


def test_what_does_not_fit_side_by_side_goes_in_place(monkeypatch):
    monkeypatch.setattr("slt.engines.choice.VECTOR_LIMIT", 100)
    potential = posterior(*perceptron())
    assert potential.engine.name == "in_place"
    assert "do not fit" in potential.engine_reason


class Restless(nn.Linear):
    """Reassigns a buffer, counts in a plain attribute, keeps its output, and registers a buffer late."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.calls = 0

    def forward(self, x):
        y = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0).detach()
        self.calls += 1
        self.last = y
        self.register_buffer("late", torch.zeros(1))
        return y


def test_attributes_and_buffers_that_a_forward_pass_replaces_come_back():
    model = Restless()
    buffer = model.mean
    estimate_posterior = posterior(model, (torch.randn(9, 3), torch.randn(9, 2)), mean_squared)
    assert estimate_posterior.engine.name == "in_place"
    assert "keeps tensors in" in estimate_posterior.engine_reason
    with estimate_posterior as potential:
        potential.loss_and_grad(potential.anchor[None].clone())
    assert model.mean is buffer
    assert not buffer.any()
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert list(model.state_dict()) == ["weight", "bias", "mean"]
    copy.deepcopy(model)


def test_a_weight_read_from_elsewhere_is_refused():
    class Elsewhere(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.kept = [self.weight]

        def forward(self, x):
            return x @ self.kept[0].T + self.bias

    with pytest.raises(ValueError, match="weight from another reference"):
        posterior(Elsewhere(), (torch.randn(9, 3), torch.randn(9, 2)), mean_squared)


def test_a_recurrent_network_is_sampled_through_its_own_weights():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    model, x = Recurrent().double(), torch.randn(6, 4, 2).double()
    data = (x, torch.randn(6, 3).double())
    with posterior(model, data, mean_squared, engine="in_place") as potential:
        position = torch.zeros(1, potential.dim).double()
        loss, _ = potential.loss_and_grad(position)
        assert float(loss) == pytest.approx(float(data[1].square().mean()), rel=1e-12)


def test_loss_at_the_anchor_is_weighted_by_samples():
    model, (x, y), _ = perceptron()
    uneven = [(x[:40], y[:40]), (x[40:43], y[40:43]), (x[43:], y[43:])]
    expected = float(mean_squared(model, (x, y)).detach())
    for data in (uneven, (x, y)):
        assert posterior(model, data, mean_squared).loss_at_anchor() == pytest.approx(expected, rel=1e-12)


def test_a_weight_restricted_posterior_moves_nothing_else():
    model, data, loss_fn = perceptron()
    with posterior(model, data, loss_fn, parameters="2.*", engine="in_place") as potential:
        assert potential.dim == 16
        potential.loss_and_grad(potential.anchor[None] + 1.0)
        assert model[0].weight.grad is None


def test_inside_no_grad_and_inference_mode():
    model, data, loss_fn = perceptron()
    for mode in (torch.no_grad, torch.inference_mode):
        for engine in ("batched", "in_place"):
            with mode(), posterior(model, data, loss_fn, engine) as potential:
                _, gradient = potential.loss_and_grad(potential.anchor[None].clone())
                assert gradient.abs().sum() > 0


def test_preserved_random_state_seeds_inside():
    draws = []
    for _ in range(2):
        with preserved_random_state(3):
            draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("loss_fn", "error", "match"),
    [
        (lambda model, batch: (model(batch[0]) - batch[1]).square(), ValueError, r"shape \(7, 2\)"),
        (lambda model, batch: (model(batch[0]) - batch[1]).square().flatten(), ValueError, r"shape \(14,\)"),
        (lambda model, batch: model(batch[0]).sum().item(), TypeError, "float"),
        (lambda model, batch: model(batch[0]).mean() * torch.nan, ValueError, "not finite"),
        (lambda model, batch: (model(batch[0]) - batch[1]).square().sum(), ValueError, "samples that are given twice"),
        (lambda model, batch: model(batch[0]).mean().detach(), ValueError, "no gradient"),
        (lambda model, batch: batch[1].clone().requires_grad_().mean(), ValueError, "does not depend"),
        (lambda model, batch: batch[0].argmax(), ValueError, "dtype|gradient"),
    ],
)
def test_a_loss_that_breaks_its_contract_is_refused(loss_fn, error, match):
    model, data, _ = perceptron()
    snapshot = Snapshot(model)
    with pytest.raises(error, match=match):
        posterior(model, data, loss_fn)
    snapshot.assert_unchanged()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_beta": 0.0}, "n_beta: 0.0"),
        ({"n_beta": float("nan")}, "n_beta: nan"),
        ({"localization": -1.0}, "localization: -1.0"),
        ({"localization": float("inf")}, "localization: inf"),
        ({"engine": "fast"}, "engine: 'fast'"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        posterior(*perceptron(), **changes)


def test_full_data_after_minibatches():
    """A vectorised call leaves its own tensors in the module, in which the bytes of a sample cannot be counted."""
    model = torch.nn.Linear(2, 1)
    data = torch.randn(40, 2), torch.randn(40, 1)

    def squared(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().mean()

    with LocalPosterior(model, data, squared, n_beta=40.0, localization=1.0) as posterior:
        batch = next(posterior.minibatches(16)(torch.Generator().manual_seed(0), 2))
        posterior.loss_and_grad(posterior.anchor.expand(2, -1), batch)
        loss, _ = posterior.loss_and_grad(posterior.anchor.unsqueeze(0))
        assert float(loss) == pytest.approx(posterior.loss_at_anchor(), rel=1e-5)
