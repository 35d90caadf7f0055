import { branchArrows, button, copyButton, deleteButton, element, onEnter } from "../dom.js";
import { codeBox, hasCode, hasMarkdown, markdown } from "./markdown.js";
import { recordOf } from "./summary.js";
import { tokenView } from "./token_view.js";

const SPEAKERS = { user: "You", assistant: "Model", tool: "Result" };

/** Makes one message of a chat with its buttons, which call functions of `actions`. */
export function newTurn(node, actions) {
  const views = []; // of the tokens that were generated on this page, one per request
  const base = node.text; // before the tokens of `views`
  let isRendered = true;
  let earlier = ""; // note of the text that is continued
  const speaker = SPEAKERS[node.role];
  const body = element("div.turn-body");
  const branches = element("span.branches");
  const callBox = element("div.calls");
  const note = element("p.figures");
  const rendered = button("", toggle);
  const resume = button("Continue", () => actions.run({ resume: node }), { hidden: node.calls.length > 0 });
  const again = button("Again", () => actions.run({ answer: node.parent }), { name: "Answer again" });
  const buttons = [
    copyButton(() => turn.text),
    ...(node.role === "tool" ? [] : [button("Edit", edit)]),
    ...(node.role === "assistant" ? [again, resume, rendered] : []),
    deleteButton(() => actions.remove(node)),
  ];
  const box = element("article", { className: `turn ${node.role}`, ariaLabel: speaker },
    element("header.turn-head", element("h2", speaker), branches), body, callBox, element("div.turn-actions", note, buttons));

  const textOf = (some) => base + some.map(({ text }) => text).join("");

  function hasOutput() {
    const { hasTokens, meter } = views.at(-1);
    return hasTokens || meter?.calls.length > 0;
  }

  function showOutcome() {
    const { calls } = node;
    note.textContent = node.note;
    if (!calls.length) return;
    const send = (results) => {
      actions.focus(); // the form goes
      actions.run({ send: node, results });
    };
    const form = areComplete(calls) ? resultForm(calls, send, actions.focus) : element("p.hint", "The call is incomplete: press Again.");
    callBox.replaceChildren(...callCards(calls, "json"), form);
  }

  function show() {
    const isMarkdown = !box.classList.contains("streaming") && (node.role === "assistant" ? hasMarkdown(turn.text) : hasCode(turn.text));
    rendered.hidden = !isMarkdown || !views.length;
    rendered.textContent = isRendered ? "Tokens" : "Rendered";
    const tokens = [...(base ? [element("p", base)] : []), ...views.map((view) => view.element)];
    for (const view of views) view.close();
    body.replaceChildren(...(isMarkdown && isRendered ? [element("div.rendered", markdown(turn.text))] : tokens));
  }

  function toggle() {
    isRendered = !isRendered;
    show();
  }

  /** Replaces the text by a field: Enter (in an answer Ctrl+Enter) makes a new branch. */
  function edit() {
    const isUser = node.role === "user";
    const field = element("textarea", { value: turn.text, ariaLabel: "Edit the message" });
    const cancel = () => {
      show();
      actions.focus();
    };
    const submit = () => {
      show();
      if (field.value.trim() && field.value !== turn.text) actions.edit(node, field.value);
    };
    onEnter(field, submit, cancel, ({ ctrlKey, metaKey, shiftKey }) => ctrlKey || metaKey || (isUser && !shiftKey));
    const row = element("div", button(isUser ? "Send" : "Save", submit), button("Cancel", cancel));
    body.replaceChildren(element("div.editor", field, row));
    field.focus();
  }

  const turn = {
    node,
    views,
    element: box,
    edit,

    get text() {
      return textOf(views);
    },

    textBefore: (view) => textOf(views.slice(0, views.indexOf(view))),

    update() {
      const { children } = node.parent;
      branchArrows(branches, children.indexOf(node), children.length, "branch", (by) => actions.step(node, by));
    },

    begin() {
      views.push(tokenView());
      isRendered = false;
      earlier = node.note;
      box.classList.add("streaming");
      show();
    },

    add(tokens, routing, meter) {
      views.at(-1).add(tokens, routing, meter);
      if (meter.calls.length) callBox.replaceChildren(...callCards(meter.calls));
    },

    /** Writes into the message what has come so far; before its end it counts as stopped. */
    store() {
      const { meter } = views.at(-1);
      if (!hasOutput()) return;
      Object.assign(node, { text: turn.text, calls: meter.calls }, recordOf(meter));
      if (earlier) node.note = `${earlier}, then ${node.note}`;
    },

    /** Ends the text of the newest view; `isCut` says that the model had more to say. Returns whether there was any. */
    end(isCut) {
      box.classList.remove("streaming");
      const isKept = hasOutput();
      if (isKept) turn.store();
      else views.pop().element.remove();
      isRendered = true;
      resume.hidden = !isCut || node.calls.length > 0;
      show();
      showOutcome();
      return isKept;
    },
  };
  show();
  showOutcome();
  turn.update();
  return turn;
}

/** Returns a card for each call; without a language its text has no colours. */
const callCards = (calls, language) => calls.map(({ name, arguments: json }) => codeBox(name, JSON.stringify(parsed(json), null, 2) ?? json, language));

/** Returns whether all arguments are JSON: those of an answer that was cut may end anywhere. */
const areComplete = (calls) => calls.every(({ arguments: json }) => parsed(json) !== undefined);

/** Returns a field for the result of each call; `send` gets their texts, Escape calls `leave`. */
function resultForm(calls, send, leave) {
  const fields = calls.map(({ name }) => element("textarea.mono", { rows: 1, placeholder: "Result", ariaLabel: `Result of ${name}` }));
  const submit = () => send(fields.map(({ value }) => value));
  for (const field of fields) onEnter(field, submit, leave, ({ ctrlKey, metaKey }) => ctrlKey || metaKey);
  return element("div.results", fields, button(calls.length > 1 ? "Send results" : "Send result", submit, { className: "" }));
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return undefined; // incomplete
  }
}
