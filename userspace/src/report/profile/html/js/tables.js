// The tables: what the critical path waited for, system calls, files, look-ups, connections, faults, processes.

const timeColumn = (title, value, hint) => ({
  title,
  value,
  hint,
  show: (row) => (value(row) === null ? "–" : duration(value(row))),
});
const countColumn = (title, value, hint) => ({ title, value, hint, show: (row) => whole(value(row)) });
const textColumn = (title, value, show) => ({ title, value, isText: true, show });
const processColumn = textColumn("process", (row) => pidTitle(row.pid));
const pathText = (text) => el("code", {}, text);

/** Steps of the critical path that are alike, added up. */
const pathParts = () => {
  const parts = new Map();
  for (const one of path) {
    const key = `${one.tid} ${one.number} ${one.text}`;
    const part = parts.get(key) ?? {
      thread: one.thread,
      tid: one.tid,
      number: one.number,
      text: textOf(one.text),
      count: 0,
      time: 0,
      longest: one,
    };
    part.count += 1;
    part.time += one.end - one.start;
    if (one.end - one.start > part.longest.end - part.longest.start) part.longest = one;
    parts.set(key, part);
  }
  return [...parts.values()];
};

const goToStep = (one) => {
  showAround(one.start, one.end, 0.5);
  const at = one.thread ? sliceAt(one.thread, (one.start + one.end) / 2) : -1;
  if (at >= 0) select(one.thread, at);
  byId("time-line").scrollIntoView();
  rowsCanvas.focus({ preventScroll: true });
};

const pathTable = () => ({
  name: "Critical path",
  rows: pathParts(),
  sorted: 3,
  columns: [
    textColumn("what", (row) => row.text || classes[row.number].title),
    textColumn(
      "class",
      (row) => classes[row.number].title,
      (row) => el("span", {}, swatch(row.number), classes[row.number].title),
    ),
    textColumn("thread", (row) => (row.thread ? threadTitle(row.thread) : String(row.tid))),
    timeColumn("time", (row) => row.time),
    {
      title: "share",
      value: (row) => row.time,
      show: (row) => percent(row.time, LENGTH),
      hint: "of the recording",
    },
    countColumn("times", (row) => row.count),
    {
      ...timeColumn("longest", (row) => row.longest.end - row.longest.start),
      show: (row) =>
        el(
          "button",
          {
            type: "button",
            class: "link",
            title: "Show it in the time line",
            on: { click: () => goToStep(row.longest) },
          },
          duration(row.longest.end - row.longest.start),
        ),
    },
  ],
});

const callTable = () => ({
  name: "System calls",
  rows: profile.calls,
  sorted: 4,
  columns: [
    textColumn(
      "call",
      (row) => row.name,
      (row) => pathText(row.name),
    ),
    processColumn,
    countColumn("count", (row) => row.count),
    countColumn("errors", (row) => row.errors),
    timeColumn("total", (row) => row.total_ns, "from entry to exit"),
    timeColumn("self", (row) => row.self_ns, "of that on a processor"),
    {
      ...timeColumn("mean", (row) => (row.count > 0 ? row.total_ns / row.count : 0)),
      hint: "total of one call",
    },
  ],
});

const fileTable = () => ({
  name: "Files",
  rows: profile.files,
  // Storage tells most, if there was any to wait for.
  sorted: profile.files.some((file) => file.disk_ns > 0) ? 5 : 4,
  columns: [
    textColumn(
      "path",
      (row) => row.path,
      (row) => pathText(row.path),
    ),
    countColumn("opens", (row) => row.opens),
    countColumn("reads", (row) => row.reads),
    {
      title: "read",
      value: (row) => row.bytes_read,
      show: (row) => bytes(row.bytes_read),
      hint: "bytes read",
    },
    timeColumn("self", (row) => row.self_ns, "in calls on it, on a processor"),
    timeColumn("storage", (row) => row.disk_ns, "waiting for storage"),
    countColumn("pages missed", (row) => row.pages_missed, "pages that were not in the page cache"),
  ],
});

const lookupTable = () => ({
  name: "Failed look-ups",
  rows: profile.failed_lookups,
  sorted: 2,
  extra: (row) => row.examples.join("\n"),
  columns: [
    processColumn,
    countColumn("count", (row) => row.count),
    timeColumn("time", (row) => row.total_ns),
    textColumn(
      "examples",
      (row) => row.examples[0] ?? "",
      (row) =>
        row.examples.length === 0
          ? "–"
          : el(
              "details",
              { class: "examples" },
              el(
                "summary",
                {},
                pathText(row.examples[0]),
                row.examples.length > 1
                  ? el("span", { class: "note" }, ` and ${whole(row.examples.length - 1)} more`)
                  : null,
              ),
              el(
                "ul",
                {},
                row.examples.slice(1).map((example) => el("li", {}, pathText(example))),
              ),
            ),
    ),
  ],
});

const since = (later, earlier) => (later === null || later === undefined ? null : later - earlier);

const connectionTable = () => ({
  name: "Connections",
  rows: profile.connections,
  sorted: 6,
  columns: [
    textColumn(
      "peer",
      (row) => `${row.name ?? ""} ${row.peer}`,
      (row) =>
        el(
          "span",
          {},
          row.name ? `${row.name} ` : "",
          el("code", { class: row.name ? "note" : "" }, row.peer),
        ),
    ),
    textColumn("thread", (row) => {
      const thread = threadAt(row.tid, row.start_ns);
      return thread ? threadTitle(thread) : String(row.tid);
    }),
    {
      title: "at",
      value: (row) => row.start_ns,
      show: (row) => moment(row.start_ns, LENGTH),
      hint: "when connect(2) was called",
    },
    timeColumn("name", (row) => row.resolved_ns, "until its name was resolved"),
    timeColumn("connect", (row) => since(row.connected_ns, row.start_ns), "until it was established"),
    timeColumn(
      "first byte",
      (row) => since(row.first_byte_ns, row.start_ns),
      "from the call to the first byte of the peer",
    ),
    textColumn("error", (row) => row.error ?? ""),
    timeColumn("waited", (row) => row.waited_ns, "all that threads waited for it"),
  ],
});

