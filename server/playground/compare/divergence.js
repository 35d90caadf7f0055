/** Marks the tokens that all texts have in common, and the first ones in which they differ. */
export class Divergence {
  #views;
  #at = 0; // number of common tokens so far
  isFound = false;

  constructor(views) {
    this.#views = views;
  }

  get numShared() {
    return this.#at;
  }

  update() {
    while (!this.isFound) {
      const spelled = this.#views.map((view) => view.spelledAt(this.#at));
      if (spelled.includes(undefined)) return;
      this.isFound = spelled.some((token) => token !== spelled[0]);
      for (const view of this.#views) view.mark(this.#at, this.isFound ? "diverged" : "shared");
      if (!this.isFound) this.#at += 1;
    }
  }
}
