// Numbers as people read them.

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"], [1e-12, "p"]];

/**
 * Three digits and an SI prefix: 1.84 M, 1.70 µJ.
 * @param {number} value
 * @param {string} [unit]
 */
export function si(value, unit = "") {
  if (!value) return `0 ${unit}`.trim();
  const [size, prefix] = PREFIXES.find(([each]) => Math.abs(value) >= /** @type {number} */ (each) * 0.9995) ?? PREFIXES.at(-1);
  const part = value / /** @type {number} */ (size);
  const digits = part >= 99.95 ? 0 : part >= 9.995 ? 1 : 2;
  const whole = size === 1 && Number.isInteger(value);
  return `${whole ? value : part.toFixed(digits)} ${prefix}${unit}`.trim();
}

/** @param {number} share 0 to 1 */
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 || share > 0.995 ? 1 : 0)} %`;

/** @param {number} rate spikes per neuron per timestep */
export const rate = (rate) => rate.toFixed(3);

/** @param {number} seconds */
export const milliseconds = (seconds) => `${(1e3 * seconds).toFixed(seconds < 0.01 ? 2 : seconds < 0.1 ? 1 : 0)} ms`;

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
