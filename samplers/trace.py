"""What a run leaves behind: ``(chain, draw)`` arrays, an ``xarray.DataTree`` and a netCDF file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray
from numpy.typing import NDArray
from torch import Tensor

from samplers.files import tree_written_whole

Arrays = dict[str, NDArray[np.float64]]


class Divergence(NamedTuple):
    """A chain that left the finite numbers.

    Attributes:
        chain: Its number.
        step: The step, counted from the first warm-up step, at which its energy was first not finite.
    """

    chain: int
    step: int


@dataclass(eq=False)
class Trace:
    """The draws of one run.

    Attributes:
        statistics: Arrays ``(chain, draw)`` of ``loss``, ``localization_energy``, ``acceptance_rate``,
            ``discretization_bias`` and ``not_finite`` (see :class:`samplers.Info`), in nats; the last is 1 where a
            proposal was refused as not finite. Not a number from the step at which a chain diverged.
        warmup: The same for every warm-up step.
        positions: ``(chain, draw, dim)``, or None unless they were asked for.
        diverged: Chains that left the finite numbers, which were stopped there.
        interrupted: Whether the run was stopped by the keyboard before all draws were taken.
        num_gradients: Loss gradients taken, in calls per chain summed over chains, warm-up and adaptation included.
        configuration: What it takes to repeat the run: kernel, its settings, seed, block size, numbers of steps; and
            ``earlier_settings``, where the kernel was given others on the way.
    """

    statistics: Arrays
    warmup: Arrays
    positions: Tensor | None = None
    diverged: tuple[Divergence, ...] = ()
    interrupted: bool = False
    num_gradients: int = 0
    configuration: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> NDArray[np.float64]:
        """The loss of every draw, ``(chain, draw)``, in nats."""
        return self.statistics["loss"]

    @property
    def num_chains(self) -> int:
        """The number of chains, diverged ones included."""
        return self.loss.shape[0]

    @property
    def num_draws(self) -> int:
        """The number of draws of each chain."""
        return self.loss.shape[1]

    @property
    def surviving(self) -> NDArray[np.bool_]:
        """Which chains stayed within the finite numbers, ``(chain,)``."""
        alive = np.ones(self.num_chains, dtype=bool)
        alive[[divergence.chain for divergence in self.diverged]] = False
        return alive

    def to_datatree(self) -> xarray.DataTree:
        """The trace as a tree with the groups ``sample_stats``, ``warmup_sample_stats`` and ``posterior``.

        Every group has explicit coordinates ``chain`` and ``draw``. Built here and not by arviz, whose two lines
        build different things from the same input.

        Returns:
            The tree, which :meth:`from_datatree` reads.
        """
        groups = {
            "sample_stats": _dataset(self.statistics),
            "warmup_sample_stats": _dataset(self.warmup),
        }
        if self.positions is not None:
            values = self.positions.detach().cpu().numpy()
            groups["posterior"] = xarray.Dataset(
                {"position": (("chain", "draw", "coordinate"), values)},
                coords=dict(zip(("chain", "draw", "coordinate"), map(np.arange, values.shape), strict=True)),
            )
        tree = xarray.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
        tree.attrs["trace"] = json.dumps({
            "diverged": [list(divergence) for divergence in self.diverged],
            "interrupted": self.interrupted,
            "num_gradients": self.num_gradients,
            "configuration": self.configuration,
        })
        return tree

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Trace:
        """The trace that :meth:`to_datatree` made this tree from.

        Args:
            tree: With the group ``sample_stats`` and the attribute ``trace``.

        Returns:
            An equal trace.

        Raises:
            ValueError: The tree was not made by :meth:`to_datatree`.
        """
        if "trace" not in tree.attrs or "sample_stats" not in tree.children:
            raise ValueError(
                f"tree: groups {sorted(map(str, tree.children))}, attributes {sorted(map(str, tree.attrs))}; expected "
                "a tree written by Trace.to_datatree(), with the group 'sample_stats' and the attribute 'trace'."
            )
        record = json.loads(tree.attrs["trace"])
        positions = torch.from_numpy(tree["posterior/position"].to_numpy()) if "posterior" in tree.children else None
        return cls(
            statistics=_arrays(tree["sample_stats"]),
            warmup=_arrays(tree["warmup_sample_stats"]),
            positions=positions,
            diverged=tuple(Divergence(*pair) for pair in record["diverged"]),
            interrupted=record["interrupted"],
            num_gradients=record["num_gradients"],
            configuration=record["configuration"],
        )

    def save(self, path: str | Path) -> None:
        """Write the trace as netCDF.

        Args:
            path: The file, which is replaced in one operation.

        Raises:
            OSError: It cannot be written; what was there stays.
        """
        tree_written_whole(Path(path), self.to_datatree())

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """The trace that :meth:`save` wrote."""
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            return cls.from_datatree(tree.load())


def _dataset(arrays: Arrays) -> xarray.Dataset:
    chains, draws = next(iter(arrays.values())).shape
    return xarray.Dataset(
        {name: (("chain", "draw"), values) for name, values in arrays.items()},
        coords={"chain": np.arange(chains), "draw": np.arange(draws)},
    )


def _arrays(node: Any) -> Arrays:
    return {str(name): node[name].to_numpy() for name in node.data_vars}
