"""Ray by hand, over the kinds of values; see ``ray_host.py``."""

from __future__ import annotations

from benchmarks.host import serve
from benchmarks.kinds_host import OverKinds
from benchmarks.kinds_work import kind_jobs
from benchmarks.ray_host import RayHost


class KindsRayHost(OverKinds, RayHost):
    """The commands of both."""

    def __init__(self, tiny: bool) -> None:
        RayHost.__init__(self, tiny)
        self.jobs = kind_jobs(tiny)


if __name__ == "__main__":
    serve(lambda _, tiny: KindsRayHost(tiny))
