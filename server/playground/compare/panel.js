import { byId } from "../dom.js";
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

  constructor(display) {
    this.#display = display;
    this.#add.addEventListener("click", () => this.#addColumn(Math.min(2 ** this.#columns.length, display.numExperts)));
  }

  get views() {
    return this.#columns.map((column) => column.view).filter(Boolean);
  }

  /** Makes the first columns, once the model's experts are known. */
  start() {
    for (const k of FIRST_KS.filter((k) => k <= this.#display.numExperts)) this.#addColumn(k);
    if (this.#columns.length < MIN_COLUMNS) this.#addColumn(1);
  }

  /** Returns a request per column, or null without a prompt. All have one seed: a random one unless one is set. */
  requests(model, sampling) {
    if (!this.#prompt.value) return null;
    const { experts_per_token: _, seed = randomSeed(), ...shared } = sampling;
    const fields = this.#columns.map((column) => column.fields);
    if (fields.includes(null)) return null;
    return fields.map((own) => completionRequest(model, this.#prompt.value, { ...shared, ...own, seed, details: true }));
  }

  /** Empties the columns; returns a view for each request. */
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

  /** Words about where the texts part. */
  get finding() {
    const { isFound, numShared } = this.#divergence;
    if (!isFound) return "all tokens are the same";
    return numShared ? `the first ${numShared} tokens are the same` : "they differ from the first token on";
  }

  focus() {
    if (!this.#prompt.value) this.#prompt.value = byId("prompt").value || "It was not in her power to";
    this.#prompt.focus();
  }

  #addColumn(k) {
    const column = new Column(this.#display, k, (which) => this.#remove(which));
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

/** A seed of 53 bits as text. */
const randomSeed = () => `${Math.floor(Math.random() * Number.MAX_SAFE_INTEGER)}`;
