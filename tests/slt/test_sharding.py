"""Models that ``fully_shard`` has spread over processes: the loss, gradient and law of one process, and refusals."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import samplers
import slt
from slt.posterior import LocalPosterior
from slt.shards import local
from tests.processes import finish
from tests.slt.models import fitted_regression, half_squares, regression_llc

if not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
    pytest.skip("fully_shard needs torch 2.6", allow_module_level=True)
multiprocessing.set_forkserver_preload([__name__])
COUNTS = (1, 2, 4)


def network():
    """Rows that no number of processes divides, and a layer of one row, of which most processes have nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(25, 3, dtype=torch.float64)
    return model, (x, torch.randn(25, 1, dtype=torch.float64))


def sharded(model, group):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, "cpu")
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(potential, part):
    """A vector of all columns, from this process's, in the order of the parameters of an unsharded model."""
    parts = [None] * dist.get_world_size(potential.engine.group)
    dist.all_gather_object(parts, potential.sampled.views(part), potential.engine.group)
    return torch.cat([torch.cat([views[place] for views in parts]).flatten() for place in range(len(parts[0]))])


def gradients(group):
    """Loss and gradient of the full data, of minibatches of five, and of batches of the user's, at moved weights."""
    found = []
    model, data = network()
    batches = [(data[0][:7], data[1][:7]), (data[0][7:8], data[1][7:8]), (data[0][8:], data[1][8:])]
    for given in (data, batches):
        model = network()[0] if group is None else sharded(network()[0], group)
        form = {"n_beta": 10.0, "localization": 1.0, "engine": "in_place" if group is None else "auto"}
        with LocalPosterior(model, given, half_squares, **form) as potential:
            assert potential.num_weights == 26
            position = (potential.anchor * 1.1).unsqueeze(0)
            draw = potential.minibatches(5)(torch.Generator().manual_seed(0), 1)
            for batch in (None, next(draw), next(draw)):
                loss, gradient = potential.loss_and_grad(position, batch)
                gradient = gradient[0] if group is None else whole(potential, gradient[0])
                norm = float(potential.sum(position.square()))
                found.append((float(loss), gradient.clone(), norm, potential.anchor_loss()[0]))
    return found


def noise(group):
    """Where three steps of SGLD lead without a gradient, but for the localiser's."""
    model = sharded(network()[0], group)
    with LocalPosterior(model, network()[1], half_squares, n_beta=1e-9, localization=1.0) as potential:
        run = samplers.Run(samplers.sgld(0.1), potential, potential.anchor, num_chains=10, num_warmup=0)
        run.draw(3)
        return [whole(potential, block.state.position[0]) for block in run.blocks]


def by_every_kernel(group):
    """Losses of some steps, of kernels in which the number of weights has a part too, and the pilots of two."""
    kernels = (
        samplers.sghmc(0.02, gradient_noise=0.1), samplers.sgnht(0.02), samplers.baoab(0.02), samplers.mclmc(0.2),
        samplers.rmsprop_sgld(1e-3, num_adapt=4), samplers.adam_sgld(1e-3, num_adapt=4),
    )  # fmt: skip
    found = []
    model = sharded(network()[0], group)
    with LocalPosterior(model, network()[1], half_squares, n_beta=10.0, localization=1.0) as potential:
        for kernel in kernels:
            trace = samplers.sample(kernel, potential, potential.anchor, num_chains=1, num_warmup=4, num_draws=5)
            found.extend((trace.loss[0], trace.statistics["discretization_bias"][0]))
        form = {"num_chains": 1, "num_warmup": 0, "batches": potential.minibatches(5)}
        run = samplers.Run(samplers.sgnht(0.02), potential, potential.anchor, **form)
        run.adapt(samplers.limit_momentum_bias(num_rounds=2, round_steps=2))
        found.append([run.kernel.settings["step_size"]])
        run = samplers.Run(samplers.sgld(1e-3), potential, potential.anchor, **form)
        run.adapt(samplers.gradient_metric(num_steps=20))
        run.draw(3)
        found.append(run.trace().loss[0])
        with pytest.raises(ValueError, match="vectors are shards"):
            run = samplers.Run(samplers.mclmc(0.2), potential, potential.anchor, num_chains=1, num_warmup=0)
            run.adapt(samplers.limit_energy_error())
    return [torch.as_tensor(each) for each in found]


def estimate(group, **options):
    model, data = network()
    few = {"batch_size": 10, "num_chains": 2, "num_warmup": 10, "num_draws": 30}
    return slt.estimate_llc(sharded(model, group), data, half_squares, **few, **options)


