"""For PyInstaller: modules that are imported by name, without those that the program must name."""

from PyInstaller.utils.hooks import collect_submodules

_LEFT_OUT = tuple(
    f"sharedtask.{name}" for name in ("testing", "backends.ray", "backends.loky", "joblib")
)

hiddenimports = collect_submodules("sharedtask", lambda name: not name.startswith(_LEFT_OUT))
# Imported where a program has values of theirs, and so has imported them itself.
excludedimports = [
    *("ray", "loky", "joblib", "sklearn", "torch", "pandas", "polars", "pyarrow", "scipy"),
    *("pytest", "hypothesis", "IPython", "matplotlib", "rich", "dask", "numba", "cv2", "attrs"),
]
