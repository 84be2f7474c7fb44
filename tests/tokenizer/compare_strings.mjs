// The strings of the comparison, made from a seed.
//
// Only characters that Unicode 15.0 had assigned are drawn: implementations
// follow different Unicode versions, and newer characters are letters in some
// and unassigned in others.

// mulberry32: small, seeded, the same everywhere.
export function makeRandom(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return {
    below: (n) => Math.floor(next() * n),
    pick: (list) => list[Math.floor(next() * list.length)],
    chance: (p) => next() < p,
  };
}

// Ranges without holes that later versions filled.
const RANGES = [
  [0x20, 0x7e], [0xa0, 0x24f], [0x250, 0x36f], [0x391, 0x3a1],
  [0x3a3, 0x3ff], [0x400, 0x52f], [0x5d0, 0x5ea], [0x591, 0x5c7],
  [0x620, 0x6ff], [0x905, 0x939], [0x93e, 0x94d], [0x958, 0x977],
  [0xe01, 0xe3a], [0xe40, 0xe5b], [0x10a0, 0x10c5], [0x1100, 0x11ff],
  [0x180e, 0x180e], [0x1e00, 0x1eff], [0x2000, 0x2064], [0x2070, 0x2071], [0x20a0, 0x20bf],
  [0x2100, 0x218b], [0x2190, 0x23ff], [0x2460, 0x27bf], [0x3000, 0x303f],
  [0x3041, 0x3096], [0x3099, 0x30ff], [0x3131, 0x318e], [0x4e00, 0x9fa5],
  [0xac00, 0xd7a3], [0xe000, 0xe010], [0xfb00, 0xfb06], [0xfb13, 0xfb17],
  [0xfe00, 0xfe0f], [0xfe20, 0xfe2f], [0xff01, 0xffbe], [0x10400, 0x1044f],
  [0x1d15e, 0x1d164], [0x1d400, 0x1d454], [0x1d7ce, 0x1d7ff],
  [0x1f1e6, 0x1f1ff], [0x1f300, 0x1f64f], [0x1f680, 0x1f6c5],
  [0x1f900, 0x1f93e], [0x20000, 0x2a6d6], [0x2f800, 0x2f8ff],
  [0xe0020, 0xe007f], [0xe0100, 0xe0110], [0x0, 0x1f], [0x7f, 0x9f],
];

function randomChar(random) {
  for (;;) {
    const [first, last] = random.pick(RANGES);
    const c = first + random.below(last - first + 1);
    if (!/\p{Cn}/u.test(String.fromCodePoint(c))) {
      return String.fromCodePoint(c);
    }
  }
}

const WORDS = [
  'the', 'Hello', 'world', 'tokenizer', 'x', 'I', 'naïve', 'café', 'Straße',
  'привет', 'Мир', 'καλημέρα', 'שלום', 'السلام', 'नमस्ते', 'สวัสดี', '안녕하세요',
  '日本語', '中文', 'ひらがな', 'カタカナ', 'Việt', 'İstanbul', 'ǅ', 'ﬁ', 'e\u0301',
  'A\u030a', '\u1100\u1161\u11a8', '\u212b', '\u0344', '😀', '👩‍👩‍👧‍👦', '🇺🇸',
  '❤️', '👍🏽', '½', '٣٤', 'Ⅷ', '²', '①', '1234567', '3.14159', '1,000,000',
  '0x1F', 'camelCase', 'HTTPServer', 'snake_case', 'McDonald', 'ªº',
];
const CONTRACTIONS = [
  "don't", "I'll", "we've", "you're", "it's", "I'm", "he'd", "DON'T", "I'LL",
  "WE'VE", "YOU'RE", "IT'S", "'S", "'ſ", "it'ſ", "'Ll", "'rE", "''s", "'",
  "'sun", "o'clock", "'t", "rock'n'roll", "’s", "ſ's",
];
const GAPS = [
  ' ', ' ', ' ', '', '  ', '   ', '\n', '\n\n', '\t', '\r\n', ' \n ', '\u00a0',
  '\u3000', '\u2028', '\u0085', '\u200b', '\ufeff', '\u000b', '\u001c', ' \t',
];
const CODE = [
  'int main(int argc, char** argv) {\n\treturn 0;\n}', 'x += y->z[i++];',
  'for (let i=0;i<10;++i) {}', '#include <vector>\n', '</div>', '"\\n"',
  "print(f'{x!r}')", 'SELECT * FROM t WHERE a<>b;', '// comment\n',
  '/* a\n * b */', 'a&&b||!c', '$HOME/bin:/usr/bin', '0b1010_1010',
  'https://example.org/a?b=c&d=%20#e', '{"k": [1, 2, null]}', '\\u0041',
  '<0x0A>', '<0xE2>', '▁', '▁▁the', 'Ġthe', 'Ċ',
];
const SYMBOLS = [
  '!', '?!', '...', '-', '—', '$', '%', '#', '@', '_', '/', '\\', '(', ')]',
  '!!!\n', ' /\n', '+=', '~', '`', '^', '|', '…', '「」', '،', '۔', '।', '€',
];

