"""A kernel's step as one compiled program: traced once, without the Python and the passes over memory between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from samplers.kernel import Info, Kernel
from samplers.noise import CHUNK_COLUMNS
from samplers.potential import Batch, Potential
from samplers.state import (
    OF_LARGE_ENERGIES,
    agreement,
    copied,
    copy_of,
    difference,
    state_constants,
    state_tensors,
    with_tensors,
)

RANDOM = (torch.randn, torch.rand)
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
        places = state_tensors(state)
        values = [getattr(owner, name) for owner, name in places]
        leaves, structure = pytree.tree_flatten(batch)
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (
            tuple((value.shape, value.stride(), value.dtype) for value in (*values, *given)),
            tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor)),
            str(structure),  # torch before 2.7 cannot hash it
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
        values = [getattr(owner, place) for owner, place in state_tensors(state)]
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ends = (len(values), len(values) + len(given))

        def step(*tensors: Tensor) -> list[Tensor]:
            traced = with_tensors(state, [tensor.clone() for tensor in tensors[: ends[0]]])
            batch = _batch(leaves, structure, list(tensors[ends[0] : ends[1]]))
            before = state_constants(traced)
            with _Drawing(generator, list(tensors[ends[1] :])):
                info = self.kernel.step_(traced, self.potential, batch, generator)
            if state_constants(traced) != before:
                raise NotImplementedError("its state holds Python numbers that change")
            return [*(getattr(owner, place) for owner, place in state_tensors(traced)), *info]

        try:
            with _Drawing(aside := copy_of(generator)) as drawing:
                self.kernel.step_(copied(state), self.potential, _batch(leaves, structure, given), aside)
            draws = drawing.draws
            inputs = [*values, *given, *Program(step, draws).numbers(copy_of(generator))]
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
        allowed = agreement(state.position.dtype)
        values = [getattr(owner, place) for owner, place in state_tensors(state)]
        first, second = copy_of(generator), copy_of(generator)
        wrong: dict[str, float] = {}
        for _ in range(ATTEMPTS):  # a decision on the edge of rounding may fall otherwise, which is not an error
            stepped = copied(state)
            info = self.kernel.step_(stepped, self.potential, batch, first)
            places = state_tensors(stepped)
            expected = [*(getattr(owner, place) for owner, place in places), *info]
            found = program.function(*values, *given, *program.numbers(second))
            names = [*(place for _, place in places), *Info._fields]
            before = [*values, *[None] * len(info)]
            wrong = {
                name: difference(*one, moved=name == "position")
                for name, *one in zip(names, found, expected, before, strict=True)
            }
            wrong = {name: off for name, off in wrong.items() if off > allowed and name not in OF_LARGE_ENERGIES}
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


def _batch(leaves: list[Any], structure: Any, tensors: list[Tensor]) -> Any:
    """A batch of the same structure with other tensors."""
    rest = iter(tensors)
    return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
