// The page as a whole: views, theme, and whether the server is ready.

import { askJson } from "/web/api.js";
import { byId } from "/web/dom.js";
import { offerEvents, startEvents } from "/web/events.js";
import { startKey, unlocked } from "/web/key.js";
import { offerPictures, startPicture } from "/web/picture.js";
import { startServer } from "/web/server.js";

const VIEWS = ["picture", "events", "server"];
const THEMES = ["auto", "light", "dark"];
const AGAIN_MS = 1000;

const server = startServer();

/** @param {string} name @param {boolean} [focus] */
function show(name, focus = false) {
  for (const view of VIEWS) {
    const chosen = view === name;
    byId(view).hidden = !chosen;
    byId(`tab-${view}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${view}`).tabIndex = chosen ? 0 : -1;
  }
  if (focus) byId(`tab-${name}`).focus();
  server.visible(name === "server");
  window.dispatchEvent(new Event("resize"));
}

function startTabs() {
  VIEWS.forEach((view, i) => {
    byId(`tab-${view}`).addEventListener("click", () => {
      history.replaceState(null, "", `#${view}`);
      show(view);
    });
    byId(`tab-${view}`).addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const last = VIEWS.length - 1;
      const to = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i ? i - 1 : last, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      history.replaceState(null, "", `#${VIEWS[to]}`);
      show(VIEWS[to], true);
    });
  });
  const fromAddress = () => {
    const named = location.hash.slice(1);
    if (VIEWS.includes(named)) show(named);
  };
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
}

function startTheme() {
  const button = byId("theme");
  let theme = localStorage.getItem("theme") ?? "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    window.dispatchEvent(new Event("themechange"));
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("theme", theme);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

/** Whether it takes requests; says so at the top. */
async function health() {
  const place = byId("health");
  const say = (/** @type {string} */ text, /** @type {string} */ kind) => {
    place.className = `health ${kind}`;
    if (place.textContent !== text) place.textContent = text;
  };
  try {
    const { state, version } = await askJson("/status");
    say(`${state}, ${version}`, state === "ready" ? "ready" : "bad");
    return state === "ready";
  } catch (error) {
    // A key that may classify need not be one that may look at the server.
    const readiness = await fetch("/health/ready").catch(() => null);
    if (readiness === null) say("not reachable", "bad");
    else say(readiness.ok ? "ready" : "not ready", readiness.ok ? "ready" : "bad");
    return readiness?.ok ?? false;
  }
}

/** The models, which every key may list; asks for a key where one is needed. */
const letIn = () => unlocked(() => askJson("/models"));

/** A key may expire, or be revoked, while the page is open. */
function watchKey() {
  let asking = false;
  window.addEventListener("locked", async () => {
    if (asking) return;
    asking = true;
    await letIn().catch(() => {});
    asking = false;
    server.visible(location.hash === "#server");
  });
}

/** Offers the models; a server that has just been started loads them one by one, so until it is ready, again and again. */
async function offer() {
  let offered = "";
  for (;;) {
    const { models } = await letIn().catch(() => ({ models: [] }));
    const ready = await health();
    const found = JSON.stringify([ready, models]);
    if (found !== offered) {
      offerEvents(models, ready);
      await offerPictures(models, ready);
    }
    offered = found;
    if (ready) return;
    await new Promise((done) => window.setTimeout(done, AGAIN_MS));
  }
}

startKey();
startTheme();
startTabs();
startEvents();
startPicture();
await offer();
watchKey();
document.addEventListener("visibilitychange", () => document.hidden || health());
document.body.dataset.started = "true";
