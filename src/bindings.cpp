#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <mlx/version.h>

#include "src/backends/cpu_device.h"
#include "src/barrier.h"
#include "src/op.h"
#include "src/plan.h"

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

sdpa::DType dtype_from(const std::string& name) {
  for (sdpa::DType t : {sdpa::DType::F32, sdpa::DType::F16, sdpa::DType::BF16})
    if (name == sdpa::name(t)) return t;
  throw std::invalid_argument("dtype '" + name + "': expected float32, float16 or bfloat16");
}

sdpa::Backend backend_from(const std::string& name) {
  for (sdpa::Backend b : {sdpa::Backend::cpu, sdpa::Backend::metal, sdpa::Backend::cuda})
    if (name == sdpa::name(b)) return b;
  throw std::invalid_argument("backend '" + name + "': expected cpu, metal or cuda");
}

nb::list tiles() {
  nb::list rows;
  for (const sdpa::Tile& t : sdpa::tiles()) {
    nb::list dtypes;
    if (t.dtypes & sdpa::kF32) dtypes.append("float32");
    if (t.dtypes & sdpa::kF16) dtypes.append("float16");
    if (t.dtypes & sdpa::kBF16) dtypes.append("bfloat16");
    nb::dict row;
    row["backend"] = sdpa::name(t.backend);
    row["kernel"] = sdpa::name(t.kernel);
    row["d_min"] = t.d_min;
    row["d_max"] = t.d_max;
    row["dv_min"] = t.dv_min;
    row["dv_max"] = t.dv_max;
    row["dtypes"] = dtypes;
    row["bq"] = t.bq;
    row["bk"] = t.bk;
    rows.append(row);
  }
  return rows;
}

nb::dict plan(int B, int Hq, int Hkv, int Lq, int Lk, int D, int Dv, const std::string& dtype,
              const std::string& mask, int window, bool softcap, bool sinks, bool want_lse,
              int chunk_size, const std::string& backend, const std::string& arch, int threads) {
  if (Hkv < 1 || Hq % Hkv != 0)
    throw std::invalid_argument("Hq must be a multiple of Hkv, and Hkv at least 1");
  if (mask != "none" && mask != "causal" && mask != "bool" && mask != "additive")
    throw std::invalid_argument("mask '" + mask + "': expected none, causal, bool or additive");
  if (threads < 0) throw std::invalid_argument("threads must be 0 (this machine's) or more");
  if (chunk_size < 0) throw std::invalid_argument("chunk_size must be 0 (all keys) or more");
  const sdpa::Problem problem{
      .B = B,
      .Hq = Hq,
      .Hkv = Hkv,
      .Lq = Lq,
      .Lk = Lk,
      .D = D,
      .Dv = Dv,
      .dtype = dtype_from(dtype),
      .causal = mask == "causal",
      .window = window,
      .mask = mask == "bool"       ? sdpa::MaskKind::Bool
              : mask == "additive" ? sdpa::MaskKind::Additive
                                   : sdpa::MaskKind::None,
      .softcap = softcap,
      .sinks = sinks,
      .want_lse = want_lse,
      .q_offset = Lk - Lq,
      .chunk_size = chunk_size,
  };
  sdpa::Device device{.backend = backend_from(backend), .arch = arch, .threads = threads};
  if (device.backend == sdpa::Backend::cpu) {
    const sdpa::Device here = sdpa::cpu::device();
    if (device.arch.empty()) device.arch = here.arch;
    if (device.threads == 0) device.threads = here.threads;
  }
  const auto answer = sdpa::plan(problem, device);
  if (const auto* no = std::get_if<sdpa::Unsupported>(&answer))
    throw std::invalid_argument(no->reason);
  const auto& p = std::get<sdpa::Plan>(answer);
  nb::dict out;
  out["kernel"] = p.kernel;
  out["bq"] = p.tile.bq;
  out["bk"] = p.tile.bk;
  out["row_tiles"] = p.row_tiles;
  out["splits"] = p.splits;
  out["split_keys"] = p.split_keys;
  out["chunks"] = p.chunks;
  out["chunk_keys"] = p.chunk_keys;
  out["tasks"] = p.tasks;
  out["tile_bytes"] = p.tile_bytes;
  out["scratch_bytes"] = p.partial_bytes + p.carry_bytes;
  return out;
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
        auto merged = sdpa::merge(outputs, lses, stream);
        return std::make_pair(merged[0], merged[1]);
      },
      "outputs"_a, "lses"_a, nb::kw_only(), "stream"_a = nb::none(),
      "Exact combination of attentions over disjoint keys: (out, lse).");

  m.def(
      "after",
      [](const mx::array& x, const mx::array& done, mx::StreamOrDevice stream) {
        return sdpa::after(x, done, stream);
      },
      "x"_a, "done"_a, nb::kw_only(), "stream"_a = nb::none(),
      "x unchanged; what depends on it is not scheduled before `done` is computed and its "
      "temporaries are freed.");

  m.def("tiles", &tiles, "The rows of kernels/tiles.def.");
  m.def("plan", &plan, "B"_a, "Hq"_a, "Hkv"_a, "Lq"_a, "Lk"_a, "D"_a, "Dv"_a, "dtype"_a,
        "mask"_a = "none", "window"_a = 0, "softcap"_a = false, "sinks"_a = false,
        "want_lse"_a = false, "chunk_size"_a = 0, nb::kw_only(), "backend"_a = "cpu", "arch"_a = "",
        "threads"_a = 0,
        "What would run, as a dict; raises ValueError with the reason where nothing would. Pure.");
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
}
