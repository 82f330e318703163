// The strip above the time line: the whole recording, with the part that is shown as a window that
// can be dragged, stretched, or drawn anew.

const overview = byId("overview");
const EDGE = 6;
let overviewParts = null;

const overviewSurface = drawn(overview, (context, width, height) => {
  const count = Math.max(1, Math.floor(width / 2));
  if (overviewParts?.count !== count) overviewParts = { count, parts: density(threads, 0, LENGTH, count) };
  const { parts } = overviewParts;
  const busyOf = (part) => {
    let busy = 0;
    for (let number = 0; number < CLASSES; number += 1)
      if (isTall(number)) busy += parts[part * CLASSES + number];
    return busy;
  };
  let most = 0;
  for (let part = 0; part < count; part += 1) most = Math.max(most, busyOf(part));
  // What runs or wants to: waits are as high everywhere and say nothing here.
  for (let part = 0; part < count; part += 1) {
    let y = height - 1;
    for (let number = 0; number < CLASSES; number += 1) {
      if (!isTall(number)) continue;
      const part_height = ((height - 4) * parts[part * CLASSES + number]) / (most || 1);
      if (part_height === 0) continue;
      y -= part_height;
      context.fillStyle = colours.fill[number];
      context.fillRect(part * 2, y, 2, part_height);
    }
  }
  context.fillStyle = colours.text;
  for (const { at } of milestones) context.fillRect((at / LENGTH) * width - 0.5, 0, 1.25, height);
  const [left, right] = [(state.start / LENGTH) * width, (state.end / LENGTH) * width];
  context.fillStyle = colours.back;
  context.globalAlpha = 0.72;
  context.fillRect(0, 0, left, height);
  context.fillRect(right, 0, width - right, height);
  context.globalAlpha = 1;
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.5;
  context.strokeRect(left + 0.75, 0.75, Math.max(2, right - left - 1.5), height - 1.5);
});

on("view", overviewSurface.redraw);

/** What a drag at `x` would do: stretch an edge, move the window, or draw a new one. */
const grip = (x) => {
  const width = overview.clientWidth;
  const [left, right] = [(state.start / LENGTH) * width, (state.end / LENGTH) * width];
  if (Math.abs(x - left) <= EDGE) return "start";
  if (Math.abs(x - right) <= EDGE) return "end";
  const isAll = state.end - state.start >= LENGTH;
  return x > left && x < right && !isAll ? "window" : "new";
};

let brush = null;
overview.addEventListener("pointerdown", (event) => {
  const { x } = placeOn(overview, event);
  brush = { what: grip(x), x, start: state.start, end: state.end };
  overview.setPointerCapture(event.pointerId);
});
overview.addEventListener("pointermove", (event) => {
  const { x } = placeOn(overview, event);
  if (!brush) {
    overview.style.cursor = { start: "ew-resize", end: "ew-resize", window: "grab", new: "crosshair" }[
      grip(x)
    ];
    return;
  }
  const time = clamp(x / overview.clientWidth, 0, 1) * LENGTH;
  const by = ((x - brush.x) / overview.clientWidth) * LENGTH;
  if (brush.what === "window") show(brush.start + by, brush.end + by);
  else if (brush.what === "start") show(Math.min(time, brush.end - SHORTEST), brush.end);
  else if (brush.what === "end") show(brush.start, Math.max(time, brush.start + SHORTEST));
  else if (Math.abs(x - brush.x) > 3) {
    const from = (brush.x / overview.clientWidth) * LENGTH;
    show(Math.min(from, time), Math.max(from, time));
  }
});
overview.addEventListener("pointerup", (event) => {
  const { x } = placeOn(overview, event);
  // A click brings the window there.
  if (brush?.what === "new" && Math.abs(x - brush.x) <= 3) {
    const half = (state.end - state.start) / 2;
    const time = (x / overview.clientWidth) * LENGTH;
    show(time - half, time + half);
  }
  brush = null;
});
overview.addEventListener("pointercancel", () => (brush = null));

const sayPlace = () => {
  overview.setAttribute("aria-valuenow", String(Math.round((100 * (state.start + state.end)) / 2 / LENGTH)));
  overview.setAttribute("aria-valuetext", byId("shown").textContent);
};
on("view", sayPlace);
sayPlace();
