"""One HTML page of an estimate or a sweep: figures, tables, verdicts, configuration; nothing in it is from outside."""

from __future__ import annotations

import base64
import html
import io
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samplers.diagnostics import MINIMUM_DRAWS
from samplers.files import written_whole
from slt.estimate import LLCEstimate
from slt.sweep_table import Sweep

LIBRARIES = ("slt-toolkit", "torch", "numpy", "arviz", "scipy", "xarray")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser then asks nothing of any network
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #8884; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8883; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; background: white; border-radius: 4px; }
.ok { color: #1d6b3a; font-weight: 600; } .bad { color: #b3431f; font-weight: 600; }
@media (prefers-color-scheme: dark) { .ok { color: #7fd49a; } .bad { color: #ff9d76; } }
"""


def write_report(result: LLCEstimate | Sweep, path: str | Path, title: str = "Local learning coefficient") -> None:
    """Write one HTML page that opens from the disk and asks nothing of any network.

    Args:
        result: An estimate, or a sweep over checkpoints.
        path: The page, which is overwritten.
        title: Of the page.

    Raises:
        FileNotFoundError: Its folder does not exist.
        OSError: It cannot be written.
    """
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"path: {str(path)!r} is in a folder that does not exist. Make it, or name another.")
    body = _of_sweep(result) if isinstance(result, Sweep) else _of_estimate(result)
    page = "\n".join([
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<link rel="icon" href="data:,">',  # or a browser asks for one
        f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>{html.escape(title)}</h1>", *body, *_versions(), "</body>", "</html>", "",
    ])  # fmt: skip

    def write(place: Path) -> None:
        place.write_text(page, encoding="utf-8")

    written_whole(Path(path), write)


def _of_estimate(estimate: LLCEstimate) -> list[str]:
    from slt.plots import plot_ranks, plot_temperatures

    parts = [
        _headline(estimate),
        _figure(estimate.plot(), "Draws of every chain, and the running mean of each with the interval of all"),
        *_verdict(estimate),
    ]
    if estimate.trace.surviving.any() and estimate.trace.num_draws >= MINIMUM_DRAWS:
        said = (
            "Where chains agree, the ranks of each one's draws among those of all lie flat, between the dotted lines."
        )
        parts += ["<h2>Chains</h2>", f"<p>{said}</p>", _figure(plot_ranks(estimate), "Rank plots of every chain")]
        if estimate.trace.configuration.get("full_data"):
            parts += ["<h2>Beside other estimates from the same draws</h2>", *_cross_check(estimate)]
    if estimate.rungs is not None:
        text = "λ̂ over the ladder of nβ, and the mean loss against 1/nβ"
        parts += ["<h2>Over the ladder of replica exchange</h2>", _figure(plot_temperatures(estimate), text)]
    configuration = [(name, _short(value), why) for name, (value, why) in estimate.config.items()]
    return [*parts, "<h2>Configuration</h2>", _table(("", "value", "why"), configuration)]


def _cross_check(estimate: LLCEstimate) -> list[str]:
    rows = [line.rsplit(maxsplit=3) for line in str(estimate.cross_check()).splitlines()]
    return [_table(("", "value", "standard error"), [(name, value, error) for name, value, _, error in rows])]


def _of_sweep(sweep: Sweep) -> list[str]:
    rows = []
    for row in sweep.rows:
        place = ("–" if row.step is None else str(row.step), row.part)
        if row.estimate is None:
            rows.append((*place, "", "", "", "", "", _mark(f"failed: {row.error}", ok=False)))
            continue
        found = row.estimate
        low, high = found.interval
        rows.append((
            *place, _short(found.loss_at_anchor), _short(found.llc), f"{_short(low)}\u00a0…\u00a0{_short(high)}",
            f"{found.rhat:.3f}", f"{found.ess:.0f}", _mark(str(found.verdict), ok=found.verdict.ok),
        ))  # fmt: skip
    done = [row.estimate for row in sweep.rows if row.estimate is not None]
    checkpoints = len({(row.step, row.path) for row in sweep.rows})
    many = f" and {len(sweep.parts)} parts" if sweep.parts else ""
    healthy = f"{sum(found.verdict.ok for found in done)} of {len(sweep.rows)} estimates are healthy."
    parts = [f"<p>{checkpoints} checkpoints{many}; {healthy} {html.escape(_sentence(sweep.law))}</p>"]
    if done:
        text = "λ̂ of every part over training" if sweep.parts else "λ̂ with 95 % intervals, and the loss, over training"
        parts.append(_figure(sweep.plot(), text))
    parts += _stages(sweep)
    head = ("step", "part", "loss", "λ̂", "95 % interval", "R̂", "ESS", "verdict")
    if not sweep.parts:
        head, rows = (head[0], *head[2:]), [(row[0], *row[2:]) for row in rows]
    parts += ["<h2>Checkpoints</h2>", _table(head, rows, raw=(len(head) - 1,))]
    if done:
        shared = [(name, _short(value), why) for name, (value, why) in done[-1].config.items()]
        parts += ["<h2>Configuration of the last</h2>", _table(("", "value", "why"), shared)]
    return parts


def _stages(sweep: Sweep) -> list[str]:
    """Of each part: where there are at least two."""
    series = {name: sweep.part(name) for name in sweep.parts} or {"": sweep}
    rows = [
        (name, f"{stage.start:g} … {stage.end:g}", _short(stage.level), _short(stage.change),
         "plateau" if stage.plateau else "")
        for name, each in series.items()
        if len(stages := each.stages()) > 1
        for stage in stages
    ]  # fmt: skip
    if not rows:
        return []
    head = ("part", "steps", "λ̂", "change", "")
    if not sweep.parts:
        head, rows = head[1:], [row[1:] for row in rows]
    return ["<h2>Stages</h2>", _table(head, rows)]


def _headline(estimate: LLCEstimate) -> str:
    return f"<p><strong>{html.escape(repr(estimate))}</strong></p>"


def _verdict(estimate: LLCEstimate) -> list[str]:
    verdict = estimate.verdict
    parts = ["<h2>Verdict</h2>", f"<p>{_mark('healthy' if verdict.ok else str(verdict), ok=verdict.ok)}</p>"]
    said = [
        (found.name, ", ".join(f"{name} {_short(value)}" for name, value in found.evidence.items()), found.advice)
        for found in (*verdict.problems, *verdict.notes)
    ]
    return [*parts, _table(("name", "evidence", "what to do"), said)] if said else parts


def _versions() -> list[str]:
    found = [("Python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return ["<h2>Versions</h2>", _table(("", "version"), found)]


def _mark(text: str, *, ok: bool) -> str:
    return f'<span class="{"ok" if ok else "bad"}">{html.escape(text)}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], raw: tuple[int, ...] = ()) -> str:
    """A table; cells of the columns named by ``raw`` are HTML already."""
    lines = ["<div class=wide><table>", "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = [str(cell) if place in raw else html.escape(str(cell)) for place, cell in enumerate(row)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def _figure(axes: Sequence[Any], text: str) -> str:
    import matplotlib.pyplot as plt

    figure = axes[0].get_figure(root=True)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    plt.close(figure)
    encoded = base64.b64encode(held.getvalue()).decode()
    return f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{encoded}"></figure>'


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
