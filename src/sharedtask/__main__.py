"""``python -m sharedtask``: the command line."""

import sys

from sharedtask.cli.main import main

sys.exit(main())
