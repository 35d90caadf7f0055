import { drawn, element } from "../dom.js";

const WIDTH = 120;
const HEIGHT = 22;

/** Makes a small chart of one line: {element, draw(values)}; null counts as 0. */
export function sparkline() {
  const { svg, draw } = plot(1);
  svg.classList.add("sparkline");
  return { element: svg, draw: (values) => draw([values.map((value) => value ?? 0)]) };
}

/** Makes a chart of several lines over five minutes: {element, draw(columns)}, a column per name. */
export function lineChart(title, format, names) {
  const { svg, draw } = plot(names.length);
  const values = names.map(() => element("b", "–"));
  const highest = element("span");
  const keys = names.map((name, i) => element("li", values[i], ` ${name}`));
  const axis = element("p", element("span", "5 min ago"), highest, element("span", "now"));
  return {
    element: element("section.chart", element("h3", title), element("ul", ...keys), svg, axis),
    draw: (columns) => {
      const top = draw(columns);
      highest.textContent = top ? `highest ${format(top)}` : "";
      columns.forEach((column, i) => {
        const newest = column.findLast((value) => value !== null);
        values[i].textContent = newest === undefined ? "–" : format(newest);
      });
    },
  };
}

/** Makes a drawing of lines, {svg, draw(columns)}, over all values but null; `draw` returns the largest. */
function plot(numLines) {
  const lines = Array.from({ length: numLines }, () => drawn("polyline", {}));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
  const draw = (columns) => {
    const highest = Math.max(...columns.flat(), 0);
    columns.forEach((values, i) => lines[i].setAttribute("points", pointsOf(values, highest || 1)));
    return highest;
  };
  return { svg, draw };
}

function pointsOf(values, highest) {
  const point = (value, i) => (value === null ? [] : `${(WIDTH * i) / (values.length - 1)},${HEIGHT - 1 - ((HEIGHT - 2) * value) / highest}`);
  const points = values.flatMap(point);
  return (points.length === 1 ? [...points, ...points] : points).join(" "); // one is a dot
}
