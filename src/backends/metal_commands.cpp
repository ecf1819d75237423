#include "src/backends/metal_commands.h"

#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include <mlx/allocator.h>
#include <mlx/version.h>

#include "kernels/metal/arguments.h"

namespace sdpa::metal {

namespace {

// From this share of the budget on a buffer is ended with the primitive, as others would add to it.
constexpr double kFull = 0.5;
// An index that no kernel reads.
constexpr int kBufferWeight = kBufferPart + 1;

// FLOPs of attention in the open command buffer of each encoder. A buffer that MLX commits is told by its address; that
// of a later one may be the same, which makes the sum too large: a buffer is ended early, never late.
struct Open {
  const MTL::CommandBuffer* buffer = nullptr;
  double flops = 0;
};

std::mutex mutex;

double& work_in(mx::metal::CommandEncoder& encoder) {
  static std::unordered_map<const mx::metal::CommandEncoder*, Open> open;
  Open& found = open[&encoder];
  if (found.buffer != encoder.get_command_buffer()) found = {encoder.get_command_buffer(), 0};
  return found.flops;
}

#if MLX_VERSION_NUMERIC < 32000
// Before 0.32 each commit of MLX's own came with this check.
void check(MTL::CommandBuffer* buffer) {
  if (buffer->status() == MTL::CommandBufferStatusError)
    throw std::runtime_error(std::string("[METAL] Command buffer execution failed: ") +
                             buffer->error()->localizedDescription()->utf8String());
}
#endif

}  // namespace

Commands::Commands(mx::Stream stream, double budget)
    : stream_(stream), encoder_(mx::metal::get_command_encoder(stream)), budget_(budget) {}

Commands::~Commands() {
  if (committed_ && !scratch_.empty()) keep_scratch();  // something threw: the GPU may be using it
}

void Commands::reserve(double flops) {
  const double before = work();
  if (budget_ > 0 && before > 0 && before + flops > budget_) commit();
  std::lock_guard lock(mutex);
  work_in(encoder_) += flops;
}

double Commands::work() {
  std::lock_guard lock(mutex);
  return work_in(encoder_);
}

mx::array Commands::scratch(mx::Shape shape, mx::Dtype dtype) {
  mx::array x(std::move(shape), dtype, nullptr, {});
  x.set_data(mx::allocator::malloc(x.nbytes()));
  scratch_.push_back(x);
  return x;
}

void Commands::finish() {
  if (committed_) {
    keep_scratch();
  } else {
    encoder_.add_temporaries(std::move(scratch_));
  }
  if (committed_ || (budget_ > 0 && work() > kFull * budget_)) let_mlx_commit();
}

void Commands::keep_scratch() {
  encoder_.get_command_buffer()->addCompletedHandler(
      [kept = std::move(scratch_)](MTL::CommandBuffer*) {});
}

// With no lock held: a queue takes 64 buffers, and makes the next one wait for the GPU.
void Commands::commit() {
  encoder_.end_encoding();
#if MLX_VERSION_NUMERIC < 32000
  encoder_.get_command_buffer()->addCompletedHandler(check);
#endif
  encoder_.commit();
  committed_ = true;
}

// needs_commit() adds up the sizes that arrays say they have, of each buffer that is new to the encoder. Nothing reads
// this one. (Again only if its memory was that of an array that the encoder has seen.)
void Commands::let_mlx_commit() {
  const auto megabytes =
      std::get<1>(mx::metal::device(mx::Device::gpu).get_max_ops_mb_per_buffer());
  while (!encoder_.needs_commit()) {
    mx::array weight({1}, mx::uint8, nullptr, {});
    weight.set_data(mx::allocator::malloc(weight.nbytes()), (size_t(megabytes) + 1) << 20,
                    mx::Strides{1}, mx::array::Flags{true, true, true});
    encoder_.set_input_array(weight, kBufferWeight);
    encoder_.add_temporary(weight);
  }
}

}  // namespace sdpa::metal
