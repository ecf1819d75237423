#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include "src/backends/gpu.h"
#include "src/bindings.h"
#include "src/op.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace {

nb::object gpu() {
  const sdpa::GpuBackend* backend = sdpa::gpu_backend();
  if (!backend) return nb::none();
  const sdpa::Device device = backend->device();
  nb::list failures;
  for (const auto& [kernel, error] : sdpa::gpu_failures())
    failures.append(nb::make_tuple(kernel, error));
  nb::dict out;
  out["name"] = backend->name;
  out["on_cpu_stream"] = backend->on_cpu_stream;
  out["arch"] = device.arch;
  out["fill"] = device.fill;
  out["dispatch_flops"] = device.dispatch_flops;
  out["memory"] = device.memory;
  out["kernels"] = backend->kernel_folder();
  out["failures"] = failures;
  return out;
}

void set_gpu_limits(double dispatch_flops, int fill, int64_t memory) {
  if (dispatch_flops < 0 || fill < 0 || memory < 0)
    throw std::invalid_argument("dispatch_flops, fill and memory must be 0 (the default) or more");
  if (const sdpa::GpuBackend* backend = sdpa::gpu_backend())
    backend->set_limits({dispatch_flops, fill, memory});
}

void set_kernel_folder(const std::string& path) {
  if (const sdpa::GpuBackend* backend = sdpa::gpu_backend()) backend->set_kernel_folder(path);
}

void set_cache_folder(const std::string& path) {
  const sdpa::GpuBackend* backend = sdpa::gpu_backend();
  if (backend && backend->set_cache_folder) backend->set_cache_folder(path);
}

nb::object answer(const std::optional<sdpa::Failed>& failed) {
  if (!failed) return nb::none();
  return nb::make_tuple(failed->kernel, failed->error);
}

}  // namespace

void bind_gpu(nb::module_& m) {
  nb::exception<sdpa::KernelFailure>(m, "KernelFailure", PyExc_RuntimeError);
  m.def("gpu", &gpu,
        "The GPU backend in use and the kernels that failed so far, each once with its error; None "
        "without a backend.");
  m.def("load_gpu_backend", &sdpa::load_gpu_backend, "path"_a, "arch"_a = "",
        "Takes the GPU backend of a shared library; '' = back to the one of this build, if any.");
  m.def("set_gpu_limits", &set_gpu_limits, "dispatch_flops"_a = 0., "fill"_a = 0, "memory"_a = 0,
        "FLOPs of the longest dispatch, threadgroups that keep the GPU busy, bytes of scratch of a "
        "call; 0 = those of the smallest Mac.");
  m.def("set_kernel_folder", &set_kernel_folder, "path"_a,
        "Where params.h and the kernels are; by default `kernels` beside this module.");
  m.def("set_cache_folder", &set_cache_folder, "path"_a,
        "Where compiled CUDA kernels are kept; '' = nowhere.");
  m.def(
      "prepare_quantized",
      [](mx::array q, mx::array k, mx::array k_scales, mx::array k_biases, mx::array v,
         mx::array v_scales, mx::array v_biases, int group_size, int bits, sdpa::MaskArgument mask,
         std::optional<float> softcap) {
        return answer(sdpa::prepare_quantized({.q = q,
                                               .k = {k, k_scales, k_biases},
                                               .v = {v, v_scales, v_biases},
                                               .quantization = {group_size, bits},
                                               .mask = mask,
                                               .softcap = softcap}));
      },
      "q"_a, "k"_a, "k_scales"_a, "k_biases"_a, "v"_a, "v_scales"_a, "v_biases"_a, nb::kw_only(),
      "group_size"_a, "bits"_a, "mask"_a = nb::none(), "softcap"_a = nb::none(),
      "The same for quantized_sdpa().");
  m.def(
      "prepare",
      [](mx::array q, mx::array k, mx::array v, sdpa::MaskArgument mask,
         std::optional<mx::array> sinks, std::optional<int> window, std::optional<float> softcap,
         int chunk_size, bool return_lse, bool float32_out, bool carry) -> nb::object {
        return answer(sdpa::prepare(
            {q, k, v, mask, sinks, window, softcap},
            {.chunk_size = chunk_size, .return_lse = return_lse, .float32_out = float32_out},
            carry));
      },
      "q"_a, "k"_a, "v"_a, nb::kw_only(), "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "window"_a = nb::none(), "softcap"_a = nb::none(), "chunk_size"_a = 0, "return_lse"_a = false,
      "float32_out"_a = false, "carry"_a = false,
      "Compiles the GPU kernels that sdpa() with these arguments runs: None, or (kernel, error) of "
      "one that does not compile or that the device refuses.");
}
