// The answer: which kernel, which tile, how the work is cut. Pure: no arrays, no device, the same on every machine.
#pragma once

#include <climits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "src/problem.h"

namespace sdpa {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Backend { cpu, metal, cuda };
enum class Kernel {
  prefill,
  middle,  // the prefill kernel of a GPU with a small tile, for the rows of a KV head that fit it
  decode,
  packed,  // decode of the fewest rows over a quantized cache
  narrow,  // CUDA: prefill on the tensor cores of compute capability 9.0
  wide,    // the same for wide head dimensions
};

constexpr unsigned kF32 = 1, kF16 = 2, kBF16 = 4;  // sets of dtypes

const char* name(Backend);
const char* name(Kernel);
const char* name(DType);

// A row of kernels/tiles.def.
struct Tile {
  Backend backend;
  Kernel kernel;
  int d_min, d_max, dv_min, dv_max;
  unsigned dtypes;
  int bq, bk;
  int wm, wd;  // simdgroups or warps, on a GPU

  int threads() const { return 32 * wm * wd; }  // of a threadgroup
  bool holds(DType) const;
  // Whether the head dimensions and the dtype are in its limits.
  bool takes(Backend, const Problem&) const;
  // Bytes of threadgroup memory; 0 on a CPU.
  int threadgroup_bytes(DType) const;
};

const std::vector<Tile>& tiles();

// What plan() needs to know of the machine.
struct Device {
  Backend backend = Backend::cpu;
  std::string arch = {};  // the instruction set on a CPU, else as MLX names it

  int threads = 1;             // CPU: threads that work at once
  int64_t l2_bytes = 1 << 20;  // CPU: of the cache that a thread has to itself

  int max_threads = 1024;     // GPU: threads of a threadgroup that it accepts
  int fill = 1;               // GPU: threadgroups that keep it busy
  double dispatch_flops = 0;  // GPU: work of the longest dispatch; 0 = no bound
  int64_t memory = 0;  // GPU: bytes that the partial results of splits may take; 0 = no bound

  int capability = 0;    // CUDA: 90 is compute capability 9.0
  int shared_bytes = 0;  // CUDA: of a block, at most
};

// A GPU that nothing is known of but its name: with the bounds of the smallest Mac, safe on all. What is known of
// others is in python/mlx_sdpa_ext/profiles.
Device apple_gpu(const std::string& arch);

// An NVIDIA GPU by its architecture, "sm_90"; what it has of processors the driver says at evaluation.
Device nvidia_gpu(const std::string& arch);

// One dispatch of a GPU kernel.
struct Dispatch {
  int chunk;   // it belongs to
  int split0;  // of the chunk's splits the first
  Part part;
  // Of whole tiles at the compiled head dimensions: what the GPU executes, hidden blocks left out.
  double flops;
};

// How a CUDA kernel is launched.
struct Launch {
  int cluster = 1;                     // blocks of a cluster, of neighbouring row tiles
  int resident = 1;                    // blocks that one multiprocessor holds
  int box_rows_k = 0, box_rows_v = 0;  // of the boxes that TMA copies; 0 = it does not use TMA
};

struct Plan {
  Tile tile;
  // The name spells the tile: sdpa_prefill_float16_d256_v256_bq128_bk128_avx512.
  std::string kernel = {};
  int row_tiles = 0;          // tiles of at most bq rows that one KV head is cut into
  int splits = 0;             // parts the keys of a chunk are cut into, attended at once and merged
  int chunks = 0;             // parts the keys are cut into, attended one after the other
  int chunk_keys = 0;         // keys of a chunk; the last may be shorter
  int split_keys = 0;         // keys of a split; the last may be shorter
  int64_t tasks = 0;          // B * Hkv * row_tiles * splits, of each chunk
  int64_t tile_bytes = 0;     // CPU: scratch for the tiles of all threads, at most
  int64_t partial_bytes = 0;  // scratch for the partial (O, lse) of the splits
  int64_t carry_bytes = 0;    // scratch for the running (O, lse) of the chunks
  int64_t lse_bytes = 0;      // CPU: an lse that was not asked for; a gradient would start from it

  // GPU
  int threads = 0;                        // of a threadgroup
  int threadgroup_bytes = 0;              // of threadgroup memory
  std::vector<Dispatch> dispatches = {};  // in order; on a GPU chunks that no row sees are left out
  double longest_flops = 0;               // of a dispatch
  Launch launch = {};                     // CUDA
  bool merges = false;                    // GPU: a kernel merges partial results
};

struct Unsupported {
  std::string reason;
};

std::variant<Plan, Unsupported> plan(const Problem&, const Device&);

// Why there is no plan, if there is none.
std::optional<Unsupported> unsupported(const Problem&, const Device&);

// The first prefill row of a CPU, of at most most_rows rows, that keeps all threads busy and whose products stay in the L2
// cache, or the last; null where none takes the problem.
const Tile* cpu_prefill_tile(const Problem&, const Device&, int most_rows = INT_MAX);

}  // namespace sdpa
