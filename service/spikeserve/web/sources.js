// Where events come from: a recording, the demonstration, the webcam. All give what happened until a stream time.

import { ask, query } from "/web/api.js";
import { drawSquare } from "/web/camera.js";
import { Emulator } from "/web/emulator.js";
import { decode } from "/web/stream.js";

/**
 * @typedef {import("/web/stream.js").Events} Events
 * @typedef {{events: Events, until: number, label: string|null}} Part `label` is what is in view, where that is known
 * @typedef {{sensor: [number, number]|null, about: string, next: (now: number) => Part|null, close: () => void}} Source
 *   `next` gives what happened since it was called last, null at the end; times in microseconds, the first is 0
 */

const DIGIT_US = 510_000;
const SILENCE_US = 150_000;

/** @returns {Promise<Source>} throws Problem */
export async function recording(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  const reply = await ask("/events/columns", { method: "POST", body: file, headers });
  const events = decode(await reply.arrayBuffer());
  const stated = reply.headers.get("X-Events-Sensor");
  const damage = reply.headers.get("X-Events-Damage");
  const end = events.t.length ? events.t[events.t.length - 1] + SILENCE_US : 0;
  const count = events.t.length.toLocaleString("en");
  let [from, until] = [0, -1];
  return {
    sensor: stated ? /** @type {[number, number]} */ (stated.split("x").map(Number)) : null,
    about: `${file.name}: ${reply.headers.get("X-Events-Format")}, ${count} events${damage ? `; read only in part: ${damage}` : ""}`,
    next(now) {
      if (until >= end) return null;
      // Not past the end, and up to it, whenever the browser happens to ask.
      until = Math.min(now, end);
      const to = firstAfter(events.t, until, from);
      const part = cut(events, from, to);
      from = to;
      return { events: part, until, label: null };
    },
    close() {},
  };
}

/** Digits drawn by the server's emulated camera, one after the other, without end. @returns {Promise<Source>} */
export async function demonstration() {
  const load = async (/** @type {number} */ number) => {
    const digit = Math.floor(Math.random() * 10);
    const reply = await ask(`/events/demo${query({ digit, seed: Math.floor(Math.random() * 1e6) })}`);
    return { events: decode(await reply.arrayBuffer()), label: String(digit), start: number * DIGIT_US };
  };
  let shown = await load(0);
  /** @type {any} */
  let following = null;
  const prepare = (/** @type {number} */ number) => load(number).then((each) => (following = each), () => {});
  prepare(1);
  let from = 0;
  return {
    sensor: [34, 34],
    about: "drawn digits, seen by an emulated camera through three saccades",
    next(now) {
      if (now >= shown.start + DIGIT_US && following) {
        // Time spent waiting for the network is silence.
        const number = Math.floor(now / DIGIT_US);
        shown = { ...following, start: number * DIGIT_US };
        following = null;
        from = 0;
        prepare(number + 1);
      }
      const to = firstAfter(shown.events.t, now - shown.start, from);
      const part = cut(shown.events, from, to);
      for (let i = 0; i < part.t.length; i++) part.t[i] += shown.start;
      from = to;
      return { events: part, until: now, label: from < shown.events.t.length ? shown.label : null };
    },
    close() {},
  };
}

/**
 * @param {HTMLVideoElement} video open already
 * @param {[number, number]} sensor
 * @param {() => number} threshold
 * @param {() => void} close
 * @returns {Source}
 */
export function webcam(video, sensor, threshold, close) {
  const [width, height] = sensor;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = sensor;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const emulator = new Emulator(width, height);
  const nothing = { t: [], x: [], y: [], p: [] };
  let seen = -1;
  let until = 0;
  return {
    sensor,
    about: `webcam, ${width}x${height} pixels`,
    next(now) {
      const events = video.currentTime === seen ? nothing : look(now);
      return { events, until, label: null };
    },
    close,
  };

  function look(now) {
    seen = video.currentTime;
    until = Math.floor(now);
    drawSquare(video, context);
    return emulator.look(context.getImageData(0, 0, width, height).data, until, threshold());
  }
}

/** @param {Events} events */
const cut = ({ t, x, y, p }, from, to) =>
  /** @type {any} */ ({ t: t.slice(from, to), x: x.slice(from, to), y: y.slice(from, to), p: p.slice(from, to) });

/** The first position from `from` on whose time is not before `t`. */
function firstAfter(times, t, from) {
  let i = from;
  while (i < times.length && times[i] < t) i++;
  return i;
}
