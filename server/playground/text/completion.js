import { button, byId, element, on } from "../dom.js";
import { branchArrows } from "./branches.js";
import { completionRequest } from "./request.js";
import { noteOf } from "./summary.js";
import { TokenView } from "./token_view.js";

const EXAMPLES = [
  ["Austen", "It was not in her power to"],
  ["Scripture", "And it came to pass in those days, that"],
  ["Python", "def read_lines(path):\n    "],
];

/** Panel of a completion: the prompt, directly followed by the generated text. Earlier texts can be opened again. */
export class CompletionPanel {
  name = "Complete";
  repeatLabel = "Continue";
  onChange = () => {}; // called when there is something to store
  #display;
  #prompt = byId("prompt");
  #copy = byId("prompt-copy"); // invisible, so that the generated text starts where the prompt ends
  #output = byId("continuation");
  #examples = byId("completion-examples");
  #versions = []; // {prompt, text, note} or {prompt, view}
  #shown = null; // one of them
  #previous = null; // the one that the running request replaces

  constructor(display, run) {
    this.#display = display;
    for (const [name, prompt] of EXAMPLES) {
      this.#examples.append(button(name, () => run({ prompt }), { className: "example" }));
    }
    on(this.#prompt, "input", () => this.#edited());
  }

  get views() {
    return this.#shown?.view ? [this.#shown.view] : [];
  }

  get canRepeat() {
    return Boolean(this.#shown && textOf(this.#shown));
  }

  repeatJob() {
    return { prompt: this.#prompt.value + textOf(this.#shown) };
  }

  branchJob(view, text) {
    return { prompt: this.#versions.find((version) => version.view === view).prompt + text };
  }

  /** Returns the request for the prompt of the job or else of the field; null without one. */
  request(model, sampling, { prompt = this.#prompt.value } = {}) {
    return prompt ? completionRequest(model, prompt, sampling) : null;
  }

  begin({ prompt } = {}) {
    this.#examples.hidden = true;
    if (prompt !== undefined && prompt !== this.#prompt.value) this.#write(prompt);
    this.#previous = this.#shown;
    this.#versions.push({ prompt: this.#prompt.value, view: new TokenView(this.#display) });
    this.#show(this.#versions.at(-1));
    this.onChange();
    return this.#shown.view;
  }

  /** Shows the previous text again if the request gave none. */
  end() {
    if (this.#shown && !textOf(this.#shown)) {
      this.#versions.splice(this.#versions.indexOf(this.#shown), 1);
      this.#show(this.#previous);
    }
    this.#previous = null;
    this.onChange();
  }

  focus() {
    this.#prompt.focus();
  }

  get entry() {
    if (!this.#versions.length) return null;
    const versions = this.#versions.map((version) => ({ prompt: version.prompt, text: textOf(version), note: lineOf(version) }));
    return { name: versions.at(-1).prompt, versions, at: this.#versions.indexOf(this.#shown) };
  }

  open(entry) {
    this.#versions = (entry?.versions ?? []).filter(({ text }) => text);
    this.#examples.hidden = entry !== null;
    this.#write(entry?.versions[entry.at]?.prompt ?? "");
    if (this.#versions.length) this.#openVersion(entry.at);
  }

  get link() {
    const prompt = this.#prompt.value;
    const text = this.#shown?.prompt === prompt ? textOf(this.#shown) : "";
    return prompt ? { versions: [{ prompt, text }], at: 0 } : null;
  }

  #openVersion(place) {
    const version = this.#versions[place] ?? this.#versions.at(-1);
    this.#write(version.prompt);
    this.#show(version);
  }

  /** Keeps the text, dimmed: it follows another prompt than the one that is written now. */
  #edited() {
    this.#copy.textContent = this.#prompt.value;
    this.#output.classList.toggle("stale", this.#shown !== null && this.#shown.prompt !== this.#prompt.value);
  }

  #write(prompt) {
    this.#prompt.value = this.#copy.textContent = prompt;
    this.#show(null);
  }

  #show(version) {
    this.#shown = version;
    this.#output.replaceChildren(...(version ? [version.view?.element ?? element("span.tokens", version.text)] : []));
    byId("summary").textContent = version ? lineOf(version) : "";
    this.#edited();
    const place = version ? this.#versions.indexOf(version) : this.#versions.length;
    branchArrows(byId("versions"), place, this.#versions.length, "text", (by) => {
      this.#openVersion(place + by);
      this.onChange();
    });
  }
}

const textOf = ({ view, text }) => (view ? view.text : text);
const lineOf = ({ view, note = "" }) => (view?.hasTokens ? noteOf(view.meter) : note);
