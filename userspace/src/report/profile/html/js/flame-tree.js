// Flame graphs as numbers: how much of the chosen samples' time is in each node of the tree of stacks.

const { frames: stackFrames, nodes: stackNodes, samples: stackSamples } = profile.stacks;
/** Stands for samples whose stack is not known. */
const UNKNOWN = stackNodes.length;
/** Stands for all. */
const ROOT = -1;

const parentOf = Int32Array.from(stackNodes, (node) => node.parent ?? ROOT);

/** The callees of each node; those of the root are last. */
const calleesOf = Array.from({ length: stackNodes.length + 1 }, () => []);
parentOf.forEach((parent, node) => calleesOf[parent === ROOT ? stackNodes.length : parent].push(node));
const calleesOfRoot = calleesOf[stackNodes.length];
calleesOfRoot.push(UNKNOWN);

const frameOf = (node) =>
  node === UNKNOWN
    ? { function: "(stack not known)", module: null, source: null, is_kernel: false }
    : stackFrames[stackNodes[node].frame];

/**
 * Sums samples: `own` is the time in a node itself, `total` that with all it called. Each node
 * comes after its parent, so that one pass from the end gives the totals.
 */
const weigh = ({ onCpu, tids, range }) => {
  const own = new Float64Array(stackNodes.length + 1);
  const counts = new Uint32Array(stackNodes.length + 1);
  let all = 0;
  let count = 0;
  for (const sample of stackSamples) {
    if (sample.is_on_cpu !== onCpu || (tids && !tids.has(sample.tid))) continue;
    if (range && (sample.at_ns < range.start || sample.at_ns > range.end)) continue;
    const node = sample.node ?? UNKNOWN;
    own[node] += sample.weight_ns;
    counts[node] += 1;
    all += sample.weight_ns;
    count += 1;
  }
  const total = own.slice();
  for (let node = stackNodes.length - 1; node >= 0; node -= 1) {
    const parent = parentOf[node];
    if (parent === ROOT) continue;
    total[parent] += total[node];
    counts[parent] += counts[node];
  }
  return { own, total, counts, all, count };
};

/** The callees of a node that have time, the heaviest first. */
const heaviest = (weights, node) =>
  (node === UNKNOWN ? [] : node === ROOT ? calleesOfRoot : calleesOf[node])
    .filter((callee) => weights.total[callee] > 0)
    .sort((a, b) => weights.total[b] - weights.total[a] || a - b);

/** From the outermost function to a node. */
const lineage = (node) => {
  const line = [];
  for (let at = node; at !== ROOT; at = at === UNKNOWN ? ROOT : parentOf[at]) line.unshift(at);
  return line;
};

/**
 * Boxes of a flame graph that is zoomed to a node: `{node, depth, left, width}` in shares of the
 * whole width. Boxes narrower than `least` are left out.
 */
const layFlames = (weights, zoomed, least) => {
  const boxes = [];
  const line = lineage(zoomed);
  boxes.push({ node: ROOT, depth: 0, left: 0, width: 1, isAbove: zoomed !== ROOT });
  line.forEach((node, depth) =>
    boxes.push({ node, depth: depth + 1, left: 0, width: 1, isAbove: node !== zoomed }),
  );
  const whole = zoomed === ROOT ? weights.all : weights.total[zoomed];
  const open = [{ node: zoomed, depth: line.length, left: 0 }];
  while (open.length > 0) {
    const { node, depth, left } = open.pop();
    let at = left;
    for (const callee of heaviest(weights, node)) {
      const width = weights.total[callee] / whole;
      if (width < least) break;
      boxes.push({ node: callee, depth: depth + 1, left: at, width, isAbove: false });
      open.push({ node: callee, depth: depth + 1, left: at });
      at += width;
    }
  }
  return boxes;
};

/** The time of each function: in itself, and with what it called, once however deep it recurs. */
const byFunction = (weights) => {
  const own = new Float64Array(stackFrames.length);
  const total = new Float64Array(stackFrames.length);
  const entered = new Uint32Array(stackFrames.length);
  const open = calleesOfRoot.filter((node) => node !== UNKNOWN).map((node) => ({ node, leaves: false }));
  while (open.length > 0) {
    const { node, leaves } = open.pop();
    const { frame } = stackNodes[node];
    if (leaves) {
      entered[frame] -= 1;
      continue;
    }
    if (weights.total[node] === 0) continue;
    own[frame] += weights.own[node];
    if (entered[frame] === 0) total[frame] += weights.total[node];
    entered[frame] += 1;
    open.push({ node, leaves: true }, ...calleesOf[node].map((callee) => ({ node: callee, leaves: false })));
  }
  return stackFrames
    .map((frame, at) => ({ frame, own: own[at], total: total[at] }))
    .filter((row) => row.total > 0);
};
