// The time line: scale, rows, milestones, the critical path and what is selected.

const rowsCanvas = byId("rows");
const axisCanvas = byId("axis");
const tlBody = byId("tl-body");
/** What the pointer is on: `{thread, at}`. */
let hovered = null;

const xOf = (time, width) => ((time - state.start) / (state.end - state.start)) * width;
const timeAt = (x, width) => state.start + (x / width) * (state.end - state.start);

/** How far the rows are scrolled; to ask the page for each slice would be slow. */
let scrolled = 0;

/** The row of a thread; that of its process if it is folded. */
const topOf = (thread) => (rowOfThread.get(thread) ?? -1) * ROW - scrolled;

const arrowHead = (context, x, y, down) => {
  const back = down ? -6 : 6;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x - 3.5, y + back);
  context.lineTo(x + 3.5, y + back);
  context.fill();
};

/** Goes from one row to another at a time, as that which wakes does. */
const drawJump = (context, x, from, to) => {
  const down = to > from;
  const [first, last] = down ? [from + ROW - 2, to + 4] : [from + 3, to + ROW - 2];
  context.fillRect(x - 0.75, Math.min(first, last), 1.5, Math.abs(last - first));
  arrowHead(context, x, last, down);
};

/** A bold line under the slices that the end waited for, and arrows where it goes on in another thread. */
const drawPath = (context, width, height) => {
  context.fillStyle = colours.path;
  let lastJump = -10;
  for (let at = firstAfter(pathEnds, state.start); at < path.length && path[at].start <= state.end; at += 1) {
    const { start, end, thread } = path[at];
    if (!thread) continue;
    const [left, right, top] = [
      Math.max(-4, xOf(start, width)),
      Math.min(width + 4, xOf(end, width)),
      topOf(thread),
    ];
    if (top > -ROW && top < height) context.fillRect(left, top + ROW - 3, Math.max(1, right - left), 3);
    const before = path[at - 1]?.thread;
    if (before && before !== thread && left - lastJump >= 3 && topOf(before) !== top) {
      drawJump(context, left, topOf(before), top);
      lastJump = left;
    }
  }
};

const outline = (context, { thread, at }, width, colour, weight) => {
  if (!rowOfThread.has(thread)) return;
  const [left, right] = [xOf(thread.starts[at], width), xOf(thread.ends[at], width)];
  const box = [Math.max(-9, left), Math.min(width + 9, Math.max(right, left + 3))];
  context.strokeStyle = colour;
  context.lineWidth = weight;
  context.strokeRect(box[0], topOf(thread) + 2, box[1] - box[0], ROW - 4);
};

const drawProcess = (context, process, top, width) => {
  const [left, right] = [xOf(process.start_ns, width), xOf(process.end_ns ?? LENGTH, width)];
  context.fillStyle = colours.line;
  context.fillRect(Math.max(0, left), top + ROW / 2 - 1, Math.min(width, right) - Math.max(0, left), 2);
  let free = -1;
  for (const { at_ns, path: program } of process.executions) {
    const x = xOf(at_ns, width);
    if (x < -200 || x > width) continue;
    const shown = fitted(context, `exec ${fileName(program)}`, Math.min(220, width - x - 12));
    const from = Math.max(x, 0);
    if (from < free || !shown) continue;
    const room = widthOf(context, shown) + 14;
    context.fillStyle = colours.panel;
    context.fillRect(from, top + 2, room, ROW - 4);
    context.fillStyle = colours.note;
    context.fillRect(from, top + 4, 2, ROW - 8);
    context.fillText(shown, from + 6, top + ROW / 2);
    free = from + room;
  }
};

const markTimes = (width) => {
  const span = state.end - state.start;
  const step = markStep(span, width / 110);
  const times = [];
  for (let time = Math.ceil(state.start / step) * step; time <= state.end; time += step) times.push(time);
  return { times, text: momentFormat(Math.max(state.end, 1), step) };
};

/** What is outside the selected range is paler; inside, colours mean what they mean elsewhere. */
const drawRange = (context, width, height) => {
  if (!state.range) return;
  const [left, right] = [xOf(state.range.start, width), xOf(state.range.end, width)];
  context.globalAlpha = 0.6;
  context.fillStyle = colours.panel;
  context.fillRect(0, 0, left, height);
  context.fillRect(right, 0, width - right, height);
  context.globalAlpha = 1;
  context.fillStyle = colours.accent;
  context.fillRect(left - 0.75, 0, 1.5, height);
  context.fillRect(right - 0.75, 0, 1.5, height);
};

/** The same on the scale, as a band. */
const drawRangeBand = (context, width, height) => {
  if (!state.range) return;
  const [left, right] = [xOf(state.range.start, width), xOf(state.range.end, width)];
  context.fillStyle = colours.accent;
  context.globalAlpha = 0.18;
  context.fillRect(left, 0, right - left, height);
  context.globalAlpha = 1;
  context.fillRect(left, height - 2, right - left, 2);
};

