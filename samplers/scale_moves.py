"""Metropolis moves on every scale at once, whose mix is learnt: for laws that are singular near an anchor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bins of one nat of the size of an increment, downwards from e times the radius (or the difference of two particles):
# the stiffest wall at nβ = e⁶⁰ has the width e⁻³⁰.
INCREMENT_BINS = 34
# Of the exponent of a scaling, which is dimensionless; smaller ones do what increments do.
SCALING_BINS = 8
LARGEST_DIM_OF_SETS = 6  # all subsets are tried as patterns up to here: 63 of them
LARGEST_DIM_OF_PAIRS, LARGEST_DIM_OF_OPPOSED = 24, 40
# How often each family is tried: none of them is of use everywhere, and each is where the others are not.
SHARES = {"increment": 1.0, "difference": 0.5, "scaling": 0.8, "scaling about zero": 0.6}


@dataclass(frozen=True)
class _Family:
    name: str
    rows: int  # what of: a coordinate, a subset, a pattern
    bins: int  # of its size
    start: int  # of its cells in the table


class ScaleMoves:
    r"""Proposals whose size is log-uniform over all scales, from a table of acceptance rates.

    * *increments*, Gaussian, of one coordinate, a random subset or all of them;
    * *differences* of two other particles times a Gaussian number, in a random subset or all coordinates;
    * *scalings* w − c → e^{±s}(w − c) of the coordinates of a pattern, c being the anchor or zero, accepted with their
      Jacobian; a pattern has some coordinates growing and others shrinking. They run along the level sets of products
      and of sums of unlike powers, which increments leave at once.

    Each is symmetric given its row and size, whose probabilities are fixed between two calls of :meth:`learn`: with a
    Metropolis test each leaves its target as it is. Increments are tried most at sizes that are accepted now and then;
    scalings by rate times size.

    Args:
        anchor: w*, ``(dim,)``.
        radius: The largest scale.
        groups: Sets of coordinates that belong together, such as those of a tensor, a row or a column: tried as
            patterns beside single coordinates, pairs and all.
        generator: Of everything random.
    """

    def __init__(self, anchor: Tensor, radius: float, groups: Sequence[Sequence[int]], generator: torch.Generator):
        self.anchor, self.radius, self.generator = anchor, radius, generator
        self.dim = len(anchor)
        self.patterns = scaling_patterns(self.dim, groups).to(anchor)
        several = self.dim > 1
        kinds = [("increment", self.dim + 2 * several, INCREMENT_BINS), ("difference", 1 + several, INCREMENT_BINS)]
        kinds.append(("scaling", len(self.patterns), SCALING_BINS))
        if bool((anchor != 0).any()):
            kinds.append(("scaling about zero", len(self.patterns), SCALING_BINS))
        self.families: list[_Family] = []
        self.num_cells = 0
        for name, rows, bins in kinds:
            self.families.append(_Family(name, rows, bins, self.num_cells))
            self.num_cells += rows * bins
        self._ends = torch.tensor([family.start + family.rows * family.bins for family in self.families])
        self.accepted = torch.zeros(self.num_cells, dtype=torch.float64)
        self.tried = torch.zeros_like(self.accepted)
        self.learn()

    def learn(self) -> None:
        """Make the table anew from what was accepted, of which the older part counts half."""
        weights = []
        for family in self.families:
            cells = slice(family.start, family.start + family.rows * family.bins)
            accepted = self.accepted[cells].view(family.rows, family.bins)
            tried = self.tried[cells].view(family.rows, family.bins)
            if family.name.startswith("scaling"):
                size = (1.0 - torch.arange(family.bins, dtype=torch.float64)).exp().clamp(max=1.0)
                weight = (accepted + 0.1) / (tried + 1) * size + 1e-3
                weight /= weight.sum()
            else:
                rate = (accepted + 0.5) / (tried + 1)
                # what always is accepted moves nothing, and what never is moves nowhere
                weight = (1 - rate).clamp(min=0) * (rate + 0.04) + 1e-5
                weight /= weight.sum(-1, keepdim=True)
                if family.name == "increment" and self.dim > 1:
                    weight[: self.dim] /= self.dim
                    weight[self.dim :] /= 2
                weight /= weight.sum()
            weights.append(SHARES[family.name] * weight.flatten())
        table = torch.cat(weights)
        self._table = (table / table.sum()).cumsum(0)
        self.accepted *= 0.5
        self.tried *= 0.5

    def record(self, cells: Tensor, accepted: Tensor) -> None:
        """Count what was accepted, ``(particles,)`` each."""
        self.tried += torch.bincount(cells, minlength=self.num_cells)
        self.accepted += torch.bincount(cells, weights=accepted.double(), minlength=self.num_cells)

    def propose(self, position: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A proposal for each particle.

        Args:
            position: ``(populations, particles, dim)``.
            others: Particles of the same populations that stay where they are meanwhile, of the same shape.

        Returns:
            Proposals, their log Jacobians ``(populations, particles)``, and cells of the table, all in one row.
        """
        here, there = position.flatten(0, 1), others.flatten(0, 1)
        count = len(here)
        cells = torch.searchsorted(self._table, self._uniform(count)).clamp_(max=self.num_cells - 1)
        families = torch.bucketize(cells, self._ends, right=True)
        proposed, log_jacobian = here.clone(), here.new_zeros(count)
        for place, family in enumerate(self.families):
            chosen = (families == place).nonzero()[:, 0]
            if not len(chosen):
                continue
            cell = cells[chosen] - family.start
            row = cell // family.bins
            size = (1 - cell % family.bins - self._uniform(len(chosen))).exp() * self._normal(len(chosen))
            size = size.unsqueeze(-1)
            if family.name.startswith("scaling"):
                center = self.anchor if family.name == "scaling" else torch.zeros_like(self.anchor)
                exponent = size * self.patterns[row]
                proposed[chosen] = center + (here[chosen] - center) * exponent.exp()
                log_jacobian[chosen] = exponent.sum(-1)
            elif family.name == "increment":
                step = size * self.radius * self._normal(len(chosen), self.dim)
                proposed[chosen] = here[chosen] + step * self._mask(row, self.dim)
            else:
                population = chosen // position.shape[1] * others.shape[1]
                first = torch.randint(others.shape[1], (len(chosen),), generator=self.generator)
                gap = torch.randint(1, others.shape[1], (len(chosen),), generator=self.generator)
                second = (first + gap) % others.shape[1]
                difference = there[population + first] - there[population + second]
                proposed[chosen] = here[chosen] + size * difference * self._mask(row, 0)
        return proposed.view_as(position), log_jacobian.view(position.shape[:2]), cells

    def _mask(self, row: Tensor, singles: int) -> Tensor:
        """Ones ``(particles, dim)`` where a coordinate moves: rows of single ones, then random subsets, then all."""
        mask = self.anchor.new_ones(len(row), self.dim)
        if self.dim == 1:
            return mask
        place = torch.arange(len(row))
        subset = (self._uniform(len(row), self.dim) < self.dim ** -self._uniform(len(row), 1)).to(mask)
        subset[place, torch.randint(self.dim, (len(row),), generator=self.generator)] = 1
        mask = torch.where((row == singles).unsqueeze(-1), subset, mask)
        if singles:
            single = torch.zeros_like(mask)
            single[place, row.clamp(max=singles - 1)] = 1
            mask = torch.where((row < singles).unsqueeze(-1), single, mask)
        return mask

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=self.anchor.dtype)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.anchor.dtype)