def regression(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, data, hessian = fitted_regression()
    found = slt.estimate_llc(
        sharded(nn.Sequential(model), dist.group.WORLD), data, half_squares, sampler=samplers.sgld(0.004),
        batch_size=200, num_chains=4, num_warmup=300, num_draws=4000,
    )  # fmt: skip
    torch.save((found.llc, found.mcse, found.ess, regression_llc(hessian, found.n_beta, 1.0)), f"{folder}/{rank}.pt")


def everything(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    samplers.limit_bias = partial(samplers.limit_bias, num_rounds=4, round_steps=10)  # in this process alone
    for count in COUNTS:
        group = dist.new_group(list(range(count)))
        if rank >= count:
            continue
        found = estimate(group, **({} if count < 4 else {"step_size": 0.002}))
        record = {name: value for name, value in found.to_dict().items() if name not in ("seconds", "config")}
        told = {
            "gradients": gradients(group), "noise": noise(group),
            "kernels": by_every_kernel(group), "record": repr(record), "llc": found.llc,
            "loss": torch.from_numpy(found.trace.loss), "engine": found.config["engine"],
            "weights": found.config["parameters"][0], "step": float(found.step_size),
        }  # fmt: skip
        if count == 2:
            leaves_no_trace(group)
            refuses(group, folder)
            told["at a step"] = torch.from_numpy(estimate(group, step_size=0.002).trace.loss)
        torch.save(told, f"{folder}/{count}_{rank}.pt")
    dist.barrier()


def leaves_no_trace(group):
    model, data = network()
    sharded(model, group)
    model(data[0]).sum().backward()
    parameters = list(model.parameters())
    before = [(local(each).clone(), local(each.grad).clone()) for each in parameters]
    slt.estimate_llc(model, data, half_squares, step_size=1e-3, num_draws=3, num_warmup=1, num_chains=1)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    for parameter, (weights, gradient) in zip(parameters, before, strict=True):
        assert torch.equal(local(parameter), weights)
        assert torch.equal(local(parameter.grad), gradient)


def refuses(group, folder):
    model, data = network()
    half = copy.deepcopy(model)
    sharded(model, group)
    few = {"step_size": 1e-3, "num_draws": 3, "num_warmup": 1}
    for wrong, match in (
        ({"sampler": "mala"}, "sampler: mala, but parameters are sharded"),
        ({"engine": "batched"}, "engine: 'batched', but the model is sharded"),
        ({"metric": "curvature"}, "metric: given for a model that is sharded"),
        ({"keep_positions": True}, "keep_positions: True, but the model is sharded"),
        ({"save_to": f"{folder}/run.pt"}, "save_to: .* but the model is sharded"),
        ({"process_group": group}, "process_group: .* but the model is sharded"),
    ):
        with pytest.raises(ValueError, match=match):
            slt.estimate_llc(model, data, half_squares, **few, **wrong)
    for setting, wrong, right, match in (
        ("set_gradient_divide_factor", 1.0, 2.0, "divided by 1.0"),
        ("set_requires_gradient_sync", False, True, "not exchanged"),
    ):
        if hasattr(model[0], setting):  # the first from torch 2.8 on
            getattr(model[0], setting)(wrong)
            with pytest.raises(ValueError, match=f"model: gradients of '0' are {match}"):
                slt.estimate_llc(model, data, half_squares, **few)
            getattr(model[0], setting)(right)
    unlike = (data[0], data[1] + dist.get_rank(group))
    with pytest.raises(ValueError, match="in process 1 they are not those of the first .*a loss of"):
        slt.estimate_llc(model, unlike, half_squares, **few)
    with pytest.raises(ValueError, match="model: sharded by fully_shard; expected a whole one"):
        slt.sweep(model, {1: {}}, data, half_squares)
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(half[0], mesh=DeviceMesh.from_group(group, "cpu"))
    with pytest.raises(ValueError, match=r"parameters: 2\.weight, 2\.bias are whole in every process"):
        slt.estimate_llc(half, data, half_squares, **few)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding")
    finish(everything, folder, max(COUNTS))
    return {(count, rank): torch.load(Path(folder, f"{count}_{rank}.pt")) for count in COUNTS for rank in range(count)}


def test_loss_and_gradient_are_those_of_the_whole_model(told):
    alone = gradients(None)
    assert len(alone) == 6
    for each in told.values():
        for one, other in zip(alone, each["gradients"], strict=True):
            assert other[0] == pytest.approx(one[0], rel=1e-12)
            torch.testing.assert_close(other[1], one[1], rtol=1e-11, atol=1e-13)
            assert other[2:] == pytest.approx(one[2:], rel=1e-12)


def test_noise_does_not_depend_on_the_number_of_processes(told):
    for each in told.values():
        for one, other in zip(told[1, 0]["noise"], each["noise"], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
    anchor = slt.parameters.SampledParameters(network()[0]).flatten()
    moved = torch.cat([each - anchor for each in told[1, 0]["noise"]])
    assert len(moved.unique()) == 260
    # ε (1 + c² + c⁴), c = 1 − ε/2, over 260 numbers, whose mean square has an error of 9 %: four of them, 6 in 10⁵
    variance = 0.1 * (1 + 0.95**2 + 0.95**4)
    assert abs(float(moved.square().mean()) / variance - 1) < 4 * (2 / 260) ** 0.5


def test_an_estimate_is_the_same_for_any_number_of_processes(told):
    one = told[1, 0]
    assert one["engine"][0] == "sharded"
    assert one["weights"] == 26
    for (count, _), each in told.items():
        assert each["engine"] == ("sharded", f"parameters are sharded over {count} processes")
        assert each["record"] == told[count, 0]["record"]  # in all of them, to the last digit
    for rank in (0, 1):
        two = told[2, rank]
        assert two["llc"] == pytest.approx(one["llc"], rel=1e-6)
        assert two["step"] == pytest.approx(one["step"], rel=1e-6)
        torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-6, atol=0)
    for rank in range(4):
        torch.testing.assert_close(told[4, rank]["loss"], told[2, 0]["at a step"], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_the_law_is_the_exact_one(tmp_path):
    finish(regression, tmp_path, 2)
    llc, mcse, ess, exact = torch.load(tmp_path / "0.pt")
    assert ess > 400
    # the step's bias is 2 % at most; an error beyond 4 of its standard errors has a chance of 6 in 10⁵
    assert abs(llc - exact) < 4 * mcse + 0.02 * exact
