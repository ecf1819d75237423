#include "src/plan_backward.h"

#include <algorithm>

namespace sdpa {

namespace {

// Tasks of a round for each thread, so that threads end a round together although it is half empty where a mask is causal.
constexpr int kTasksPerThread = 8;
constexpr int kMostRows = 128;  // of a tile: it holds twice what prefill holds of it

}  // namespace

std::optional<BackwardPlan> plan_backward(const Problem& p, const Device& device) {
  const Tile* row =
      device.backend == Backend::cpu ? cpu_prefill_tile(p, device, kMostRows) : nullptr;
  if (!row) return std::nullopt;
  BackwardPlan out{.bq = row->bq, .bk = row->bk};
  out.row_tiles = int(ceil_div(p.rows(), out.bq));
  out.key_tiles = int(ceil_div(p.Lk, out.bk));
  // as many row blocks as key tiles, if there are rows for it: more would be rounds in which threads idle
  out.block_tiles = int(std::max<int64_t>(ceil_div(out.row_tiles, std::max(out.key_tiles, 1)), 1));
  out.row_blocks = int(ceil_div(out.row_tiles, out.block_tiles));
  out.rounds = std::max(out.row_blocks, out.key_tiles);
  const int64_t wanted = ceil_div(int64_t(device.threads) * kTasksPerThread,
                                  std::max(std::min(out.row_blocks, out.key_tiles), 1));
  out.heads = int(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(int64_t(p.B) * p.Hkv, 1)));
  return out;
}

}  // namespace sdpa
