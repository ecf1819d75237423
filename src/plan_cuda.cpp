#include "src/plan_cuda.h"

#include <algorithm>
#include <cctype>
#include <climits>
#include <iterator>

#include "kernels/cuda/decode_tile.h"
#include "kernels/cuda/narrow_tile.h"
#include "kernels/cuda/packed_tile.h"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/wide_tile.h"

namespace sdpa {

namespace {

// A split costs a partial result that is written and read again, and a pipeline that fills and drains.
constexpr int kMinSplitKeys = 128;
constexpr int kSplitCost = 64;  // in keys
constexpr int kMaxSplits = 512;
constexpr int kWaves = 4;  // of blocks, at most, where keys are split

struct Sizes {
  int bk, threads;
  int64_t shared_bytes;  // of a block; more than any device has where the tile does not fit
  Launch launch;
};

// What the header beside a kernel says of a tile.
Sizes sizes_of(const Tile& t, const Problem& p, int capability) {
  const int itemsize = p.dtype == DType::F32 ? 4 : 2;
  switch (t.kernel) {
    case Kernel::decode: {
      const int bk = decode_keys(itemsize, t.d_max, t.dv_max, t.bq, p.bits);
      const DecodeTile tile =
          decode_tile(itemsize, t.d_max, t.dv_max, t.bq, bk, p.bits, p.group_size, capability);
      if (tile.stages < 2) return {.bk = bk, .threads = 0, .shared_bytes = INT_MAX, .launch = {}};
      return {.bk = bk,
              .threads = tile.threads(),
              .shared_bytes = tile.shared_bytes(t.bq),
              .launch = {.resident = tile.ctas}};
    }
    case Kernel::narrow: {
      const int bk = narrow_keys(t.d_max, t.dv_max, t.bq);
      return {.bk = bk,
              .threads = narrow_threads(t.bq),
              .shared_bytes = narrow_shared_bytes(t.d_max, t.dv_max, t.bq, bk),
              .launch = {.box_rows_k = bk, .box_rows_v = bk}};
    }
    case Kernel::packed: {
      const PackedTile tile = packed_tile(t.d_max, t.dv_max, p.bits, p.group_size, capability);
      return {
          .bk = t.bk, .threads = tile.threads(), .shared_bytes = tile.shared_bytes(), .launch = {}};
    }
    case Kernel::wide:
      return {.bk = kWideKeys,
              .threads = kWideThreads,
              .shared_bytes = wide_shared_bytes(t.d_max),
              .launch = {.cluster = p.rows() <= kWideRows ? 1 : kWideCluster,
                         .box_rows_k = kWideBoxKeysK,
                         .box_rows_v = kWideBoxKeysV}};
    case Kernel::prefill: {
      const int bk = prefill_keys(t.dv_max);
      const PrefillTile tile = prefill_tile(t.d_max, t.dv_max, t.bq, bk, capability);
      if (tile.stages < 2) return {.bk = bk, .threads = 0, .shared_bytes = INT_MAX, .launch = {}};
      return {.bk = bk,
              .threads = tile.threads(),
              .shared_bytes = tile.shared_bytes(),
              .launch = {.resident = tile.ctas}};
    }
    default:
      return {.bk = t.bk, .threads = 0, .shared_bytes = 0, .launch = {}};
  }
}

bool serves(const Tile& tile, const Problem& p, const Device& device) {
  if (p.bits && tile.kernel != Kernel::decode && tile.kernel != Kernel::packed) return false;
  switch (tile.kernel) {
    case Kernel::decode:
      return p.rows() <= tile.bq && (!p.bits || decode_reads_packed(tile.dv_max));
    case Kernel::packed:
      return p.bits && p.rows() <= tile.bq;
    case Kernel::narrow:
      return device.capability == 90 && p.rows_are == Rows::Tiled &&
             (tile.bq > kNarrowFewRows || p.rows() <= tile.bq);
    case Kernel::wide:
      return device.capability == 90 && p.rows_are == Rows::Tiled && p.mask == MaskKind::None &&
             !p.softcap;
    default:
      return true;
  }
}

}  // namespace

Device nvidia_gpu(const std::string& arch) {
  Device found{.backend = Backend::cuda, .arch = arch};
  std::string digits;
  std::copy_if(arch.begin(), arch.end(), std::back_inserter(digits),
               [](unsigned char c) { return std::isdigit(c); });
  found.capability = digits.empty() ? 80 : std::stoi(digits);
  found.fill = found.capability == 90 ? 132 : 58;  // H100 and H200; an L4
  found.shared_bytes = block_bytes_of(found.capability);
  return found;
}

const Tile* choose_cuda(const Problem& p, const Device& device) {
  for (const Tile& t : tiles())
    if (t.takes(Backend::cuda, p) && serves(t, p, device) &&
        sizes_of(t, p, device.capability).shared_bytes <= device.shared_bytes)
      return &t;
  return nullptr;
}

void plan_cuda_launch(const Problem& p, const Device& device, Plan& out) {
  const Sizes sizes = sizes_of(out.tile, p, device.capability);
  out.tile.bk = sizes.bk;
  out.threads = sizes.threads;
  out.threadgroup_bytes = int(sizes.shared_bytes);
  out.launch = sizes.launch;
}

int64_t cuda_splits(const Plan& plan, const Device& device, int64_t units, int64_t span,
                    int64_t partial_bytes) {
  if (units <= 0) return 1;
  const int64_t slots = int64_t(device.fill) * plan.launch.resident;
  int64_t most = std::min<int64_t>(span / kMinSplitKeys, kMaxSplits);
  if (device.memory > 0) most = std::min(most, device.memory / std::max<int64_t>(partial_bytes, 1));
  const auto cost = [&](int64_t splits) {
    return double(ceil_div(units * splits, slots)) *
           double(ceil_div(span, splits) + (splits > 1 ? kSplitCost : 0));
  };
  int64_t best = 1;
  for (int waves = 1; waves <= kWaves; ++waves) {
    const int64_t splits = std::min(slots * waves / units, most);
    if (splits > 1 && cost(splits) < cost(best)) best = splits;
  }
  return best;
}

}  // namespace sdpa
