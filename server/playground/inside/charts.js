import { drawn, element } from "../dom.js";

const WIDTH = 120;
const HEIGHT = 22;

/** Makes a chart of several lines over time: {element, draw(columns)}, a column per name; null is a gap. */
export function lineChart(title, format, names) {
  const lines = names.map(() => drawn("polyline", {}));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
  const values = names.map(() => element("b", "–"));
  const highest = element("span");
  const keys = names.map((name, i) => element("li", values[i], ` ${name}`));
  const axis = element("p", element("span", "5 min ago"), highest, element("span", "now"));
  return {
    element: element("section.chart", element("h3", title), element("ul", keys), svg, axis),
    draw: (columns) => {
      const top = Math.max(...columns.flat(), 0);
      highest.textContent = top ? `highest ${format(top)}` : "";
      columns.forEach((column, i) => {
        lines[i].setAttribute("points", pointsOf(column, top || 1));
        const newest = column.findLast((value) => value !== null);
        values[i].textContent = newest === undefined ? "–" : format(newest);
      });
    },
  };
}

function pointsOf(values, highest) {
  const point = (value, i) => (value === null ? [] : `${(WIDTH * i) / (values.length - 1)},${HEIGHT - 1 - ((HEIGHT - 2) * value) / highest}`);
  const points = values.flatMap(point);
  return (points.length === 1 ? [...points, ...points] : points).join(" "); // one is a dot
}
