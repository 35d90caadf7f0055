import { byId, element } from "./dom.js";
import { chatRequest } from "./request.js";
import { TokenView } from "./token_view.js";

const TRIES = ["Count from 3 to 7.", "What is 3 + 4?", "Write a sentence about a house."];

/** A conversation. Its last question can be asked again. */
export class ChatDesk {
  name = "Send";
  againName = "Answer again";
  #look;
  #turns = []; // {role, element, text or view}
  #list = byId("turns");
  #message = byId("message");
  #system = byId("system");
  #tries = byId("chat-tries");
  #sent = ""; // the message that is being answered

  constructor(look, run) {
    this.#look = look;
    for (const message of TRIES) {
      const button = element("button", { type: "button", className: "try" }, message);
      button.addEventListener("click", () => {
        this.#message.value = message;
        run();
      });
      this.#tries.append(button);
    }
  }

  get views() {
    return this.#turns.filter((turn) => turn.view).map((turn) => turn.view);
  }

  get canGoOn() {
    return this.#turns.at(-1)?.role === "assistant";
  }

  request(model, sampling) {
    const message = this.#message.value.trim();
    const last = message ? [{ role: "user", content: message }] : [];
    const messages = [...this.#systemMessage, ...this.#said, ...last];
    return messages.at(-1)?.role === "user" ? chatRequest(model, messages, sampling) : null;
  }

  begin() {
    this.#tries.hidden = true;
    this.#sent = this.#message.value.trim();
    if (this.#sent) this.#add({ role: "user", text: this.#sent }, element("p", {}, this.#sent));
    this.#message.value = "";
    const view = new TokenView(this.#look);
    this.#add({ role: "assistant", view }, view.element);
    return view;
  }

  /** An answer of which nothing came is taken back, and its question goes back to where it was written. */
  end() {
    const last = this.#turns.at(-1);
    if (!last?.view || last.view.hasTokens) return;
    this.#takeBack();
    this.#message.value ||= this.#takeBack().text;
  }

  /** The last answer makes room for another. */
  prepareAgain() {
    this.#takeBack();
    this.#message.value = this.#takeBack().text;
  }

  focus() {
    this.#message.focus();
  }

  get #systemMessage() {
    const content = this.#system.value.trim();
    return content ? [{ role: "system", content }] : [];
  }

  get #said() {
    return this.#turns.map(({ role, text, view }) => ({ role, content: view ? view.text : text }));
  }

  #add(turn, content) {
    const who = turn.role === "user" ? "You" : "Model";
    const box = element("article", { className: `turn ${turn.role}`, ariaLabel: who }, element("h2", {}, who), content);
    this.#list.append(box);
    this.#turns.push({ ...turn, element: box });
  }

  #takeBack() {
    const turn = this.#turns.pop();
    turn.element.remove();
    return turn;
  }
}
