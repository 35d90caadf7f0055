import * as map from "../inside/experts.js";
import * as card from "./token_card.js";

/**
 * What all texts share: the token's card, the map, the model's shape, the layer whose experts colour the tokens. The page adds
 * `views`, `run`, `repaint` and `inspect`, the history `changed(kind)`, which stores a text or a chat soon.
 */
export const display = { card, map, numExperts: 0, numLayers: 0, layer: 0 };
