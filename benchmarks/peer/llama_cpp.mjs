/**
 * llama.cpp as a peer of the CPU benchmark: a process that loads models, says
 * on stdout that it is ready, and then answers each command, a line of JSON on
 * stdin, with a line of JSON.
 *
 *   node llama_cpp.mjs --threads 2 --model NAME=FILE --max-batch 32 \
 *       --max-tokens 2048
 *
 * --model is repeated for more models. Each gets a context of --max-batch
 * sequences of at most --max-tokens tokens each. Commands:
 *
 *   {"op":"prefill","model":NAME,"tokens":N}
 *   {"op":"decode","model":NAME,"batch":B,"context":C,"steps":S}
 *   {"op":"request","model":NAME,"prompt":P,"answer":A}
 *   {"op":"quit"}
 *
 * Answers have the "seconds" taken and the "tokens" sampled (of decode: those
 * of the last step), or else an "error".
 */

import fs from 'node:fs';
import readline from 'node:readline';
import {parseArgs} from 'node:util';

import {LlamaPeer} from './llama_peer.mjs';

const STDOUT = 1;
const USAGE_STATUS = 2;
const FAILURE_STATUS = 1;

const FLAGS = {
  'threads': {type: 'string'},
  'model': {type: 'string', multiple: true, default: []},
  'max-batch': {type: 'string', default: '32'},
  'max-tokens': {type: 'string', default: '2048'},
  'flash-attention': {type: 'string', default: 'auto'},
  'verbose': {type: 'boolean', default: false},
};

/** Flash attention as the bindings name it. */
const FLASH_ATTENTION =
    new Map([['on', true], ['off', false], ['auto', 'auto']]);

/** The value as a whole number of at least 1, or an error that names it. */
function wholeNumber(value, name) {
  const number = typeof value === 'string' ? Number(value) : value;
  if (!Number.isSafeInteger(number) || number < 1) {
    throw new Error(`${name} must be a whole number of at least 1`);
  }
  return number;
}

/** The files of --model by their names. */
function parseModels(models) {
  const files = new Map();
  for (const model of models) {
    const [, name, file] = /^([^=]+)=(.+)$/.exec(model) ?? [];
    if (!name) throw new Error(`--model is NAME=FILE, not ${model}`);
    if (files.has(name)) throw new Error(`two models have the name ${name}`);
    if (!fs.existsSync(file)) throw new Error(`there is no file ${file}`);
    files.set(name, file);
  }
  if (files.size === 0) throw new Error('--model NAME=FILE is needed');
  return files;
}

function parseFlags() {
  const {values} = parseArgs({options: FLAGS});
  const flashAttention = FLASH_ATTENTION.get(values['flash-attention']);
  if (flashAttention === undefined) {
    throw new Error('--flash-attention is on, off or auto');
  }
  return {
    flashAttention,
    files: parseModels(values.model),
    threads: wholeNumber(values.threads, '--threads'),
    maxBatch: wholeNumber(values['max-batch'], '--max-batch'),
    maxTokens: wholeNumber(values['max-tokens'], '--max-tokens'),
    verbose: values.verbose,
  };
}

/** llama.cpp itself; what it logs goes to stderr, as stdout is for answers. */
async function loadLlama({threads, verbose}) {
  const {getLlama} = await import('node-llama-cpp');
  return getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    maxThreads: threads,
    logLevel: verbose ? 'log' : 'error',
    logger: (level, message) => {
      process.stderr.write(`llama.cpp: ${level}: ${message.trimEnd()}\n`);
    },
  });
}

async function loadPeers(llama, flags) {
  const peers = new Map();
  for (const [name, file] of flags.files) {
    peers.set(name, await LlamaPeer.load(llama._bindings, file, flags));
  }
  return peers;
}

/** The name of the library that llama.cpp chose for this CPU, or null. */
function cpuBackend() {
  const maps = fs.readFileSync('/proc/self/maps', 'utf8');
  return /libggml-cpu[^/\s]*\.so/.exec(maps)?.[0] ?? null;
}

/** What each op calls, with the members of its command checked. */
const OPS = {
  prefill: (peer, command) =>
    peer.prefill(wholeNumber(command.tokens, 'tokens')),
  decode: (peer, command) =>
    peer.decode(
        wholeNumber(command.batch, 'batch'),
        wholeNumber(command.context, 'context'),
        wholeNumber(command.steps, 'steps')),
  request: (peer, command) =>
    peer.request(
        wholeNumber(command.prompt, 'prompt'),
        wholeNumber(command.answer, 'answer')),
};

async function answer(peers, command) {
  const peer = peers.get(command.model);
  if (!Object.hasOwn(OPS, command.op)) {
    throw new Error(`there is no op ${command.op}`);
  }
  if (!peer) throw new Error(`there is no model ${command.model}`);
  try {
    return await OPS[command.op](peer, command);
  } catch (error) {
    // What the sequences hold is not known any more.
    peer.clearAll();
    throw error;
  }
}

function say(message) {
  // Written at once, also if a later command ends the process.
  fs.writeSync(STDOUT, `${JSON.stringify(message)}\n`);
}

/** Answers commands until one of them, or the end of stdin, says to quit. */
async function serve(peers) {
  const lines = readline.createInterface({input: process.stdin});
  for await (const line of lines) {
    if (line.trim() === '') continue;
    try {
      const command = JSON.parse(line);
      if (command?.op === 'quit') return;
      say(await answer(peers, command ?? {}));
    } catch (error) {
      say({error: error.message});
    }
  }
}

async function run(flags) {
  const llama = await loadLlama(flags);
  const peers = await loadPeers(llama, flags);
  const threads = Math.max(...[...peers.values()].map((p) => p.threads));
  say({
    ready: true,
    system: llama.systemInfo,
    threads,
    release: llama.llamaCppRelease.release,
    backend: cpuBackend(),
  });
  await serve(peers);
}

function fail(error, status) {
  process.stderr.write(`llama_cpp.mjs: ${error.message.split('\n')[0]}\n`);
  process.exit(status);
}

function main() {
  let flags;
  try {
    flags = parseFlags();
  } catch (error) {
    fail(error, USAGE_STATUS);
  }
  run(flags).then(
      () => process.exit(0), (error) => fail(error, FAILURE_STATUS));
}

main();
