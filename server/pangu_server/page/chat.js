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

  async run() {
    const content = this.input.value;
    if (!content.trim() || this.generation.running) return;
    const system = this.system.value.trim();
    const conversation = [...this.messages, { role: "user", content }];
    const question = this._append("user", content);
    const answer = this._append("assistant", "");
    const piece = document.createTextNode("");
    answer.querySelector("pre").append(piece);
    this.input.value = "";
    const messages = system ? [{ role: "system", content: system }, ...conversation] : conversation;
    const outcome = await this.generation.start("v1/chat/completions", { messages }, (_, text) => {
      piece.appendData(text);
      this.list.scrollTop = this.list.scrollHeight;
    });
    if (outcome === "superseded") return;
    if (outcome === "failed" || !piece.data) {
      // Nothing came: the question goes back to where it can be changed and sent again.
      question.remove();
      answer.remove();
      this.input.value ||= content;
      return;
    }
    this.messages = [...conversation, { role: "assistant", content: piece.data }];
    if (outcome === "done") say("Answered.");
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
    this.input.focus();
    say("New conversation.");
  }
}
