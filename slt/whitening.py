"""What minibatch chains need to be at home in a posterior: a metric for every matrix of weights, and a step in it."""

from __future__ import annotations

import samplers
from samplers.adaptation import Adaptation
from slt.posterior import LocalPosterior

# A round's changes of gradient are held side by side: of 32 probes half a gigabyte at so many weights. Of more, chains
# move in the identity metric.
LARGEST_WHITENED = 1 << 22
# φ of limit_momentum_bias, which takes the root of the sum of all squared curvatures for the largest: an upper bound,
# far above it where many are alike. The bias itself is measured, and limited, in the last pilot.
CLOSED_FORM_BIAS, ROUNDS, ROUND_STEPS = 0.15, 8, 20
MEASURED_BIAS = 0.01  # a fifth of the default tolerance: behind the pilot it grows on


def whitened_adaptation(posterior: LocalPosterior, baseline: float, num_steps: int) -> Adaptation:
    """Metric, starts and step size of ``baoab`` on minibatches: walls as a law meets them, then the bias of chains.

    :func:`samplers.kronecker_metric` on the posterior's matrices, :func:`samplers.limit_momentum_bias` in it, and
    :func:`samplers.limit_measured_bias` over a pilot of so many steps.

    Args:
        posterior: The target, entered.
        baseline: L_n(w*), in nats.
        num_steps: Of the last pilot.

    Returns:
        An adaptation for ``baoab``.
    """
    return samplers.in_turn(
        samplers.kronecker_metric([tuple(tensor.shape) for tensor in posterior.sampled.tensors()]),
        samplers.limit_momentum_bias(CLOSED_FORM_BIAS, ROUNDS, ROUND_STEPS),
        samplers.limit_measured_bias(baseline, MEASURED_BIAS, num_steps),
    )
