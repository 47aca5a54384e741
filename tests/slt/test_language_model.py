"""A small GPT-2, trained here on the standard library's texts, saved and measured as a user would."""

import pydoc_data.topics
import warnings

import numpy as np
import pytest
import torch

import slt
from slt.checkpoints import load_into

transformers = pytest.importorskip("transformers")

LENGTH, WIDTH = 16, 32


def loss_fn(model, batch):
    return model(**batch).loss


def small_gpt2():
    config = transformers.GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",  # the fused kernel cannot be vectorised over chains
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Seconds of training on bytes, and the folder that ``save_pretrained`` made."""
    torch.manual_seed(0)
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    tokens = torch.tensor(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    model = small_gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = last = None
    for step in range(250):
        ids = rows[torch.randint(len(rows), (16,))]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first or last
        if step == 100:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
    assert last < 0.6 * first
    folder = tmp_path_factory.mktemp("gpt2") / "checkpoint-250"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder, {"input_ids": rows[:64], "labels": rows[:64]}


def test_estimate_through_the_in_place_engine(trained):
    folder, data = trained
    model = small_gpt2()
    load_into(model, folder)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    estimate = slt.estimate_llc(
        model, data, loss_fn, engine="in_place", n_beta=30.0, localization=1000.0, sampler="sgld", step_size=1e-5,
        batch_size=16, num_chains=2, num_warmup=10, num_draws=20,
    )  # fmt: skip
    assert np.isfinite(estimate.llc)
    assert estimate.llc > 0
    assert estimate.config["engine"][0] == "in_place"
    assert estimate.config["parameters"][0] == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.loss_at_anchor < 3.0
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_both_engines_give_the_same_draws(trained):
    """In float32, so to rounding of a few steps."""
    folder, data = trained
    model = small_gpt2()
    load_into(model, folder)
    losses = [
        slt.estimate_llc(
            model, data, loss_fn, engine=engine, n_beta=30.0, localization=1000.0, sampler="sgld", step_size=1e-5,
            batch_size=4, num_chains=1, num_warmup=0, num_draws=5,
        ).trace.loss
        for engine in ("batched", "in_place")
    ]  # fmt: skip
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_weight_restricted_to_one_block(trained):
    folder, data = trained
    model = small_gpt2()
    load_into(model, folder)
    estimate = slt.estimate_llc(
        model, data, loss_fn, engine="in_place", parameters="transformer.h.1.attn.*", n_beta=30.0, localization=100.0,
        sampler="sgld", step_size=1e-5, batch_size=16, num_chains=1, num_warmup=5, num_draws=8,
    )  # fmt: skip
    assert estimate.config["parameters"][0] == 4 * WIDTH * (WIDTH + 1)
