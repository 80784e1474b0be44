// An event stream over a WebSocket: packets of 8 bytes an event out, one answer for each window in.

import { Problem } from "/web/api.js";
import { keyProtocols } from "/web/key.js";

// More than this waiting to be sent means that the network does not keep up: packets are then left out, and counted.
const MOST_WAITING_BYTES = 1 << 20;
const BASE_BYTES = 8;

/**
 * Events in the order of their times.
 * @typedef {{t: Float64Array|number[], x: ArrayLike<number>, y: ArrayLike<number>, p: ArrayLike<number>}} Events
 */

/**
 * Base time (int64), then columns: dt uint32, x uint16, y uint16 with the polarity in its highest bit.
 * @param {Events} events
 * @returns {ArrayBuffer}
 */
export function encode({ t, x, y, p }) {
  const n = t.length;
  const base = n ? t[0] : 0;
  const buffer = new ArrayBuffer(BASE_BYTES + 8 * n);
  new DataView(buffer).setBigInt64(0, BigInt(base), true);
  const dt = new Uint32Array(buffer, BASE_BYTES, n);
  const xs = new Uint16Array(buffer, BASE_BYTES + 4 * n, n);
  const ys = new Uint16Array(buffer, BASE_BYTES + 6 * n, n);
  for (let i = 0; i < n; i++) {
    dt[i] = t[i] - base;
    xs[i] = x[i];
    ys[i] = y[i] | (p[i] << 15);
  }
  return buffer;
}

/**
 * Columns as the server sends them, ordered by time, which begins at 0.
 * @param {ArrayBuffer} buffer
 * @returns {Events}
 */
export function decode(buffer) {
  const n = Math.floor(buffer.byteLength / 8);
  const dt = new Uint32Array(buffer, 0, n);
  const xs = new Uint16Array(buffer, 4 * n, n);
  const ys = new Uint16Array(buffer, 6 * n, n);
  let order = null;
  for (let i = 1; i < n && !order; i++) {
    if (dt[i] < dt[i - 1]) order = Uint32Array.from(dt.keys()).sort((a, b) => dt[a] - dt[b] || a - b);
  }
  const at = order ? (/** @type {number} */ i) => order[i] : (/** @type {number} */ i) => i;
  const events = { t: new Float64Array(n), x: new Uint16Array(n), y: new Uint16Array(n), p: new Uint8Array(n) };
  for (let i = 0; i < n; i++) {
    const k = at(i);
    events.t[i] = dt[k];
    events.x[i] = xs[k];
    events.y[i] = ys[k] & 0x7fff;
    events.p[i] = ys[k] >> 15;
  }
  return events;
}

/** @typedef {{opened: (said: any) => void, window: (answer: any) => void, closed: (ended: any, problem: Problem|null) => void}} Listener */

export class EventStream {
  /** @param {Record<string, any>} terms as POST /classify/events has them @param {Listener} listener */
  constructor(terms, listener) {
    this.dropped = 0;
    this.open = false;
    /** @type {any} */
    this.ended = null;
    /** @type {Problem|null} */
    this.problem = null;
    this.left = false;
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/events`, keyProtocols());
    this.socket.onopen = () => this.socket.send(JSON.stringify({ open: terms }));
    this.socket.onmessage = ({ data }) => this.hear(JSON.parse(data), listener);
    this.socket.onclose = (event) => {
      const unexpected = !this.left && !this.ended && !this.problem;
      if (unexpected) this.problem = closedBy(event, this.open);
      this.open = false;
      listener.closed(this.ended, this.problem);
    };
  }

  hear(said, listener) {
    if (said.opened) {
      this.open = true;
      listener.opened(said.opened);
    } else if (said.window) listener.window(said.window);
    else if (said.ended) this.ended = said.ended;
    else if (said.error) {
      this.problem = new Problem(said.error);
      if (said.error.status === 401) window.dispatchEvent(new Event("locked"));
    }
  }

  /** Events up to, not including, a time. @param {Events} events @param {number} until */
  send(events, until) {
    if (!this.open) return;
    if (this.socket.bufferedAmount > MOST_WAITING_BYTES) {
      this.dropped += events.t.length;
      return;
    }
    if (events.t.length) this.socket.send(encode(events));
    this.socket.send(JSON.stringify({ advance: Math.floor(until) }));
  }

  /** Nothing follows; the last answers do. */
  end() {
    if (this.open) this.socket.send(JSON.stringify({ end: true }));
  }

  /** Go without waiting. */
  leave() {
    this.left = true;
    this.socket.close();
  }
}

function closedBy(event, opened) {
  const reasons = { 1009: "A message was larger than the server takes.", 1012: "The server is shutting down." };
  const detail = reasons[event.code] ?? (opened ? "The connection was lost." : "The server did not open the stream.");
  return new Problem({ title: "The stream ended", detail });
}
