// The chat page of `flow serve` in a headless Chromium.
//
//   node page.mjs URL        CHROMIUM: its binary (default: chromium); SHOTS: a directory for screenshots
//
// Prints `page: NAME: ok` for each check; the first that fails ends it with what was seen. The browser is spoken to over
// a pair of pipes, which needs no package and no free port.

import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const base = new URL(process.argv[2] ?? 'http://127.0.0.1:8080').origin;
const shots = process.env.SHOTS;
const profile = mkdtempSync(join(tmpdir(), 'page-'));
const flags = ['--headless=new', '--remote-debugging-pipe', `--user-data-dir=${profile}`, '--no-first-run', '--disable-gpu',
  '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage', '--hide-scrollbars'];
// Its sandbox does not start for root.
if (process.getuid?.() === 0) flags.push('--no-sandbox');
const stdio = ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'];
const browser = spawn(process.env.CHROMIUM || 'chromium', [...flags, 'about:blank'], { detached: true, stdio });
const [, , , pipeIn, pipeOut] = browser.stdio;

/** Ends the browser with all its processes, which are a group of their own. */
function end(code) {
  process.exitCode = code;
  clearTimeout(watchdog);
  browser.once('exit', async () => {
    // The last of them may still write for a moment.
    for (let tries = 0; tries < 20; tries++, await sleep(50)) {
      try { return rmSync(profile, { recursive: true, force: true }); } catch { /* again */ }
    }
  });
  try { process.kill(-browser.pid, 'SIGKILL'); } catch { rmSync(profile, { recursive: true, force: true }); }
}

let doing = 'start';
function fail(seen) {
  console.error(`page: ${doing}: FAILED: ${typeof seen === 'string' ? seen : JSON.stringify(seen)}`);
  end(1);
}
const watchdog = setTimeout(() => fail('no end after 150 s'), 150_000);
browser.on('error', (e) => fail(`the browser does not start (CHROMIUM): ${e.message}`));
browser.on('exit', (code) => process.exitCode === undefined && fail(`the browser ended with ${code}`));
pipeIn.on('error', () => {});

// --- The DevTools protocol ---

const pending = new Map(), listeners = new Set();
let number = 0, session, rest = Buffer.alloc(0);

pipeOut.on('data', (bytes) => {
  rest = Buffer.concat([rest, bytes]);
  for (let zero; (zero = rest.indexOf(0)) >= 0; rest = rest.subarray(zero + 1)) {
    const message = JSON.parse(rest.subarray(0, zero).toString());
    if (message.method) for (const listen of listeners) listen(message.method, message.params);
    const { resolve, reject } = pending.get(message.id) ?? {};
    pending.delete(message.id);
    if (message.error) reject?.(new Error(message.error.message)); else resolve?.(message.result);
  }
});

