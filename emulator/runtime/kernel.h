// A library that is loaded, and a kernel of it with its constants set.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "softmetal.h"

namespace softmetal {

class Library {
 public:
  explicit Library(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }

 private:
  std::string path_;  // of the compiled library
};

// One copy of the library in memory: constants are variables of the copy.
class Module {
 public:
  explicit Module(const std::string& path);  // throws std::runtime_error
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const LibraryEntry& entry() const { return entry_; }

 private:
  void* handle_ = nullptr;
  LibraryEntry entry_{};
};

class Kernel {
 public:
  Kernel(std::shared_ptr<Module> module, const KernelEntry& entry);  // throws

  const std::string& name() const { return name_; }
  const KernelEntry& entry() const { return *entry_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::string where(u32 site) const;             // "file:line"
  std::string parameter_name(u32 buffer) const;  // " (Q)", or ""

 private:
  std::shared_ptr<Module> module_;
  const KernelEntry* entry_;
  std::string name_;
  std::vector<Parameter> parameters_;
};

std::shared_ptr<Library> open_library(const std::string& path);

// As run(), but with the counters and findings of this run, which are published all the same.
void run_and_tell(const Kernel& kernel, Size grid, Size group, const std::map<int, Buffer>& buffers,
                  Counters& counters, std::vector<Finding>& findings);

}  // namespace softmetal
