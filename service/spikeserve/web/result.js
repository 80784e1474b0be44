// What one model says of a picture.

import { classBars, growth, ratesTable } from "/web/charts.js";
import { h } from "/web/dom.js";
import { milliseconds, percent, si } from "/web/format.js";
import { drawRaster } from "/web/raster.js";

/**
 * @param {any} answer of POST /classify
 * @param {any} trace of POST /classify/trace
 * @returns {{element: HTMLElement, redraw: () => void}} to be redrawn once it is in the page, and when colours or sizes change
 */
export function resultPanel(answer, trace) {
  const [first] = answer.predictions;
  const { used, of } = answer.timesteps;
  const canvas = h("canvas", { class: "raster", role: "img" });
  const timing = answer.timing_seconds;
  const readouts = [
    ["Timesteps", used < of ? `${used} of ${of}` : `${of}`],
    ["Synaptic operations", si(answer.synaptic_operations)],
    ["Energy, estimated", si(answer.energy_joules, "J")],
    ["Decoding", milliseconds(timing.decode)],
    ["Queue", milliseconds(timing.queue)],
    ["Computing", milliseconds(timing.compute)],
  ];
  const element = h("article", { class: "panel result", "aria-label": `Answer of ${answer.model}` },
    h("header", {}, h("h2", {}, answer.model), h("span", { class: "note" }, `version ${answer.version}`)),
    h("p", { class: "answer" }, first.label, " ", h("span", { class: "figure" }, percent(first.probability))),
    classBars(answer.predictions),
    h("dl", { class: "readouts" }, ...readouts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("h3", {}, "Probability after each timestep"),
    growth(trace.probabilities, trace.classes, used < of ? used : null),
    h("h3", {}, "Spikes: neurons across, timesteps down"),
    canvas,
    h("h3", {}, "Firing rate: this picture (dot), and held-out data (mean, 1st to 99th percentile)"),
    ratesTable(trace.layers, answer.firing_rates),
  );
  return { element, redraw: () => drawRaster(/** @type {HTMLCanvasElement} */ (canvas), trace.layers) };
}

/**
 * How two answers compare, in a sentence.
 * @param {any[]} answers
 */
export function comparison(answers) {
  const [one, other] = answers;
  const says = (/** @type {any} */ answer) => `${answer.predictions[0].label}, ${percent(answer.predictions[0].probability)}`;
  if (!other) return `${one.model}: ${says(one)}, after ${one.timesteps.used} of ${one.timesteps.of} timesteps.`;
  const same = one.predictions[0].index === other.predictions[0].index;
  const part = (100 * other.synaptic_operations) / Math.max(1, one.synaptic_operations) - 100;
  const than = Math.abs(part) < 0.5 ? "as many synaptic operations" : `${Math.abs(part).toFixed(0)} % ${part > 0 ? "more" : "fewer"} synaptic operations`;
  const verdict = same ? `Both say ${one.predictions[0].label}` : `They differ: ${one.model} says ${says(one)}; ${other.model} ${says(other)}`;
  return `${verdict}. ${other.model} needs ${than}${Math.abs(part) < 0.5 ? " as" : " than"} ${one.model}.`;
}
