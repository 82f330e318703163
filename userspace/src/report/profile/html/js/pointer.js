// Pointers on the time line: hovering, selecting, moving, zooming, selecting a range.

const DRAG = 4;

/** The slice at a place: of those in one pixel, the longest. */
const sliceNear = (thread, x, width) => {
  const [from, to] = [timeAt(x - 0.5, width), timeAt(x + 0.5, width)];
  let [best, longest] = [-1, -1];
  for (let at = firstAfter(thread.ends, from); at < thread.count && thread.starts[at] < to; at += 1) {
    const length = thread.ends[at] - thread.starts[at];
    const isHidden = state.isMatch !== null && !state.isMatch(thread, at);
    const rank = isHidden ? length / 1e12 : length;
    if (rank > longest) [best, longest] = [at, rank];
  }
  return best;
};

/** What is at a place: `{row, thread, at, step}`. */
const hit = ({ x, y }) => {
  const width = rowsCanvas.clientWidth;
  const row = rows[Math.floor((y + tlBody.scrollTop) / ROW)];
  if (!row) return null;
  if (row.kind === "path") {
    const time = timeAt(x, width);
    const at = firstAfter(pathEnds, time);
    const step = path[at];
    if (!step?.thread || step.start > timeAt(x + 1, width)) return { row };
    return { row, step, thread: step.thread, at: sliceAt(step.thread, (step.start + step.end) / 2) };
  }
  if (row.kind === "process") return { row };
  const at = sliceNear(row.thread, x, width);
  return at < 0 ? { row } : { row, thread: row.thread, at };
};

const wakerText = (tid, time) => {
  if (tid < 0) return "";
  const waker = threadAt(tid, time);
  return waker ? `woken by ${threadTitle(waker)}` : `woken by ${tid}, which is not of this start-up`;
};

const tipOf = ({ row, thread, at, step }) => {
  if (step) {
    const title = textOf(step.text) || classes[step.number].title;
    return [
      title,
      `${classes[step.number].title}, ${duration(step.end - step.start)}`,
      `critical path, in ${threadTitle(step.thread)}`,
    ];
  }
  if (thread) {
    const { starts, ends, classes: numbers, wakers, process } = thread;
    return [
      sliceTitle(thread, at),
      `${classes[numbers[at]].title}, ${duration(ends[at] - starts[at])}`,
      `from ${moment(starts[at], Math.max(ends[at] - starts[at], 1000))}`,
      `${threadTitle(thread)}${process.threads.length > 1 ? ` of ${processTitle(process)}` : ""}`,
      wakerText(wakers[at], ends[at]),
    ];
  }
  if (row?.kind === "process") {
    const { process } = row;
    return [
      processTitle(process),
      plural(process.threads.length, "thread"),
      `on a processor for ${duration(runTime(process.times))}`,
      ...process.executions.slice(0, 4).map((one) => `${moment(one.at_ns, LENGTH)} exec ${one.path}`),
    ];
  }
  return null;
};

/** Pointers that are down, by number: one moves or selects, two pinch. */
const down = new Map();
let drag = null;
let pinch = null;

const setHovered = (found) => {
  const next = found?.thread && found.at >= 0 ? found : null;
  if (next?.thread !== hovered?.thread || next?.at !== hovered?.at) {
    hovered = next;
    rowsSurface.redraw();
  }
};

const pinchOf = () => {
  const [a, b] = [...down.values()];
  return { x: (a.x + b.x) / 2, distance: Math.max(20, Math.abs(a.x - b.x)) };
};

const press = (canvas) => (event) => {
  if (event.button !== 0) return;
  const place = placeOn(canvas, event);
  canvas.setPointerCapture(event.pointerId);
  down.set(event.pointerId, place);
  hideTip();
  if (down.size === 2) {
    pinch = { ...pinchOf(), start: state.start, end: state.end };
    drag = null;
    return;
  }
  drag = {
    ...place,
    isRange: event.shiftKey || canvas === axisCanvas,
    start: state.start,
    end: state.end,
    scroll: tlBody.scrollTop,
    moved: false,
  };
};

