"""The training callback: training is bit for bit the same with and without it."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import slt
from slt.callbacks import LLCMonitor
from slt.engines import recording
from tests.slt.models import cross_entropy, fitted_regression, half_squares

SHORT = {"num_draws": 20, "num_warmup": 5, "num_chains": 2, "sampler": "mala", "step_size": 0.02}
UNTUNED = {name: value for name, value in SHORT.items() if name not in ("sampler", "step_size")}


class OwnOrder(Sampler):
    def __init__(self, size):
        self.size, self.rng = size, np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(self.size).tolist())

    def __len__(self):
        return self.size


def train(monitored, engine="auto", same_loader=False, generator=None, sampler=None, options=SHORT):
    """Training with Dropout, BatchNorm, weight decay and a shuffling loader; returns all that must not change."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    own = None if generator is None else torch.Generator().manual_seed(generator)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=sampler is None, sampler=sampler, generator=own)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    monitor = LLCMonitor(loader if same_loader else (x, y), cross_entropy, every=8, engine=engine, **options)
    order, step = [], 0
    for _ in range(4):
        for batch in loader:
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            if monitored:
                monitor.step(model, step)
            optimizer.step()
            order.append(batch[1].tolist())
            step += 1
    return {
        "weights": [value.clone() for value in model.state_dict().values()],
        "gradients": [parameter.grad.clone() for parameter in model.parameters()],
        "moments": [state["exp_avg"].clone() for state in optimizer.state.values()],
        "order": order,
        "modes": [module.training for module in model.modules()],
        "random": (random.random(), float(np.random.rand()), float(torch.rand(()))),  # noqa: NPY002
        "generator": None if own is None else own.get_state().tolist(),
    }, monitor


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if name in ("weights", "gradients", "moments"):
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True)), name
        else:
            assert one[name] == other[name], name


@pytest.mark.parametrize(
    ("engine", "same_loader", "generator", "options"),
    [
        ("batched", False, None, UNTUNED), ("in_place", True, None, SHORT),
        ("batched", True, 7, SHORT), ("in_place", False, 7, UNTUNED),
    ],
)  # fmt: skip
def test_training_is_bit_identical(engine, same_loader, generator, options):
    plain, _ = train(False, generator=generator)
    watched, monitor = train(True, engine, same_loader, generator, options=options)
    assert_identical(plain, watched)
    assert sorted(monitor.estimates) == [0, 8]


def test_a_sampler_draws_from_its_own_generator_as_without():
    plain, _ = train(False, sampler=OwnOrder(64))
    watched, monitor = train(True, same_loader=True, sampler=OwnOrder(64))
    assert_identical(plain, watched)
    assert sorted(monitor.estimates) == [0, 8]


def test_a_leak_would_be_seen(monkeypatch):
    """The comparison must notice one number drawn from the global generator."""
    plain, _ = train(False)
    honest = LLCMonitor.step
    monkeypatch.setattr(LLCMonitor, "step", lambda *arguments: (honest(*arguments), torch.rand(1))[0])
    watched, _ = train(True)
    with pytest.raises(AssertionError):
        assert_identical(plain, watched)


def test_what_is_logged():
    model, data, _ = fitted_regression()
    logged = []
    monitor = LLCMonitor(data, half_squares, every=10, log=lambda values, step: logged.append((step, values)), **SHORT)
    estimates = [monitor.step(model, step) for step in range(25)]
    assert [step for step, _ in logged] == [0, 10, 20]
    assert [step for step, estimate in enumerate(estimates) if estimate is not None] == [0, 10, 20]
    values = logged[1][1]
    assert values["llc"] == monitor.estimates[10].llc
    assert values["llc_low"] < values["llc"] < values["llc_high"]
    assert set(values) == {"llc", "llc_low", "llc_high", "llc_rhat", "llc_ess", "loss_at_anchor", "llc_verdict"}
    assert isinstance(estimates[0], slt.LLCEstimate)


