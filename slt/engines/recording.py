"""Loss and gradient as a list of tensor operations, written down once and run without the Python that led to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from slt.loss import differ

LossAndGrad = Callable[[Tensor, Any, float], tuple[Tensor, Tensor]]
Program = Callable[..., tuple[Tensor, ...]]

CALLS_UNTIL_RECORDED = 50  # of one form; to write it down takes the time of some ten to twenty
# Calls of a recording that are held against the function: the first ones away from the position at which it was made,
# a second piece of the data among them, and then one in so many: a prime, so that every piece has its turn.
CHECKED_AT_FIRST, CHECKED_EVERY = 4, 251
MOST_FORMS = 64  # or what differs from call to call would be remembered without end
# Beyond, the operations themselves take the time, and writing them down takes long or much memory.
MOST_OPERATIONS, MOST_BYTES = 3000, 64 << 20
# Operations that draw random numbers, give a number of a tensor to Python, have a shape that depends on numbers, or
# change the shape of a tensor, which may be a constant's.
NOT_FIXED = (
    torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)  # fmt: skip
CONSTANTS = (int, float, bool, str, bytes, type(None))


class Form(NamedTuple):
    """What calls have in common that one list of operations can serve.

    Attributes:
        position: Shape, strides and dtype of the position.
        weight: Of the batch.
        structure: Of the data, in words: torch before 2.7 cannot hash it.
        leaves: Of the data: shape, strides and dtype of each tensor, and other values as they are.
        autocast: Whether torch computes in another dtype, and in which.
    """

    position: tuple[Any, ...]
    weight: float
    structure: str
    leaves: tuple[Any, ...]
    autocast: tuple[Any, ...]


class Recorded:
    """The operations of one form, and what tells whether they may still stand for the function.

    Attributes:
        program: Position and tensors of the data → loss and gradient.
        position: At which they were written down; results there do not tell what depends on it.
        trials: How many checks there were elsewhere, of the first.
        calls: Since.
    """

    def __init__(self, program: Program, position: Tensor):
        self.program, self.position = program, position.clone()
        self.trials, self.calls = 0, 0

    def is_due(self) -> bool:
        """Whether the next call is to be held against the function; counts it."""
        self.calls += 1
        return self.trials < CHECKED_AT_FIRST or self.calls % CHECKED_EVERY == 0

    @torch.no_grad()
    def results(self, position: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...] | None:
        """Loss and gradient; None where an operation fails, as it may in the function itself."""
        try:
            return self.program(position, *tensors)
        except Exception:
            return None

    def agrees(self, given: tuple[Tensor, ...] | None, found: tuple[Tensor, Tensor], position: Tensor) -> bool:
        """Whether results of the program are those of the function at this position."""
        if self.trials < CHECKED_AT_FIRST and not torch.equal(position, self.position):
            self.trials += 1
        return given is not None and all(same_bits(one, other) for one, other in zip(given, found, strict=True))


class Recording:
    """A function of positions and data, after fifty calls of a form as the operations that it consists of.

    Vectorisation and differentiation take three quarters of the time of a small loss, and come to the same operations
    at every call. They are written down as they are carried out; the tensors of the data are arguments, everything else
    is a constant, read where it was. A recording is used only where its results are those of the function **bit by
    bit** (but for the sign of zero): it is held against the function at its first calls, and at every 251st from there
    on. What draws random numbers, keeps a state in tensors, or reads their numbers through torch is not recorded.

    Args:
        function: Position ``(chains, dim)``, data and weight → loss ``(chains,)`` and its gradient ``(chains, dim)``.

    Attributes:
        function: The same.
        differed: A chain's loss by a recording that had been right before, and by the function, where they differ by
            more than rounding: the function reads what changes outside of it. None elsewhere.
    """

    def __init__(self, function: LossAndGrad):
        self.function = function
        self.differed: tuple[float, float] | None = None
        self._calls: dict[Form, int] = {}
        self._recorded: dict[Form, Recorded | None] = {}

    def forget(self) -> None:
        """Begin anew: what is constant may have changed."""
        self._calls.clear()
        self._recorded.clear()

    def __call__(self, position: Tensor, data: Any, weight: float) -> tuple[Tensor, Tensor]:
        """Loss and gradient, which belong to the caller."""
        leaves, structure = ([], None) if data is None else pytree.tree_flatten(data)
        form = _form_of(position, weight, structure, leaves)
        if form is None:
            return self.function(position, data, weight)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if form not in self._recorded:
            return self._not_yet_recorded(form, position, data, weight, tensors)
        recorded = self._recorded[form]
        due = recorded is not None and recorded.is_due()
        given = None if recorded is None else recorded.results(position, tensors)
        if given is not None and not due:
            loss, gradient = given
            return loss, gradient
        found = self.function(position, data, weight)
        if recorded is not None:
            settled = recorded.trials >= CHECKED_AT_FIRST
            if not recorded.agrees(given, found, position):
                self._recorded[form] = None
                if settled and given is not None:
                    self.differed = difference(given[0], found[0]) or self.differed
        return found

    def _not_yet_recorded(
        self, form: Form, position: Tensor, data: Any, weight: float, tensors: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient by the function, which is written down where it has been called often."""
        calls = self._calls.get(form, 0) + 1
        if calls > 1 or len(self._calls) < MOST_FORMS:
            self._calls[form] = calls
        found = self.function(position, data, weight)
        if calls > CALLS_UNTIL_RECORDED:
            program = write_down(lambda: self.function(position, data, weight), [position, *tensors])
            recorded = None if program is None else Recorded(program, position)
            good = recorded is not None and recorded.agrees(recorded.results(position, tensors), found, position)
            self._recorded[form] = recorded if good else None
        return found


