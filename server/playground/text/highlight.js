import { element, nodesOf } from "../dom.js";

const INNER = "(?:\\\\.|(?!\\k<quote>)[^\\\\\\n])";
// The limit keeps open quotes from quadratic time; a longer string may stay open up to the end of its line.
const STRINGS = `"""[^]*?(?:"""|$)|(?<quote>["'\`])(?:${INNER}{0,999}\\k<quote>|${INNER}{1000,}\\k<quote>?)`;
const WORDS = "and as async await break case catch class const continue def default elif else enum except export extends false finally fn for from " +
  "func function if import in interface let match new nil none not null or pass pub public raise return select self static struct switch this " +
  "throw true try type use var void where while with yield";

/** Returns code as nodes: comments, strings, numbers and the keywords of common languages have a colour. */
export function coloured(code, language) {
  if (/^(te?xt|plain|md|markdown|http|diff)/i.test(language)) return [code];
  const comment = /^(py|(ba|z)?sh|ya?ml|toml|r$|ruby|perl|make|docker)/i.test(language) ? "#.*" : /sql$/i.test(language) ? "--.*" : "//.*|/\\*[^]*?(?:\\*/|$)";
  const words = `\\b(?<word>${WORDS.replaceAll(" ", "|")})\\b`;
  const pattern = new RegExp(`(?<comment>${comment})|(?<string>${STRINGS})|(?<number>\\b\\d[\\w.]*)|${words}`, "gi");
  return nodesOf(code, pattern, ({ 0: text, groups }) => element(`span.${Object.keys(groups).find((kind) => groups[kind])}`, text));
}
