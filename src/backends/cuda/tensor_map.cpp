#include "src/backends/cuda/tensor_map.h"

#include "src/backends/cuda/driver.h"
#include "src/backends/cuda/mlx_cuda.h"
#include "src/launch.h"

namespace sdpa::cuda {

namespace {

// Values of the driver's enumerations.
constexpr int kFloat16 = 6, kBFloat16 = 9;  // CU_TENSOR_MAP_DATA_TYPE_
constexpr int kNoInterleave = 0, kSwizzle128B = 3, kPromotion256B = 3, kZeros = 0;
constexpr int kBoxColumns = 64;  // 128 bytes

}  // namespace

bool tiled(const mx::array& x) {
  const Strides s = strides_of(x);
  const int64_t steps[] = {s.batch, s.head, s.row};
  bool fits = vector_rows(x) && x.itemsize() == 2;
  for (int i = 0; i < 3; ++i) fits = fits && steps[i] >= 0 && (steps[i] > 0 || x.shape(i) == 1);
  return fits;
}

TensorMap tensor_map(const mx::array& x, int rows) {
  const Strides s = strides_of(x);
  const uint64_t dims[] = {uint64_t(x.shape(3)), uint64_t(x.shape(2)), uint64_t(x.shape(1)),
                           uint64_t(x.shape(0))};
  const auto bytes = [](int64_t step) {
    return uint64_t(step > 0 ? step * 2 : 16);  // of a dimension of 1, which is never stepped over
  };
  const uint64_t strides[] = {bytes(s.row), bytes(s.head), bytes(s.batch)};
  const uint32_t box[] = {kBoxColumns, uint32_t(rows), 1, 1}, steps[] = {1, 1, 1, 1};
  TensorMap map;
  check(driver().cuTensorMapEncodeTiled(&map, x.dtype() == mx::float16 ? kFloat16 : kBFloat16, 4,
                                        pointer(x), dims, strides, box, steps, kNoInterleave,
                                        kSwizzle128B, kPromotion256B, kZeros),
        "cuTensorMapEncodeTiled");
  return map;
}

}  // namespace sdpa::cuda
