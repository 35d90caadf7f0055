const SVG = "http://www.w3.org/2000/svg";

/** The page's logo: a ring of experts with the active ones lit. During a generation they are those of the last token. */
export class Ring {
  #dots = [];

  constructor(svg, numDots = 8) {
    for (let i = 0; i < numDots; i += 1) {
      const angle = (2 * Math.PI * i) / numDots - Math.PI / 2;
      const dot = document.createElementNS(SVG, "circle");
      dot.setAttribute("cx", 9 * Math.cos(angle));
      dot.setAttribute("cy", 9 * Math.sin(angle));
      dot.setAttribute("r", 2.3);
      svg.append(dot);
      this.#dots.push(dot);
    }
    this.light([1, 5]);
  }

  /** Lights the dots of these experts. With more experts than dots, several experts share a dot. */
  light(experts) {
    const lit = new Set(experts.map((expert) => expert % this.#dots.length));
    this.#dots.forEach((dot, i) => dot.classList.toggle("lit", lit.has(i)));
  }
}
