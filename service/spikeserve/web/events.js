// The events view: a source played against the clock, the stream that it feeds, and what comes back.

import { askJson, Problem, query, showNoModel, showProblem } from "/web/api.js";
import { openCamera } from "/web/camera.js";
import { byId, h } from "/web/dom.js";
import { EventPicture } from "/web/eventpicture.js";
import { milliseconds, si } from "/web/format.js";
import { demonstration, recording, webcam } from "/web/sources.js";
import { EventStream } from "/web/stream.js";
import { Timeline } from "/web/timeline.js";

const TICK_MS = 15;
const CALM_MS = 500;
const MOST_LOGGED = 100;
// For models that say nothing of decisions: a class that leads for a few windows is decided.
const DECISION = "leaky:time_constant_us=100000,margin=0.3";

/** @type {any[]} */
let usable = [];
/** @type {EventPicture} */
let picture;
/** @type {Timeline} */
let timeline;
/** @type {Run|null} */
let run = null;
let starting = 0;

export function startEvents() {
  picture = new EventPicture(byId("events-picture"));
  timeline = new Timeline(byId("events-timeline"));
  readouts(null);
  listen();
}

/** @param {any[]} models of GET /models @param {boolean} ready whether there will be no more of them */
export function offerEvents(models, ready) {
  usable = models.filter((model) => model.input === "events" && model.state === "ready");
  if (!usable.length) return showNoModel(byId("events-problem"), "events", ready);
  if (!run) showProblem(byId("events-problem"), null);
  const named = (model) => (usable.filter((each) => each.name === model.name).length > 1 ? `${model.name} ${model.version}` : model.name);
  byId("events-model").replaceChildren(...usable.map((model, i) => h("option", { value: i, selected: model.default }, named(model))));
}

function listen() {
  const [zone, file] = [byId("events-drop"), byId("events-file")];
  byId("events-demo").addEventListener("click", () => start(() => demonstration()));
  byId("events-choose").addEventListener("click", () => file.click());
  byId("events-camera").addEventListener("click", () => start(fromWebcam));
  byId("events-stop").addEventListener("click", stop);
  file.addEventListener("change", () => {
    const chosen = file.files[0];
    file.value = "";
    if (chosen) start(() => recording(chosen));
  });
  byId("events").addEventListener("dragover", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  byId("events").addEventListener("dragleave", () => zone.classList.remove("over"));
  byId("events").addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const dropped = event.dataTransfer?.files[0];
    if (dropped) start(() => recording(dropped));
  });
  const threshold = byId("events-threshold");
  threshold.addEventListener("input", () => (byId("events-threshold-value").textContent = Number(threshold.value).toFixed(2)));
  byId("events-speed").addEventListener("change", () => run?.setSpeed(speed()));
  window.addEventListener("themechange", recolour);
  window.addEventListener("resize", () => timeline.draw());
}

function recolour() {
  picture.recolour();
  picture.draw(run?.now() ?? 0);
  timeline.recolour();
  timeline.draw();
}

const speed = () => Number(byId("events-speed").value);

async function fromWebcam(model) {
  const video = byId("events-video");
  const close = await openCamera(video);
  const { sensor } = (await manifestOf(model)).input;
  return webcam(video, sensor, () => Number(byId("events-threshold").value), close);
}

async function manifestOf(model) {
  const { manifest } = await askJson(`/models/${encodeURIComponent(model.name)}${query({ version: model.version })}`);
  return manifest;
}

/** @param {(model: any) => Promise<import("/web/sources.js").Source>} open */
async function start(open) {
  stop();
  const mine = ++starting;
  showProblem(byId("events-problem"), null);
  byId("events-source").textContent = "opening ...";
  try {
    const model = usable[byId("events-model").value || 0];
    if (!model) throw new Problem({ title: "No model", detail: "No model that takes events is ready on this server." });
    const source = await open(model);
    const manifest = await manifestOf(model);
    const made = manifest.input.sensor;
    if (mine !== starting) return source.close();
    const sensor = source.sensor ?? made;
    const [filter, fitted] = fit(sensor, made);
    byId("events-source").textContent = source.about + fitted;
    picture.begin(sensor);
    const live = source.about.startsWith("webcam");
    const terms = { model: model.name, version: model.version, sensor: sensor.join("x"), filter, start_us: 0, top_k: model.classes.length };
    if (!manifest.decision) Object.assign(terms, { decision: DECISION });
    run = new Run(source, terms, live ? 1 : speed(), live);
    byId("events-stop").disabled = false;
  } catch (error) {
    if (mine !== starting) return;
    byId("events-source").textContent = "no stream";
    showProblem(byId("events-problem"), error);
  }
}

function stop() {
  starting++;
  run?.stop();
  run = null;
  byId("events-stop").disabled = true;
}

