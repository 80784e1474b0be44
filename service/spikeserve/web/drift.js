// Whether the neurons of each model fire as they did on held-out data: a table, one row a layer.

import { h, svg } from "/web/dom.js";
import { percent } from "/web/format.js";

const MOST = 4;
const WORDS = { steady: "as on held-out data", drifting: "drifting", unknown: "nothing seen yet" };

/** @param {any[]} models of GET /status @returns {Node[]} the table's children */
export function driftTable(models) {
  const watched = models.filter((model) => model.drift?.layers.length);
  if (!watched.length) return [h("tbody", {}, h("tr", {}, h("td", {}, "No model here has a profile to compare with (spiketrain profile).")))];
  const head = ["Model", "State", "Layer", "Shift, in standard deviations", "Silent", "Saturated"];
  return [
    h("thead", {}, h("tr", {}, ...head.map((name, i) => h("th", { scope: "col", class: i > 3 ? "figure" : null }, name)))),
    ...watched.map(({ name, version, drift }) => h("tbody", {}, ...drift.layers.map((layer, i) => h("tr", {},
      i ? null : h("td", { rowspan: drift.layers.length }, name, h("div", { class: "note" }, `version ${version}`)),
      i ? null : h("td", { rowspan: drift.layers.length, class: "why" }, ...state(drift)),
      h("td", {}, layer.name),
      h("td", {}, drift.samples ? shift(layer) : "–"),
      share(layer.silent), share(layer.saturated))))),
  ];
}

function state(drift) {
  const kind = { steady: "ready", drifting: "failed", unknown: "loading" }[drift.state];
  const seen = `${drift.samples.toLocaleString("en")} samples, ${drift.probes.toLocaleString("en")} probed`;
  return [h("span", { class: `state ${kind}` }, WORDS[drift.state]), ...drift.reasons.map((reason) => h("div", {}, reason)), h("div", { class: "note" }, seen)];
}

const share = (value) => h("td", { class: "figure" }, value === null ? "–" : percent(value));

function shift(layer) {
  const [width, height] = [160, 16];
  const x = (/** @type {number} */ value) => ((Math.max(-MOST, Math.min(MOST, value)) + MOST) / (2 * MOST)) * width;
  const mark = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": true },
    svg("line", { class: "axis", x1: 0, x2: width, y1: height / 2, y2: height / 2 }),
    svg("rect", { class: "band", x: x(-1), y: 3, width: x(1) - x(-1), height: height - 6, rx: 1 }),
    svg("line", { class: "mean", x1: x(0), x2: x(0), y1: 2, y2: height - 2 }),
    svg("circle", { class: layer.score >= 1 ? "now out" : "now", cx: x(layer.shift), cy: height / 2, r: 4 }));
  return h("div", { class: "shift" }, mark, h("span", { class: "figure" }, `${layer.shift < 0 ? "−" : "+"}${Math.abs(layer.shift).toFixed(2)}`));
}
