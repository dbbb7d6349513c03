"use strict";
// Draws the lanes again for the part of the time that the reader looks at, as columns.py did for
// the whole, and tells what is under the pointer. Times are whole microseconds.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const whole = Math.max(data.seconds * 1e6, 1), least = 20;
  const timeline = document.getElementById("timeline"), tip = document.getElementById("tip");
  const tracks = [...timeline.querySelectorAll(".lane:not(.axis) .track:not(.chart)")];
  const charts = [...timeline.querySelectorAll(".chart svg")];
  const axis = [...timeline.querySelectorAll(".axis .track span")];
  const START = 0, LENGTH = 1, TASK = 2, CALL = 3, FIRST = 4, COUNT = 5, PARTS = 6, OUTCOME = 7, PHASES = 8;
  const HEIGHT = 100;
  let from = 0, to = whole, asked = 0;

  // Bars that overlap the window: all later ones begin after it, earlier ones may reach into it.
  for (const lane of data.lanes) lane.longest = lane.bars.reduce((most, bar) => Math.max(most, bar[LENGTH]), 0);
  const firstFrom = (bars, time) => {
    let low = 0, high = bars.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (bars[middle][START] < time) low = middle + 1; else high = middle;
    }
    return low;
  };
  function* within(lane, start, stop) {
    for (let at = firstFrom(lane.bars, start - lane.longest); at < lane.bars.length; at++) {
      const bar = lane.bars[at];
      if (bar[START] > stop) return;
      if (bar[START] + bar[LENGTH] >= start) yield bar;
    }
  }

  const add = (shares, start, stop, weight) => {
    const last = Math.min(Math.floor(stop), shares.length - 1);
    for (let column = Math.max(Math.floor(start), 0); column <= last; column++)
      shares[column] += weight * Math.max(Math.min(stop, column + 1) - Math.max(start, column), 0);
  };
  const sharesOf = (lane, columns) => {
    const found = new Map(), scale = columns / (to - from);
    const of = (phase) => {
      if (!found.has(phase)) found.set(phase, new Float64Array(columns));
      return found.get(phase);
    };
    for (const bar of within(lane, from, to)) {
      let at = bar[START];
      for (let k = PHASES; k < bar.length; k += 2) {
        const seconds = bar[k + 1];
        if (bar[PARTS] === 1) {
          add(of(bar[k]), (at - from) * scale, (at + seconds - from) * scale, 1);
          at += seconds;
        } else if (bar[LENGTH]) {
          const start = (bar[START] - from) * scale;
          add(of(bar[k]), start, start + bar[LENGTH] * scale, seconds / bar[LENGTH]);
        }
      }
    }
    return found;
  };
  const pathOf = (shares, tops) => {
    let d = "", begun = 0, low = 0, high = 0;
    for (let column = 0; column <= shares.length; column++) {
      let bottom = 0, top = 0;
      if (column < shares.length) {
        const to = Math.min(tops[column] + shares[column], 1);
        bottom = Math.round(tops[column] * HEIGHT);
        top = Math.round(to * HEIGHT);
        tops[column] = to;
        if (bottom === low && top === high) continue;
      }
      if (high > low) d += `M${begun} ${HEIGHT - high}h${column - begun}v${high - low}h${begun - column}z`;
      begun = column; low = bottom; high = top;
    }
    return d;
  };
  const element = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return made;
  };

  const drawLane = (track, lane) => {
    const svg = track.firstElementChild, columns = Math.max(track.clientWidth, 50);
    const shares = sharesOf(lane, columns), tops = new Float64Array(columns), drawn = [];
    const x = (time) => Math.max(Math.min((time - from) / (to - from), 1), 0) * columns;
    for (const [start, stop] of lane.spells)
      drawn.push(element("rect", {class: "spell", x: x(start), width: x(stop) - x(start), height: HEIGHT}));
    for (const phase of [...shares.keys()].sort((a, b) => a - b))
      drawn.push(element("path", {class: data.phases[phase][1], d: pathOf(shares.get(phase), tops)}));
    svg.setAttribute("viewBox", `0 0 ${columns} ${HEIGHT}`);
    svg.replaceChildren(...drawn);
    const marks = track.querySelectorAll(".mark");
    lane.marks.forEach((time, at) => {
      marks[at].hidden = time < from || time > to;
      marks[at].style.left = `${(time - from) / (to - from) * 100}%`;
    });
  };
  const drawAll = () => {
    asked = 0;
    tracks.forEach((track, at) => drawLane(track, data.lanes[at]));
    for (const svg of charts)
      svg.setAttribute("viewBox", `${from / whole * 1000} -2 ${(to - from) / whole * 1000} 104`);
    axis.forEach((tick, at) => { tick.textContent = moment(from + (to - from) * at / 5, to - from); });
  };
  const draw = () => { asked = asked || requestAnimationFrame(drawAll); };

  const show = (start, stop) => {
    const length = Math.min(Math.max(stop - start, least), whole);
    from = Math.min(Math.max(start, 0), whole - length);
    to = from + length;
    draw();
  };
  const zoom = (factor, at = (from + to) / 2) => show(at - (at - from) * factor, at + (to - at) * factor);
  const move = (share) => show(from + share * (to - from), to + share * (to - from));
  const timeAt = (event, track) => {
    const box = track.getBoundingClientRect();
    return from + (event.clientX - box.left) / box.width * (to - from);
  };

  const duration = (time) => {
    if (time >= 99.95e6) return `${Math.floor(time / 60e6)} min ${Math.round(time % 60e6 / 1e6)} s`;
    if (time >= 999500) return `${+(time / 1e6).toPrecision(3)} s`;
    return time >= 999.5 ? `${+(time / 1e3).toPrecision(3)} ms` : `${Math.round(time)} us`;
  };
  // A moment with as many digits as the window needs.
  const moment = (time, window) => {
    const digits = Math.min(Math.max(Math.ceil(Math.log10(10e6 / window)), 0), 6);
    return time < 0.5 ? "0" : `${(time / 1e6).toFixed(digits)} s`;
  };
  const told = (bar) => {
    const lines = [], items = bar[COUNT].toLocaleString("en");
    if (data.tasks[bar[TASK]]) lines.push(`${data.tasks[bar[TASK]]}, call ${bar[CALL]}`);
    if (bar[PARTS] === 1) lines.push(bar[COUNT] === 1 ? `item ${bar[FIRST]}` : `${items} items from ${bar[FIRST]}`);
    else if (bar[PARTS] > 1) lines.push(`${bar[PARTS].toLocaleString("en")} chunks, ${items} items`);
    else if (bar[COUNT]) lines.push(`${items} items`);
    lines.push(`at ${moment(bar[START], to - from)}, ${duration(bar[LENGTH])}${bar[OUTCOME] ? `: ${bar[OUTCOME]}` : ""}`);
    const sums = new Map();
    for (let k = PHASES; k < bar.length; k += 2) sums.set(bar[k], (sums.get(bar[k]) || 0) + bar[k + 1]);
    for (const [phase, time] of sums) lines.push(`${data.phases[phase][0]} ${duration(time)}`);
    return lines.join("\n");
  };
  const hover = (event) => {
    const track = event.target.closest(".track"), lane = data.lanes[tracks.indexOf(track)];
    let found = null;
    if (lane) {
      const time = timeAt(event, track), near = (to - from) / track.clientWidth;
      for (const bar of within(lane, time - near, time + near)) if (!found || bar[LENGTH] < found[LENGTH]) found = bar;
    }
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = told(found);
    tip.style.left = `${Math.max(Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8), 8)}px`;
    tip.style.top = event.clientY + tip.offsetHeight + 24 > innerHeight
      ? `${event.clientY - tip.offsetHeight - 12}px` : `${event.clientY + 16}px`;
  };

  // One pointer drags, two pinch.
  const held = new Map();
  const gap = () => {
    const [a, b] = [...held.values()];
    return Math.max(Math.abs(a.clientX - b.clientX), 10);
  };
  timeline.addEventListener("pointerdown", (event) => {
    const track = event.target.closest(".track");
    if (!track) return;
    track.setPointerCapture(event.pointerId);
    held.set(event.pointerId, event);
  });
  timeline.addEventListener("pointermove", (event) => {
    const last = held.get(event.pointerId), track = event.target.closest(".track");
    if (!last || !track) { hover(event); return; }
    tip.hidden = true;
    const before = held.size === 2 ? gap() : 0;
    held.set(event.pointerId, event);
    if (before) zoom(before / gap(), timeAt(event, track));
    else move((last.clientX - event.clientX) / track.clientWidth);
  });
  for (const name of ["pointerup", "pointercancel"])
    timeline.addEventListener(name, (event) => { held.delete(event.pointerId); hover(event); });
  timeline.addEventListener("pointerleave", () => { tip.hidden = true; });
  timeline.addEventListener("dblclick", (event) => {
    const track = event.target.closest(".track");
    if (track) zoom(event.shiftKey ? 2 : 0.5, timeAt(event, track));
  });
  timeline.addEventListener("wheel", (event) => {
    const track = event.target.closest(".track");
    if (!track || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    zoom(Math.exp(Math.max(Math.min(event.deltaY, 100), -100) / 200), timeAt(event, track));
  }, {passive: false});
  const acts = {in: () => zoom(0.5), out: () => zoom(2), all: () => show(0, whole)};
  const keys = {"+": acts.in, "=": acts.in, "-": acts.out, "0": acts.all, ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2)};
  timeline.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  timeline.addEventListener("click", (event) => { if (event.target.dataset.do) acts[event.target.dataset.do](); });
  addEventListener("resize", draw);
  for (const hidden of timeline.querySelectorAll(".tools, .hint")) hidden.hidden = false;
  drawAll();
})();
