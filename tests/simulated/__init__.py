"""Other systems, as far as this one can play them: see sitecustomize.py."""

import os
from pathlib import Path

HERE = Path(__file__).parent


def environment(system: str) -> dict[str, str]:
    """The environment in which Python finds what this system has: "mac" or "windows"."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "SHAREDTASK_SIMULATED": system}
