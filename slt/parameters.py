"""Which parameters are sampled, and how they lie in one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn

from samplers.noise import Shard
from slt.arguments import check_shapes
from slt.overlaps import overlapping
from slt.shards import is_sharded, local, reshard, shards_of_parameters

Selector = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None

# Blocks of so many elements start where the allocator would place a tensor of their own (256 bytes in float32), and
# matrix kernels run at full speed on their views.
ALIGNMENT = 64
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class SampledParameters:
    """The sampled parameters of a module, as one flat vector.

    Tied weights, which are one parameter under several names, appear once; two parameters over the same memory are
    refused. Parameters with ``requires_grad=False`` are frozen and left alone. In the vector, those whose size is a
    multiple of 64 come first and the others after them, each group in the module's own order: every aligned parameter
    then starts on an aligned address, with no padding between.

    Of parameters that ``fully_shard`` has spread over processes, the vector is this process's part.

    Attributes:
        names: Of the parameters, in the order of the vector.
        shapes: Of the parameters, as they are here.
        dim: The length of the vector.
        num_weights: Of all processes.
        shards: Which columns of the whole vector are here; None where all are.
        dtype: Of the parameters. The vector of parameters of sixteen bits is in float32, so that small steps add up.

    Args:
        model: The module.
        selector: None for every trainable parameter; a name, a glob such as ``"layers.*.weight"`` or several of
            them; or a predicate ``(name, parameter) → bool``.

    Raises:
        ValueError: Nothing matched, or the matched parameters are frozen, of mixed or unusable dtypes or devices,
            with sparse gradients, or over memory of other parameters; or the module has lazy parts that have seen no
            batch.
    """

    def __init__(self, model: nn.Module, selector: Selector = None):
        check_shapes(model)
        reshard(model)  # or parameters are what a forward pass has left
        chosen = _select(model, selector)
        _check(chosen, selector)
        _check_embeddings(model, chosen)
        _check_memory(model, chosen)
        ordered = sorted(chosen, key=lambda item: item[1].numel() % ALIGNMENT != 0)  # a stable sort
        self.model = model
        self.names: tuple[str, ...] = tuple(name for name, _ in ordered)
        self.shapes: tuple[torch.Size, ...] = tuple(local(parameter).shape for _, parameter in ordered)
        self.sizes: list[int] = [prod(shape) for shape in self.shapes]
        self.dim: int = sum(self.sizes)
        self.num_weights: int = sum(parameter.numel() for _, parameter in ordered)
        self._parameters = [parameter for _, parameter in ordered]
        whole = not is_sharded(self._parameters[0])
        self.shards: tuple[Shard, ...] | None = None if whole else shards_of_parameters(self._parameters)
        self.dtype: torch.dtype = self._parameters[0].dtype
        self._owners = [_owners(model, parameter) for parameter in self._parameters]

    def flatten(self) -> Tensor:
        """The current values as one vector ``(dim,)``, a copy."""
        kept = torch.float32 if self.dtype in SIXTEEN_BITS else self.dtype
        return torch.cat([local(parameter.detach()).reshape(-1).to(kept) for parameter in self._parameters])

    def tensors(self) -> list[nn.Parameter]:
        """The module's own parameters, in the order of the vector."""
        return list(self._parameters)

    def views(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector ``(dim,)``, one per parameter, in its shape."""
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def cast(self, views: list[Tensor]) -> list[Tensor]:
        """Views of a vector as the module computes with them: rounded, where that is in sixteen bits."""
        return [view.to(self.dtype) for view in views] if self.dtype in SIXTEEN_BITS else views

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector ``(dim,)`` by parameter name."""
        return dict(zip(self.names, self.views(vector), strict=True))

    def bind(self, tensors: Sequence[Tensor]) -> None:
        """Let the module compute with these tensors; only inside :meth:`borrowed`, which undoes it."""
        for owners, tensor in zip(self._owners, tensors, strict=True):
            for module, key in owners:
                module._parameters[key] = tensor  # type: ignore[assignment]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """A context at whose end the module holds its own parameter objects again, whatever happened.

        The parameters themselves are set aside, not changed: their values, gradients, hooks and identity, by which
        an optimizer knows them, are never touched.
        """
        try:
            yield
        finally:
            self.bind(self._parameters)


def _select(model: nn.Module, selector: Selector) -> list[tuple[str, nn.Parameter]]:
    named = list(model.named_parameters())
    if not named:
        raise ValueError(f"model: {type(model).__name__} has no parameters; there is nothing to sample.")
    if selector is None:
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if callable(selector):
        return [(name, parameter) for name, parameter in named if selector(name, parameter)]
    if isinstance(selector, Mapping):  # a part, of which the names alone would be taken
        raise ValueError(
            f"parameters: a dict of {len(selector)} names; expected names or globs. Entries of weights are a part: "
            "slt.estimate_llc(slt.part_of(model, part), data, loss_fn)."
        )
    patterns = [selector] if isinstance(selector, str) else list(selector) if isinstance(selector, Iterable) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"parameters: {selector!r}; expected a name, a glob, several of them, a predicate (name, parameter) → "
            "bool, or None for every trainable one."
        )
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)  # a tied weight answers to each of its names
    matched = dict.fromkeys(patterns, False)
    chosen = []
    for name, parameter in named:
        hits = [pattern for pattern in patterns if any(fnmatchcase(alias, pattern) for alias in aliases[id(parameter)])]
        matched.update(dict.fromkeys(hits, True))
        if hits:
            chosen.append((name, parameter))
    missing = [pattern for pattern, hit in matched.items() if not hit]
    if missing:
        raise ValueError(
            f"parameters: {missing!r} matched no parameter of {type(model).__name__}. Its parameters are "
            f"{first_few([name for name, _ in named])}."
        )
    return chosen


def _check(chosen: list[tuple[str, nn.Parameter]], selector: Selector) -> None:
    if not chosen:
        what = "no parameter has requires_grad=True" if selector is None else "the predicate matched no parameter"
        raise ValueError(f"parameters: {selector!r}; {what}. Choose parameters by name, glob or predicate.")
    if len({is_sharded(parameter) for _, parameter in chosen}) > 1:
        whole = [name for name, parameter in chosen if not is_sharded(parameter)]
        raise ValueError(
            f"parameters: {first_few(whole)} are whole in every process, and others are sharded. Apply fully_shard to "
            "the whole model too, or choose parameters of one kind."
        )
    if not any(parameter.numel() for _, parameter in chosen):
        names = first_few([name for name, _ in chosen])
        raise ValueError(f"parameters: {names} have no elements; there is nothing to sample. Choose others.")
    imaginary = [name for name, parameter in chosen if parameter.is_complex()]
    if imaginary:
        raise ValueError(
            f"parameters: {first_few(imaginary)} are complex; expected real ones. Hold the real and the imaginary part "
            "as two real parameters, and put them together by torch.complex in the forward pass; or leave them out."
        )
    integers = [name for name, parameter in chosen if not parameter.is_floating_point()]
    if integers:
        raise ValueError(
            f"parameters: {first_few(integers)} are not floating point, so they have no gradient to sample with. "
            "Leave them out."
        )
    frozen = [name for name, parameter in chosen if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"parameters: {first_few(frozen)} are frozen (requires_grad=False). Call requires_grad_() on what should "
            "be sampled, or leave them out."
        )
    dtypes = sorted({str(parameter.dtype) for _, parameter in chosen})
    if len(dtypes) > 1 or chosen[0][1].dtype not in (torch.float32, torch.float64, *SIXTEEN_BITS):
        raise ValueError(
            f"parameters: of dtype {', '.join(dtypes)}; expected one dtype, float32 or float64. Sample model.float(), "
            "and use autocast inside loss_fn for speed."
        )
    devices = sorted({str(parameter.device) for _, parameter in chosen})
    if len(devices) > 1:
        raise ValueError(f"parameters: on devices {', '.join(devices)}; expected one device. Move the model to one.")
    if devices == ["meta"]:
        raise ValueError(
            "parameters: on the meta device, which has shapes and no values. Build the model on another, or call "
            "model.to_empty(device='cpu') and load its weights."
        )


def _check_embeddings(model: nn.Module, chosen: list[tuple[str, nn.Parameter]]) -> None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, kinds) and module.sparse}
    names = [name for name, parameter in chosen if id(parameter) in sparse]
    if names:
        raise ValueError(
            f"parameters: {first_few(names)} are of an embedding with sparse=True, whose gradients are sparse; "
            "expected dense ones. Build it with sparse=False, or set .sparse = False on it: they are the same numbers."
        )


def check_memory(model: nn.Module, selector: Selector = None) -> None:
    """Refuse two parameters over the same memory, before a copy is made of the module, which would part them.

    Args:
        model: The module.
        selector: Of the parameters that are to be sampled.

    Raises:
        ValueError: One of these shares memory with another parameter of the module; or nothing matched.
    """
    _check_memory(model, _select(model, selector))


def _check_memory(model: nn.Module, chosen: list[tuple[str, nn.Parameter]]) -> None:
    """Refuse two parameters over the same memory: training moves both, a sampler either of them by itself."""
    own = {id(parameter) for _, parameter in chosen}
    shared = overlapping(chosen, [item for item in model.named_parameters() if id(item[1]) not in own])
    if shared is not None:
        first, second = sorted(shared, key=[name for name, _ in model.named_parameters()].index)
        raise ValueError(
            f"parameters: {first} and {second} are two parameters over the same memory, as by {second}.data = "
            f"{first}.data, so that one would be moved without the other; expected weights that are tied to be one "
            f"parameter. Tie them by {second} = {first}, where shapes differ by a view of it in the forward pass; or "
            f"part them by {second}.data = {second}.data.clone()."
        )


def _owners(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    return [(module, key) for module in model.modules() for key, own in module._parameters.items() if own is parameter]


def first_few(names: Sequence[str], count: int = 5) -> str:
    """Names for a message, with how many more there are.

    Args:
        names: All of them.
        count: How many to write out.

    Returns:
        The text.
    """
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
