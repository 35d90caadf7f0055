import { button, byId, element, labelled, on } from "../dom.js";
import * as format from "./answer_format.js";

/** Sliders: the request's field, lowest, highest, step, position while untouched (shown, not sent). */
const SLIDERS = [
  ["temperature", 0, 2, 0.05, 1],
  ["top_p", 0.05, 1, 0.05, 1],
  ["max_tokens", 16, 1024, 16, 256],
];
const MORE_SLIDERS = [
  ["top_k", 0, 100, 1, 0],
  ["min_p", 0, 1, 0.01, 0],
  ["repetition_penalty", 0.5, 2, 0.05, 1],
  ["presence_penalty", -2, 2, 0.1, 0],
  ["frequency_penalty", -2, 2, 0.1, 0],
];
const LENGTH = "max_tokens"; // sent untouched too
const EXPERTS = "experts_per_token";
const PRESETS = { Default: {}, Greedy: { temperature: 0 }, Varied: { temperature: 1.2, top_p: 0.95 } };

// Controls that nobody has touched are not sent, so that the model's defaults apply.
const basic = byId("controls");
const sliders = [];
const seed = element("input", { type: "text", id: "seed", inputMode: "numeric", pattern: "-?[0-9]{1,19}", placeholder: "random" });
const stop = element("textarea", { id: "stop-strings", rows: 1, placeholder: "one per line" });
const details = element("input", { type: "checkbox", id: "details", checked: true });
const weights = element("input", { type: "checkbox", id: "weights" });
let linkedK;

/** Returns the fields to send, and `details`: whether to request those of tokens. */
export function values() {
  const set = sliders.filter((slider) => slider.isSent).map(({ name, number }) => ({ [name]: number.valueAsNumber }));
  const stops = stop.value.split("\n").filter(Boolean);
  const number = seed.value.trim();
  return Object.assign({ details: details.checked }, ...set, format.fields(),
    stops.length && { stop: stops }, number && { seed: BigInt(number).toString() });
}

export function setValues(fields) {
  setSliders(fields);
  linkedK = fields[EXPERTS];
  seed.value = fields.seed ?? "";
  stop.value = (fields.stop ?? []).join("\n");
  format.setFields(fields);
}

export function setSeed(text) {
  seed.value = text;
  reveal(seed);
}

function reveal(input) {
  input.closest("details")?.setAttribute("open", "");
  byId("map-size").ariaPressed = "false"; // a wide map hides it
}

/** Returns false if a field is invalid; it is then in view, with the browser's message. */
export function check() {
  const inputs = [seed, format.input, ...sliders.map(({ number }) => number)];
  const invalid = inputs.find((input) => !input.checkValidity());
  if (!invalid) return true;
  reveal(invalid);
  byId("view-sampling").control.checked = true; // on a phone
  return invalid.reportValidity();
}

export function limit({ max_model_len: maxLen, num_experts: numExperts, experts_per_token: own, generation_defaults: defaults }) {
  for (const { name, limit } of sliders) limit(name === LENGTH ? { max: maxLen } : { rest: defaults?.[name] });
  if (!numExperts) return;
  basic.prepend(addSlider(EXPERTS, 1, numExperts, 1, own));
  sliders.at(-1).set(linkedK);
}

function setSliders(fields, kept = []) {
  for (const { name, set } of sliders) if (!kept.includes(name)) set(fields[name]);
}

function addSlider(name, min, max, step, rest) {
  const label = `${name[0].toUpperCase()}${name.slice(1).replaceAll("_", " ")}`;
  const isAlwaysSent = name === LENGTH;
  const input = element("input", { type: "range", id: name, min, max, step });
  const number = element("input", { type: "number", min, max, step: Number.isInteger(step) ? 1 : "any", required: isAlwaysSent, ariaLabel: `${label}, as a number` });
  const reset = button("↺", () => {
    slider.set();
    input.focus();
  }, { className: "reset", name: `Reset ${label}` });
  const row = element("div.slider", element("div.name", element("label", { htmlFor: name }, label), reset, number), input);
  const slider = { name, number };
  const draw = (isTouched) => {
    slider.isSent = isAlwaysSent || isTouched;
    row.classList.toggle("changed", isTouched);
  };
  slider.set = (value) => {
    input.value = value ?? rest;
    number.value = value ?? (isAlwaysSent ? rest : "");
    number.placeholder = rest;
    draw(value !== undefined);
  };
  slider.limit = ({ max: highest = max, rest: own = rest }) => {
    input.max = number.max = highest;
    rest = Math.min(own, highest);
    if (row.classList.contains("changed")) input.value = number.value;
    else slider.set();
  };
  on(input, "input", () => slider.set(input.value));
  on(number, "input", () => {
    input.value = number.value || rest;
    draw(number.value !== "");
  });
  slider.set();
  sliders.push(slider);
  return row;
}

const presets = Object.entries(PRESETS).map(([name, fields]) => button(name, () => setSliders(fields, [LENGTH, EXPERTS])));
basic.append(
  element("div.presets", { role: "group", ariaLabel: "Presets" }, presets),
  ...SLIDERS.map((spec) => addSlider(...spec)),
  ...format.elements,
  element("label.switch", details, "Token details on hover"),
  element("label.switch", { id: "weights-switch", title: "The server computes the token under the pointer again." }, weights, "Gate weights on hover"),
);
byId("more-controls").append(...MORE_SLIDERS.map((spec) => addSlider(...spec)), labelled(seed, "Seed"), labelled(stop, "Stop strings"));
