"""Loss and gradient as a list of tensor operations, written down once and run without the Python that led to them."""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode

LossAndGrad = Callable[[Tensor, Any, float], tuple[Tensor, Tensor]]
Program = Callable[..., tuple[Tensor, Tensor]]

CALLS_UNTIL_RECORDED = 100  # of one form; to write it down takes the time of some twenty
# Of the calls of a recording, which are held against the function: some at first, among them a second piece of the
# data, and then one in so many.
CHECKED_AT_FIRST, CHECKED_EVERY = 4, 1000
# Operations that draw random numbers, give a number of a tensor to Python, or a shape that depends on numbers.
NOT_FIXED = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
CONSTANTS = (int, float, bool, str, bytes, type(None))


class Form(NamedTuple):
    """What calls have in common that one list of operations can serve.

    Attributes:
        position: Shape, strides and dtype of the position.
        weight: Of the batch.
        structure: Of the data.
        leaves: Of the data: shape, strides and dtype of each tensor, and other values as they are.
    """

    position: tuple[Any, ...]
    weight: float
    structure: Any
    leaves: tuple[Any, ...]


class Recording:
    """A function of positions and data, from its hundredth call of a form on as the operations that it consists of.

    Vectorisation and differentiation take three quarters of the time of a small loss, and come to the same operations
    at every call. They are written down as they are carried out; the tensors of the data are arguments, everything else
    is a constant. A recording is used only where its results are those of the function **bit by bit**. It is held
    against the function at its first calls, and at every thousandth from there on: a loss that reads what changes
    outside of it is not recorded, or not for longer.

    Args:
        function: Position ``(chains, dim)``, data and weight → loss ``(chains,)`` and its gradient ``(chains, dim)``.
    """

    def __init__(self, function: LossAndGrad):
        self.function = function
        self._calls: dict[Form, int] = {}
        self._programs: dict[Form, Program | None] = {}

    def __call__(self, position: Tensor, data: Any, weight: float) -> tuple[Tensor, Tensor]:
        """Loss and gradient, which belong to the caller."""
        leaves, structure = ([], None) if data is None else pytree.tree_flatten(data)
        form = _form_of(position, weight, structure, leaves)
        if form is None:
            return self.function(position, data, weight)
        calls = self._calls[form] = self._calls.get(form, 0) + 1
        since = calls - CALLS_UNTIL_RECORDED
        program = self._programs.get(form)
        if since <= 0 or (program is None and form in self._programs):
            return self.function(position, data, weight)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if program is not None and since > CHECKED_AT_FIRST and since % CHECKED_EVERY:
            with torch.no_grad():
                return program(position, *tensors)
        found = self.function(position, data, weight)
        if program is None:
            program = _written_down(self.function, position, data, weight, tensors)
        agrees = program is not None and _agrees(program, found, position, tensors)
        self._programs[form] = program if agrees else None
        return found


class NotFixedError(Exception):
    """What is done is no fixed list of operations."""


class Notes(TorchDispatchMode):
    """Writes down the operations on tensors that are carried out, below vectorisation and differentiation.

    Args:
        arguments: The tensors that will be others at another call; all that is not made from them is constant.

    Raises:
        NotFixedError: What is done depends on chance or on numbers; by any operation inside.
    """

    def __init__(self, arguments: list[Tensor]):
        super().__init__()
        self.graph, self.constants = fx.Graph(), nn.Module()
        self._kept: list[Any] = list(arguments)  # or another tensor might be taken for one that is gone
        self._nodes = {id(tensor): self.graph.placeholder(f"argument_{i}") for i, tensor in enumerate(arguments)}
        self._num_constants = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to tell the compiler to look away, torch would import it, which takes a second or two

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(tag in func.tags for tag in NOT_FIXED):
            raise NotFixedError(func)
        node = self.graph.call_function(func, *pytree.tree_map_only(Tensor, self.node_of, (args, kwargs)))
        found = func(*args, **kwargs)
        self._kept.append(found)
        if isinstance(found, Tensor):
            self._nodes[id(found)] = node
        elif isinstance(found, tuple | list):
            for place, part in enumerate(found):
                if isinstance(part, Tensor):
                    self._nodes[id(part)] = self.graph.call_function(getitem, (node, place))
        return found

    def node_of(self, tensor: Tensor) -> fx.Node:
        """What stands for a tensor: what made it, or itself."""
        if id(tensor) not in self._nodes:
            name = f"constant_{self._num_constants}"
            self._num_constants += 1
            self._kept.append(tensor)
            setattr(self.constants, name, tensor.detach())
            self._nodes[id(tensor)] = self.graph.get_attr(name)
        return self._nodes[id(tensor)]


class Quicker(fx.Interpreter):
    """Puts torch's own functions in the place of the overloads behind them, where they give the same bits.

    They parse their arguments in half the time: 1.7 µs a product of small tensors in place of 4.8.
    """

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node, whose target is another one afterwards where a quicker one serves."""
        found, overload = super().run_node(n), n.target
        if not isinstance(overload, OpOverload) or not isinstance(found, Tensor) or overload._schema.is_mutable:
            return found
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        for owner in (torch, Tensor):
            try:
                quicker = getattr(owner, str(overload).split(".")[1])
                if _same_bits(quicker(*args, **kwargs), found):
                    n.target = quicker
                    break
            except (TypeError, RuntimeError, AttributeError):  # there is none, or of another form
                continue
        return found


def _written_down(
    function: LossAndGrad, position: Tensor, data: Any, weight: float, tensors: list[Tensor]
) -> Program | None:
    """The operations of a call; None where they cannot be written down."""
    arguments = [position, *tensors]
    try:
        with Notes(arguments) as notes:
            found = function(position, data, weight)
        notes.graph.output(tuple(notes.node_of(part) for part in found))
        module = fx.GraphModule(notes.constants, notes.graph)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.detach.default:  # without gradients it is its argument
                node.replace_all_uses_with(node.args[0])
        module.graph.eliminate_dead_code()
        with torch.no_grad():
            Quicker(module).run(*arguments)
        module.recompile()
    except Exception:  # whatever the reason, the function itself goes on to serve
        return None
    return module.forward


@torch.no_grad()
def _agrees(program: Program, found: tuple[Tensor, Tensor], position: Tensor, tensors: list[Tensor]) -> bool:
    """Whether the program gives these results, in memory that is not handed out twice."""
    one, other = program(position, *tensors), program(position, *tensors)
    taken = {tensor.untyped_storage().data_ptr() for tensor in (position, *tensors, *other)}
    return all(
        _same_bits(first, expected) and _same_bits(second, expected) and first.untyped_storage().data_ptr() not in taken
        for first, second, expected in zip(one, other, found, strict=True)
    )


def _form_of(position: Tensor, weight: float, structure: Any, leaves: list[Any]) -> Form | None:
    """The form of a call; None where it is to be left alone, or cannot be told from others."""
    if position.device.type != "cpu" or is_in_torch_dispatch_mode():
        return None  # a GPU's launches are captured, a whole step at a time; and somebody else is writing down
    forms: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            forms.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device))
        elif isinstance(leaf, CONSTANTS):
            forms.append((type(leaf), leaf))
        else:
            return None
    return Form((position.shape, position.stride(), position.dtype), weight, structure, tuple(forms))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, strides and dtype, NaN where the other has NaN."""
    if one.dtype != other.dtype or one.shape != other.shape or one.stride() != other.stride():
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
