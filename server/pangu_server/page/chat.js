// The mode "chat": a conversation that this page keeps and sends whole.

import { Generation, say } from "./generation.js";

export class Chat {
  constructor(panel) {
    this.generation = new Generation(panel);
    this.list = panel.querySelector(".messages");
    this.system = panel.querySelector(".system");
    this.input = panel.querySelector("textarea");
    this.messages = []; // of roles user and assistant, in turns
    this.generation.run.addEventListener("click", () => this.run());
    panel.querySelector(".clear").addEventListener("click", () => this._clear());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.generation.stop();
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.run();
    });
  }

  /** What would be asked now. */
  asked() {
    const system = this.system.value.trim();
    const question = { role: "user", content: this.input.value };
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...this.messages, question];
    return { path: "v1/chat/completions", fields: { messages } };
  }

  async run() {
    const content = this.input.value;
    if (!content.trim() || this.generation.running) return;
    const asked = this.asked();
    const conversation = [...this.messages, { role: "user", content }];
    const question = this._append("user", content);
    const answer = this._append("assistant", "");
    const piece = document.createTextNode("");
    answer.querySelector("pre").append(piece);
    this._write("");
    const outcome = await this.generation.start(asked, (_, text) => {
      piece.appendData(text);
      this.list.scrollTop = this.list.scrollHeight;
    });
    if (outcome === "superseded") return;
    if (outcome === "failed" || !piece.data) {
      // Nothing came: the question goes back to where it can be changed and sent again.
      question.remove();
      answer.remove();
      this._write(this.input.value || content);
      return;
    }
    this.messages = [...conversation, { role: "assistant", content: piece.data }];
    this._write(this.input.value);
    if (outcome === "done") say("Answered.");
  }

  /** Put `text` where questions are typed, and let who shows what would be sent know. */
  _write(text) {
    this.input.value = text;
    this.input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  _append(role, text) {
    const item = document.createElement("li");
    const name = document.createElement("b");
    const body = document.createElement("pre");
    item.className = role;
    name.textContent = role === "user" ? "You" : "Model";
    body.textContent = text;
    item.append(name, body);
    this.list.append(item);
    this.list.scrollTop = this.list.scrollHeight;
    return item;
  }

  _clear() {
    this.generation.drop();
    this.messages = [];
    this.list.replaceChildren();
    this._write(this.input.value);
    this.input.focus();
    say("New conversation.");
  }
}
