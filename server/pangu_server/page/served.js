// What is served: the model's card, the server's version, and whether it takes requests.

import { inWords, request, requestWithKey } from "./api.js";
import { copies } from "./clipboard.js";
import { bytes, number } from "./format.js";

/** Event at the document: other models can be chosen. */
export const MODELS_CHANGED = "pangu-models-changed";

const UNKNOWN = "unknown";
const STATES = {
  ready: "Ready",
  loading: "Loading",
  draining: "Draining",
  "not-ready": "Not ready",
  unreachable: "Unreachable",
};

export class Served {
  constructor(section) {
    this.list = section.querySelector("dl");
    this.unscored = section.querySelector(".unscored"); // how to record a score
    copies(this.unscored.querySelector("button"), this.unscored.querySelector("code"));
    this.state = document.querySelector("#state");
    this.version = UNKNOWN;
  }

  /** Look whether the server is ready; when that changes, look at the model again. */
  async watch() {
    const state = await readiness();
    if (this.state.dataset.state === state) return;
    this.state.dataset.state = state;
    this.state.textContent = STATES[state];
    if (state !== "unreachable") await this.refresh();
  }

  /** Read the card, for which a key may have to be asked, and show it. */
  async refresh() {
    try {
      const [card, ...aliases] = (await json("v1/models")).data;
      this.version = await json("version").then((body) => body.version, () => UNKNOWN);
      this._offer([card, ...aliases]);
      this._show(card, aliases.map(({ id }) => id));
    } catch (error) {
      document.querySelector("#model-name").textContent = inWords(error);
    }
  }

  _offer(cards) {
    const select = document.querySelector("#parameters select");
    const { value } = select;
    select.replaceChildren(...cards.map(option));
    if (cards.some(({ id }) => id === value)) select.value = value;
    document.dispatchEvent(new Event(MODELS_CHANGED));
  }

  _show(card, aliases) {
    document.querySelector("#model-name").textContent = card.id;
    document.title = `${card.id} – pangu-coder2`;
    for (const [ability, id] of [["chat", "#no-chat"], ["fim", "#no-fim"]]) {
      document.querySelector(id).hidden = card[ability] !== false;
    }
    const rows = {
      Model: card.id,
      "Also named": aliases.join(", "),
      Architecture: card.architecture,
      Source: card.source,
      Context: `${number(card.max_model_len)} tokens`,
      Quantization: card.quantization,
      Engine: card.engine ?? "",
      Runs: [card.backend, card.compute_type, card.kernel].filter(Boolean).join(", ") || "not loaded yet",
      Device: card.device,
      Weights: bytes(card.weight_bytes),
      "Fill in the middle": yesOrNo(card.fim),
      "Chat template": yesOrNo(card.chat),
      ...scores(card.scores ?? {}),
      Server: this.version,
    };
    const shown = Object.entries(rows).filter(([, value]) => value !== "");
    this.list.replaceChildren(...shown.flatMap(([name, value]) => [cell("dt", name), cell("dd", value ?? UNKNOWN)]));
    this.unscored.hidden = measured(card.scores ?? {});
  }
}

async function json(path) {
  return (await requestWithKey(path)).json();
}

async function readiness() {
  try {
    await request("ready");
    return "ready";
  } catch (error) {
    if (!error.status) return "unreachable";
    if (/loading/i.test(error.message)) return "loading";
    return /shutting|draining/i.test(error.message) ? "draining" : "not-ready";
  }
}

/** Recorded scores, one row a number; what benchmarks add later shows without a change here. */
function scores(recorded) {
  const rows = {};
  const add = (name, value) => {
    if (value !== null && typeof value === "object") {
      for (const [key, inner] of Object.entries(value)) add(`${name} ${key}`, inner);
    } else if (value !== null) {
      const title = name.replace("humaneval", "HumanEval").replace("pass_at_k ", "pass@").replaceAll("_", " ");
      rows[title] = String(typeof value === "number" ? +value.toPrecision(4) : value);
    }
  };
  for (const [name, value] of Object.entries(recorded)) add(name, value);
  return measured(recorded) ? rows : { ...rows, HumanEval: "no HumanEval score recorded" };
}

function measured(recorded) {
  return Object.keys(recorded).some((name) => /human_?eval/i.test(name));
}

function option({ id, engine }) {
  const made = new Option(id, id);
  if (engine) made.dataset.engine = engine;
  return made;
}

function yesOrNo(value) {
  return value === undefined || value === null ? UNKNOWN : value ? "yes" : "no";
}

function cell(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
