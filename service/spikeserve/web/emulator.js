// A camera's pictures to events: each pixel remembers a level of log intensity, and emits an event for every threshold
// by which the intensity has moved away from it.

const DARKEST = 0.02;
const MOST_PER_PIXEL = 8;

export class Emulator {
  /** @param {number} width @param {number} height */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    /** @type {Float32Array|null} */
    this.level = null;
    this.before = new Float32Array(width * height);
    this.t = 0;
  }

  /**
   * The events since the picture before; the first picture is what pixels start from.
   * @param {Uint8ClampedArray} rgba
   * @param {number} t microseconds
   * @param {number} threshold in log intensity
   * @returns {import("/web/stream.js").Events}
   */
  look(rgba, t, threshold) {
    const now = new Float32Array(this.before.length);
    for (let i = 0; i < now.length; i++) now[i] = Math.log(Math.max(luminance(rgba, 4 * i), DARKEST));
    /** @type {[number, number, number][]} */
    const found = [];
    if (this.level === null) this.level = now.slice();
    else for (let i = 0; i < now.length; i++) this.pixel(i, now[i], t, threshold, found);
    this.before = now;
    this.t = t;
    found.sort((a, b) => a[0] - b[0]);
    return {
      t: found.map((each) => each[0]),
      x: found.map((each) => each[1] % this.width),
      y: found.map((each) => Math.floor(each[1] / this.width)),
      p: found.map((each) => each[2]),
    };
  }

  /** Between two pictures the log intensity is taken to change linearly, which gives each event a time of its own. */
  pixel(i, now, t, threshold, found) {
    const level = /** @type {Float32Array} */ (this.level);
    const change = now - this.before[i];
    const sign = now > level[i] ? 1 : -1;
    let count = 0;
    while (Math.abs(now - level[i]) >= threshold) {
      level[i] += sign * threshold;
      if (count++ >= MOST_PER_PIXEL) continue;
      const part = change ? Math.min(1, Math.max(0, (level[i] - this.before[i]) / change)) : 1;
      // Before t, so that the time up to t can be called complete.
      found.push([Math.min(t - 1, Math.floor(this.t + part * (t - this.t))), i, sign > 0 ? 1 : 0]);
    }
  }
}

/** Linear intensity, 0 to 1: cameras send it with a gamma, and a DVS sees light. */
function luminance(rgba, i) {
  const grey = (0.2126 * rgba[i] + 0.7152 * rgba[i + 1] + 0.0722 * rgba[i + 2]) / 255;
  return grey ** 2.2;
}
