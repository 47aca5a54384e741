"""SGLD in one pass over a long vector: the arithmetic of its step, the law of its noise, and graphs that draw anew."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from samplers.noise import CHUNK_COLUMNS
from samplers.one_pass import in_one_pass, langevin_update_
from samplers.run import Run

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DIM = CHUNK_COLUMNS + 12_345  # not a multiple of what one program does
STEP_SIZE = 0.1


class Isotropic:
    """A quadratic of curvature one in every direction, about the anchor, whose loss is of the order of one."""

    dim, max_chains = DIM, None

    def __init__(self, strength=0.5, metric=None):
        self.n_beta = 2.0
        generator = torch.Generator("cuda").manual_seed(3)
        self.anchor = torch.randn(DIM, generator=generator, device="cuda")
        self.localizer = samplers.GaussianLocalizer(self.anchor, strength, metric)

    def loss_and_grad(self, position, batch=None):
        offset = position - self.anchor
        return 0.5 * offset.square().sum(-1), offset

    def sum(self, x):
        return x.sum(-1)


def vector(seed, rows=None):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.rand((DIM,) if rows is None else (rows, DIM), generator=generator, device="cuda") + 0.5


METRICS = {
    "identity": samplers.Identity,
    "one diagonal": lambda: samplers.Diagonal(vector(1)),
    "a diagonal for each chain": lambda: samplers.Diagonal(vector(1, 2)),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_the_formula_with_independent_standard_normal_noise(name, weighted):
    metric, potential = METRICS[name](), Isotropic(metric=vector(2) if weighted else None)
    before = potential.anchor + vector(4, 2)
    assert in_one_pass(before, potential, metric, STEP_SIZE)
    generator = torch.Generator("cuda").manual_seed(5)
    noises = []
    for _ in range(2):
        position = before.clone()
        _, gradient = potential.loss_and_grad(position)
        energy, inner = langevin_update_(position, gradient, potential, metric, STEP_SIZE, generator)
        drift = gradient.double() * potential.n_beta
        expected_energy = potential.localizer.add_gradient_(drift, before.double())
        root = metric.root.double() if isinstance(metric, samplers.Diagonal) else torch.ones(DIM, device="cuda")
        drift *= root * root
        assert torch.allclose(energy.double(), expected_energy, rtol=1e-5)
        assert torch.allclose(inner.double(), (gradient.double() * drift).sum(-1), rtol=1e-5)
        noises.append((position.double() - before.double() + 0.5 * STEP_SIZE * drift) / (math.sqrt(STEP_SIZE) * root))
    one = torch.cat(noises)  # two steps of two chains
    size = DIM**0.5
    # each once in 15,000 by chance; sixteen correlations, means, variances and fourth moments a test
    assert (one.mean(-1).abs() < 4 / size).all()
    assert ((one.square().mean(-1) - 1).abs() < 4 * math.sqrt(2) / size).all()
    assert ((one.pow(4).mean(-1) - 3).abs() < 4 * math.sqrt(96) / size).all()
    together = one @ one.T / DIM
    assert ((together - torch.diag(together.diag())).abs() < 4 / size).all()
    for apart in (1, 255, 256, 512, 1024):  # columns that share a counter, and neighbours
        assert ((one[:, apart:] * one[:, :-apart]).mean(-1).abs() < 4.5 / size).all()


def test_chains_draw_the_law_of_sgld_from_one_graph():
    potential = Isotropic()
    run = Run(samplers.sgld(STEP_SIZE), potential, potential.anchor, num_chains=2, num_warmup=100, keep_positions=True)
    run.draw(2)
    trace = run.trace()
    assert trace.configuration["cuda_graph"] == "every step"
    curvature = potential.n_beta + 0.5
    expected = 1 / (curvature * (1 - STEP_SIZE * curvature / 4))
    assert trace.positions is not None
    for chain in trace.positions:
        offset = chain[-1].cuda().double() - potential.anchor.double()
        # 4.5 standard errors; from the anchor the variance lacks 10⁻¹³ after a hundred steps
        assert abs(float(offset.square().mean()) / expected - 1) < 4.5 * math.sqrt(2 / DIM)


def test_a_saved_run_goes_on_as_it_would_have():
    potential = Isotropic()

    def make():
        return Run(samplers.sgld(STEP_SIZE), potential, potential.anchor, num_chains=1, num_warmup=2)

    whole, first, second = make(), make(), make()
    whole.draw(40)
    first.draw(10)
    second.load_state_dict(first.state_dict())
    second.draw(30)
    assert np.array_equal(whole.trace().loss, second.trace().loss)


def language_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(2_000, 700), nn.Linear(700, 700), nn.Tanh(), nn.Linear(700, 2_000)).cuda()
    tokens = torch.randint(2_000, (64, 16), device="cuda")
    return model, (tokens,)


def next_token_loss(model, batch):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model(batch[0])
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


def test_a_model_of_many_weights_is_stepped_in_place_from_one_graph(monkeypatch):
    model, data = language_model()
    posterior = slt.LocalPosterior(
        model, data, next_token_loss, n_beta=100.0, localization=10.0, num_chains=1, engine="in_place"
    )
    assert posterior.dim > CHUNK_COLUMNS

    def drawn():
        with posterior:
            run = Run(
                samplers.sgld(1e-6), posterior, posterior.anchor, batches=posterior.minibatches(8), num_chains=1,
                num_warmup=0, keep_positions=True,
            )  # fmt: skip
            run.draw(20)
        return run.trace()

    captured = drawn()
    assert captured.configuration["cuda_graph"] == "every step"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_step_", property(lambda run: run.kernel.step_))
        plain = drawn()
    assert captured.positions is not None
    assert plain.positions is not None
    moved = (plain.positions[0, -1] - plain.positions[0, 0]).abs().max()
    # embeddings add their gradients in any order, in bfloat16
    assert (captured.positions[0, -1] - plain.positions[0, -1]).abs().max() < 1e-2 * moved
    assert np.allclose(captured.loss, plain.loss, rtol=1e-3)


def test_full_data_in_many_passes_is_not_captured():
    model, data = language_model()
    posterior = slt.LocalPosterior(
        model, (data[0].repeat(8, 1),), next_token_loss, n_beta=100.0, localization=10.0, engine="in_place"
    )
    assert posterior.capturable(with_batches=True)
    assert not posterior.capturable(with_batches=False)
