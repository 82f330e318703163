// Keys of the whole page. Those of the time line work wherever it is in sight, except while typing.

const KEYS = [
  ["W / S, + / −", "zoom in and out"],
  ["A / D, ← / →", "move (the arrows if the time line has the focus)"],
  ["↑ / ↓", "select in the row above or below"],
  [", / .", "select the slice before or after"],
  ["Z, Enter", "zoom to the selected slice or range"],
  ["0, Home", "show all"],
  ["R", "select what is shown as a range"],
  ["/", "find in the time line"],
  ["N / Shift+N", "next match, match before"],
  ["P", "critical path on or off"],
  ["Esc", "let go of the range, then of the selection"],
  ["?", "this list"],
  ["Flame graph", "arrows go from function to function, Enter zooms, 0 resets"],
];

const keysDialog = byId("keys");
byId("key-list").append(
  el(
    "table",
    { class: "keys" },
    el(
      "tbody",
      {},
      KEYS.map(([keys, does]) => el("tr", {}, el("th", { scope: "row" }, keys), el("td", {}, does))),
    ),
  ),
);
const showKeys = () => (keysDialog.open ? keysDialog.close() : keysDialog.showModal());
byId("help").addEventListener("click", showKeys);
byId("keys-close").addEventListener("click", () => keysDialog.close());
keysDialog.addEventListener("click", (event) => event.target === keysDialog && keysDialog.close());

const letGo = () => {
  hideTip();
  if (state.range) selectRange(null);
  else select(null, -1);
};

const togglePath = () => hasPath && byId("show-path").click();

const timeLineKeys = {
  w: () => zoom(0.7),
  "+": () => zoom(0.7),
  "=": () => zoom(0.7),
  s: () => zoom(1 / 0.7),
  "-": () => zoom(1 / 0.7),
  "−": () => zoom(1 / 0.7),
  a: () => move(-0.15),
  d: () => move(0.15),
  z: zoomToSelected,
  0: showAll,
  r: () => selectRange({ start: state.start, end: state.end }),
  n: () => goToMatch(1),
  N: () => goToMatch(-1),
  ",": () => step(-1),
  ".": () => step(1),
  p: togglePath,
  Escape: letGo,
};

/** Keys that mean something else to the page unless the time line has the focus. */
const focusedKeys = {
  ArrowLeft: timeLineKeys.a,
  ArrowRight: timeLineKeys.d,
  ArrowUp: () => stepRow(-1),
  ArrowDown: () => stepRow(1),
  Enter: zoomToSelected,
  Home: showAll,
};

const isInSight = (element) => {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || keysDialog.open) return;
  if (event.key === "?") {
    event.preventDefault();
    showKeys();
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    byId("time-line").scrollIntoView({ block: "nearest" });
    searchBox.focus();
    return;
  }
  const hasFocus = event.target === rowsCanvas || event.target === overview;
  const key = event.key.length === 1 && event.key !== "N" ? event.key.toLowerCase() : event.key;
  const does =
    (hasFocus ? focusedKeys[key] : undefined) ??
    (hasFocus || isInSight(tlBody) ? timeLineKeys[key] : undefined);
  if (!does) return;
  event.preventDefault();
  does();
});

// What the first drawing took, for whoever measures it: performance.getEntriesByName("first-drawing").
requestAnimationFrame(() => requestAnimationFrame(() => performance.measure("first-drawing")));
