import { byId, element } from "../dom.js";
import { chatRequest } from "./request.js";
import { TokenView } from "./token_view.js";

const EXAMPLES = ["Count from 3 to 7.", "What is 3 + 4?", "Write a sentence about a house."];

/** Panel of a conversation. The last message can be answered again. */
export class ChatPanel {
  name = "Send";
  repeatLabel = "Answer again";
  #display;
  #turns = []; // {role, element, text or view}
  #list = byId("turns");
  #message = byId("message");
  #system = byId("system");
  #examples = byId("chat-examples");
  #sent = ""; // the message that the running request answers
  #replaced = null; // {question, answer} that it answers again, and the draft that stood in the input field

  constructor(display, run) {
    this.#display = display;
    for (const message of EXAMPLES) {
      const button = element("button", { type: "button", className: "example" }, message);
      button.addEventListener("click", () => {
        this.#message.value = message;
        run();
      });
      this.#examples.append(button);
    }
  }

  get views() {
    return this.#turns.filter((turn) => turn.view).map((turn) => turn.view);
  }

  get canRepeat() {
    return this.#turns.at(-1)?.role === "assistant";
  }

  request(model, sampling) {
    const message = this.#message.value.trim();
    const last = message ? [{ role: "user", content: message }] : [];
    const messages = [...this.#systemMessage, ...this.#history, ...last];
    return messages.at(-1)?.role === "user" ? chatRequest(model, messages, sampling) : null;
  }

  begin() {
    this.#examples.hidden = true;
    this.#sent = this.#message.value.trim();
    if (this.#sent) this.#add({ role: "user", text: this.#sent }, element("p", {}, this.#sent));
    this.#message.value = this.#replaced?.draft ?? "";
    const view = new TokenView(this.#display);
    this.#add({ role: "assistant", view }, view.element);
    return view;
  }

  /** Removes an answer without tokens: shows the one that it should have replaced, or puts its message back. */
  end() {
    const last = this.#turns.at(-1);
    const replaced = this.#replaced;
    this.#replaced = null;
    if (!last?.view || last.view.hasTokens) return;
    this.#removeLastTurn();
    const question = this.#removeLastTurn();
    if (replaced) this.#restore(replaced);
    else this.#message.value ||= question.text;
  }

  /** Removes the last answer and puts its message back into the input field. */
  prepareRepeat() {
    const answer = this.#removeLastTurn();
    this.#replaced = { answer, question: this.#removeLastTurn(), draft: this.#message.value };
    this.#message.value = this.#replaced.question.text;
  }

  focus() {
    this.#message.focus();
  }

  get #systemMessage() {
    const content = this.#system.value.trim();
    return content ? [{ role: "system", content }] : [];
  }

  get #history() {
    return this.#turns.map(({ role, text, view }) => ({ role, content: view ? view.text : text }));
  }

  #add(turn, content) {
    const speaker = turn.role === "user" ? "You" : "Model";
    const box = element("article", { className: `turn ${turn.role}`, ariaLabel: speaker }, element("h2", {}, speaker), content);
    this.#list.append(box);
    this.#turns.push({ ...turn, element: box });
  }

  #restore({ question, answer }) {
    this.#list.append(question.element, answer.element);
    this.#turns.push(question, answer);
  }

  #removeLastTurn() {
    const turn = this.#turns.pop();
    turn.element.remove();
    return turn;
  }
}
