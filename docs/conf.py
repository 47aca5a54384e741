"""How the pages of this folder become HTML: ``make docs`` writes ``out/docs/index.html``.

Sphinx, because the docstrings are written for it: Google sections (napoleon), formulas as ``.. math::``, references
as ``:func:``. Nothing is fetched while pages are built or read: formulas become MathML, which browsers draw.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

project = "slt-toolkit"
author = "slt-toolkit contributors"
project_copyright = author
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "mathml",
    "public_names",
    "links",
]
exclude_patterns = ["extensions"]

# Every reference within the project must lead somewhere; what other libraries have is not looked up.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|nn|numpy|xarray|matplotlib|sympy|collections|fractions|pathlib|lightning|transformers)\..*"),
    (r"py:.*", r"Tensor|Axes|Path|ArrayLike|NDArray|Fraction|Any|optional"),
    (r"py:.*", r"Array|Batch|LossFn|Log|Part|Selector|Values|Weights"),  # names of types, spelt out where they are used
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]

myst_heading_anchors = 3

html_theme = "furo"
html_title = "slt-toolkit"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
