#include "src/barrier.h"

#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include <mlx/backend/cpu/encoder.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/scheduler.h>

namespace sdpa {

namespace {

using mx::array;
using Arrays = std::vector<array>;

// More than the ten active tasks at which MLX (0.31 to 0.32) stops scheduling.
constexpr int kHoldingTasks = 16;

// inputs[0] unchanged; all transforms pass it through.
class PassThrough : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    outputs[0].copy_shared_buffer(inputs[0]);
  }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override {
    outputs[0].copy_shared_buffer(inputs[0]);
  }
  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    Arrays out;
    for (int i : argnums)
      out.push_back(i == 0 ? cotangents[0] : mx::zeros_like(primals[i], stream()));
    return out;
  }
  Arrays jvp(const Arrays& primals, const Arrays& tangents,
             const std::vector<int>& argnums) override {
    for (size_t i = 0; i < argnums.size(); ++i)
      if (argnums[i] == 0) return {tangents[i]};
    return {mx::zeros_like(primals[0], stream())};
  }
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (axes[0] >= 0) return {{rebuild(inputs)}, {axes[0]}};
    // Only what it waits for is mapped, but the output counts as mapped.
    mx::Shape shape = inputs[0].shape();
    shape.insert(shape.begin(), inputs[1].shape(axes[1]));
    const array x = mx::broadcast_to(mx::expand_dims(inputs[0], 0, stream()), shape, stream());
    return {{rebuild({x, inputs[1]})}, {0}};
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape()};
  }
  bool is_equivalent(const Primitive&) const override { return true; }

 protected:
  virtual array rebuild(const Arrays& inputs) = 0;
};

template <class P>
array pass(Arrays inputs, mx::Stream stream) {
  mx::Shape shape = inputs[0].shape();
  const mx::Dtype dtype = inputs[0].dtype();
  return array(std::move(shape), dtype, std::make_shared<P>(stream), std::move(inputs));
}

// The end of the last barrier of each stream.
std::shared_future<void> exchange_last(int stream, std::shared_future<void> next) {
  static std::mutex mutex;
  static std::unordered_map<int, std::shared_future<void>> last;
  std::lock_guard lock(mutex);
  return std::exchange(last[stream], std::move(next));
}

// inputs: x. Runs on a CPU stream, whatever the device of x: that stream waits for x.
class SdpaBarrier : public PassThrough {
 public:
  using PassThrough::PassThrough;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    outputs[0].copy_shared_buffer(inputs[0]);
    auto end = std::make_shared<std::promise<void>>();
    // The scheduler goes on at the first task that ends, and the next block's operations could use up the others as
    // they end: without this wait, tasks of many barriers pile up and hold nothing back. What the last barrier waits
    // for is under way, since MLX committed all open work when it had to wait there.
    const auto last = exchange_last(stream().index, end->get_future().share());
    if (last.valid()) last.wait();
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.set_input_array(inputs[0]);
    for (int i = 0; i < kHoldingTasks; ++i) mx::scheduler::notify_new_task(stream());
    const auto release = [s = stream()] {
      for (int i = 0; i < kHoldingTasks; ++i) mx::scheduler::notify_task_completion(s);
    };
    try {
      encoder.dispatch([release, end] {
        release();
        end->set_value();
      });
    } catch (...) {
      release();  // tasks that nothing ends would hold back every later evaluation
      throw;
    }
  }
  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[SdpaBarrier::eval_gpu] the barrier belongs on a CPU stream");
  }
  const char* name() const override { return "SdpaBarrier"; }

 protected:
  array rebuild(const Arrays& inputs) override { return pass<SdpaBarrier>(inputs, stream()); }
};

// inputs: x, what x waits for. Unlike mx::depends it can be mapped and compiled without shapes.
class SdpaAfter : public PassThrough {
 public:
  using PassThrough::PassThrough;
  const char* name() const override { return "SdpaAfter"; }

 protected:
  array rebuild(const Arrays& inputs) override { return pass<SdpaAfter>(inputs, stream()); }
};

}  // namespace

Arrays after(const Arrays& xs, const array& done, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const bool on_cpu = stream.device == mx::Device::cpu;
  array held = pass<SdpaBarrier>({done}, on_cpu ? stream : mx::default_stream(mx::Device::cpu));
  Arrays out;
  for (const array& x : xs) out.push_back(pass<SdpaAfter>({x, held}, stream));
  return out;
}

}  // namespace sdpa
