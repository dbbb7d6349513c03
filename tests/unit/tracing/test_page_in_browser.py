"""The page in a real browser: light and dark, on a desk and on a phone, with zoom and hover.

It is looked at through a frame in a page of ours, whose script presses keys and tells what it
finds. Where no Chromium is installed, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from traces import recorded

from sharedtask.tracing.records import Event, Recorded
from sharedtask.tracing.showing.page import page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

WIDTHS = {"desk": 1280, "phone": 390}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
DARK = "--blink-settings=preferredColorScheme=0"

SCRIPT = """
const told = {};
const until = async (holds) => {
  for (let turn = 0; turn < 400 && !holds(); turn++) await new Promise((go) => setTimeout(go, 20));
};
const seen = async (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow;
  view.requestAnimationFrame = (draw) => view.setTimeout(draw, 0);  // no frames are shown here
  const timeline = page.getElementById("timeline"), tip = page.getElementById("tip");
  const press = (key) =>
    timeline.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true}));
  const track = [...page.querySelectorAll(".lane:not(.axis) .track")][2];
  const drawn = () => [
    [...page.querySelectorAll(".axis .track span")].at(-1).textContent,
    track.querySelector("path.p-compute")?.getAttribute("d"),
  ];
  const found = {
    overflow: page.documentElement.scrollWidth - frame.clientWidth,
    ground: view.getComputedStyle(page.body).backgroundColor,
    compute: view.getComputedStyle(track.querySelector("path.p-compute")).fill,
    marks: page.querySelectorAll(".mark.k-death").length,
    tools: !page.querySelector(".tools").hidden,
    whole: drawn(),
  };
  const box = track.getBoundingClientRect();
  const where = {clientX: box.left + box.width / 2, clientY: box.top + 5, bubbles: true};
  track.dispatchEvent(new view.PointerEvent("pointermove", where));
  found.tip = tip.hidden ? "" : tip.textContent;
  press("+"); press("+");
  await until(() => drawn()[0] !== found.whole[0]);
  found.zoomed = drawn();
  press("0");
  await until(() => drawn()[0] === found.whole[0]);
  found.again = drawn();
  return found;
};
addEventListener("load", async () => {
  for (const frame of document.querySelectorAll("iframe")) told[frame.id] = await seen(frame);
  document.getElementById("told").textContent = JSON.stringify(told);
});
"""


def run() -> Recorded:
    """A run with a death, long enough to zoom."""
    death = Event(0.2, "death", "killed by SIGKILL", 0, 1, 7)
    return recorded(chunks=40, count=5, events=(death,))


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the page of the run in frames of each width."""
    frames = "".join(
        f'<iframe id="{name}" width="{width}" height="1500" style="border:0" '
        f'srcdoc="{escape(page(run()))}"></iframe>'
        for name, width in WIDTHS.items()
    )
    path = tmp_path_factory.mktemp("page") / "framed.html"
    path.write_text(
        f"<!doctype html><body style='margin:0;width:1680px'>{frames}<pre id=told></pre>"
        f"<script>{SCRIPT}</script>"
    )
    return path


def browse(page_at: Path, *flags: str) -> str:
    """Output of a browser that loads the page, with a profile of its own."""
    profile = page_at.parent / "profile"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, page_at.as_uri()]
    home = {**os.environ, "HOME": str(page_at.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
    return done.stdout


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, framed: Path) -> tuple[str, dict[str, Any]]:
    """The scheme, and what the script found in each frame."""
    flags = [DARK] if request.param == "dark" else []
    text = browse(framed, *flags, "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r'<pre id="told">(.+?)</pre>', text, re.DOTALL)
    assert found, text[-2000:]
    return request.param, json.loads(unescape(found[1]))


def test_the_page_fits_the_desk_and_the_phone(seen: tuple[str, dict[str, Any]]) -> None:
    """Nothing but tables, which scroll by themselves, is wider than the screen."""
    assert {"desk": 0, "phone": 0} == {name: found["overflow"] for name, found in seen[1].items()}


def test_the_page_follows_the_colour_scheme(seen: tuple[str, dict[str, Any]]) -> None:
    """Ground and phases have other colours on a dark screen."""
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 25, 29)"}
    phases = {"light": "rgb(0, 133, 122)", "dark": "rgb(53, 182, 168)"}
    for found in seen[1].values():
        assert grounds[seen[0]] == found["ground"]
        assert phases[seen[0]] == found["compute"]


def test_keys_zoom_into_the_timeline_and_back(seen: tuple[str, dict[str, Any]]) -> None:
    """Lanes and axis are drawn for the part that is looked at."""
    for found in seen[1].values():
        assert found["tools"]
        assert found["whole"] == found["again"]
        assert found["whole"][0] != found["zoomed"][0]
        assert found["whole"][1] != found["zoomed"][1]


def test_pointing_at_a_bar_tells_its_items_and_phases(seen: tuple[str, dict[str, Any]]) -> None:
    """The task, the items, the time and the phases of the chunk under the pointer."""
    for found in seen[1].values():
        assert re.search(r"^score, call 0\n5 items from \d+\nat .*\n", found["tip"])
        assert "compute 50 ms" in found["tip"]
        assert 1 == found["marks"]


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_a_screenshot_is_taken(framed: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Both widths side by side, for those who want to look: more than an empty picture."""
    picture = tmp_path / "page.png"
    browse(framed, *flags, "--window-size=1690,1500", f"--screenshot={picture}")
    kept = os.environ.get("SHAREDTASK_SCREENSHOTS")
    if kept:
        shutil.copy(picture, Path(kept) / f"page-{'dark' if flags else 'light'}.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000
