import { button, element } from "../dom.js";
import { milliseconds, formatRate, percent } from "../words.js";

/** Returns a generation's figures as nodes. `maxLen`: the model's context, or 0; `ending`: null while it runs; `onSeed` gets the seed. */
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
  const seed = button(`seed ${meter.seed}`, () => onSeed(meter.seed), { className: "seed", value: meter.seed ?? "", title: `${meter.seed}: use it again` });
  return [...figures, element("span", ending), seed];
}

const figure = (value, unit) => element("span", element("b", value), ` ${unit}`);
