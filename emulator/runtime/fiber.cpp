#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(SOFTMETAL_UCONTEXT)
#include <ucontext.h>
#endif

namespace softmetal {

#if defined(__x86_64__) && !defined(SOFTMETAL_UCONTEXT)

// 3 ns, where swapcontext, which asks the kernel for the signal mask, takes 250.
asm(R"(
.text
.globl softmetal_switch
.hidden softmetal_switch
.type softmetal_switch, @function
softmetal_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size softmetal_switch, .-softmetal_switch
)");
static void start_fiber(Fiber& fiber, void* stack, size_t bytes, void (*entry)()) {
  auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;  // entry's return address, so that its stack is aligned as after a call
  *--words = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--words = nullptr;
  fiber.stack_pointer = words;
}

#else

// The context of a fiber lies at the foot of its stack; that of the OS thread is made when needed.
static void start_fiber(Fiber& fiber, void* stack, size_t bytes, void (*entry)()) {
  auto* context = static_cast<ucontext_t*>(stack);
  getcontext(context);
  context->uc_stack.ss_sp = context + 1;
  context->uc_stack.ss_size = bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  fiber.stack_pointer = context;
}

void switch_fiber(Fiber& from, Fiber& to) {
  static thread_local ucontext_t outside;
  if (from.stack_pointer == nullptr) from.stack_pointer = &outside;
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer),
              static_cast<ucontext_t*>(to.stack_pointer));
}

#endif

namespace {

constexpr size_t kStack = 256 * 1024;

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t stride() { return kStack + page(); }

}  // namespace

Stacks::~Stacks() {
  if (memory_) munmap(memory_, stride() * count_);
}

void Stacks::reserve(int count) {
  if (count <= count_) return;
  void* memory = mmap(nullptr, stride() * count, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  if (memory_) munmap(memory_, stride() * count_);
  memory_ = static_cast<char*>(memory);
  count_ = count;
  for (int i = 0; i < count; ++i) mprotect(memory_ + stride() * i, page(), PROT_NONE);
}

// Tops are spread over the sets of the first cache: at distances of whole pages, the lanes of a
// simdgroup would share a few.
void Stacks::start(Fiber& fiber, int index, void (*entry)()) const {
  start_fiber(fiber, memory_ + stride() * index + page(), kStack - 128 * (index % 32), entry);
}

}  // namespace softmetal
