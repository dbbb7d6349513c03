"""Every file in examples/ runs and shows what it says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharedtask.testing import slowness

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
LIMIT = 180  # seconds; on a quiet machine the slowest takes a sixth of that

CLUSTER = r"1 in 20 shuffles finds a correlation above 0\.096"

# One line that each example prints, as a regular expression.
EXPECTED = {
    "async_and_futures.py": r"stream   station \d+ is the first above \+0\.40",
    "bank.py": r"with locks:    0 made or lost, 0 of 40 audits are wrong, \d+ us for a payment",
    "classify_image.py": r"Positive: 560",
    "cluster.py": CLUSTER,
    "copy_on_write.py": r"the caller's array is untouched: True",
    "dataframe.py": r"all reports are the same: True",
    "demo.py": r"sharedtask, again +\d+\.\d\d s .*",
    "digits_forest.py": r"all four agree: True, 9\d% of the digits are right",
    "embedding_search.py": r"same rows as serial: True",
    "faults.py": r"13 of 16 items arrived",
    "fitted_model.py": r"all ways give the same digits: True",
    "histogram.py": r"all three agree: True",
    "lecture_mistakes.py": r"sharedtask  0\.0 MB stay in /dev/shm",
    "lecture_squares.py": r"nothing was written: True",
    "lecture_statistics.py": r"all ways agree with numpy: True",
    "notebook.py": r"95% of the digits are right",
    "pairwise_distances.py": r"nearest neighbour shows the same digit: 98\.8%",
    "plain_values.py": r"all give the same: True",
    "resume.py": r"no recorded walk ran twice: True",
    "shared_kwargs_example.py": r"Positive: 480",
    "streaming.py": r"settled after \d+ resamples",
    "torch_model.py": r"all results are the same, bit for bit: True",
    "write_by_name.py": r"all of it is here: True",
}

# Comparisons that take a minute each, and show as much of how they work over small values.
# Threads that wait for each other busily are many on few cores: each process has one.
SMALL = {"EXAMPLES_SMALL": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SMALLER: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "dataframe.py": ((), SMALL),
    "fitted_model.py": ((), SMALL),
    "plain_values.py": (("100000",), {}),
    "torch_model.py": ((), SMALL),
}

# Where a library is missing, the example says how it is installed, and prints nothing else.
WITHOUT = {"torch_model.py": ("torch", r"pip install torch --index-url \S+")}

# A state of a progress bar: "desc:  41%|####      | 410/1000 [00:01<00:01, 400.00it/s]".
BAR = re.compile(r".*\d+%\|.*\|.*\[.*\]|.*\d+(it|item) \[.*\]")


def noise(stderr: str) -> list[str]:
    """What stands on stderr beside progress bars."""
    states = re.split(r"[\r\n]|\x1b\[A", stderr)
    return [state for state in states if state.strip() and not BAR.fullmatch(state.strip())]


def test_every_example_has_an_expected_line() -> None:
    """A new example is run by the test below only with a line to look for."""
    assert sorted(EXPECTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def check(name: str, folder: Path, *arguments: str, **variables: str) -> None:
    """Run an example in an empty folder; it prints its line and nothing on stderr."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT * slowness(),
        check=False,
    )
    assert 0 == ran.returncode, ran.stderr
    assert [] == noise(ran.stderr)
    module, hint = WITHOUT.get(name, ("", ""))
    is_missing = bool(module) and importlib.util.find_spec(module) is None
    line = re.compile(r"\s*" + (hint if is_missing else EXPECTED[name]))
    assert any(line.fullmatch(printed.rstrip()) for printed in ran.stdout.splitlines()), ran.stdout
    assert [] == list(folder.iterdir())
    if is_missing:
        return
    for page, block in [*quoted(f"printed by examples/{name}"), *in_the_gallery(name)]:
        told = f"{page.name} shows something else: python examples/support/pages.py {name}"
        assert outline(block) == outline(ran.stdout), told


def quoted(source: str) -> list[tuple[Path, str]]:
    """The blocks of all pages below the comment "source", with their pages."""
    start = rf"<!-- {re.escape(source)}[^\n]* -->\n```\w+\n"
    block = re.compile(start + r"(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(page, found) for page in PAGES for found in block.findall(page.read_text())]


def in_the_gallery(name: str) -> list[tuple[Path, str]]:
    """The output that only the gallery shows, with its file."""
    file = EXAMPLES / "support" / "printed" / Path(name).with_suffix(".txt")
    return [(file, file.read_text())] if file.exists() else []


def outline(printed: str) -> str:
    """What is printed, without what differs from run to run: numbers, widths, breaks of lines."""
    return " ".join(re.sub(r"─+", "─", re.sub(r"[+-]?[\d.,]*\d", "#", printed)).split())


def without_blank_lines(code: str) -> str:
    return "\n".join(line.partition("  # noqa")[0] for line in code.splitlines() if line.strip())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_code_on_a_page_is_that_of_its_example(name: str) -> None:
    """A block that a page takes from an example stands there, apart from comments for linters."""
    code = without_blank_lines((EXAMPLES / name).read_text())
    for page, block in quoted(f"code of examples/{name}: "):
        told = f"{page.name} is behind: python examples/support/pages.py --code"
        for part in block.split("\n\n"):
            assert without_blank_lines(part) in code, told


def test_pages_take_code_and_figures_from_examples() -> None:
    """The two tests above have something to look at."""
    assert 10 <= len(quoted("code of examples/"))
    assert 5 <= len(quoted("printed by examples/"))


@pytest.mark.long
@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example_runs_and_prints_its_line(name: str, tmp_path: Path) -> None:
    """From a foreign folder, an example exits with 0, prints its line and is quiet on stderr."""
    arguments, variables = SMALLER.get(name, ((), {}))
    check(name, tmp_path, *arguments, **variables)


@pytest.mark.long
@pytest.mark.besides
@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("name", SMALLER)
def test_long_example_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """The same over the values whose figures the pages show."""
    check(name, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(LIMIT + 20)
def test_the_same_program_runs_on_ray(tmp_path: Path) -> None:
    """A variable moves a program to Ray: same results, as quiet."""
    check("cluster.py", tmp_path, SHAREDTASK_BACKEND="ray")


def test_no_example_needs_a_main_guard() -> None:
    """Only the demo has one, because the libraries it is compared with ask for it."""
    guarded = [path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()]
    assert ["demo.py"] == guarded
