// The parameters' form as fields of a request. What is left empty is not sent.

const ESCAPES = { n: "\n", t: "\t", "\\": "\\" };

/** Throws an Error that names the field, when one is out of bounds. */
export function parameters() {
  const form = document.querySelector("#parameters");
  const wrong = form.querySelector(":invalid:not(fieldset)");
  if (wrong) throw new Error(`${wrong.name}: ${wrong.validationMessage}`);
  const body = {};
  for (const { name, value, type, disabled } of form.elements) {
    if (name && name !== "stop" && value !== "" && !disabled) body[name] = type === "number" ? Number(value) : value;
  }
  const stop = stopStrings(form.elements.stop.value);
  return stop.length ? { ...body, stop } : body;
}

/** One a line; `\n`, `\t` and `\\` stand for what they do in Python. */
export function stopStrings(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\([nt\\])/g, (_, letter) => ESCAPES[letter]));
}
