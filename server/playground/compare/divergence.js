/** Marks the tokens that all texts have in common, and the first ones in which they differ. */
export class Divergence {
  #views;
  #at = 0; // number of common tokens so far
  isFound = false;

  constructor(views) {
    this.#views = views;
  }

  /** Number of tokens that all texts share. */
  get numShared() {
    return this.#at;
  }

  /** Goes on as far as every text has arrived. */
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
