import { byId, drawn } from "../dom.js";

const NUM_DOTS = 8;

// The page's logo: a ring of experts; those of the last token are lit.
const dots = Array.from({ length: NUM_DOTS }, (_, i) => {
  const angle = (2 * Math.PI * i) / NUM_DOTS - Math.PI / 2;
  return drawn("circle", { cx: 9 * Math.cos(angle), cy: 9 * Math.sin(angle), r: 2.3 });
});

export function light(experts) {
  const lit = experts.map((expert) => expert % NUM_DOTS);
  dots.forEach((dot, i) => dot.classList.toggle("lit", lit.includes(i)));
}

byId("ring").append(...dots);
light([1, 5]);
