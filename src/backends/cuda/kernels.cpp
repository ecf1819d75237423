#include "src/backends/cuda/kernels.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "src/backends/cuda/compiler.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/driver.h"
#include "src/backends/gpu.h"

namespace sdpa::cuda {

namespace {

using Macros = std::vector<std::string>;

void define(Macros& macros, const char* name, int value) {
  macros.push_back(std::string("SDPA_") + name + "=" + std::to_string(value));
}

// wgmma and setmaxnreg are of one architecture, not of those after it.
bool is_hopper_only(Kernel k) { return k == Kernel::narrow || k == Kernel::wide; }

struct Loaded {
  CUfunc_st* function = nullptr;
  std::string error;  // why there is none
};

CUfunc_st* load(const std::string& file, const std::string& arch, const Macros& macros,
                int shared_bytes) {
  const std::string cubin = compile(file, arch, macros);
  CUmod_st* module = nullptr;  // stays loaded: graphs that were built hold its kernels
  check(driver().cuModuleLoadData(&module, cubin.data()), "cuModuleLoadData");
  CUfunc_st* function = nullptr;
  check(driver().cuModuleGetFunction(&function, module, "sdpa_kernel"), "cuModuleGetFunction");
  check(driver().cuFuncSetAttribute(function, kFunctionSharedBytes, shared_bytes),
        "cuFuncSetAttribute");
  return function;
}

// Keeps failures too: a kernel that does not compile is not compiled again for every call.
CUfunc_st* kept(const std::string& name, const std::string& file, const std::string& arch,
                const Macros& macros, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, Loaded> all;
  std::string key = file + " " + arch;
  for (const std::string& macro : macros) key.append(" ").append(macro);
  std::lock_guard lock(mutex);
  Loaded& found = all[{current_device(), key}];
  if (!found.function && found.error.empty()) {
    try {
      found.function = load(file, arch, macros, shared_bytes);
    } catch (const std::runtime_error& error) {
      found.error = error.what();
    }
  }
  if (!found.function) throw KernelFailure(name, found.error);
  return found.function;
}

}  // namespace

CUfunc_st* attention_kernel(const Plan& plan, const Variant& v) {
  const Tile& tile = plan.tile;
  Macros macros;
  define(macros, "DTYPE", int(v.dtype));
  define(macros, "D", tile.d_max);
  define(macros, "DV", tile.dv_max);
  define(macros, "BQ", tile.bq);
  define(macros, "BK", tile.bk);
  define(macros, "MASK", int(v.mask));
  define(macros, "MASK_DTYPE", int(v.mask == MaskKind::Additive ? v.mask_dtype : DType::F32));
  define(macros, "SOFTCAP", v.softcap);
  define(macros, "OUT_F32", v.out_f32);
  define(macros, "VECTOR", v.vector);
  if (tile.kernel == Kernel::decode || tile.kernel == Kernel::packed) {
    define(macros, "BITS", v.bits);
    define(macros, "GROUP", v.group);
  }
  if (tile.kernel == Kernel::wide) define(macros, "CLUSTER", plan.launch.cluster);
  const std::string arch = device().arch + (is_hopper_only(tile.kernel) ? "a" : "");
  return kept(plan.kernel, std::string("kernels/cuda/") + name(tile.kernel) + ".cuh", arch, macros,
              plan.threadgroup_bytes);
}

CUfunc_st* merge_kernel(DType dtype, bool parts_f32, bool out_f32) {
  Macros macros;
  define(macros, "DTYPE", int(dtype));
  define(macros, "PART_F32", parts_f32);
  define(macros, "SOFTCAP", 0);
  define(macros, "OUT_F32", out_f32);
  return kept(std::string("sdpa_merge_") + name(dtype), "kernels/cuda/merge.cuh", device().arch,
              macros, 0);
}

}  // namespace sdpa::cuda
