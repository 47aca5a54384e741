"""What stands in for curvature in directions that have none: a floor that transforms as curvature does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from slt.parameters import SampledParameters

# A weight whose loss bends less than this share of what its row and column do is localised as if it bent so much: its
# prior is at most ten times as wide as that of its neighbours.
LEAST_SHARE = 0.01
MOST_ROUNDS = 200  # of balancing
BALANCED = 1e-12  # relative change of r in a round


def floored_curvature(sampled: SampledParameters, curvature: Tensor, anchor: Tensor) -> Tensor:
    r"""Curvatures with a floor, so that none is zero and all transform alike.

    .. math:: D_{ij} = \max( d_{ij},\ 0.01\, r_i c_j )

    The tensors of one module with the same first axis, such as a weight and its bias, make one matrix d: rows are
    units, columns inputs. r and c balance it: d_ij / (r_i c_j) is one on average in every row and every column. Where
    the units are rescaled, the rows or columns of d are multiplied and r or c with them, so that the floor follows,
    unit by unit. A vector that is alone in its module has one scale for all: its mean curvature.

    A row without any curvature (a dead unit) gets r_i = 1/mean_j(c_j w*_ij²), and a column c_j = 1/mean_i(r_i w*_ij²):
    their weights may change by their own size. Where those are zero too, the mean of the other rows or columns stands
    in. A module without any curvature gets 1/mean(w*²) of each tensor, and 1 where that is zero. Curvature below the
    3/2 power of the machine's precision, of the largest in its tensor, is rounding and counts as none: in
    float32 units of one tensor are told apart up to a factor of 10⁵ in their weights.

    Args:
        sampled: The sampled parameters.
        curvature: d, ``(dim,)``, at least zero.
        anchor: w*, ``(dim,)``.

    Returns:
        D, ``(dim,)``, positive, float64.

    Source:
        Balancing: Sinkhorn & Knopp 1967. The floor is our own.
    """
    # in float64: squares of small weights leave the range of float32
    found, weights = curvature.double().clone(), anchor.double()
    result = torch.empty_like(found)
    rounding = torch.finfo(anchor.dtype).eps ** 1.5
    for part in sampled.views(found):
        part[part <= rounding * part.max()] = 0.0
    for places in _groups(sampled):
        index = torch.cat([part.view(rows, -1) for rows, part in places], 1).to(curvature.device)
        matrix, values = found[index], weights[index]
        if not bool((matrix > 0).any()):
            for _, part in places:
                result[part.to(curvature.device)] = _own_size(weights[part.to(curvature.device)])
        elif matrix.shape[1] == 1:
            floor = LEAST_SHARE * matrix.mean()
            result[index] = matrix.clamp(min=float(floor))
        else:
            result[index] = _of_matrix(matrix, values)
    return result


def _groups(sampled: SampledParameters) -> Iterator[list[tuple[int, Tensor]]]:
    """Places in the vector of the tensors that share a module and a first axis, with the length of the axis."""
    groups: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
    for name, part in sampled.unflatten(torch.arange(sampled.dim)).items():
        rows = part.shape[0] if part.ndim else 1
        groups.setdefault((name.rpartition(".")[0], rows), []).append((rows, part.reshape(-1)))
    yield from groups.values()


def _own_size(weights: Tensor) -> Tensor:
    size = weights.square().mean()
    return torch.where(size > 0, 1 / size, torch.ones_like(size))


def _of_matrix(curvature: Tensor, weights: Tensor) -> Tensor:
    """D of one matrix, with the floor of its rows and columns."""
    row, column = _balanced(curvature)
    units, inputs = row > 0, column > 0
    dead_units = _from_weights(weights[~units][:, inputs], column[inputs], row[units])
    dead_inputs = _from_weights(weights[units][:, ~inputs].T, row[units], column[inputs])
    row[~units], column[~inputs] = dead_units, dead_inputs
    scale = row.unsqueeze(1) * column
    least = torch.where(units.unsqueeze(1) & inputs, LEAST_SHARE * scale, scale)
    return torch.maximum(curvature, least)


def _from_weights(weights: Tensor, across: Tensor, others: Tensor) -> Tensor:
    """1/mean(c w²) of each row, or the mean of the other rows where its weights are zero."""
    size = (weights.square() * across).mean(1)
    return torch.where(size > 0, 1 / size, others.mean().expand_as(size))


def _balanced(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors r and c with matrix / (r c) one on average in each row and column that is not all zero; zero there."""
    units, inputs = (matrix > 0).any(1), (matrix > 0).any(0)
    inner = matrix[units][:, inputs]
    r, c = torch.zeros_like(inner[:, 0]), torch.ones_like(inner[0])
    for _ in range(MOST_ROUNDS):
        before, r = r, (inner / c).mean(1)
        c = (inner / r.unsqueeze(1)).mean(0)
        if bool(((r - before).abs() <= BALANCED * r).all()):
            break
    row, column = matrix.new_zeros(len(units)), matrix.new_zeros(len(inputs))
    row[units], column[inputs] = r, c
    return row, column
