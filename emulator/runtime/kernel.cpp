#include "kernel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <stdexcept>

#include "coverage.h"
#include "executor.h"

namespace softmetal {

namespace {

std::runtime_error failure(const std::string& text) { return std::runtime_error(text); }

// Kernels find the runtime's functions by name: it must be visible to them even if it was loaded
// privately, by an extension module of Python.
void show_runtime() {
  static const bool done = [] {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&show_runtime), &info) && info.dli_fname) {
      dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    }
    return true;
  }();
  (void)done;
}

// The loader gives the same file out once: each module is a copy, deleted once it is loaded.
void* load_copy(const std::string& path) {
  std::string copy = (std::filesystem::temp_directory_path() / "softmetal-XXXXXX").string();
  const int descriptor = mkstemp(copy.data());
  if (descriptor < 0) throw failure("cannot make a file in " + copy);
  close(descriptor);
  std::error_code error;
  std::filesystem::copy_file(path, copy, std::filesystem::copy_options::overwrite_existing, error);
  void* handle = error ? nullptr : dlopen(copy.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* text = handle || error ? nullptr : dlerror();
  const std::string message = error ? error.message() : text ? text : "";
  unlink(copy.c_str());
  if (!handle) throw failure("cannot load " + path + ": " + message);
  return handle;
}

struct Limits {
  std::mutex mutex;
  std::map<std::string, int> threads;  // by part of the name
};

Limits& limits() {
  static Limits l;
  return l;
}

}  // namespace

Module::Module(const std::string& path) {
  show_runtime();
  handle_ = load_copy(path);
  const auto library = reinterpret_cast<LibraryEntry (*)()>(dlsym(handle_, "softmetal_library"));
  if (!library) {
    dlclose(handle_);
    throw failure(path + " is not a library of the software Metal device");
  }
  entry_ = library();
  start_coverage(entry_);
}

Module::~Module() {
  end_coverage(entry_);
  dlclose(handle_);
}

Kernel::Kernel(std::shared_ptr<Module> module, const KernelEntry& entry)
    : module_(std::move(module)), entry_(&entry), name_(entry.name) {
  parameters_.resize(entry.parameters(nullptr));
  entry.parameters(parameters_.data());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    if (p.source != Source::Buffer) continue;
    if (p.index >= static_cast<u32>(kMaxBuffers)) {
      throw failure("kernel " + name_ + ": parameter '" + p.name + "' has buffer index " +
                    std::to_string(p.index) + "; the last one is " +
                    std::to_string(kMaxBuffers - 1));
    }
    for (size_t j = 0; j < i; ++j) {
      const Parameter& q = parameters_[j];
      if (q.source == Source::Buffer && q.index == p.index && q.used && p.used) {
        throw failure("kernel " + name_ + ": parameters '" + q.name + "' and '" + p.name +
                      "' have the same buffer index " + std::to_string(p.index));
      }
    }
  }
}

std::string Kernel::where(u32 site) const {
  const LibraryEntry& library = module_->entry();
  if (site >= library.site_count || !library.sites[site].line) return "";
  std::string text = library.sites[site].file;
  text += ':';
  return text + std::to_string(library.sites[site].line);
}

std::string Kernel::parameter_name(u32 buffer) const {
  for (const Parameter& p : parameters_) {
    if (p.source == Source::Buffer && p.used && p.index == buffer) {
      return std::string(" (") + p.name + ")";
    }
  }
  return "";
}

std::shared_ptr<Library> open_library(const std::string& path) {
  return std::make_shared<Library>(path);
}

std::vector<std::string> kernel_names(const Library& library) {
  const Module module(library.path());
  std::vector<std::string> names;
  for (u32 i = 0; i < module.entry().kernel_count; ++i) {
    names.emplace_back(module.entry().kernels[i].name);
  }
  return names;
}

