#include "server/stream_pump.h"

#include <utility>

namespace overfill {

StreamPump::StreamPump() : thread_([this] { Run(); }) {}

StreamPump::~StreamPump() {
  {
    MutexLock lock(&mu_);
    stopped_ = true;
  }
  changed_.NotifyOne();
  thread_.join();
}

void StreamPump::Queue(std::shared_ptr<Pumpable> stream) {
  bool was_empty;
  {
    MutexLock lock(&mu_);
    was_empty = ready_.empty();
    ready_.push_back(std::move(stream));
  }
  if (was_empty) changed_.NotifyOne();
}

void StreamPump::Run() {
  std::vector<std::shared_ptr<Pumpable>> batch;
  while (true) {
    {
      MutexLock lock(&mu_);
      while (ready_.empty() && !stopped_) changed_.Wait(&mu_);
      if (ready_.empty()) return;
      batch.swap(ready_);
    }
    for (const auto& stream : batch) stream->Pump();
    batch.clear();
  }
}

}  // namespace overfill
