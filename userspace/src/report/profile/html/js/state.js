// What is shown, selected and searched for. Whoever changes it tells those who draw it.

const listeners = new Map();

const on = (what, listener) => {
  for (const one of what.split(" ")) listeners.set(one, [...(listeners.get(one) ?? []), listener]);
};

const tell = (what) => listeners.get(what)?.forEach((listener) => listener());

const state = {
  /** The part of the recording that the time line shows. */
  start: 0,
  end: LENGTH,
  /** A range that was selected: `{start, end}`. */
  range: null,
  /** A slice: `{thread, at}`. */
  selected: null,
  /** The only class that stands out. */
  only: null,
  /** Whether a slice stands out, by thread and number; null if all do. */
  isMatch: null,
  showsPath: true,
};

/** No part shorter than this is shown: the clock is not finer. */
const SHORTEST = 100;

/** Shows a part of the recording. */
const show = (start, end) => {
  const span = clamp(end - start, Math.min(SHORTEST, LENGTH), LENGTH);
  state.start = clamp(start, 0, LENGTH - span);
  state.end = state.start + span;
  tell("view");
};

/** Zooms so that the moment `at` stays where it is; more than 1 shows more. */
const zoom = (factor, at = (state.start + state.end) / 2) => {
  const span = clamp((state.end - state.start) * factor, Math.min(SHORTEST, LENGTH), LENGTH);
  const share = (at - state.start) / (state.end - state.start);
  show(at - share * span, at + (1 - share) * span);
};

/** Moves by a share of what is shown. */
const move = (share) => {
  const by = (state.end - state.start) * share;
  show(state.start + by, state.end + by);
};

const showAll = () => show(0, LENGTH);

/** Shows a time with some room on both sides. */
const showAround = (start, end, room = 0.15) => {
  const span = Math.max(end - start, SHORTEST / 2);
  show(start - span * room, end + span * room);
};

const selectRange = (range) => {
  state.range =
    range && range.end > range.start
      ? { start: Math.max(0, range.start), end: Math.min(LENGTH, range.end) }
      : null;
  tell("range");
};

const select = (thread, at) => {
  state.selected = thread && at >= 0 ? { thread, at } : null;
  tell("selection");
};

/** Selects a slice, and brings it on the page if it is out of sight. */
const reveal = (thread, at) => {
  const [start, end] = [thread.starts[at], thread.ends[at]];
  const span = state.end - state.start;
  if (end < state.start || start > state.end) show((start + end - span) / 2, (start + end + span) / 2);
  if (end - start < span / 2000)
    showAround((start + end) / 2 - (end - start) * 20, (start + end) / 2 + (end - start) * 20, 0);
  select(thread, at);
};
