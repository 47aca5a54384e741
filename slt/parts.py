"""Parts of a model, such as one attention head: slices of several weights, whose λ̂ is the refined coefficient."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt.parameters import SampledParameters, check_memory

Part = Mapping[str, Tensor | None]
Choice = Part | str | Sequence[str] | None  # of weights: entries by mask, names or globs, or all


def part_of(model: nn.Module, part: Part) -> nn.Module:
    """A copy of a module whose only trainable parameters are the chosen entries of the chosen weights.

    Its λ̂ by :func:`slt.estimate_llc`, on whatever data, is the refined coefficient of the part: all else stays at w*.

    >>> head = part_of(model, {"attn.q.weight": mask})  # doctest: +SKIP
    >>> slt.estimate_llc(head, data, loss_fn)  # doctest: +SKIP

    Args:
        model: The module, which is left alone.
        part: Names of parameters → which of their entries: a boolean mask of their shape, or None for all.

    Returns:
        The copy. A weight that is chosen in part is the frozen weight with a vector of its chosen entries put in.

    Raises:
        ValueError: The part is no dict, a name is unknown or tied to another one, a weight is frozen, has no
            floating point or lies over another one, or a mask is no tensor, has another shape or chooses nothing.

    Source:
        Wang et al. 2024 (arXiv:2410.02984), §3: weight-restricted coefficients.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        shared.setdefault(id(parameter), []).append(name)
    if not isinstance(part, Mapping):
        raise ValueError(
            f"part: {part!r}; expected a dict of names of parameters and masks, or None for all of one. Whole weights "
            "by name or glob need no part: slt.estimate_llc(…, parameters=…)."
        )
    if not part:
        raise ValueError("part: empty; expected names of parameters.")
    for name, mask in part.items():
        if name not in parameters:
            raise ValueError(f"part: {name!r} is no parameter; expected one of {', '.join(list(parameters)[:8])}, …")
        if not parameters[name].is_floating_point():
            raise ValueError(
                f"part: {name!r} is of {parameters[name].dtype}, which has no gradient to sample with. Leave it out."
            )
        if not parameters[name].requires_grad:
            raise ValueError(
                f"part: {name!r} is frozen (requires_grad=False). Call requires_grad_() on what should be sampled, or "
                "leave it out."
            )
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise ValueError(f"part: for {name!r} a {type(mask).__name__}; expected a boolean tensor, or None for all.")
        tied = [other for other in shared[id(parameters[name])] if other != name]
        if tied:
            raise ValueError(f"part: {name!r} is tied to {tied[0]!r}, of which one part cannot be chosen; give None.")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape or not bool(mask.any()):
            raise ValueError(
                f"part: for {name!r} a mask of {mask.dtype} and shape {tuple(mask.shape)}; expected booleans of shape "
                f"{tuple(parameters[name].shape)}, not all of them False."
            )
    own = {id(parameters[name]) for name in part}
    check_memory(model, lambda _, parameter: id(parameter) in own)
    alone = copy.deepcopy(model).requires_grad_(False)
    for name, mask in part.items():
        path, _, attribute = name.rpartition(".")
        owner = alone.get_submodule(path)
        weight = getattr(owner, attribute)
        if mask is None or bool(mask.all()):
            weight.requires_grad_(True)
        else:
            parametrize.register_parametrization(owner, attribute, _Entries(weight.detach(), mask), unsafe=True)
            getattr(owner.parametrizations, attribute).original.requires_grad_(True)
    return alone


