/** Marks the tokens that all texts have in common, and the first ones in which they differ. */
export class Divergence {
  #views;
  numShared = 0; // tokens so far
  isFound = false;

  constructor(views) {
    this.#views = views;
  }

  update() {
    while (!this.isFound) {
      const spelled = this.#views.map((view) => view.spelledAt(this.numShared));
      if (spelled.includes(undefined)) return;
      this.isFound = spelled.some((token) => token !== spelled[0]);
      for (const view of this.#views) view.mark(this.numShared, this.isFound ? "diverged" : "shared");
      if (!this.isFound) this.numShared += 1;
    }
  }
}
