import { copyButton } from "../clipboard.js";
import { button, deleteButton, element, onEnter } from "../dom.js";
import { branchArrows } from "./branches.js";
import { callCards, resultForm } from "./calls.js";
import { display } from "./display.js";
import { hasMarkdown, markdown } from "./markdown.js";
import { noteOf } from "./summary.js";
import { TokenView } from "./token_view.js";

const SPEAKERS = { user: "You", assistant: "Model", tool: "Result" };

/** One message of a chat with its buttons. `actions` are {step(node, by), edit(node, text), remove(node), run(job), focus()}. */
export class Turn {
  views = []; // of the tokens that were generated on this page, one per request
  node;
  #actions;
  #base; // text before the tokens of `views`
  #isRendered = true;
  #body = element("div.turn-body");
  #branches = element("span.branches");
  #rendered = button("Tokens", () => this.#toggle());
  #resume;
  #calls = element("div.calls");
  #note = element("p.figures");
  #earlier = ""; // note of the text that is continued
  element;

  constructor(node, actions) {
    this.node = node;
    this.#actions = actions;
    this.#base = node.text;
    const speaker = SPEAKERS[node.role];
    this.#resume = button("Continue", () => actions.run({ resume: node }), { hidden: node.calls.length > 0 });
    const again = button("Again", () => actions.run({ answer: node.parent }), { name: "Answer again" });
    const buttons = [
      copyButton(() => this.text),
      ...(node.role === "tool" ? [] : [button("Edit", () => this.edit())]),
      ...(node.role === "assistant" ? [again, this.#resume, this.#rendered] : []),
      deleteButton(() => actions.remove(node)),
    ];
    this.element = element("article", { className: `turn ${node.role}`, ariaLabel: speaker },
      element("header.turn-head", element("h2", speaker), this.#branches), this.#body, this.#calls,
      element("div.turn-actions", this.#note, ...buttons));
    this.#show();
    this.#showOutcome();
    this.update();
  }

  update() {
    const { children } = this.node.parent;
    branchArrows(this.#branches, children.indexOf(this.node), children.length, "branch", (by) => this.#actions.step(this.node, by));
  }

  begin() {
    const view = new TokenView(display);
    this.views.push(view);
    this.#isRendered = false;
    this.#earlier = this.node.note;
    this.element.classList.add("streaming");
    this.#show();
    return view;
  }

  /** Adds a chunk to the newest view, and shows the calls so far. */
  add(tokens, routing, meter) {
    this.views.at(-1).add(tokens, routing, meter);
    if (meter.calls.length) this.#calls.replaceChildren(...callCards(meter.calls));
  }

  /** Writes into the message what has come so far; before its end it counts as stopped. */
  store() {
    const { meter } = this.views.at(-1);
    if (this.#hasOutput) Object.assign(this.node, { text: this.text, calls: meter.calls, note: [this.#earlier, noteOf(meter)].filter(Boolean).join(", then ") });
  }

  /** Ends the text of the newest view; `isCut` says that the model had more to say. Returns whether there was any. */
  end(isCut) {
    this.element.classList.remove("streaming");
    const hasOutput = this.#hasOutput;
    if (hasOutput) this.store();
    else this.views.pop().element.remove();
    this.#isRendered = true;
    this.#resume.hidden = !isCut || this.node.calls.length > 0;
    this.#show();
    this.#showOutcome();
    return hasOutput;
  }

  get #hasOutput() {
    const { hasTokens, meter } = this.views.at(-1);
    return hasTokens || meter?.calls.length > 0;
  }

  #showOutcome() {
    const { calls, note } = this.node;
    this.#note.textContent = note;
    if (calls.length) this.#calls.replaceChildren(...callCards(calls), resultForm(calls, (results) => this.#actions.run({ send: this.node, results })));
  }

  textBefore(view) {
    return this.#base + this.views.slice(0, this.views.indexOf(view)).map(({ text }) => text).join("");
  }

  get text() {
    return this.#base + this.views.map((view) => view.text).join("");
  }

  /** Markdown is rendered unless its tokens are asked for; other text looks the same in both ways. */
  #show() {
    const isMarkdown = this.node.role === "assistant" && hasMarkdown(this.text) && !this.element?.classList.contains("streaming");
    const isPlain = !isMarkdown || !this.#isRendered;
    this.#rendered.hidden = !isMarkdown || !this.views.length;
    this.#rendered.textContent = this.#isRendered ? "Tokens" : "Rendered";
    const tokens = [...(this.#base ? [element("p", this.#base)] : []), ...this.views.map((view) => view.element)];
    this.#body.replaceChildren(...(isPlain ? tokens : [element("div.rendered", ...markdown(this.text))]));
  }

  #toggle() {
    this.#isRendered = !this.#isRendered;
    this.#show();
  }

  /** Replaces the text by a field: Enter (in an answer Ctrl+Enter) makes a new branch, Escape leaves all as it was. */
  edit() {
    const isUser = this.node.role === "user";
    const field = element("textarea", { value: this.text, ariaLabel: "Edit the message" });
    const cancel = () => {
      this.#show();
      this.#actions.focus();
    };
    const submit = () => {
      this.#show();
      if (field.value.trim() && field.value !== this.text) this.#actions.edit(this.node, field.value);
    };
    onEnter(field, submit, cancel, ({ ctrlKey, metaKey, shiftKey }) => ctrlKey || metaKey || (isUser && !shiftKey));
    const row = element("div", button(isUser ? "Send" : "Save", submit), button("Cancel", cancel));
    this.#body.replaceChildren(element("div.editor", field, row));
    field.focus();
  }
}
