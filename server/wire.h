// Messages of the wire, which handlers parse themselves: gRPC answers what it
// cannot parse with UNIMPLEMENTED, while this API owes INVALID_ARGUMENT.
#ifndef OVERFILL_SERVER_WIRE_H_
#define OVERFILL_SERVER_WIRE_H_

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"

namespace overfill {

// INVALID_ARGUMENT as ParseMessage gives it.
absl::Status FromWire(const grpc::ByteBuffer& buffer,
                      google::protobuf::Message* message);
grpc::ByteBuffer ToWire(const google::protobuf::Message& message);

}  // namespace overfill

#endif  // OVERFILL_SERVER_WIRE_H_
