// The picture view: where a picture comes from, and what becomes of it.

import { askJson, query, showNoModel, showProblem } from "/web/api.js";
import { drawSquare, openCamera } from "/web/camera.js";
import { byId, h } from "/web/dom.js";
import { comparison, resultPanel } from "/web/result.js";
import { drawSample, SAMPLES } from "/web/samples.js";

const PREVIEW = 224;

/** @type {{blob: Blob, name: string}|null} */
let picture = null;
/** @type {AbortController|null} */
let underWay = null;
/** @type {{redraw: () => void}[]} */
let panels = [];
/** @type {(() => void)|null} */
let closeCamera = null;

export function startPicture() {
  listen();
  drawSamples();
}

/** @param {any[]} models of GET /models @param {boolean} ready whether there will be no more of them */
export async function offerPictures(models, ready) {
  const usable = models.filter((model) => model.input === "image" && model.state === "ready");
  const chosen = usable.find((model) => model.default) ?? usable[0];
  if (!chosen) return showNoModel(byId("picture-problem"), "pictures", ready);
  const other = await converted(chosen, usable);
  const options = () => usable.map((model) => h("option", { value: `${model.name} ${model.version}` }, named(model, usable)));
  byId("picture-model").replaceChildren(...options());
  byId("picture-other").replaceChildren(h("option", { value: "" }, "none"), ...options());
  byId("picture-model").value = `${chosen.name} ${chosen.version}`;
  byId("picture-other").value = other;
  showProblem(byId("picture-problem"), null);
  await classify();
}

const named = (model, all) => (all.filter((each) => each.name === model.name).length > 1 ? `${model.name} ${model.version}` : model.name);

/** The plain LIF that was made from this model, where the server has it. */
async function converted(parent, models) {
  for (const model of models.filter((each) => each.name !== parent.name && each.name.startsWith(parent.name))) {
    const { manifest } = await askJson(`/models/${encodeURIComponent(model.name)}${query({ version: model.version })}`).catch(() => ({}));
    if (manifest?.conversion?.parent_name === parent.name) return `${model.name} ${model.version}`;
  }
  return "";
}

function listen() {
  const [zone, file] = [byId("picture-drop"), byId("picture-file")];
  byId("picture-choose").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) take(file.files[0], file.files[0].name);
    file.value = "";
  });
  byId("picture").addEventListener("dragover", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  byId("picture").addEventListener("dragleave", () => zone.classList.remove("over"));
  byId("picture").addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const dropped = event.dataTransfer?.files[0];
    if (dropped) take(dropped, dropped.name);
  });
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (pasted && !byId("picture").hidden) take(pasted, "pasted picture");
  });
  byId("picture-camera").addEventListener("click", toggleCamera);
  byId("picture-snap").addEventListener("click", snap);
  for (const id of ["model", "other", "exit", "timesteps", "invert"]) byId(`picture-${id}`).addEventListener("change", classify);
  for (const event of ["resize", "themechange"]) window.addEventListener(event, () => panels.forEach((panel) => panel.redraw()));
}

function drawSamples() {
  byId("picture-samples").replaceChildren(...SAMPLES.map((sample) => {
    const button = h("button", { type: "button", "aria-label": `Drawn sample: ${sample.name}`, title: sample.name }, drawSample(sample, 112));
    button.addEventListener("click", async () => take(await toPng(drawSample(sample)), `drawn: ${sample.name}`));
    return button;
  }));
}

async function toggleCamera() {
  if (closeCamera) return stopCamera();
  try {
    byId("picture-preview").hidden = true;
    closeCamera = await openCamera(byId("picture-video"));
    byId("picture-snap").hidden = false;
    byId("picture-camera").textContent = "Close webcam";
    showProblem(byId("picture-problem"), null);
  } catch (error) {
    showProblem(byId("picture-problem"), error);
  }
}

function stopCamera() {
  closeCamera?.();
  closeCamera = null;
  byId("picture-snap").hidden = true;
  byId("picture-camera").textContent = "Webcam";
}

async function snap() {
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width: 448, height: 448 }));
  drawSquare(byId("picture-video"), /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")));
  const blob = await toPng(canvas);
  stopCamera();
  await take(blob, "picture of the webcam");
}

/** @param {Blob} blob @param {string} name */
async function take(blob, name) {
  picture = { blob, name };
  byId("picture-hint").textContent = name;
  await classify();
  // On a phone the answer is below what was just touched.
  const answer = byId("picture-results");
  if (answer.getBoundingClientRect().top > window.innerHeight - 80) answer.scrollIntoView({ block: "center" });
}

async function classify() {
  if (!picture || !byId("picture-model").value) return;
  underWay?.abort();
  const mine = (underWay = new AbortController());
  const results = byId("picture-results");
  results.setAttribute("aria-busy", "true");
  try {
    const body = await prepared(picture);
    const models = [byId("picture-model").value, byId("picture-other").value].filter(Boolean);
    const pairs = await Promise.all([...new Set(models)].map((model) => both(model, body, mine.signal)));
    if (mine.signal.aborted) return;
    panels = pairs.map(([answer, trace]) => resultPanel(answer, trace));
    results.replaceChildren(...panels.map((panel) => panel.element));
    panels.forEach((panel) => panel.redraw());
    byId("picture-summary").textContent = comparison(pairs.map(([answer]) => answer));
    showProblem(byId("picture-problem"), null);
    byId("picture-empty").hidden = true;
  } catch (error) {
    if (mine.signal.aborted) return;
    panels = [];
    results.replaceChildren();
    byId("picture-summary").textContent = "";
    showProblem(byId("picture-problem"), error);
  } finally {
    if (underWay === mine) results.setAttribute("aria-busy", "false");
  }
}

/** The answer, and what went on inside. */
async function both(model, body, signal) {
  const [name, version] = model.split(" ");
  const timesteps = byId("picture-timesteps").value;
  const init = { method: "POST", body, signal, headers: { "Content-Type": "application/octet-stream" } };
  // Exits were found for the model's own timesteps; the server says so if both are asked for.
  const answer = await askJson(`/classify${query({ model: name, version, timesteps, exit: byId("picture-exit").value })}`, init);
  const trace = await askJson(`/classify/trace${query({ model: name, version, timesteps })}`, init);
  return [answer, trace];
}

/** The file itself, unless it is to be inverted; and a look at it, where the browser can read it. */
async function prepared({ blob, name }) {
  const preview = byId("picture-preview");
  const bitmap = await createImageBitmap(blob).catch(() => null);
  preview.hidden = bitmap === null;
  if (bitmap === null) return blob;
  const invert = byId("picture-invert").checked;
  paint(preview, bitmap, PREVIEW, PREVIEW, invert);
  preview.setAttribute("aria-label", name);
  if (!invert) return blob;
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas"));
  paint(canvas, bitmap, bitmap.width, bitmap.height, true);
  return toPng(canvas);
}

/** The whole picture, as large as fits, in the middle. */
function paint(canvas, bitmap, width, height, invert) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const scale = Math.min(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingEnabled = scale < 2;
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  if (!invert) return;
  context.globalCompositeOperation = "difference";
  context.fillStyle = "#fff";
  context.fillRect((width - w) / 2, (height - h) / 2, w, h);
}

/** @param {HTMLCanvasElement} canvas @returns {Promise<Blob>} */
const toPng = (canvas) => new Promise((done) => canvas.toBlob((blob) => done(/** @type {Blob} */ (blob)), "image/png"));