class NotFixedError(Exception):
    """What is done is no fixed list of operations, or too long a one."""


class Place:
    """What stands for a tensor, or a tuple of them, among the arguments of an operation that is written down."""

    __slots__ = ("number",)

    def __init__(self, number: int):
        self.number = number


class Operation(NamedTuple):
    """One operation.

    Attributes:
        function: What is called; None where one of a tuple is taken.
        args: Its arguments, with places for the tensors.
        kwargs: Likewise those with names.
        place: Of what it gives.
        writes: Whether it writes to a tensor.
    """

    function: Any
    args: Any
    kwargs: Any
    place: Place
    writes: bool = False

    def reads(self) -> set[int]:
        """The numbers of the places that it reads."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return {leaf.number for leaf in leaves if isinstance(leaf, Place)}


class Notes(TorchDispatchMode):
    """Writes down the operations on tensors that are carried out, below vectorisation and differentiation.

    Args:
        arguments: The tensors that will be others at another call; all that is not made from them is constant.

    Raises:
        NotFixedError: What is done depends on chance or on numbers, or changes what was there before; by any operation
            inside.
    """

    def __init__(self, arguments: Sequence[Tensor]):
        super().__init__()
        self.operations: list[Operation] = []
        self.constants: dict[int, Tensor] = {}
        self._num_arguments, self._num_places, self._num_bytes = len(arguments), 0, 0
        self._places, self._outside = WeakTensorKeyDictionary(), set[int]()
        for tensor in arguments:
            self._outside.add(tensor.untyped_storage().data_ptr())
            self._new_place(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to tell the compiler to look away, torch would import it, which takes a second or two

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tagged = any(tag in func.tags for tag in NOT_FIXED)
        if tagged and not _is_without_dropout(func, args, kwargs) and not _is_without_masks(func, args):
            raise NotFixedError(f"{func} is not the same at every call")
        if len(self.operations) >= MOST_OPERATIONS:
            raise NotFixedError(f"more than {MOST_OPERATIONS} operations")
        noted = pytree.tree_map_only(Tensor, self.place_of, (args, kwargs))
        if func._schema.is_mutable:
            self._check_written(func, args, kwargs)
        found = func(*args, **kwargs)
        if func is torch.ops.aten.detach.default:  # without gradients it is its argument
            self._places[found] = noted[0][0]
            return found
        function = func if func._schema.is_mutable else _quicker(func, args, kwargs, found)
        place = self._new_place(found)
        self.operations.append(Operation(function, noted[0], noted[1], place, writes=func._schema.is_mutable))
        if isinstance(found, tuple | list):
            for number, part in enumerate(found):
                if isinstance(part, Tensor):
                    self.operations.append(Operation(None, (place, number), {}, self._new_place(part)))
        return found

    def _check_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse to write to what was there before: a state, which calls of the program would change too."""
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in pytree.tree_leaves(given.get(argument.name)):
                    if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self._outside:
                        raise NotFixedError(f"{func} writes to a constant or an argument")

    def _new_place(self, found: Any) -> Place:
        place = Place(self._num_places)
        self._num_places += 1
        if isinstance(found, Tensor):
            self._places[found] = place
            self._num_bytes += found.numel() * found.element_size()
            if self._num_bytes > MOST_BYTES:
                raise NotFixedError(f"more than {MOST_BYTES >> 20} MiB")
        return place

    def place_of(self, tensor: Tensor) -> Place:
        """What stands for a tensor: that of what made it last, or its own."""
        place = self._places.get(tensor)
        if place is None:
            place = self._new_place(tensor)
            self.constants[place.number] = tensor.detach()
            self._outside.add(tensor.untyped_storage().data_ptr())
        return place

    def program(self, results: Iterable[Tensor]) -> Program:
        """A function of tensors in the places of the arguments that gives these results."""
        returned = [self.place_of(tensor).number for tensor in results]
        needed, operations = set(returned), []
        for operation in reversed(self.operations):  # what nobody reads is left out
            if operation.writes or operation.place.number in needed:
                operations.append(operation)
                needed |= operation.reads()
        return _compiled(operations[::-1], self.constants, self._num_arguments, returned)


