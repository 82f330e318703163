// Canvases as sharp as the screen, drawn at most once a frame.

const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

/**
 * Lets `draw` draw on a canvas of the size that the page gives it, whenever that changes or it is
 * asked to. `draw` gets the context and the size in pixels of CSS.
 */
const drawn = (canvas, draw) => {
  const context = canvas.getContext("2d");
  let waiting = false;
  const surface = { width: 0, height: 0 };
  const now = () => {
    waiting = false;
    surface.width = canvas.clientWidth;
    surface.height = canvas.clientHeight;
    if (surface.width === 0 || surface.height === 0) return;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(surface.width * density), Math.round(surface.height * density)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, surface.width, surface.height);
    context.font = FONT;
    context.textBaseline = "middle";
    draw(context, surface.width, surface.height);
  };
  surface.redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(now);
  };
  new ResizeObserver(surface.redraw).observe(canvas);
  on("theme", surface.redraw);
  return surface;
};

const widths = new Map();

/** The width of a text; many are asked for again and again. */
const widthOf = (context, text) => {
  let width = widths.get(text);
  if (width === undefined) {
    if (widths.size > 20000) widths.clear();
    width = context.measureText(text).width;
    widths.set(text, width);
  }
  return width;
};

/** As much of a text as there is room for; nothing if that would be no help. */
const fitted = (context, text, room) => {
  if (room < 12) return "";
  // Far longer than any room: its end needs no measuring.
  if (text.length > 400) text = `${text.slice(0, 399)}…`;
  const width = widthOf(context, text);
  if (width <= room) return text;
  // Letters differ in width, so that the share is a guess.
  for (let kept = Math.floor((text.length * (room - 9)) / width); kept >= 5; kept -= 1) {
    const shown = `${text.slice(0, kept)}…`;
    if (widthOf(context, shown) <= room) return shown;
  }
  return "";
};

/** Where a pointer is on an element. */
const placeOn = (element, event) => {
  const { left, top } = element.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
};
