"""Leave no trace: a context in which the random number generators and a module may be used and come back unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from slt.arguments import whole_seed
from slt.modes import set_eval_mode


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """A context that restores the generators of Python, NumPy, torch and CUDA as they were.

    Args:
        seed: Given, all of them are seeded with it inside, so that what is random there repeats.

    Raises:
        ValueError: The seed is not a whole number of at least 0.
    """
    seed = None if seed is None else whole_seed(seed)
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  (the user's data set may draw from the global generator)
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def uncompiled() -> AbstractContextManager[object]:
    """A context in which what ``torch.compile`` made runs as it was written, from torch 2.6 on.

    Inside ``vmap`` the compiler gives up on a model, or on a function that its loss calls, and does not come back to
    it: training would go on without it afterwards.

    Returns:
        It.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


@contextmanager
def preserved_module(module: nn.Module, *, eval_mode: bool) -> Iterator[None]:
    """A context that restores every submodule's modes, buffers and attributes: the same objects, with their values.

    What a forward pass keeps in an attribute, or registers as a buffer, is gone at the end. An object that it changes
    in place, such as a list, stays changed. A buffer that it changes in place has its values back, and counts as never
    changed, so that a backward pass that was open before can go on. Inside, ``nn.TransformerEncoder`` and
    ``nn.MultiheadAttention`` do not take their fast path for inference, which they do in eval mode where they see no
    gradient: inside ``vmap`` they never see one, and its kernel has none.

    Args:
        module: The module.
        eval_mode: Whether it is in eval mode inside; its modes are left as they are otherwise.

    Raises:
        ValueError: Its weights are others in eval mode; see :func:`slt.modes.set_eval_mode`.
    """
    containers = ("_parameters", "_buffers", "_modules")
    attributes = [
        (owner, {name: value for name, value in vars(owner).items() if name not in containers}, dict(owner._buffers))
        for owner in module.modules()
    ]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    versions = _versions_of([buffer for buffer, _ in values])
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if eval_mode and any(owner.training for owner in module.modules()):
            set_eval_mode(module)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for owner, kept, buffers in attributes:
            for name in [name for name in vars(owner) if name not in kept and name not in containers]:
                del owner.__dict__[name]
            owner.__dict__.update(kept)
            owner._buffers.clear()
            owner._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        versions.close()  # not before: they may be those of old only with the values of old


def _versions_of(tensors: Iterable[torch.Tensor]) -> ExitStack:
    """What gives tensors the versions of now again once it is closed: autograd takes no other as unchanged."""
    kept = ExitStack()
    preserve = getattr(torch.autograd, "_unsafe_preserve_version_counter", nullcontext)  # nothing public does it
    for tensor in tensors:
        if not tensor.is_inference():  # which has none
            kept.enter_context(preserve(tensor))
    return kept


def kept_tensors(module: nn.Module) -> dict[str, int]:
    """Identities of the tensors that a module holds beside its parameters, by name.

    They are buffers, plain attributes, and what is in dicts, lists and tuples among these.

    Args:
        module: The module.

    Returns:
        The identities.
    """
    containers = ("_parameters", "_buffers", "_modules")
    found: dict[str, int] = {}
    for prefix, owner in module.named_modules():
        plain = {name: value for name, value in vars(owner).items() if name not in containers}
        for holder in (owner._buffers, plain):
            for name, value in holder.items():
                found |= {f"{prefix}.{name}{place}": id(tensor) for place, tensor in _tensors_in(value)}
    return found


def _tensors_in(value: object, place: str = "", depth: int = 3) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in a value, with where they are in it; of containers in one another as deep as this."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif depth and isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors_in(item, f"{place}[{key!r}]", depth - 1)


def stochastic_modules(module: nn.Module) -> list[str]:
    """Names of submodules in train mode whose output depends on chance or on the batch: Dropout, BatchNorm."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return [
        f"{name or 'model'} ({type(submodule).__name__})"
        for name, submodule in module.named_modules()
        if submodule.training
        and isinstance(submodule, kinds)
        and not (isinstance(submodule, nn.modules.dropout._DropoutNd) and submodule.p == 0)
    ]


@contextmanager
def without_autocast() -> Iterator[None]:
    """A context outside any ``torch.autocast``: training under it says nothing of the precision of an estimate.

    A loss may enter it by itself. Its cache is off as well: it would keep the casts of weights that move in place.
    """
    with ExitStack() as left:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                left.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield
