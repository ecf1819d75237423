// Fibers: the threads of a threadgroup take turns on one OS thread.
#pragma once

#include <cstddef>

namespace softmetal {

// A stack that is not running. Starts in `entry`, which must never return.
struct Fiber {
  void* stack_pointer = nullptr;
};

// Saves what runs now as `from` and continues `to`.
#if defined(__x86_64__) && !defined(SOFTMETAL_UCONTEXT)
extern "C" void softmetal_switch(void** save, void* load) __attribute__((visibility("hidden")));
inline void switch_fiber(Fiber& from, Fiber& to) {
  softmetal_switch(&from.stack_pointer, to.stack_pointer);
}
#else
void switch_fiber(Fiber& from, Fiber& to);
#endif

// Memory for stacks, each above a page that faults.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  void reserve(int count);  // throws std::bad_alloc
  void start(Fiber& fiber, int index, void (*entry)()) const;

 private:
  char* memory_ = nullptr;
  int count_ = 0;
};

}  // namespace softmetal