function send(method, params = {}) {
  pipeIn.write(`${JSON.stringify({ id: ++number, method, params, sessionId: session })}\0`);
  return new Promise((resolve, reject) => pending.set(number, { resolve, reject }));
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What a function gives in the page. */
async function page(what, ...given) {
  const expression = `(${what})(...${JSON.stringify(given)})`;
  const { result, exceptionDetails } = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  return result.value;
}

async function until(what, why) {
  for (const begun = Date.now(); !(await page(what)); await sleep(20)) {
    if (Date.now() - begun < 30_000) continue;
    throw new Error([why, ...complaints, 'the page shows:', await page(() => document.body.innerText)].join('\n'));
  }
}

const keys = { Enter: [13, '\r'], Escape: [27] };
async function press(key, modifiers = 0) {
  const [windowsVirtualKeyCode, text] = keys[key];
  const event = { key, code: key, windowsVirtualKeyCode, text, modifiers };
  for (const type of ['keyDown', 'keyUp']) await send('Input.dispatchKeyEvent', { type, ...event });
}

async function click(selector) {
  const [x, y] = await page((s) => {
    const box = [...document.querySelectorAll(s)].at(-1).getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }, selector);
  const event = { x, y, button: 'left', clickCount: 1 };
  for (const type of ['mousePressed', 'mouseReleased']) await send('Input.dispatchMouseEvent', { type, ...event });
}

async function type(text) {
  await page(() => document.getElementById('input').focus());
  await send('Input.insertText', { text });
}

/** Opens the page anew and waits for its model; what is looked at is not the page before. */
async function open() {
  await page(() => { window.before = true; });
  await send('Page.navigate', { url: `${base}/` });
  await until(() => !window.before && document.getElementById('model')?.title, 'the page does not connect');
}
const over = () => until(() => document.querySelector('.turn') && !document.querySelector('[aria-busy=true]'), 'the answer does not end');
const shown = () => page(() => [...document.querySelectorAll('.turn')].map((turn) => ({
  prompt: turn.querySelector('.prompt')?.textContent ?? '',
  answer: turn.querySelector('.answer').textContent,
  foot: turn.querySelector('.foot span').textContent,
})));
const notice = () => page(() => (document.getElementById('notice').hidden ? '' : document.getElementById('notice').innerText));

async function ask(text) {
  await type(text);
  await press('Enter');
  await over();
  return (await shown()).at(-1);
}

const set = (values) => page((all) => {
  const fields = document.getElementById('fields');
  for (const [name, value] of Object.entries(all)) fields[name].value = value;
  fields.dispatchEvent(new Event('input', { bubbles: true }));
}, values);

/** As over a slow line: how fast a model is decides on nothing here. */
const slow = (downloadThroughput) =>
  send('Network.emulateNetworkConditions', { offline: false, latency: 0, uploadThroughput: -1, downloadThroughput });

async function shot(name) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  const { data } = await send('Page.captureScreenshot', { format: 'png' });
  writeFileSync(join(shots, `${name}.png`), Buffer.from(data, 'base64'));
}

const size = (width, height) => send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 500 });
const colours = (value) => send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }] });

/** Answers the page's next question in the server's stead; what was asked is given. */
function instead(responseCode, headers, body) {
  const asked = new Promise((resolve, reject) => {
    const listen = async (method, { requestId, request }) => {
      if (method !== 'Fetch.requestPaused') return;
      listeners.delete(listen);
      const responseHeaders = Object.entries(headers).map(([name, value]) => ({ name, value: String(value) }));
      const answer = { requestId, responseCode, responseHeaders, body: Buffer.from(body).toString('base64') };
      await send('Fetch.fulfillRequest', answer).then(() => send('Fetch.disable')).then(() => resolve(request), reject);
    };
    listeners.add(listen);
  });
  send('Fetch.enable', { patterns: [{ urlPattern: '*/v1/chat/completions' }] });
  return asked;
}

const refusing = (status, message, code = null, headers = {}) =>
  instead(status, { 'content-type': 'application/json', ...headers }, JSON.stringify({ error: { message, type: 'x', param: null, code } }));
const busy = () => refusing(429, '64 requests wait already', null, { 'retry-after': 12 });

/** A stream of these texts; what is none is sent as it is, in place of the end. */
function saying(...pieces) {
  const chunk = (delta, finish_reason = null) => ({ choices: [{ index: 0, delta, finish_reason }] });
  const chunks = pieces.map((piece) => (typeof piece === 'string' ? chunk({ content: piece }) : piece));
  const ends = typeof pieces.at(-1) === 'string' ? [JSON.stringify(chunk({}, 'stop')), '[DONE]'] : [];
  const lines = [...chunks.map((one) => JSON.stringify(one)), ...ends].map((data) => `data: ${data}\n\n`);
  return instead(200, { 'content-type': 'text/event-stream' }, lines.join(''));
}

// --- The checks ---

