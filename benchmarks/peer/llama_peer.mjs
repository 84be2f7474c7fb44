/**
 * One model of llama.cpp and its KV cache, timed.
 *
 * It calls the bindings below node-llama-cpp's interface, whose queues and
 * checks of each token would else be part of the times.
 */

/** Tokens that llama.cpp computes at a time by default: its micro batch. */
const PROMPT_BATCH = 512;
/** llama.cpp gives each sequence a multiple of so many cells. */
const CELL_GROUP = 256;
/** Samplers that can run at a time: the threads of Node's pool. */
const MAX_SAMPLERS = 4;

const NO_LOGITS = new Uint32Array(0);

/** The token at a place of the fixed pseudo-random sequence. */
function tokenAt(place, vocab) {
  // The hash of murmur3: neighbours differ in all bits.
  let hash = Math.imul(place + 1, 0x9e3779b1);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return ((hash ^ (hash >>> 16)) >>> 0) % vocab;
}

/** Seconds since a time of performance.now(), to the nanosecond. */
function secondsSince(begin) {
  return Number(((performance.now() - begin) / 1000).toFixed(9));
}

/** A model with one context of several sequences. */
export class LlamaPeer {
  constructor(context, samplers, options) {
    this._context = context;
    this._samplers = samplers;
    this._maxBatch = options.maxBatch;
    this._maxTokens = options.maxTokens;
    this._threads = context.getThreads();
    // How many tokens of the fixed sequence each sequence has in its cells.
    this._filled = new Array(options.maxBatch).fill(0);
    this._oneToken = new Uint32Array(1);
    this._firstLogits = new Uint32Array([0]);
  }

  static async load(bindings, file, options) {
    // The bindings map a file only if asked, though llama.cpp does by default.
    const model = new bindings.AddonModel(
        file, {addonExports: bindings, gpuLayers: 0, useMmap: true});
    if (!await model.init()) throw new Error(`cannot load the model ${file}`);
    const sequence = Math.ceil(options.maxTokens / CELL_GROUP) * CELL_GROUP;
    const context = new bindings.AddonContext(model, {
      contextSize: sequence * options.maxBatch,
      batchSize: Math.max(PROMPT_BATCH, options.maxBatch),
      sequences: options.maxBatch,
      flashAttention: options.flashAttention,
      threads: options.threads,
    });
    if (!await context.init()) throw new Error(`no context for ${file}`);
    if (context.getThreads() !== options.threads) {
      throw new Error(`llama.cpp uses ${context.getThreads()} threads`);
    }
    // Sampling, too, must not use more threads than asked for.
    const samplers = [];
    while (samplers.length < Math.min(options.threads, MAX_SAMPLERS)) {
      const sampler = new bindings.AddonSampler(model);
      sampler.applyConfig({temperature: 0});
      samplers.push(sampler);
    }
    const peer = new LlamaPeer(context, samplers, options);
    await peer._probe();
    return peer;
  }

  get threads() {
    return this._threads;
  }

  /** Forgets what all sequences hold. */
  clearAll() {
    for (let sequence = 0; sequence < this._maxBatch; ++sequence) {
      this._clear(sequence);
    }
  }

  /** Times the prompt of a new sequence up to the token sampled after it. */
  async prefill(tokens) {
    this._checkLength(tokens);
    this._clear(0);
    const prompt = this._fixedTokens(0, tokens);
    const begin = performance.now();
    const token = await this._feed(0, 0, prompt);
    const seconds = secondsSince(begin);
    this._clear(0);
    return {seconds, tokens: [token]};
  }

  /**
   * Times each of some steps of sequences that hold `context` tokens: the
   * model alone, since the addon's way to a token costs more than llama.cpp's
   * own, and with a token sampled for each sequence.
   */
  async decode(batch, context, steps) {
    if (batch > this._maxBatch) {
      throw new Error(`batch is above --max-batch ${this._maxBatch}`);
    }
    this._checkLength(context + steps);
    await this._fill(batch, context);
    const first = this._fixedTokens(context, batch);
    // Not timed: llama.cpp copies the cells that _fill shares out only now.
    await this._step(first, context);
    this._trim(batch, context);
    const seconds = [];
    const sampledSeconds = [];
    let tokens = first;
    for (let step = 0; step < steps; ++step) {
      const begin = performance.now();
      tokens = await this._step(tokens, context + step);
      sampledSeconds.push(secondsSince(begin));
      seconds.push(this._modelSeconds);
    }
    this._trim(batch, context);
    return {seconds, sampled_seconds: sampledSeconds, tokens: [...tokens]};
  }

