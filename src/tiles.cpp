// The rows of kernels/tiles.def, and what is said of them.
#include <algorithm>

#include "kernels/tile_bytes.h"
#include "src/plan.h"

namespace sdpa {

const char* name(Backend b) {
  return b == Backend::cpu ? "cpu" : b == Backend::metal ? "metal" : "cuda";
}
const char* name(Kernel k) {
  switch (k) {
    case Kernel::prefill:
      return "prefill";
    case Kernel::middle:
      return "middle";
    case Kernel::decode:
      return "decode";
    case Kernel::packed:
      return "packed";
    case Kernel::narrow:
      return "narrow";
    case Kernel::wide:
      return "wide";
  }
  return "";
}
const char* name(DType t) {
  return t == DType::F32 ? "float32" : t == DType::F16 ? "float16" : "bfloat16";
}

const std::vector<Tile>& tiles() {
  static const std::vector<Tile> rows = {
#define SDPA_TILE(backend, kernel, d_min, d_max, dv_min, dv_max, dtypes, bq, bk, wm, wd) \
  {Backend::backend, Kernel::kernel, d_min, d_max, dv_min, dv_max, dtypes, bq, bk, wm, wd},
#include "kernels/tiles.def"
#undef SDPA_TILE
  };
  return rows;
}

bool Tile::holds(DType t) const {
  return dtypes & (t == DType::F32 ? kF32 : t == DType::F16 ? kF16 : kBF16);
}

bool Tile::takes(Backend on, const Problem& p) const {
  return backend == on && holds(p.dtype) && p.D >= d_min && p.D <= d_max && p.Dv >= dv_min &&
         p.Dv <= dv_max;
}

int Tile::threadgroup_bytes(DType dtype) const {
  if (backend != Backend::metal) return 0;
  const int itemsize = dtype == DType::F32 ? 4 : 2;
  if (kernel == Kernel::decode)
    return decode_threadgroup_bytes(itemsize, d_max, dv_max, bk, wm, wd);
  return prefill_threadgroup_bytes(itemsize, d_max, dv_max, bq, bk, wd);
}

}  // namespace sdpa
