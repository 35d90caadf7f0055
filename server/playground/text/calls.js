import { button, element, onEnter } from "../dom.js";
import { codeBox } from "./markdown.js";

/** Returns a card for each call of a tool, {name, arguments}: its arguments as they come. */
export const callCards = (calls) => calls.map(({ name, arguments: json }) => codeBox(name, indented(json)));

/** Returns a field for the result of each call, and a button that sends them all: `send` gets the texts. */
export function resultForm(calls, send) {
  const fields = calls.map(({ name }) => element("textarea.mono", { rows: 1, placeholder: "Result", ariaLabel: `Result of ${name}` }));
  const submit = () => send(fields.map(({ value }) => value));
  for (const field of fields) onEnter(field, submit, () => field.blur(), ({ ctrlKey, metaKey }) => ctrlKey || metaKey);
  return element("div.results", ...fields, button(calls.length > 1 ? "Send results" : "Send result", submit, { className: "" }));
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // incomplete
  }
}
