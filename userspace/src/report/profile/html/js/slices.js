// Draws the slices of a row at the resolution of the screen: those that are narrower than a pixel
// are added up, and the pixel shows the share of each class.

const TALL = ROW - 5;
/** Waits are lower than work, so that they differ by more than colours. */
const LOW = 13;

/** What there is to fill, by class: x, y, width, height, and so on. Filled class by class, as changing the colour is slow. */
const strong = Array.from({ length: CLASSES }, () => []);
const faint = Array.from({ length: CLASSES }, () => []);
const texts = [];

const isTall = (number) => runs[number] || number === RUNNABLE;
const heightOf = (number) => (isTall(number) ? TALL : LOW);
const fromBelow = [...runs.keys()].sort((a, b) => isTall(a) - isTall(b) || a - b);

const column = new Float64Array(CLASSES);

/**
 * The pixels that hold more than one slice. They are set in memory and drawn at once: as many
 * rectangles would take a hundred times as long.
 */
const dense = { canvas: document.createElement("canvas"), image: null, pixels: null };

const beginDense = (width, height) => {
  const size = [Math.ceil(width), Math.ceil(height)];
  if (dense.canvas.width !== size[0] || dense.canvas.height !== size[1] || !dense.image) {
    [dense.canvas.width, dense.canvas.height] = size;
    dense.image = new ImageData(...size);
    dense.pixels = new Uint32Array(dense.image.data.buffer);
  } else {
    dense.pixels.fill(0);
  }
};

