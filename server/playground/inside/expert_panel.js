import { button, closeButton, element } from "../dom.js";
import { percent, visible } from "../words.js";

const NUM_TOKENS = 12;
const NUM_PARTNERS = 3;

/** Returns the panel of a pinned expert from its layer's entry in GET /experts, with a button that switches it off or on. */
export function expertPanel(entry, expert, { isOff, onSwitch, onClose }) {
  const { layer, share, tokens, top_tokens: top = [], entropy } = entry;
  return [
    element("div.pinned-head", element("b", `Layer ${layer}, expert ${expert}`), closeButton(onClose)),
    element("p", `${percent(share[expert] ?? 0)} of the layer, ${tokens[expert].toLocaleString("en")} tokens. `,
      `Entropy of the layer: ${entropy.toFixed(2)} of ${Math.log2(share.length).toFixed(2)} bits.`),
    ...tokenList(top[expert] ?? []),
    ...partners(entry, expert),
    button(`Switch ${isOff ? "on" : "off"} and answer again`, onSwitch, { className: "switch-expert" }),
  ];
}

function tokenList(top) {
  if (!top.length) return [];
  const rows = top.slice(0, NUM_TOKENS).map(({ text, count }) =>
    element("li", element("code", visible(text)), element("span", count.toLocaleString("en"))));
  return [element("h3", "Most frequent tokens"), element("ol.top-tokens", ...rows)];
}

/** The experts that compute the most tokens together with this one: none at one expert per token. */
function partners({ pairs, tokens }, expert) {
  const together = (pairs?.[expert] ?? []).map((count, other) => ({ count, other })).filter(({ count }) => count > 0);
  if (!together.length || !tokens[expert]) return [];
  const most = together.sort((a, b) => b.count - a.count).slice(0, NUM_PARTNERS);
  const words = most.map(({ count, other }) => `expert ${other} (${percent(count / tokens[expert])})`);
  return [element("p", `Together with ${words.join(", ")} of its tokens.`)];
}
