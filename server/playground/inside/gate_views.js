import { element, on } from "../dom.js";
import { percent, sumOf } from "../words.js";

export function layerRows(numLayers, numExperts, layer, onLayer) {
  const rows = Array.from({ length: numLayers }, (_, index) => {
    const input = element("input", { type: "radio", name: "gate-layer", value: index, checked: index === layer });
    const cells = Array.from({ length: numExperts }, () => element("i"));
    return element("label", input, element("b", `${index}`), element("span.unseen"), cells);
  });
  const group = element("fieldset.gate-layers", { "--experts": numExperts }, element("legend", "Layer, and its weights by expert"), rows);
  on(group, "change", ({ target }) => onLayer(Number(target.value)));
  return group;
}

export function paintLayers(group, layers) {
  group.querySelectorAll("label").forEach((row, index) => {
    const { chosen, weights } = layers[index];
    row.querySelector(".unseen").textContent = chosen.map((expert, i) => `expert ${expert} ${percent(weights[i])}`).join(", ");
    row.querySelectorAll("i").forEach((cell, expert) => {
      const weight = weights[chosen.indexOf(expert)] ?? 0;
      cell.style.setProperty("--heat", weight);
      cell.classList.toggle("on", weight > 0);
    });
  });
}

/** Returns one layer: a row of figures per expert; the steps in sentences. */
export function layerDetail(layer, index, k, mask) {
  const { logits, chosen, weights } = layer;
  const largest = logits[chosen[0]];
  const [low, high] = [Math.min(...logits), Math.max(...logits)];
  const masses = logits.map((logit, expert) => (mask?.[index][expert] === false ? 0 : Math.exp(logit - largest)));
  const dense = masses.map((mass) => mass / sumOf(masses));
  const rows = logits.map((logit, expert) => {
    const place = chosen.indexOf(expert);
    return element(place < 0 ? "tr" : "tr.chosen",
      element("th", { scope: "row" }, `${expert}`),
      barCell(logit.toFixed(3), (logit - low) / (high - low || 1)),
      element("td", place < 0 ? (masses[expert] ? "–" : "off") : masses[expert].toFixed(3)),
      barCell(place < 0 ? "–" : weights[place].toFixed(3), weights[place] ?? 0),
      barCell(dense[expert].toFixed(3), dense[expert]));
  });
  const heads = ["Expert", "Gate logit", "e^(logit − largest)", "Weight", "If all worked"].map((name) => element("th", { scope: "col" }, name));
  return [
    element("table.gate-table",
      element("caption", `Layer ${index}, ${k} of ${logits.length} experts`),
      element("thead", element("tr", heads)), element("tbody", rows)),
    ...sentences(layer, masses).map((sentence) => element("p", sentence)),
  ];
}

const barCell = (text, share) => element("td", element("span", text), element("i", { "--share": share }));

/** Returns the sentences about one layer, whose strongest expert comes first. */
function sentences({ logits, chosen, weights }, masses) {
  const parts = chosen.map((expert) => masses[expert]);
  const experts = chosen.map((expert) => `${logits[expert].toFixed(3)} (expert\u00a0${expert})`).join(", ");
  const terms = chosen.map((expert, i) => `${weights[i].toFixed(3)} × expert\u00a0${expert}`).join(" + ");
  return [
    `The largest logits: ${experts}.`,
    `e to the power of each, less the largest: ${parts.map((mass) => mass.toFixed(3)).join(", ")}; together ${sumOf(parts).toFixed(3)}.`,
    `Divided by this sum they are the weights. The layer adds ${terms}.`,
  ];
}
