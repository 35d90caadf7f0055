import { copyButton, element, nodesOf } from "../dom.js";

const MARKS = /^(#{1,6} |[ \t]*([-*+]|\d+[.)]) |> |```|[ \t]*(\|[ \t]*)?:?-+:?[ \t]*\|)|`[^`\n]+`|\*\*[^*\n]+\*\*|\]\(https?:/m;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^[\]\n]+)\]\((https?:\/\/(?:[^\s()]|\([^\s()]*\))+)\)/g;
const ITEM = /^(\s*)([-*+]|\d+[.)]) +(.*)$/;
const MAX_DEPTH = 8; // of quotes in quotes
const MAX_COLUMNS = 64; // of a table: a few lines could ask for millions of cells
const INNER = "(?:\\\\.|(?!\\k<quote>)[^\\\\\\n])";
// The limit keeps open quotes from quadratic time; a longer string may stay open up to the end of its line.
const STRINGS = `"""[^]*?(?:"""|$)|(?<quote>["'\`])(?:${INNER}{0,999}\\k<quote>|${INNER}{1000,}\\k<quote>?)`;
const WORDS = "and as async await break case catch class const continue def default elif else enum except export extends false finally fn for from " +
  "func function if import in interface let match new nil none not null or pass pub public raise return select self static struct switch this " +
  "throw true try type use var void where while with yield";

export const hasMarkdown = (text) => MARKS.test(text);
export const hasCode = (text) => /^```/m.test(text);

/** Returns Markdown as nodes: headings, lists, quotes, tables, code, emphasis; all else is text. */
export function markdown(text, depth = 0) {
  const lines = text.trim().split("\n");
  const nodes = [];
  while (lines.length) {
    const block = readCode(lines) ?? readHeading(lines) ?? readTable(lines) ?? readList(lines) ?? readQuote(lines, depth) ?? readParagraph(lines);
    if (block) nodes.push(block);
  }
  return nodes;
}

function take(lines, test) {
  const end = lines.findIndex((line, i) => !test(line, i));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function readCode(lines) {
  const fence = lines[0].match(/^\s*```\s*([\w+#-]*)/);
  if (!fence) return null;
  lines.shift();
  const code = take(lines, (line) => !line.trimStart().startsWith("```")).join("\n");
  lines.shift();
  return codeBox(fence[1] || "code", code, fence[1]);
}

export const codeBox = (title, code, language) => element("div.code",
  element("div.code-head", element("span", title), copyButton(() => code)),
  element("pre", { tabIndex: 0 }, element("code", language ? coloured(code, language) : code)));

function readHeading(lines) {
  const heading = lines[0].match(/^(#{1,6}) +(.*)$/);
  if (!heading) return null;
  lines.shift();
  return element(heading[1].length < 3 ? "h3" : "h4", inline(heading[2]));
}

const beginsBlock = (line) => /^(#{1,6} |>|\s*```)/.test(line) || ITEM.test(line);

const cellsOf = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

/** Returns whether a line is the head of a table: dashes follow below its cells. */
function isTable([head, dashes]) {
  if (!head?.includes("|") || !dashes?.includes("|")) return false;
  const cells = cellsOf(dashes);
  return cells.length <= MAX_COLUMNS && cells.length === cellsOf(head).length && cells.every((cell) => /^:?-+:?$/.test(cell));
}

/** Reads a table; rows have as many cells as the head. */
function readTable(lines) {
  if (!isTable(lines)) return null;
  const [head, dashes, ...rows] = take(lines, (line, i) => i < 2 || (line.includes("|") && !beginsBlock(line))).map(cellsOf);
  const aligns = dashes.map((cell) => (/:$/.test(cell) ? (cell.startsWith(":") ? "center" : "right") : "left"));
  const row = (tag, cells) => element("tr", aligns.map((align, i) => element(tag, { "--align": align }, inline(cells[i] ?? ""))));
  return element("div.table", { tabIndex: 0 },
    element("table", element("thead", row("th", head)), element("tbody", rows.map((cells) => row("td", cells)))));
}

function readList(lines, depth = 0) {
  const first = lines[0]?.match(ITEM);
  if (!first || first[1].length < depth) return null;
  const isOrdered = /\d/.test(first[2]);
  const list = element(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(first[2], 10) } : {});
  for (let item = first; item && item[1].length === first[1].length && /\d/.test(item[2]) === isOrdered; item = lines[0]?.match(ITEM)) {
    lines.shift();
    const more = take(lines, (line) => line.trim() && /^\s/.test(line) && !ITEM.test(line)).map((line) => line.trim());
    const box = element("li", inline([item[3], ...more].join(" ")));
    list.append(box);
    const inner = readList(lines, first[1].length + 1);
    if (inner) box.append(inner);
    if (lines[0]?.trim() === "" && ITEM.test(lines[1] ?? "")) lines.shift(); // items with blank lines between them
  }
  return list;
}

function readQuote(lines, depth) {
  const quoted = depth < MAX_DEPTH ? take(lines, (line) => line.startsWith(">")) : [];
  return quoted.length ? element("blockquote", markdown(quoted.map((line) => line.replace(/^> ?/, "")).join("\n"), depth + 1)) : null;
}

function readParagraph(lines) {
  const isPlain = (line, i) => line.trim() && !isTable(lines.slice(i, i + 2)) && !beginsBlock(line);
  const plain = take(lines, isPlain);
  if (!plain.length) plain.push(lines.shift()); // a blank line, or a mark that begins nothing
  const text = plain.join("\n").trim();
  return text ? element("p", inline(text)) : null;
}

const inline = (text) => nodesOf(text, INLINE, inlineNode);

function inlineNode([, code, strong, emphasis, label, href]) {
  if (code) return element("code", code);
  if (strong) return element("strong", strong);
  if (emphasis) return element("em", emphasis);
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, label);
}

/** Returns code as nodes, in the colours of common languages. */
function coloured(code, language) {
  if (/^(te?xt|plain|md|markdown|http|diff)/i.test(language)) return [code];
  const comment = /^(py|(ba|z)?sh|ya?ml|toml|r$|ruby|perl|make|docker)/i.test(language) ? "#.*" : /sql$/i.test(language) ? "--.*" : "//.*|/\\*[^]*?(?:\\*/|$)";
  const words = `\\b(?<word>${WORDS.replaceAll(" ", "|")})\\b`;
  const pattern = new RegExp(`(?<comment>${comment})|(?<string>${STRINGS})|(?<number>\\b\\d[\\w.]*)|${words}`, "gi");
  return nodesOf(code, pattern, ({ 0: text, groups }) => element(`span.${Object.keys(groups).find((kind) => groups[kind])}`, text));
}
