"""``python -m slt``."""

from slt.cli import main

raise SystemExit(main())
