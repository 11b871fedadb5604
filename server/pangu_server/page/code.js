// What the page would send now, as a command of curl and as a program for the openai package. A key is never in it:
// both read it from OPENAI_API_KEY.

import { hasKey } from "./api.js";
import { copies } from "./clipboard.js";
import { asSent } from "./parameters.js";

const VARIABLE = "OPENAI_API_KEY";

export class CodeView {
  /** `asked()` returns the path and the fields of what would be asked now. */
  constructor(details, asked) {
    this.details = details;
    this.asked = asked;
    this.code = details.querySelector("code");
    this.copy = details.querySelector(".copy");
    copies(this.copy, this.code);
    details.addEventListener("toggle", () => this.paint());
    for (const name of ["input", "change"]) document.addEventListener(name, () => this.paint());
    document.addEventListener("selectionchange", () => this.paint()); // the gap is at the caret
  }

  /** Show it, if it is open. */
  paint() {
    if (!this.details.open) return;
    const write = this.details.querySelector("input:checked").value === "curl" ? curl : python;
    let text;
    try {
      const { path, fields } = this.asked();
      text = write(path, asSent(fields));
      this.copy.disabled = false;
    } catch (error) {
      text = error.message;
      this.copy.disabled = true;
    }
    // What is the same stays, and what is selected in it.
    if (this.code.textContent !== text) this.code.textContent = text;
  }
}

function curl(path, body) {
  return [
    `curl -N ${quoted(new URL(path, document.baseURI).href)}`,
    ...(hasKey() ? [`  -H "Authorization: Bearer $${VARIABLE}"`] : []),
    "  -H 'Content-Type: application/json'",
    `  -d ${quoted(JSON.stringify(body, null, 2))}`,
  ].join(" \\\n");
}

/** For a shell. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function python(path, body) {
  const chat = path.endsWith("chat/completions");
  const [client, text] = chat ? ["chat.completions", "choice.delta.content"] : ["completions", "choice.text"];
  const base = new URL("v1", document.baseURI).href;
  const key = hasKey() ? "" : ', api_key="none"';
  const shown = body.n > 1 ? `choice.index, repr(${text})` : `${text} or "", end="", flush=True`;
  const fields = Object.entries({ model: "", ...body }).map(([name, value]) => `    ${name}=${literal(value, 1)},\n`);
  return `from openai import OpenAI

client = OpenAI(base_url=${literal(base)}${key})${key ? "" : `  # the key is in $${VARIABLE}`}
stream = client.${client}.create(
${fields.join("")})
for chunk in stream:
    for choice in chunk.choices:
        print(${shown})`;
}

/** `value` as Python writes it. What JSON escapes in a string, Python reads alike. */
function literal(value, depth = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const indent = "    ".repeat(depth);
  const wrap = (open, entries, close) => {
    const line = `${open}${entries.join(", ")}${close}`;
    return line.length < 80 ? line : `${open}\n${entries.map((one) => `${indent}    ${one},\n`).join("")}${indent}${close}`;
  };
  if (Array.isArray(value)) return wrap("[", value.map((one) => literal(one, depth + 1)), "]");
  return wrap("{", Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, depth + 1)}`), "}");
}
