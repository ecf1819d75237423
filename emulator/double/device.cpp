#include "mlx/backend/metal/device.h"

#include <cstring>
#include <stdexcept>

#include "work.h"

namespace mlx::core::metal {

namespace {

size_t size_of_type(MTL::DataType type) {
  switch (type) {
    case MTL::DataTypeBool:
      return 1;
    case MTL::DataTypeInt:
    case MTL::DataTypeUInt:
    case MTL::DataTypeFloat:
      return 4;
  }
  throw std::invalid_argument("[metal::Device] a function constant of an unknown type");
}

struct Encoders {
  std::mutex mutex;
  std::unordered_map<int, std::unique_ptr<CommandEncoder>> by_stream;
};

Encoders& all_encoders() {
  static auto* one = new Encoders;
  return *one;
}

MTL::ComputePipelineState::Constants bytes_of(const MTLFCList& list) {
  MTL::ComputePipelineState::Constants bytes;
  for (const auto& [value, type, index] : list) {
    const auto* begin = static_cast<const uint8_t*>(value);
    bytes[int(index)] = {begin, begin + size_of_type(type)};
  }
  return bytes;
}

}  // namespace

// applegpu_g<generation><class>
int Device::get_architecture_gen() const {
  return arch_.size() < 3 ? 0
                          : (arch_[arch_.size() - 3] - '0') * 10 + arch_[arch_.size() - 2] - '0';
}

// As MLX sets them by the class of the GPU.
std::tuple<int, int> Device::get_max_ops_mb_per_buffer() const {
  switch (arch_.empty() ? 'g' : arch_.back()) {
    case 'p':
      return {20, 40};
    case 's':
    case 'd':
      return {50, 50};
    default:
      return {40, 40};
  }
}

MTL::Library* Device::get_library(const std::string& name,
                                  const std::function<std::string(void)>& builder) {
  std::lock_guard lock(mutex_);
  auto& library = libraries_[name];
  if (!library) {
    try {
      library = std::make_unique<MTL::Library>(softmetal::compile(builder()));
    } catch (...) {
      libraries_.erase(name);
      throw;
    }
  }
  return library.get();
}

void Device::clear_library(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto library = libraries_.find(name);
  if (library == libraries_.end()) return;
  kernels_.erase(library->second.get());
  libraries_.erase(library);
}

MTL::ComputePipelineState* Device::get_kernel(const std::string& base_name, MTL::Library* library,
                                              const std::string& hash_name,
                                              const MTLFCList& constants) {
  const std::string& name = hash_name.empty() ? base_name : hash_name;
  auto values = bytes_of(constants);
  std::lock_guard lock(mutex_);
  Kernels& kernels = kernels_[library];
  if (const auto known = kernels.find(name); known != kernels.end()) {
    // MLX looks only at the name.
    if (known->second->constants != values)
      found("host-constants", base_name,
            "the name '" + name + "' stands for two sets of function constants");
    return known->second.get();
  }
  auto kernel = softmetal::specialise(library->compiled, base_name, values);
  auto state =
      std::make_unique<MTL::ComputePipelineState>(base_name, std::move(kernel), std::move(values));
  return (kernels[name] = std::move(state)).get();
}

Device& device(mlx::core::Device) {
  static Device* one = new Device;  // as in MLX never destroyed: kernels may outlive the statics
  return *one;
}

CommandEncoder& get_command_encoder(Stream s) {
  auto& [mutex, encoders] = all_encoders();
  std::lock_guard lock(mutex);
  auto& encoder = encoders[s.index];
  if (!encoder) encoder = std::make_unique<CommandEncoder>(device(s.device));
  return *encoder;
}

void commit_open_buffers() {
  auto& [mutex, encoders] = all_encoders();
  std::lock_guard lock(mutex);
  for (const auto& [stream, encoder] : encoders) {
    if (!encoder->holds_work()) continue;
    encoder->end_encoding();
    encoder->commit();
    encoder->finish_primitive()->run();
  }
}

}  // namespace mlx::core::metal
