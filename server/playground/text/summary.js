import { button, element, nodesOf } from "../dom.js";
import { milliseconds, formatRate, percent } from "../words.js";
import { display } from "./display.js";

const VALUE = /^(< )?[\d.,]+( m?s| %)?/g;

/** Returns what is kept with an answer: its figures as a line, and its seed. */
export function recordOf(meter, ending = endingOf(meter)) {
  const { firstTokenMs, tokensPerSecond: rate, numTokens, numPrompt, seed } = meter;
  const { maxLen } = display;
  const figures = [
    `${milliseconds(firstTokenMs)} first token`,
    rate !== null && `${formatRate(rate)} tokens/s`,
    `${numTokens.toLocaleString("en")} tokens`,
    numPrompt && maxLen && `${percent((numPrompt + numTokens) / maxLen)} of ${maxLen.toLocaleString("en")} context`,
    ending,
  ];
  return { note: figures.filter(Boolean).join(" · "), seed: seed ?? "" };
}

/** Returns a record as nodes; `onSeed` gets the seed. */
export function recordNodes({ note, seed }, onSeed) {
  const parts = note.split(" · ").map((part) => element("span", nodesOf(part, VALUE, ([value]) => element("b", value))));
  return seed ? [...parts, button(`seed ${seed}`, () => onSeed(seed), { className: "seed", title: `${seed}: use it again` })] : parts;
}

function endingOf({ finishReason, fields }) {
  if (finishReason === "length") return "length limit";
  if (!finishReason) return "stopped";
  return fields.response_format || fields.structured_outputs ? "complete, in the format" : "complete";
}
