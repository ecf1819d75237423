#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <mlx/version.h>

#include "src/backends/cpu_device.h"
#include "src/backends/gpu.h"
#include "src/barrier.h"
#include "src/bindings.h"
#include "src/op.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace {

const char* mask_name(const sdpa::Problem& p) {
  return p.causal                             ? "causal"
         : p.mask == sdpa::MaskKind::Bool     ? "bool"
         : p.mask == sdpa::MaskKind::Additive ? "additive"
                                              : "none";
}

// As first_use.py does for attention. Once: the failure is then known.
void warn(const std::string& kernel, const std::string& error) {
  const std::string text = "mlx_sdpa_ext: " + kernel + " is not used, stock MLX instead: " + error;
  if (PyErr_WarnEx(PyExc_RuntimeWarning, text.c_str(), 1) < 0) throw nb::python_error();
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Compiled core of mlx_sdpa_ext. Use mlx_sdpa_ext.attention instead.";
  nb::module_::import_("mlx.core");  // registers the array, stream and device types
  m.attr("mlx_version") = std::to_string(MLX_VERSION_MAJOR) + "." +
                          std::to_string(MLX_VERSION_MINOR) + "." +
                          std::to_string(MLX_VERSION_PATCH);

  m.def(
      "problem",
      [](mx::array q, mx::array k, mx::array v, sdpa::MaskArgument mask,
         std::optional<mx::array> sinks, std::optional<int> window, std::optional<float> softcap) {
        const sdpa::Checked c = sdpa::check({q, k, v, mask, sinks, window, softcap});
        const sdpa::Problem& p = c.problem;
        return nb::make_tuple(p.B, p.Hq, p.Hkv, p.Lq, p.Lk, p.D, p.Dv,
                              c.dtype == mx::float64 ? "float64" : sdpa::name(p.dtype),
                              mask_name(p));
      },
      "q"_a, "k"_a, "v"_a, nb::kw_only(), "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "window"_a = nb::none(), "softcap"_a = nb::none(),
      "Checks the arguments as stock does; returns (B, Hq, Hkv, Lq, Lk, D, Dv, dtype, mask).");

  m.def(
      "sdpa",
      [](mx::array q, mx::array k, mx::array v, float scale, sdpa::MaskArgument mask,
         std::optional<mx::array> sinks, std::optional<int> window, std::optional<float> softcap,
         int chunk_size, bool return_lse, std::optional<int> q_offset,
         std::optional<std::pair<mx::array, mx::array>> carry, bool float32_out,
         mx::StreamOrDevice stream) {
        return sdpa::fused_attention({q, k, v, mask, sinks, window, softcap}, scale,
                                     {chunk_size, return_lse, float32_out, q_offset, carry},
                                     stream);
      },
      "q"_a, "k"_a, "v"_a, nb::kw_only(), "scale"_a, "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "window"_a = nb::none(), "softcap"_a = nb::none(), "chunk_size"_a = 0, "return_lse"_a = false,
      "q_offset"_a = nb::none(), "carry"_a = nb::none(), "float32_out"_a = false,
      "stream"_a = nb::none(), "The fused primitive: [out] or [out, lse].");

  m.def(
      "quantized_sdpa",
      [](mx::array q, mx::array k, mx::array k_scales, mx::array k_biases, mx::array v,
         mx::array v_scales, mx::array v_biases, float scale, int group_size, int bits,
         sdpa::MaskArgument mask, std::optional<mx::array> sinks, std::optional<int> window,
         std::optional<float> softcap, bool return_lse, mx::StreamOrDevice stream) {
        return sdpa::quantized_attention({.q = q,
                                          .k = {k, k_scales, k_biases},
                                          .v = {v, v_scales, v_biases},
                                          .quantization = {group_size, bits},
                                          .mask = mask,
                                          .sinks = sinks,
                                          .window = window,
                                          .softcap = softcap},
                                         scale, return_lse, stream);
      },
      "q"_a, "k"_a, "k_scales"_a, "k_biases"_a, "v"_a, "v_scales"_a, "v_biases"_a, nb::kw_only(),
      "scale"_a, "group_size"_a, "bits"_a, "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "window"_a = nb::none(), "softcap"_a = nb::none(), "return_lse"_a = false,
      "stream"_a = nb::none(),
      "The fused primitive over a quantized cache that the kernel reads directly: [out] or "
      "[out, lse].");

  m.def(
      "unfused",
      [](mx::array q, mx::array k, mx::array v, float scale, sdpa::MaskArgument mask,
         std::optional<mx::array> sinks, std::optional<int> window, std::optional<float> softcap,
         int block_rows, bool return_lse, mx::StreamOrDevice stream) {
        return sdpa::unfused_attention({q, k, v, mask, sinks, window, softcap}, scale, block_rows,
                                       return_lse, stream);
      },
      "q"_a, "k"_a, "v"_a, nb::kw_only(), "scale"_a, "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "window"_a = nb::none(), "softcap"_a = nb::none(), "block_rows"_a = 0, "return_lse"_a = false,
      "stream"_a = nb::none(), "Stock operations in blocks of query rows: [out] or [out, lse].");

  m.def(
      "merge",
      [](const std::vector<mx::array>& outputs, const std::vector<mx::array>& lses,
         mx::StreamOrDevice stream) {
        const size_t failed = sdpa::gpu_failures().size();
        auto merged = sdpa::merge(outputs, lses, stream);
        const auto failures = sdpa::gpu_failures();
        if (failures.size() > failed) warn(failures.back().first, failures.back().second);
        return std::make_pair(merged[0], merged[1]);
      },
      "outputs"_a, "lses"_a, nb::kw_only(), "stream"_a = nb::none(),
      "Exact combination of attentions over disjoint keys: (out, lse).");

  m.def(
      "after",
      [](const std::vector<mx::array>& xs, const mx::array& done, mx::StreamOrDevice stream) {
        return sdpa::after(xs, done, stream);
      },
      "xs"_a, "done"_a, nb::kw_only(), "stream"_a = nb::none(),
      "xs unchanged; what depends on them is not scheduled before `done` is computed and its "
      "temporaries are freed.");

  m.def(
      "cpu",
      [] {
        const sdpa::Device here = sdpa::cpu::device();
        nb::dict out;
        out["isa"] = here.arch;
        out["isas"] = nb::cast(sdpa::cpu::instruction_sets());
        out["threads"] = here.threads;
        return out;
      },
      "The instruction set in use, those that could be, and the threads that work on one call.");
  m.def("set_cpu_threads", &sdpa::cpu::use_threads, "threads"_a,
        "0 = the cores this process may use.");
  m.def("set_cpu_isa", &sdpa::cpu::use_instruction_set, "isa"_a,
        "'' = the best this machine runs.");
  bind_plan(m);
  bind_gpu(m);
}
