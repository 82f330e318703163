// Lets slices stand out by what they say, their class or their thread, and goes from one to the next.

const searchBox = byId("search");
const matchCount = byId("matches");

/** What matches, in the order of time: parallel arrays of threads and slice numbers. */
let found = { threads: [], slices: [] };
let current = -1;

/** Slices that match the words, all of them: each in the text, the class or the thread. */
const search = () => {
  const words = searchBox.value.toLowerCase().split(/\s+/).filter(Boolean);
  found = { threads: [], slices: [] };
  current = -1;
  if (words.length === 0) {
    state.isMatch = null;
    matchCount.textContent = "";
    tell("match");
    return;
  }
  // Texts are few beside the slices that have them.
  const inTexts = words.map((word) => profile.texts.map((text) => text.toLowerCase().includes(word)));
  const inClasses = words.map((word) => classes.map((one) => one.title.includes(word) || one.id === word));
  const hits = new Map();
  let time = 0;
  for (const thread of threads) {
    const names = `${thread.name} ${thread.tid} ${thread.process.name} ${thread.process.pid}`.toLowerCase();
    const inThread = words.map((word) => names.includes(word));
    const marks = new Uint8Array(thread.count);
    for (let at = 0; at < thread.count; at += 1) {
      const text = thread.texts[at];
      const number = thread.classes[at];
      if (
        !words.every(
          (_, word) => inThread[word] || inClasses[word][number] || (text >= 0 && inTexts[word][text]),
        )
      )
        continue;
      marks[at] = 1;
      time += thread.ends[at] - thread.starts[at];
      found.threads.push(thread);
      found.slices.push(at);
    }
    hits.set(thread, marks);
  }
  const order = Array.from(found.slices.keys()).sort(
    (a, b) => found.threads[a].starts[found.slices[a]] - found.threads[b].starts[found.slices[b]],
  );
  found = { threads: order.map((at) => found.threads[at]), slices: order.map((at) => found.slices[at]) };
  state.isMatch = (thread, at) => hits.get(thread)[at] === 1;
  matchCount.textContent =
    order.length === 0 ? "no match" : `${plural(order.length, "match", "matches")}, ${duration(time)}`;
  tell("match");
};

/** Selects the next match, or the one before; from where the view begins if none is selected. */
const goToMatch = (by) => {
  const count = found.slices.length;
  if (count === 0) return;
  if (current < 0) {
    const first = found.threads.findIndex((thread, at) => thread.ends[found.slices[at]] > state.start);
    current = by > 0 ? Math.max(0, first) : (Math.max(0, first) + count - 1) % count;
  } else {
    current = (current + by + count) % count;
  }
  reveal(found.threads[current], found.slices[current]);
  matchCount.textContent = `${whole(current + 1)} of ${plural(count, "match", "matches")}`;
};

searchBox.addEventListener("input", afterTyping(search));
searchBox.addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    goToMatch(event.shiftKey ? -1 : 1);
  } else if (event.key === "Escape") {
    event.stopPropagation();
    searchBox.value = "";
    search();
    rowsCanvas.focus();
  }
});
byId("match-back").addEventListener("click", () => goToMatch(-1));
byId("match-on").addEventListener("click", () => goToMatch(1));
