import { element } from "../dom.js";

/** Sliders by field. `rest` is the position of an untouched slider, which is shown but not sent. */
const SLIDERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, rest: 1 },
  { name: "top_p", label: "Top p", min: 0.05, max: 1, step: 0.05, rest: 1 },
  { name: "max_tokens", label: "Max tokens", min: 16, max: 1024, step: 16, rest: 256, isSent: true },
];
const MORE_SLIDERS = [
  { name: "top_k", label: "Top k", min: 0, max: 100, step: 1, rest: 0 },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, rest: 0 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.05, rest: 1 },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, rest: 0 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, rest: 0 },
];

/** The sampling controls. Untouched ones are not sent, so that the model's defaults apply. */
export class Sampling {
  #sliders = [];
  #seed = element("input", { type: "text", id: "seed", inputMode: "numeric", pattern: "-?[0-9]{1,19}", placeholder: "random" });
  #stop = element("textarea", { id: "stop-strings", rows: 1, placeholder: "one per line" });
  #details = element("input", { type: "checkbox", id: "details", checked: true });

  constructor(basic, more) {
    basic.append(...SLIDERS.map((spec) => this.#slider(spec)));
    more.append(
      ...MORE_SLIDERS.map((spec) => this.#slider(spec)),
      field(this.#seed, "Seed"),
      field(this.#stop, "Stop strings"),
    );
    basic.append(
      element("label", { className: "switch" }, this.#details, element("span", {}, "Token details"),
        element("small", {}, "probabilities and experts, on hover")),
    );
  }

  /** The fields to send, and `details`: whether to request the probabilities and experts of tokens. */
  get values() {
    const set = this.#sliders.filter((slider) => slider.isSent).map(({ name, input }) => [name, input.valueAsNumber]);
    const stop = this.#stop.value.split("\n").filter(Boolean);
    return {
      ...Object.fromEntries(set),
      ...(stop.length && { stop }),
      ...(this.#seed.value.trim() && { seed: BigInt(this.#seed.value.trim()).toString() }),
      details: this.#details.checked,
    };
  }

  set seed(text) {
    this.#seed.value = text;
    this.#seed.closest("details").open = true;
  }

  /** Returns false if a field is invalid; the browser then shows a message at the field. */
  check() {
    return this.#seed.reportValidity();
  }

  #slider({ name, label, min, max, step, rest, isSent = false }) {
    const input = element("input", { type: "range", id: name, min, max, step, value: rest });
    input.value = rest; // the attribute was set before the bounds
    const value = element("output", { htmlFor: name });
    const reset = element("button", { type: "button", className: "reset", title: "Reset to the default", ariaLabel: `Reset ${label}` }, "↺");
    const row = element("div", { className: "slider" },
      element("div", { className: "name" }, element("label", { htmlFor: name }, label), reset, value), input);
    const slider = { name, input, isSent };
    const draw = (isTouched) => {
      slider.isSent = isSent || isTouched;
      value.value = slider.isSent ? input.value : "model's";
      row.classList.toggle("changed", isTouched);
    };
    input.addEventListener("input", () => draw(true));
    reset.addEventListener("click", () => {
      input.value = rest;
      draw(false);
      input.focus();
    });
    draw(false);
    this.#sliders.push(slider);
    return row;
  }
}

const field = (input, label) => element("div", { className: "field" }, element("label", { htmlFor: input.id }, label), input);
