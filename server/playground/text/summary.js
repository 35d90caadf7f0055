import { button, element } from "../dom.js";
import { milliseconds, formatRate, abbreviate, percent } from "../words.js";

/** Returns a generation's figures as nodes. `maxLen` is the model's context in tokens, or 0. `ending` is null while it runs. `onSeed` gets the seed to use it again. */
export function summaryNodes(meter, maxLen, ending, onSeed) {
  if (meter.firstTokenMs === null) return [ending ?? "waiting"];
  const rate = meter.tokensPerSecond;
  const figures = [
    figure(milliseconds(meter.firstTokenMs), "first token"),
    ...(rate === null ? [] : [figure(formatRate(rate), "tokens/s")]),
    figure(meter.numTokens.toLocaleString("en"), "tokens"),
    ...(meter.numPrompt && maxLen ? [figure(percent((meter.numPrompt + meter.numTokens) / maxLen), `of ${maxLen.toLocaleString("en")} context`)] : []),
  ];
  if (ending === null) return figures;
  const seed = button(`seed ${abbreviate(meter.seed)}`, () => onSeed(meter.seed), { className: "seed", title: `${meter.seed}: use it again` });
  return [...figures, element("span", {}, ending), seed];
}

const figure = (value, unit) => element("span", {}, element("b", {}, value), ` ${unit}`);
