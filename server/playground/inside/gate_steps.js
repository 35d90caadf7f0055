/** Returns e^(logit - largest) of each chosen expert, in their order, and the sum of these numbers. */
export function softmaxSteps(logits, chosen) {
  const largest = Math.max(...chosen.map((expert) => logits[expert]));
  const masses = chosen.map((expert) => Math.exp(logits[expert] - largest));
  return { largest, masses, sum: masses.reduce((total, mass) => total + mass, 0) };
}

/** Returns the sentences about one layer, {logits, chosen, weights} with the strongest expert first. */
export function sentences({ logits, chosen, weights }) {
  const { largest, masses, sum } = softmaxSteps(logits, chosen);
  const experts = list(chosen.map((expert) => `${logits[expert].toFixed(3)} (expert\u00a0${expert})`));
  const terms = chosen.map((expert, i) => `${weights[i].toFixed(3)} × expert\u00a0${expert}`).join(" + ");
  if (chosen.length === 1) {
    return [`The largest logit is ${experts}. One expert alone has the weight 1.`, `The layer adds ${terms}.`];
  }
  return [
    `The ${chosen.length} largest logits are ${experts}.`,
    `e to the power of each, less the largest (${largest.toFixed(3)}): ${list(masses.map((mass) => mass.toFixed(3)))}, together ${sum.toFixed(3)}.`,
    `Divided by this sum they are the weights. The layer adds ${terms}.`,
  ];
}

const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
