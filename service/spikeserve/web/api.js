// The server's answers, and its errors in its own words (application/problem+json, RFC 9457).

import { h } from "/web/dom.js";
import { keyHeaders } from "/web/key.js";

/** An error as the server says it. */
export class Problem extends Error {
  /** @param {{title: string, detail: string, request_id?: string, status?: number}} content */
  constructor(content) {
    super(content.detail);
    this.title = content.title;
    this.detail = content.detail;
    this.request_id = content.request_id;
    this.status = content.status;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} throws Problem
 */
export async function ask(path, init = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...init, headers: { ...init.headers, ...keyHeaders() } });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new Problem({ title: "No connection", detail: "The server cannot be reached, or closed the connection." });
  }
  if (reply.ok) return reply;
  if (reply.status === 401) window.dispatchEvent(new Event("locked"));
  const content = await reply.json().catch(() => null);
  throw new Problem(
    content?.detail ? content : { title: `Status ${reply.status}`, detail: reply.statusText || "The server gave no reason.", status: reply.status },
  );
}

/** @param {string} path @param {RequestInit} [init] */
export const askJson = async (path, init) => (await ask(path, init)).json();

/** @param {Record<string, any>} options those that are empty are left out */
export function query(options) {
  const given = Object.entries(options).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}

/**
 * That there is nothing to choose from, or not yet.
 * @param {HTMLElement} place
 * @param {string} input what models would have to take
 * @param {boolean} ready whether the server is
 */
export function showNoModel(place, input, ready) {
  if (ready) return showProblem(place, new Problem({ title: "No model", detail: `No model that takes ${input} is ready on this server.` }));
  place.replaceChildren(h("p", { class: "panel" }, "The server is not ready yet: it loads its models. This page goes on by itself."));
}

/**
 * Show what went wrong, or nothing.
 * @param {HTMLElement} place
 * @param {any} error
 */
export function showProblem(place, error) {
  if (!error) return place.replaceChildren();
  const { title = "The page failed", detail = String(error.message ?? error), request_id = "" } = error;
  place.replaceChildren(
    h("div", { class: "problem" }, h("p", {}, h("strong", {}, title)), h("p", {}, detail),
      request_id ? h("p", { class: "note" }, `request ${request_id}`) : null),
  );
}
