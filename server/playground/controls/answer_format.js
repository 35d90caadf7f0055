import { TextChoice } from "./text_choice.js";

const SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}';

const FORMATS = {
  text: ["Any text", "", "", () => ({})],
  json: ["JSON", "", "", () => ({ response_format: { type: "json_object" } })],
  schema: ["JSON with a schema", "JSON schema", SCHEMA,
    (text) => ({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } } })],
  regex: ["Regular expression", "Expression", "[0-9]{4}-[0-9]{2}-[0-9]{2}", (regex) => ({ structured_outputs: { regex } })],
  choice: ["One of several texts", "Texts, one per line", "yes\nno",
    (text) => ({ structured_outputs: { choice: text.split("\n").filter(Boolean) } })],
};

/** Makes the control of the answer's format: the server generates only what matches it. */
export const answerFormat = () => new TextChoice("format", "Answer format", FORMATS, read);

function read({ response_format: format, structured_outputs: { regex, choice } = {} }) {
  const schema = format?.json_schema?.schema;
  const kind = schema ? "schema" : format ? "json" : regex ? "regex" : choice ? "choice" : "text";
  return [kind, schema ? JSON.stringify(schema) : regex ?? choice?.join("\n")];
}
