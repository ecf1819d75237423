// What a primitive has encoded, until it has run: on the thread of its CPU stream, in order.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "mlx/backend/metal/device.h"

namespace mlx::core::metal {

// One dispatch, or the handlers of a command buffer that was committed.
struct Job {
  MTL::ComputePipelineState* pipeline = nullptr;
  MTL::Size grid, group;
  std::unordered_map<int, Binding> table;
  std::vector<MTL::HandlerFunction> handlers;
  std::shared_ptr<MTL::CommandBuffer> buffer;  // the handlers' argument
};

struct Work {
  std::vector<Job> jobs;
  std::vector<Binding> fresh;  // memory that holds nothing yet: outputs and scratch
  std::vector<std::shared_ptr<array::Data>>
      kept;  // inputs, outputs and temporaries, until all has run

  void run();
};

// Notes that a command buffer with so many dispatches was committed.
void record_commit(int dispatches);
// Of the buffers committed since the last call, in order.
std::vector<int> take_commits();

// Records a breach of the rules by the host in the device's report.
void found(const char* kind, const std::string& kernel, const std::string& message);

}  // namespace mlx::core::metal
