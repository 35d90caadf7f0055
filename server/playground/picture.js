import { byId, element, save } from "./dom.js";

const SCALE = 2; // pixels of the picture per pixel of the page
const MARGIN = 24;

/** Saves a part of the page as a PNG: boxes and text without the controls, and lines of text below them. */
export function savePicture(root, captions) {
  const lines = captions.map((text) => element("p.caption", text));
  root.append(...lines);
  root.classList.add("drawn");
  const { left, top, width, height } = root.getBoundingClientRect();
  const canvas = element("canvas", { width: SCALE * (width + 2 * MARGIN), height: SCALE * (height + 2 * MARGIN) });
  const pen = canvas.getContext("2d");
  pen.scale(SCALE, SCALE);
  pen.fillStyle = getComputedStyle(byId("write")).backgroundColor;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.translate(MARGIN - left, MARGIN - top);
  draw(pen, root);
  root.classList.remove("drawn");
  for (const line of lines) line.remove();
  canvas.toBlob((blob) => save(blob, "smoe.png"));
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

/** Draws each word where the browser has placed it. */
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
