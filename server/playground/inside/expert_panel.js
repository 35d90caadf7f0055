import { button, closeButton, element } from "../dom.js";
import { percent, visible } from "../words.js";

const NUM_TOKENS = 12;
const NUM_PARTNERS = 3;

export function expertPanel(entry, expert, { isOff, onSwitch, onClose }) {
  const { layer, share, tokens, top_tokens: top, entropy } = entry;
  return [
    element("div.pinned-head", element("b", `Layer ${layer}, expert ${expert}`), closeButton(onClose)),
    element("p", `${percent(share[expert])} of the layer, ${tokens[expert].toLocaleString("en")} tokens. `,
      `Entropy of the layer: ${entropy.toFixed(2)} of ${Math.log2(share.length).toFixed(2)} bits.`),
    ...tokenList(top[expert]),
    ...partners(entry, expert),
    button(`Switch ${isOff ? "on" : "off"} and answer again`, onSwitch, { className: "switch-expert" }),
  ];
}

function tokenList(top) {
  if (!top.length) return [];
  const rows = top.slice(0, NUM_TOKENS).map(({ text, count }) =>
    element("li", element("code", visible(text)), element("span", count.toLocaleString("en"))));
  return [element("h3", "Most frequent tokens"), element("ol.top-tokens", rows)];
}

function partners({ pairs, tokens }, expert) {
  const together = pairs[expert].map((count, other) => ({ count, other })).filter(({ count }) => count);
  const most = together.sort((a, b) => b.count - a.count).slice(0, NUM_PARTNERS);
  const words = most.map(({ count, other }) => `expert ${other} (${percent(count / tokens[expert])})`);
  return words.length ? [element("p", `Together with ${words.join(", ")} of its tokens.`)] : [];
}