def scaling_patterns(dim: int, groups: Sequence[Sequence[int]]) -> Tensor:
    """Patterns of +1, −1 and 0: coordinates that grow together, and sets that grow as others shrink.

    Args:
        dim: The number of coordinates.
        groups: Sets of coordinates that belong together.

    Returns:
        ``(patterns, dim)``, each once.
    """
    rows: list[tuple[Sequence[int], Sequence[int]]] = [(range(dim), ())]
    if dim <= LARGEST_DIM_OF_SETS:
        rows += [(chosen, ()) for size in range(1, dim) for chosen in itertools.combinations(range(dim), size)]
    else:
        rows += [((place,), ()) for place in range(dim)]
        if dim <= LARGEST_DIM_OF_PAIRS:
            rows += [(pair, ()) for pair in itertools.combinations(range(dim), 2)]
        rows += [(group, ()) for group in groups]
    if dim <= LARGEST_DIM_OF_OPPOSED:
        rows += [((first,), (second,)) for first, second in itertools.combinations(range(dim), 2)]
    for first, second in itertools.combinations(groups, 2):
        if not set(first) & set(second):
            rows.append((first, second))
            if dim > LARGEST_DIM_OF_SETS:
                rows.append(([*first, *second], ()))
    patterns = torch.zeros(len(rows), dim, dtype=torch.float64)
    for pattern, (grow, shrink) in zip(patterns, rows, strict=True):
        pattern[list(grow)], pattern[list(shrink)] = 1, -1
    return torch.unique(patterns, dim=0)


def groups_of_shapes(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sets of coordinates of a flat vector that belong together: each tensor, and each row and column of a matrix.

    Args:
        shapes: Of the tensors, in the order of the vector.

    Returns:
        Sets of two or more coordinates, each once.
    """
    found: dict[tuple[int, ...], None] = {}
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        places = torch.arange(start, start + size)
        start += size
        sets = [places.tolist()]
        if len(shape) > 1:
            matrix = places.view(shape[0], -1)
            sets += [*matrix.tolist(), *matrix.T.tolist()]
        found.update((tuple(chosen), None) for chosen in sets if len(chosen) > 1)
    return [list(chosen) for chosen in found]
