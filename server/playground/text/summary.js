import { element } from "../dom.js";
import { milliseconds, formatRate, abbreviate } from "../words.js";

/** Returns a generation's figures as nodes. `ending` is null while it runs. `onSeed` gets the seed to use it again. */
export function summaryNodes(meter, ending, onSeed) {
  if (meter.firstTokenMs === null) return [ending ?? "waiting"];
  const rate = meter.tokensPerSecond;
  const figures = [
    figure(milliseconds(meter.firstTokenMs), "first token"),
    ...(rate === null ? [] : [figure(formatRate(rate), "tokens/s")]),
    figure(meter.numTokens.toLocaleString("en"), "tokens"),
  ];
  if (ending === null) return figures;
  const seed = element("button", { type: "button", className: "seed", title: `${meter.seed}: use it again` }, `seed ${abbreviate(meter.seed)}`);
  seed.addEventListener("click", () => onSeed(meter.seed));
  return [...figures, element("span", {}, ending), seed];
}

const figure = (value, unit) => element("span", {}, element("b", {}, value), ` ${unit}`);
