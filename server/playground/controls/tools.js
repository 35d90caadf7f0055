import { TextChoice } from "./text_choice.js";

const LABEL = "Tools, a JSON list of functions";
const EXAMPLE = `[{
 "name": "get_weather",
 "description": "Returns the weather in a city.",
 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
}]`;

const USES = {
  none: ["None", "", "", () => ({})],
  auto: ["The model decides", LABEL, EXAMPLE, (text) => ({ tools: parse(text) })],
  required: ["Every answer is a call", LABEL, EXAMPLE, (text) => ({ tools: parse(text), tool_choice: "required" })],
};

/** Makes the control of the tools that answers in a chat may call. */
export const toolUse = () => new TextChoice("tools", "Tools in chats", USES, ({ tools, tool_choice: choice }) =>
  [choice ?? (tools ? "auto" : "none"), tools && JSON.stringify(tools, null, 1)]);

/** Reads tools in OpenAI's form, or functions alone. Throws SyntaxError or TypeError, with a line for the user. */
function parse(text) {
  const tools = [JSON.parse(text)].flat().map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
  const nameless = tools.findIndex((tool) => typeof tool.function?.name !== "string");
  if (nameless >= 0) throw new TypeError(`Tool ${nameless + 1} has no name.`);
  return tools;
}
