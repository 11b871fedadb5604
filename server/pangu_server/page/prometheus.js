// Prometheus' text format, and what can be read from two scrapes.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:\\.|[^"\\])*)"/g;

/** A scrape: sums over all labels, and buckets of histograms. */
export class Scrape {
  constructor(text) {
    this.values = new Map(); // name -> sum
    this.buckets = new Map(); // histogram -> Map of upper bound -> cumulative count
    for (const line of text.split("\n")) {
      const match = SAMPLE.exec(line);
      if (!match) continue; // a comment
      const [, name, labels, number] = match;
      const value = Number(number.replace("Inf", "Infinity"));
      this.values.set(name, (this.values.get(name) ?? 0) + value);
      if (name.endsWith("_bucket")) this._addBucket(name.slice(0, -"_bucket".length), labels, value);
    }
  }

  /** The sum of all samples of `name`, or null. */
  value(name) {
    return this.values.get(name) ?? null;
  }

  _addBucket(histogram, labels, count) {
    const bounds = this.buckets.get(histogram) ?? new Map();
    for (const [, label, text] of labels.matchAll(LABEL)) {
      if (label !== "le") continue;
      const bound = Number(text.replace("Inf", "Infinity"));
      bounds.set(bound, (bounds.get(bound) ?? 0) + count);
    }
    this.buckets.set(histogram, bounds);
  }
}

/** What `name` counted between two scrapes, per second. */
export function rate(name, earlier, later, seconds) {
  const [before, after] = [earlier.value(name), later.value(name)];
  return before === null || after === null || seconds <= 0 ? null : (after - before) / seconds;
}

/**
 * The `q` quantile of what a histogram observed between two scrapes, as Prometheus' histogram_quantile
 * estimates it: evenly spread within a bucket. Null when it observed nothing.
 */
export function quantile(q, histogram, earlier, later) {
  const before = earlier.buckets.get(histogram);
  const after = later.buckets.get(histogram);
  if (!before || !after) return null;
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.get(bound) - (before.get(bound) ?? 0));
  const rank = q * counts.at(-1);
  if (!(counts.at(-1) > 0)) return null;
  const index = counts.findIndex((count) => count >= rank);
  const lower = index > 0 ? bounds[index - 1] : 0;
  if (bounds[index] === Infinity) return lower;
  const below = index > 0 ? counts[index - 1] : 0;
  return lower + ((bounds[index] - lower) * (rank - below)) / (counts[index] - below);
}
