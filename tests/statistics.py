"""How a statistical assertion is made here, in one place.

First the gate: the effective sample size must be at least ``MINIMUM_ESS``, so that the Monte Carlo standard error is
itself known. Then |mean − truth| ≤ Z · MCSE. Seeds are fixed. For a correct sampler an assertion fails for one seed
in 16,000 (a normal error beyond four standard errors, 6.3e-5); the suite has about a thousand of them, so that about
one set of seeds in 16 would make it fail. Planted errors must be rejected by the same function.
"""

import numpy as np
from numpy.typing import ArrayLike

from samplers.diagnostics import mean_and_ess

Z = 4.0
MINIMUM_ESS = 400


def assert_mean(draws: ArrayLike, truth: float, allowed: float = 0.0) -> None:
    """Assert that draws ``(chain, draw)`` have this mean, but for an allowed bias of either sign."""
    mean, deviation, ess = mean_and_ess(np.asarray(draws, dtype=float))
    assert ess >= MINIMUM_ESS, f"ESS {ess:.0f} < {MINIMUM_ESS}: too few draws to tell"
    mcse = deviation / ess**0.5
    error = (mean - truth) / mcse
    assert abs(error) <= Z + allowed / mcse, (
        f"mean {mean:.5g} ± {mcse:.2g}, truth {truth:.5g} ± {allowed:.2g}: {error:+.1f} standard errors"
    )


def assert_independent_mean(values: ArrayLike, truth: float, deviation: float | None = None) -> None:
    """Assert that independent values ``(many,)`` have this mean; the bound is that of :func:`assert_mean`.

    ``deviation`` is that of one value, where it is known: an error that makes values large then cannot hide in it.
    """
    found = np.asarray(values, dtype=float)
    assert found.size >= MINIMUM_ESS, f"{found.size} values < {MINIMUM_ESS}: too few to tell"
    error = (found.mean() - truth) / ((deviation or found.std(ddof=1)) / found.size**0.5)
    assert abs(error) <= Z, f"mean {found.mean():.5g}, truth {truth:.5g}: {error:+.1f} standard errors"
