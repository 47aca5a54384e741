"""The tables of ``accuracy.py``, one a file: ``add_arguments(parser)`` and ``measure(options) → record``."""