def write_down(call: Callable[[], Iterable[Tensor]], arguments: Sequence[Tensor]) -> Program | None:
    """Call a function once, and make a program of the operations that it carries out.

    Args:
        call: The function, without arguments.
        arguments: The tensors that it reads and that will be others at another call.

    Returns:
        A function of such tensors that gives what ``call`` gives; None where the operations are not fixed, or there
        are too many of them.
    """
    try:
        with Notes(arguments) as notes:
            found = tuple(call())
        return notes.program(found)
    except Exception:  # whatever the reason, the function itself goes on to serve
        return None


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, strides and dtype, NaN where the other has NaN."""
    if one.dtype != other.dtype or one.shape != other.shape or one.stride() != other.stride():
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def difference(given: Tensor, found: Tensor) -> tuple[float, float] | None:
    """Two losses of a chain that differ by more than rounding, of the first chain with such; None where there is none.

    Args:
        given: Losses ``(chains,)``.
        found: Others of the same chains. One that is not finite in both is the same.

    Returns:
        The two.
    """
    for one, other in zip(given.tolist(), found.tolist(), strict=True):
        finite = math.isfinite(one) and math.isfinite(other)
        if differ(one, other) if finite else math.isfinite(one) != math.isfinite(other):
            return one, other
    return None


def _quicker(func: Any, args: Any, kwargs: Any, found: Any) -> Any:
    """The function of ``torch`` or ``Tensor`` that an overload is behind, where it gives the same bits, or itself.

    It parses its arguments in a third of the time: 1.7 µs a product of small tensors in place of 4.8.

    Args:
        func: The overload.
        args: Of a call.
        kwargs: Of this call.
        found: What it gave.

    Returns:
        A function of such arguments.
    """
    if func.namespace != "aten" or not isinstance(found, Tensor):
        return func
    for owner in (torch, Tensor):
        try:
            quicker = getattr(owner, func._schema.name.partition("::")[2])
            if same_bits(quicker(*args, **kwargs), found):
                return quicker
        except (TypeError, RuntimeError, AttributeError):  # there is none, or of another form
            continue
    return func


def _is_without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that may drop out, as attention does, is asked to drop nothing."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return "dropout_p" in names and not given.get("dropout_p", 0.0)


def _is_without_masks(func: Any, args: Any) -> bool:
    """Whether an operation takes entries by their numbers, whose count does not depend on values as that of a mask."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


def _compiled(
    operations: list[Operation], constants: dict[int, Tensor], num_arguments: int, returned: list[int]
) -> Program:
    """The operations as a Python function in which every tensor is a local variable, forgotten after its last use."""
    names: dict[str, Any] = {f"v{number}": tensor for number, tensor in constants.items()}

    def text(value: Any) -> str:
        if isinstance(value, Place):
            return f"v{value.number}"
        if isinstance(value, list | tuple) and any(isinstance(leaf, Place) for leaf in pytree.tree_leaves(value)):
            return f"[{', '.join(map(text, value))}]"
        names[name := f"c{len(names)}"] = value
        return name

    last_use: dict[int, int] = {}
    for line, operation in enumerate(operations):
        last_use.update(dict.fromkeys([*operation.reads(), operation.place.number], line))
    kept, lines = {*returned, *constants, *range(num_arguments)}, []
    for line, operation in enumerate(operations):
        if operation.function is None:
            lines.append(f"v{operation.place.number} = v{operation.args[0].number}[{operation.args[1]}]")
        else:
            given = [text(value) for value in operation.args]
            given += [f"{name}={text(value)}" for name, value in operation.kwargs.items()]
            lines.append(f"v{operation.place.number} = {text(operation.function)}({', '.join(given)})")
        done = {number for number in (*operation.reads(), operation.place.number) if last_use[number] == line} - kept
        if done:
            lines.append(f"del {', '.join(f'v{number}' for number in sorted(done))}")
    head = f"def program({', '.join(f'v{number}' for number in range(num_arguments))}):"
    tail = f"return ({' '.join(f'v{number},' for number in returned)})"
    exec("\n    ".join([head, *lines, tail]), names)  # of names that are all made here
    return names["program"]


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
    autocast = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
    return Form((position.shape, position.stride(), position.dtype), weight, str(structure), tuple(forms), autocast)
