// Numbers as people read them. Decimal units: 1 MB is 10⁶ bytes, as on a model's card.

/** 134515008 -> "135 MB". */
export function bytes(value) {
  return scaled(value, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]], "B");
}

/** 0.0123 -> "12.3 ms". */
export function seconds(value) {
  return value >= 1 ? `${significant(value)} s` : `${significant(value * 1e3)} ms`;
}

/** 12345.6 -> "12,346"; small ones keep three digits. */
export function number(value) {
  return significant(value);
}

function scaled(value, units, unit) {
  const [factor, name] = units.find(([factor]) => value >= factor) ?? [1, unit];
  return `${significant(value / factor)} ${name}`;
}

function significant(value) {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}