def test_a_failed_estimate_does_not_stop_training():
    logged = []
    monitor = LLCMonitor(
        (torch.randn(5, 3), torch.randn(4, 1)), half_squares, every=1, log=lambda values, step: logged.append(values)
    )
    with pytest.warns(UserWarning, match="no estimate at step 0.*common number of samples"):
        assert monitor.step(nn.Linear(3, 1), 0) is None
    assert np.isnan(logged[0]["llc"])
    assert logged[0]["llc_verdict"].startswith("failed")


def test_warnings_made_errors_stop_no_training(capsys):
    def down(values, step):
        logged.append(values["llc_verdict"])
        raise OSError("the tracker is down")

    logged = []
    monitor = LLCMonitor((torch.randn(5, 3), torch.randn(4, 1)), half_squares, every=1, log=down)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert monitor.step(nn.Linear(3, 1), 0) is None
    assert "common number of samples" in logged[0]
    assert monitor.logged[0]["llc_verdict"] == logged[0]
    told = capsys.readouterr().err
    assert "no estimate at step 0" in told
    assert "the log failed at step 0: OSError: the tracker is down" in told


def test_a_warning_points_to_the_line_of_the_training_loop():
    def down(values, step):
        raise OSError("the tracker is down")

    monitor = LLCMonitor((torch.randn(5, 3), torch.randn(4, 1)), half_squares, every=1, log=down)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        monitor.step(nn.Linear(3, 1), 0)
    assert [each.filename for each in found] == [__file__, __file__]


def half_precision(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return half_squares(model, batch)


@pytest.mark.parametrize("loss_fn", [half_squares, half_precision])
@pytest.mark.parametrize("engine", ["batched", "in_place"])
def test_autocast_around_a_step_changes_nothing(loss_fn, engine):
    """Whose cache of cast weights would hold the anchor's while the weights move in place."""
    model, data, _ = fitted_regression()
    model = model.float()
    data = tuple(each.float() for each in data)
    apart = LLCMonitor(data, loss_fn, every=1, engine=engine, **SHORT).step(model, 0)
    monitor = LLCMonitor(data, loss_fn, every=1, engine=engine, **SHORT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(data[0])
        inside = monitor.step(model, 0)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
    assert inside is not None
    assert apart is not None
    np.testing.assert_array_equal(inside.trace.loss, apart.trace.loss)
    assert (inside.llc, inside.interval) == (apart.llc, apart.interval)


def test_an_interrupt_is_logged_and_raised(monkeypatch):
    monkeypatch.setattr(recording, "CALLS_UNTIL_RECORDED", 10**9)  # or its loss is not called at every step
    model, data, _ = fitted_regression()
    calls, logged = {"count": 0}, []

    def interrupted(model, batch):
        calls["count"] += 1
        if calls["count"] == 600:
            raise KeyboardInterrupt
        return half_squares(model, batch)

    monitor = LLCMonitor(data, interrupted, every=1, log=lambda values, step: logged.append(values), num_draws=2000)
    monitor.options |= {"num_warmup": 10, "sampler": "mala"}  # whose calls are counted
    with pytest.raises(KeyboardInterrupt):
        monitor.step(model, 0)
    assert "interrupted" in logged[0]["llc_verdict"]


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"every": 0}, ValueError, "every: 0; expected a positive"),
        ({"every": "a"}, ValueError, "every: 'a'; expected a whole number"),
        ({"every": 2.5}, ValueError, "every: 2.5; expected a whole number"),
        ({"every": True}, ValueError, "every: True; expected a whole number"),
        ({"steps": 5}, ValueError, "steps: 5; expected several"),
        ({"steps": "12"}, ValueError, "steps: '12'; expected several"),
        ({"steps": ["a"]}, ValueError, "steps: 'a'; expected a whole number"),
        ({"steps": [2.5]}, ValueError, "steps: 2.5; expected a whole number"),
        ({"steps": []}, ValueError, r"steps: \[\]; expected at least one"),
        ({"steps": [3, -1]}, ValueError, r"steps: \[-1, 3\]; expected at least one step, none below 0"),
        ({"every": 1, "share": "5%"}, ValueError, "share: '5%'; expected a positive share"),
        ({"every": 1, "share": True}, ValueError, "share: True; expected a positive share"),
        ({"every": 1, "log": 3}, TypeError, "log: 3; expected a function"),
        ({"every": 1, "log": "llc.csv"}, TypeError, "log: 'llc.csv'; expected a function.*to_csv"),
        ({"every": 1, "seed": -1}, ValueError, "seed: -1; expected a whole number of at least 0"),
        ({"every": 1, "tolerance": "5%"}, ValueError, "tolerance: '5%'; expected a number"),
        ({"every": 1, "n": 0}, ValueError, "n: 0; expected a positive number of samples"),
        ({"every": 1, "num_chains": 2.5}, ValueError, "num_chains: 2.5; expected a whole number"),
        ({"every": 1, "thinning": 0}, ValueError, "thinning: 0; expected at least 1"),
    ],
)
def test_arguments_that_are_refused_at_once(options, kind, match):
    with pytest.raises(kind, match=match):
        LLCMonitor((torch.zeros(1, 1),), half_squares, **options)


