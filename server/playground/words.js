export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

export function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function formatRate(rate) {
  return rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}

export const sumOf = (numbers) => numbers.reduce((total, number) => total + number, 0);
export const hueOf = (expert, numExperts) => Math.round((360 * expert) / numExperts) + 30;

/** Makes a token's blanks visible: " was\n" is "␣was⏎". */
export function visible(token) {
  return token.replace(/^ | $/g, "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(empty)";
}
