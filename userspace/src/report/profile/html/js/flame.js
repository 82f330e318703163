// The flame graph: drawn from the top, callees below their callers, the heaviest on the left.

const flameCanvas = byId("flame");
const FLAME_ROW = 19;
const flame = { zoomed: ROOT, at: ROOT, weights: null, boxes: [], byPlace: [], words: [], onCpu: true };

/** A colour by module, so that libraries are told apart; always the same for the same. */
const moduleColour = (module) => {
  let hash = 7;
  for (let at = 0; at < module.length; at += 1) hash = (hash * 31 + module.charCodeAt(at)) >>> 0;
  return colours.frames[hash % colours.frames.length];
};

const colourOf = (frame) =>
  frame.is_kernel
    ? colours["frame-kernel"]
    : frame.module
      ? moduleColour(frame.module)
      : colours["frame-unknown"];

const matchesFlame = (node) => {
  if (flame.words.length === 0) return true;
  if (node === ROOT) return false;
  const frame = frameOf(node);
  const said = `${frame.function} ${frame.module ?? ""} ${frame.source ?? ""}`.toLowerCase();
  return flame.words.every((word) => said.includes(word));
};

const titleOf = (node) => (node === ROOT ? "all" : frameOf(node).function);

const flameSurface = drawn(flameCanvas, (context, width) => {
  flame.boxes = layFlames(flame.weights, flame.zoomed, 0.4 / width);
  const depth = flame.boxes.reduce((most, box) => Math.max(most, box.depth), 0);
  const height = (Math.max(depth, 4) + 1) * FLAME_ROW + 2;
  if (Math.abs(flameCanvas.clientHeight - height) > 1) {
    // Drawn once more when it has grown.
    flameCanvas.style.height = `${height}px`;
    return;
  }
  flame.byPlace = [];
  for (const box of flame.boxes) {
    (flame.byPlace[box.depth] ??= []).push(box);
    const [x, y, wide] = [box.left * width, box.depth * FLAME_ROW + 1, box.width * width];
    const frame = box.node === ROOT ? null : frameOf(box.node);
    const isMatch = matchesFlame(box.node);
    let fill = frame ? colourOf(frame) : colours.line;
    if (flame.words.length > 0) fill = isMatch ? colours.match : mixed(fill, colours.panel, 0.3);
    else if (box.isAbove) fill = mixed(fill, colours.panel, 0.45);
    context.fillStyle = fill;
    context.fillRect(x, y, wide > 2 ? wide - 0.75 : Math.max(wide, 0.5), FLAME_ROW - 1);
    if (wide > 24) {
      context.fillStyle = readable(fill);
      context.fillText(fitted(context, titleOf(box.node), wide - 8), x + 4, y + FLAME_ROW / 2);
    }
  }
  const chosen = flame.boxes.find((box) => box.node === flame.at);
  if (chosen && (flame.at !== ROOT || document.activeElement === flameCanvas)) {
    context.strokeStyle = colours.accent;
    context.lineWidth = 2;
    context.strokeRect(
      chosen.left * width + 1,
      chosen.depth * FLAME_ROW + 2,
      Math.max(2, chosen.width * width - 2),
      FLAME_ROW - 3,
    );
  }
});

const boxAt = ({ x, y }) => {
  const share = x / flameCanvas.clientWidth;
  return flame.byPlace[Math.floor((y - 1) / FLAME_ROW)]?.find(
    (box) => share >= box.left && share < box.left + Math.max(box.width, 0.5 / flameCanvas.clientWidth),
  );
};

const linesOf = (node) => {
  const { weights } = flame;
  if (node === ROOT) return ["all", `${duration(weights.all)} in ${plural(weights.count, "sample")}`];
  const frame = frameOf(node);
  return [
    frame.function,
    frame.module ? `${frame.module}${frame.is_kernel ? " (kernel)" : ""}` : frame.is_kernel ? "kernel" : "",
    frame.source ?? "",
    `${duration(weights.total[node])}, ${percent(weights.total[node], weights.all)}; ${plural(weights.counts[node], "sample")}`,
    `in itself ${duration(weights.own[node])}, ${percent(weights.own[node], weights.all)}`,
  ];
};

const chooseFrame = (node) => {
  flame.at = node;
  byId("flame-current").textContent =
    node === ROOT
      ? "Press a function to zoom to it; wider is longer."
      : linesOf(node).filter(Boolean).join(" · ");
  flameSurface.redraw();
};

const zoomFlames = (node) => {
  flame.zoomed = node;
  byId("flame-reset").disabled = node === ROOT;
  chooseFrame(node);
};

const sayFlameMatches = () => {
  const output = byId("flame-matches");
  output.textContent = "";
  if (flame.words.length > 0) {
    // What a match called is part of it already.
    let time = 0;
    const open = calleesOfRoot.slice();
    while (open.length > 0) {
      const node = open.pop();
      if (flame.weights.total[node] === 0) continue;
      if (matchesFlame(node)) time += flame.weights.total[node];
      else if (node !== UNKNOWN) open.push(...calleesOf[node]);
    }
    output.textContent = time > 0 ? `${percent(time, flame.weights.all)}, ${duration(time)}` : "no match";
  }
  flameSurface.redraw();
};

