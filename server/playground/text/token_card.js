import { byId, element, on } from "../dom.js";
import { percent, visible } from "../words.js";

const GAP_PX = 8;

const card = byId("card");
const spoken = byId("spoken"); // a live region, which tells screen readers what the card shows

/** Shows the card of a token: its probability, the alternatives, and its experts in each layer. */
export function show(token, span, numExperts, isSpoken) {
  if (token.logprob === null) {
    hide();
    return;
  }
  card.replaceChildren(head(token), alternatives(token), ...(token.routing ? [routes(token.routing, numExperts)] : []));
  card.showPopover();
  place(span.getClientRects()[0] ?? span.getBoundingClientRect());
  if (isSpoken) spoken.textContent = spokenText(token);
}

/** Docks the card at the edge of the window, where it stays and shows the tokens to come; or releases it. */
export function pin() {
  if (!card.classList.toggle("pinned")) hide();
}

export function hide() {
  if (card.matches(":popover-open:not(.pinned)")) card.hidePopover();
}

/** Places the card below the token, or above it if there is no room. */
function place(anchor) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const isBelow = anchor.bottom + GAP_PX + height < innerHeight;
  const top = isBelow ? anchor.bottom + GAP_PX : Math.max(GAP_PX, anchor.top - GAP_PX - height);
  const left = Math.min(Math.max(GAP_PX, anchor.left - 12), innerWidth - width - GAP_PX);
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
  return element("ol.others", ...rows);
}

/** Returns a grid of layers and experts, the token's experts lit. */
function routes(routing, numExperts) {
  const grid = element("div.routes", { "--experts": numExperts, "--layers": routing.length });
  for (const chosen of routing) {
    for (let expert = 0; expert < numExperts; expert += 1) {
      const rank = chosen.indexOf(expert);
      grid.append(element(rank < 0 ? "i" : rank === 0 ? "i.first" : "i.on"));
    }
  }
  return element("div.routing", element("small", "experts →, layers ↓ · click: gates · right click or P: pin"), grid);
}

function spokenText(token) {
  const others = token.others.filter((other) => other.spelled !== token.spelled).slice(0, 3);
  const rest = others.map((other) => `${visible(other.spelled)} ${probability(other)}`).join(", ");
  const first = token.routing ? ` First expert in each layer: ${token.routing.map((chosen) => chosen[0]).join(", ")}.` : "";
  return `${visible(token.spelled)}, ${probability(token)}. Instead: ${rest}.${first}`;
}

on(card, "click", pin);
