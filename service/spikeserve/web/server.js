// The server as it is now. Asked for only while somebody looks.

import { askJson, showProblem } from "/web/api.js";
import { byId, h } from "/web/dom.js";
import { driftTable } from "/web/drift.js";
import { duration, milliseconds } from "/web/format.js";

const EVERY_MS = 2000;

/** @returns {{visible: (shown: boolean) => void}} */
export function startServer() {
  let shown = false;
  let timer = 0;

  async function refresh() {
    clearTimeout(timer);
    if (!shown || document.hidden) return;
    try {
      draw(await askJson("/status"));
      showProblem(byId("server-problem"), null);
    } catch (error) {
      showProblem(byId("server-problem"), error);
    }
    timer = window.setTimeout(refresh, EVERY_MS);
  }

  document.addEventListener("visibilitychange", refresh);
  return {
    visible(now) {
      shown = now;
      refresh();
    },
  };
}

function draw(status) {
  const ready = status.models.filter((model) => model.state === "ready");
  const sum = (name) => ready.reduce((all, model) => all + model[name], 0);
  tiles([
    ["State", status.state],
    ["Up for", duration(status.uptime_seconds)],
    ["Models ready", `${ready.length} of ${status.models.length}`],
    ["Slots in use", `${sum("slots_in_use")} of ${sum("slots")}`],
    ["Pictures waiting", `${sum("queue")}`],
    ["Streams open", `${status.streams.open}`],
  ]);
  byId("server-models").replaceChildren(...modelTable(status.models));
  byId("server-drift").replaceChildren(...driftTable(status.models));
  byId("server-refusals").replaceChildren(...refusalTable(status.refusals));
}

function tiles(facts) {
  byId("server-tiles").replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const head = (...names) =>
  h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col", class: name.startsWith("#") ? "figure" : null }, name.replace("#", "")))));
const figure = (text) => h("td", { class: "figure" }, text);

function modelTable(models) {
  const latency = (model, stage) => {
    const found = model.latency_seconds[stage];
    return found ? `${milliseconds(found.p50)} / ${milliseconds(found.p99)}` : "–";
  };
  const rows = models.map((model) =>
    h("tr", {},
      h("td", {}, model.name, model.default ? h("span", { class: "note" }, " default") : null,
        model.reason ? h("div", { class: "note" }, model.reason) : null),
      h("td", {}, model.version),
      h("td", {}, h("span", { class: `state ${model.state}` }, model.state)),
      h("td", {}, model.input ?? "–"),
      figure(model.slots ? `${model.slots_in_use} / ${model.slots}` : "–"),
      figure(`${model.queue}`),
      figure(latency(model, "queue")),
      figure(latency(model, "compute")),
      figure(`${model.latency_seconds.compute?.count ?? 0}`)));
  return [
    head("Model", "Version", "State", "Takes", "#Slots in use", "#Waiting", "#Wait p50 / p99", "#Compute p50 / p99", "#Answers"),
    h("tbody", {}, ...rows),
  ];
}

function refusalTable(refusals) {
  if (!refusals.length) return [h("tbody", {}, h("tr", {}, h("td", {}, "Nothing was refused since the server began.")))];
  const rows = refusals.map((each) =>
    h("tr", {},
      h("td", { class: "figure" }, new Date(1000 * each.when).toLocaleTimeString()),
      h("td", {}, each.route), figure(`${each.status}`), h("td", {}, each.title), h("td", { class: "why" }, each.reason)));
  return [head("#Time", "Route", "#Status", "What", "Why"), h("tbody", {}, ...rows)];
}
