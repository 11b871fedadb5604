// The modes "complete" and "fill in the middle": an editor whose ghost text the server writes.

import { Editor } from "./editor.js";
import { Generation, say } from "./generation.js";

const DEBOUNCE_MS = 350; // what editors wait

export class Completer {
  constructor(panel, { middle }) {
    this.middle = middle;
    this.editor = new Editor(panel.querySelector(".editor"), { middle });
    this.generation = new Generation(panel);
    this.asYouType = panel.querySelector(".as-you-type");
    this.spoken = panel.querySelector(".spoken");
    this.switcher = panel.querySelector(".choices");
    this.choices = []; // texts, by index
    this.chosen = 0;
    this.timer = null;
    const { area } = this.editor;
    area.addEventListener("keydown", (event) => this._onKey(event));
    area.addEventListener("input", () => this._onInput());
    // A caret that was moved is no longer where the ghost belongs.
    area.addEventListener("selectionchange", () => {
      if (middle && this.editor.ghost && area.selectionStart !== this.editor.position) this.dismiss();
    });
    this.generation.run.addEventListener("click", () => this.run());
    this.acceptButton = panel.querySelector(".accept"); // for those without a Tab key
    this.acceptButton.addEventListener("click", () => this._accept());
    const [previous, next] = this.switcher.querySelectorAll("button");
    previous.addEventListener("click", () => this._choose(-1));
    next.addEventListener("click", () => this._choose(+1));
  }

  /** What would be asked now. */
  asked() {
    const [prompt, suffix] = this.editor.split();
    return { path: "v1/completions", fields: this.middle ? { prompt, suffix } : { prompt } };
  }

  async run() {
    this.dismiss();
    const outcome = await this.generation.start(this.asked(), (index, text) => {
      this.choices[index] = (this.choices[index] ?? "") + text;
      this._paint();
    });
    if (outcome === "superseded" || outcome === "failed") return;
    const ghost = this.editor.ghost;
    this.spoken.textContent = ghost;
    if (outcome !== "done") return;
    say(ghost ? "Suggestion ready: Tab accepts, Esc dismisses." : "The model has nothing to add.");
  }

  /** No ghost, no request. */
  dismiss() {
    clearTimeout(this.timer);
    this.generation.drop();
    this.choices = [];
    this.chosen = 0;
    this.editor.clear();
    this.spoken.textContent = "";
    this._paint();
  }

  _accept() {
    const { choices, chosen } = this;
    this.dismiss();
    this.editor.show(choices[chosen]);
    this.editor.accept();
    say("Accepted.");
  }

  _onKey(event) {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
    else if (event.key === "Tab" && plain && this.editor.ghost) this._accept();
    else if (event.key === "Escape" && (this.editor.ghost || this.generation.running)) {
      this.dismiss();
      say("Dismissed.");
    } else if (event.altKey && "[]".includes(event.key) && this.choices.length > 1) {
      this._choose(event.key === "[" ? -1 : +1);
    } else return;
    event.preventDefault();
  }

  _onInput() {
    if (this.editor.ghost || this.generation.running) this.dismiss();
    clearTimeout(this.timer);
    if (this.asYouType.checked) this.timer = setTimeout(() => this.run(), DEBOUNCE_MS);
  }

  _choose(step) {
    this.chosen = (this.chosen + step + this.choices.length) % this.choices.length;
    this._paint();
    this.spoken.textContent = this.editor.ghost;
  }

  _paint() {
    this.editor.show(this.choices[this.chosen] ?? "");
    this.acceptButton.disabled = !this.editor.ghost;
    this.switcher.classList.toggle("empty", this.choices.length < 2);
    this.switcher.querySelector("span").textContent = `Choice ${this.chosen + 1} of ${this.choices.length}`;
  }
}
