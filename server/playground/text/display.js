import * as map from "../inside/experts.js";
import * as card from "./token_card.js";

/** What all texts share. The page adds `views`, `run`, `repaint` and `inspect`, the history `changed(kind)`, which stores them soon. */
export const display = { card, map, numExperts: 0, numLayers: 0, layer: 0 };
