// The official OpenAI client for JavaScript against InferHub. Prints one JSON object.
import OpenAI, { AuthenticationError, NotFoundError } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.env.HUB}/v1`, apiKey: process.env.KEY, maxRetries: 0 });
const ask = (text) => [{ role: "user", content: text }];
const tools = [
  {
    type: "function",
    function: {
      name: "say",
      parameters: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
    },
  },
];
const out = {};

const whole = await client.chat.completions.create({ model: "echo", messages: ask("héllo 🌍") });
out.whole = whole.choices[0].message.content;
out.usage = whole.usage.total_tokens === whole.usage.prompt_tokens + whole.usage.completion_tokens;
out.requestId = typeof whole._request_id === "string";

const stream = client.chat.completions.stream({
  model: "echo",
  messages: ask("one two three"),
  stream_options: { include_usage: true },
});
let pieces = "";
stream.on("content", (delta) => (pieces += delta));
const final = await stream.finalChatCompletion();
out.stream = [pieces, final.choices[0].message.content, final.choices[0].finish_reason, final.usage.total_tokens > 0];

const called = await client.chat.completions.create({ model: "echo", messages: ask("hi"), tools });
out.tool = called.choices[0].message.tool_calls[0].function;
const streamed = client.chat.completions.stream({ model: "echo", messages: ask("hi"), tools });
out.toolStream = (await streamed.finalChatCompletion()).choices[0].message.tool_calls[0].function.arguments;

const runner = client.chat.completions.runTools({
  model: "echo",
  messages: ask("pass it on"),
  tools: [
    {
      type: "function",
      function: {
        name: "say",
        parse: JSON.parse,
        function: ({ text }) => `said: ${text}`,
        parameters: tools[0].function.parameters,
      },
    },
  ],
});
out.loop = await runner.finalContent();

const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const parsed = await client.chat.completions.parse({
  model: "smollm2-135m",
  messages: ask("Name a city."),
  response_format: zodResponseFormat(City, "city"),
  max_tokens: 100,
  temperature: 0,
});
out.parsed = ["Paris", "Rome"].includes(parsed.choices[0].message.parsed.city);

const vectors = await client.embeddings.create({ model: "minilm-l6-v2", input: ["a", "b"] });
out.vectors = vectors.data.map((item) => item.embedding.length);

const response = await client.responses.create({ model: "echo", input: "as a response" });
out.response = [response.output_text, response.status];
const next = await client.responses.create({ model: "echo", input: "more", previous_response_id: response.id });
out.items = (await client.responses.inputItems.list(next.id)).data.length;
const events = [];
let text = "";
for await (const event of await client.responses.create({ model: "echo", input: "a b c", stream: true })) {
  events.push(event.type);
  if (event.type === "response.output_text.delta") text += event.delta;
}
out.events = [events[0], events.at(-1), text];

out.models = (await client.models.list()).data.some((model) => model.id === "echo");
const fails = async (call) => call.then(() => null, (error) => error);
const missing = await fails(client.chat.completions.create({ model: "nobody", messages: ask("x") }));
out.missing = [missing instanceof NotFoundError, missing.code];
const stranger = new OpenAI({ baseURL: `${process.env.HUB}/v1`, apiKey: "ih_wrong", maxRetries: 0 });
out.stranger = (await fails(stranger.models.list())) instanceof AuthenticationError;

const broken = await client.chat.completions.create({ model: "breaks-late", messages: ask("a b c d"), stream: true });
out.broken = await fails((async () => { for await (const _ of broken); })()).then((error) => error !== null);

console.log(JSON.stringify(out));
