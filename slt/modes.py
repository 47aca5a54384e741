"""Eval mode, of a module that may have its own idea of what that is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slt.shards import local


def set_eval_mode(module: nn.Module) -> None:
    """Put a module in eval mode, and refuse one whose weights are others there.

    Layers that merge an adapter into a weight do so in ``eval()``, and undo it in ``train()``. What was merged has no
    part in the loss, so that λ̂ would be of another function; and the weight would not come back to the last bit.
    A ``train()`` or ``eval()`` of a module's own that changes no number of a parameter is called as any other.

    Args:
        module: The module. Where it is refused its parameters are the same objects, with the same values in the same
            memory; what else its own code has changed is the caller's to restore.

    Raises:
        ValueError: A number of a parameter is another in eval mode.
    """
    if not any(map(_has_own_mode, module.modules())):
        module.eval()
        return
    watch = _Watch(module)
    changed: list[str] = []
    try:
        with watch:
            module.eval()
    finally:
        changed = watch.restore()
    if changed:
        owner = _owner(module, changed[0])
        raise ValueError(
            f"model: {owner} changes {', '.join(changed[:3])} when it is put in eval mode, as layers do that merge an "
            "adapter into a weight: what would be measured is not what is trained. Build it so that it does not "
            "(merge_weights=False in loralib), or leave its mode to you: eval_mode=False."
        )


def _has_own_mode(module: nn.Module) -> bool:
    methods = ((module.train, nn.Module.train), (module.eval, nn.Module.eval))
    return any(getattr(method, "__func__", None) is not usual for method, usual in methods)


def _owner(module: nn.Module, name: str) -> str:
    """The innermost submodule with a mode of its own around a parameter, in words."""
    around = [(path, part) for path, part in module.named_modules() if not path or name.startswith(f"{path}.")]
    path, part = next((item for item in reversed(around) if _has_own_mode(item[1])), ("", module))
    return f"{path or 'it'} ({type(part).__name__})"


class _Held(NamedTuple):
    """A parameter before the mode is set: where the module has it, and its memory, which it may be made to leave."""

    name: str
    owner: nn.Module
    key: str
    parameter: nn.Parameter
    memory: Tensor
    requires_grad: bool


class _Watch(TorchDispatchMode):
    """A context that copies a parameter when, and only when, an operation is about to write on its memory.

    The version of a parameter does not tell: what is written on its ``.data`` leaves it as it is.

    Args:
        module: With the parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = [
            _Held(f"{path}.{key}" if path else key, owner, key, parameter, parameter.data, parameter.requires_grad)
            for path, owner in module.named_modules()
            for key, parameter in owner._parameters.items()
            # a run may have left tensors of many chains in its place
            if isinstance(parameter, nn.Parameter) and parameter.layout == torch.strided
        ]
        self.copies: dict[int, Tensor] = {}  # by identity of the parameter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before_write(args[place] if place < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _before_write(self, written: Any) -> None:
        tensors = written if isinstance(written, list | tuple) else [written]
        strided = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.layout == torch.strided]
        storages = {_storage(tensor) for tensor in strided}
        for held in self.held:
            if id(held.parameter) not in self.copies and _storage(held.memory) in storages:
                self.copies[id(held.parameter)] = held.memory.clone()

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Give the module its parameters back, and them their memory and values.

        Returns:
            Names of those that had other values.
        """
        changed = [held.name for held in self.held if self._differs(held)]
        for held in self.held:
            if _form(held.parameter) != _form(held.memory):
                held.parameter.data = held.memory
            if id(held.parameter) in self.copies:
                held.memory.copy_(self.copies[id(held.parameter)])
            held.parameter.requires_grad_(held.requires_grad)
            held.owner._parameters[held.key] = held.parameter
        return changed

    def _differs(self, held: _Held) -> bool:
        now = held.owner._parameters.get(held.key)
        if now is None:
            return True
        before = self.copies.get(id(held.parameter), held.memory)
        if before is held.memory and _form(now) == _form(before):  # nothing was written, and nothing exchanged
            return False
        now = local(now.detach())
        before = local(before)
        if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
            return True
        return not bool(((now == before) | (now.isnan() & before.isnan())).all())


def _storage(tensor: Tensor) -> int:
    return local(tensor).untyped_storage().data_ptr()


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies and how it is read."""
    here = local(tensor.detach())
    return here.data_ptr(), here.shape, here.stride(), here.dtype, here.device
