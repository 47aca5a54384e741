"""A kernel's step as one compiled program: traced once, without the Python and the passes over memory between."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from samplers.kernel import Info, Kernel
from samplers.noise import CHUNK_COLUMNS, ColumnStreams
from samplers.potential import Batch, Potential

RANDOM = (torch.randn, torch.rand)
# A compiled step may round otherwise than the step itself, by so much of the largest number of a tensor, for positions
# in float64 and in less; and the position by so much of the largest move, or a small step without noise would pass.
AGREEMENT, AGREEMENT_OF_OTHERS = 1e-8, 1e-2
ROUNDINGS = 64  # of the position itself, in units of its precision
ATTEMPTS = 3


def fast_tanh(x: Tensor) -> Tensor:
    """Tanh in float32, within 4e-7 of itself at any size of it, from one exponential.

    Half of the time of a small tanh network goes to torch's own, which is good to 6e-8. Below 1/4, where
    1 − 2/(e^{2x} + 1) would lose digits, it is the series to x⁹.

    Args:
        x: Of any shape.

    Returns:
        tanh x; NotImplemented for other dtypes, which leaves the operation as it is.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    beyond = torch.copysign(1 - 2 / ((2 * x.abs()).exp() + 1), x)
    return torch.where(square < 1 / 16, series, beyond)


DECOMPOSITIONS = {torch.ops.aten.tanh.default: fast_tanh}


