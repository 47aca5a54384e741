"""Exact values nβ·E[K] of the known cases that are in no published table: writes ``slt/known/exact_values.json``.

Every case whose K splits into parts of at most three coordinates is integrated at nβ = 1000, γ = 1. A case whose value
cannot be trusted is printed with the reason, and left out.

    python benchmarks/exact_values.py      # some minutes
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from slt.known import cases, exact_llc
from slt.known.table import computed_rows

TARGET = Path(__file__).resolve().parent.parent / "slt" / "known" / "exact_values.json"
N_BETA, LOCALIZATION = 1000.0, 1.0


def main() -> None:
    rows = []
    for known in cases():
        if not known.blocks or (known.exact and not computed_rows(known.name)):
            continue  # in the published table, or out of reach
        start = time.perf_counter()
        # three coordinates take a hundred times as long as two, and a sum over inputs again as much; 1e-3 is a tenth of
        # the error of any estimate that is held against it
        whole = known.dim == 3 and not known.structure
        tolerance = 1e-7 if not whole else 1e-4 if known.family in ("polynomial", "deep_linear") else 1e-3
        try:
            found = exact_llc(known, N_BETA, LOCALIZATION, tolerance=tolerance)
        except ArithmeticError as error:
            print(f"{known.name}: left out: {error}", flush=True)
            continue
        rows.append({"case": known.name, "n_beta": N_BETA, "localization": LOCALIZATION, **found._asdict()})
        print(f"{known.name}: {found.value:.8f} ± {found.error:.1e} in {time.perf_counter() - start:.1f} s", flush=True)
        TARGET.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
