"use strict";
// What a query reads, and its softmax weights (arXiv 2310.11960, section 3), from the queries and keys of the page.

const COLORS = ["#d1495b", "#edae49", "#66a182", "#2e86ab", "#8d6a9f", "#7c7c7c"]; // near field, level 1, 2, ...
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const state = { layer: 0, head: -1, level: -1, query: 0, held: false };
const color = (level) => COLORS[Math.min(level, COLORS.length - 1)];
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const percent = (share) => (100 * share).toFixed(2) + " %";

// ------------------------------------------------------------------ numbers

/** Numbers in base64, little-endian -> Float32Array. */
function unpack(text, dtype) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  if (dtype === "float32") return new Float32Array(bytes.buffer);
  const halves = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const bits = halves.getUint16(2 * i, true);
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : (2 ** -14 * fraction) / 1024);
  });
}

for (const layer of data.layers) {
  for (const name of ["queries", "keys", "querySummaries"]) if (layer[name]) layer[name] = unpack(layer[name], layer.dtype);
  layer.tokens = product(layer.grid);
  layer.length = layer.keys.length / layer.heads / layer.channels; // tokens and summaries
}

/** Row-major number -> place on each axis, and back. */
const place = (number, shape) => shape.map((n, axis) => Math.floor(number / product(shape.slice(axis + 1))) % n);
const number = (at, shape) => at.reduce((sum, i, axis) => sum * shape[axis] + i, 0);

/** All places in a block of `side` per axis, for a grid of `axes` axes. */
const block = (side, axes) => Array.from({ length: side ** axes }, (_, i) => place(i, Array(axes).fill(side)));

/** What a query reads: for each level the boxes { key, query, start, end, count }, in places of tokens. */
function readings(layer, query) {
  const at = place(query, layer.grid), axes = layer.grid.length;
  let before = 0; // summaries of finer levels
  return layer.levels.map((level, depth) => {
    const cells = layer.grid.map((n) => Math.ceil(n / level.width));
    const own = number(at.map((i) => Math.floor(i / level.width)), cells);
    const asks = depth ? before + number(at.map((i) => Math.floor(i / level.side)), level.blocks) : -1;
    const boxes = [];
    for (const cell of level.lists[own]) {
      for (const within of block(level.parts, axes)) {
        const index = cell.map((i, axis) => i * level.parts + within[axis]);
        const start = index.map((i) => i * level.side);
        if (start.some((i, axis) => i >= layer.grid[axis])) continue;
        if (layer.causal && depth === 0 && start[0] > query) continue;
        const end = start.map((i, axis) => Math.min(i + level.side, layer.grid[axis]));
        const key = (depth ? layer.tokens + before : 0) + number(index, level.blocks);
        boxes.push({ key, asks, start, end, count: product(end.map((i, axis) => i - start[axis])) });
      }
    }
    if (depth) before += product(level.blocks);
    return boxes;
  });
}

/** The readings of a query with their weights, of a head or (-1) the mean of all heads. */
function read(layer, query, head) {
  const levels = readings(layer, query), boxes = levels.flat(), d = layer.channels;
  const heads = head < 0 ? [...Array(layer.heads).keys()] : [head];
  for (const box of boxes) box.weight = 0;
  for (const h of heads) {
    const summaries = layer.length - layer.tokens;
    const logits = boxes.map((box) => {
      const far = layer.querySummaries && box.asks >= 0;
      const asking = far ? layer.querySummaries : layer.queries;
      const from = (far ? h * summaries + box.asks : h * layer.tokens + query) * d;
      const to = (h * layer.length + box.key) * d;
      let sum = 0;
      for (let c = 0; c < d; c++) sum += asking[from + c] * layer.keys[to + c];
      return layer.scale * sum + (layer.groupBias ? Math.log(box.count) : 0);
    });
    const top = Math.max(...logits), shares = logits.map((logit) => Math.exp(logit - top));
    const total = shares.reduce((a, b) => a + b, 0);
    boxes.forEach((box, i) => (box.weight += shares[i] / total / heads.length));
  }
  return levels;
}

// ------------------------------------------------------------------ the picture or the text

/** Shows a picture with boxes on it. */
function pictureView(view) {
  const { width, height, picture } = data.input;
  const zoom = Math.max(1, Math.ceil(720 / Math.max(width, height)));
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d"), image = new Image();
  [canvas.width, canvas.height] = [width * zoom, height * zoom];
  view.append(canvas);
  const side = () => zoom * data.input.strides[state.layer]; // of a token
  image.addEventListener("load", () => show());
  image.src = picture;
  return {
    queryAt(event) {
      const area = canvas.getBoundingClientRect(), grid = layer().grid;
      const [x, y] = [event.clientX - area.left, event.clientY - area.top].map((i) => (i * canvas.width) / area.width);
      return number([y, x].map((i, axis) => Math.max(0, Math.min(grid[axis] - 1, Math.floor(i / side())))), grid);
    },
    draw(boxes, largest) {
      const s = side();
      const rect = ({ start, end }) => [start[1] * s, start[0] * s, (end[1] - start[1]) * s, (end[0] - start[0]) * s];
      pen.imageSmoothingEnabled = false;
      pen.globalAlpha = 1;
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      pen.lineWidth = 1;
      for (const box of boxes) {
        pen.fillStyle = pen.strokeStyle = color(box.level);
        pen.globalAlpha = 0.08 + (0.82 * box.weight) / box.count / largest;
        pen.fillRect(...rect(box));
        pen.globalAlpha = 0.5;
        pen.strokeRect(...rect(box));
      }
      const [row, column] = place(state.query, layer().grid);
      pen.globalAlpha = 1;
      for (const [width_, ink] of [[5, "#000"], [2, "#fff"]]) {
        [pen.lineWidth, pen.strokeStyle] = [width_, ink];
        pen.strokeRect(column * s, row * s, s, s);
      }
    },
    name: (query) => `row ${place(query, layer().grid)[0]}, column ${place(query, layer().grid)[1]}`,
    boxName: ({ start, end, count }) => count === 1 ? `token in row ${start[0]}, column ${start[1]}`
      : `summary of rows ${start[0]} to ${end[0] - 1}, columns ${start[1]} to ${end[1] - 1}`,
  };
}

