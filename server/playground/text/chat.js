import { button, byId, on } from "../dom.js";
import { Conversation, messagesTo, resultMessage } from "./conversation.js";
import { chatRequest } from "./request.js";
import { Turn } from "./turn.js";

const EXAMPLES = ["What can you do?", "Count from 3 to 7.", "Reverse the words: river house garden", "What is 3 + 4?"];

/**
 * Panel of a conversation. `run(job)` sends a request; a job is {} for the message in the field, {answer: user message},
 * {edit: user message, text}, {send: answer, results}, {resume: answer} or {branch: answer, text}. Every new answer is a branch beside the ones before.
 */
export class ChatPanel {
  name = "Send";
  repeatLabel = "Answer again";
  onChange = () => {}; // called when there is something to store
  #display;
  #run;
  #conversation = new Conversation();
  #turns = []; // of the open path
  #added = []; // {node, before}: messages that the running request has added, and the branch that was open
  #job = {}; // of the running or last request
  #running = null; // Turn of the running request
  #list = byId("turns");
  #message = byId("message");
  #system = byId("system");
  #examples = byId("chat-examples");
  #actions = {
    step: (node, by) => this.#step(node, by), edit: (node, text) => this.#edit(node, text), remove: (node) => this.#remove(node),
    answer: (node) => this.#run({ answer: node }), send: (node, results) => this.#run({ send: node, results }), resume: (node) => this.#run({ resume: node }), focus: () => this.focus(),
  };

  constructor(display, run) {
    this.#display = display;
    this.#run = run;
    for (const message of EXAMPLES) {
      const send = () => {
        this.#message.value = message;
        run({});
      };
      this.#examples.append(button(message, send, { className: "example" }));
    }
    on(this.#message, "keydown", ({ key }) => key === "ArrowUp" && !this.#message.value && !this.#running && this.#editLast());
    on(this.#system, "change", () => this.onChange());
  }

  get views() {
    return this.#turns.flatMap((turn) => turn.views);
  }

  get canRepeat() {
    return this.#turns.length > 0;
  }

  repeatJob() {
    const { last } = this.#conversation;
    return { answer: last.role === "assistant" ? last.parent : last };
  }

  /** Returns the job that answers with `text`, in place of what is in `view` up to there, and goes on from it. */
  branchJob(view, text) {
    const turn = this.#turns.find(({ views }) => views.includes(view));
    return { branch: turn.node, text: (turn.textBefore(view) + text).trimStart() };
  }

  request(model, sampling, job = {}) {
    const messages = [...this.#systemMessage, ...this.#messages(job)];
    if (job.resume || job.branch) return chatRequest(model, messages, { ...sampling, continue_final_message: true, add_generation_prompt: false });
    return ["user", "tool"].includes(messages.at(-1)?.role) ? chatRequest(model, messages, sampling) : null;
  }

  begin(job = {}) {
    this.#examples.hidden = true;
    this.#list.classList.add("busy");
    this.#added = [];
    this.#job = job;
    if (job.branch) this.#add(job.branch.parent, "assistant", job.text);
    else if (!job.resume) this.#add(job.answer ?? (job.send ? this.#addResults(job) : this.#addQuestion(job)), "assistant");
    this.#draw();
    this.#running = this.#turns.find((turn) => turn.node === (job.resume ?? this.#conversation.last));
    this.#running.begin(this.#display);
    this.onChange();
    return this.#running;
  }

  /** Ends the running answer. One without tokens leaves everything as it was, with a new message back in the field. */
  end(meter) {
    this.#list.classList.remove("busy");
    const { node } = this.#running;
    if (!this.#running.end(meter?.finishReason === "length" || !meter)) this.#undo();
    else if (!this.#job.resume) this.#job.answer ??= node.parent; // another try answers the same message
    this.#running = null;
    this.#added = [];
    this.onChange();
  }

  focus() {
    this.#message.focus();
  }

  get entry() {
    const { path } = this.#conversation;
    if (!path.length) return null;
    this.#running?.store();
    return { name: path[0].text, system: this.#system.value, tree: this.#conversation.toTree() };
  }

  /** Opens a stored conversation, or an empty one. Throws TypeError if it is none. */
  open(entry) {
    this.#conversation = entry ? Conversation.fromTree(entry.tree) : new Conversation();
    this.#system.value = entry?.system ?? "";
    this.#system.closest("details").open = Boolean(entry?.system);
    this.#examples.hidden = entry !== null;
    this.#draw();
  }

  get link() {
    return this.entry;
  }

  get #systemMessage() {
    const content = this.#system.value.trim();
    return content ? [{ role: "system", content }] : [];
  }

  #messages({ answer, edit, text, send, results, resume, branch }) {
    if (branch) return [...messagesTo(branch.parent), { role: "assistant", content: text }];
    if (answer || resume) return messagesTo(answer ?? resume);
    if (send) return [...messagesTo(send), ...send.calls.map(({ id }, i) => resultMessage(id, results[i]))];
    const message = edit ? text : this.#message.value.trim();
    const before = messagesTo(edit ? edit.parent : this.#conversation.last);
    return message ? [...before, { role: "user", content: message }] : before;
  }

  #addQuestion({ edit, text }) {
    const message = this.#message.value.trim();
    if (!edit || message === text) this.#message.value = "";
    if (edit) return this.#add(edit.parent, "user", text);
    const { last } = this.#conversation;
    return message ? this.#add(last, "user", message) : last;
  }

  /** Adds the results of an answer's calls, one behind the other; returns the last one. */
  #addResults({ send, results }) {
    return send.calls.reduce((parent, { id }, i) => this.#add(parent, "tool", results[i], id), send);
  }

  #add(parent, role, text, callId) {
    const before = parent.chosen;
    const node = this.#conversation.add(parent, role, text, callId);
    this.#added.push({ node, before });
    return node;
  }

  #undo() {
    for (const { node, before } of this.#added.reverse()) {
      this.#conversation.remove(node, before);
      if (node.role === "user") this.#message.value ||= node.text;
    }
    this.#draw();
  }

  /** A changed answer is a branch at once; a changed message gets an answer. */
  #edit(node, text) {
    if (node.role === "user") return this.#run({ edit: node, text });
    this.#conversation.add(node.parent, "assistant", text);
    return this.#changed();
  }

  #editLast() {
    this.#turns.findLast(({ node }) => node.role === "user")?.edit();
  }

  #step(node, by) {
    this.#conversation.step(node, by);
    this.#changed();
    this.#turns.find((turn) => turn.node.parent === node.parent).element.querySelector(".branches button:enabled")?.focus();
  }

  #remove(node) {
    this.#conversation.remove(node);
    this.#changed();
    this.#message.focus();
  }

  #changed() {
    this.#draw();
    this.#examples.hidden = this.#turns.length > 0;
    this.onChange();
  }

  /** Shows the open path. Messages that stay are not touched; those of other branches keep their tokens. */
  #draw() {
    const { path } = this.#conversation;
    const numSame = this.#turns.findIndex(({ node }, i) => node !== path[i]);
    const kept = numSame < 0 ? this.#turns.length : numSame;
    for (const turn of this.#turns.splice(kept)) turn.element.remove();
    for (const node of path.slice(kept)) {
      node.turn ??= new Turn(node, this.#actions);
      this.#turns.push(node.turn);
      this.#list.append(node.turn.element);
    }
    for (const turn of this.#turns.slice(Math.max(0, kept - 1))) turn.update();
  }
}
