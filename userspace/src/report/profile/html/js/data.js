// The profile, made ready for looking things up: slices in typed arrays, threads by their number.

const { classes, point, profile } = JSON.parse(byId("data").textContent);
const CLASSES = classes.length;
const classNumber = new Map(classes.map((one, number) => [one.id, number]));
const runs = classes.map((one) => one.runs);
const RUNNABLE = classNumber.get("runnable");

/** Never 0, so that it can be divided by. */
const LENGTH = Math.max(1, profile.length_ns);
const textOf = (number) => (number < 0 ? "" : (profile.texts[number] ?? ""));

const processes = [];
const threads = [];
/** By number; one that was used again has several. */
const threadsByTid = new Map();
const processByPid = new Map();

for (const given of profile.processes) {
  const process = { ...given, threads: [], depth: 0, folded: false, times: new Float64Array(CLASSES) };
  for (const thread of given.threads) {
    const count = thread.slices.length;
    const made = {
      process,
      tid: thread.tid,
      name: thread.name,
      start: thread.start_ns,
      end: thread.end_ns,
      times: thread.times,
      count,
      starts: new Float64Array(count),
      ends: new Float64Array(count),
      classes: new Uint8Array(count),
      texts: new Int32Array(count),
      wakers: new Int32Array(count),
    };
    thread.slices.forEach(([start, end, name, text, waker], at) => {
      made.starts[at] = start;
      made.ends[at] = end;
      made.classes[at] = classNumber.get(name) ?? 0;
      made.texts[at] = text ?? -1;
      made.wakers[at] = waker ?? -1;
    });
    thread.times.forEach((time, number) => (process.times[number] += time));
    process.threads.push(made);
    threads.push(made);
    threadsByTid.set(made.tid, [...(threadsByTid.get(made.tid) ?? []), made]);
  }
  // What is kept above is all that is used.
  given.threads = [];
  process.depth = Math.min(6, (processByPid.get(process.parent)?.depth ?? -1) + 1);
  processes.push(process);
  processByPid.set(process.pid, process);
}

/** In the order of the tree: each process after its parent. */
const processTree = () => {
  const children = new Map();
  for (const process of processes) {
    const parent = processByPid.has(process.parent) && process.parent !== process.pid ? process.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), process]);
  }
  const rows = [];
  const open = [...(children.get(null) ?? [])].reverse();
  while (open.length > 0) {
    const process = open.pop();
    rows.push(process);
    open.push(...(children.get(process.pid) ?? []).reverse());
    children.delete(process.pid);
  }
  // A pid that was used again may have made a circle of parents.
  const listed = new Set(rows);
  return [...rows, ...processes.filter((process) => !listed.has(process))];
};

const SLICES = threads.reduce((sum, thread) => sum + thread.count, 0);

const sumOf = (times) => times.reduce((sum, time) => sum + time, 0);
const runTime = (times) => times.reduce((sum, time, number) => sum + (runs[number] ? time : 0), 0);

/** The thread of a number at a time. */
const threadAt = (tid, time) => {
  const all = threadsByTid.get(tid) ?? [];
  return all.find((thread) => thread.start <= time && time <= thread.end) ?? all.at(-1);
};

const threadTitle = (thread) => `${thread.name || "?"} ${thread.tid}`;
const processTitle = (process) => `${process.name || "?"} ${process.pid}`;
const pidTitle = (pid) => (processByPid.has(pid) ? processTitle(processByPid.get(pid)) : String(pid));

/** The first slice that ends after a time; the number of slices if there is none. */
const firstAfter = (ends, time) => {
  let [low, high] = [0, ends.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > time) high = middle;
    else low = middle + 1;
  }
  return low;
};

/** The slice of a thread at a time, or -1. */
const sliceAt = (thread, time) => {
  const at = firstAfter(thread.ends, time);
  return at < thread.count && thread.starts[at] <= time ? at : -1;
};

const path = profile.critical_path.map((step) => ({
  start: step.start_ns,
  end: step.end_ns,
  number: classNumber.get(step.class) ?? 0,
  text: step.text ?? -1,
  thread: threadAt(step.tid, (step.start_ns + step.end_ns) / 2),
  tid: step.tid,
}));
const pathEnds = Float64Array.from(path, (step) => step.end);

/** What a slice says first: its text, or else its class. */
const sliceTitle = (thread, at) => textOf(thread.texts[at]) || classes[thread.classes[at]].title;
