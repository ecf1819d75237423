// The command buffer that a stream is filling, and how long it may become.
//
// The watchdog counts the time of a whole command buffer, and MLX packs operations into one by their number and bytes.
// So the work of attention in the open buffer is summed up over calls, and the buffer is ended before it exceeds the
// bound. What MLX's own evaluation asks of a primitive that commits (mlx/backend/metal/eval.cpp):
//   - It holds the command buffer that was open before the primitive, and adds a handler to it afterwards unless
//     needs_commit() is true, which on a committed buffer is an error: so after a commit needs_commit() must be true.
//   - Command buffers that wait for another stream of the same thread, whose buffer MLX has not committed yet, take
//     places in the queue. MLX commits all streams between primitives, not inside one: more than 63 buffers of one call
//     behind such a wait would never end. That is 1.3e13 FLOPs of attention on the smallest GPU in one primitive.
//   - Temporaries of the encoder take no part in the fences between encoders, so memory that is used on both sides of
//     a commit must not be one: it is kept alive by a handler of the last buffer.
#pragma once

#include <vector>

#include <mlx/backend/metal/device.h>

namespace sdpa::metal {

namespace mx = mlx::core;

// The commands of one primitive.
class Commands {
 public:
  // budget: FLOPs of a command buffer; 0 = no bound
  Commands(mx::Stream, double budget);
  ~Commands();
  Commands(const Commands&) = delete;
  Commands& operator=(const Commands&) = delete;

  mx::metal::CommandEncoder& encoder() { return encoder_; }

  // Before each dispatch: ends the buffer if it has no room for so much more.
  void reserve(double flops);

  // Memory for as long as the commands run.
  mx::array scratch(mx::Shape, mx::Dtype);

  // After the last dispatch.
  void finish();

 private:
  double work();  // in the open buffer
  void commit();
  void keep_scratch();
  void let_mlx_commit();

  mx::Stream stream_;
  mx::metal::CommandEncoder& encoder_;
  const double budget_;
  bool committed_ = false;
  std::vector<mx::array> scratch_;
};

}  // namespace sdpa::metal
