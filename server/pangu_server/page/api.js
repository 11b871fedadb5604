// Talking to the server: the key, errors in words, server-sent events. Addresses are relative, so that the
// page also works behind a path of a proxy.

/** Event at the document: a key was entered, or forgotten. */
export const KEY_CHANGED = "pangu-key-changed";
const KEY = "pangu-api-key"; // in sessionStorage: gone with the tab

/** An answer that is not a success, or none at all (status 0). */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param; // the field that is wrong, as the server calls it
    this.retryAfter = retryAfter; // seconds, or a date, as the server sent it
  }
}

/** A field of the page that is out of bounds. */
export class FieldError extends Error {
  constructor(message, param) {
    super(message);
    this.param = param;
  }
}

/** Whether a key is sent. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** The response of `path`, a success. Throws ApiError, or AbortError when `signal` says so. */
export async function request(path, { body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = new Headers();
  if (key) headers.set("authorization", `Bearer ${key}`);
  if (body) headers.set("content-type", "application/json");
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  const { message, param } = reason(await response.text(), response);
  throw new ApiError(message, { status: response.status, param, retryAfter: response.headers.get("retry-after") });
}

/** The same, but a missing or refused key is asked for, once. */
export async function requestWithKey(path, options) {
  try {
    return await request(path, options);
  } catch (error) {
    if (error.status !== 401 || !(await askKey(error.message))) throw error;
    return request(path, options);
  }
}

let asking = null; // several requests that meet a 401 share one question

/** Show the dialog; resolves to whether a key was entered. */
export function askKey(reason = "") {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key-dialog");
    const input = dialog.querySelector("input");
    dialog.querySelector("#key-reason").textContent = reason;
    input.value = sessionStorage.getItem(KEY) ?? "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      const saved = dialog.returnValue === "save";
      if (saved && input.value) sessionStorage.setItem(KEY, input.value.trim());
      else if (saved) sessionStorage.removeItem(KEY);
      input.value = "";
      asking = null;
      resolve(saved);
      if (saved) document.dispatchEvent(new Event(KEY_CHANGED));
    };
    dialog.showModal();
  });
  return asking;
}

/** The events of a stream, parsed, up to `[DONE]`. Throws ApiError for an error event or a broken stream. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("The connection ended before the answer did.");
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue; // a comment that keeps the connection alive
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message ?? String(event.error), { param: event.error.param });
      yield event;
    }
  }
}

/** What went wrong, in one line. */
export function inWords(error) {
  if (!(error instanceof ApiError)) return String(error.message ?? error);
  const status = error.status ? `${error.status}: ` : "";
  const wait = /^\d+$/.test(error.retryAfter ?? "") ? `${error.retryAfter} s` : error.retryAfter;
  return `${status}${error.message}${wait ? ` Retry after ${wait}.` : ""}`;
}

function reason(text, response) {
  try {
    const { error, detail } = JSON.parse(text);
    const message = error?.message ?? (typeof error === "string" ? error : JSON.stringify(detail ?? text));
    return { message, param: error?.param ?? null };
  } catch {
    return { message: text.slice(0, 300) || response.statusText || "The server gave no reason.", param: null };
  }
}
