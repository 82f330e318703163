// The rows of the time line, and their labels: the critical path, processes, their threads.

const ROW = 22;
/** More rows than this at the start would hide what matters. */
const MANY_ROWS = 60;

/** `{kind: "path"}`, `{kind: "process", process}` or `{kind: "thread", thread, process}`. */
let rows = [];
const rowOfThread = new Map();
const labels = byId("tl-labels");

/** A process with one thread has one row. */
const listRows = () => {
  rows = hasPath ? [{ kind: "path" }] : [];
  rowOfThread.clear();
  for (const process of processTree()) {
    const isSingle = process.threads.length === 1;
    if (!isSingle) {
      for (const thread of process.threads) rowOfThread.set(thread, rows.length);
      rows.push({ kind: "process", process });
    }
    if (isSingle || !process.folded) {
      for (const thread of process.threads) {
        rowOfThread.set(thread, rows.length);
        rows.push({ kind: "thread", thread, process, isSingle });
      }
    }
  }
};

const fold = (process, folded) => {
  process.folded = folded;
  tell("rows");
};

const labelOf = (row) => {
  if (row.kind === "path") return el("div", { class: "label of-path" }, el("b", {}, "critical path"));
  const { process } = row;
  const indent = { "padding-left": `${6 + process.depth * 10}px` };
  if (row.kind === "process") {
    return el(
      "div",
      { class: "label of-process", style: indent },
      el(
        "button",
        {
          type: "button",
          class: "plain fold",
          "data-pid": process.pid,
          "aria-expanded": String(!process.folded),
          title: `${processTitle(process)}: ${plural(process.threads.length, "thread")}`,
          on: { click: () => fold(process, !process.folded) },
        },
        el("b", {}, process.name),
        el("span", { class: "note" }, ` ${process.pid}`),
      ),
    );
  }
  const { thread } = row;
  const own = row.isSingle ? el("b", {}, thread.name) : thread.name;
  if (!row.isSingle) indent["padding-left"] = `${24 + process.depth * 10}px`;
  else indent["padding-left"] = `${20 + process.depth * 10}px`;
  return el(
    "div",
    { class: "label of-thread", style: indent, title: `${threadTitle(thread)} of ${processTitle(process)}` },
    el("span", { class: "name" }, own),
    el("span", { class: "note" }, ` ${thread.tid}`),
  );
};

const foldAll = byId("fold-all");
const foldable = processes.filter((process) => process.threads.length > 1);

const layRows = () => {
  const focused = document.activeElement?.dataset?.pid;
  listRows();
  labels.replaceChildren(...rows.map(labelOf));
  labels.style.height = `${rows.length * ROW}px`;
  if (focused) labels.querySelector(`[data-pid="${Number(focused)}"]`)?.focus();
  foldAll.hidden = foldable.length === 0;
  foldAll.textContent = foldable.every((process) => process.folded) ? "▸ Unfold all" : "▾ Fold all";
};

foldAll.addEventListener("click", () => {
  const folded = !foldable.every((process) => process.folded);
  for (const process of foldable) process.folded = folded;
  tell("rows");
});

if (threads.length > MANY_ROWS) {
  const onPath = new Set(path.map((step) => step.thread?.process));
  for (const process of foldable) process.folded = !onPath.has(process);
}
on("rows", layRows);
layRows();
