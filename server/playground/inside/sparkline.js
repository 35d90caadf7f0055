const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 22;

/** Makes a small line chart: {element, draw(values)}. Values that are null count as 0; the largest has full height. */
export function sparkline() {
  const { element, draw } = plot(1);
  element.classList.add("sparkline");
  return { element, draw: (values) => draw([values.map((value) => value ?? 0)]) };
}

/** Makes a drawing of several lines, {element, draw(columns)}, over all values but null; `draw` returns the largest. */
export function plot(numLines) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const lines = Array.from({ length: numLines }, () => svg.appendChild(document.createElementNS(SVG, "polyline")));
  const draw = (columns) => {
    const highest = Math.max(...columns.flat(), 0);
    columns.forEach((values, i) => lines[i].setAttribute("points", pointsOf(values, highest || 1)));
    return highest;
  };
  return { element: svg, draw };
}

function pointsOf(values, highest) {
  const point = (value, i) => (value === null ? [] : `${(WIDTH * i) / (values.length - 1)},${HEIGHT - 1 - ((HEIGHT - 2) * value) / highest}`);
  const points = values.flatMap(point);
  return (points.length === 1 ? [...points, ...points] : points).join(" "); // one is a dot
}