const dragTo = (canvas, place) => {
  const width = canvas.clientWidth;
  if (!drag.moved && Math.hypot(place.x - drag.x, place.y - drag.y) < DRAG) return;
  drag.moved = true;
  if (drag.isRange) {
    const [a, b] = [timeAt(clamp(drag.x, 0, width), width), timeAt(clamp(place.x, 0, width), width)];
    selectRange({ start: Math.min(a, b), end: Math.max(a, b) });
    return;
  }
  const by = ((drag.x - place.x) / width) * (drag.end - drag.start);
  show(drag.start + by, drag.end + by);
  tlBody.scrollTop = drag.scroll + drag.y - place.y;
};

const slide = (canvas) => (event) => {
  const place = placeOn(canvas, event);
  if (down.has(event.pointerId)) down.set(event.pointerId, place);
  if (pinch && down.size === 2) {
    const now = pinchOf();
    const width = canvas.clientWidth;
    const span = ((pinch.end - pinch.start) * pinch.distance) / now.distance;
    const fixed = pinch.start + (pinch.x / width) * (pinch.end - pinch.start);
    show(fixed - (now.x / width) * span, fixed + (1 - now.x / width) * span);
    return;
  }
  if (drag) {
    dragTo(canvas, place);
    return;
  }
  if (canvas !== rowsCanvas) return;
  const found = hit(place);
  setHovered(found);
  const lines = found && tipOf(found);
  if (lines) showTip(event.clientX, event.clientY, lines);
  else hideTip();
};

const release = (canvas) => (event) => {
  down.delete(event.pointerId);
  if (down.size < 2) pinch = null;
  const was = drag;
  drag = null;
  if (!was || was.moved || event.type !== "pointerup" || canvas !== rowsCanvas) return;
  const found = hit(placeOn(canvas, event));
  if (found?.row?.kind === "process") fold(found.row.process, !found.row.process.folded);
  else select(found?.thread, found?.at ?? -1);
};

const wheel = (canvas) => (event) => {
  const width = canvas.clientWidth;
  const across = event.shiftKey && event.deltaX === 0 ? event.deltaY : event.deltaX;
  if (Math.abs(across) > Math.abs(event.deltaY) || event.shiftKey) {
    event.preventDefault();
    move(across / width);
    return;
  }
  // With all in sight there is nothing to zoom out to: the page scrolls.
  if (event.deltaY > 0 && state.end - state.start >= LENGTH && !event.ctrlKey) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  const strength = event.ctrlKey ? 0.01 : 0.0018;
  zoom(Math.exp(clamp(event.deltaY * lines, -240, 240) * strength), timeAt(placeOn(canvas, event).x, width));
};

for (const canvas of [rowsCanvas, axisCanvas]) {
  canvas.addEventListener("pointerdown", press(canvas));
  canvas.addEventListener("pointermove", slide(canvas));
  canvas.addEventListener("pointerup", release(canvas));
  canvas.addEventListener("pointercancel", release(canvas));
  canvas.addEventListener("pointerleave", () => {
    hideTip();
    setHovered(null);
  });
  canvas.addEventListener("wheel", wheel(canvas), { passive: false });
}

rowsCanvas.addEventListener("dblclick", (event) => {
  const found = hit(placeOn(rowsCanvas, event));
  if (found?.thread && found.at >= 0) showAround(found.thread.starts[found.at], found.thread.ends[found.at]);
});

// What the keys do with the selected slice.

const zoomToSelected = () => {
  if (state.selected)
    showAround(
      state.selected.thread.starts[state.selected.at],
      state.selected.thread.ends[state.selected.at],
    );
  else if (state.range) showAround(state.range.start, state.range.end, 0.02);
};

/** Selects the slice before or after. */
const step = (by) => {
  const { selected } = state;
  if (!selected) return stepRow(0);
  reveal(selected.thread, clamp(selected.at + by, 0, selected.thread.count - 1));
};

/** Selects a slice at the same time in the next row, or the one before, that has one. */
const stepRow = (by) => {
  const { selected } = state;
  const time = selected
    ? clamp(
        (selected.thread.starts[selected.at] + selected.thread.ends[selected.at]) / 2,
        state.start,
        state.end,
      )
    : (state.start + state.end) / 2;
  const from = selected ? rowOfThread.get(selected.thread) : -1;
  for (let row = from + (by || 1); row >= 0 && row < rows.length; row += by || 1) {
    const { kind, thread } = rows[row];
    const at = kind === "thread" ? sliceAt(thread, time) : -1;
    if (at >= 0) return select(thread, at);
  }
  return null;
};