/** Filters that lead from a larger sensor to the model's: its middle, with squares of pixels made one. */
function fit([width, height], [w, h]) {
  const factor = Math.floor(Math.min(width / w, height / h));
  if ((width === w && height === h) || factor < 1) return [[], ""];
  const [x, y] = [Math.floor((width - w * factor) / 2), Math.floor((height - h * factor) / 2)];
  return [
    [`region:x=${x},y=${y},width=${w * factor},height=${h * factor},crop`, `down-sample:${factor}`],
    `; of ${width}x${height} pixels the middle ${w * factor}x${h * factor}, ${factor}x${factor} made one`,
  ];
}

class Run {
  constructor(source, terms, speed, live) {
    this.source = source;
    this.speed = speed;
    this.live = live;
    this.decided = undefined;
    this.answer = null;
    this.ended = false;
    /** @type {[number, number][]} */
    this.recent = [];
    /** Wall and stream time at which the clock was set last. */
    this.from = [0, 0];
    const stream = (this.stream = new EventStream(terms, {
      opened: (said) => this.begin(said),
      window: (answer) => this.take(answer),
      closed: (_, problem) => this.finish(problem),
    }));
    byId("events-log").replaceChildren();
    decide(null, null);
    this.leave = () => stream.leave();
  }

  /** Stream time, microseconds. */
  now() {
    const [wall, stream] = this.from;
    return wall ? stream + (performance.now() - wall) * 1000 * this.speed : 0;
  }

  setSpeed(speed) {
    if (this.live) return;
    this.from = [performance.now(), this.now()];
    this.speed = speed;
  }

  begin(said) {
    timeline.begin(said.classes, said.window_us ?? 30_000);
    this.from = [performance.now(), 0];
    this.timer = window.setInterval(() => this.tick(), TICK_MS);
    this.drawn = 0;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.frame();
  }

  tick() {
    const part = this.source.next(this.now());
    if (part === null) {
      clearInterval(this.timer);
      return this.stream.end();
    }
    if (!part.events.t.length && part.until === this.until) return;
    this.until = part.until;
    this.stream.send(part.events, part.until);
    this.recent.push([part.until, part.events.t.length]);
    while (this.recent[0][0] < part.until - 1e6) this.recent.shift();
    timeline.note(part.label, part.until);
    picture.add(part.events);
  }

  frame() {
    if (this.ended) return;
    requestAnimationFrame(() => this.frame());
    if (performance.now() - this.drawn < (this.calm ? CALM_MS : 0) || byId("events").hidden) return;
    this.drawn = performance.now();
    picture.draw(this.now());
    timeline.draw();
    readouts(this);
  }

  take(answer) {
    answer.lag_ms = (this.now() - answer.end_us) / 1000 / this.speed;
    this.answer = answer;
    timeline.add(answer);
    if (answer.decision !== this.decided) {
      this.decided = answer.decision;
      decide(answer.decision, answer.end_us);
    }
    const [best] = answer.predictions;
    byId("events-lead").textContent = best ? `the stream so far: ${best.label}, ${(100 * best.probability).toFixed(0)} %` : "";
  }

  finish(problem) {
    this.ended = true;
    clearInterval(this.timer);
    this.source.close();
    readouts(this);
    timeline.draw();
    if (run !== this) return;
    run = null;
    byId("events-stop").disabled = true;
    if (problem) showProblem(byId("events-problem"), problem);
    else byId("events-source").textContent = `ended: ${this.source.about}`;
  }

  stop() {
    this.leave();
    this.ended = true;
    clearInterval(this.timer);
    this.source.close();
  }
}

function decide(label, t) {
  const place = byId("events-decision");
  place.textContent = label ?? "none";
  place.classList.toggle("undecided", label === null);
  if (t === null) return;
  const log = byId("events-log");
  log.append(h("li", {}, `${(t / 1e6).toFixed(2)} s: ${label ?? "no decision"}`));
  if (log.childElementCount > MOST_LOGGED) log.firstElementChild?.remove();
}

/** @param {Run|null} of */
function readouts(of) {
  const answer = of?.answer;
  const events = of ? of.recent.reduce((all, [, count]) => all + count, 0) : 0;
  const seconds = of?.recent.length ? Math.min(1, Math.max(0.05, of.recent.at(-1)[0] / 1e6)) : 1;
  const drops = answer ? answer.drops.late_events + answer.drops.outside_events + of.stream.dropped : 0;
  const facts = [
    ["Events/s", si(Math.round(events / seconds))],
    ["Windows", answer ? `${answer.index + 1}` : "0"],
    ["Lag", answer ? milliseconds(Math.max(0, answer.lag_ms) / 1000) : "–"],
    ["Server", answer ? milliseconds(answer.latency_seconds) : "–"],
    ["Dropped", `${drops}`],
    ["Filtered", `${answer?.drops.filtered_events ?? 0}`],
    ["Operations/window", answer ? si(answer.synaptic_operations) : "–"],
    ["Energy/window", answer ? si(answer.energy_joules, "J") : "–"],
  ];
  byId("events-readouts").replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
