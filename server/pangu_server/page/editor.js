// A text area with ghost text. While there is a ghost, a mirror below the transparent text area shows text and
// ghost together, so that the text after the caret makes room for it.

export class Editor {
  /** `middle`: the ghost stands at the caret; otherwise at the end of the text. */
  constructor(box, { middle }) {
    this.box = box;
    this.area = box.querySelector("textarea");
    [this.before, this.shown, this.after] = box.querySelectorAll(".mirror span");
    this.middle = middle;
    this.ghost = "";
    this.position = 0;
    this.area.addEventListener("input", () => this._paint());
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

  _paint() {
    const { value } = this.area;
    const position = this.ghost ? this.position : value.length;
    this.before.textContent = value.slice(0, position);
    this.shown.textContent = this.ghost;
    this.after.textContent = value.slice(position);
    this.box.classList.toggle("has-ghost", this.ghost !== "");
  }
}
