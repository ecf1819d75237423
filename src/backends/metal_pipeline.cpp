#include "src/backends/metal_pipeline.h"

#include <mutex>
#include <unordered_map>

#include "kernels/metal/arguments.h"
#include "src/backends/gpu.h"
#include "src/backends/metal_source.h"

namespace sdpa::metal {

namespace {

const char* metal_type(DType t) {
  return t == DType::F32 ? "float" : t == DType::F16 ? "half" : "bfloat";
}

// The values, for the name of the specialised kernel: one that differs in a constant is another kernel.
std::string spelled(const Constants& c) {
  std::string text = "_m" + std::to_string(c.mask_kind) + "t" + std::to_string(c.mask_type) + "_";
  for (bool flag : {c.causal, c.softcap, c.sinks, c.lse, c.carry, c.out_f32, c.vector, c.window})
    text += flag ? '1' : '0';
  return text;
}

mx::metal::MTLFCList values(const Constants& c) {
  constexpr auto kInt = MTL::DataTypeInt, kBool = MTL::DataTypeBool;
  return {
      {&c.mask_kind, kInt, kConstantMaskKind}, {&c.mask_type, kInt, kConstantMaskType},
      {&c.causal, kBool, kConstantCausal},     {&c.softcap, kBool, kConstantSoftcap},
      {&c.sinks, kBool, kConstantSinks},       {&c.lse, kBool, kConstantLse},
      {&c.carry, kBool, kConstantCarry},       {&c.out_f32, kBool, kConstantOutF32},
      {&c.vector, kBool, kConstantVector},     {&c.window, kBool, kConstantWindow},
  };
}

// MLX keeps what compiles; what does not is kept here, or each call would compile it again.
class Failures {
 public:
  void check(const std::string& library, const std::string& kernel) {
    std::lock_guard lock(mutex_);
    if (const auto found = errors_.find(library); found != errors_.end())
      throw KernelFailure(kernel, found->second);
  }
  [[noreturn]] void fail(const std::string& library, const std::string& kernel,
                         const std::string& error) {
    std::lock_guard lock(mutex_);
    errors_[library] = error;
    throw KernelFailure(kernel, error);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, std::string> errors_;
};

Pipeline compile(const Instance& kernel, const Constants& constants) {
  static Failures failures;
  const std::string library =
      "mlx_sdpa_ext_" + kernel.name + "_" + std::to_string(kernel_folder_generation());
  failures.check(library, kernel.name);
  try {
    auto& device = mx::metal::device(mx::Device::gpu);
    MTL::Library* compiled = device.get_library(library, [&] { return source_of(kernel); });
    Pipeline found;
    found.state = device.get_kernel(kernel.name, compiled, kernel.name + spelled(constants),
                                    values(constants));
    found.max_threads = int(found.state->maxTotalThreadsPerThreadgroup());
    return found;
  } catch (const std::exception& error) {
    failures.fail(library, kernel.name, error.what());
  }
}

}  // namespace

Pipeline attention_pipeline(const Plan& plan, DType dtype, const Constants& constants) {
  const Tile& t = plan.tile;
  const std::string stem = t.kernel == Kernel::decode ? "decode" : "prefill";  // middle is prefill
  std::string arguments = metal_type(dtype);
  for (int value : {t.d_max, t.dv_max, t.bq, t.bk, t.wm, t.wd})
    arguments += ", " + std::to_string(value);
  return compile({.name = plan.kernel,
                  .file = "kernels/metal/" + stem + ".h",
                  .function = "sdpa::" + stem + "<" + arguments + ">"},
                 constants);
}

Pipeline merge_pipeline(DType in, DType out, const Constants& constants) {
  return compile(
      {.name = std::string("sdpa_merge_") + name(in) + "_" + name(out),
       .file = "kernels/metal/merge.h",
       .function = std::string("sdpa::merge<") + metal_type(in) + ", " + metal_type(out) + ">"},
      constants);
}

}  // namespace sdpa::metal
