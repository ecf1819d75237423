// The part of metal-cpp that the Metal backend uses, with its names and signatures, on the software device.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "softmetal.h"

namespace NS {

using UInteger = std::uintptr_t;

}  // namespace NS

namespace MTL {

struct Size {
  Size() = default;
  Size(NS::UInteger width, NS::UInteger height, NS::UInteger depth)
      : width(width), height(height), depth(depth) {}

  NS::UInteger width = 0, height = 0, depth = 0;
};

enum DataType : NS::UInteger {
  DataTypeFloat = 3,
  DataTypeInt = 29,
  DataTypeUInt = 33,
  DataTypeBool = 53,
};

class Library {
 public:
  explicit Library(std::shared_ptr<softmetal::Library> compiled) : compiled(std::move(compiled)) {}

  const std::shared_ptr<softmetal::Library> compiled;
};

class ComputePipelineState {
 public:
  using Constants = std::map<int, std::vector<uint8_t>>;

  ComputePipelineState(std::string name, std::shared_ptr<softmetal::Kernel> kernel,
                       Constants constants)
      : name(std::move(name)), kernel(std::move(kernel)), constants(std::move(constants)) {}

  NS::UInteger maxTotalThreadsPerThreadgroup() const { return softmetal::max_threads(*kernel); }

  const std::string name;
  const std::shared_ptr<softmetal::Kernel> kernel;
  const Constants constants;
};

class CommandBuffer;
using HandlerFunction = std::function<void(CommandBuffer*)>;

// Between two commits. What is encoded runs in order; the handlers run after it.
class CommandBuffer {
 public:
  void addCompletedHandler(const HandlerFunction&);

  bool committed() const { return committed_; }
  std::vector<HandlerFunction> commit();

 private:
  bool committed_ = false;
  std::vector<HandlerFunction> handlers_;
};

}  // namespace MTL
