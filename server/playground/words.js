/** Formats numbers and tokens for people. */

export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

export function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Shortens long numbers: "1234567890123" is "1234…0123". */
export function abbreviate(digits) {
  return digits.length > 10 ? `${digits.slice(0, 4)}…${digits.slice(-4)}` : digits;
}

export function formatRate(rate) {
  return rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}

/** Makes a token's blanks visible: " was\n" is "␣was⏎". */
export function visible(token) {
  return token.replace(/^ | $/g, "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(empty)";
}
