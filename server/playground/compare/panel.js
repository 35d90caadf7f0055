import { byId, on } from "../dom.js";
import { completionRequest } from "../text/request.js";
import { Column } from "./column.js";
import { Divergence } from "./divergence.js";

const MAX_COLUMNS = 4;
const MIN_COLUMNS = 2;
const FIRST_KS = [1, 2, 4];

/** Panel of a comparison: one prompt and one seed, continued side by side with different numbers of experts. */
export class ComparePanel {
  name = "Compare";
  repeatLabel = "";
  canRepeat = false;
  #display;
  #prompt = byId("compare-prompt");
  #list = byId("columns");
  #add = byId("add-column");
  #columns = [];
  #divergence = null;
  #linked; // settings of the columns of a link

  constructor(display) {
    this.#display = display;
    on(this.#add, "click", () => this.#addColumn([Math.min(2 ** this.#columns.length, display.numExperts)]));
  }

  get views() {
    return this.#columns.map((column) => column.view).filter(Boolean);
  }

  /** Makes the first columns, or those of a link, once the model's experts are known. */
  start() {
    const first = (this.#linked ?? FIRST_KS.filter((k) => k <= this.#display.numExperts).map((k) => [k])).slice(0, MAX_COLUMNS);
    for (const column of this.#columns.splice(0)) column.element.remove();
    for (const settings of first) this.#addColumn(settings);
    while (this.#columns.length < MIN_COLUMNS) this.#addColumn([1]);
  }

  get link() {
    return { prompt: this.#prompt.value, columns: this.#columns.map(({ settings }) => settings) };
  }

  open({ prompt, columns }) {
    this.#prompt.value = prompt;
    this.#linked = columns;
    if (this.#display.numExperts) this.start();
  }

  /** Returns a request per column, or null without a prompt. All have one seed: a random one unless one is set. */
  requests(model, sampling) {
    if (!this.#prompt.value) return null;
    const { experts_per_token: _, seed = randomSeed(), ...shared } = sampling;
    const fields = this.#columns.map((column) => column.fields);
    if (fields.includes(null)) return null;
    return fields.map((own) => completionRequest(model, this.#prompt.value, { ...shared, ...own, seed, details: true }));
  }

  begin() {
    for (const column of this.#columns) column.begin();
    this.#divergence = new Divergence(this.views);
    this.#add.disabled = true;
    return this.#columns.map((column) => ({
      add: (tokens, routing, meter) => {
        column.add(tokens, routing, meter);
        this.#divergence.update();
      },
    }));
  }

  end() {
    this.#showButtons();
  }

  get finding() {
    const { isFound, numShared } = this.#divergence;
    if (!isFound) return "all tokens are the same";
    return numShared ? `the first ${numShared} tokens are the same` : "they differ from the first token on";
  }

  focus() {
    if (!this.#prompt.value) this.#prompt.value = byId("prompt").value || "It was not in her power to";
    this.#prompt.focus();
  }

  #addColumn(settings) {
    const column = new Column(this.#display, settings, (which) => this.#remove(which));
    this.#columns.push(column);
    this.#list.append(column.element);
    this.#showButtons();
  }

  #remove(column) {
    this.#columns.splice(this.#columns.indexOf(column), 1);
    column.element.remove();
    this.#showButtons();
  }

  #showButtons() {
    this.#add.disabled = this.#columns.length === MAX_COLUMNS;
    this.#list.style.setProperty("--columns", this.#columns.length);
    for (const { element: box } of this.#columns) box.querySelector(".remove").hidden = this.#columns.length === MIN_COLUMNS;
  }
}

const randomSeed = () => `${Math.floor(Math.random() * Number.MAX_SAFE_INTEGER)}`;
