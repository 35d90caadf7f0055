import { button, element } from "../dom.js";

/** Sliders by field, each with a number field. `rest` is the position of an untouched one, which is shown but not sent. */
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
    const set = this.#sliders.filter((slider) => slider.isSent).map(({ name, number }) => [name, number.valueAsNumber]);
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
    return [this.#seed, ...this.#sliders.map(({ number }) => number)].every((input) => input.reportValidity());
  }

  /** Shows the defaults and limits of a model, an entry of GET /v1/models. */
  limit({ max_model_len: maxLen, num_experts: numExperts, generation_defaults: defaults }) {
    for (const { name, limit } of this.#sliders) limit(name === "max_tokens" ? { max: maxLen } : { rest: defaults?.[name] });
    this.#details.parentElement.querySelector("small").textContent = `probabilities${numExperts ? " and experts" : ""}, on hover`;
  }

  #slider({ name, label, min, max, step, rest, isSent = false }) {
    const input = element("input", { type: "range", id: name, min, max, step, value: rest });
    input.value = rest; // the attribute was set before the bounds
    const number = element("input", { type: "number", min, max, step: Number.isInteger(step) ? 1 : "any", required: isSent, ariaLabel: `${label}, as a number` });
    const reset = button("↺", () => {
      restore();
      input.focus();
    }, { className: "reset", name: `Reset ${label}` });
    const row = element("div", { className: "slider" },
      element("div", { className: "name" }, element("label", { htmlFor: name }, label), reset, number), input);
    const slider = { name, number, isSent };
    const draw = (isTouched) => {
      slider.isSent = isSent || isTouched;
      row.classList.toggle("changed", isTouched);
    };
    const restore = () => {
      input.value = rest;
      number.value = isSent ? rest : "";
      number.placeholder = rest;
      draw(false);
    };
    slider.limit = ({ max: highest = max, rest: own = rest }) => {
      input.max = number.max = highest;
      rest = Math.min(own, highest);
      if (!row.classList.contains("changed")) restore();
    };
    input.addEventListener("input", () => {
      number.value = input.value;
      draw(true);
    });
    number.addEventListener("input", () => {
      input.value = number.value || rest;
      draw(number.value !== "");
    });
    restore();
    this.#sliders.push(slider);
    return row;
  }
}

const field = (input, label) => element("div", { className: "field" }, element("label", { htmlFor: input.id }, label), input);