class Draw(NamedTuple):
    """A call that draws random numbers, but for the generator."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Program(NamedTuple):
    """A compiled step, and what it takes to draw the random numbers that it is given."""

    function: Callable[..., list[Tensor]]
    draws: list[Draw]

    def numbers(self, generator: torch.Generator) -> list[Tensor]:
        """The random numbers of one step, in the order in which the kernel draws them."""
        return [draw.function(*draw.args, **draw.kwargs, generator=generator) for draw in self.draws]


class _Drawing(TorchFunctionMode):
    """Writes down what is drawn, or gives out what was drawn before in the same order."""

    def __init__(self, generator: torch.Generator, given: list[Tensor] | None = None):
        super().__init__()
        self.generator, self.given = generator, given
        self.draws: list[Draw] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not self.generator:  # what others draw is theirs; a loss that does so is found by its values
            return func(*args, **kwargs)
        if func not in RANDOM:
            raise NotImplementedError(f"it draws by {func.__name__}")
        self.draws.append(Draw(func, args, {name: value for name, value in kwargs.items() if name != "generator"}))
        return func(*args, **kwargs) if self.given is None else self.given[len(self.draws) - 1]


class CompiledStep:
    """``step_`` of a kernel on one potential, traced at its first call and compiled by torch's inductor.

    Random numbers are drawn outside of the program, in the order in which the kernel draws them, so that the chain is
    that of ``kernel.step_`` up to rounding. At the first call for each shape of state and batch, the program is held
    against ``kernel.step_`` on the same state and the same numbers.

    Args:
        kernel: Whose step; all its numbers, those of the potential and its data become part of the program.
        potential: The target.

    Raises:
        ValueError: At the first call: the step cannot be traced or compiled, or the program disagrees with it.
    """

    def __init__(self, kernel: Kernel, potential: Potential):
        self.kernel, self.potential = kernel, potential
        self._programs: dict[Any, Program] = {}

    @torch.no_grad()
    def __call__(self, state: Any, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        """Take a step, as ``kernel.step_`` does: changes ``state``, and says of the position what Info holds."""
        places = _tensors(state)
        values = [getattr(owner, name) for owner, name in places]
        leaves, structure = pytree.tree_flatten(batch)
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (
            tuple((value.shape, value.stride(), value.dtype) for value in (*values, *given)),
            tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor)),
            structure,
            potential.n_beta if isinstance(potential.n_beta, float) else None,
        )
        if key not in self._programs:
            self._programs[key] = self._compiled(state, leaves, structure, generator)
        program = self._programs[key]
        results = program.function(*values, *given, *program.numbers(generator))
        for (owner, name), value in zip(places, results, strict=False):
            setattr(owner, name, value)
        return Info(*results[len(places) :])

    def _compiled(self, state: Any, leaves: list[Any], structure: Any, generator: torch.Generator) -> Program:
        name = self.kernel.name
        if state.position.shape[1] > CHUNK_COLUMNS:
            raise ValueError(
                f"compile: {name} on {state.position.shape[1]} coordinates; expected at most {CHUNK_COLUMNS}, which "
                "have one random stream. Longer vectors gain little: leave compile out."
            )
        values = [getattr(owner, place) for owner, place in _tensors(state)]
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ends = (len(values), len(values) + len(given))

        def step(*tensors: Tensor) -> list[Tensor]:
            traced = _with_tensors(state, [tensor.clone() for tensor in tensors[: ends[0]]])
            batch = _batch(leaves, structure, list(tensors[ends[0] : ends[1]]))
            before = _constants(traced)
            with _Drawing(generator, list(tensors[ends[1] :])):
                info = self.kernel.step_(traced, self.potential, batch, generator)
            if _constants(traced) != before:
                raise NotImplementedError("its state holds Python numbers that change")
            return [*(getattr(owner, place) for owner, place in _tensors(traced)), *info]

        try:
            with _Drawing(aside := _copy_of(generator)) as drawing:
                self.kernel.step_(_copied(state), self.potential, _batch(leaves, structure, given), aside)
            draws = drawing.draws
            inputs = [*values, *given, *Program(step, draws).numbers(_copy_of(generator))]
            program = Program(compile_graph(make_fx(step, decomposition_table=DECOMPOSITIONS)(*inputs), inputs), draws)
            program.function(*inputs)
        except Exception as error:
            raise ValueError(
                f"compile: a step of {name} cannot be traced and compiled: {type(error).__name__}: {error}. "
                "It needs a C++ compiler, and a loss that is a fixed sequence of tensor operations. Leave compile out "
                "to run it as it is."
            ) from error
        self._check(program, state, _batch(leaves, structure, given), given, generator)
        return program

    def _check(
        self, program: Program, state: Any, batch: Batch, given: list[Tensor], generator: torch.Generator
    ) -> None:
        """Hold the program against the step itself, on the same state with the same random numbers."""
        allowed = AGREEMENT if state.position.dtype == torch.float64 else AGREEMENT_OF_OTHERS
        values = [getattr(owner, place) for owner, place in _tensors(state)]
        first, second = _copy_of(generator), _copy_of(generator)
        wrong: dict[str, float] = {}
        for _ in range(ATTEMPTS):  # a decision on the edge of rounding may fall otherwise, which is not an error
            stepped = _copied(state)
            info = self.kernel.step_(stepped, self.potential, batch, first)
            places = _tensors(stepped)
            expected = [*(getattr(owner, place) for owner, place in places), *info]
            found = program.function(*values, *given, *program.numbers(second))
            names = [*(place for _, place in places), *Info._fields]
            before = [*values, *[None] * len(info)]
            wrong = {
                name: _difference(*one, moved=name == "position")
                for name, *one in zip(names, found, expected, before, strict=True)
            }
            # of an acceptance rate, a rounding error of a large energy makes anything
            wrong = {name: off for name, off in wrong.items() if off > allowed and name != "acceptance_rate"}
            if not wrong:
                return
        raise ValueError(
            f"compile: the compiled step of {self.kernel.name} differs from the step itself in its "
            f"{', '.join(wrong)} by up to {max(wrong.values()):.3g} of the largest value or move, where rounding "
            f"explains {allowed:.0e}. The loss is not a fixed function of its tensors: does it draw random numbers, or "
            "read what changes outside? Leave compile out."
        )


def compile_graph(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """The graph as a program for inputs of these shapes, strides and dtypes.

    Inductor is called directly: there is no Python left for dynamo to look at, and its guards and frames took longer
    than the program of a small step (64 µs in place of 27).

    Args:
        graph: Of tensor operations only.
        inputs: Examples of its arguments.

    Returns:
        A function of such arguments.
    """
    import torch._inductor

    program: Any = torch._inductor.compile(graph, list(inputs))
    return program


def _difference(found: Tensor, expected: Tensor, before: Tensor | None, *, moved: bool) -> float:
    """The largest difference, relative to the largest value; of what moves, to the largest move, rounding apart."""
    if not expected.is_floating_point():
        return float(not torch.equal(found, expected))
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    kind = torch.finfo(expected.dtype)
    difference, largest = (found - expected)[finite].abs().max(), expected[finite].abs().max()
    if moved and before is not None:
        difference = (difference - ROUNDINGS * kind.eps * largest).clamp(min=0.0)
        largest = (expected - before)[finite].abs().max()
    return float(difference / largest.clamp(min=kind.tiny))


def _copy_of(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())


def _tensors(state: Any) -> list[tuple[Any, str]]:
    """Where the tensors of a state are, those of states within it too."""
    found: list[tuple[Any, str]] = []
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            found.append((state, field.name))
        elif is_dataclass(value):
            found.extend(_tensors(value))
    return found


def _constants(state: Any) -> list[Any]:
    """All else that a state holds, but for random streams."""
    found: list[Any] = []
    for field in fields(state):
        value = getattr(state, field.name)
        if is_dataclass(value):
            found.extend(_constants(value))
        elif not isinstance(value, Tensor | ColumnStreams):
            found.append(copy.deepcopy(value))
    return found


def _copied(state: Any) -> Any:
    """A state of its own with the same values."""
    return _with_tensors(state, [getattr(owner, name).clone() for owner, name in _tensors(state)])


def _with_tensors(state: Any, values: list[Tensor]) -> Any:
    """A state of the same make with other tensors."""
    made = _shell(state)
    for (owner, name), value in zip(_tensors(made), values, strict=True):
        setattr(owner, name, value)
    return made


def _shell(state: Any) -> Any:
    made = copy.copy(state)
    for field in fields(made):
        value = getattr(made, field.name)
        if is_dataclass(value):
            setattr(made, field.name, _shell(value))
        elif not isinstance(value, Tensor | ColumnStreams):
            setattr(made, field.name, copy.deepcopy(value))
    return made


def _batch(leaves: list[Any], structure: Any, tensors: list[Tensor]) -> Any:
    """A batch of the same structure with other tensors."""
    rest = iter(tensors)
    return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
