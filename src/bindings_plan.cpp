#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "src/backends/cpu_device.h"
#include "src/bindings.h"
#include "src/plan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

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
    nb::dict bytes;
    for (sdpa::DType dtype : {sdpa::DType::F32, sdpa::DType::F16, sdpa::DType::BF16}) {
      if (!t.holds(dtype)) continue;
      dtypes.append(sdpa::name(dtype));
      bytes[sdpa::name(dtype)] = t.threadgroup_bytes(dtype);
    }
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
    row["wm"] = t.wm;
    row["wd"] = t.wd;
    row["threadgroup_bytes"] = bytes;
    rows.append(row);
  }
  return rows;
}

nb::list parts(const sdpa::Plan& plan) {
  nb::list all;
  for (const sdpa::Dispatch& d : plan.dispatches) {
    nb::dict part;
    part["chunk"] = d.chunk;
    part["split0"] = d.split0;
    part["row_tile0"] = d.part.row_tile0;
    part["row_tiles"] = d.part.row_tiles;
    part["head0"] = d.part.head0;
    part["heads"] = d.part.heads;
    part["key0"] = d.part.key0;
    part["key1"] = d.part.key1;
    part["split_keys"] = d.part.split_keys;
    part["splits"] = d.part.splits;
    part["with_sinks"] = d.part.with_sinks != 0;
    part["with_carry"] = d.part.with_carry != 0;
    part["flops"] = d.flops;
    all.append(part);
  }
  return all;
}

nb::dict plan(int B, int Hq, int Hkv, int Lq, int Lk, int D, int Dv, const std::string& dtype,
              const std::string& mask, int window, bool softcap, bool sinks, bool want_lse,
              int chunk_size, const std::string& backend, const std::string& arch, int threads,
              int max_threads, int fill, double dispatch_flops, int64_t memory, int bits,
              int group_size, int64_t l2_bytes) {
  if (Hkv < 1 || Hq % Hkv != 0)
    throw std::invalid_argument("Hq must be a multiple of Hkv, and Hkv at least 1");
  if (mask != "none" && mask != "causal" && mask != "bool" && mask != "additive")
    throw std::invalid_argument("mask '" + mask + "': expected none, causal, bool or additive");
  if (threads < 0) throw std::invalid_argument("threads must be 0 (this machine's) or more");
  if (chunk_size < 0) throw std::invalid_argument("chunk_size must be 0 (all keys) or more");
  if (max_threads < 0 || fill < 0 || dispatch_flops < 0 || memory < 0)
    throw std::invalid_argument("max_threads, fill, dispatch_flops and memory must be 0 or more");
  if (bits != 0 && group_size < 1) throw std::invalid_argument("group_size must be 1 or more");
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
      .bits = bits,
      .group_size = bits ? group_size : 0,
  };
  const sdpa::Backend on = backend_from(backend);
  sdpa::Device device = on == sdpa::Backend::metal  ? sdpa::apple_gpu(arch)
                        : on == sdpa::Backend::cuda ? sdpa::nvidia_gpu(arch)
                                                    : sdpa::Device{.backend = on, .arch = arch};
  if (on == sdpa::Backend::cpu) {
    const sdpa::Device here = sdpa::cpu::device();
    if (arch.empty()) device.arch = here.arch;
    device.threads = threads == 0 ? here.threads : threads;
    device.l2_bytes = l2_bytes > 0 ? l2_bytes : here.l2_bytes;
  }
  device.max_threads = max_threads;
  if (fill > 0) device.fill = fill;
  if (dispatch_flops > 0) device.dispatch_flops = dispatch_flops;
  device.memory = memory;
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
  out["scratch_bytes"] = p.partial_bytes + p.carry_bytes + p.lse_bytes;
  if (on == sdpa::Backend::cpu) return out;
  out["wm"] = p.tile.wm;
  out["wd"] = p.tile.wd;
  out["threads"] = p.threads;
  out["threadgroup_bytes"] = p.threadgroup_bytes;
  out["dispatches"] = p.dispatches.size() + (p.splits > 1 ? p.chunks : 0);  // one merge a chunk
  out["longest_flops"] = p.longest_flops;
  out["parts"] = parts(p);
  return out;
}

}  // namespace

void bind_plan(nb::module_& m) {
  m.def("tiles", &tiles, "The rows of kernels/tiles.def.");
  m.def("plan", &plan, "B"_a, "Hq"_a, "Hkv"_a, "Lq"_a, "Lk"_a, "D"_a, "Dv"_a, "dtype"_a,
        "mask"_a = "none", "window"_a = 0, "softcap"_a = false, "sinks"_a = false,
        "want_lse"_a = false, "chunk_size"_a = 0, nb::kw_only(), "backend"_a = "cpu", "arch"_a = "",
        "threads"_a = 0, "max_threads"_a = 1024, "fill"_a = 0, "dispatch_flops"_a = 0.,
        "memory"_a = 0, "bits"_a = 0, "group_size"_a = 64, "l2_bytes"_a = 0,
        "bits: of a quantized cache; 0 = none. group_size: of its elements. "
        "What would run, as a dict; raises ValueError with the reason where nothing would. Pure. "
        "threads, l2_bytes: of a CPU; 0 = this machine's. max_threads, fill, dispatch_flops, "
        "memory: of a GPU, as Device has "
        "them; 0 = those of the smallest Mac, or of the architecture of an NVIDIA GPU.");
}
