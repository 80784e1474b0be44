// The spike raster: layers below each other, a column for each neuron, time running down.

import { colour, sharp } from "/web/dom.js";

const LABEL = 17;
const GAP = 8;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {{name: string, neurons: number, raster: number[], fired: number[][]}[]} layers
 */
export function drawRaster(canvas, layers) {
  const width = canvas.clientWidth || 320;
  const steps = layers[0]?.fired.length ?? 0;
  const row = Math.max(3, Math.min(11, Math.floor(88 / steps)));
  const band = LABEL + steps * row;
  const context = sharp(canvas, width, layers.length * (band + GAP) - GAP);
  const [ink, soft, sunk] = ["--accent", "--soft", "--sunk"].map(colour);
  context.font = "11px ui-monospace, monospace";
  layers.forEach((layer, i) => {
    const top = i * (band + GAP);
    context.fillStyle = soft;
    context.textAlign = "left";
    context.fillText(layer.name, 0, top + 11);
    context.textAlign = "right";
    context.fillText(`${layer.raster.length} of ${layer.neurons}`, width, top + 11);
    const cell = width / layer.raster.length;
    context.fillStyle = sunk;
    context.fillRect(0, top + LABEL, width, steps * row - 1);
    context.fillStyle = ink;
    layer.fired.forEach((positions, t) => {
      for (const position of positions) {
        const x = (position + 0.5) * cell;
        context.fillRect(x - Math.min(1.5, cell / 3), top + LABEL + t * row, Math.min(3, cell / 1.5), row - 1);
      }
    });
  });
  const spikes = layers.map((layer) => `${layer.name} ${layer.fired.reduce((all, each) => all + each.length, 0)}`);
  canvas.setAttribute("aria-label", `Spikes of the neurons shown, over ${steps} timesteps: ${spikes.join(", ")}`);
}