const requests = [], complaints = [];
let policy = '';
const telling = { 'Runtime.consoleAPICalled': ['error', 'warning', 'assert'], 'Log.entryAdded': ['error', 'warning'] };
listeners.add((method, params) => {
  if (method === 'Network.requestWillBeSent') requests.push(params.request.url);
  if (method === 'Network.responseReceived' && params.type === 'Document') {
    policy = params.response.headers['content-security-policy'] ?? '';
  }
  const { exceptionDetails, entry, issue } = params ?? {};
  if (exceptionDetails) complaints.push(exceptionDetails.exception?.description ?? exceptionDetails.text);
  if (telling[method]?.includes(params.type)) complaints.push(params.args.map((a) => a.value ?? a.description).join(' '));
  if (telling[method]?.includes(entry?.level)) complaints.push(`${entry.text} ${entry.url ?? ''}`);
  if (issue?.code === 'ContentSecurityPolicyIssue') complaints.push(JSON.stringify(issue.details));
});

function quiet() {
  const foreign = requests.filter((url) => !url.startsWith(`${base}/`) && !url.startsWith('data:'));
  if (foreign.length) throw new Error(`requests to ${foreign}`);
  if (complaints.length) throw new Error(complaints.join('\n'));
}

async function check(name, what) {
  doing = name;
  await what();
  console.log(`page: ${name}: ok`);
}

function expect(holds, seen) {
  if (!holds) throw new Error(typeof seen === 'string' ? seen : JSON.stringify(seen));
}

