"""Formulas as MathML, by the converter of docutils: no script, no font and no network is needed to read them."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, pick_math_environment
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def converted(node: nodes.Element, *, block: bool) -> str:
    code = node.astext()
    if block and pick_math_environment(code) == "align*":
        code = rf"\begin{{align*}}{code}\end{{align*}}"
    try:
        return tex2mathml(code, as_block=block)
    except MathError as error:
        logger.warning("formula %r: %s", code, error, location=node)
        return ""


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(converted(node, block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{converted(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
