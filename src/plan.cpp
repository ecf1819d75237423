#include "src/plan.h"

#include <algorithm>
#include <numeric>

#include "src/plan_cuda.h"
#include "src/plan_gpu.h"

namespace sdpa {

namespace {

// A split costs a partial result that is written and read again; below these many keys that is not worth it.
constexpr int kMinSplitKeys = 256;
// Tasks a thread of so many rows, so that threads end together although causal tiles differ in work.
constexpr int kTasksPerThread = 2, kTaskRows = 256;
// The same where decode splits the keys: a thread that wakes up late, or whose core is slower, takes fewer.
constexpr int kSplitsPerThread = 8;

// Floats of one thread's tiles: Q, S, O, for decode the mask and a copy of strided rows, for the others K and V. Dimensions
// are padded to the widest vector and micro-tile: no instruction set needs more.
int64_t tile_floats(const Tile& tile, const Problem& p) {
  constexpr int64_t kPad = 32;
  const int64_t keys = tile.bk + kPad, D = p.D + kPad, Dv = p.Dv + kPad;
  if (tile.kernel == Kernel::decode) {
    const int64_t copy = tile.bk * std::max(D, Dv);
    return tile.bq * (D + Dv + 2 * keys) + keys + (p.dtype == DType::F32 ? copy : copy / 2);
  }
  return (tile.bq + kPad) * (D + Dv + keys) + keys * (D + Dv) + 16 * std::max(D, Dv);
}

std::string range(int first, int last) {
  std::string text = std::to_string(first);
  if (last != first) text.append("-").append(std::to_string(last));
  return text;
}

bool covers(const Tile& wide, const Tile& t) {
  const bool same = wide.d_min == t.d_min && wide.d_max == t.d_max && wide.dv_min == t.dv_min &&
                    wide.dv_max == t.dv_max;
  return !same && wide.d_min <= t.d_min && wide.d_max >= t.d_max && wide.dv_min <= t.dv_min &&
         wide.dv_max >= t.dv_max;
}

// The head dimensions of the prefill rows, those left out that another row includes.
std::string served_dims(Backend backend) {
  std::vector<std::string> dims;
  for (const Tile& t : tiles()) {
    const auto other = [&](const Tile& o) {
      return o.backend == backend && o.kernel == Kernel::prefill && covers(o, t);
    };
    if (t.backend != backend || t.kernel != Kernel::prefill) continue;
    if (std::any_of(tiles().begin(), tiles().end(), other)) continue;
    std::string text = range(t.d_min, t.d_max);
    if (t.dv_min != t.d_min || t.dv_max != t.d_max)
      text.append(" (v ").append(range(t.dv_min, t.dv_max)).append(")");
    if (std::find(dims.begin(), dims.end(), text) == dims.end()) dims.push_back(text);
  }
  std::string all;
  for (const std::string& text : dims) all.append(all.empty() ? "" : ", ").append(text);
  return all;
}

// Bytes that one of the products of a prefill tile goes through, in float32: Q K^T -> S, or P V -> O.
int64_t product_bytes(const Tile& tile, const Problem& p) {
  const int64_t D = std::max(p.D, p.Dv);
  return ((tile.bq + tile.bk) * D + int64_t(tile.bq) * tile.bk) * int64_t(sizeof(float));
}

// Whether a tile of more than kEvenRows rows is filled, and leaves tasks enough for all threads: those of a causal mask
// differ in size.
bool shares_well(const Tile& tile, const Problem& p, const Device& device) {
  constexpr int kEvenRows = 128;
  if (tile.bq <= kEvenRows) return true;
  const int64_t tasks = int64_t(p.B) * p.Hkv * ceil_div(p.rows(), tile.bq);
  return p.rows() >= tile.bq &&
         tasks * kTaskRows >= int64_t(device.threads) * kTasksPerThread * tile.bq;
}

// The first row that serves the problem: where the rows of a KV head fit one tile, that of a kernel for few rows.
const Tile* choose(const Problem& p, const Device& device) {
  if (p.bits && device.backend == Backend::metal) return nullptr;
  if (device.backend == Backend::cuda) return choose_cuda(p, device);
  const auto first = [&](Kernel kernel, bool must_fit) -> const Tile* {
    for (const Tile& t : tiles()) {
      if (t.kernel == kernel && t.takes(device.backend, p) && (!must_fit || p.rows() <= t.bq) &&
          t.threads() <= device.max_threads)
        return &t;
    }
    return nullptr;
  };
  if (const Tile* t = first(p.bits ? Kernel::packed : Kernel::decode, true)) return t;
  if (device.backend == Backend::cpu) return cpu_prefill_tile(p, device);
  if (const Tile* t = first(Kernel::middle, true)) return t;
  if (const Tile* t = first(Kernel::prefill, false)) return t;
  return first(Kernel::middle, false);  // all prefill rows ask for more threads than there are
}

Unsupported why_not(const Problem& p, const Device& device) {
  if (p.bits)
    return {std::string("no ") + name(device.backend) + " kernel reads a cache of " +
            std::to_string(p.bits) + " bits for " + std::to_string(p.rows()) +
            " rows of a KV head in " + name(p.dtype)};
  const std::string what = std::string(" kernel for head_dim ") + std::to_string(p.D) +
                           ", v_head_dim " + std::to_string(p.Dv) + " in " + name(p.dtype);
  for (const Tile& t : tiles()) {
    if (t.takes(device.backend, p) && t.kernel != Kernel::decode)
      return {std::string("every ") + name(device.backend) + what + " needs more than the " +
              std::to_string(device.max_threads) +
              " threads of a threadgroup that the GPU accepts"};
  }
  const std::string dims = served_dims(device.backend);
  return {std::string("no ") + name(device.backend) + what +
          (dims.empty() ? "; this build has none" : "; there are head dims " + dims)};
}

std::string kernel_name(const Tile& tile, const Problem& p, const Device& device) {
  const bool cpu = device.backend == Backend::cpu;  // whose kernels take any head dimension
  std::string text = std::string("sdpa_") + name(tile.kernel) + "_" + name(p.dtype) + "_d" +
                     std::to_string(cpu ? p.D : tile.d_max) + "_v" +
                     std::to_string(cpu ? p.Dv : tile.dv_max) + "_bq" + std::to_string(tile.bq) +
                     "_bk" + std::to_string(tile.bk);
  if (device.backend == Backend::metal)
    return text + "_w" + std::to_string(tile.wm) + "x" + std::to_string(tile.wd);
  if (p.bits) text += "_" + std::to_string(p.bits) + "bit_g" + std::to_string(p.group_size);
  return device.arch.empty() ? text : text + "_" + device.arch;
}

void plan_cpu(const Problem& p, const Device& device, Plan& out) {
  out.chunk_keys = p.chunk_size > 0 ? std::min(p.chunk_size, std::max(p.Lk, 1)) : std::max(p.Lk, 1);
  out.chunks = int(std::max<int64_t>(ceil_div(p.Lk, out.chunk_keys), 1));

  // Split the keys only where rows and heads leave threads idle.
  const int64_t units = int64_t(p.B) * p.Hkv * out.row_tiles;
  const int64_t wanted = int64_t(device.threads) * kTasksPerThread;
  const int64_t parts =
      out.tile.kernel == Kernel::decode ? int64_t(device.threads) * kSplitsPerThread : wanted;
  int64_t splits = 1;
  if (device.threads > 1 && units > 0 && units < wanted) {
    // A task over a quantized cache rounds Q first and reads its first tile unfetched: as few as give all threads the same.
    const int64_t most = out.tile.kernel == Kernel::packed
                             ? device.threads / std::gcd(int64_t(device.threads), units)
                             : ceil_div(parts, units);
    splits = std::clamp<int64_t>(out.chunk_keys / kMinSplitKeys, 1, most);
  }
  out.split_keys = int(ceil_div(out.chunk_keys, splits));
  out.splits = int(ceil_div(out.chunk_keys, out.split_keys));
  out.tasks = units * out.splits;
  out.tile_bytes = std::min<int64_t>(device.threads, out.tasks) * tile_floats(out.tile, p) *
                   int64_t(sizeof(float));
}

}  // namespace

const Tile* cpu_prefill_tile(const Problem& p, const Device& device, int most_rows) {
  const Tile* found = nullptr;
  for (const Tile& t : tiles()) {
    if (t.kernel != Kernel::prefill || t.bq > most_rows || !t.takes(Backend::cpu, p)) continue;
    found = &t;
    if (product_bytes(t, p) <= device.l2_bytes && shares_well(t, p, device)) break;
  }
  return found;
}

std::optional<Unsupported> unsupported(const Problem& p, const Device& device) {
  if (choose(p, device)) return std::nullopt;
  return why_not(p, device);
}

std::variant<Plan, Unsupported> plan(const Problem& p, const Device& device) {
  const Tile* tile = choose(p, device);
  if (!tile) return why_not(p, device);

  Plan out{.tile = *tile};
  out.row_tiles = int(ceil_div(p.rows(), tile->bq));
  if (device.backend == Backend::cpu) {
    plan_cpu(p, device, out);
  } else {
    plan_gpu(p, device, out);
  }
  out.kernel = kernel_name(out.tile, p, device);

  const int64_t rows = int64_t(p.B) * p.Hq * p.Lq;
  const int64_t state = rows * (int64_t(p.Dv) + 1) * int64_t(sizeof(float));
  if (device.backend == Backend::cpu && !p.want_lse) out.lse_bytes = rows * int64_t(sizeof(float));
  const bool gpu_merges = device.backend == Backend::cuda && (out.chunks > 1 || p.carry);
  out.merges = device.backend != Backend::cpu && (out.splits > 1 || gpu_merges);
  out.partial_bytes = out.splits > 1 || out.merges ? out.splits * state : 0;
  const bool O_in_place = p.dtype == DType::F32 || p.want_f32;
  if (out.chunks > 1) {
    // A CPU task and a merge on CUDA carry lse where it goes; Metal kernels take two arrays in turns.
    const int lses = device.backend == Backend::metal  ? std::min(out.chunks - 1, 2)
                     : device.backend == Backend::cuda ? !p.want_lse
                                                       : 0;
    out.carry_bytes = rows * int64_t(sizeof(float)) * ((O_in_place ? 0 : p.Dv) + lses);
  }
  return out;
}

}  // namespace sdpa