const drawDense = (context) => {
  dense.canvas.getContext("2d").putImageData(dense.image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(dense.canvas, 0, 0);
};

/** Sets a column of pixels as the times in `column` divide it, waits below and work above. */
const addColumn = (isFaint, x, bottom) => {
  let [all, height] = [0, 0];
  for (let number = 0; number < CLASSES; number += 1) {
    all += column[number];
    height += column[number] * heightOf(number);
  }
  const { pixels, canvas } = dense;
  if (all > 0 && x >= 0 && x < canvas.width) {
    height = Math.max(1, height / all);
    const floor = Math.round(bottom) - 1;
    let [sum, level] = [0, 0];
    for (const number of fromBelow) {
      if (column[number] === 0) continue;
      sum += column[number];
      const isDim = isFaint || (state.only !== null && state.only !== number);
      const [colour, stripe] = (isDim ? colours.fadedPixel : colours.pixel)[number];
      for (const end = Math.round((height * sum) / all); level < end; level += 1) {
        const y = floor - level;
        if (y >= 0 && y < canvas.height) pixels[y * canvas.width + x] = (x + y) % 5 < 2 ? stripe : colour;
      }
    }
  }
  column.fill(0);
};

const addSlice = (lists, number, x, width, bottom) => {
  // Neighbours of one class stay apart to the eye.
  lists[number].push(x, bottom - heightOf(number), width > 4 ? width - 0.75 : width, heightOf(number));
};

/** Adds the slices of a thread that are in sight. */
const addThread = (thread, bottom, width) => {
  const scale = width / (state.end - state.start);
  const { starts, ends, classes: numbers, count } = thread;
  const { isMatch, only } = state;
  const all = isMatch === null && only === null;
  let pixel = -1;
  let lastMatch = -1;
  for (let at = firstAfter(ends, state.start); at < count && starts[at] < state.end; at += 1) {
    const from = (starts[at] - state.start) * scale;
    const to = (ends[at] - state.start) * scale;
    const number = numbers[at];
    const isStrong = all || ((only === null || only === number) && (isMatch === null || isMatch(thread, at)));
    if (to - from >= 1) {
      if (pixel >= 0) addColumn(!all, pixel, bottom);
      pixel = -1;
      const left = Math.max(from, -2);
      const right = Math.min(to, width + 2);
      addSlice(isStrong ? strong : faint, number, left, right - left, bottom);
      if (right - left > 28)
        texts.push(thread, at, Math.max(left, 0), Math.min(right, width), bottom, isStrong);
      continue;
    }
    const place = Math.floor(from);
    if (!all && isStrong) {
      // A match is never too short to be seen.
      if (place !== lastMatch) strong[number].push(place, bottom - TALL, 1.5, TALL);
      lastMatch = place;
      continue;
    }
    if (place !== pixel) {
      if (pixel >= 0) addColumn(!all, pixel, bottom);
      pixel = place;
    }
    column[number] += to - from;
  }
  if (pixel >= 0) addColumn(!all, pixel, bottom);
};

/** How the time of some threads divides among the classes, for each of `count` equal parts. */
const density = (some, start, end, count) => {
  const parts = new Float64Array(count * CLASSES);
  const size = (end - start) / count;
  for (const thread of some) {
    for (let at = firstAfter(thread.ends, start); at < thread.count && thread.starts[at] < end; at += 1) {
      const from = Math.max(thread.starts[at], start) - start;
      const to = Math.min(thread.ends[at], end) - start;
      const number = thread.classes[at];
      const last = Math.min(count - 1, Math.floor(to / size));
      for (let part = Math.floor(from / size); part <= last; part += 1) {
        parts[part * CLASSES + number] += Math.max(
          0,
          Math.min(to, (part + 1) * size) - Math.max(from, part * size),
        );
      }
    }
  }
  return parts;
};

/** Adds a folded process: in each pixel, how its threads' time divides. */
const addFolded = (process, bottom, width) => {
  const count = Math.max(1, Math.ceil(width));
  const parts = density(process.threads, state.start, state.end, count);
  for (let x = 0; x < count; x += 1) {
    for (let number = 0; number < CLASSES; number += 1) column[number] = parts[x * CLASSES + number];
    addColumn(state.isMatch !== null, x, bottom);
  }
  if (state.isMatch !== null) process.threads.forEach((thread) => addMatches(thread, bottom, width));
};

/** Adds those slices of a thread that match, at most one in a pixel. */
const addMatches = (thread, bottom, width) => {
  const scale = width / (state.end - state.start);
  let last = -1;
  for (
    let at = firstAfter(thread.ends, state.start);
    at < thread.count && thread.starts[at] < state.end;
    at += 1
  ) {
    const x = Math.floor((Math.max(thread.starts[at], state.start) - state.start) * scale);
    if (x === last || !state.isMatch(thread, at)) continue;
    last = x;
    strong[thread.classes[at]].push(
      x,
      bottom - TALL,
      Math.max(1.5, (thread.ends[at] - state.start) * scale - x),
      TALL,
    );
  }
};

/** Adds the critical path as a row of its own. */
const addPath = (bottom, width) => {
  const scale = width / (state.end - state.start);
  let lastPixel = -1;
  for (let at = firstAfter(pathEnds, state.start); at < path.length && path[at].start < state.end; at += 1) {
    const { start, end, number, text } = path[at];
    const from = Math.max((start - state.start) * scale, -2);
    const to = Math.min((end - state.start) * scale, width + 2);
    const list = (state.only === null || state.only === number ? strong : faint)[number];
    if (to - from < 1) {
      if (Math.floor(from) === lastPixel) continue;
      lastPixel = Math.floor(from);
    }
    list.push(from, bottom - TALL, Math.max(1, to - from > 4 ? to - from - 0.75 : to - from), TALL);
    if (to - from > 28)
      texts.push(null, { number, text }, Math.max(from, 0), Math.min(to, width), bottom, true);
  }
};

/** Fills what was added, and forgets it. */
const fillSlices = (context) => {
  drawDense(context);
  for (const [lists, fills] of [
    [faint, colours.faded],
    [strong, colours.fill],
  ]) {
    lists.forEach((list, number) => {
      context.fillStyle = fills[number];
      for (let at = 0; at < list.length; at += 4)
        context.fillRect(list[at], list[at + 1], list[at + 2], list[at + 3]);
      list.length = 0;
    });
  }
  for (let at = 0; at < texts.length; at += 6) {
    const [thread, which, left, right, bottom, isStrong] = texts.slice(at, at + 6);
    const number = thread ? thread.classes[which] : which.number;
    const said = thread ? sliceTitle(thread, which) : textOf(which.text) || classes[number].title;
    const shown = fitted(context, said, right - left - 8);
    if (!shown) continue;
    const middle = bottom - (thread ? heightOf(number) : TALL) / 2 + 0.5;
    if (number === RUNNABLE && isStrong) {
      // Nothing can be read on stripes.
      context.fillStyle = colours.ground;
      context.fillRect(left + 2, middle - 7, widthOf(context, shown) + 4, 13);
    }
    context.fillStyle = isStrong ? colours.ink[number] : colours.note;
    context.fillText(shown, left + 4, middle);
  }
  texts.length = 0;
};
