import { button, element, labelled } from "../dom.js";
import { display } from "../text/display.js";
import { TokenView } from "../text/token_view.js";
import { formatRate } from "../words.js";

/** One column of a comparison: its settings, text and figures. */
export class Column {
  view = null;
  #k;
  #temperature;
  #off;
  #text = element("div.column-text");
  #figures = element("p.figures");
  #sum = 0; // of log probabilities
  #count = 0;
  element;

  /** The list has the values of the inputs. */
  constructor([k, temperature = "", off = ""], onRemove) {
    const options = Array.from({ length: display.numExperts }, (_, i) => element("option", { value: i + 1 }, `${i + 1}`));
    this.#k = element("select", ...options);
    this.#k.value = k;
    this.#temperature = element("input", { type: "number", min: 0, max: 2, step: 0.05, placeholder: "same" });
    this.#off = element("input", { type: "text", placeholder: "none", pattern: "[0-9]{1,3}( *, *[0-9]{1,3})*", title: "Numbers of experts, such as 2, 5" });
    this.#temperature.value = temperature;
    this.#off.value = off;
    const remove = button("×", () => onRemove(this), { className: "quiet remove", name: "Remove this column" });
    this.element = element("section.column",
      element("div.column-head",
        labelled(this.#k, "Experts"), labelled(this.#temperature, "Temp."), labelled(this.#off, "Off"), remove),
      this.#text, this.#figures);
  }

  get settings() {
    return [this.#k, this.#temperature, this.#off].map(({ value }) => value);
  }

  /** The fields of the request that this column sets, or null if an input is invalid; the browser then says so. */
  get fields() {
    for (const input of [this.#temperature, this.#off]) if (!input.reportValidity()) return null;
    const fields = { experts_per_token: Number(this.#k.value) };
    if (this.#temperature.value) fields.temperature = this.#temperature.valueAsNumber;
    if (this.#off.value) fields.expert_mask = this.#mask;
    return fields;
  }

  begin() {
    this.view = new TokenView(display);
    this.#text.replaceChildren(this.view.element);
    this.#figures.textContent = "waiting";
    this.#sum = this.#count = 0;
  }

  add(tokens, routing, meter) {
    this.view.add(tokens, routing, meter);
    for (const { logprob } of tokens) {
      if (logprob === null) continue;
      this.#sum += logprob;
      this.#count += 1;
    }
    this.#showFigures(meter);
  }

  #showFigures({ numTokens, tokensPerSecond }) {
    const rate = tokensPerSecond === null ? [] : [`${formatRate(tokensPerSecond)} tokens/s`];
    const mean = this.#count ? this.#sum / this.#count : null;
    const quality = mean === null ? [] : [`mean logprob ${mean.toFixed(2)}`, `perplexity ${Math.exp(-mean).toFixed(2)}`];
    const k = this.#k.value;
    this.#figures.replaceChildren(...[`${k} expert${k === "1" ? "" : "s"}`, `${numTokens} tokens`, ...rate, ...quality].map((text) => element("span", text)));
  }

  /** [layers][experts], false for the experts that are off in all layers. */
  get #mask() {
    const off = new Set(this.#off.value.split(",").map(Number));
    const layer = Array.from({ length: display.numExperts }, (_, expert) => !off.has(expert));
    return Array.from({ length: display.numLayers }, () => layer);
  }
}
