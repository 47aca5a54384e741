"""The main job on real data: train, save checkpoints, estimate λ̂ at each, draw it; then one network of known λ.

python examples/demo.py --out out/demo        (what `make demo` runs, about two minutes on two cores)
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib as mpl
from digits import data, loss_fn, network, train
from safetensors.torch import save_file

import slt
from slt.plots import plot_sweep, save_figure

STEPS = (100, 200, 500, 1000, 2000, 4000)  # before the first, the loss falls away and λ̂ is far below zero


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where checkpoints and results go")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    print(f"training a tanh network on 1,797 digits, and saving {len(STEPS)} checkpoints to {out}/")
    for step, model in train(max(STEPS)):
        if step in STEPS:
            save_file(model.state_dict(), out / f"step-{step:05d}.safetensors")

    print("estimating λ̂ at each checkpoint")
    checkpoints = [out / f"step-{step:05d}.safetensors" for step in STEPS]
    # fixed lengths, so that the demo takes two minutes; without them rounds go on until the interval is
    # within 5 %
    result = slt.sweep(network(), checkpoints, data(), loss_fn, num_draws=120, num_warmup=100)
    print(result.table())

    mpl.use("Agg")
    save_figure(plot_sweep(result), out / "llc_over_training.png")

    print("\na network whose λ is known exactly: linear 3-2-3 with a truth of rank 2 (Aoyagi & Watanabe 2005)")
    known = slt.known.case("rrr_323_r2")
    estimate = slt.estimate_llc(known.build(), None, known.loss_fn, n_beta=1e5)
    low, high = estimate.interval
    print(f"exact λ = {float(known.rlct):g}, estimate {estimate!r}")
    print(f"the interval {'contains' if low <= known.rlct <= high else 'DOES NOT contain'} the exact value")

    record = {
        "checkpoints": [row.to_dict() for row in result.rows],
        "known": {"case": known.name, "rlct": float(known.rlct), **estimate.to_dict()},
    }
    (out / "llc_over_training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwrote {out}/llc_over_training.png and .json in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