/** Shows a text with its tokens shaded. */
function textView(view) {
  view.classList.add("text");
  const spans = data.input.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.textContent = token;
    span.dataset.token = i;
    view.append(span);
    return span;
  });
  const quoted = (start, end) => JSON.stringify(data.input.tokens.slice(start, end).join("").replaceAll("↵", ""));
  return {
    queryAt: (event) => Number(event.target.dataset.token ?? state.query),
    draw(boxes, largest) {
      for (const span of spans) {
        span.style.background = "";
        span.classList.remove("query");
      }
      for (const { start, end, weight, count, level } of boxes) {
        const strength = Math.round(255 * (0.1 + (0.75 * weight) / count / largest)).toString(16).padStart(2, "0");
        for (let i = start[0]; i < end[0]; i++) spans[i].style.background = color(level) + strength;
      }
      spans[state.query].classList.add("query");
    },
    name: (query) => `token ${query}, ${quoted(query, query + 1)}`,
    boxName: ({ start, end, count }) => count === 1 ? `token ${start[0]}, ${quoted(start[0], end[0])}`
      : `summary of tokens ${start[0]} to ${end[0] - 1}, ${quoted(start[0], end[0])}`,
  };
}

// ------------------------------------------------------------------ controls

const layer = () => data.layers[state.layer];
const levelName = (level) => level ? `level ${level}` : layer().allTokens ? "all tokens" : "near field";
const view = $("view");
const shown = (data.input.kind === "image" ? pictureView : textView)(view);
view.setAttribute("aria-label", data.input.kind === "image" ? "The image" : "The text");

function show() {
  const levels = read(layer(), state.query, state.head);
  levels.forEach((boxes, level) => boxes.forEach((box) => (box.level = level)));
  const boxes = levels.flat(), chosen = state.level < 0 ? boxes : levels[state.level];
  // Not Math.max(...): a long text has more boxes than a call may have arguments.
  shown.draw(chosen, chosen.reduce((most, box) => Math.max(most, box.weight / box.count), 1e-30));
  view.classList.toggle("held", state.held);
  $("query").textContent = `Query: ${shown.name(state.query)}${state.held ? " (held)" : ""}`;
  $("level-name").textContent = state.level < 0 ? "all levels" : levelName(state.level);
  $("levels").replaceChildren(...levels.map((boxes_, level) => {
    const row = document.createElement("tr"), share = boxes_.reduce((sum, box) => sum + box.weight, 0);
    row.innerHTML = `<td><span class="swatch" style="background:${color(level)}"></span>${levelName(level)}</td>` +
      `<td>${boxes_.length}</td><td>${percent(share)}</td>`;
    return row;
  }));
  $("largest").replaceChildren(...[...chosen].sort((a, b) => b.weight - a.weight).slice(0, 5).map((box) => {
    const item = document.createElement("li");
    item.textContent = `${percent(box.weight)}: ${shown.boxName(box)}`;
    return item;
  }));
}

function chooseLayer() {
  const before = place(state.query, layer().grid).map((i, axis) => (i + 0.5) / layer().grid[axis]);
  state.layer = Number($("layer").value);
  const { grid, heads, levels } = layer();
  state.query = number(before.map((share, axis) => Math.floor(share * grid[axis])), grid);
  $("head").replaceChildren(new Option("mean", -1), ...[...Array(heads).keys()].map((h) => new Option(h, h)));
  state.head = -1;
  $("level").max = levels.length - 1;
  $("level").value = state.level = -1;
  show();
}

function move(steps) {
  const { grid } = layer(), at = place(state.query, grid);
  state.query = number(at.map((i, axis) => Math.max(0, Math.min(grid[axis] - 1, i + steps[axis]))), grid);
  show();
}

const KEYS = data.input.kind === "image"
  ? { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }
  : { ArrowLeft: [-1], ArrowRight: [1], ArrowUp: [-16], ArrowDown: [16], Home: [-1e9], End: [1e9] };

$("layer").replaceChildren(...data.layers.map((each, i) => new Option(each.name, i)));
$("layer").addEventListener("change", chooseLayer);
$("head").addEventListener("change", () => { state.head = Number($("head").value); show(); });
$("level").addEventListener("input", () => { state.level = Number($("level").value); show(); });
$("controls").addEventListener("submit", (event) => event.preventDefault());
view.addEventListener("pointermove", (event) => {
  const query = shown.queryAt(event);
  if (!state.held && query !== state.query) { state.query = query; show(); }
});
view.addEventListener("click", (event) => {
  state.held = !state.held;
  state.query = shown.queryAt(event);
  show();
});
view.addEventListener("keydown", (event) => {
  if (event.key in KEYS) move(KEYS[event.key]);
  else if (event.key === "Enter") { state.held = !state.held; show(); }
  else if (event.key === "Escape") { state.held = false; show(); }
  else return;
  event.preventDefault();
});

// Start in the middle, where there is something to read at every level.
state.query = number(layer().grid.map((n) => Math.floor(n / 2)), layer().grid);
chooseLayer();
