// Accuracy over latency as SVG. A line for each network is there from the beginning; its points
// appear on it as the browser measures them.

const BOX = { left: 44, right: 366, top: 22, bottom: 284, width: 520 };
const SHAPES = {
  first: (x, y) => make("circle", { cx: x, cy: y, r: 5, class: "first" }),
  second: (x, y) => make("rect", { x: x - 4.5, y: y - 4.5, width: 9, height: 9, class: "second" }),
};

/**
 * Draw the plot anew.
 * @param {SVGElement} svg
 * @param {object[]} networks of models.json; those without a top-1 are left out.
 * @param {Map<string, number>} measured milliseconds by file.
 * @param {string} selected file, drawn with a ring.
 */
export function drawPlot(svg, networks, measured, selected) {
  const known = networks.filter(({ top1 }) => top1);
  const precisions = [...new Set(networks.flatMap(({ files }) => files.map((f) => f.precision)))];
  const largest = Math.max(0, ...measured.values());
  const [steps, end] = ticks(0, largest ? largest * 1.1 : 10);
  const x = (ms) => BOX.left + (ms / end) * (BOX.right - BOX.left);
  const percents = known.flatMap(({ top1 }) => [top1.percent, top1.low, top1.high]).filter(isNumber);
  const [low, high] = percents.length ? widened(percents) : [0, 100];
  const y = (percent) => BOX.bottom - ((percent - low) / (high - low)) * (BOX.bottom - BOX.top);

  svg.replaceChildren(
    ...axes(steps, x, y, low, high),
    ...precisions.flatMap((name, i) => legend(name, kind(i), BOX.left + 90 * i)),
    ...spread(known, y).flatMap(({ network, labelY }) => guide(network, y, labelY)),
    ...known.flatMap((network) => points(network, measured, selected, precisions, x, y)),
  );
}

function axes(steps, x, y, low, high) {
  const across = steps.flatMap((ms) => [
    line(x(ms), BOX.top, x(ms), BOX.bottom),
    text(x(ms), BOX.bottom + 18, `${ms}`, "middle"),
  ]);
  const up = ticks(low, high)[0]
    .filter((percent) => percent >= low && percent <= high)
    .flatMap((percent) => [
      line(BOX.left - 4, y(percent), BOX.left, y(percent)),
      text(BOX.left - 8, y(percent) + 4, `${percent}`, "end"),
    ]);
  const middle = (BOX.left + BOX.right) / 2;
  return [
    ...across,
    ...up,
    text(middle, BOX.bottom + 40, "ms an image, in this browser", "middle"),
    text(BOX.width, BOX.top - 8, "top-1, %", "end"),
  ];
}

/** The line of a network, its name, and the interval of a predicted accuracy. */
function guide({ name, top1 }, y, labelY) {
  const level = y(top1.percent);
  const drawn = [
    line(BOX.left, level, BOX.right, level),
    line(BOX.right, level, BOX.right + 12, labelY),
    text(BOX.right + 16, labelY + 4, `${short(name)}: ${top1.percent.toFixed(1)}`, "start", "name"),
  ];
  if (isNumber(top1.low)) {
    drawn.push(line(BOX.left, y(top1.low), BOX.left, y(top1.high), "interval"));
  }
  return drawn;
}

function points({ name, top1, files }, measured, selected, precisions, x, y) {
  return files
    .filter(({ path }) => measured.has(path))
    .flatMap(({ path, precision }) => {
      const [cx, cy] = [x(measured.get(path)), y(top1.percent)];
      const point = SHAPES[kind(precisions.indexOf(precision))](cx, cy);
      const title = make("title", {});
      title.textContent = `${name}, ${precision}: ${measured.get(path).toFixed(1)} ms`;
      point.append(title);
      return path === selected ? [make("circle", { cx, cy, r: 9, class: "ring" }), point] : [point];
    });
}

function legend(name, shape, left) {
  return [SHAPES[shape](left + 6, BOX.top - 12), text(left + 16, BOX.top - 8, name, "start")];
}

/** Labels at least 16 units apart, lowest accuracy at the bottom. */
function spread(known, y) {
  let lowest = BOX.bottom + 16;
  return [...known]
    .sort((a, b) => a.top1.percent - b.top1.percent)
    .map((network) => {
      lowest = Math.min(y(network.top1.percent), lowest - 16);
      return { network, labelY: lowest };
    });
}

/** Round numbers from low to beyond high, and the last of them. */
function ticks(low, high) {
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const first = Math.floor(low / step + 1e-9);
  const count = Math.ceil(high / step - 1e-9) - first + 1;
  const values = Array.from({ length: count }, (_, i) => Number(((first + i) * step).toFixed(6)));
  return [values, values.at(-1)];
}

function widened(percents) {
  const [low, high] = [Math.min(...percents), Math.max(...percents)];
  const margin = Math.max((high - low) * 0.12, 0.5);
  return [low - margin, high + margin];
}

const kind = (index) => (index % 2 ? "second" : "first");
const short = (name) => name.replace(/^autoformer_/, "");
const isNumber = (value) => typeof value === "number";
const line = (x1, y1, x2, y2, name = "") => make("line", { x1, y1, x2, y2, class: name });

function text(x, y, content, anchor, name = "") {
  const element = make("text", { x, y, "text-anchor": anchor, class: name });
  element.textContent = content;
  return element;
}

function make(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
