const ROLES = ["root", "user", "assistant", "tool"];

export const areTexts = (values) => values.every((value) => typeof value === "string");

/** Checks the versions of a text. Throws TypeError. */
export function checkVersions(versions) {
  const texts = versions.flatMap(({ prompt, text, note = "", seed = "" }) => [prompt, text, note, seed]);
  if (!areTexts(texts)) throw new TypeError("Not a text.");
}

/**
 * A conversation as a tree. A message is {role, text, parent, children, chosen, note, seed, calls, callId}: `children` are the
 * branches behind it, `chosen` the open one; `note` has its figures, `calls` its calls {id, name, arguments}; it is the result of `callId`.
 */
export class Conversation {
  root = { role: "root", text: "", parent: null, children: [], chosen: 0 };

  get path() {
    const nodes = [];
    for (let node = this.root.children[this.root.chosen]; node; node = node.children[node.chosen]) nodes.push(node);
    return nodes;
  }

  get last() {
    return this.path.at(-1) ?? this.root;
  }

  add(parent, role, text = "", callId = "") {
    const node = { role, text, parent, children: [], chosen: 0, note: "", seed: "", calls: [], callId };
    parent.chosen = parent.children.push(node) - 1;
    return node;
  }

  /** Removes a message with everything behind it; opens the branch `chosen` of its parent, or a neighbour. */
  remove(node, chosen = node.parent.children.indexOf(node)) {
    const { parent } = node;
    parent.children.splice(parent.children.indexOf(node), 1);
    parent.chosen = Math.max(0, Math.min(chosen, parent.children.length - 1));
  }

  step(node, by) {
    node.parent.chosen = node.parent.children.indexOf(node) + by;
  }

  /** Returns the tree to be stored, without parents and without what is empty. */
  toTree() {
    const copy = ({ role, text, chosen, children, note, seed, calls, callId }) => ({
      role, text, chosen, ...(note && { note, seed }), ...(calls?.length && { calls }), ...(callId && { callId }), children: children.map(copy),
    });
    return copy(this.root);
  }

  /** Reads what `toTree` returns. Throws TypeError. */
  static fromTree(tree) {
    const build = ({ role, text, chosen, children, note = "", seed = "", calls = [], callId = "" }, parent) => {
      const texts = [text, note, seed, callId, ...calls.flatMap((call) => [call.id, call.name, call.arguments])];
      if (!ROLES.includes(role) || !areTexts(texts)) throw new TypeError("Not a conversation.");
      const node = { role, text, parent, chosen: Number.isInteger(chosen) && children[chosen] ? chosen : 0, note, seed, calls, callId };
      node.children = children.map((child) => build(child, node));
      return node;
    };
    const conversation = new Conversation();
    conversation.root = build(tree, null);
    return conversation;
  }
}

export function messagesTo(node) {
  const messages = [];
  for (let at = node; at.parent; at = at.parent) messages.unshift(messageOf(at));
  return messages;
}

function messageOf({ role, text: content, calls, callId }) {
  if (callId) return resultMessage(callId, content);
  if (!calls.length) return { role, content };
  return { role, content: content || null, tool_calls: calls.map(({ id, ...called }) => ({ id, type: "function", function: called })) };
}

export const resultMessage = (callId, content) => ({ role: "tool", tool_call_id: callId, content });
