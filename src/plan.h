// The answer: which kernel, which tile, how the work is cut. Pure: no arrays, no device, the same on every machine.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "src/problem.h"

namespace sdpa {

enum class Backend { cpu, metal, cuda };
enum class Kernel { prefill, decode };

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

  bool serves(Backend, const Problem&) const;
};

const std::vector<Tile>& tiles();

// What plan() needs to know of the machine.
struct Device {
  Backend backend = Backend::cpu;
  std::string arch;  // the instruction set on a CPU
  int threads = 1;   // CPU: threads that work at once
};

struct Plan {
  Tile tile;
  std::string kernel =
      {};             // the name spells the tile: sdpa_prefill_float16_d256_v256_bq128_bk128_avx512
  int row_tiles = 0;  // tiles of at most bq rows that one KV head is cut into
  int splits = 0;     // parts the keys of a chunk are cut into, attended at once and merged
  int chunks = 0;     // parts the keys are cut into, attended one after the other
  int chunk_keys = 0;         // keys of a chunk; the last may be shorter
  int split_keys = 0;         // keys of a split; the last may be shorter
  int64_t tasks = 0;          // B * Hkv * row_tiles * splits, of each chunk
  int64_t tile_bytes = 0;     // scratch for the tiles of all threads, at most
  int64_t partial_bytes = 0;  // scratch for the partial (O, lse) of the splits
  int64_t carry_bytes = 0;    // scratch for the running (O, lse) of the chunks
};

struct Unsupported {
  std::string reason;
};

std::variant<Plan, Unsupported> plan(const Problem&, const Device&);

}  // namespace sdpa
