import { button, element } from "../dom.js";
import { milliseconds, formatRate, percent } from "../words.js";

function figures({ firstTokenMs, tokensPerSecond: rate, numTokens }) {
  return [
    [milliseconds(firstTokenMs), "first token"],
    ...(rate === null ? [] : [[formatRate(rate), "tokens/s"]]),
    [numTokens.toLocaleString("en"), "tokens"],
  ];
}

export const noteOf = (meter) => [...figures(meter).map((figure) => figure.join(" ")), endingOf(meter)].join(" · ");

/** Returns the figures as nodes. `ending` is null while it runs; `onSeed` gets the seed. */
export function summaryNodes(meter, maxLen, ending, onSeed) {
  if (meter.firstTokenMs === null) return [ending ?? "waiting"];
  const context = meter.numPrompt && maxLen ? [[percent((meter.numPrompt + meter.numTokens) / maxLen), `of ${maxLen.toLocaleString("en")} context`]] : [];
  const nodes = [...figures(meter), ...context].map(([value, unit]) => element("span", element("b", value), ` ${unit}`));
  if (ending === null) return nodes;
  const seed = button(`seed ${meter.seed}`, () => onSeed(meter.seed), { className: "seed", value: meter.seed ?? "", title: `${meter.seed}: use it again` });
  return [...nodes, element("span", ending), seed];
}

export function endingOf({ finishReason, fields }) {
  if (finishReason === "length") return "length limit";
  if (!finishReason) return "stopped";
  return fields.response_format || fields.structured_outputs ? "complete, in the format" : "complete";
}
