// The head: what was started, how long it took to each milestone, and what was lost.

const MILESTONES = {
  listen: ["Listening", "a socket first listened"],
  restored: ["Restored", "a restored server was back"],
  ready: ["Ready", "a process first waited for a connection"],
  response: ["First response", "the first response was complete"],
};

const LONGEST_TITLE = 200;

const milestones = profile.milestones.map((one) => {
  const [name, meaning] = MILESTONES[one.kind] ?? [one.kind, ""];
  return {
    at: one.at_ns,
    kind: one.kind,
    name,
    meaning,
    pid: one.pid,
    where: one.listener ? listenerName(one.listener) : "",
  };
});

const addFigure = (name, value, note, kind) =>
  byId("figures").append(
    el(
      "div",
      { class: `figure ${kind ?? ""}` },
      el("dt", {}, name),
      el("dd", {}, value, note ? el("span", { class: "note" }, note) : null),
    ),
  );

{
  const command = profile.command.join(" ");
  document.title = `Start-up of ${command}`;
  // A class path alone can be thousands of letters.
  const isLong = command.length > LONGEST_TITLE;
  byId("title").append(
    "Start-up of ",
    el("code", {}, isLong ? `${command.slice(0, LONGEST_TITLE)}…` : command),
  );
  if (isLong)
    byId("title").after(
      el("details", { class: "command" }, el("summary", {}, "The whole command"), el("code", {}, command)),
    );

  const started = new Date(profile.started_ms);
  byId("when").append(
    "Recorded to ",
    el("strong", {}, point),
    " on ",
    el(
      "time",
      { datetime: started.toISOString() },
      started.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }),
    ),
    ".",
  );

  // The first of each kind: a server with several listeners has more, which the time line shows.
  const seen = new Set();
  for (const one of milestones) {
    if (seen.has(one.kind)) continue;
    seen.add(one.kind);
    addFigure(one.name, duration(one.at), one.where || one.meaning, one.kind);
  }
  addFigure("Recorded", duration(profile.length_ns), plural(SLICES, "slice"));
  addFigure("Processes", whole(processes.length), plural(threads.length, "thread"));
  const busy = threads.reduce((sum, thread) => sum + runTime(thread.times), 0);
  addFigure("On processors", duration(busy), `${trimmed(busy / LENGTH, 2)} busy on average`);

  const { lost } = profile;
  const sentences = [
    [
      lost.events,
      (n) =>
        `${plural(n, "event")} found no room in the kernel: slices and wakers may be missing. Totals are exact all the same.`,
    ],
    [
      lost.samples,
      (n) => `${plural(n, "sample")} of stacks found no room: the flame graphs have less than there was.`,
    ],
    [
      lost.stacks_cut,
      (n) =>
        `${plural(n, "stack")} ${n === 1 ? "was" : "were"} cut short: their outermost callers are missing.`,
    ],
    [
      lost.slices_joined,
      (n) =>
        `${plural(n, "slice")} ${n === 1 ? "was" : "were"} joined with neighbours, as there were too many. Totals are exact all the same.`,
    ],
    [
      lost.texts_cut,
      (n) => `${plural(n, "path or text", "paths and texts")} ${n === 1 ? "was" : "were"} cut short.`,
    ],
  ]
    .filter(([count]) => count > 0)
    .map(([count, say]) => say(count));
  byId("lost").append(
    sentences.length === 0
      ? el("p", { class: "note" }, "Nothing was lost or left out.")
      : el(
          "div",
          { class: "callout", role: "note" },
          el("strong", {}, "Not all was recorded"),
          el(
            "ul",
            {},
            sentences.map((sentence) => el("li", {}, sentence)),
          ),
        ),
  );
}
