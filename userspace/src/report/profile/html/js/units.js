// Quantities as people read them.

const trimmed = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Three digits that count, with the unit that fits. */
const scaled = (value, units, step) => {
  let unit = 0;
  while (Math.abs(value) >= step * 0.9995 && unit + 1 < units.length) {
    value /= step;
    unit += 1;
  }
  if (unit === 0) return `${trimmed(value, 0)} ${units[0]}`;
  const size = Math.abs(value);
  return `${trimmed(value, size < 9.995 ? 2 : size < 99.95 ? 1 : 0)} ${units[unit]}`;
};

/** A time in nanoseconds. */
const duration = (ns) => scaled(ns, ["ns", "µs", "ms", "s"], 1000);
const bytes = (count) => scaled(count, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);
const whole = (count) => count.toLocaleString("en");
const plural = (count, noun, many = `${noun}s`) => `${whole(count)} ${count === 1 ? noun : many}`;

const percent = (part, all) => {
  if (!(all > 0)) return "–";
  const share = (100 * part) / all;
  if (share > 0 && share < 0.05) return "< 0.1 %";
  return `${trimmed(share, share < 99.95 ? 1 : 0)} %`;
};

/** The distance of marks on a scale, so that there are about `count` of them: 1, 2 or 5 and zeros. */
const markStep = (span, count) => {
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = rough / power;
  return power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
};

/** Writes moments so that those `step` apart differ; `reach` is the latest of them. */
const momentFormat = (reach, step) => {
  const units = [
    ["s", 1e9],
    ["ms", 1e6],
    ["µs", 1e3],
    ["ns", 1],
  ];
  const [name, size] = units.find(([, size]) => reach >= size) ?? units[3];
  const digits = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9)));
  return (ns) => (ns === 0 ? "0" : `${trimmed(ns / size, digits)} ${name}`);
};

/** A moment, exact enough for the part that is shown. */
const moment = (ns, span) => momentFormat(Math.max(ns, 1), Math.max(1, span / 1000))(ns);

const listenerName = (listener) =>
  listener.type === "tcp" ? `tcp:${listener.address}` : `unix:${listener.path || "*"}`;

/** How a process ended, by its status as of wait(2). */
const exitText = (status) => {
  if (status === null || status === undefined) return "";
  const signal = status & 0x7f;
  return signal === 0 ? `exit ${(status >> 8) & 0xff}` : `signal ${signal}`;
};

const fileName = (path) => path.slice(path.lastIndexOf("/") + 1) || path;