const chosenTids = () => {
  const [kind, number] = flameOf.value.split(":");
  if (kind === "thread") return new Set([Number(number)]);
  if (kind === "process")
    return new Set(processByPid.get(Number(number)).threads.map((thread) => thread.tid));
  return null;
};

let functionTable = null;
const weighFlames = () => {
  const { range } = state;
  flame.weights = weigh({ onCpu: flame.onCpu, tids: chosenTids(), range });
  const { all, count } = flame.weights;
  const isEmpty = count === 0;
  byId("flame-frame").hidden = isEmpty;
  const what = flame.onCpu ? "on processors" : "waiting";
  const where = range
    ? `from ${moment(range.start, range.end - range.start)} to ${moment(range.end, range.end - range.start)}`
    : "in the whole recording";
  byId("flame-note").textContent = isEmpty
    ? `No samples of threads ${what} ${where}.`
    : `${duration(all)} ${what} ${where}, in ${plural(count, "sample")}. ${range ? "" : "Select a range in the time line to see that part only."}`;
  if (flame.zoomed !== ROOT && flame.weights.total[flame.zoomed] === 0) zoomFlames(ROOT);
  else chooseFrame(flame.weights.total[flame.at] > 0 ? flame.at : ROOT);
  sayFlameMatches();
  if (byId("functions").parentElement.open) functionTable?.show(byFunction(flame.weights));
};

const flameOf = byId("flame-of");
const sampled = new Set(stackSamples.map((sample) => sample.tid));
const isSampled = (thread) => sampled.has(thread.tid);

/** What the choice calls a thread; one that is alone is called as its process. */
const choiceOf = ({ process, tid }) =>
  process.threads.length > 1 ? `thread:${tid}` : `process:${process.pid}`;

/** Shows the stacks of one thread. */
const showStacksOf = (thread) => {
  flameOf.value = choiceOf(thread);
  weighFlames();
  byId("stacks").scrollIntoView();
  flameCanvas.focus({ preventScroll: true });
};

flameOf.append(el("option", { value: "all" }, "All processes"));
for (const process of processes) {
  const some = process.threads.filter(isSampled);
  if (some.length === 0) continue;
  flameOf.append(el("option", { value: `process:${process.pid}` }, processTitle(process)));
  if (process.threads.length > 1) {
    flameOf.append(
      ...some.map((thread) => el("option", { value: choiceOf(thread) }, `\u2003${threadTitle(thread)}`)),
    );
  }
}
flameOf.addEventListener("change", weighFlames);

for (const radio of document.querySelectorAll("input[name=cpu]")) {
  radio.addEventListener("change", () => {
    flame.onCpu = document.querySelector("input[name=cpu]:checked").value === "on";
    flame.zoomed = ROOT;
    weighFlames();
  });
}

byId("flame-search").addEventListener(
  "input",
  afterTyping(() => {
    flame.words = byId("flame-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    sayFlameMatches();
  }),
);
byId("flame-reset").addEventListener("click", () => zoomFlames(ROOT));
flameCanvas.addEventListener("click", (event) => {
  const box = boxAt(placeOn(flameCanvas, event));
  if (box) zoomFlames(box.node);
});
flameCanvas.addEventListener("pointermove", (event) => {
  const box = boxAt(placeOn(flameCanvas, event));
  flameCanvas.style.cursor = box ? "pointer" : "default";
  if (box) showTip(event.clientX, event.clientY, linesOf(box.node));
  else hideTip();
});
flameCanvas.addEventListener("pointerleave", hideTip);
flameCanvas.addEventListener("focus", flameSurface.redraw);
flameCanvas.addEventListener("blur", flameSurface.redraw);

/** Goes from function to function: out, in, and to those beside. */
const walkFlames = (key) => {
  const { at, weights } = flame;
  const parent = at === ROOT || at === UNKNOWN ? ROOT : parentOf[at];
  if (key === "ArrowUp") return chooseFrame(parent);
  if (key === "ArrowDown") return chooseFrame(heaviest(weights, at)[0] ?? at);
  const beside = at === ROOT ? [ROOT] : heaviest(weights, parent);
  return chooseFrame(
    beside[clamp(beside.indexOf(at) + (key === "ArrowRight" ? 1 : -1), 0, beside.length - 1)],
  );
};

flameCanvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.startsWith("Arrow")) walkFlames(event.key);
  else if (event.key === "Enter" || event.key === " ") zoomFlames(flame.at);
  else if (["0", "Home", "Escape"].includes(event.key)) zoomFlames(ROOT);
  else return;
  event.preventDefault();
  event.stopPropagation();
  const box = flame.boxes.find((one) => one.node === flame.at);
  const frame = byId("flame-frame");
  if (
    box &&
    (box.depth * FLAME_ROW < frame.scrollTop ||
      (box.depth + 1) * FLAME_ROW > frame.scrollTop + frame.clientHeight)
  )
    frame.scrollTop = box.depth * FLAME_ROW - frame.clientHeight / 2;
});

weighFlames();
byId("flame-reset").disabled = true;
on("range", afterTyping(weighFlames));
