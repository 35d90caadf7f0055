import { byId, element, on } from "../dom.js";
import { percent, visible } from "../words.js";

const GAP_PX = 8;

const card = byId("card");
const spoken = byId("spoken"); // for screen readers

export function show(token, span, numExperts, isSpoken) {
  if (token.logprob === null) {
    hide();
    return;
  }
  card.replaceChildren(head(token), alternatives(token), ...(token.routing ? [routes(token, numExperts)] : []));
  card.showPopover();
  place(span.getClientRects()[0] ?? span.getBoundingClientRect());
  if (isSpoken) spoken.textContent = spokenText(token);
}

export function pin() {
  if (!card.classList.toggle("pinned")) hide();
}

export function hide() {
  if (card.matches(":popover-open:not(.pinned)")) card.hidePopover();
}

function place(anchor) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const isBelow = anchor.bottom + GAP_PX + height < innerHeight;
  const top = isBelow ? anchor.bottom + GAP_PX : Math.max(GAP_PX, anchor.top - GAP_PX - height);
  const left = Math.min(Math.max(GAP_PX, anchor.left - 12), byId("write").getBoundingClientRect().right - width - GAP_PX);
  Object.assign(card.style, { left: `${left}px`, top: `${top}px` });
}

const probability = ({ logprob }) => percent(Math.exp(logprob));

const head = (token) =>
  element("p.card-head", element("code", visible(token.spelled)), element("b", probability(token)),
    element("small", `logprob ${token.logprob.toFixed(3)}`));

function alternatives(token) {
  const rows = token.others.map(({ spelled: other, logprob }) => {
    const share = Math.exp(logprob);
    return element(other === token.spelled ? "li.taken" : "li", element("code", visible(other)), element("i", { "--share": share }), element("span", percent(share)));
  });
  return element("ol.others", rows);
}

/** Returns a grid of layers and experts, lit by weight, or the strongest most. */
function routes({ routing, weights }, numExperts) {
  const grid = element("div.routes", { "--experts": numExperts, "--layers": routing.length });
  routing.forEach((chosen, layer) => {
    for (let expert = 0; expert < numExperts; expert += 1) {
      const rank = chosen.indexOf(expert);
      grid.append(rank < 0 ? element("i") : element("i.on", { "--weight": weights ? weights[layer][rank] : Number(rank === 0) }));
    }
  });
  return element("div.routing", element("small", "experts →, layers ↓ · click: gates · right click or P: pin"), grid);
}

function spokenText(token) {
  const others = token.others.filter((other) => other.spelled !== token.spelled).slice(0, 3);
  const rest = others.map((other) => `${visible(other.spelled)} ${probability(other)}`).join(", ");
  const experts = token.routing?.map(([first], layer) => (token.weights ? `${first} with ${percent(token.weights[layer][0])}` : first));
  const first = experts ? ` First expert in each layer: ${experts.join(", ")}.` : "";
  return `${visible(token.spelled)}, ${probability(token)}. Instead: ${rest}.${first}`;
}

on(card, "click", pin);
