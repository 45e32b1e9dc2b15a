// Checks a server with the npm package `ai`: ai_client.mjs URL MODEL [GROUP...] (groups as in openai_client.py).

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, Output, generateText, isStepCount, streamText, tool } from 'ai';
import { z } from 'zod';

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, name, ...wanted] = process.argv.slice(2);
const key = process.env.FLOW_TEST_KEY ?? 'none';
const provider = (apiKey) =>
  createOpenAICompatible({ name: 'flow', baseURL: `${url}/v1`, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const flow = provider(key);
const ask = { model: flow(name), prompt: 'Tell me about the sea.', maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
const pet = z.object({ kind: z.enum(['cat', 'dog']), age: z.number().int().min(0).max(99) });
// The whole context, so that an answer with bounds comes to its end.
const shaped = { ...ask, maxOutputTokens: undefined };

// A stream's failures come as parts of it.
const joined = async (result) => {
  const parts = [];
  for await (const part of result.fullStream) {
    if (part.type === 'error') throw part.error;
    parts.push(part);
  }
  return { parts, text: parts.filter((p) => p.type === 'text-delta').map((p) => p.text).join('') };
};

const refused = async (status, says, call) => {
  const error = await Promise.resolve().then(call).then((seen) => assert.fail(`not refused: ${JSON.stringify(seen)}`), (e) => e);
  assert(APICallError.isInstance(error), `expected APICallError, seen ${error}`);
  assert.equal(error.statusCode, status, `${error}`);
  assert(error.message.includes(says), `${says} is not in ${error.message}`);
  assert.equal(JSON.parse(error.responseBody).error.message, error.message);
};

const quiet = async () => {
  for (const until = Date.now() + 10_000; ; await new Promise((r) => setTimeout(r, 50))) {
    const running = /flow_sequences_running [1-9]\d*/.exec(await (await fetch(`${url}/metrics`)).text());
    if (!running) return;
    assert(Date.now() < until, `after 10 s still ${running}`);
  }
};

const checks = {
  chat: {
    async generateText() {
      const answer = await generateText(ask);
      assert(answer.text);
      assert.equal(answer.finishReason, 'length');
      assert.equal(answer.usage.outputTokens, 24);
      assert.equal(answer.usage.totalTokens, answer.usage.inputTokens + 24);
      assert.equal(answer.response.modelId, name);
      const word = answer.text.slice(8, 12);
      const stopped = await generateText({ ...ask, stopSequences: [word] });
      assert.deepEqual([stopped.text, stopped.finishReason], [answer.text.slice(0, answer.text.indexOf(word)), 'stop']);
      const seeded = () => generateText({ ...ask, temperature: 1, seed: 7 });
      assert.equal((await seeded()).text, (await seeded()).text);
    },
    async streamText() {
      const result = streamText(ask);
      const { parts, text } = await joined(result);
      assert.equal(text, (await generateText(ask)).text);
      assert(parts.filter((p) => p.type === 'text-delta').length > 10, 'one part for all');
      assert.equal(await result.finishReason, 'length');
      assert.equal((await result.usage).outputTokens, 24);
    },
    async object() {
      const output = Output.object({ schema: pet, name: 'pet' });
      const whole = (await generateText({ ...shaped, output })).output;
      pet.parse(whole);
      const result = streamText({ ...shaped, output });
      await joined(result);
      assert.deepEqual(await result.output, whole);
    },
    async tools() {
      const seen = [];
      const register = tool({ description: 'Register a pet.', inputSchema: pet, execute: async (input) => seen.push(input) });
      const tools = { register };
      const calling = { ...shaped, tools, toolChoice: 'required', stopWhen: isStepCount(1) };
      const answer = await generateText(calling);
      assert.deepEqual([answer.finishReason, answer.toolCalls.length, answer.text], ['tool-calls', 1, '']);
      pet.parse(answer.toolCalls[0].input);
      const { parts } = await joined(streamText({ ...calling, toolChoice: { type: 'tool', toolName: 'register' } }));
      const call = parts.find((p) => p.type === 'tool-call');
      assert.deepEqual([call?.toolName, call?.input, seen.length], ['register', answer.toolCalls[0].input, 2]);
      // What was called goes back with its result.
      const messages = [{ role: 'user', content: ask.prompt }, ...answer.response.messages];
      assert((await generateText({ ...ask, prompt: undefined, messages, maxOutputTokens: 4 })).text);
      await refused(400, 'template has no place for tools', () => generateText({ ...ask, tools }));
    },
    async errors() {
      const long = 'word '.repeat(5_000);
      await refused(400, 'context', () => generateText({ ...ask, prompt: long }));
      await refused(400, 'context', () => joined(streamText({ ...ask, prompt: long, onError() {} })));
      await refused(400, '99', () => generateText({ ...ask, providerOptions: { flow: { n: 99 } } }));
      const file = { type: 'file', mediaType: 'image/png', data: 'iVBORw0KGgo=' };
      await refused(400, 'image_url', () => generateText({ ...ask, prompt: [{ role: 'user', content: [file] }] }));
      await refused(404, 'embeddings', () => flow.embeddingModel(name).doEmbed({ values: ['x'] }));
    },
    async abort() {
      const aborting = new AbortController();
      const { fullStream } = streamText({ ...ask, maxOutputTokens: 100, abortSignal: aborting.signal });
      let pieces = 0;
      let last;
      for await (const part of fullStream) {
        if (part.type === 'text-delta' && ++pieces === 3) aborting.abort();
        last = part.type;
      }
      assert.deepEqual([pieces < 50, last], [true, 'abort']);
      await quiet();
      assert((await generateText({ ...ask, maxOutputTokens: 2 })).text);
    },
  },
  completions: {
    async completionModel() {
      const prompted = { ...ask, model: flow.completionModel(name), maxOutputTokens: 16 };
      const answer = await generateText(prompted);
      assert(answer.text && answer.usage.outputTokens <= 16);
      assert.equal((await joined(streamText(prompted))).text, answer.text);
      await refused(400, 'best_of', () => generateText({ ...prompted, providerOptions: { flow: { best_of: 2 } } }));
    },
  },
  score: {},
  key: {
    async key() {
      assert((await generateText({ ...ask, maxOutputTokens: 2 })).text);
      await refused(401, 'key', () => generateText({ ...ask, model: provider('wrong')(name) }));
    },
  },
};

for (const group of wanted.length ? wanted : ['chat', 'completions']) {
  for (const [title, check] of Object.entries(checks[group])) {
    try {
      await check();
    } catch (error) {
      console.log(`ai: ${title}: FAILED: ${error.stack}`);
      process.exit(1);
    }
    console.log(`ai: ${title}: ok`);
  }
}
