// Vercel's AI SDK against InferHub, through three of its providers. Prints one JSON object.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.HUB}/v1`;
const apiKey = process.env.KEY;
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "inferhub", baseURL, apiKey, includeUsage: true });
const anthropic = createAnthropic({ baseURL, apiKey });
const models = {
  responses: openai("echo"),
  chat: openai.chat("echo"),
  compatible: compatible("echo"),
  anthropic: anthropic("echo"),
};
const say = tool({
  inputSchema: z.object({ text: z.string() }),
  execute: async ({ text }) => `said: ${text}`,
});
const out = {};

for (const [name, model] of Object.entries(models)) {
  const whole = await generateText({ model, prompt: "one two", maxRetries: 0 });
  const stream = streamText({ model, prompt: "three four", maxRetries: 0 });
  let pieces = "";
  for await (const delta of stream.textStream) pieces += delta;
  const usage = await stream.usage;
  const loop = await generateText({ model, prompt: "pass on", tools: { say }, stopWhen: stepCountIs(3), maxRetries: 0 });
  out[name] = {
    whole: [whole.text, whole.finishReason],
    stream: [pieces, await stream.finishReason, usage.outputTokens > 0],
    loop: [loop.steps.length, loop.text],
  };
}

const { object } = await generateObject({
  model: openai.chat("smollm2-135m"),
  schema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  prompt: "Name a city.",
  maxOutputTokens: 100,
  temperature: 0,
});
out.object = ["Paris", "Rome"].includes(object.city);
const { embeddings } = await embedMany({ model: openai.embedding("minilm-l6-v2"), values: ["a", "b"] });
out.vectors = embeddings.map((vector) => vector.length);

let failure = null;
const broken = streamText({ model: openai.chat("breaks-late"), prompt: "a b c d", maxRetries: 0, onError: ({ error }) => { failure = error; } });
try { for await (const _ of broken.textStream); } catch (error) { failure = error; }
out.broken = failure !== null;

console.log(JSON.stringify(out));
