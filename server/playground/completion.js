import { byId, element } from "./dom.js";
import { completionRequest } from "./request.js";
import { TokenView } from "./token_view.js";

const TRIES = [
  ["Austen", "It was not in her power to"],
  ["Scripture", "And it came to pass in those days, that"],
  ["Python", "def read_lines(path):\n    "],
];

/** A text to go on with: the prompt and, right behind it, what the model wrote. */
export class CompletionDesk {
  name = "Complete";
  againName = "Go on";
  #look;
  #prompt = byId("prompt");
  #copy = byId("prompt-copy"); // as invisible text, so that the continuation starts where the prompt ends
  #output = byId("continuation");
  #tries = byId("completion-tries");
  #view = null;

  /** `run` starts a request. */
  constructor(look, run) {
    this.#look = look;
    for (const [name, prompt] of TRIES) {
      const button = element("button", { type: "button", className: "try" }, name);
      button.addEventListener("click", () => {
        this.#write(prompt);
        run();
      });
      this.#tries.append(button);
    }
    this.#prompt.addEventListener("input", () => this.#write(this.#prompt.value));
  }

  get views() {
    return this.#view ? [this.#view] : [];
  }

  get canGoOn() {
    return Boolean(this.#view?.hasTokens);
  }

  /** The request as it would be sent now; null where there is nothing to send. */
  request(model, sampling) {
    return this.#prompt.value ? completionRequest(model, this.#prompt.value, sampling) : null;
  }

  /** Room for a new text; gives the view that shows it. */
  begin() {
    this.#tries.hidden = true;
    this.#view = new TokenView(this.#look);
    this.#output.replaceChildren(this.#view.element);
    return this.#view;
  }

  end() {
    if (this.#view && !this.#view.hasTokens) this.#clear();
  }

  /** What was written becomes part of the prompt. */
  prepareAgain() {
    this.#write(this.#prompt.value + this.#view.text);
  }

  focus() {
    this.#prompt.focus();
  }

  #write(prompt) {
    this.#prompt.value = this.#copy.textContent = prompt;
    this.#clear();
  }

  #clear() {
    this.#view = null;
    this.#output.replaceChildren();
  }
}
