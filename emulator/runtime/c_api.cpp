// What emulator/device.py calls. Results are JSON, in memory that it gives back.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "coverage.h"
#include "kernel.h"

#define SOFTMETAL_C extern "C" __attribute__((visibility("default")))

using softmetal::Counters;
using softmetal::Finding;

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 32) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string json(const Counters& c) {
  const auto field = [](const char* name, uint64_t value) {
    return quoted(name) + ": " + std::to_string(value);
  };
  return "{" + field("dispatches", c.dispatches) + ", " + field("threadgroups", c.threadgroups) +
         ", " + field("threads", c.threads) + ", " + field("multiplies", c.multiplies) + ", " +
         field("device_read_bytes", c.device_read_bytes) + ", " +
         field("device_write_bytes", c.device_write_bytes) + ", " +
         field("constant_read_bytes", c.constant_read_bytes) + ", " +
         field("threadgroup_read_bytes", c.threadgroup_read_bytes) + ", " +
         field("threadgroup_write_bytes", c.threadgroup_write_bytes) + ", " +
         field("threadgroup_barriers", c.threadgroup_barriers) + ", " +
         field("simdgroup_barriers", c.simdgroup_barriers) + ", " + field("shuffles", c.shuffles) +
         ", " + field("reductions", c.reductions) + ", " + field("exp2", c.exp2) + ", " +
         field("threadgroup_memory_bytes", c.threadgroup_memory_bytes) + "}";
}

std::string json(const softmetal::Size& s) {
  return "[" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + "]";
}

std::string json(const std::vector<Finding>& findings) {
  std::string out = "[";
  for (const Finding& f : findings) {
    out += (out.size() > 1 ? ", " : "") + std::string("{\"kind\": ") + quoted(f.kind) +
           ", \"kernel\": " + quoted(f.kernel) + ", \"where\": " + quoted(f.where) +
           ", \"message\": " + quoted(f.message) + ", \"threadgroup\": " + json(f.threadgroup) +
           ", \"thread\": " + json(f.thread) + ", \"count\": " + std::to_string(f.count) + "}";
  }
  return out + "]";
}

char* copy(const std::string& text) { return strdup(text.c_str()); }

// Calls f and gives its text; what it throws becomes *error.
template <class F>
auto guarded(char** error, F f) -> decltype(f()) {
  *error = nullptr;
  try {
    return f();
  } catch (const std::exception& e) {
    *error = copy(e.what());
    return decltype(f()){};
  }
}

using LibraryHandle = std::shared_ptr<softmetal::Library>;
using KernelHandle = std::shared_ptr<softmetal::Kernel>;

}  // namespace

struct SoftmetalBinding {
  int index;
  int writable;
  void* data;
  size_t bytes, before;
};

SOFTMETAL_C void softmetal_c_free(void* text) { std::free(text); }

SOFTMETAL_C void* softmetal_c_open(const char* path) {
  return new LibraryHandle(softmetal::open_library(path));
}

SOFTMETAL_C void softmetal_c_close_library(void* library) {
  delete static_cast<LibraryHandle*>(library);
}

SOFTMETAL_C void softmetal_c_close_kernel(void* kernel) {
  delete static_cast<KernelHandle*>(kernel);
}

SOFTMETAL_C char* softmetal_c_names(void* library, char** error) {
  return guarded(error, [&] {
    std::string out = "[";
    for (const auto& name : softmetal::kernel_names(**static_cast<LibraryHandle*>(library))) {
      out += (out.size() > 1 ? ", " : "") + quoted(name);
    }
    return copy(out + "]");
  });
}

SOFTMETAL_C void* softmetal_c_specialise(void* library, const char* name, int count,
                                         const int* indices, const int* sizes,
                                         const uint8_t* values, char** error) {
  return guarded(error, [&]() -> void* {
    std::map<int, std::vector<uint8_t>> constants;
    for (int i = 0; i < count; ++i) {
      constants[indices[i]].assign(values, values + sizes[i]);
      values += sizes[i];
    }
    return new KernelHandle(
        softmetal::specialise(*static_cast<LibraryHandle*>(library), name, constants));
  });
}

SOFTMETAL_C char* softmetal_c_parameters(void* kernel) {
  std::string out = "[";
  for (const auto& p : (*static_cast<KernelHandle*>(kernel))->parameters()) {
    if (p.source != softmetal::Source::Buffer) continue;
    out += (out.size() > 1 ? ", " : "") + std::string("{\"name\": ") + quoted(p.name) +
           ", \"index\": " + std::to_string(p.index) +
           ", \"used\": " + (p.used ? "true" : "false") +
           ", \"writable\": " + (p.writable ? "true" : "false") + "}";
  }
  return copy(out + "]");
}

SOFTMETAL_C int softmetal_c_max_threads(void* kernel) {
  return softmetal::max_threads(**static_cast<KernelHandle*>(kernel));
}

SOFTMETAL_C void softmetal_c_set_max_threads(const char* name_part, int threads) {
  softmetal::set_max_threads(name_part, threads);
}

SOFTMETAL_C char* softmetal_c_run(void* kernel, const size_t* grid, const size_t* group, int count,
                                  const SoftmetalBinding* bindings, char** error) {
  return guarded(error, [&] {
    std::map<int, softmetal::Buffer> buffers;
    for (int i = 0; i < count; ++i) {
      const SoftmetalBinding& b = bindings[i];
      buffers[b.index] = {b.data, b.bytes, b.writable != 0, b.before};
    }
    Counters counters;
    std::vector<Finding> findings;
    softmetal::run_and_tell(**static_cast<KernelHandle*>(kernel), {grid[0], grid[1], grid[2]},
                            {group[0], group[1], group[2]}, buffers, counters, findings);
    return copy("{\"counters\": " + json(counters) + ", \"findings\": " + json(findings) + "}");
  });
}

SOFTMETAL_C char* softmetal_c_take_report() {
  const softmetal::Report report = softmetal::take_report();
  std::string kernels = "{";
  for (const auto& [name, counters] : report.kernels) {
    kernels += (kernels.size() > 1 ? ", " : "") + quoted(name) + ": " + json(counters);
  }
  return copy("{\"counters\": " + json(report.counters) +
              ", \"findings\": " + json(report.findings) + ", \"kernels\": " + kernels + "}}");
}

SOFTMETAL_C void softmetal_c_poison(void* data, size_t bytes) { softmetal::poison(data, bytes); }

SOFTMETAL_C void softmetal_c_forget(void* data, size_t bytes) { softmetal::forget(data, bytes); }

SOFTMETAL_C char* softmetal_c_coverage() { return copy(softmetal::coverage_text()); }
