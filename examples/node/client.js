// Streams answers: Node.js, @grpc/grpc-js. ../README.md tells how to run it.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { setTimeout: sleep } = require('node:timers/promises');

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const ROOT = path.join(__dirname, '..');
const definition = protoLoader.loadSync(
  ['overfill/v1/inference.proto', 'overfill/rpc/status.proto',
   'overfill/rpc/error_details.proto'],
  { includeDirs: [path.join(ROOT, '..', 'proto')], keepCase: true,
    longs: Number, enums: String, defaults: true, oneofs: true });
const { Inference } = grpc.loadPackageDefinition(definition).overfill.v1;

const USAGE = `client.js [flags] PROMPT...

Streams answers of an OverFill server, to one prompt after the other. A token
may also stand in OVERFILL_TOKEN.

  --target=HOST:PORT      or dns:///NAME:PORT, for all addresses of a name
  --ca=FILE               PEM of the servers' CA; turns TLS on
  --cert=FILE --key=FILE  PEM of the client's certificate and its key, for mTLS
  --server_name=NAME      name in the server's certificate (the target's)
  --token_file=FILE       file with the bearer token
  --max_tokens=N          longest answer (the server's)
  --temperature=F         0 is greedy (the model's)
  --timeout=SECONDS       for an answer, with all its tries (60)
  --retries=N             further tries (4)
  --grpc_retries          leave the retries to gRPC and its service config
  --service_config=FILE   gRPC service config
  --cancel_after=N        cancel after N tokens
`;

const FIRST_BACKOFF = 0.2; // seconds
const LONGEST_BACKOFF = 10;

const note = (line) => process.stderr.write(`${line}\n`);

class BadFlags extends Error {}

function toNumber(name, text) {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) {
    throw new BadFlags(`--${name}: must be a number`);
  }
  return value;
}

function parseFlags() {
  const text = { type: 'string' };
  let parsed;
  try {
    parsed = parseArgs({
      allowPositionals: true,
      options: {
        help: { type: 'boolean' }, grpc_retries: { type: 'boolean' },
        target: { type: 'string', default: '127.0.0.1:50051' },
        service_config: {
          type: 'string', default: path.join(ROOT, 'service_config.json') },
        timeout: { type: 'string', default: '60' },
        retries: { type: 'string', default: '4' },
        cancel_after: { type: 'string', default: '0' },
        ca: text, cert: text, key: text, server_name: text, token_file: text,
        max_tokens: text, temperature: text,
      },
    });
  } catch (error) {
    throw new BadFlags(error.message);
  }
  const flags = { ...parsed.values, prompts: parsed.positionals };
  for (const name of ['timeout', 'retries', 'cancel_after', 'max_tokens',
                      'temperature']) {
    if (flags[name] !== undefined) flags[name] = toNumber(name, flags[name]);
  }
  if (!flags.help) checkFlags(flags);
  return flags;
}

function checkFlags(flags) {
  if (flags.prompts.length === 0) throw new BadFlags('PROMPT is missing');
  if (!flags.cert !== !flags.key || (flags.cert && !flags.ca)) {
    throw new BadFlags('--cert, --key and --ca go together');
  }
  try {
    if (readToken(flags) && !flags.ca) {
      throw new BadFlags('a token goes over TLS only: --ca is missing');
    }
    [flags.ca, flags.cert, flags.key, flags.service_config].forEach(readFile);
  } catch (error) {
    throw new BadFlags(error.message);
  }
}

const readFile = (name) => (name ? fs.readFileSync(name) : null);

const readToken = (flags) => (flags.token_file
  ? fs.readFileSync(flags.token_file, 'utf8').trim()
  : process.env.OVERFILL_TOKEN);