def restricted(model: nn.Module, choice: Choice, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """What is estimated of a choice of weights, at the weights that the model has now, and with which options.

    Args:
        model: The module.
        choice: A part for :func:`part_of`; a name or glob of parameters, or several; or None for all.
        options: Of :func:`slt.estimate_llc`.

    Returns:
        The module, or a copy in which a part alone is trainable; and the options.

    Raises:
        ValueError: It is none of these, or does not fit the model.
    """
    if choice is None:
        return model, options
    if isinstance(choice, Mapping):
        return part_of(model, choice), options
    if not isinstance(choice, Iterable):
        raise ValueError(f"{choice!r} is no choice; expected masks by name, a name or glob, several, or None for all.")
    return model, {**options, "parameters": choice if isinstance(choice, str) else list(choice)}


def checked_parts(model: nn.Module, parts: Mapping[str, Choice], options: dict[str, Any]) -> dict[str, Choice]:
    """The parts, each of which fits the model, so that none is refused after hours.

    Args:
        model: The module.
        parts: Names → choices of weights.
        options: Of :func:`slt.estimate_llc`.

    Returns:
        The parts.

    Raises:
        ValueError: They are no dict, there are none, one has no name, one does not fit, or options say what is sampled
            too.
    """
    if options.get("parameters") is not None:
        raise ValueError("parameters: beside parts, which say what is sampled; expected one of the two.")
    if not isinstance(parts, Mapping):
        raise ValueError(f"parts: {parts!r}; expected a dict of names and choices, such as {{'all': None}}.")
    if not parts or not all(isinstance(name, str) and name for name in parts):
        raise ValueError(f"parts: {list(parts)}; expected names, such as those of slt.attention_heads(model).")
    for name, choice in parts.items():
        try:
            module, chosen = restricted(model, choice, options)
            SampledParameters(module, chosen.get("parameters"))
        except ValueError as error:
            raise ValueError(f"parts: {name!r} does not fit {type(model).__name__}: {error}") from error
    return dict(parts)


class _Entries(nn.Module):
    """From the chosen entries to the whole weight, and back."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("rest", weight.flatten().clone())
        self.register_buffer("places", mask.to(weight.device).flatten().nonzero().squeeze(1))

    def forward(self, entries: Tensor) -> Tensor:
        return self.rest.scatter(0, self.places, entries).view(self.shape)  # type: ignore[operator]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten()[self.places]  # type: ignore[index]


def named_parts(model: nn.Module, names: Sequence[str]) -> dict[str, Choice]:
    """Parts by the words of the command line.

    Args:
        model: The module.
        names: Of ``"whole"``, ``"heads"``, ``"mlps"`` and ``"embeddings"``; any other is a name or glob of parameters.

    Returns:
        For :func:`slt.sweep`, in this order.

    Raises:
        ValueError: The model has none of a kind.
    """
    found: dict[str, Choice] = {}
    for name in names:
        if name == "whole":
            found[name] = None
        elif name == "heads":
            found |= {f"head {place}": part for place, part in attention_heads(model).items()}
        elif name in ("mlps", "embeddings"):
            kind = mlps(model) if name == "mlps" else embeddings(model)
            found |= {f"mlp {place}" if name == "mlps" else place: part for place, part in kind.items()}
        else:
            found[name] = name
    return found


def attention_heads(model: nn.Module) -> dict[str, Part]:
    """Every attention head of a causal model of Hugging Face, or of a module built like one, by ``"layer.head"``.

    Of a head: its rows of the query, key and value projections with their biases, and its columns of the output
    projection. Layers are known by their names: ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` (Llama, Mistral,
    Qwen, Gemma; heads that share keys and values have them in common), ``c_attn`` and ``c_proj`` (GPT-2), or
    ``query_key_value`` and ``dense`` (GPT-NeoX, which Pythia is).

    Args:
        model: With ``config.num_attention_heads``.

    Returns:
        For :func:`part_of`.

    Raises:
        ValueError: No layer is of a known form, or the number of heads is not said.
    """
    found: dict[str, Part] = {}
    layer = 0
    for path, module in model.named_modules():
        children = dict(module.named_children())
        prefix = f"{path}." if path else ""
        if {"c_attn", "c_proj"} <= children.keys():
            heads = _joined_heads(children, prefix, _number_of_heads(model))
        elif {"q_proj", "k_proj", "v_proj", "o_proj"} <= children.keys():
            heads = _separate_heads(children, prefix, _number_of_heads(model))
        elif {"query_key_value", "dense"} <= children.keys():
            heads = _interleaved_heads(children, prefix, _number_of_heads(model))
        else:
            continue
        found |= {f"{layer}.{head}": part for head, part in enumerate(heads)}
        layer += 1
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no layer with q_proj, k_proj, v_proj and o_proj, with c_attn and "
            "c_proj, or with query_key_value and dense. Make the masks by hand, for slt.part_of."
        )
    return found


def mlps(model: nn.Module) -> dict[str, Part]:
    """Every block named ``mlp`` or ``feed_forward``, whole, by its place: GPT-2, GPT-NeoX, Llama and its like.

    Args:
        model: The module.

    Returns:
        For :func:`part_of`.

    Raises:
        ValueError: No block has one of these names.
    """
    paths = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in ("mlp", "feed_forward")]
    if not paths:
        raise ValueError(
            f"model: {type(model).__name__} has no mlps, which are blocks named mlp or feed_forward. Name parameters "
            "by a glob, or make the part by hand, for slt.part_of."
        )
    return {str(place): _whole(model, path) for place, path in enumerate(paths)}


def embeddings(model: nn.Module) -> dict[str, Part]:
    """Every ``nn.Embedding``, whole, by its name. One that is tied to the output layer is both.

    Args:
        model: The module.

    Returns:
        For :func:`part_of`.

    Raises:
        ValueError: There is none.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Embedding)]
    if not paths:
        raise ValueError(f"model: {type(model).__name__} has no embeddings, which are of nn.Embedding.")
    return {path: _whole(model, path) for path in paths}


def _whole(model: nn.Module, path: str) -> Part:
    return {f"{path}.{name}": None for name, _ in model.get_submodule(path).named_parameters()}


def _number_of_heads(model: nn.Module) -> int:
    heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(
            f"model: {type(model).__name__} does not say how many heads a layer has; expected a whole number as "
            "model.config.num_attention_heads."
        )
    return heads


def _joined_heads(children: dict[str, nn.Module], prefix: str, heads: int) -> list[Part]:
    """GPT-2: weights are (inputs, outputs), and queries, keys and values lie behind each other."""
    weight, output = children["c_attn"].weight, children["c_proj"].weight
    assert isinstance(weight, Tensor)
    assert isinstance(output, Tensor)
    width = weight.shape[1] // 3
    parts: list[Part] = []
    for head in range(heads):
        mine = torch.arange(width).div(width // heads, rounding_mode="floor") == head
        columns = mine.repeat(3)
        parts.append({
            f"{prefix}c_attn.weight": columns.expand(weight.shape).clone(),
            f"{prefix}c_attn.bias": columns,
            f"{prefix}c_proj.weight": mine.unsqueeze(1).expand(output.shape).clone(),
        })  # fmt: skip
    return parts


def _separate_heads(children: dict[str, nn.Module], prefix: str, heads: int) -> list[Part]:
    """Llama and its like: weights are (outputs, inputs), with fewer heads of keys and values."""
    rows = {name: children[name].weight for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    size = rows["q_proj"].shape[0] // heads  # type: ignore[union-attr,index,operator]
    parts: list[Part] = []
    for head in range(heads):
        part: dict[str, Tensor | None] = {}
        for name in ("q_proj", "k_proj", "v_proj"):
            weight, bias = rows[name], getattr(children[name], "bias", None)
            assert isinstance(weight, Tensor)
            own = head * (weight.shape[0] // size) // heads
            mine = torch.arange(weight.shape[0]).div(size, rounding_mode="floor") == own
            part[f"{prefix}{name}.weight"] = mine.unsqueeze(1).expand(weight.shape).clone()
            if bias is not None:
                part[f"{prefix}{name}.bias"] = mine
        output = rows["o_proj"]
        assert isinstance(output, Tensor)
        mine = torch.arange(output.shape[1]).div(size, rounding_mode="floor") == head
        part[f"{prefix}o_proj.weight"] = mine.expand(output.shape).clone()
        parts.append(part)
    return parts


def _interleaved_heads(children: dict[str, nn.Module], prefix: str, heads: int) -> list[Part]:
    """GPT-NeoX: weights are (outputs, inputs), and the queries, keys and values of one head lie behind each other."""
    weight, output = children["query_key_value"].weight, children["dense"].weight
    assert isinstance(weight, Tensor)
    assert isinstance(output, Tensor)
    width = output.shape[1]
    if weight.shape[0] != 3 * width or width % heads:  # such as heads that share keys and values
        raise ValueError(
            f"model: {prefix}query_key_value.weight has {weight.shape[0]} rows; expected {3 * width}, three times the "
            f"columns of dense, in {heads} heads. Make the masks by hand, for slt.part_of."
        )
    parts: list[Part] = []
    for head in range(heads):
        mine = torch.arange(width).div(width // heads, rounding_mode="floor") == head
        rows = mine.repeat_interleave(3)
        part: dict[str, Tensor | None] = {
            f"{prefix}query_key_value.weight": rows.unsqueeze(1).expand(weight.shape).clone()
        }
        if getattr(children["query_key_value"], "bias", None) is not None:
            part[f"{prefix}query_key_value.bias"] = rows
        part[f"{prefix}dense.weight"] = mine.expand(output.shape).clone()
        parts.append(part)
    return parts
