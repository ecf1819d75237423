// How the work of a backward pass on the CPU is cut. Pure, as plan.h is.
#pragma once

#include <optional>

#include "src/plan.h"

namespace sdpa {

// The matrix of row blocks x key tiles of a KV head is walked along its diagonals: in round r, key tile j meets row block
// (j + r) % rounds. So the tasks of a round share neither rows nor keys, and dQ, dK and dV are summed without locks, in
// an order that does not depend on the threads.
struct BackwardPlan {
  int bq = 0, bk = 0;   // those of a forward pass of many rows
  int row_tiles = 0;    // tiles of at most bq rows that one KV head is cut into
  int key_tiles = 0;    // tiles of at most bk keys
  int block_tiles = 0;  // row tiles of a block: one task takes them with keys that are packed once
  int row_blocks = 0;
  int rounds = 0;
  int heads = 0;  // KV heads at a time; their float32 sums are what the pass needs of memory

  int64_t tasks() const { return int64_t(heads) * key_tiles; }  // of a round
};

// nullopt where no kernel of the CPU serves the head dimensions.
std::optional<BackwardPlan> plan_backward(const Problem&, const Device&);

}  // namespace sdpa
