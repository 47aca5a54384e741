"""References to a class or function by the module that defines it lead to where it is documented: its public name.

An annotation says ``slt.estimate.LLCEstimate``, and the reference has ``slt.LLCEstimate``. What is documented nowhere,
because it is not public, is named without a link, if it exists. And every public name must be in the reference.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)
PACKAGES = ("slt", "slt.callbacks", "slt.known", "slt.plots", "samplers")


@functools.cache
def public() -> dict[int, str]:
    """The public name of every class, function and module, by its identity."""
    found: dict[int, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found |= {id(getattr(module, name)): f"{package}.{name}" for name in module.__all__}
    return found


def existing(name: str) -> Any:
    """What a name of ours means, or None: a dotted one, or a bare one of any module, as ``Raises`` sections have."""
    if name.isidentifier():
        ours = [module for path, module in sys.modules.items() if path.partition(".")[0] in ("slt", "samplers")]
        return next((found for module in ours if isinstance(found := vars(module).get(name), type)), None)
    if not name.startswith(("slt.", "samplers.")):
        return None
    owner, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(owner), attribute)
    except (ImportError, AttributeError):
        return None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """What stands in place of a reference that Sphinx did not find."""
    if node.get("refdomain") != "py" or (meant := existing(node.get("reftarget", ""))) is None:
        return None
    name = public().get(id(meant))
    if name is None:
        return content
    return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class describes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def keep(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Remember what a property says, before napoleon takes all before a colon for its type."""
    if what in ("property", "attribute"):
        app.env.temp_data[f"said {name}"] = list(lines)


def restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What it said."""
    said = app.env.temp_data.pop(f"said {name}", None)
    if said is not None:
        lines[:] = said


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page has."""
    domain = env.domains.python_domain
    for name in public().values():
        if name not in domain.objects and name not in PACKAGES:
            logger.warning("%s is public, and on no page of docs/reference", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", keep, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
