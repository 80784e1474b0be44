// The API key, where the server asks for one: in this tab until it is closed, and sent in headers, never in an address.

import { byId } from "/web/dom.js";

const STORED = "key";
// Of the WebSocket, which takes no headers from a page.
const [PROTOCOL, KEY_PROTOCOL] = ["spikeserve.v1", "spikeserve.key."];

const key = () => sessionStorage.getItem(STORED);

/** @returns {Record<string, string>} */
export function keyHeaders() {
  const given = key();
  return given ? { "X-Api-Key": given } : {};
}

/** @returns {string[]} subprotocols */
export function keyProtocols() {
  const given = key();
  return given ? [PROTOCOL, KEY_PROTOCOL + btoa(given).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")] : [];
}

/** "Forget key" begins anew, so that nothing that it opened stays on the screen. */
export function startKey() {
  byId("key-forget").addEventListener("click", () => {
    sessionStorage.removeItem(STORED);
    location.reload();
  });
  byId("key-forget").hidden = !key();
}

/**
 * Ask for keys until `attempt` gets through.
 * @template T
 * @param {() => Promise<T>} attempt
 * @returns {Promise<T>} throws what `attempt` throws that another key would not change
 */
export async function unlocked(attempt) {
  for (;;) {
    try {
      const result = await attempt();
      show(false);
      byId("key-forget").hidden = !key();
      return result;
    } catch (error) {
      if (/** @type {any} */ (error).status !== 401) throw error;
      await asked(key() ? /** @type {Error} */ (error).message : "");
    }
  }
}

/** @param {string} wrong what is wrong with the last one */
function asked(wrong) {
  sessionStorage.removeItem(STORED);
  const [form, input, problem] = [byId("key-form"), byId("key-input"), byId("key-problem")];
  show(true);
  byId("key-plain").hidden = window.isSecureContext;
  const say = (/** @type {string} */ text) => {
    problem.textContent = text;
    input.setAttribute("aria-invalid", String(Boolean(text)));
    input.select();
    input.focus();
  };
  say(wrong && `This did not work: ${wrong}.`);
  return /** @type {Promise<void>} */ (new Promise((done) => {
    form.onsubmit = (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      const given = input.value.trim();
      if (!/^[!-~]+$/.test(given)) return say("This is no key: keys are letters, digits and signs, without spaces.");
      sessionStorage.setItem(STORED, given);
      done();
    };
  }));
}

function show(/** @type {boolean} */ locked) {
  byId("key").hidden = !locked;
  document.body.classList.toggle("locked", locked);
}
