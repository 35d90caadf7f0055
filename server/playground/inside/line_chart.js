import { element } from "../dom.js";
import { plot } from "./sparkline.js";

/** Makes a chart of several lines over five minutes: {element, draw(columns)}, a column per name. */
export function lineChart(title, format, names) {
  const lines = plot(names.length);
  const values = names.map(() => element("b", {}, "–"));
  const highest = element("span");
  const draw = (columns) => {
    const top = lines.draw(columns);
    highest.textContent = top ? `highest ${format(top)}` : "";
    columns.forEach((column, i) => {
      const newest = column.findLast((value) => value !== null);
      values[i].textContent = newest === undefined ? "–" : format(newest);
    });
  };
  const keys = names.map((name, i) => element("li", {}, values[i], ` ${name}`));
  const axis = element("p", {}, element("span", {}, "5 min ago"), highest, element("span", {}, "now"));
  return { element: element("section", { className: "chart" }, element("h3", {}, title), element("ul", {}, ...keys), lines.element, axis), draw };
}
