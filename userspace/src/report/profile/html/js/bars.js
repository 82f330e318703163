// Where the time went: stacked bars of classes for the critical path, processes and threads.

const swatch = (number) => el("i", { class: `swatch class-${classes[number].id}`, "aria-hidden": "true" });

/** A stacked bar. Its parts are for the eye; its label says the same. */
const stackedBar = (times, of, isTall = false) => {
  const all = sumOf(times);
  // The classes that run come first, so that they can be compared along a column of bars.
  const parts = [...times.keys()].filter((number) => times[number] > 0);
  const spoken = [...parts]
    .sort((a, b) => times[b] - times[a])
    .slice(0, 5)
    .map((number) => `${classes[number].title} ${percent(times[number], all)}`);
  const bar = el("div", {
    class: isTall ? "bar tall" : "bar",
    role: "img",
    "aria-label": `${of}: ${spoken.join(", ") || "no time"}`,
  });
  for (const number of parts) {
    const share = times[number] / all;
    const lines = [classes[number].title, `${duration(times[number])}, ${percent(times[number], all)}`, of];
    bar.append(
      el(
        "span",
        {
          class: `part class-${classes[number].id}`,
          "data-class": classes[number].id,
          style: { "flex-grow": String(share) },
          on: { pointermove: (event) => showTip(event.clientX, event.clientY, lines), pointerleave: hideTip },
        },
        isTall && share > 0.09 ? el("b", {}, classes[number].title) : null,
      ),
    );
  }
  return bar;
};

const pathTimes = new Float64Array(CLASSES);
for (const step of path) pathTimes[step.number] += step.end - step.start;

const hasPath = path.length > 0;
/** What the main bar shows. */
const mainTimes = hasPath
  ? pathTimes
  : threads.reduce(
      (sum, thread) => sum.map((time, number) => time + thread.times[number]),
      new Float64Array(CLASSES),
    );

byId("times-note").textContent = hasPath
  ? "The critical path: at each moment, what the end of the start-up waited for, in whichever thread that was."
  : "There is no critical path in this profile; this is the sum over all threads, idle ones too.";
byId("path-bar").append(stackedBar(mainTimes, hasPath ? "Critical path" : "All threads", true));

const letStandOut = (number) => {
  state.only = state.only === number ? null : number;
  const chosen = state.only === null ? null : classes[state.only].id;
  for (const button of document.querySelectorAll("#legend button")) {
    button.setAttribute("aria-pressed", String(button.dataset.class === chosen));
  }
  for (const part of document.querySelectorAll(".part")) {
    part.classList.toggle("dim", chosen !== null && part.dataset.class !== chosen);
  }
  tell("only");
};

{
  const all = sumOf(mainTimes);
  const elsewhere = new Float64Array(CLASSES);
  for (const thread of threads) thread.times.forEach((time, number) => (elsewhere[number] += time));
  const order = [...mainTimes.keys()].sort((a, b) => mainTimes[b] - mainTimes[a] || a - b);
  for (const number of order) {
    if (elsewhere[number] === 0 && mainTimes[number] === 0) continue;
    byId("legend").append(
      el(
        "li",
        {},
        el(
          "button",
          {
            type: "button",
            "aria-pressed": "false",
            "data-class": classes[number].id,
            class: mainTimes[number] > 0 ? "" : "zero",
            on: { click: () => letStandOut(number) },
          },
          swatch(number),
          el("span", { class: "name" }, classes[number].title),
          el(
            "span",
            { class: "value" },
            mainTimes[number] > 0 ? duration(mainTimes[number]) : "not on the path",
          ),
          el("span", { class: "share" }, mainTimes[number] > 0 ? percent(mainTimes[number], all) : ""),
        ),
      ),
    );
  }
}

const barRow = (kind, name, number, times, start, end, of, opener = null) =>
  el(
    "div",
    { class: `bar-row ${kind}` },
    el(
      "div",
      { class: "bar-name" },
      opener,
      el("span", { class: "name", title: name }, name),
      el("span", { class: "note" }, String(number)),
    ),
    stackedBar(times, of),
    el("div", { class: "bar-value", title: "on a processor" }, duration(runTime(times))),
    el("div", { class: "bar-value note", title: "how long it was there" }, duration(end - start)),
  );

const processBars = (process) => {
  const box = el("div", {});
  const end = process.end_ns ?? LENGTH;
  const isMany = process.threads.length > 1;
  const inner = el("div", { hidden: true });
  const opener = isMany
    ? el("button", {
        type: "button",
        class: "plain fold",
        "aria-expanded": "false",
        "aria-label": `Threads of ${processTitle(process)}`,
        on: {
          click: () => {
            if (inner.childElementCount === 0) {
              const busiest = [...process.threads].sort((a, b) => runTime(b.times) - runTime(a.times));
              inner.append(
                ...busiest.map((thread) =>
                  barRow(
                    "of-thread",
                    thread.name,
                    thread.tid,
                    thread.times,
                    thread.start,
                    thread.end,
                    `Thread ${threadTitle(thread)}`,
                  ),
                ),
              );
            }
            inner.hidden = !inner.hidden;
            opener.setAttribute("aria-expanded", String(!inner.hidden));
          },
        },
      })
    : el("span", { class: "fold" });
  box.append(
    barRow(
      "of-process",
      process.name,
      process.pid,
      process.times,
      process.start_ns,
      end,
      `Process ${processTitle(process)}`,
      opener,
    ),
    inner,
  );
  return box;
};

{
  const box = byId("thread-bars");
  const busiest = [...processes].sort((a, b) => runTime(b.times) - runTime(a.times));
  const FIRST = 8;
  box.append(
    el(
      "div",
      { class: "bar-row bar-head", "aria-hidden": "true" },
      el("div", {}, "process"),
      el("div", {}),
      el("div", { class: "bar-value" }, "on CPU"),
      el("div", { class: "bar-value" }, "lived"),
    ),
  );
  box.append(...busiest.slice(0, FIRST).map(processBars));
  // A start-up by shell scripts has hundreds.
  if (busiest.length > FIRST) {
    const more = el(
      "button",
      { type: "button", on: { click: () => more.replaceWith(...busiest.slice(FIRST).map(processBars)) } },
      `Show ${plural(busiest.length - FIRST, "more process", "more processes")}`,
    );
    box.append(more);
  }
}
