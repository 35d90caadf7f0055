const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 22;

/** Makes a small line chart: {element, draw(values)}. Values that are null count as 0; the largest has full height. */
export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "sparkline");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  svg.append(line);
  return { element: svg, draw: (values) => line.setAttribute("points", pointsOf(values)) };
}

function pointsOf(values) {
  const highest = Math.max(...values, 0) || 1;
  return values.map((value, i) => `${(WIDTH * i) / (values.length - 1)},${HEIGHT - 1 - ((HEIGHT - 2) * (value ?? 0)) / highest}`).join(" ");
}
