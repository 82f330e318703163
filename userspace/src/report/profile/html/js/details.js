// What is known of the selected slice or range; the same as the tooltip tells, and more.

const details = byId("details");

const facts = (...pairs) =>
  el(
    "dl",
    { class: "facts" },
    pairs
      .filter((pair) => pair && pair[1])
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );

const action = (text, does) => el("button", { type: "button", on: { click: does } }, text);

/** The stack of a sample, innermost function first. */
const stackOf = (node) => {
  const { nodes, frames } = profile.stacks;
  const found = [];
  for (let at = node; at !== null && at !== undefined && found.length < 200; at = nodes[at].parent)
    found.push(frames[nodes[at].frame]);
  return found;
};

/** The stack that stands for most of a slice, if one was sampled in it. */
const stackIn = (thread, at) => {
  const runsHere = runs[thread.classes[at]];
  let best = null;
  for (const sample of profile.stacks.samples) {
    if (sample.tid !== thread.tid || sample.node === null || sample.is_on_cpu !== runsHere) continue;
    if (sample.at_ns < thread.starts[at] || sample.at_ns > thread.ends[at]) continue;
    if (!best || sample.weight_ns > best.weight_ns) best = sample;
  }
  return best ? stackOf(best.node) : [];
};

const showSlice = ({ thread, at }) => {
  const { starts, ends, wakers, process } = thread;
  const number = thread.classes[at];
  const length = ends[at] - starts[at];
  const waker = threadAt(wakers[at], ends[at]);
  const stack = stackIn(thread, at);
  const toWaker = waker
    ? el(
        "button",
        {
          type: "button",
          class: "link",
          on: {
            click: () => {
              const there = sliceAt(waker, Math.max(waker.start, ends[at] - 1));
              if (there >= 0) reveal(waker, there);
            },
          },
        },
        `${threadTitle(waker)} of ${processTitle(waker.process)}`,
      )
    : wakers[at] >= 0
      ? `${wakers[at]}, which is not of this start-up`
      : "";
  details.replaceChildren(
    el(
      "div",
      { class: "section-head" },
      el("h3", {}, swatch(number), sliceTitle(thread, at)),
      el(
        "div",
        { class: "controls" },
        action("‹ Before", () => step(-1)),
        action("After ›", () => step(1)),
        action("Zoom to it", zoomToSelected),
        isSampled(thread) ? action("Its thread's stacks", () => showStacksOf(thread)) : null,
        action("Select its time", () => selectRange({ start: starts[at], end: ends[at] })),
        action("Close", () => select(null, -1)),
      ),
    ),
    facts(
      ["Class", classes[number].title],
      ["Duration", duration(length)],
      ["From", moment(starts[at], Math.max(length, 1000))],
      ["To", moment(ends[at], Math.max(length, 1000))],
      ["Thread", threadTitle(thread)],
      ["Process", processTitle(process)],
      ["Woken by", toWaker],
    ),
    stack.length > 0
      ? el(
          "div",
          { class: "stack" },
          el("h4", {}, "Stack"),
          el(
            "ol",
            {},
            stack.slice(0, 40).map((frame) =>
              el(
                "li",
                { class: frame.is_kernel ? "kernel" : "" },
                frame.function,
                el(
                  "span",
                  { class: "note" },
                  [frame.module && fileName(frame.module), frame.source]
                    .filter(Boolean)
                    .map((text) => `  ${text}`)
                    .join(""),
                ),
              ),
            ),
          ),
        )
      : "",
  );
};

/** How the time of all threads divides in the selected range. */
const showRangeTimes = ({ start, end }) => {
  const parts = density(threads, start, end, 1);
  const order = [...parts.keys()].filter((number) => parts[number] > 0).sort((a, b) => parts[b] - parts[a]);
  const all = sumOf(parts);
  details.replaceChildren(
    el("h3", {}, `All threads in ${duration(end - start)}`),
    stackedBar(parts, "Selected range", true),
    el(
      "ul",
      { class: "legend small" },
      order.map((number) =>
        el(
          "li",
          {},
          swatch(number),
          ` ${classes[number].title} `,
          el("span", { class: "note" }, `${duration(parts[number])}, ${percent(parts[number], all)}`),
        ),
      ),
    ),
  );
};

const showDetails = () => {
  // The buttons are made anew: that which was pressed keeps the focus.
  const pressed = details.contains(document.activeElement) ? document.activeElement.textContent : null;
  if (state.selected) showSlice(state.selected);
  else if (state.range) showRangeTimes(state.range);
  else
    details.replaceChildren(
      el("p", { class: "note" }, "Select a slice to see what it was, what woke it, and its stack."),
    );
  if (pressed === null) return;
  const again = [...details.querySelectorAll(".controls button")].find(
    (button) => button.textContent === pressed,
  );
  (again ?? rowsCanvas).focus({ preventScroll: true });
};

on("selection", showDetails);

const laterDetails = afterTyping(showDetails);
on("range", () => {
  const { range } = state;
  byId("range-line").hidden = !range;
  if (range)
    byId("range").textContent =
      `${moment(range.start, range.end - range.start)} to ${moment(range.end, range.end - range.start)} (${duration(range.end - range.start)})`;
  if (!state.selected) laterDetails();
});
byId("range-zoom").addEventListener("click", () => state.range && show(state.range.start, state.range.end));
byId("range-clear").addEventListener("click", () => selectRange(null));
showDetails();
