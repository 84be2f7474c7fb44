#include "server/wire.h"

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "grpcpp/support/slice.h"
#include "server/convert.h"

namespace overfill {

absl::Status FromWire(const grpc::ByteBuffer& buffer,
                      google::protobuf::Message* message) {
  if (!buffer.Valid()) return ParseMessage("", message);
  grpc::Slice slice;
  if (buffer.TrySingleSlice(&slice).ok() ||
      buffer.DumpToSingleSlice(&slice).ok()) {
    return ParseMessage(
        {reinterpret_cast<const char*>(slice.begin()), slice.size()}, message);
  }
  return absl::InternalError("a message could not be decompressed");
}

grpc::ByteBuffer ToWire(const google::protobuf::Message& message) {
  const size_t size = message.ByteSizeLong();
  grpc::Slice slice(size);
  const bool written = message.SerializeToArray(
      const_cast<uint8_t*>(slice.begin()), static_cast<int>(size));
  OVERFILL_CHECK(written);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace overfill
