#include "src/plan.h"

#include <algorithm>

namespace sdpa {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned bit(DType t) { return t == DType::F32 ? kF32 : t == DType::F16 ? kF16 : kBF16; }

// A split costs a partial result that is written and read again; below these many keys that is not worth it.
constexpr int kMinSplitKeys = 256;
// Tasks a thread, so that threads end together although causal tiles differ in work.
constexpr int kTasksPerThread = 2;

// Floats of one thread's tiles: Q, S, O, for prefill also K and V, and strided rows on their way into one. Dimensions
// are padded to the widest vector and micro-tile: no instruction set needs more.
int64_t tile_floats(const Tile& tile, const Problem& p) {
  constexpr int64_t kPad = 32;
  const int64_t keys = tile.bk + kPad, D = p.D + kPad, Dv = p.Dv + kPad;
  if (tile.kernel == Kernel::decode) return tile.bq * (D + Dv + keys) + 8 * std::max(D, Dv);
  return (tile.bq + kPad) * (D + Dv + keys) + keys * (D + Dv) + 16 * std::max(D, Dv);
}

std::string range(int first, int last) {
  std::string text = std::to_string(first);
  if (last != first) text.append("-").append(std::to_string(last));
  return text;
}

std::string served_dims(Backend backend) {
  std::string dims;
  for (const Tile& t : tiles()) {
    if (t.backend != backend || t.kernel != Kernel::prefill) continue;
    if (!dims.empty()) dims.append(", ");
    dims.append(range(t.d_min, t.d_max));
    if (t.dv_min != t.d_min || t.dv_max != t.d_max)
      dims.append(" (v ").append(range(t.dv_min, t.dv_max)).append(")");
  }
  return dims;
}

}  // namespace

const char* name(Backend b) {
  return b == Backend::cpu ? "cpu" : b == Backend::metal ? "metal" : "cuda";
}
const char* name(Kernel k) { return k == Kernel::prefill ? "prefill" : "decode"; }
const char* name(DType t) {
  return t == DType::F32 ? "float32" : t == DType::F16 ? "float16" : "bfloat16";
}

const std::vector<Tile>& tiles() {
  static const std::vector<Tile> rows = {
#define SDPA_TILE(backend, kernel, d_min, d_max, dv_min, dv_max, dtypes, bq, bk) \
  {Backend::backend, Kernel::kernel, d_min, d_max, dv_min, dv_max, dtypes, bq, bk},
#include "kernels/tiles.def"
#undef SDPA_TILE
  };
  return rows;
}

bool Tile::serves(Backend on, const Problem& p) const {
  return backend == on && (dtypes & bit(p.dtype)) && p.D >= d_min && p.D <= d_max &&
         p.Dv >= dv_min && p.Dv <= dv_max && (kernel != Kernel::decode || p.rows() <= bq);
}

std::variant<Plan, Unsupported> plan(const Problem& p, const Device& device) {
  const Tile* tile = nullptr;
  for (const Tile& row : tiles()) {
    if (row.serves(device.backend, p)) {
      tile = &row;
      break;
    }
  }
  if (!tile) {
    const std::string dims = served_dims(device.backend);
    return Unsupported{std::string("no ") + name(device.backend) + " kernel for head_dim " +
                       std::to_string(p.D) + ", v_head_dim " + std::to_string(p.Dv) + " in " +
                       name(p.dtype) +
                       (dims.empty() ? "; this build has none" : "; there are head dims " + dims)};
  }

  Plan out{.tile = *tile};
  out.kernel = std::string("sdpa_") + name(tile->kernel) + "_" + name(p.dtype) + "_d" +
               std::to_string(p.D) + "_v" + std::to_string(p.Dv) + "_bq" +
               std::to_string(tile->bq) + "_bk" + std::to_string(tile->bk) +
               (device.arch.empty() ? "" : "_" + device.arch);
  out.chunk_keys = p.chunk_size > 0 ? std::min(p.chunk_size, std::max(p.Lk, 1)) : std::max(p.Lk, 1);
  out.chunks = int(std::max<int64_t>(ceil_div(p.Lk, out.chunk_keys), 1));
  out.row_tiles = int(ceil_div(p.rows(), tile->bq));

  // Split the keys only where rows and heads leave threads idle.
  const int64_t units = int64_t(p.B) * p.Hkv * out.row_tiles;
  const int64_t wanted = int64_t(device.threads) * kTasksPerThread;
  int64_t splits = 1;
  if (device.threads > 1 && units > 0 && units < wanted)
    splits = std::clamp<int64_t>(out.chunk_keys / kMinSplitKeys, 1, ceil_div(wanted, units));
  out.split_keys = int(ceil_div(out.chunk_keys, splits));
  out.splits = int(ceil_div(out.chunk_keys, out.split_keys));
  out.tasks = units * out.splits;

  out.tile_bytes =
      std::min<int64_t>(device.threads, out.tasks) * tile_floats(*tile, p) * int64_t(sizeof(float));
  const int64_t rows = int64_t(p.B) * p.Hq * p.Lq;
  const int64_t state = rows * (int64_t(p.Dv) + 1) * int64_t(sizeof(float));
  out.partial_bytes = out.splits > 1 ? out.splits * state : 0;
  const bool O_in_place = p.dtype == DType::F32 || p.want_f32;
  if (out.chunks > 1) {
    out.carry_bytes = (O_in_place ? 0 : rows * p.Dv * int64_t(sizeof(float))) +
                      (p.want_lse ? 0 : rows * int64_t(sizeof(float)));
  }
  return out;
}

}  // namespace sdpa
