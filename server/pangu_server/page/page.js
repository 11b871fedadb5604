// Puts the parts together: tabs, the key, what is served, the charts.

import { KEY_CHANGED, askKey } from "./api.js";
import { Board } from "./board.js";
import { Chat } from "./chat.js";
import { CodeView } from "./code.js";
import { Completer } from "./completer.js";
import { MODELS_CHANGED, Served } from "./served.js";

const panel = (name) => document.querySelector(`#panel-${name}`);
const modes = {
  complete: new Completer(panel("complete"), { middle: false }),
  fill: new Completer(panel("fill"), { middle: true }),
  chat: new Chat(panel("chat")),
};

// The example's caret is in its gap: the empty line.
const example = modes.fill.editor.area;
const gap = example.value.indexOf("\n\n") + 1;
example.setSelectionRange(gap, gap);

const served = new Served(document.querySelector("#served"));
new Board(document.querySelector("#live"), () => served.watch());
document.querySelector("#key").addEventListener("click", () => askKey());
document.addEventListener(KEY_CHANGED, () => served.refresh());
const chosen = () => modes[document.querySelector("[role=tab][aria-selected=true]").dataset.mode];
const code = new CodeView(document.querySelector("#code"), () => chosen().asked());
for (const event of [KEY_CHANGED, MODELS_CHANGED]) document.addEventListener(event, () => code.paint());

document.querySelector("#parameters").addEventListener("submit", (event) => {
  event.preventDefault();
  chosen().run();
});

// Tabs as the ARIA practices describe them: one stop in the tab order, arrows move.
const tabs = [...document.querySelectorAll("[role=tab]")];

function select(target) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === target);
    tab.tabIndex = tab === target ? 0 : -1;
    panel(tab.dataset.mode).hidden = tab !== target;
  }
  document.querySelector("#n").disabled = target.dataset.mode === "chat"; // a conversation has one answer
  code.paint();
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    const target = { Home: tabs[0], End: tabs.at(-1) }[key] ?? (step && tabs.at((index + step) % tabs.length));
    if (!target) return;
    select(target);
    target.focus();
  });
}
