import { byId, element, save } from "./dom.js";

const SCALE = 2; // pixels per pixel of the page; fewer if a side would be too long
const MAX_SIDE = 16_000; // of a canvas in every browser
const MARGIN = 24;

/** Saves a part of the page as a PNG, with lines of text below. */
export function savePicture(root, captions, onFailure) {
  const lines = captions.map((text) => element("p.caption", text));
  root.append(...lines);
  root.classList.add("drawn");
  try {
    paint(root).toBlob((blob) => (blob ? save(blob, "smoe.png") : onFailure()));
  } finally {
    root.classList.remove("drawn");
    for (const line of lines) line.remove();
  }
}

function paint(root) {
  const { left, top, width, height } = root.getBoundingClientRect();
  const sides = [width, height].map((side) => side + 2 * MARGIN);
  const scale = Math.min(SCALE, MAX_SIDE / Math.max(...sides));
  const canvas = element("canvas", { width: scale * sides[0], height: scale * sides[1] });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = getComputedStyle(byId("write")).backgroundColor;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.translate(MARGIN - left, MARGIN - top);
  draw(pen, root);
  return canvas;
}

function draw(pen, node) {
  const style = getComputedStyle(node);
  for (const box of node.getClientRects()) drawBox(pen, box, style);
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) drawWords(pen, child, style);
    else draw(pen, child);
  }
}

function drawBox(pen, { left, top, width, height }, { backgroundColor, borderTopLeftRadius, borderLeftWidth, borderLeftColor }) {
  pen.beginPath();
  pen.roundRect(left, top, width, height, parseFloat(borderTopLeftRadius));
  pen.fillStyle = backgroundColor;
  pen.fill();
  pen.strokeStyle = borderLeftColor;
  if (borderLeftWidth !== "0px") pen.stroke();
}

function drawWords(pen, node, { fontStyle, fontWeight, fontSize, fontFamily, color }) {
  pen.font = `${fontStyle} ${fontWeight} ${fontSize} ${fontFamily}`;
  pen.fillStyle = color;
  const { fontBoundingBoxAscent: ascent } = pen.measureText("");
  const range = document.createRange();
  for (const { 0: word, index } of node.data.matchAll(/\S+/g)) {
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    const [place] = range.getClientRects();
    if (place) pen.fillText(word, place.left, place.top + ascent);
  }
}
