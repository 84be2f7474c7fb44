// What the server says of itself and its pair.
#ifndef OVERFILL_SERVER_MODEL_INFO_H_
#define OVERFILL_SERVER_MODEL_INFO_H_

#include "engine/pair.h"
#include "engine/pair_engine.h"
#include "kernels/device.h"
#include "overfill/v1/inference.pb.h"
#include "server/config.h"
#include "server/metrics.h"

namespace overfill {

// The version of the whole project.
const char* Version();

v1::GetModelInfoResponse MakeModelInfo(const Pair& pair,
                                       const PairEngine& engine,
                                       const DeviceInfo& device,
                                       const ServerConfig& config);

// Of the metric overfill_model_info.
InfoLabels ModelInfoLabels(const v1::GetModelInfoResponse& info);

}  // namespace overfill

#endif  // OVERFILL_SERVER_MODEL_INFO_H_
