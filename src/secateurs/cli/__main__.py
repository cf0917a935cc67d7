"""`python -m secateurs.cli` is the `secateurs` command."""

from __future__ import annotations

import sys

from secateurs.cli.app import main

sys.exit(main())
