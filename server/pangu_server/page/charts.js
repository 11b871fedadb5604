// A small line chart: SVG for the lines, a table for the values, which also is the chart's text alternative.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [300, 100]; // of the view box, which is stretched
const GAP_SECONDS = 8; // points further apart are not joined
const MIN_SECONDS = 60; // fewer are not stretched over the whole width

export class Chart {
  /**
   * `series`: names of the lines; one with "?" has a row only while it has values. `format`: a value as text.
   * `nothing`: what an empty chart says.
   */
  constructor(title, series, format, nothing) {
    this.title = title;
    this.nothing = nothing;
    this.names = series.map((name) => name.replace("?", ""));
    this.optional = series.flatMap((name, index) => (name.endsWith("?") ? [index] : []));
    this.format = format;
    this.points = []; // [seconds, values by series or null], oldest first
    this.element = element("figure", "chart");
    const caption = element("figcaption", "", title);
    this.when = element("span", "when");
    caption.append(this.when);
    const plot = element("div", "plot");
    this.top = element("span", "top");
    this.svg = svg("svg", { viewBox: `0 -2 ${WIDTH} ${HEIGHT + 4}`, preserveAspectRatio: "none", role: "img" });
    this.svg.setAttribute("aria-label", title);
    for (const y of [0, 0.5, 1]) {
      this.svg.append(svg("path", { d: `M0 ${y * HEIGHT}H${WIDTH}`, class: "grid" }));
    }
    this.cursor = svg("path", { class: "cursor" });
    this.lines = series.map((_, index) => svg("path", { class: `line series-${index}` }));
    this.svg.append(...this.lines, this.cursor);
    this.empty = element("span", "empty-note", "Waiting for the server…");
    plot.append(this.top, this.svg, this.empty);
    const table = element("table");
    this.rows = this.names.map((name, index) => {
      const row = table.insertRow();
      const head = element("th", "", name);
      head.scope = "row";
      head.prepend(element("i", `key series-${index}`));
      row.append(head, element("td", "", "–"));
      row.hidden = this.optional.includes(index);
      return row;
    });
    this.element.append(caption, plot, table);
    plot.addEventListener("pointermove", (event) => this._hover(event));
    plot.addEventListener("pointerleave", () => this._read(null));
  }

  /** Draw `points`, at least one; a null value, or a gap, interrupts a line. */
  draw(points, now) {
    this.points = points;
    this.now = now;
    this.span = Math.max(MIN_SECONDS, now - points[0][0]);
    const values = points.flatMap(([, row]) => row).filter((value) => value !== null);
    const top = ceiling(Math.max(0, ...values));
    this.top.textContent = values.length ? this.format(top) : "";
    this.empty.textContent = values.length ? "" : this.nothing;
    this.lines.forEach((line, index) => line.setAttribute("d", this._path(index, top)));
    for (const index of this.optional) this.rows[index].hidden = points.every(([, row]) => row[index] === null);
    if (!this.hovered) this._read(null);
  }

  _path(index, top) {
    let path = "";
    let last = null; // seconds of the point before, if the line goes on from it
    for (const [time, row] of this.points) {
      if (row[index] === null) {
        last = null;
        continue;
      }
      const y = HEIGHT - (row[index] / top) * HEIGHT;
      const command = last !== null && time - last < GAP_SECONDS ? "L" : "M";
      path += `${command}${this._x(time).toFixed(1)} ${y.toFixed(1)}`;
      if (command === "M") path += "h0.01"; // a point by itself shows, too
      last = time;
    }
    return path;
  }

  _x(time) {
    return WIDTH * (1 - (this.now - time) / this.span);
  }

  _hover(event) {
    if (!this.points.length) return;
    const { left, width } = this.svg.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * WIDTH;
    const distance = ([time]) => Math.abs(this._x(time) - x);
    this._read(this.points.reduce((best, point) => (distance(point) < distance(best) ? point : best)));
  }

  /** Show the values at `point`; at null those of now. */
  _read(point) {
    this.hovered = point !== null;
    const [time, row] = point ?? this.points.at(-1) ?? [0, []];
    this.cursor.setAttribute("d", point ? `M${this._x(time)} 0V${HEIGHT}` : "");
    this.when.textContent = point ? `${Math.round(this.now - time)} s ago` : `last ${Math.round(this.span)} s`;
    const texts = this.names.map((_, index) => (row[index] == null ? "–" : this.format(row[index])));
    this.rows.forEach((tableRow, index) => (tableRow.cells[1].textContent = texts[index]));
    if (point) return;
    const values = this.names.map((name, index) => `${name} ${texts[index]}`);
    const shown = values.filter((_, index) => !this.rows[index].hidden);
    this.svg.setAttribute("aria-label", `${this.title}: ${this.empty.textContent || shown.join(", ")}`);
  }
}

/** The next of 1, 2, 2.5, 5, 10, … at or above `value`. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.999);
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
