// Writes DIR/FAMILY/{tokenizer.json,tokenizer_config.json} for every family.
//   make_tokenizers DIR SEED
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "tests/tokenizer/tokenizer_files.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: make_tokenizers DIR SEED\n";
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  for (const overfill::Family family : overfill::kAllFamilies) {
    const auto dir =
        std::filesystem::path(argv[1]) / overfill::FamilyName(family);
    std::filesystem::create_directories(dir);
    std::ofstream(dir / "tokenizer.json")
        << overfill::MakeTokenizerJson(family, seed).dump();
    std::ofstream(dir / "tokenizer_config.json")
        << overfill::MakeTokenizerConfig(family).dump();
    std::cout << overfill::FamilyName(family) << "\n";
  }
  return 0;
}
