// The live picture: pixels light up with their events and fade with stream time.

import { rgb } from "/web/dom.js";

const FADE_US = 35_000;

export class EventPicture {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.recolour();
    this.begin([34, 34]);
  }

  /** @param {[number, number]} sensor width, height */
  begin([width, height]) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.last = new Float64Array(width * height).fill(-Infinity);
    this.polarity = new Uint8Array(width * height);
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.image = this.context.createImageData(width, height);
    this.draw(0);
  }

  recolour() {
    this.colours = [rgb("--event-off"), rgb("--event-on")];
    this.ground = rgb("--sunk");
  }

  /** @param {import("/web/stream.js").Events} events */
  add({ t, x, y, p }) {
    const { width, height } = this.canvas;
    for (let i = 0; i < t.length; i++) {
      if (x[i] >= width || y[i] >= height) continue;
      const at = y[i] * width + x[i];
      this.last[at] = t[i];
      this.polarity[at] = p[i];
    }
  }

  /** @param {number} now stream time, microseconds */
  draw(now) {
    const { data } = this.image;
    for (let i = 0; i < this.last.length; i++) {
      const strength = Math.exp(-Math.max(0, now - this.last[i]) / FADE_US);
      const colour = this.colours[this.polarity[i]];
      for (let channel = 0; channel < 3; channel++) {
        data[4 * i + channel] = this.ground[channel] + (colour[channel] - this.ground[channel]) * strength;
      }
      data[4 * i + 3] = 255;
    }
    this.context.putImageData(this.image, 0, 0);
  }
}
