// Light and dark: as the system has it until a person chooses. Canvases get the colours from here.

const THEMES = ["system", "light", "dark"];
const KEPT = "warmimg-theme";

/** Colours as a canvas takes them. */
const colours = { fill: [], faded: [], ink: [], pixel: [], fadedPixel: [] };

/** What a custom property stands for now. A canvas does not know `light-dark()`. */
const resolved = (probe, name) => {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
};

const parts = (colour) =>
  colour
    .match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);

/** Mixes two colours: `share` of the first. */
const mixed = (first, second, share) => {
  const [a, b] = [parts(first), parts(second)];
  return `rgb(${a.map((part, at) => Math.round(part * share + b[at] * (1 - share))).join(" ")})`;
};

/** A colour as a pixel of `ImageData` on all machines that browsers run on. */
const pixelOf = (colour) => {
  const [red, green, blue] = parts(colour);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
};

const luminance = (colour) => {
  const [red, green, blue] = parts(colour).map((part) => ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};

const readable = (colour) => (luminance(colour) > 0.2 ? "#14171a" : "#ffffff");

/** Stripes, so that the wait for a processor is told from running by more than its colour. */
const striped = (colour, other) => {
  const tile = document.createElement("canvas");
  [tile.width, tile.height] = [6, 6];
  const context = tile.getContext("2d");
  context.fillStyle = other;
  context.fillRect(0, 0, 6, 6);
  context.strokeStyle = colour;
  context.lineWidth = 2.6;
  context.beginPath();
  for (const x of [-6, 0, 6]) {
    context.moveTo(x - 1, 7);
    context.lineTo(x + 7, -1);
  }
  context.stroke();
  return context.createPattern(tile, "repeat");
};

const readColours = () => {
  const probe = el("span", { hidden: true });
  document.body.append(probe);
  for (const name of [
    "text",
    "note",
    "line",
    "back",
    "panel",
    "accent",
    "path",
    "match",
    "frame-kernel",
    "frame-unknown",
  ]) {
    colours[name] = resolved(probe, name);
  }
  colours.frames = Array.from({ length: 8 }, (_, number) => resolved(probe, `frame-${number}`));
  classes.forEach((one, number) => {
    const colour = resolved(probe, `class-${one.id}`);
    const faded = mixed(colour, colours.panel, 0.18);
    const isStriped = number === RUNNABLE;
    if (isStriped) colours.ground = mixed(colour, colours.panel, 0.25);
    colours.fill[number] = isStriped ? striped(colour, colours.ground) : colour;
    colours.faded[number] = faded;
    // In two shades, which differ for what is striped.
    const ground = isStriped ? mixed(colour, colours.panel, 0.35) : colour;
    colours.pixel[number] = [pixelOf(ground), pixelOf(colour)];
    colours.fadedPixel[number] = [pixelOf(faded), pixelOf(faded)];
    colours.ink[number] = isStriped ? colours.text : readable(colour);
  });
  probe.remove();
};

const themeButton = byId("theme");

const applyTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = { system: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
  themeButton.title = `Colours: ${theme === "system" ? "as the system has them" : theme}`;
  readColours();
  tell("theme");
};

/** A page of a file may have no storage; then the choice lasts as long as the page. */
const stored = (action) => {
  try {
    return action();
  } catch {
    return null;
  }
};

themeButton.addEventListener("click", () => {
  const now = THEMES.indexOf(document.documentElement.dataset.theme);
  const next = THEMES[(now + 1) % THEMES.length];
  stored(() => localStorage.setItem(KEPT, next));
  applyTheme(next);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  applyTheme(document.documentElement.dataset.theme),
);

{
  const kept = stored(() => localStorage.getItem(KEPT));
  applyTheme(THEMES.includes(kept) ? kept : "system");
}
