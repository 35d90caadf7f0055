import { element, labelled, on } from "../dom.js";

const SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}';

/** Formats: name, label and example of the text that describes the format, and the request's fields for such a text. */
const FORMATS = {
  text: ["Any text", "", "", () => ({})],
  json: ["JSON", "", "", () => ({ response_format: { type: "json_object" } })],
  schema: ["JSON with a schema", "JSON schema", SCHEMA,
    (text) => ({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } } })],
  regex: ["Regular expression", "Expression", "[0-9]{4}-[0-9]{2}-[0-9]{2}", (regex) => ({ structured_outputs: { regex } })],
  choice: ["One of several texts", "Texts, one per line", "yes\nno",
    (text) => ({ structured_outputs: { choice: text.split("\n").filter(Boolean) } })],
};

/** Controls of the answer's format: the server generates only what matches it. */
export class AnswerFormat {
  #kind = element("select", { id: "format" }, ...Object.entries(FORMATS).map(([value, [name]]) => element("option", { value }, name)));
  #text = element("textarea.mono", { id: "format-text", rows: 1, spellcheck: false });
  #box = labelled(this.#text, "");
  elements = [labelled(this.#kind, "Answer format"), this.#box];
  input = this.#text; // invalid if no format can be made of it

  constructor() {
    on(this.#kind, "change", () => this.#show());
    on(this.#text, "input", () => this.#check());
    this.#show();
  }

  /** The request's fields. Throws SyntaxError if the schema is not JSON. */
  get fields() {
    return FORMATS[this.#kind.value][3](this.#text.value);
  }

  set fields({ response_format: format, structured_outputs: { regex, choice } = {} }) {
    const schema = format?.json_schema?.schema;
    this.#kind.value = schema ? "schema" : format ? "json" : regex ? "regex" : choice ? "choice" : "text";
    this.#show(schema ? JSON.stringify(schema) : regex ?? choice?.join("\n"));
  }

  #show(text) {
    const [, label, example] = FORMATS[this.#kind.value];
    this.#box.hidden = !label;
    this.#box.firstChild.textContent = label;
    this.#text.value = text ?? example;
    this.#check();
  }

  #check() {
    let fault = this.#box.hidden || this.#text.value.trim() ? "" : "Describe the format.";
    try {
      JSON.stringify(this.fields);
    } catch (error) {
      fault ||= error.message;
    }
    this.#text.setCustomValidity(fault);
  }
}
