"""A differential fuzzer: random programs, beside a plain loop over deep copies.

See ``python -m tests.fuzz --help``.
"""

import sys
from pathlib import Path

# The modules of the tests find each other by their own folder, as under pytest.
sys.path.insert(0, str(Path(__file__).parents[1]))