def test_data_that_can_be_read_once_are_refused_at_once():
    batches = ((torch.zeros(2, 1),) for _ in range(3))
    with pytest.raises(ValueError, match="data: generator has no length"):
        LLCMonitor(batches, half_squares, every=1)
    assert len(list(batches)) == 3


def test_names_from_a_generator_are_those_of_every_estimate():
    _, data, _ = fitted_regression()
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    monitor = LLCMonitor(data, half_squares, every=1, parameters=(name for name in ["0.*"]), **SHORT)
    for step in range(2):
        found = monitor.step(model, step)
        assert found is not None
        assert found.config["parameters"][0] == 8


def test_another_training_begins_with_nothing_of_the_one_before():
    model, data, _ = fitted_regression()
    monitor = LLCMonitor(data, half_squares, every=1, share=1e-6, **SHORT)
    first = monitor.step(model, 0)
    monitor.step(model, 1)  # for which there is no time yet
    before = monitor.estimates
    monitor.reset()
    assert monitor.estimates == monitor.logged == {}
    assert before == {0: first}
    assert monitor.step(model, 0) is not None


def test_a_step_is_the_same_as_a_tensor_or_a_number_of_numpy():
    model, data, _ = fitted_regression()
    monitor = LLCMonitor(data, half_squares, steps=np.array([2, 4]), **SHORT)
    assert monitor.step(model, torch.tensor(2)) is not None
    assert monitor.step(model, torch.tensor(2)) is None
    assert monitor.step(model, np.int64(2)) is None
    assert monitor.step(model, 4.0) is not None
    assert list(monitor.logged) == [2, 4]
    with pytest.raises(ValueError, match="step: 2.5; expected a whole number"):
        monitor.step(model, 2.5)


def test_a_failure_without_a_text_is_named_by_its_kind():
    def stops(model, batch):
        raise StopIteration

    model, data, _ = fitted_regression()
    monitor = LLCMonitor(data, stops, every=1, **SHORT)
    with pytest.warns(UserWarning, match="no estimate at step 0"):
        monitor.step(model, 0)
    with pytest.warns(UserWarning, match="no estimate at step 1"):
        monitor.step(nn.ReLU(), 1)
    assert "StopIteration" in monitor.logged[0]["llc_verdict"]
    assert "ReLU has no parameters" in monitor.logged[1]["llc_verdict"]


def test_the_state_of_something_else_is_refused():
    monitor = LLCMonitor((torch.zeros(1, 1),), half_squares, every=1)
    with pytest.raises(ValueError, match="state: without logged and schedule"):
        monitor.load_state_dict({})