const rowsSurface = drawn(rowsCanvas, (context, width, height) => {
  const scroll = (scrolled = Math.round(tlBody.scrollTop));
  beginDense(width, height);
  const first = Math.max(0, Math.floor(scroll / ROW));
  const last = Math.min(rows.length, Math.ceil((scroll + height) / ROW));
  context.fillStyle = colours.line;
  context.globalAlpha = 0.6;
  for (const time of markTimes(width).times) context.fillRect(Math.round(xOf(time, width)), 0, 1, height);
  for (let row = first; row < last; row += 1) {
    if (rows[row].kind !== "thread" || rows[row].isSingle) context.fillRect(0, row * ROW - scroll, width, 1);
  }
  context.globalAlpha = 1;
  for (let at = first; at < last; at += 1) {
    const row = rows[at];
    const top = at * ROW - scroll;
    const bottom = top + ROW - 3;
    if (row.kind === "path") addPath(bottom, width);
    else if (row.kind === "thread") addThread(row.thread, bottom, width);
    else if (row.process.folded) addFolded(row.process, bottom, width);
    else drawProcess(context, row.process, top, width);
  }
  fillSlices(context);
  if (state.showsPath) drawPath(context, width, height);
  drawRange(context, width, height);
  for (const { at } of milestones) {
    context.fillStyle = colours.text;
    for (let y = 0; y < height; y += 7) context.fillRect(xOf(at, width) - 0.5, y, 1.25, 4);
  }
  if (hovered) outline(context, hovered, width, colours.text, 1);
  if (state.selected) {
    const { thread, at } = state.selected;
    const waker = threadAt(thread.wakers[at], thread.ends[at]);
    if (waker && waker !== thread && rowOfThread.get(waker) !== rowOfThread.get(thread)) {
      context.fillStyle = colours.accent;
      drawJump(context, xOf(thread.ends[at], width), topOf(waker), topOf(thread));
    }
    outline(context, state.selected, width, colours.accent, 2);
  }
});

/** Where the names of milestones stand: beside their lines, each in the first lane with room. */
const placeNames = (context, width) => {
  const ends = [];
  const named = milestones.map((one) => ({ x: xOf(one.at, width), name: `${one.name} ${duration(one.at)}` }));
  const inSight = named.filter(({ x }) => x >= -1 && x <= width + 1).sort((a, b) => a.x - b.x);
  return inSight.flatMap(({ x, name }) => {
    const room = widthOf(context, name) + 10;
    const left = x + room <= width ? x : Math.max(0, x - room);
    const lane = [0, 1, 2].find((lane) => (ends[lane] ?? 0) <= left);
    if (lane === undefined) return [];
    ends[lane] = left + room;
    return [{ x, name, lane, text: left + 5, isRight: left < x }];
  });
};

const LANES = Math.min(3, milestones.length);
axisCanvas.style.height = `${20 + LANES * 16}px`;

const axisSurface = drawn(axisCanvas, (context, width, height) => {
  const { times, text } = markTimes(width);
  context.fillStyle = colours.note;
  for (const time of times) {
    const x = xOf(time, width);
    const said = text(time);
    context.fillRect(Math.round(x), height - 5, 1, 5);
    const half = widthOf(context, said) / 2;
    context.fillText(said, clamp(x - half, 1, width - 2 * half - 1), height - 12);
  }
  drawRangeBand(context, width, height);
  for (const { x, name, lane, text: left } of placeNames(context, width)) {
    const y = lane * 16;
    context.fillStyle = colours.text;
    context.fillRect(x - 0.5, y + 1, 1.25, height - y - 1);
    const room = widthOf(context, name) + 8;
    context.fillRect(left - 4, y + 1, room, 14);
    context.fillStyle = colours.panel;
    context.fillText(name, left, y + 8.5);
  }
});

const layTimeLine = () => {
  const all = rows.length * ROW;
  rowsCanvas.parentElement.style.height = `${all}px`;
  rowsCanvas.style.height = `${Math.min(all, tlBody.clientHeight || all)}px`;
  rowsSurface.redraw();
};
new ResizeObserver(layTimeLine).observe(tlBody);
on("rows", layTimeLine);
layTimeLine();

const sayShown = () => {
  const span = state.end - state.start;
  byId("shown").textContent =
    span >= LENGTH
      ? `all, ${duration(LENGTH)}`
      : `${moment(state.start, span)} to ${moment(state.end, span)} (${duration(span)})`;
};
on("view", () => {
  sayShown();
  axisSurface.redraw();
  rowsSurface.redraw();
});
on("range", axisSurface.redraw);
on("range selection only match path", rowsSurface.redraw);
sayShown();

tlBody.addEventListener("scroll", rowsSurface.redraw, { passive: true });
byId("show-path").addEventListener("change", (event) => {
  state.showsPath = event.target.checked;
  tell("path");
});
byId("show-path").parentElement.hidden = !hasPath;
byId("zoom-in").addEventListener("click", () => zoom(0.5));
byId("zoom-out").addEventListener("click", () => zoom(2));
byId("zoom-all").addEventListener("click", showAll);

/** Scrolls a thread's row into sight. */
const showRow = (thread) => {
  const top = topOf(thread);
  if (top < 0) tlBody.scrollTop += top - ROW;
  else if (top + ROW > tlBody.clientHeight) tlBody.scrollTop += top + 2 * ROW - tlBody.clientHeight;
};
on("selection", () => {
  if (!state.selected) return;
  const { process } = state.selected.thread;
  if (process.folded && process.threads.length > 1) fold(process, false);
  showRow(state.selected.thread);
});
