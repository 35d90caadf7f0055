import { button, byId } from "../dom.js";
import { hueOf, percent } from "../words.js";

const box = byId("expert-legend");
let shown = null; // the expert whose tokens stay

/** Draws a button for each strongest expert of a layer; it dims the tokens of others. */
export function draw(views, { layer, numExperts, repaint }) {
  const counts = new Map();
  const strongest = views.flatMap(({ routed }) => routed.map(({ routing }) => routing[layer][0]));
  for (const expert of strongest) counts.set(expert, (counts.get(expert) ?? 0) + 1);
  const swatches = [...counts].sort(([a], [b]) => a - b).map(([expert, count]) =>
    button(`${expert} · ${percent(count / strongest.length)}`, () => toggle(expert, repaint),
      { title: "Show only this expert's tokens", className: "swatch", "--hue": hueOf(expert, numExperts), ariaPressed: String(expert === shown) }));
  box.replaceChildren(...swatches);
}

/** Returns whether a token stays, by its experts in each layer; undefined if all do. */
export function isShown(layer) {
  return shown === null ? undefined : (routing) => routing[layer][0] === shown;
}

function toggle(expert, repaint) {
  shown = expert === shown ? null : expert;
  repaint();
  [...box.children].find(({ textContent }) => parseInt(textContent, 10) === expert)?.focus();
}