  /** Times one sequence, from its prompt to the last token of its answer. */
  async request(prompt, answer) {
    this._checkLength(prompt + answer - 1);
    this._clear(0);
    const promptTokens = this._fixedTokens(0, prompt);
    const tokens = [];
    const begin = performance.now();
    tokens.push(await this._feed(0, 0, promptTokens));
    const firstTokenSeconds = secondsSince(begin);
    while (tokens.length < answer) {
      const position = prompt + tokens.length - 1;
      tokens.push((await this._step([tokens.at(-1)], position))[0]);
    }
    const seconds = secondsSince(begin);
    this._clear(0);
    return {seconds, first_token_seconds: firstTokenSeconds, tokens};
  }

  /**
   * One token, not timed: it reads all weights into memory, and its logits
   * tell the size of the vocabulary and whether the weights make sense.
   */
  async _probe() {
    this._context.initBatch(1);
    this._context.addToBatch(
        0, 0, this._oneToken.fill(0), this._firstLogits);
    await this._context.decodeBatch();
    const result = await this._context.sampleToken(
        0, this._samplers[0], false, false, true);
    this._clear(0);
    // Pairs of a token and its logit.
    const logits = result[3];
    if (!logits?.every(Number.isFinite)) {
      throw new Error('the logits are not finite');
    }
    this._vocab = logits.length / 2;
  }

  _checkLength(tokens) {
    if (tokens > this._maxTokens) {
      throw new Error(`${tokens} tokens are above --max-tokens ` +
                      `${this._maxTokens}`);
    }
  }

  _fixedTokens(begin, count) {
    return Uint32Array.from(
        {length: count}, (_, i) => tokenAt(begin + i, this._vocab));
  }

  _clear(sequence) {
    this._context.disposeSequence(sequence);
    this._filled[sequence] = 0;
  }

  /** Drops what comes after the first `context` tokens. */
  _trim(batch, context) {
    for (let sequence = 0; sequence < batch; ++sequence) {
      if (!this._context.removeTokenCellsFromSequence(sequence, context, -1)) {
        throw new Error('llama.cpp cannot drop the end of a sequence');
      }
      this._filled[sequence] = context;
    }
  }

  /**
   * Puts the first `context` tokens of the fixed sequence into the cells of
   * each of `batch` sequences. They are computed once and copied: each
   * sequence has its own cells, and the time of a step does not depend on
   * their values.
   */
  async _fill(batch, context) {
    const longest = Math.max(...this._filled);
    const source = this._filled.indexOf(longest);
    if (longest < context) {
      await this._feed(
          source, longest, this._fixedTokens(longest, context - longest));
      this._filled[source] = context;
    }
    for (let sequence = 0; sequence < batch; ++sequence) {
      if (this._filled[sequence] >= context) continue;
      await this._context.copySequenceStateFromOtherSequence(sequence, source);
    }
    this._trim(batch, context);
  }

  /** Appends tokens to a sequence; returns the token sampled after them. */
  async _feed(sequence, position, tokens) {
    let logit = 0;
    for (let begin = 0; begin < tokens.length; begin += PROMPT_BATCH) {
      const chunk = tokens.subarray(begin, begin + PROMPT_BATCH);
      const isLast = begin + chunk.length === tokens.length;
      const wanted = isLast ? Uint32Array.of(chunk.length - 1) : NO_LOGITS;
      this._context.initBatch(chunk.length);
      [logit] = this._context.addToBatch(
          sequence, position + begin, chunk, wanted);
      await this._context.decodeBatch();
    }
    return this._sample(logit, 0);
  }

  /** Appends a token to each sequence; returns those sampled after them. */
  async _step(tokens, position) {
    const batch = tokens.length;
    const logits = new Array(batch);
    const begin = performance.now();
    this._context.initBatch(batch);
    for (let sequence = 0; sequence < batch; ++sequence) {
      this._oneToken[0] = tokens[sequence];
      logits[sequence] = this._context.addToBatch(
          sequence, position, this._oneToken, this._firstLogits)[0];
    }
    await this._context.decodeBatch();
    this._modelSeconds = secondsSince(begin);
    return this._sampleAll(logits);
  }

  async _sampleAll(logits) {
    const sampled = new Array(logits.length);
    const lanes = Math.min(this._samplers.length, logits.length);
    const lane = async (first) => {
      for (let i = first; i < logits.length; i += lanes) {
        sampled[i] = await this._sample(logits[i], first);
      }
    };
    await Promise.all(Array.from({length: lanes}, (_, first) => lane(first)));
    return sampled;
  }

  async _sample(logit, sampler) {
    const token = await this._context.sampleToken(
        logit, this._samplers[sampler]);
    if (token < 0) throw new Error('llama.cpp sampled no token');
    return token;
  }
}
