// The decision timeline: a row for each class, a column for each window, and on top what was shown and what was decided.

import { colour, h, sharp } from "/web/dom.js";

const WINDOWS = 90;
const MOST_ROWS = 16;
const ROW = 15;
const HEAD = 24;

export class Timeline {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { role: "img", "aria-label": "No windows yet" }));
    place.replaceChildren(this.canvas);
    this.recolour();
    this.begin([], 30_000);
  }

  /** @param {string[]} classes @param {number} windowUs */
  begin(classes, windowUs) {
    this.classes = classes;
    this.rows = classes.length <= MOST_ROWS ? classes.map((_, i) => i) : [];
    this.span = WINDOWS * windowUs;
    /** @type {any[]} */
    this.windows = [];
    /** @type {{from: number, to: number, label: string}[]} */
    this.shown = [];
    this.draw();
  }

  recolour() {
    this.colours = Object.fromEntries(["--accent", "--on-accent", "--soft", "--sunk", "--line", "--ink"].map((name) => [name, colour(name)]));
  }

  /** One more answer. */
  add(answer) {
    this.windows.push(answer);
    const top = answer.predictions[0]?.index;
    if (this.classes.length > MOST_ROWS && !this.rows.includes(top) && this.rows.length < MOST_ROWS) this.rows.push(top);
    while (this.windows[0].end_us < answer.end_us - this.span) this.windows.shift();
    this.canvas.setAttribute("aria-label", `${answer.index + 1} windows; the last says ${answer.raw[0]?.label ?? "nothing"}, decided is ${answer.decision ?? "nothing"}`);
  }

  /** What was in view until a time, where that is known. @param {string|null} label */
  note(label, until) {
    const last = this.shown.at(-1);
    if (last && last.label === label && until - last.to < 60_000) last.to = until;
    else if (label !== null) this.shown.push({ from: until, to: until, label });
    if (this.shown.length > 64) this.shown.shift();
  }

  draw() {
    const width = this.canvas.parentElement?.clientWidth || 320;
    const gutter = Math.min(96, Math.max(22, 7 * Math.max(0, ...this.rows.map((i) => this.classes[i].length)) + 8));
    const height = 2 * HEAD + Math.max(3, this.rows.length) * ROW;
    const context = sharp(this.canvas, width, height);
    context.font = "11px ui-monospace, monospace";
    const end = Math.max(this.windows.at(-1)?.end_us ?? 0, this.span);
    const x = (/** @type {number} */ t) => gutter + Math.max(0, (t - end + this.span) / this.span) * (width - gutter);
    this.drawGrid(context, gutter, width);
    this.drawShown(context, x);
    for (const window of this.windows) this.drawWindow(context, window, x);
    this.drawDecisions(context, x);
  }

  drawGrid(context, gutter, width) {
    const { "--soft": soft, "--sunk": sunk } = this.colours;
    context.fillStyle = sunk;
    context.fillRect(gutter, 2 * HEAD, width - gutter, Math.max(3, this.rows.length) * ROW);
    context.fillStyle = soft;
    context.textBaseline = "middle";
    this.rows.forEach((i, row) => context.fillText(this.classes[i].slice(0, 12), 0, 2 * HEAD + (row + 0.5) * ROW));
  }

  drawShown(context, x) {
    const { "--soft": soft, "--line": line } = this.colours;
    for (const { from, to, label } of this.shown) {
      if (x(to) <= x(-Infinity)) continue;
      context.fillStyle = line;
      context.fillRect(x(from), 2, Math.max(1, x(to) - x(from)), HEAD - 6);
      context.fillStyle = soft;
      const text = x(to) - x(from) > 60 ? `shown ${label}` : label;
      context.fillText(text, x(from) + 4, HEAD / 2 - 1);
    }
  }

  drawWindow(context, window, x) {
    context.fillStyle = this.colours["--accent"];
    for (const { index, probability } of window.raw) {
      const row = this.rows.indexOf(index);
      if (row < 0 || probability < 0.01 || !window.events) continue;
      context.globalAlpha = probability;
      context.fillRect(x(window.start_us), 2 * HEAD + row * ROW + 1, x(window.end_us) - x(window.start_us) + 0.3, ROW - 2);
    }
    context.globalAlpha = 1;
  }

  drawDecisions(context, x) {
    for (const { label, from, to } of stretches(this.windows)) {
      if (label === null) continue;
      context.fillStyle = this.colours["--accent"];
      context.fillRect(x(from), HEAD, Math.max(1, x(to) - x(from) - 1), HEAD - 4);
      if (x(to) - x(from) < 8 * label.length + 6) continue;
      context.fillStyle = this.colours["--on-accent"];
      context.fillText(label, x(from) + 4, HEAD + HEAD / 2 - 2);
    }
  }
}

/** @returns {{label: string|null, from: number, to: number}[]} */
function stretches(windows) {
  const found = [];
  for (const { decision, start_us, end_us } of windows) {
    const last = found.at(-1);
    if (last && last.label === decision) last.to = end_us;
    else found.push({ label: decision, from: start_us, to: end_us });
  }
  return found;
}
