// Vercel's ai package with its OpenAI-compatible provider against the running server at SMOE_URL.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "smoe",
  baseURL: `${process.env.SMOE_URL}/v1`,
  apiKey: "unused",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("smoe-demo");
const prompt = "Count from 3 to 7.";
// The demo model would continue with more calls: limit it to one.
const once = { toolChoice: "required", providerOptions: { smoe: { parallel_tool_calls: false } } };
const settings = { model, prompt, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };

test("text is generated, with its usage", async () => {
  const { text, usage, finishReason } = await generateText(settings);
  assert.equal(text, "3 4 5 6 7");
  assert.equal(finishReason, "stop");
  assert.ok(usage.outputTokens > 0);
});

test("text is streamed, with its usage", async () => {
  const result = streamText(settings);
  let text = "";
  for await (const part of result.textStream) text += part;
  assert.equal(text, "3 4 5 6 7");
  assert.ok((await result.usage).inputTokens > 0);
});

test("an object of a schema is generated", async () => {
  const schema = z.object({ kind: z.enum(["poem", "law"]), long: z.boolean() });
  const { object } = await generateObject({ ...settings, schema });
  assert.ok(["poem", "law"].includes(object.kind));
});

test("a required tool is called", async () => {
  const weather = tool({ description: "The weather", inputSchema: z.object({ day: z.enum(["today", "tomorrow"]) }) });
  const { toolCalls } = await generateText({ ...settings, tools: { weather }, ...once });
  assert.equal(toolCalls[0].toolName, "weather");
  assert.ok(["today", "tomorrow"].includes(toolCalls[0].input.day));
});

test("a required tool is called in a stream", async () => {
  const weather = tool({ description: "The weather", inputSchema: z.object({ day: z.enum(["today", "tomorrow"]) }) });
  const result = streamText({ ...settings, tools: { weather }, ...once });
  const calls = await result.toolCalls;
  assert.equal(calls[0].toolName, "weather");
  assert.equal(await result.finishReason, "tool-calls");
});

test("an error names the wrong parameter", async () => {
  await assert.rejects(generateText({ ...settings, temperature: 9 }), (error) => {
    assert.equal(error.statusCode, 400);
    assert.match(error.message, /temperature/);
    return true;
  });
});
