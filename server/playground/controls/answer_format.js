import { element, labelled, on } from "../dom.js";

const SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}';
const TOOLS = "Tools of chats, a JSON list";
const TOOL = '[{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]';

/** Formats: name, label and example of their text, and the request's fields for a text. */
const FORMATS = {
  text: ["Any text", "", "", () => ({})],
  json: ["JSON", "", "", () => ({ response_format: { type: "json_object" } })],
  schema: ["JSON with a schema", "JSON schema", SCHEMA,
    (text) => ({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } } })],
  regex: ["Regular expression", "Expression", "[0-9]{4}-[0-9]{2}-[0-9]{2}", (regex) => ({ structured_outputs: { regex } })],
  choice: ["One of several texts", "Texts, one per line", "yes\nno",
    (text) => ({ structured_outputs: { choice: text.split("\n").filter(Boolean) } })],
  tools: ["Text or calls of tools", TOOLS, TOOL, (text) => ({ tools: toolsOf(text) })],
  call: ["Calls of tools", TOOLS, TOOL, (text) => ({ tools: toolsOf(text), tool_choice: "required" })],
};

const kind = element("select", { id: "format" }, Object.entries(FORMATS).map(([value, [name]]) => element("option", { value }, name)));
export const input = element("textarea.mono", { id: "format-text", rows: 1, spellcheck: false });
const box = labelled(input, "");
const file = element("input", { id: "format-file", type: "file", ariaLabel: "File with the format" });
export const elements = [labelled(kind, "Answer format"), box, file];

/** Returns the request's fields. Throws SyntaxError or TypeError if the text is wrong. */
export const fields = () => FORMATS[kind.value][3](input.value);

export function setFields({ response_format: format, structured_outputs: { regex, choice } = {}, tools, tool_choice: call }) {
  const schema = tools ?? format?.json_schema?.schema;
  kind.value = tools ? (call ? "call" : "tools") : schema ? "schema" : format ? "json" : regex ? "regex" : choice ? "choice" : "text";
  show(schema ? JSON.stringify(schema, null, 1) : regex ?? choice?.join("\n") ?? "");
}

/** Shows a text; without one the example, in place of what describes something else. */
function show(text) {
  const [, label, example] = FORMATS[kind.value];
  const caption = box.firstChild;
  box.hidden = file.hidden = !label;
  if (text ?? label !== caption.textContent) input.value = text || example;
  caption.textContent = label;
  check();
}

function check() {
  let fault = box.hidden || input.value.trim() ? "" : "Describe the format.";
  try {
    JSON.stringify(fields());
  } catch (error) {
    fault ||= error.message;
  }
  input.setCustomValidity(fault);
}

function toolsOf(text) {
  const tools = [JSON.parse(text)].flat().map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
  const nameless = tools.findIndex((tool) => typeof tool.function?.name !== "string");
  if (nameless >= 0) throw new TypeError(`Tool ${nameless + 1} has no name.`);
  return tools;
}

on(kind, "change", () => show());
on(input, "input", check);
on(file, "change", async () => show(await file.files[0].text()));
show();
