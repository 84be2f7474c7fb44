#include "scheduler/pool.h"

#include <chrono>
#include <utility>

namespace overfill {

Pool::Pool(PoolId id, StepRunner* runner, PoolHost* host)
    : id_(id), runner_(runner), host_(host), thread_([this] { Loop(); }) {}

Pool::~Pool() { thread_.join(); }

void Pool::Loop() {
  while (std::unique_ptr<Step> step = host_->Plan(id_)) {
    const auto begin = std::chrono::steady_clock::now();
    absl::StatusOr<StepResult> result = runner_->Run(step->batch);
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - begin;
    host_->Apply(std::move(step), std::move(result), seconds.count());
  }
}

}  // namespace overfill
