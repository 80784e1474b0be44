// Class bars, how probabilities grew, and firing rates against those in training: small SVGs with a text beside them.

import { h, svg } from "/web/dom.js";
import { percent, rate } from "/web/format.js";

const LINES = 4;
const LABEL_GAP = 13;

/** @param {{label: string, probability: number}[]} predictions */
export function classBars(predictions) {
  return h("ol", { class: "bars", "aria-label": "Likeliest classes" }, ...predictions.map(({ label, probability }) => {
    const bar = h("i");
    bar.style.width = `${100 * probability}%`;
    return h("li", {}, h("span", { title: label }, label), h("span", { class: "track", "aria-hidden": true }, bar),
      h("span", { class: "figure" }, percent(probability)));
  }));
}

/**
 * Probability of the classes that matter, after each timestep.
 * @param {number[][]} probabilities [timesteps][classes]
 * @param {string[]} classes
 * @param {number|null} stopped timesteps that the answer took, where that was fewer
 */
export function growth(probabilities, classes, stopped) {
  const [width, height, left, right, top, bottom] = [420, 168, 34, 92, 14, 22];
  const steps = probabilities.length;
  const x = (/** @type {number} */ t) => left + (steps === 1 ? 0.5 : t / (steps - 1)) * (width - left - right);
  const y = (/** @type {number} */ p) => top + (1 - p) * (height - top - bottom);
  const last = probabilities[steps - 1];
  const shown = classes.map((_, i) => i).sort((a, b) => peak(probabilities, b) - peak(probabilities, a)).slice(0, LINES)
    .sort((a, b) => last[b] - last[a]);
  const words = shown.slice(0, 2).map((i) => `${classes[i]} ${probabilities.map((row) => percent(row[i])).join(", ")}`);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "growth", role: "img", "aria-label": `Probability after each timestep. ${words.join(". ")}.` });
  for (const p of [0, 0.5, 1]) {
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(p), y2: y(p) }),
      svg("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, `${100 * p}%`));
  }
  const every = Math.ceil(steps / 8);
  for (let t = 0; t < steps; t += every) chart.append(svg("text", { x: x(t), y: height - 5, "text-anchor": "middle" }, t + 1));
  if (stopped !== null) {
    const before = stopped > steps / 2;
    chart.append(svg("line", { class: "stop", x1: x(stopped - 1), x2: x(stopped - 1), y1: top - 6, y2: height - bottom }),
      svg("text", { class: "stop-text", x: x(stopped - 1) + (before ? -5 : 5), y: top - 3, "text-anchor": before ? "end" : "start" }, "stopped here"));
  }
  const labels = spread(shown.map((i) => y(last[i])), top + 2, height - bottom);
  shown.forEach((i, rank) => {
    const line = `c${rank + 1}`;
    chart.append(svg("polyline", { class: line, points: probabilities.map((row, t) => `${x(t)},${y(row[i])}`).join(" ") }));
    probabilities.forEach((row, t) => steps <= 16 && chart.append(svg("circle", { class: line, cx: x(t), cy: y(row[i]), r: 2.6 })));
    chart.append(svg("text", { class: line, x: width - right + 8, y: labels[rank] + 4 }, shortened(classes[i], 12)));
  });
  return chart;
}

/**
 * Each layer's firing rate for this picture (a dot) in the range of held-out data (1st to 99th percentile, mean).
 * @param {{name: string, rates: number[], trained: {mean: number, p1: number, p99: number}|null}[]} layers
 * @param {Record<string, number>} measured by layer, as POST /classify answers
 */
export function ratesTable(layers, measured) {
  const now = (layer) => measured[layer.name] ?? mean(layer.rates);
  const most = Math.max(0.05, ...layers.map((layer) => Math.max(now(layer), layer.trained?.p99 ?? 0))) * 1.05;
  const rows = layers.map((layer) => {
    const value = now(layer);
    const { trained } = layer;
    const out = trained !== null && (value < trained.p1 || value > trained.p99);
    const range = trained === null ? "not known" : `${rate(trained.p1)}–${rate(trained.p99)}`;
    return h("tr", {}, h("th", { scope: "row" }, layer.name), h("td", {}, rateLine(value / most, trained, most, out)),
      h("td", { class: "figure" }, rate(value)), h("td", { class: "figure note" }, range));
  });
  return h("table", { class: "rates" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), h("th", { scope: "col" }, "0 to ", rate(most)),
      h("th", { scope: "col", class: "figure" }, "Rate"), h("th", { scope: "col", class: "figure" }, "Held-out data"))),
    h("tbody", {}, ...rows));
}

function rateLine(part, trained, most, out) {
  const [width, height] = [200, 16];
  const line = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": true },
    svg("line", { class: "axis", x1: 0, x2: width, y1: height / 2, y2: height / 2 }));
  if (trained !== null) {
    const [from, to, middle] = [trained.p1, trained.p99, trained.mean].map((each) => (each / most) * width);
    line.append(svg("rect", { class: "band", x: from, y: 3, width: Math.max(1, to - from), height: height - 6, rx: 1 }),
      svg("line", { class: "mean", x1: middle, x2: middle, y1: 2, y2: height - 2 }));
  }
  line.append(svg("circle", { class: out ? "now out" : "now", cx: part * width, cy: height / 2, r: 4 }));
  return line;
}

const peak = (rows, i) => Math.max(...rows.map((row) => row[i]));
const mean = (values) => values.reduce((all, each) => all + each, 0) / values.length;
const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Positions at least a line apart, as near to the given ones as their order allows. */
function spread(wanted, top, bottom) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [...wanted];
  let next = top;
  for (const i of order) {
    placed[i] = Math.max(wanted[i], next);
    next = placed[i] + LABEL_GAP;
  }
  let limit = bottom;
  for (const i of order.reverse()) {
    placed[i] = Math.min(placed[i], limit);
    limit = placed[i] - LABEL_GAP;
  }
  return placed;
}
