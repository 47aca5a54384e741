"""Checkpoints as the libraries themselves write them."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt.checkpoints import find_checkpoints, load_into, step_of


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
