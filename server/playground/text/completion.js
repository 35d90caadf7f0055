import { byId, element } from "../dom.js";
import { completionRequest } from "./request.js";
import { TokenView } from "./token_view.js";

const EXAMPLES = [
  ["Austen", "It was not in her power to"],
  ["Scripture", "And it came to pass in those days, that"],
  ["Python", "def read_lines(path):\n    "],
];

/** Panel of a completion: the prompt, directly followed by the generated text. */
export class CompletionPanel {
  name = "Complete";
  repeatLabel = "Continue";
  #display;
  #prompt = byId("prompt");
  #copy = byId("prompt-copy"); // invisible, so that the generated text starts where the prompt ends
  #output = byId("continuation");
  #examples = byId("completion-examples");
  #view = null;
  #previous = null; // the view that the running request replaces

  /** `run` sends the request. */
  constructor(display, run) {
    this.#display = display;
    for (const [name, prompt] of EXAMPLES) {
      const button = element("button", { type: "button", className: "example" }, name);
      button.addEventListener("click", () => {
        this.#write(prompt);
        run();
      });
      this.#examples.append(button);
    }
    this.#prompt.addEventListener("input", () => this.#edited());
  }

  get views() {
    return this.#view ? [this.#view] : [];
  }

  get canRepeat() {
    return Boolean(this.#view?.hasTokens);
  }

  /** Returns the request for the current prompt, or null without one. */
  request(model, sampling) {
    return this.#prompt.value ? completionRequest(model, this.#prompt.value, sampling) : null;
  }

  /** Replaces the generated text by an empty view and returns it. */
  begin() {
    this.#examples.hidden = true;
    this.#previous = this.#view;
    this.#show(new TokenView(this.#display));
    return this.#view;
  }

  /** Shows the previous text again if the request gave none. */
  end() {
    if (this.#view && !this.#view.hasTokens) this.#show(this.#previous);
    this.#previous = null;
  }

  /** Appends the generated text to the prompt. */
  prepareRepeat() {
    this.#write(this.#prompt.value + this.#view.text);
  }

  focus() {
    this.#prompt.focus();
  }

  /** Keeps the text, dimmed: it follows another prompt than the one that is written now. */
  #edited() {
    this.#copy.textContent = this.#prompt.value;
    this.#output.classList.toggle("stale", this.#view !== null);
  }

  #write(prompt) {
    this.#prompt.value = this.#copy.textContent = prompt;
    this.#show(null);
  }

  #show(view) {
    this.#view = view;
    this.#output.classList.remove("stale");
    this.#output.replaceChildren(...(view ? [view.element] : []));
  }
}
