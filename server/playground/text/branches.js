import { button, element } from "../dom.js";

/** Fills a box with "‹ 2/3 ›", whose arrows call `onStep` with -1 or 1. It is hidden if there is nothing to step to. */
export function branchArrows(box, place, count, noun, onStep) {
  box.hidden = count === 0 || (count === 1 && place === 0);
  const arrow = (text, by, name) => button(text, () => onStep(by), { name, disabled: place + by < 0 || place + by >= count });
  const words = place < count ? `${place + 1}/${count}` : `new/${count}`;
  box.replaceChildren(...(box.hidden ? [] : [arrow("‹", -1, `Previous ${noun}`), element("span", words), arrow("›", 1, `Next ${noun}`)]));
}
