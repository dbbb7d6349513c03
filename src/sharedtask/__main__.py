"""``python -m sharedtask``: the command line."""

import sys

from sharedtask.cli import main

sys.exit(main())
