import { button, element, labelled } from "../dom.js";
import { display } from "../text/display.js";
import { tokenView } from "../text/token_view.js";
import { formatRate } from "../words.js";

export function newColumn([ownK, ownTemperature = "", ownOff = ""], onRemove) {
  const options = Array.from({ length: display.numExperts }, (_, i) => element("option", { value: i + 1 }, `${i + 1}`));
  const k = element("select", options);
  k.value = ownK;
  const temperature = element("input", { type: "number", min: 0, max: 2, step: 0.05, placeholder: "same", value: ownTemperature });
  const off = element("input", { type: "text", placeholder: "none", pattern: "[0-9]{1,3}( *, *[0-9]{1,3})*", title: "Numbers of experts, such as 2, 5", value: ownOff });
  const remove = button("×", () => onRemove(column), { className: "quiet remove", name: "Remove this column" });
  const text = element("div.column-text");
  const figures = element("p.figures");
  let sum = 0; // of log probabilities
  let count = 0;

  function showFigures({ numTokens, tokensPerSecond }) {
    const rate = tokensPerSecond === null ? [] : [`${formatRate(tokensPerSecond)} tokens/s`];
    const mean = sum / count;
    const quality = count ? [`mean logprob ${mean.toFixed(2)}`, `perplexity ${Math.exp(-mean).toFixed(2)}`] : [];
    figures.replaceChildren(...[`${k.value} expert${k.value === "1" ? "" : "s"}`, `${numTokens} tokens`, ...rate, ...quality].map((words) => element("span", words)));
  }

  /** [layers][experts], false for the experts that are off in all layers. */
  function mask() {
    const numbers = off.value.split(",").map(Number);
    const layer = Array.from({ length: display.numExperts }, (_, expert) => !numbers.includes(expert));
    return Array(display.numLayers).fill(layer);
  }

  const column = {
    view: null,
    element: element("section.column",
      element("div.column-head", labelled(k, "Experts"), labelled(temperature, "Temp."), labelled(off, "Off"), remove), text, figures),

    get settings() {
      return [k, temperature, off].map(({ value }) => value);
    },

    get fields() {
      for (const input of [temperature, off]) if (!input.reportValidity()) return null;
      const fields = { experts_per_token: Number(k.value) };
      if (temperature.value) fields.temperature = temperature.valueAsNumber;
      if (off.value) fields.expert_mask = mask();
      return fields;
    },

    begin() {
      column.view?.close();
      column.view = tokenView();
      text.replaceChildren(column.view.element);
      figures.textContent = "waiting";
      sum = count = 0;
    },

    add(tokens, routing, meter) {
      column.view.add(tokens, routing, meter);
      const known = tokens.filter(({ logprob }) => logprob !== null);
      for (const { logprob } of known) sum += logprob;
      count += known.length;
      showFigures(meter);
    },
  };
  return column;
}
