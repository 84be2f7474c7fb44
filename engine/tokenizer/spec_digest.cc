#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/build.h"

namespace overfill {
namespace {

// Hashes a part as a list of fields.
class PartHash {
 public:
  void Add(absl::string_view text) { hash_.UpdateField(text); }
  void Add(int64_t number) { hash_.UpdateField(absl::StrCat(number)); }
  Sha256Digest Finish() { return hash_.Finish(); }

 private:
  Sha256 hash_;
};

Sha256Digest DigestVocab(const TokenizerSpec& spec) {
  PartHash hash;
  for (const auto& [id, token] : spec.vocab) {
    hash.Add(id);
    hash.Add(token);
  }
  return hash.Finish();
}

Sha256Digest DigestMerges(const TokenizerSpec& spec) {
  PartHash hash;
  for (const Merge& merge : spec.merges) {
    hash.Add(merge.left);
    hash.Add(merge.right);
  }
  return hash.Finish();
}

Sha256Digest DigestModelFlags(const TokenizerSpec& spec) {
  PartHash hash;
  hash.Add(spec.unk_token);
  hash.Add(spec.fuse_unk);
  hash.Add(spec.byte_fallback);
  hash.Add(spec.ignore_merges);
  return hash.Finish();
}

// The flags of an added token, as a number.
int Flags(const AddedToken& token) {
  return token.single_word | token.lstrip << 1 | token.rstrip << 2 |
         token.normalized << 3 | token.special << 4;
}

Sha256Digest DigestAddedTokens(const TokenizerSpec& spec) {
  PartHash hash;
  for (const AddedToken& token : spec.added_tokens) {
    hash.Add(token.id);
    hash.Add(token.content);
    hash.Add(Flags(token));
  }
  return hash.Finish();
}

Sha256Digest DigestNormalizer(const TokenizerSpec& spec) {
  PartHash hash;
  for (const NormalizerStep& step : spec.normalizer) {
    hash.Add(static_cast<int>(step.kind));
    hash.Add(step.pattern);
    hash.Add(step.content);
  }
  return hash.Finish();
}

Sha256Digest DigestPreTokenizer(const TokenizerSpec& spec) {
  PartHash hash;
  for (const PreTokenizerStep& step : spec.pre_tokenizer) {
    hash.Add(static_cast<int>(step.kind));
    hash.Add(static_cast<int>(step.pattern));
    hash.Add(step.individual_digits);
    hash.Add(step.add_prefix_space);
    hash.Add(step.replacement);
    hash.Add(static_cast<int>(step.prepend_scheme));
    hash.Add(step.split);
  }
  return hash.Finish();
}

Sha256Digest DigestPostProcessor(const TokenizerSpec& spec) {
  PartHash hash;
  hash.Add(static_cast<int64_t>(spec.prefix_ids.size()));
  for (const int32_t id : spec.prefix_ids) hash.Add(id);
  for (const int32_t id : spec.suffix_ids) hash.Add(id);
  return hash.Finish();
}

Sha256Digest DigestDecoder(const TokenizerSpec& spec) {
  PartHash hash;
  const DecoderSpec& decoder = spec.decoder;
  hash.Add(decoder.byte_level);
  hash.Add(decoder.byte_fallback);
  hash.Add(decoder.strip_content);
  hash.Add(decoder.strip_start);
  for (const auto& [pattern, content] : decoder.replacements) {
    hash.Add(pattern);
    hash.Add(content);
  }
  return hash.Finish();
}

std::string DescribeToken(int32_t id, const std::string& token) {
  return absl::StrCat("id ", id, " is ", QuoteToken(token));
}

std::string DescribeVocab(const TokenizerSpec& a, const TokenizerSpec& b) {
  const auto [at_a, at_b] = std::mismatch(a.vocab.begin(), a.vocab.end(),
                                          b.vocab.begin(), b.vocab.end());
  const auto describe = [](auto at, const TokenizerSpec& spec) {
    return at == spec.vocab.end() ? std::string("there is no further token")
                                  : DescribeToken(at->first, at->second);
  };
  return absl::StrCat(describe(at_a, a), " in one, ", describe(at_b, b),
                      " in the other");
}

std::string DescribeMerges(const TokenizerSpec& a, const TokenizerSpec& b) {
  const auto same = [](const Merge& x, const Merge& y) {
    return x.left == y.left && x.right == y.right;
  };
  const auto at = std::mismatch(a.merges.begin(), a.merges.end(),
                                b.merges.begin(), b.merges.end(), same);
  return absl::StrCat("rank ", at.first - a.merges.begin(), " of ",
                      a.merges.size(), " in one, of ", b.merges.size(),
                      " in the other");
}

std::string DescribeAddedTokens(const TokenizerSpec& a,
                                const TokenizerSpec& b) {
  const auto same = [](const AddedToken& x, const AddedToken& y) {
    return x.id == y.id && x.content == y.content && Flags(x) == Flags(y);
  };
  const auto [at_a, at_b] =
      std::mismatch(a.added_tokens.begin(), a.added_tokens.end(),
                    b.added_tokens.begin(), b.added_tokens.end(), same);
  const auto describe = [](auto at, const TokenizerSpec& spec) {
    return at == spec.added_tokens.end()
               ? std::string("there is no further token")
               : absl::StrCat(DescribeToken(at->id, at->content),
                              " with flags ", Flags(*at));
  };
  return absl::StrCat(describe(at_a, a), " in one, ", describe(at_b, b),
                      " in the other");
}

}  // namespace

SpecDigests DigestSpec(const TokenizerSpec& spec) {
  SpecDigests digests;
  digests.vocab = DigestVocab(spec);
  digests.merges = DigestMerges(spec);
  digests.model_flags = DigestModelFlags(spec);
  digests.added_tokens = DigestAddedTokens(spec);
  digests.normalizer = DigestNormalizer(spec);
  digests.pre_tokenizer = DigestPreTokenizer(spec);
  digests.post_processor = DigestPostProcessor(spec);
  digests.decoder = DigestDecoder(spec);
  PartHash all;
  for (const Sha256Digest& part :
       {digests.vocab, digests.merges, digests.model_flags,
        digests.added_tokens, digests.normalizer, digests.pre_tokenizer,
        digests.post_processor, digests.decoder}) {
    all.Add(HexString(part));
  }
  digests.all = all.Finish();
  return digests;
}

std::string DescribeDifference(const TokenizerSpec& a,
                               const SpecDigests& a_digests,
                               const TokenizerSpec& b,
                               const SpecDigests& b_digests) {
  if (a_digests.vocab != b_digests.vocab) {
    return absl::StrCat("vocabulary: ", DescribeVocab(a, b));
  }
  if (a_digests.merges != b_digests.merges) {
    return absl::StrCat("merges: ", DescribeMerges(a, b));
  }
  if (a_digests.added_tokens != b_digests.added_tokens) {
    return absl::StrCat("added tokens: ", DescribeAddedTokens(a, b));
  }
  struct Part {
    const char* name;
    Sha256Digest SpecDigests::*digest;
  };
  constexpr Part kParts[] = {
      {"model (unk_token, fuse_unk, byte_fallback or ignore_merges)",
       &SpecDigests::model_flags},
      {"normalizer", &SpecDigests::normalizer},
      {"pre-tokenizer", &SpecDigests::pre_tokenizer},
      {"post-processor", &SpecDigests::post_processor},
      {"decoder", &SpecDigests::decoder},
  };
  for (const Part& part : kParts) {
    if (a_digests.*part.digest != b_digests.*part.digest) return part.name;
  }
  return "";
}

}  // namespace overfill
