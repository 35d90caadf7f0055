import { drawn } from "../dom.js";

/** The page's logo: a ring of experts; those of the last token are lit. */
export class Ring {
  #dots = [];

  constructor(svg, numDots = 8) {
    for (let i = 0; i < numDots; i += 1) {
      const angle = (2 * Math.PI * i) / numDots - Math.PI / 2;
      this.#dots.push(svg.appendChild(drawn("circle", { cx: 9 * Math.cos(angle), cy: 9 * Math.sin(angle), r: 2.3 })));
    }
    this.light([1, 5]);
  }

  /** Lights the dots of these experts, several of which may share a dot. */
  light(experts) {
    const lit = new Set(experts.map((expert) => expert % this.#dots.length));
    this.#dots.forEach((dot, i) => dot.classList.toggle("lit", lit.has(i)));
  }
}
