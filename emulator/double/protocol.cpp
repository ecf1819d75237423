// The backend that _ext loads: that of src/backends/metal*.cpp, called as MLX's evaluation calls a primitive on a GPU
// stream, on arrays of the CPU device.
#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "src/backends/metal.h"
#include "work.h"

namespace sdpa {

namespace {

namespace gpu = mx::metal;
using mx::array;
using Buffers = std::unordered_set<const void*>;

const void* buffer_of(const array& x) { return x.buffer().ptr(); }

// Memory of inputs that is written: only an output that was given it may be.
void check_donations(const gpu::Work& work, const Buffers& inputs, const Buffers& donatable,
                     const std::vector<array>& outputs) {
  Buffers given;
  for (const array& x : outputs) {
    given.insert(buffer_of(x));
    if (inputs.count(buffer_of(x)) && !donatable.count(buffer_of(x)))
      gpu::found("host-donation", "", "an output has the memory of an input that others hold");
  }
  for (const gpu::Job& job : work.jobs)
    for (const auto& [index, b] : job.table)
      if (b.writable && inputs.count(b.buffer) && !given.count(b.buffer))
        gpu::found("host-donation", job.pipeline->name,
                   "index " + std::to_string(index) + " is an input and bound as an output");
}

// What mlx/backend/metal/eval.cpp does around eval_gpu.
template <class Eval>
void evaluate(const std::vector<const array*>& inputs, std::vector<array>& outputs,
              mx::Stream stream, Eval eval) {
  auto& encoder = gpu::get_command_encoder(stream);
  Buffers buffers, donatable;
  for (const array* x : inputs) {
    buffers.insert(buffer_of(*x));
    if (x->is_donatable()) donatable.insert(buffer_of(*x));
  }
  encoder.start_primitive(buffers);
  const auto open = encoder.open_buffer();
  try {
    eval();
  } catch (...) {
    if (!encoder.finish_primitive()->jobs.empty())
      gpu::found("host-throw", "", "a primitive threw after its first dispatch");
    throw;
  }
  if (encoder.needs_commit()) {
    encoder.end_encoding();
    encoder.commit();
  } else if (open->committed()) {
    gpu::found("host-commit", "",
               "the primitive committed the buffer that it was called with, and needs_commit() is "
               "false: MLX would now add a handler to it");
  }

  const auto work = encoder.finish_primitive();
  check_donations(*work, buffers, donatable, outputs);
  for (const array* x : inputs) work->kept.push_back(x->data_shared_ptr());
  for (const array& x : outputs) work->kept.push_back(x.data_shared_ptr());
  mx::cpu::get_command_encoder(stream).dispatch([work] { work->run(); });
}

void eval_attention(const Inputs& in, const Attributes& a, std::vector<array>& outputs,
                    mx::Stream stream) {
  std::vector<const array*> inputs = {&in.q, &in.k, &in.v};
  for (const array* x : {in.mask, in.sinks, in.carry_out, in.carry_lse})
    if (x) inputs.push_back(x);
  evaluate(inputs, outputs, stream, [&] { metal::eval_attention(in, a, outputs, stream); });
}

void eval_merge(const std::vector<array>& in, std::vector<array>& outputs, mx::Stream stream) {
  std::vector<const array*> inputs;
  for (const array& x : in) inputs.push_back(&x);
  evaluate(inputs, outputs, stream, [&] { metal::eval_merge(in, outputs, stream); });
}

}  // namespace

}  // namespace sdpa

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* sdpa_gpu_abi() {
  static const std::string text = sdpa::gpu_abi();
  return text.c_str();
}

// For tests, when an evaluation has ended: how many dispatches each command buffer had that was committed since the
// last call. Returns how many buffers there were, and fills in the first `room` of them.
EXPORT int softmetal_take_commits(int* dispatches, int room) {
  mlx::core::metal::commit_open_buffers();
  const std::vector<int> taken = mlx::core::metal::take_commits();
  std::copy_n(taken.begin(), std::min(room, int(taken.size())), dispatches);
  return int(taken.size());
}

// arch: what the device says it is; "" = an M3 Max.
EXPORT const sdpa::GpuBackend* sdpa_gpu_backend(const char* arch) {
  mlx::core::metal::device(mlx::core::Device::gpu).play(*arch ? arch : "applegpu_g15s");
  static sdpa::GpuBackend one = [] {
    sdpa::GpuBackend backend = sdpa::metal::backend();
    backend.name = "software-metal";
    backend.on_cpu_stream = true;
    backend.eval_attention = sdpa::eval_attention;
    backend.eval_merge = sdpa::eval_merge;
    return backend;
  }();
  return &one;
}
