// MLX's device and command encoder of the Metal backend, with their names and signatures, on the software device.
//
// Public members that the real ones do not have are for the other files of this folder (finish_primitive, ...).
#pragma once

#include <Metal/Metal.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "mlx/array.h"
#include "mlx/device.h"

namespace mlx::core::metal {

using MTLFCList = std::vector<std::tuple<const void*, MTL::DataType, NS::UInteger>>;

class Device;

// What an index of the argument table holds: a part of an allocation, or bytes.
struct Binding {
  std::weak_ptr<array::Data> owner;
  const void* buffer = nullptr;  // identifies the allocation; null for bytes
  char* begin = nullptr;         // of the allocation
  size_t size = 0;               // of the allocation
  int64_t offset = 0;
  bool writable = false;
  std::shared_ptr<std::vector<char>> bytes;
};

struct Work;

class CommandEncoder {
 public:
  explicit CommandEncoder(Device&);
  CommandEncoder(const CommandEncoder&) = delete;
  CommandEncoder& operator=(const CommandEncoder&) = delete;

  void set_input_array(const array&, int index, int64_t offset = 0);
  void set_output_array(array&, int index, int64_t offset = 0);
  void register_output_array(const array&);

  void add_temporary(array);
  void add_temporaries(std::vector<array>);

  void dispatch_threadgroups(MTL::Size grid, MTL::Size group);
  void maybeInsertBarrier();

  void set_compute_pipeline_state(MTL::ComputePipelineState* kernel) { pipeline_ = kernel; }

  template <typename T>
  void set_bytes(const T* v, int n, int index) {
    bind_bytes(v, n * sizeof(T), index);
  }
  template <typename T>
  void set_bytes(const T& v, int index) {
    bind_bytes(&v, sizeof(T), index);
  }

  void barrier();
  void end_encoding(bool wait_in_flight = false);
  bool needs_commit() const;
  void commit(std::function<void()> completion = nullptr);

  MTL::CommandBuffer* get_command_buffer() const { return buffer_.get(); }

  // The double's own, around the evaluation of a primitive (protocol.cpp).
  std::shared_ptr<MTL::CommandBuffer> open_buffer() const { return buffer_; }
  void start_primitive(std::unordered_set<const void*> inputs);
  std::shared_ptr<Work> finish_primitive();
  bool holds_work() const { return ops_ > 0; }  // in the open buffer

 private:
  void bind_array(const array&, int index, int64_t offset, bool writable);
  void bind_bytes(const void*, size_t, int index);
  void check_hazards();

  Device& device_;
  std::shared_ptr<MTL::CommandBuffer> buffer_;
  int ops_ = 0;
  size_t sizes_ = 0;

  // Of the compute encoder that is open: reset when it ends.
  std::unordered_map<int, Binding> table_;
  MTL::ComputePipelineState* pipeline_ = nullptr;
  std::unordered_set<const void*> bound_;             // buffers, counted into sizes_
  std::unordered_set<const void*> before_, pending_;  // outputs before the barrier, and since
  bool needs_barrier_ = false;
  // Since the last barrier, by the table. The owner tells a buffer from a later one at its address.
  using Used = std::unordered_map<const void*, std::weak_ptr<array::Data>>;
  Used read_, written_;

  using Owners = std::vector<std::weak_ptr<array::Data>>;
  Owners temporaries_;
  Owners here_, earlier_;  // bound in the encoder that is open, in those that have ended
  Owners ended_;           // temporaries of encoders that have ended

  // Of the primitive that is being evaluated.
  std::unordered_set<const void*> inputs_;
  std::shared_ptr<Work> work_;
};

class Device {
 public:
  const std::string& get_architecture() const { return arch_; }
  int get_architecture_gen() const;
  std::tuple<int, int> get_max_ops_mb_per_buffer() const;

  MTL::Library* get_library(const std::string& name, const std::function<std::string(void)>&);
  void clear_library(const std::string& name);
  MTL::ComputePipelineState* get_kernel(const std::string& base_name, MTL::Library*,
                                        const std::string& hash_name = "", const MTLFCList& = {});

  // The double's own.
  void play(const std::string& arch) { arch_ = arch; }

 private:
  using Kernels = std::unordered_map<std::string, std::unique_ptr<MTL::ComputePipelineState>>;

  std::string arch_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::unique_ptr<MTL::Library>> libraries_;
  std::unordered_map<const MTL::Library*, Kernels> kernels_;
};

Device& device(mlx::core::Device);
CommandEncoder& get_command_encoder(Stream);

// The double's own: as MLX does with each stream when an evaluation ends. Nothing may be under way.
void commit_open_buffers();

}  // namespace mlx::core::metal
