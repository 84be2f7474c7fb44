// SHA-256 over the content of large files.
#ifndef OVERFILL_ENGINE_CONTENT_DIGEST_H_
#define OVERFILL_ENGINE_CONTENT_DIGEST_H_

#include <string>
#include <vector>

#include "base/file.h"
#include "base/sha256.h"

namespace overfill {

// Over the files' names (without directories), sizes and bytes. Pieces of 64
// MiB are hashed in parallel by up to `num_threads` threads, and their digests
// are hashed in order. `what` begins the lines that a long run logs.
Sha256Digest DigestFiles(const std::vector<MappedFile>& files, int num_threads,
                         const std::string& what);

// Of each file's bytes alone, as sha256sum has it; one thread per file.
std::vector<Sha256Digest> DigestEachFile(const std::vector<MappedFile>& files,
                                         int num_threads,
                                         const std::string& what);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_CONTENT_DIGEST_H_
