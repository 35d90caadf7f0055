import { key } from "../api.js";
import { withSeed } from "./request.js";

// A request as a curl command and as a Python program, with the key of SMOE_API_KEY.

const OPENAI_FIELDS = [
  "model", "prompt", "messages", "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stop",
  "stream", "logprobs", "top_logprobs", "tools", "tool_choice",
];

export function asCurl({ path, fields, seed }) {
  return [
    `curl -N ${shellQuote(new URL(path, document.baseURI).href)}`,
    "-H 'Content-Type: application/json'",
    ...(key() ? ['-H "Authorization: Bearer $SMOE_API_KEY"'] : []),
    `-d ${shellQuote(withSeed(publicFields(fields), seed))}`,
  ].join(" \\\n  ");
}

export function asPython({ path, fields, seed }) {
  const isChat = path.includes("chat");
  const entries = Object.entries(publicFields(fields));
  const own = entries.filter(([name]) => !OPENAI_FIELDS.includes(name));
  const lines = entries.filter((entry) => !own.includes(entry)).map(([name, value]) => `    ${name}=${pythonLiteral(value)},\n`);
  if (seed !== undefined) lines.push(`    seed=${seed},\n`);
  if (own.length) lines.push(`    extra_body=${pythonLiteral(Object.fromEntries(own))},\n`);
  return `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${pythonLiteral(new URL("v1", document.baseURI).href)}, api_key=${key() ? 'os.environ["SMOE_API_KEY"]' : '"none"'})
stream = client.${isChat ? "chat.completions" : "completions"}.create(
${lines.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].${isChat ? 'delta.content or ""' : "text"}, end="", flush=True)
`;
}

/** Leaves out what only this page needs. */
const publicFields = ({ stream_options: _, return_token_ids: __, ...fields }) => fields;

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const WORDS = new Map([[true, "True"], [false, "False"], [null, "None"]]);

function pythonLiteral(value) {
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value !== "object" || value === null) return WORDS.get(value) ?? JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonLiteral(item)}`).join(", ")}}`;
}
