"""Checkpoints as the libraries themselves write them."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt.checkpoints import find_checkpoints, load_into, load_state, step_of


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def samples():
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sum(1, keepdim=True))


def equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == again and torch.equal(value, copy) for (name, value), (again, copy) in pairs)


@pytest.fixture
def quiet():
    """What the trainers warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_lightning(tmp_path, quiet):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, width=4):
            super().__init__()
            self.save_hyperparameters()
            self.model = network()

        def training_step(self, batch, _):
            x, y = batch
            return (self.model(x) - y).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    module = Module()
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[keep], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=4))
    found = find_checkpoints(tmp_path / "*.ckpt")
    assert [step_of(path) for path in found] == [4, 8]
    whole, inner = Module(), network()
    load_into(whole, found[-1])
    load_into(inner, found[-1])  # without the "model." in front
    assert equal(whole, module)
    assert equal(inner, module.model)


def test_transformers_trainer(tmp_path, quiet):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(16, (16, 8), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), max_steps=4, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=examples).train()
    found = find_checkpoints(tmp_path / "run")
    assert [step_of(path) for path in found] == [2, 4]
    fresh = transformers.GPT2LMHeadModel(config)
    load_into(fresh, found[-1])
    assert equal(fresh, model)
    assert fresh.lm_head.weight is fresh.transformer.wte.weight


@pytest.fixture
def one_rank(tmp_path, quiet):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPED = {
    "distributed": nn.parallel.DistributedDataParallel,
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "distributed, then compiled": lambda model: torch.compile(nn.parallel.DistributedDataParallel(model)),
    "compiled, then distributed": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model)),
    "compiled inside": lambda model: nn.Sequential(torch.compile(model[0]), model[1], torch.compile(model[2])),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_what_wrappers_add_to_names_does_not_count_on_either_side(tmp_path, one_rank, wrapped):
    model = WRAPPED[wrapped](network())
    torch.save(model.state_dict(), tmp_path / "step-1.pt")
    assert any("module" in name or "_orig_mod" in name for name in model.state_dict())
    plain = network()
    load_into(plain, tmp_path / "step-1.pt")
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), model.parameters(), strict=True))
    for name, other in WRAPPED.items():  # and into any other wrapper
        fresh = other(network())
        load_into(fresh, tmp_path / "step-1.pt")
        assert all(torch.equal(*pair) for pair in zip(fresh.parameters(), plain.parameters(), strict=True)), name
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    again = WRAPPED[wrapped](network())
    load_into(again, tmp_path / "plain.pt")
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), plain.parameters(), strict=True))


def test_a_part_that_is_named_like_a_wrapper_is_no_wrapper(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()
            self.head = nn.Linear(1, 1, bias=False)
            self.head.weight = self.module[2].bias_matrix = nn.Parameter(torch.randn(1, 1))

    trained, fresh = Named(), Named()
    state = {name: value for name, value in trained.state_dict().items() if name.startswith("module.")}  # head is tied
    torch.save(state, tmp_path / "a.pt")
    load_into(fresh, tmp_path / "a.pt")
    assert equal(fresh, trained)
    wrong = {f"_orig_mod.{name}": value for name, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(ValueError, match=r"unknown to the model: _orig_mod\.weight, _orig_mod\.bias"):
        load_state(fresh, wrong)


@pytest.mark.parametrize("nested", [False, True])
def test_torch_distributed_checkpoint(tmp_path, nested, quiet):
    model, fresh = network(), network()
    state = {"model": model.state_dict(), "step": torch.tensor(7)} if nested else model.state_dict()
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "step-7", no_dist=True)
    load_into(fresh, tmp_path / "step-7")
    assert equal(fresh, model)
    shard = next((tmp_path / "step-7").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read by torch.distributed.checkpoint"):
        load_into(fresh, tmp_path / "step-7")