function sentence(random, parts, count) {
  let text = '';
  for (let i = 0; i < count; ++i) {
    text += random.pick(random.pick(parts)) + random.pick(GAPS);
  }
  return random.chance(0.3) ? text.trimEnd() : text;
}

function repeated(random) {
  const unit = random.chance(0.5)
    ? random.pick([' ', '\n', '\t', 'a', 'A', '1', '\u0301', '.', "'", '日', '\r',
      '👍', '\u200d', '▁', '\u00a0', 'ab', ' a', '\n ', '<', 'aA', '٣'])
    : randomChar(random);
  return unit.repeat(1 + random.below(random.chance(0.1) ? 300 : 20));
}

function randomUnicode(random) {
  let text = '';
  for (let i = 1 + random.below(40); i > 0; --i) text += randomChar(random);
  return text;
}

function randomAscii(random) {
  let text = '';
  for (let i = 1 + random.below(60); i > 0; --i) {
    text += String.fromCharCode(random.below(128));
  }
  return text;
}

// `added` holds the contents of the tokenizer's added tokens.
export function makeStrings(random, count, added) {
  const specials = added.concat(
    added.map((t) => t.slice(0, -1)), added.map((t) => t.slice(1)),
    ['<|', '|>', '<s', '</s>', '<unk>', '<|im_start|>user\n', 'Norm', 'word',
      'wordy', 'sword', ' word ', '_word', 'word\u0301', 'Norma', '(', '((', '(((', '((wor']);
  const kinds = [
    () => sentence(random, [WORDS], 1 + random.below(30)),
    () => sentence(random, [WORDS, CONTRACTIONS], 1 + random.below(20)),
    () => sentence(random, [WORDS, CODE, SYMBOLS], 1 + random.below(12)),
    () => sentence(random, [WORDS, SYMBOLS, CONTRACTIONS, GAPS],
      1 + random.below(30)),
    () => sentence(random, [WORDS, specials, GAPS], 1 + random.below(12)),
    () => sentence(random, [specials], 1 + random.below(6)),
    () => repeated(random),
    () => repeated(random) + repeated(random) + repeated(random),
    () => repeated(random) + sentence(random, [WORDS], 3) + repeated(random),
    () => randomUnicode(random),
    () => randomUnicode(random) + random.pick(GAPS) + randomUnicode(random),
    () => randomAscii(random),
  ];
  const strings = ['', ' ', 'a', '\u0000', ...CODE, ...CONTRACTIONS, ...WORDS];
  while (strings.length < count) strings.push(random.pick(kinds)());
  // UTF-8 cannot hold lone surrogates; slicing may have made some.
  return strings.map((text) => text.replace(/\p{Surrogate}/gu, '\ufffd'));
}

// Sequences of ids that no text gives: broken characters, specials, holes.
export function makeIdLists(random, count, vocabSize) {
  const lists = [];
  while (lists.length < count) {
    const ids = [];
    for (let i = 1 + random.below(30); i > 0; --i) {
      // Low ids are the bytes, in most vocabularies.
      const limit = random.chance(0.5) ? 300 : vocabSize + 5;
      ids.push(random.below(limit));
    }
    lists.push(ids);
  }
  return lists;
}