// Read for each call: a token's file may be renewed at any time.
function callCredentials(flags) {
  const token = readToken(flags);
  if (!token) return undefined;
  return grpc.credentials.createFromMetadataGenerator((context, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${token}`);
    done(null, metadata);
  });
}

// One for all calls of a program.
function openClient(flags) {
  const credentials = flags.ca
    ? grpc.credentials.createSsl(
      readFile(flags.ca), readFile(flags.key), readFile(flags.cert))
    : grpc.credentials.createInsecure();
  const options = {
    'grpc.service_config': readFile(flags.service_config).toString(),
    'grpc.enable_retries': flags.grpc_retries ? 1 : 0,
    // Finds out in 40 s that a peer is gone, also while a request waits in the
    // queue. The server takes a ping every 10 s, and not more.
    'grpc.keepalive_time_ms': 30000,
    'grpc.keepalive_timeout_ms': 10000,
    'grpc.keepalive_permit_without_calls': 1,
    // A server that comes back is found soon.
    'grpc.max_reconnect_backoff_ms': 5000,
  };
  if (flags.server_name) {
    options['grpc.ssl_target_name_override'] = flags.server_name;
  }
  return new Inference(flags.target, credentials, options);
}

function makeRequest(flags, prompt) {
  const request = { text: prompt, limits: {}, sampling: {} };
  if (flags.max_tokens !== undefined) {
    request.limits.max_tokens = flags.max_tokens;
  }
  if (flags.temperature !== undefined) {
    request.sampling.temperature = flags.temperature;
  }
  return request;
}

// The google.rpc detail of this name, or null.
function findDetail(error, name) {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!bytes) return null;
  const status = definition['google.rpc.Status'].deserialize(bytes);
  const packed = status.details.find(
    ({ type_url: url }) => url === `type.googleapis.com/google.rpc.${name}`);
  return packed
    ? definition[`google.rpc.${name}`].deserialize(packed.value) : null;
}

// Whether and when a request is sent again, within its tries and time.
class Retries {
  constructor(flags) {
    this.most = flags.grpc_retries ? 0 : flags.retries;
    this.count = 0;
    this.deadline = Date.now() + 1000 * flags.timeout;
    this.backoff = FIRST_BACKOFF;
  }

  // Seconds to wait before the next try. null: the error stands.
  delay(error, hasBegun) {
    // What has been shown would be shown twice, or differ.
    if (hasBegun || this.count >= this.most) return null;
    const wait = findDetail(error, 'RetryInfo')?.retry_delay;
    if (error.code === grpc.status.RESOURCE_EXHAUSTED) {
      // Without RetryInfo it will not pass: a message too large, say.
      if (!wait) return null;
    } else if (error.code !== grpc.status.UNAVAILABLE) {
      return null;
    }
    const atLeast = wait ? wait.seconds + wait.nanos / 1e9 : 0;
    // Upwards alone: clients refused together do not come back together, and
    // none before its time.
    const delay =
      Math.max(atLeast, this.backoff) * (1 + 0.2 * Math.random());
    if (Date.now() + 1000 * delay >= this.deadline) return null;
    this.backoff = Math.min(2 * this.backoff, LONGEST_BACKOFF);
    this.count += 1;
    note(`retry ${this.count} of ${this.most} in ${delay.toFixed(2)} s: ` +
         `${grpc.status[error.code]}: ${error.details}`);
    return delay;
  }
}

// Prints an answer as it comes.
class Answer {
  numTokens = 0;
  hasBegun = false;

  add(event) {
    this.hasBegun = true;
    if (event.event === 'completion') {
      const { finish_reason: reason, usage } = event.completion;
      note(`done: ${reason.replace('FINISH_REASON_', '')}, ` +
           `${usage.prompt_tokens} prompt tokens, ` +
           `${usage.completion_tokens} tokens`);
      return;
    }
    process.stdout.write(event.delta.text);
    this.numTokens += event.delta.token_ids.length;
  }

  end() {
    if (this.hasBegun) process.stdout.write('\n');
  }
}

async function generate(client, flags, prompt, cancel) {
  const request = makeRequest(flags, prompt);
  const retries = new Retries(flags);
  for (;;) {
    const answer = new Answer();
    const call = client.generate(request, {
      deadline: retries.deadline, credentials: callCredentials(flags) });
    const stop = () => call.cancel();
    cancel.signal.addEventListener('abort', stop);
    let delay;
    try {
      for await (const event of call) {
        answer.add(event);
        if (flags.cancel_after > 0 && answer.numTokens >= flags.cancel_after) {
          cancel.abort();
        }
        cancel.signal.throwIfAborted();
      }
      return;
    } catch (error) {
      delay = retries.delay(error, answer.hasBegun);
      if (delay === null) throw error;
    } finally {
      // For whatever ends the loop: the server stops at once. A call that has
      // ended does not mind.
      call.cancel();
      cancel.signal.removeEventListener('abort', stop);
      answer.end();
    }
    await sleep(1000 * delay, null, { signal: cancel.signal });
  }
}

function noteError(error) {
  const code = grpc.status[error.code];
  const bad = findDetail(error, 'BadRequest');
  if (!bad) {
    note(`error: ${code}: ${error.details}`);
    return;
  }
  note(`error: ${code}`);
  for (const { field, description } of bad.field_violations) {
    note(`  ${field}: ${description}`);
  }
}

async function main() {
  let flags;
  try {
    flags = parseFlags();
  } catch (error) {
    if (!(error instanceof BadFlags)) throw error;
    note(`client.js: ${error.message}`);
    return 2;
  }
  if (flags.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const cancel = new AbortController();
  process.once('SIGINT', () => cancel.abort());
  const client = openClient(flags);
  try {
    for (const prompt of flags.prompts) {
      await generate(client, flags, prompt, cancel);
    }
    return 0;
  } catch (error) {
    if (cancel.signal.aborted) {
      note('cancelled');
      return 130;
    }
    if (error.code === undefined || !('details' in error)) throw error;
    noteError(error);
    return 1;
  } finally {
    client.close();
  }
}

main().then((code) => { process.exitCode = code; });
