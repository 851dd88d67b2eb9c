// The official Anthropic client for JavaScript against InferHub. Prints one JSON object.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.HUB, apiKey: process.env.KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "héllo 🌍" }];
const out = {};

const whole = await client.messages.create({ model: "echo", max_tokens: 50, messages });
out.whole = [whole.content[0].text, whole.stop_reason, whole.usage.input_tokens > 0];

const stream = client.messages.stream({ model: "echo", max_tokens: 50, messages });
let pieces = "";
stream.on("text", (delta) => (pieces += delta));
const final = await stream.finalMessage();
out.stream = [pieces, final.stop_reason, final.usage.output_tokens > 0];

const tools = [{ name: "say", input_schema: { type: "object", properties: { text: { type: "string" } } } }];
const called = client.messages.stream({ model: "echo", max_tokens: 50, messages, tools });
const block = (await called.finalMessage()).content.find((item) => item.type === "tool_use");
out.tool = [block.name, block.input];

out.count = (await client.messages.countTokens({ model: "echo", messages })).input_tokens > 0;

const fails = async (call) => call.then(() => null, (error) => error);
const missing = await fails(client.messages.create({ model: "nobody", max_tokens: 5, messages }));
out.missing = [missing instanceof Anthropic.NotFoundError, missing.error?.type, missing.error?.error?.type];
const bad = await fails(client.messages.create({ model: "echo", max_tokens: 5, messages: [] }));
out.bad = [bad.status, bad.error?.error?.type];
const broken = client.messages.stream({ model: "breaks-late", max_tokens: 50, messages });
out.broken = (await fails(broken.finalMessage())) !== null;

console.log(JSON.stringify(out));
