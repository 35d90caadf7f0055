import { element, labelled, on } from "../dom.js";

/**
 * A choice whose options are described by a text, typed or from a file. `options` are {value: [name, label of the text, example,
 * make]}: `make` returns the request's fields for a text. `read` returns value and text of such fields.
 */
export class TextChoice {
  #options;
  #read;
  #kind;
  #text;
  #box;
  #file = element("input", { type: "file", ariaLabel: "File with this text" });
  elements;
  input; // invalid if no fields can be made of it

  constructor(id, name, options, read) {
    this.#options = options;
    this.#read = read;
    this.#kind = element("select", { id }, ...Object.entries(options).map(([value, [text]]) => element("option", { value }, text)));
    this.input = this.#text = element("textarea.mono", { id: `${id}-text`, rows: 1, spellcheck: false });
    this.#box = labelled(this.#text, "");
    this.elements = [labelled(this.#kind, name), this.#box, this.#file];
    on(this.#kind, "change", () => this.#show());
    on(this.#text, "input", () => this.#check());
    on(this.#file, "change", async () => this.#show(await this.#file.files[0].text()));
    this.#show();
  }

  /** The request's fields. Throws SyntaxError or TypeError if the text is wrong. */
  get fields() {
    return this.#options[this.#kind.value][3](this.#text.value);
  }

  set fields(fields) {
    const [kind, text] = this.#read(fields);
    this.#kind.value = kind;
    this.#show(text);
  }

  /** Shows a text, or the example if the one that is shown describes something else. */
  #show(text) {
    const [, label, example] = this.#options[this.#kind.value];
    const caption = this.#box.firstChild;
    this.#box.hidden = this.#file.hidden = !label;
    this.#text.value = text ?? (label === caption.textContent ? this.#text.value : example);
    caption.textContent = label;
    this.#check();
  }

  #check() {
    let fault = this.#box.hidden || this.#text.value.trim() ? "" : "This needs a text.";
    try {
      JSON.stringify(this.fields);
    } catch (error) {
      fault ||= error.message;
    }
    this.#text.setCustomValidity(fault);
  }
}