const faultTable = () => ({
  name: "Page faults",
  rows: profile.faults,
  sorted: 4,
  columns: [
    textColumn(
      "mapping",
      (row) => row.mapping,
      (row) => pathText(row.mapping),
    ),
    processColumn,
    countColumn("faults", (row) => row.count),
    countColumn("major", (row) => row.major, "those that waited for storage"),
    timeColumn("time", (row) => row.total_ns),
    { ...timeColumn("mean", (row) => (row.count > 0 ? row.total_ns / row.count : 0)), hint: "of one fault" },
  ],
});

const programs = ({ process }) =>
  el(
    "ol",
    { class: "programs" },
    process.executions.map((one) =>
      el(
        "li",
        {},
        pathText(one.path),
        el(
          "span",
          { class: "note" },
          ` at ${moment(one.at_ns, LENGTH)}${one.linked_ns === null ? "" : `, linked in ${duration(one.linked_ns - one.at_ns)}`}`,
        ),
      ),
    ),
  );

const processTable = () => ({
  name: "Processes",
  rows: processTree().map((process, place) => ({ process, place })),
  sorted: 0,
  isAscending: true,
  extra: ({ process }) => `${processTitle(process)} ${process.executions.map((one) => one.path).join(" ")}`,
  columns: [
    {
      title: "process",
      value: (row) => row.place,
      isText: true,
      hint: "sorted as a tree",
      show: ({ process }) =>
        el(
          "span",
          { style: { "padding-left": `${process.depth * 14}px` } },
          process.depth > 0 ? el("span", { class: "note", "aria-hidden": "true" }, "└ ") : "",
          el("b", {}, process.name),
          el("span", { class: "note" }, ` ${process.pid}`),
        ),
    },
    textColumn("executed", ({ process }) => process.executions[0]?.path ?? "", programs),
    countColumn("threads", ({ process }) => process.threads.length),
    {
      title: "start",
      value: ({ process }) => process.start_ns,
      show: ({ process }) => moment(process.start_ns, LENGTH),
    },
    {
      title: "end",
      value: ({ process }) => process.end_ns,
      show: ({ process }) => (process.end_ns === null ? "–" : moment(process.end_ns, LENGTH)),
      hint: "– if it was there to the end",
    },
    timeColumn("on CPU", ({ process }) => runTime(process.times)),
    textColumn(
      "ended",
      ({ process }) => exitText(process.wait_status),
      ({ process }) =>
        el("span", { class: process.wait_status ? "bad" : "" }, exitText(process.wait_status) || "–"),
    ),
  ],
});

const functionColumns = [
  textColumn(
    "function",
    (row) => row.frame.function,
    (row) => pathText(row.frame.function),
  ),
  textColumn(
    "module",
    (row) => row.frame.module ?? "",
    (row) =>
      row.frame.module
        ? el("span", { title: row.frame.module }, fileName(row.frame.module))
        : row.frame.is_kernel
          ? "kernel"
          : "–",
  ),
  textColumn("source", (row) => row.frame.source ?? ""),
  timeColumn("self", (row) => row.own, "in the function itself"),
  timeColumn("total", (row) => row.total, "with what it called"),
  {
    title: "share",
    value: (row) => row.own,
    show: (row) => percent(row.own, flame.weights.all),
    hint: "of self",
  },
];

byId("functions").parentElement.addEventListener("toggle", () => {
  if (functionTable) functionTable.show(byFunction(flame.weights));
  else {
    functionTable = table({
      name: "Functions",
      rows: byFunction(flame.weights),
      sorted: 3,
      columns: functionColumns,
    });
    byId("functions").append(functionTable.element);
  }
});

// Tabs as of the ARIA practices: the arrows go from one to the next.
{
  const kinds = [
    hasPath ? ["path", pathTable] : null,
    ["calls", callTable],
    ["files", fileTable],
    ["look-ups", lookupTable],
    ["connections", connectionTable],
    ["faults", faultTable],
    ["processes", processTable],
  ].filter(Boolean);
  const tabs = [];
  const choose = (chosen, focus) => {
    tabs.forEach(({ tab, panel, fill }, at) => {
      tab.setAttribute("aria-selected", String(at === chosen));
      tab.tabIndex = at === chosen ? 0 : -1;
      panel.hidden = at !== chosen;
      if (at === chosen) fill();
    });
    if (focus) tabs[chosen].tab.focus();
  };
  kinds.forEach(([id, make], at) => {
    const description = make();
    const tab = el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${id}`,
        "aria-controls": `panel-${id}`,
        on: { click: () => choose(at, false) },
      },
      description.name,
      el("span", { class: "count" }, whole(description.rows.length)),
    );
    const panel = el("div", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}` });
    const fill = () => panel.childElementCount === 0 && panel.append(table(description).element);
    tabs.push({ tab, panel, fill });
    byId("tabs").append(tab);
    byId("panels").append(panel);
  });
  byId("tabs").addEventListener("keydown", (event) => {
    const now = tabs.findIndex(({ tab }) => tab === document.activeElement);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    choose((next + tabs.length) % tabs.length, true);
  });
  choose(0, false);
}