std::shared_ptr<Kernel> specialise(std::shared_ptr<Library> library, const std::string& name,
                                   const std::map<int, std::vector<uint8_t>>& constants) {
  auto module = std::make_shared<Module>(library->path());
  const LibraryEntry& entry = module->entry();
  const KernelEntry* kernel = nullptr;
  std::string names;
  for (u32 i = 0; i < entry.kernel_count; ++i) {
    names += (i ? ", " : "") + std::string(entry.kernels[i].name);
    if (name == entry.kernels[i].name) kernel = &entry.kernels[i];
  }
  if (!kernel) throw failure("there is no kernel " + name + " in this library; it has " + names);
  for (u32 i = 0; i < entry.constant_count; ++i) {
    const ConstantEntry& constant = entry.constants[i];
    const std::string text = "kernel " + name + ": function constant " +
                             std::to_string(constant.index) + " (" + constant.name + ")";
    const auto given = constants.find(static_cast<int>(constant.index));
    if (given == constants.end()) throw failure(text + " is not set");
    if (given->second.size() != constant.bytes) {
      throw failure(text + " has " + std::to_string(constant.bytes) + " bytes, but is set to " +
                    std::to_string(given->second.size()));
    }
    std::memcpy(constant.value, given->second.data(), constant.bytes);
  }
  return std::make_shared<Kernel>(std::move(module), *kernel);
}

std::vector<int> buffer_indices(const Kernel& kernel) {
  std::vector<int> indices;
  for (const Parameter& p : kernel.parameters())
    if (p.source == Source::Buffer && p.used) indices.push_back(static_cast<int>(p.index));
  return indices;
}

int max_threads(const Kernel& kernel) {
  Limits& l = limits();
  const std::lock_guard lock(l.mutex);
  int threads = static_cast<int>(kernel.entry().max_threads);
  for (const auto& [part, limit] : l.threads) {
    if (kernel.name().find(part) != std::string::npos) threads = std::min(threads, limit);
  }
  return threads;
}

void set_max_threads(const std::string& name_part, int threads) {
  Limits& l = limits();
  const std::lock_guard lock(l.mutex);
  if (threads > 0) {
    l.threads[name_part] = threads;
  } else {
    l.threads.erase(name_part);
  }
}

void run_and_tell(const Kernel& kernel, Size grid, Size group, const std::map<int, Buffer>& buffers,
                  Counters& counters, std::vector<Finding>& findings) {
  const auto refuse = [&](const std::string& text) {
    throw std::invalid_argument("kernel " + kernel.name() + ": " + text);
  };
  const size_t threads = group.x * group.y * group.z;
  if (threads == 0 || grid.x * grid.y * grid.z == 0) refuse("the grid is empty");
  const int limit = max_threads(kernel);
  if (threads > static_cast<size_t>(limit)) {
    refuse(std::to_string(threads) + " threads per threadgroup; the pipeline allows " +
           std::to_string(limit));
  }
  for (const Parameter& p : kernel.parameters()) {
    if (p.source != Source::Buffer || !p.used) continue;
    const auto bound = buffers.find(static_cast<int>(p.index));
    if (bound == buffers.end() || bound->second.data == nullptr) {
      refuse("nothing is bound at buffer index " + std::to_string(p.index) + " (" + p.name + ")");
    }
  }
  for (const auto& [index, buffer] : buffers) {
    if (index < 0 || index >= kMaxBuffers) {
      refuse("buffer index " + std::to_string(index) + "; there are 0 to " +
             std::to_string(kMaxBuffers - 1));
    }
  }
  static thread_local std::unique_ptr<Executor> executor;
  if (!executor) executor = std::make_unique<Executor>();
  executor->run(kernel, grid, group, buffers, counters, findings);
  publish(kernel.name(), counters, findings);
}

void run(const Kernel& kernel, Size grid, Size group, const std::map<int, Buffer>& buffers) {
  Counters counters;
  std::vector<Finding> findings;
  run_and_tell(kernel, grid, group, buffers, counters, findings);
}

}  // namespace softmetal
