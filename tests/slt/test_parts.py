"""Refined coefficients: a part alone is sampled, and all else stays as it was."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import slt
from slt.parts import attention_heads, checked_parts, embeddings, mlps, named_parts, part_of
from tests.slt.models import fitted_regression, half_squares, regression_llc
from tests.statistics import MINIMUM_ESS, Z

SHORT = {"num_draws": 30, "num_warmup": 5, "num_chains": 2, "progress": False, "sampler": "mala", "step_size": 1e-4}


def test_a_part_of_a_weight_has_the_law_of_its_block():
    """Least squares on two of three inputs, in closed form; Z = 4: a false alarm once in 16,000."""
    model, data, hessian = fitted_regression()
    part = part_of(model, {"weight": torch.tensor([[True, False, True]])})
    estimate = slt.estimate_llc(part, data, half_squares, tolerance=0.05)
    chosen = torch.tensor([0, 2])
    n_beta = len(data[0]) / math.log(len(data[0]))
    truth = regression_llc(hessian[chosen][:, chosen], n_beta, 1.0)
    assert estimate.ess >= MINIMUM_ESS
    assert abs(estimate.llc - truth) <= Z * estimate.mcse
    assert abs(estimate.llc - regression_llc(hessian, n_beta, 1.0)) > Z * estimate.mcse  # of the whole
    assert estimate.config["parameters"][0] == 2
    assert torch.equal(part.weight, model.weight)
    assert model.weight.requires_grad


def small(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "neox":
        config = transformers.GPTNeoXConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=16, vocab_size=16,
            max_position_embeddings=8, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config)
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, intermediate_size=16,
            vocab_size=16, max_position_embeddings=8, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    return model.double().eval()


TOKENS = torch.randint(16, (8, 8), generator=torch.Generator().manual_seed(0))


def next_token(model, batch):
    logits = model(batch, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.reshape(-1, 16), batch[:, 1:].reshape(-1))


class FrozenByHand(nn.Module):
    """The chosen entries of a part as one vector a weight, put into the weights in the forward pass; no more moves."""

    def __init__(self, model, part):
        super().__init__()
        self.whole = [copy.deepcopy(model).requires_grad_(False)]  # in a list: no submodule
        self.places = {name: mask.nonzero(as_tuple=True) for name, mask in part.items()}
        for place, (name, at) in enumerate(self.places.items()):
            self.register_parameter(f"p{place}", nn.Parameter(model.get_parameter(name)[at].detach().clone()))

    def forward(self, batch, **options):
        weights = dict(self.whole[0].named_parameters())
        for place, (name, at) in enumerate(self.places.items()):
            weights[name] = weights[name].index_put(at, getattr(self, f"p{place}"))
        return torch.func.functional_call(self.whole[0], weights, (batch,), options)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_a_head_is_what_it_says_and_its_run_is_that_of_the_rest_frozen_by_hand(kind):
    """By hand: the whole model in which the gradient of all other entries, and their noise, is nothing."""
    model = small(kind)
    heads = attention_heads(model)
    assert sorted(heads) == ([f"{i}.{j}" for i in range(2) for j in range(4 if kind == "llama" else 2)])
    part = heads["1.1"]

    # zeroing the output rows of a head takes out what it writes, and nothing else does
    changed = [
        name
        for name, mask in part.items()
        if mask is not None and any(each in name for each in ("c_proj", "o_proj", "dense"))
    ]
    silent = part_of(model, part)
    entries = [parameter for parameter in silent.parameters() if parameter.requires_grad]
    assert sum(each.numel() for each in entries) == sum(int(mask.sum()) for mask in part.values())
    with torch.no_grad():
        silent.get_submodule(changed[0].rpartition(".")[0]).parametrizations.weight.original.zero_()
        by_hand = small(kind)
        by_hand.get_parameter(changed[0])[part[changed[0]]] = 0.0
        assert torch.equal(silent(TOKENS).logits, by_hand(TOKENS).logits)
        assert not torch.allclose(silent(TOKENS).logits, model(TOKENS).logits)

    found = slt.estimate_llc(part_of(model, part), TOKENS, next_token, **SHORT)
    hand = slt.estimate_llc(FrozenByHand(model, part), TOKENS, next_token, **SHORT)
    assert found.config["parameters"][0] == hand.config["parameters"][0]
    np.testing.assert_allclose(found.trace.loss, hand.trace.loss, rtol=1e-9)


def attended(model):
    """What the heads of the second layer write before the output projection: ``(batch, tokens, heads, size)``."""
    kept = []
    projection = next(
        module for name, module in model.named_modules() if name.endswith(("1.attn.c_proj", "1.attention.dense"))
    )
    handle = projection.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(TOKENS)
    handle.remove()
    return kept[0].unflatten(-1, (2, -1))


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
@pytest.mark.parametrize("head", [0, 1])
def test_without_the_entries_of_a_head_it_alone_is_silent(kind, head):
    model = small(kind)
    before = attended(model)
    assert before.abs().amax((0, 1, 3)).min() > 1e-4
    with torch.no_grad():
        for name, mask in attention_heads(model)[f"1.{head}"].items():
            model.get_parameter(name)[mask] = 0.0
    after = attended(model)
    assert torch.equal(after[:, :, head], torch.zeros_like(after[:, :, head]))
    torch.testing.assert_close(after[:, :, 1 - head], before[:, :, 1 - head], rtol=1e-12, atol=1e-15)


def test_the_mlps_of_gpt_neox_are_listed_and_models_of_other_forms_are_refused():
    transformers = pytest.importorskip("transformers")
    listed = mlps(small("neox"))
    assert list(listed) == ["0", "1"]
    assert all(name.startswith("gpt_neox.layers.0.mlp.dense_") for name in listed["0"])
    config = transformers.OPTConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=8, ffn_dim=8, vocab_size=16, word_embed_proj_dim=8,
        max_position_embeddings=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="OPTForCausalLM has no mlps"):
        mlps(transformers.OPTForCausalLM(config))
    with pytest.raises(ValueError, match="Linear has no embeddings"):
        embeddings(nn.Linear(2, 2))


def test_heads_whose_number_or_rows_are_not_known_are_refused():
    attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
    with pytest.raises(ValueError, match="ModuleDict does not say how many heads.*config.num_attention_heads"):
        attention_heads(attention)
    shared = nn.ModuleDict({"query_key_value": nn.Linear(4, 8), "dense": nn.Linear(4, 4)})
    shared.config = SimpleNamespace(num_attention_heads=2)
    with pytest.raises(ValueError, match="query_key_value.weight has 8 rows; expected 12"):
        attention_heads(shared)


def test_the_parts_of_a_causal_model_by_name():
    model = small("gpt2")
    parts = named_parts(model, ["whole", "heads", "mlps", "embeddings", "transformer.ln_f.*"])
    assert list(parts) == [
        "whole", "head 0.0", "head 0.1", "head 1.0", "head 1.1", "mlp 0", "mlp 1", "transformer.wte", "transformer.wpe",
        "transformer.ln_f.*",
    ]  # fmt: skip
    assert parts["whole"] is None
    assert parts["mlp 0"] == mlps(model)["0"]
    assert parts["transformer.wpe"] == embeddings(model)["transformer.wpe"]
    with pytest.raises(ValueError, match="Linear has no mlps"):
        named_parts(nn.Linear(2, 2), ["mlps"])


def test_parts_that_are_refused():
    model = small("gpt2")
    with pytest.raises(ValueError, match="is no parameter"):
        part_of(model, {"nothing": None})
    with pytest.raises(ValueError, match="empty"):
        part_of(model, {})
    with pytest.raises(ValueError, match="is tied to"):
        part_of(model, {"transformer.wte.weight": torch.ones(16, 8) > 0})
    with pytest.raises(ValueError, match=r"expected booleans of shape \(8, 8\)"):
        part_of(model, {"transformer.h.0.attn.c_proj.weight": torch.ones(8, 8)})
    with pytest.raises(ValueError, match="no layer with q_proj"):
        attention_heads(nn.Linear(2, 2))


def test_what_is_no_part_is_told_so():
    model = nn.Linear(2, 1)
    model.index = nn.Parameter(torch.arange(2), requires_grad=False)
    for part, match in (
        ("weight", "part: 'weight'; expected a dict of names of parameters and masks"),
        (["weight"], r"part: \['weight'\]; expected a dict"),
        ({"weight": [True, False]}, "part: for 'weight' a list; expected a boolean tensor, or None"),
        ({"index": None}, "part: 'index' is of torch.int64, which has no gradient"),
    ):
        with pytest.raises(ValueError, match=match):
            part_of(model, part)


@pytest.mark.parametrize("choice", [{"weight": torch.tensor([[True, False]])}, {"weight": None}, "weight"])
def test_a_frozen_weight_is_refused_in_every_form(choice):
    model = nn.Linear(2, 1)
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'?weight'? (is|are) frozen \(requires_grad=False\)"):
        checked_parts(model, {"a": choice}, {})
