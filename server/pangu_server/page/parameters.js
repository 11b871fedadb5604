// The parameters' form as fields of a request. What is left empty is not sent.

import { FieldError } from "./api.js";

const ESCAPES = { n: "\n", t: "\t", "\\": "\\" };
const form = () => document.querySelector("#parameters");

/** The body that the page sends for `fields`, streamed. Throws FieldError, when a parameter is out of bounds. */
export function asSent(fields) {
  return { ...parameters(), ...fields, stream: true, stream_options: { include_usage: true } };
}

/** The engine of the chosen model, or null. */
export function chosenEngine() {
  return form().elements.model.selectedOptions[0]?.dataset.engine ?? null;
}

/** Mark the field that the server calls `param`, such as "stop.0", until it is changed; at null none. */
export function mark(param) {
  for (const node of document.querySelectorAll("[aria-invalid]")) unmark(node);
  const name = param?.split(/[.[]/)[0];
  const panel = document.querySelector("[role=tabpanel]:not([hidden])");
  const node = name && (form().elements[name] ?? panel.querySelector(`textarea[data-fields~="${CSS.escape(name)}"]`));
  if (!node) return;
  node.ariaInvalid = "true";
  node.setAttribute("aria-errormessage", "error");
  node.addEventListener("input", () => unmark(node), { once: true });
}

function unmark(node) {
  node.removeAttribute("aria-invalid");
  node.removeAttribute("aria-errormessage");
}

function parameters() {
  const wrong = form().querySelector(":invalid:not(fieldset)");
  if (wrong) throw new FieldError(`${wrong.name}: ${wrong.validationMessage}`, wrong.name);
  const body = {};
  for (const { name, value, type, disabled } of form().elements) {
    if (name && name !== "stop" && value !== "" && !disabled) body[name] = type === "number" ? Number(value) : value;
  }
  const stop = stopStrings(form().elements.stop.value);
  return stop.length ? { ...body, stop } : body;
}

/** One a line; `\n`, `\t` and `\\` stand for what they do in Python. */
function stopStrings(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\([nt\\])/g, (_, letter) => ESCAPES[letter]));
}
