// One streamed generation: what it sends to whom, how long it took, and how it is stopped.

import { events, inWords, requestWithKey } from "./api.js";
import { number } from "./format.js";
import { asSent, chosenEngine, mark } from "./parameters.js";

/** One request at a time: a new one cancels the one before. Paints buttons, status line and measures. */
export class Generation {
  constructor(panel) {
    this.run = panel.querySelector(".run");
    this.stopButton = panel.querySelector(".stop");
    this.stopButton.addEventListener("click", () => this.stop());
    this.controller = null;
  }

  get running() {
    return this.controller !== null;
  }

  /**
   * Send the parameters and `fields` to `path`, and hand each piece to `onText(index, text)`. Returns "done",
   * "stopped", "failed" (told on the page), or "superseded" by a later call.
   */
  async start({ path, fields }, onText) {
    this.stop();
    const controller = (this.controller = new AbortController());
    const measures = (this.measures = new Measures());
    measures.paint("…");
    this._busy(true);
    let outcome = "done";
    try {
      const whole = asSent(fields);
      say("Waiting for the first token…");
      await stream(path, whole, controller.signal, measures, (index, text) => {
        if (this.controller !== controller) return;
        measures.paint("…");
        onText(index, text);
      });
    } catch (error) {
      outcome = error.name === "AbortError" ? "stopped" : "failed";
      if (outcome === "failed" && this.controller === controller) complain(error);
    }
    if (this.controller !== controller) return "superseded";
    this.controller = null;
    this._busy(false);
    if (outcome === "stopped") say("Stopped.");
    measures.paint(outcome === "done" ? undefined : outcome);
    return outcome;
  }

  /** End the running request; the server notices and stops generating. */
  stop() {
    this.controller?.abort();
  }

  /** The same, and forget it: nothing is told about it any more. */
  drop() {
    this.stop();
    if (this.running) {
      say("");
      this.measures.paint("stopped");
    }
    this.controller = null;
    this._busy(false);
  }

  _busy(busy) {
    if (!busy && document.activeElement === this.stopButton) this.run.focus();
    this.stopButton.disabled = !busy;
    this.run.closest("[role=tabpanel]").ariaBusy = String(busy);
  }
}

/** What happens now, for eyes and screen readers. Takes the place of an error. */
export function say(text) {
  document.querySelector("#status").textContent = text;
  document.querySelector("#error").textContent = "";
  mark(null);
}

/** An error, in words, and the field that it is about. */
function complain(error) {
  document.querySelector("#status").textContent = "";
  document.querySelector("#error").textContent = inWords(error);
  mark(error.param);
}

async function stream(path, body, signal, measures, onText) {
  const response = await requestWithKey(path, { body, signal });
  for await (const event of events(response)) {
    measures.usage = event.usage ?? measures.usage;
    for (const choice of event.choices) {
      if (choice.finish_reason) measures.reasons[choice.index] = choice.finish_reason;
      const text = choice.text ?? choice.delta?.content;
      if (!text) continue;
      if (measures.pieces === 0) say("Generating…");
      measures.piece();
      onText(choice.index, text);
    }
  }
}

/** Times as this browser sees them, network included. */
class Measures {
  constructor() {
    this.started = performance.now();
    this.first = this.last = null; // ms, of the first and the last piece of text
    this.pieces = 0;
    this.engine = chosenEngine();
    this.usage = null;
    this.reasons = [];
  }

  piece() {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  /** Show them; without a `finish` that of the answer. */
  paint(finish) {
    // Before the usage comes, with the end, pieces are counted: a piece is a token, or a few.
    const tokens = this.usage?.completion_tokens;
    const seconds = (this.last - this.first) / 1000;
    const rate = seconds > 0 ? ((tokens ?? this.pieces) - 1) / seconds : null;
    const guessed = this.usage?.completion_tokens_details;
    const accepted = guessed?.accepted_prediction_tokens;
    const approximately = tokens === undefined ? "≈ " : "";
    const values = {
      finish: finish ?? ([...new Set(this.reasons.filter(Boolean))].join(", ") || "–"),
      prompt: this.usage?.prompt_tokens ?? "–",
      cached: this.usage?.prompt_tokens_details?.cached_tokens ?? "–",
      tokens: tokens ?? (this.pieces ? `${approximately}${this.pieces}` : "–"),
      drafts: guessed ? `${accepted} of ${accepted + guessed.rejected_prediction_tokens}` : "–",
      ttft: this.first === null ? "–" : `${(this.first - this.started).toFixed(0)} ms`,
      rate: rate === null ? "–" : `${approximately}${number(rate)}`,
      total: this.last === null ? "–" : `${((this.last - this.started) / 1000).toFixed(2)} s`,
      engine: (this.pieces || this.usage ? this.engine : null) ?? "–",
    };
    for (const [name, value] of Object.entries(values)) document.querySelector(`#m-${name}`).textContent = value;
  }
}
