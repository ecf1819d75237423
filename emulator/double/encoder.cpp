// MLX's command encoder as far as the order and the life of memory depend on it, with a finding where a rule is
// broken that a GPU would answer with wrong results, or Metal with an abort.
#include <cstring>
#include <stdexcept>

#include "mlx/backend/metal/device.h"
#include "work.h"

namespace MTL {

void CommandBuffer::addCompletedHandler(const HandlerFunction& handler) {
  if (committed_)
    mlx::core::metal::found("host-commit", "", "a handler is added to a committed command buffer");
  handlers_.push_back(handler);
}

std::vector<HandlerFunction> CommandBuffer::commit() {
  if (committed_) mlx::core::metal::found("host-commit", "", "a command buffer is committed twice");
  committed_ = true;
  return std::exchange(handlers_, {});
}

}  // namespace MTL

namespace mlx::core::metal {

namespace {

constexpr int kMaxBytes = 4096;  // that can be bound without a buffer

const void* identity(const array& x) { return x.buffer().ptr(); }

using Used = std::unordered_map<const void*, std::weak_ptr<array::Data>>;

bool has(const Used& used, const Binding& b) {
  const auto found = used.find(b.buffer);
  return found != used.end() && found->second.lock() == b.owner.lock();
}

}  // namespace

CommandEncoder::CommandEncoder(Device& d)
    : device_(d), buffer_(std::make_shared<MTL::CommandBuffer>()), work_(std::make_shared<Work>()) {
}

void CommandEncoder::bind_array(const array& x, int index, int64_t offset, bool writable) {
  const auto& owner = x.data_shared_ptr();
  if (!owner)
    throw std::invalid_argument("[metal::CommandEncoder] an array without memory is bound");
  if (index < 0 || index >= softmetal::kMaxBuffers)
    throw std::invalid_argument("[metal::CommandEncoder] no buffer index " + std::to_string(index));
  for (Owners* some : {&ended_, &earlier_})
    std::erase_if(*some, [](const auto& old) { return old.expired(); });
  here_.push_back(owner);
  for (const auto& old : ended_)
    if (old.lock() == owner)
      found("host-fence", "",
            "index " + std::to_string(index) +
                " is bound to a temporary of an encoder that has ended: no fence orders the two");
  Binding b;
  b.owner = owner;
  b.buffer = identity(x);
  b.begin = const_cast<char*>(x.data<char>()) - x.offset();
  b.size = x.buffer_size();
  b.offset = x.offset() + offset;
  b.writable = writable;
  if (b.offset < 0 || size_t(b.offset) >= std::max<size_t>(b.size, 1))
    found("host-offset", "",
          "index " + std::to_string(index) + " is bound at byte " + std::to_string(b.offset) +
              " of a buffer of " + std::to_string(b.size));
  table_[index] = std::move(b);
}

void CommandEncoder::bind_bytes(const void* data, size_t bytes, int index) {
  if (bytes > kMaxBytes)
    found("host-bytes", "",
          "index " + std::to_string(index) + ": " + std::to_string(bytes) +
              " bytes are set; Metal takes " + std::to_string(kMaxBytes));
  Binding b;
  const auto* begin = static_cast<const char*>(data);
  b.bytes = std::make_shared<std::vector<char>>(begin, begin + bytes);
  table_[index] = std::move(b);
}

// MLX orders dispatches by what it is told here: a barrier comes before one that uses an output of one before it.
// (From 0.32 on also before one that writes an input of one before it; 0.31 did not, and must be enough.)
void CommandEncoder::set_input_array(const array& x, int index, int64_t offset) {
  bind_array(x, index, offset, false);
  if (bound_.insert(identity(x)).second) sizes_ += x.data_size();
  if (before_.count(identity(x))) needs_barrier_ = true;
}

void CommandEncoder::set_output_array(array& x, int index, int64_t offset) {
  set_input_array(x, index, offset);
  register_output_array(x);
  Binding& b = table_[index];
  b.writable = true;
  const auto known = [&](const Binding& f) { return f.buffer == b.buffer; };
  if (!inputs_.count(b.buffer) && std::none_of(work_->fresh.begin(), work_->fresh.end(), known))
    work_->fresh.push_back(b);
}

void CommandEncoder::register_output_array(const array& x) { pending_.insert(identity(x)); }

// MLX holds them until the command buffer is done; here they need only last until their work is.
void CommandEncoder::add_temporary(array x) {
  for (const auto& old : earlier_)
    if (old.lock() == x.data_shared_ptr()) {
      found("host-fence", "",
            "memory that an encoder before this one uses becomes a temporary: no fence orders the "
            "two");
      break;
    }
  temporaries_.push_back(x.data_shared_ptr());
  work_->kept.push_back(x.data_shared_ptr());
}

void CommandEncoder::add_temporaries(std::vector<array> arrays) {
  for (array& x : arrays) add_temporary(std::move(x));
}

void CommandEncoder::barrier() {
  read_.clear();
  written_.clear();
}

void CommandEncoder::maybeInsertBarrier() {
  if (needs_barrier_) {
    barrier();
    before_.clear();
    needs_barrier_ = false;
  }
  before_.insert(pending_.begin(), pending_.end());
  pending_.clear();
}

// Whether dispatches that no barrier separates use the same memory: by the argument table, which may hold what was
// bound for an earlier dispatch.
void CommandEncoder::check_hazards() {
  Used reads, writes;
  for (int index : softmetal::buffer_indices(*pipeline_->kernel)) {
    const auto bound = table_.find(index);
    if (bound == table_.end() || !bound->second.buffer) continue;
    const Binding& b = bound->second;
    if (has(written_, b) || (b.writable && has(read_, b)))
      found("host-hazard", pipeline_->name,
            "index " + std::to_string(index) +
                " is memory that a dispatch before it uses, with no barrier between them");
    (b.writable ? writes : reads)[b.buffer] = b.owner;
  }
  for (const auto& [buffer, owner] : reads) read_[buffer] = owner;
  for (const auto& [buffer, owner] : writes) written_[buffer] = owner;
}

void CommandEncoder::dispatch_threadgroups(MTL::Size grid, MTL::Size group) {
  if (!pipeline_) throw std::logic_error("[metal::CommandEncoder] no pipeline is set");
  maybeInsertBarrier();
  check_hazards();
  ++ops_;
  if (grid.width * grid.height * grid.depth == 0)
    found("host-grid", pipeline_->name, "an empty grid is dispatched");
  const NS::UInteger threads = group.width * group.height * group.depth;
  if (threads > pipeline_->maxTotalThreadsPerThreadgroup())
    found("host-threads", pipeline_->name,
          std::to_string(threads) + " threads are dispatched; the pipeline takes " +
              std::to_string(pipeline_->maxTotalThreadsPerThreadgroup()));
  Job job{.pipeline = pipeline_,
          .grid = grid,
          .group = group,
          .table = {},
          .handlers = {},
          .buffer = {}};
  for (int index : softmetal::buffer_indices(*pipeline_->kernel))
    if (const auto bound = table_.find(index); bound != table_.end()) job.table.insert(*bound);
  work_->jobs.push_back(std::move(job));
}

void CommandEncoder::end_encoding(bool) {
  ended_.insert(ended_.end(), temporaries_.begin(), temporaries_.end());
  temporaries_.clear();
  earlier_.insert(earlier_.end(), here_.begin(), here_.end());
  here_.clear();
  table_.clear();
  pipeline_ = nullptr;
  bound_.clear();
  before_.clear();
  pending_.clear();
  needs_barrier_ = false;
  barrier();
}

bool CommandEncoder::needs_commit() const {
  const auto [ops, megabytes] = device_.get_max_ops_mb_per_buffer();
  return ops_ > ops || (sizes_ >> 20) > size_t(megabytes);
}

void CommandEncoder::commit(std::function<void()> completion) {
  if (!table_.empty())
    found("host-commit", "", "a command buffer is committed while its encoder is open");
  if (completion) buffer_->addCompletedHandler([completion](MTL::CommandBuffer*) { completion(); });
  Job handlers;
  handlers.handlers = buffer_->commit();
  handlers.buffer = buffer_;
  work_->jobs.push_back(std::move(handlers));
  record_commit(ops_);
  buffer_ = std::make_shared<MTL::CommandBuffer>();
  ops_ = 0;
  sizes_ = 0;
}

void CommandEncoder::start_primitive(std::unordered_set<const void*> inputs) {
  inputs_ = std::move(inputs);
}

std::shared_ptr<Work> CommandEncoder::finish_primitive() {
  inputs_.clear();
  return std::exchange(work_, std::make_shared<Work>());
}

}  // namespace mlx::core::metal
