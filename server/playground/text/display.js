import * as map from "../inside/experts.js";
import * as card from "./token_card.js";

/** What all texts share; the page and the history add functions. */
export const display = { card, map, numExperts: 0, numLayers: 0, layer: 0 };
