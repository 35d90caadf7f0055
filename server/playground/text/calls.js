import { button, element, onEnter } from "../dom.js";
import { codeBox } from "./markdown.js";

/** Returns a card for each call; without a language its text has no colours. */
export const callCards = (calls, language) => calls.map(({ name, arguments: json }) => codeBox(name, JSON.stringify(parsed(json), null, 2) ?? json, language));

/** Returns whether all arguments are JSON: those of an answer that was cut may end anywhere. */
export const areComplete = (calls) => calls.every(({ arguments: json }) => parsed(json) !== undefined);

/** Returns a field for the result of each call; `send` gets their texts, Escape calls `leave`. */
export function resultForm(calls, send, leave) {
  const fields = calls.map(({ name }) => element("textarea.mono", { rows: 1, placeholder: "Result", ariaLabel: `Result of ${name}` }));
  const submit = () => send(fields.map(({ value }) => value));
  for (const field of fields) onEnter(field, submit, leave, ({ ctrlKey, metaKey }) => ctrlKey || metaKey);
  return element("div.results", fields, button(calls.length > 1 ? "Send results" : "Send result", submit, { className: "" }));
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return undefined; // incomplete
  }
}
