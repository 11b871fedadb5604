// A text area with ghost text, colours, and a mark at the gap. The text area is transparent over a mirror that shows
// text and ghost together, so that the text after the caret makes room for it. Colours are highlights: the browser
// paints ranges of the mirror, nothing is built for them.

import { KINDS, pieces } from "./syntax.js";

const COLOURS = typeof Highlight === "function" && CSS.highlights; // an older browser shows plain text
const SHORT = 4_000; // characters that are coloured with each key; more of them in a pause, so that typing stays quick
const PAUSE_MS = 200;

export class Editor {
  /** `middle`: the ghost stands at the caret; otherwise at the end of the text. */
  constructor(box, { middle }) {
    this.box = box;
    this.area = box.querySelector("textarea");
    [this.before, this.shown, this.after] = box.querySelectorAll(".mirror span");
    this.middle = middle;
    this.ghost = "";
    this.position = 0;
    this.ranges = []; // [kind, range], of this editor
    this.area.addEventListener("input", () => this._paint());
    if (middle) this.area.addEventListener("selectionchange", () => this._follow());
    box.classList.add("mirrored");
    box.classList.toggle("has-gap", middle);
    this._paint();
  }

  /** [text before the ghost's place, text after it]. */
  split() {
    const { value, selectionStart } = this.area;
    const position = this.middle ? selectionStart : value.length;
    return [value.slice(0, position), value.slice(position)];
  }

  /** Show `text` as ghost; it stays at the place where the first one appeared. */
  show(text) {
    if (!this.ghost) this.position = this.split()[0].length;
    const follow = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
    this.ghost = text;
    this._paint();
    if (follow && !this.after.textContent) this.box.scrollTop = this.box.scrollHeight;
  }

  clear() {
    this.show("");
  }

  /** The ghost becomes text. */
  accept() {
    const text = this.ghost;
    this.clear();
    this.area.focus();
    this.area.setSelectionRange(this.position, this.position);
    // Old, but the only way that keeps the browser's undo.
    const inserted = document.execCommand("insertText", false, text);
    if (!inserted) this.area.setRangeText(text, this.position, this.position, "end");
    this._paint();
  }

  /** The gap is where the caret is. */
  _follow() {
    if (!this.ghost && this.before.textContent.length !== this.area.selectionStart) this._paint();
  }

  _paint() {
    const { value } = this.area;
    const position = this.ghost ? this.position : this.split()[0].length;
    const parts = [value.slice(0, position), value.slice(position)];
    this.shown.textContent = this.ghost;
    this.box.classList.toggle("has-ghost", this.ghost !== "");
    // While a ghost is written, the text around it stays.
    if (this.before.textContent === parts[0] && this.after.textContent === parts[1]) return;
    [this.before.textContent, this.after.textContent] = parts;
    if (!COLOURS) return;
    clearTimeout(this.pause);
    for (const [kind, range] of this.ranges) CSS.highlights.get(kind).delete(range);
    this.ranges = [];
    if (value.length <= SHORT) this._colour();
    else this.pause = setTimeout(() => this._colour(), PAUSE_MS);
  }

  _colour() {
    const position = this.before.textContent.length;
    const text = this.before.textContent + this.after.textContent;
    const [before, after] = [this.before.firstChild, this.after.firstChild];
    const range = (node, from, to) =>
      new StaticRange({ startContainer: node, startOffset: from, endContainer: node, endOffset: to });
    this.ranges = pieces(text).flatMap(([kind, start, end]) => [
      ...(start < position ? [[kind, range(before, start, Math.min(end, position))]] : []),
      ...(end > position ? [[kind, range(after, Math.max(start, position) - position, end - position)]] : []),
    ]);
    for (const [kind, made] of this.ranges) CSS.highlights.get(kind).add(made);
  }
}

if (COLOURS) for (const kind of KINDS) CSS.highlights.set(kind, new Highlight());
