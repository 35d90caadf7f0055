// The openai package of npm against the running server at SMOE_URL.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const model = "smoe-demo";
const client = new OpenAI({ baseURL: `${process.env.SMOE_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const counting = [{ role: "user", content: "Count from 3 to 7." }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { day: { enum: ["today", "tomorrow"] } },
      required: ["day"],
      additionalProperties: false,
    },
  },
};

test("a completion's stream concatenates to the whole", async () => {
  const ask = { model, prompt: "It was a truth", max_tokens: 24, seed: 7 };
  const whole = await client.completions.create(ask);
  let text = "";
  let usage = null;
  for await (const chunk of await client.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.text ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].text);
  assert.deepEqual(usage, whole.usage);
});

test("chat answers, and its stream helper gathers the same message", async () => {
  const ask = { model, messages: counting, temperature: 0, max_tokens: 30 };
  const whole = await client.chat.completions.create(ask);
  assert.equal(whole.choices[0].message.content, "3 4 5 6 7");
  assert.equal(whole.choices[0].finish_reason, "stop");
  const gathered = await client.chat.completions.stream(ask).finalChatCompletion();
  assert.equal(gathered.choices[0].message.content, whole.choices[0].message.content);
});

test("log probabilities come beside the tokens", async () => {
  const reply = await client.chat.completions.create({
    model, messages: counting, temperature: 0, max_tokens: 3, logprobs: true, top_logprobs: 2,
  });
  const entries = reply.choices[0].logprobs.content;
  assert.equal(entries.length, reply.usage.completion_tokens);
  for (const entry of entries) {
    assert.equal(entry.top_logprobs.length, 2);
    assert.equal(entry.top_logprobs[0].logprob, entry.logprob);
  }
});

test("a schema is obeyed", async () => {
  const schema = {
    type: "object",
    properties: { kind: { enum: ["poem", "law"] }, long: { type: "boolean" } },
    required: ["kind", "long"],
    additionalProperties: false,
  };
  const reply = await client.chat.completions.create({
    model, messages: counting, max_tokens: 40, seed: 1,
    response_format: { type: "json_schema", json_schema: { name: "text", schema, strict: true } },
  });
  const value = JSON.parse(reply.choices[0].message.content);
  assert.ok(["poem", "law"].includes(value.kind));
  assert.equal(typeof value.long, "boolean");
});

test("a required tool is called, streamed and not", async () => {
  const ask = { model, messages: counting, seed: 3, tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 };
  const whole = await client.chat.completions.create(ask);
  assert.equal(whole.choices[0].finish_reason, "tool_calls");
  const [call] = whole.choices[0].message.tool_calls;
  assert.equal(call.function.name, "weather");
  assert.ok(["today", "tomorrow"].includes(JSON.parse(call.function.arguments).day));
  const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.tool_calls[0].function.name, "weather");
  assert.deepEqual(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
});

test("errors are the client's own classes", async () => {
  await assert.rejects(client.completions.create({ model: "gpt-4", prompt: "x" }), OpenAI.NotFoundError);
  await assert.rejects(client.completions.create({ model, prompt: "x", temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    assert.ok(error.requestID);
    return true;
  });
});

test("models are listed", async () => {
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.deepEqual(ids, [model]);
});

test("an abandoned stream leaves the client usable", async () => {
  const stream = await client.completions.create({ model, prompt: "And", max_tokens: 500, ignore_eos: true, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    break;
  }
  assert.ok((await client.completions.create({ model, prompt: "And", max_tokens: 1 })).choices[0].text.length > 0);
});