/** Every text's contrast with what is behind it, where it is below 4.5; and how many were looked at. */
function contrasts() {
  const rgb = (colour) => { const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number); return { rgb: [r, g, b], a }; };
  const light = (channels) => channels.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const { rgb: channels, a } = rgb(getComputedStyle(node).backgroundColor);
      if (a === 1) return channels;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
  };
  const low = [];
  let seen = 0;
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!(own || node.matches('textarea, input')) || !node.checkVisibility({ visibilityProperty: true })) continue;
    const colors = [getComputedStyle(node).color];
    if (node.placeholder) colors.push(getComputedStyle(node, '::placeholder').color);
    for (const color of colors) {
      const [a, b] = [light(rgb(color).rgb), light(behind(node))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      seen++;
      if (ratio < 4.5) low.push(`${node.tagName} ${node.id || node.className} ${node.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
    }
  }
  return { low, seen };
}

/** What reaches beyond the window's sides, is too small to touch, or would make a phone zoom. */
function misfits() {
  const found = [], { scrollWidth, clientWidth } = document.scrollingElement;
  if (scrollWidth > clientWidth) found.push(`the page is ${scrollWidth} wide`);
  for (const node of document.querySelectorAll('body *')) {
    const box = node.getBoundingClientRect();
    if (!box.width || !node.checkVisibility() || node.closest('svg')) continue;
    const name = `${node.tagName} ${node.id || node.className || node.textContent.slice(0, 20)}`;
    if ((box.left < -0.5 || box.right > innerWidth + 0.5) && !node.closest('pre > *')) found.push(`${name}: ${box.left} to ${box.right}`);
    const small = node.matches('button, input, textarea') && Math.min(box.height, box.width) < 39.5;
    if (small) found.push(`${name}: ${box.width} x ${box.height}`);
    if (node.matches('input, textarea') && parseFloat(getComputedStyle(node).fontSize) < 16) found.push(`${name}: small text`);
  }
  return found;
}

async function checks() {
  const { targetInfos } = await send('Target.getTargets');
  const { targetId } = targetInfos.find((target) => target.type === 'page');
  session = (await send('Target.attachToTarget', { targetId, flatten: true })).sessionId;
  for (const domain of ['Page', 'Runtime', 'Log', 'Network', 'Audits']) await send(`${domain}.enable`);
  await size(1280, 800);
  await colours('light');
  const [model] = (await (await fetch(`${base}/v1/models`)).json()).data;
  const template = model.meta.chat_template;
  const most = Math.min(80, model.meta.context >> 2);
  const prompt = template ? 'Tell me a very long story about a river.' : 'Once upon a time there was a river';
  const settings = { temperature: 0, top_p: 1, seed: 7, max_tokens: most };
  /** The server's answer to the same messages and settings, not streamed and without the page. */
  const direct = async (messages) => {
    const response = await fetch(`${base}/v1/chat/completions`, { method: 'POST', body: JSON.stringify({ messages, ...settings }) });
    const { choices, usage } = await response.json();
    return { content: choices[0].message.content, usage };
  };

  await check('loads', async () => {
    await open();
    const head = await page(() => document.querySelector('header').innerText + document.getElementById('empty').innerText);
    expect(head.includes(model.id) && head.includes(model.meta.context.toLocaleString('en')), head);
    expect(await page(() => document.title) === 'flow', 'the title');
    expect(head.includes('it continues your text') === !template, head);
    expect(policy.includes("default-src 'none'") && !policy.includes('unsafe'), `content-security-policy: ${policy}`);
    quiet();
    await shot('empty-light');
  });

  await check('streams', async () => {
    await set(settings);
    await page(() => {
      window.states = new Set();
      const note = () => {
        const busy = document.querySelector('[aria-busy=true] .answer');
        if (busy) window.states.add(busy.textContent);
      };
      new MutationObserver(note).observe(document.getElementById('log'), { subtree: true, childList: true, characterData: true });
    });
    await slow(16_000);
    const { answer, foot } = await ask(prompt);
    await slow(-1);
    const { content, usage } = await direct([{ role: 'user', content: prompt }]);
    expect(answer && answer === content, { page: answer, direct: content });
    const states = await page(() => [...window.states]);
    expect(states.length > 3 && states.every((text) => answer.startsWith(text)), states);
    expect(foot.includes(`${usage.completion_tokens} tokens`) && foot.includes(`prompt ${usage.prompt_tokens}`)
      && /[\d.]+ tokens\/s/.test(foot) && /first after [\d.]+ s/.test(foot) && foot.includes('cut: max tokens'), foot);
  });

  await check('second turn', async () => {
    const [before] = await shown();
    await type(template ? 'Why?' : ' And then');
    await press('Enter', 8);
    const lines = await page(() => document.getElementById('input').value);
    expect(lines.endsWith('\n') && (await shown()).length === 1, `Shift+Enter: ${JSON.stringify(lines)}`);
    const next = await ask('so');
    const said = [{ role: 'user', content: prompt }, { role: 'assistant', content: before.answer }];
    const { content } = await direct([...said, { role: 'user', content: next.prompt }]);
    expect(next.answer === content, { page: next.answer, direct: content });
    await click('.foot button.last:nth-child(3)');
    await over();
    expect((await shown())[1].answer === next.answer, 'regenerated with the same seed, it differs');
    await click('.foot button.last:nth-child(4)');
    expect((await shown()).length === 1 && await page(() => document.getElementById('input').value) === next.prompt, await shown());
    await page(() => { document.getElementById('input').value = ''; });
    const more = await page(() => document.querySelector('.more').checkVisibility());
    expect(more === !template, `Continue is ${more ? 'there' : 'missing'}`);
    if (template) return;
    await click('.more');
    await over();
    const [first, rest] = await shown();
    const longer = await direct([{ role: 'user', content: first.prompt + first.answer }]);
    expect(rest.prompt === '' && rest.answer === longer.content, { page: rest.answer, direct: longer.content });
  });

  await check('reload', async () => {
    const before = await shown();
    await open();
    expect(JSON.stringify(await shown()) === JSON.stringify(before), { before, after: await shown() });
    expect(await page(() => document.getElementById('fields').temperature.value) === '0', 'settings are lost');
  });

  await check('stop', async () => {
    await click('#new');
    const room = Math.min(2000, model.meta.context - 48);
    await set({ max_tokens: room });
    await slow(8_000);
    for (const stop of [() => press('Escape'), () => click('#send')]) {
      await type(prompt);
      await press('Enter');
      await until(() => document.querySelector('[aria-busy=true] .answer')?.textContent, 'nothing is said');
      await stop();
      await over();
      const { answer, foot } = (await shown()).at(-1);
      const tokens = Number(foot.match(/(\d+) tokens?/)?.[1]);
      expect(answer && foot.startsWith('stopped') && tokens < room, { answer, foot });
      await click('#new');
    }
    await slow(-1);
    await set({ max_tokens: 4 });
    const { answer, foot } = await ask(prompt);
    expect(answer && foot.includes('4 tokens'), { answer, foot });
  });

  await check('scroll', async () => {
    await size(360, 320);
    await slow(8_000);
    // Two frames later all that follows a change has followed.
    const place = () => page(async () => {
      for (let i = 0; i < 2; i++) await new Promise((frame) => requestAnimationFrame(frame));
      const { scrollTop, scrollHeight, clientHeight } = document.getElementById('scroll');
      return { scrollTop, hidden: scrollHeight - clientHeight, left: scrollHeight - clientHeight - scrollTop };
    });
    await set({ max_tokens: most });
    const at = await ask(prompt).then(place);
    expect(at.hidden > 60 && at.left < 2, at);
    await click('.foot button.last:nth-child(3)');
    await until(() => document.querySelector('[aria-busy=true] .answer')?.textContent.length > 80, 'nothing is said');
    await page(() => { document.getElementById('scroll').scrollTop = 0; });
    await over();
    const up = await place();
    expect(up.scrollTop === 0 && up.hidden > 60, up);
    await slow(-1);
    await size(1280, 800);
  });

  await check('markup is text', async () => {
    await click('#new');
    const markup = '<img src=x onerror="window.hit = 1"><b>bold</b>';
    const script = '<script>window.hit = 1</script>';
    const answered = saying('See:\n\n``', '`html\n<img src=x one', 'rror="window.hit = 1">\n```\n\n', ...script);
    const turn = await ask(markup);
    await answered;
    const html = await page(() => ({ tags: [...document.querySelectorAll('img, b, #log script')].length, hit: window.hit,
      blocks: [...document.querySelector('.answer').children].map((block) => [block.tagName, block.textContent]) }));
    expect(turn.prompt === markup && !html.tags && html.hit === undefined, { turn, html });
    const blocks = [['DIV', 'See:'], ['PRE', '<img src=x onerror="window.hit = 1">'], ['DIV', script]];
    expect(JSON.stringify(html.blocks) === JSON.stringify(blocks), html.blocks);
    await click('#new');
    const sent = await ask(markup);
    expect(sent.prompt === markup && await page(() => !document.querySelector('img') && window.hit === undefined), sent);
    quiet();
  });

  await check('errors', async () => {
    await click('#new');
    let answered = busy();
    await ask(prompt);
    await answered;
    await until(() => /64 requests wait already.*12 s/.test(document.getElementById('notice').innerText), 'no notice');
    answered = saying('Half', { error: { message: 'the computation failed' } });
    await click('#notice button:first-of-type');
    await answered;
    await over();
    const half = (await shown()).at(-1);
    expect(half.answer === 'Half' && half.foot.startsWith('broken off'), half);
    expect((await notice()).includes('the computation failed'), await notice());
    await click('#notice button:first-of-type');
    await over();
    expect((await shown()).length === 1 && (await shown())[0].answer !== 'Half' && !(await notice()), await shown());
  });

  await check('context', async () => {
    const long = 'word '.repeat(model.meta.context / 2);
    for (let i = 0; i < 2; i++) {
      const answered = saying('Yes.');
      await ask(long);
      await answered;
    }
    await ask(prompt);
    const turns = (await shown()).length;
    expect(/too long/.test(await notice()) && turns === 4, { notice: await notice(), turns });
    for (let left = turns - 1; await notice(); left--) {
      expect(left > 0, await notice());
      await click('#notice button:first-of-type');
      await over();
      expect((await shown()).length === left, await shown());
    }
    const { prompt: last, foot } = (await shown()).at(-1);
    expect(last === prompt && foot !== 'not answered', await shown());
  });

  await check('key', async () => {
    await click('#new');
    const refused = refusing(401, 'the key is missing or wrong');
    await type(prompt);
    await press('Enter');
    await refused;
    await until(() => document.getElementById('ask-key').open, 'no key is asked for');
    await shot('key-light');
    const asked = saying('Yes.');
    await send('Input.insertText', { text: 'secret' });
    await press('Enter');
    const { headers } = await asked;
    await over();
    expect((headers.authorization ?? headers.Authorization) === 'Bearer secret', headers);
    expect(await page(() => !localStorage.length && !document.cookie && !document.getElementById('ask-key').open), 'the key is kept');
    await page(() => sessionStorage.removeItem('flow.key'));
  });

  const widest = async (width, height) => {
    await size(width, height);
    const found = await page(misfits);
    expect(!found.length, found);
  };
  const command = 'ls -lt /a/rather/long/path/that/does/not/fit/on/the/screen/of/a/phone/at/all | head -20';
  const turns = [{
    prompt: 'How do I list the files of a folder, newest first?',
    answer: `Use ls with two options:\n\n\`\`\`sh\n${command}\n\`\`\`\n\n-l gives one file a line.\n-t puts the newest first.`,
    note: '', stats: '48 tokens · 31.5 tokens/s · first after 0.12 s · prompt 46 (20 cached)', used: 94,
  }, {
    prompt: `Thanks. And ${'w'.repeat(90)}?`,
    answer: 'That is one long word.',
    note: 'cut: max tokens reached', stats: '6 tokens · 30.2 tokens/s · first after 0.20 s · prompt 120', used: 126,
  }];
  // The page writes what it shows when it is left: this comes after.
  await page((given) => addEventListener('pagehide', () => sessionStorage.setItem('flow.turns', JSON.stringify(given))), turns);
  await open();

  for (const scheme of ['light', 'dark']) {
    await check(`contrast, ${scheme}`, async () => {
      await size(1280, 800);
      await colours(scheme);
      expect((await shown()).length === turns.length, await shown());
      const plain = await page(contrasts);
      expect(plain.seen > 15 && !plain.low.length, plain);
      await shot(scheme);
      await click('#open');
      const open = await page(contrasts);
      expect(open.seen > plain.seen && !open.low.length, open);
      await shot(`settings-${scheme}`);
      await press('Escape');
      const answered = busy();
      await click('.foot button.last:nth-child(3)');
      await answered;
      await until(() => !document.getElementById('notice').hidden, 'no notice');
      const told = await page(contrasts);
      expect(!told.low.length, told);
      await shot(`notice-${scheme}`);
      await click('#notice button:last-of-type');
    });
  }

  await check('widths', async () => {
    await widest(1280, 800);
    for (const scheme of ['dark', 'light']) {
      await colours(scheme);
      await widest(360, 740);
      await shot(`phone-${scheme}`);
    }
    const why = '5000 tokens of prompt and 200 of the answer never fit into a context of 4096';
    const answered = refusing(400, why, 'context_length_exceeded');
    await page(() => document.querySelector('.turn:last-child button:nth-child(3)').click());
    await answered;
    await until(() => !document.getElementById('notice').hidden, 'no notice');
    await widest(360, 740);
    await shot('phone-notice');
    await click('#notice button:last-of-type');
    await click('#open');
    await widest(360, 740);
    await shot('phone-settings');
    await press('Escape');
    await click('#new');
    await widest(360, 740);
    await shot('phone-empty');
    await type('word\n'.repeat(30));
    await widest(360, 740);
    await shot('phone-long');
  });
}

checks().then(() => end(0), (e) => fail(e.message));
