"""Every sampler on six targets at equal numbers of full-data gradients: prints a table, writes JSON and a figure.

For each target every sampler may spend the same number of full-data gradients, those of its adaptation and of its
warm-up included, all chains together. Reported are the error of λ̂ = nβ (E[loss] − loss at the anchor), with its Monte
Carlo standard error, and the effective sample size per gradient and per second. Targets: a badly scaled Gaussian of
1000 dimensions, three singular laws of the table of exact values, a reduced-rank network trained on noisy data, and
two copies of one tanh unit. What each is run with stands in ``sampler_comparison/kernels.py``.

    python benchmarks/samplers.py                           # all; on one thread
    python benchmarks/samplers.py --quick                   # fewer chains, steps and targets: a minute
    python benchmarks/samplers.py --targets poly_xy2 --samplers sgld "hmc mixed"
    python benchmarks/samplers.py --references              # λ̂ of the two targets that no table has, anew
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# This file has the name of the package that it measures, and a script's folder comes first where Python looks for
# modules. It goes last, and whoever else in this folder asked for the package gets the package.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE] + [str(HERE)]
if __name__ == "samplers":
    del sys.modules["samplers"]
    importlib.import_module("samplers")

if __name__ == "__main__":
    sys.exit(importlib.import_module("sampler_comparison.command").main(__doc__))
