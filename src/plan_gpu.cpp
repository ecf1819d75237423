#include "src/plan_gpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/plan_cuda.h"

namespace sdpa {

namespace {

// A split costs a partial result that is written and read again.
constexpr int kMinSplitKeys = 256;
constexpr int kMaxSplits = 128;

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Keys {
  int begin, end;
};

// Of `keys` those that some row of the positions [first, last] sees.
Keys seen(const Problem& p, Keys keys, int first, int last) {
  if (!p.causal) return keys;
  const int64_t end = std::min<int64_t>(keys.end, int64_t(p.q_offset) + last + 1);
  int64_t begin = keys.begin;
  if (p.window) begin = std::max<int64_t>(begin, int64_t(p.q_offset) + first + 1 - p.window);
  return begin < end ? Keys{int(begin), int(end)} : Keys{keys.begin, keys.begin};
}

class Cutter {
 public:
  Cutter(const Problem& p, const Device& device, Plan& plan)
      : p_(p), plan_(plan), tile_(plan.tile), group_(p.Hq / p.Hkv),
        block_flops_(2. * tile_.bq * tile_.bk * (tile_.d_max + tile_.dv_max)),
        most_flops_(device.dispatch_flops > 0 ? device.dispatch_flops
                                              : std::numeric_limits<double>::infinity()),
        fill_(device.fill) {
    all_ = seen(p, {0, p.Lk}, 0, p.Lq - 1);
    all_.begin -= all_.begin % tile_.bk;  // whole blocks, as without a window
  }

  void run(const Device& device) {
    choose_keys(device);
    plan_.chunks = 0;
    const int first = all_.begin / plan_.chunk_keys;
    for (int64_t begin = int64_t(first) * plan_.chunk_keys;; begin += plan_.chunk_keys) {
      const Keys chunk{std::max(int(begin), all_.begin),
                       int(std::min<int64_t>(begin + plan_.chunk_keys, all_.end))};
      cut(plan_.chunks++, chunk);
      if (begin + plan_.chunk_keys >= all_.end) break;
    }
    for (const Dispatch& d : plan_.dispatches)
      plan_.longest_flops = std::max(plan_.longest_flops, d.flops);
  }

 private:
  int heads() const { return p_.B * p_.Hkv; }

  // The splits that keep the GPU busy, and chunks short enough for one tile of one head to be one dispatch.
  void choose_keys(const Device& device) {
    const int Lk = std::max(p_.Lk, 1);
    plan_.chunk_keys = p_.chunk_size > 0 ? std::min(p_.chunk_size, Lk) : Lk;
    const int span = std::min(all_.end - all_.begin, plan_.chunk_keys);
    const int64_t units = int64_t(heads()) * plan_.row_tiles;
    const int64_t partial = int64_t(p_.B) * p_.Hq * p_.Lq * (p_.Dv + 1) * int64_t(sizeof(float));
    int64_t splits = 1;
    if (device.backend == Backend::cuda) {
      splits = cuda_splits(plan_, device, units, span, partial);
    } else if (units > 0 && units < device.fill) {
      const int64_t most = std::min<int64_t>(span / kMinSplitKeys, kMaxSplits);
      splits = std::min(ceil_div(2 * int64_t(device.fill), units), most);
      if (device.memory > 0) splits = std::min(splits, device.memory / partial);
    }

    // what one dispatch has room for, of one tile of one head
    const double blocks = std::floor(most_flops_ / block_flops_);
    const int64_t room = blocks >= double(Lk) / tile_.bk
                             ? round_up(Lk, tile_.bk)
                             : std::max<int64_t>(int64_t(blocks), 1) * tile_.bk;
    if (splits > 1) {
      plan_.split_keys = int(std::min(round_up(ceil_div(span, splits), tile_.bk), room));
      plan_.chunk_keys = int(std::min<int64_t>(
          plan_.chunk_keys, std::max(splits, int64_t(kMaxSplits)) * plan_.split_keys));
      plan_.splits = int(ceil_div(std::min(span, plan_.chunk_keys), plan_.split_keys));
    } else {
      const int positions = (tile_.bq - 1) / group_ + 2;  // of a tile, wherever it starts
      const int64_t longest =
          p_.window ? std::min<int64_t>(span, int64_t(p_.window) + positions + tile_.bk) : span;
      if (longest > room) plan_.chunk_keys = int(std::min<int64_t>(plan_.chunk_keys, room));
      plan_.split_keys = plan_.chunk_keys;
      plan_.splits = 1;
    }
    plan_.tasks = units * plan_.splits;
  }

  // Work of a tile of one head on some of the keys.
  double work(int row_tile, Keys keys) const {
    const int64_t row0 = int64_t(row_tile) * tile_.bq;
    const int64_t last = std::min<int64_t>(row0 + tile_.bq, p_.rows()) - 1;
    const Keys range = seen(p_, keys, int(row0 / group_), int(last / group_));
    return block_flops_ * double(ceil_div(range.end - range.begin, tile_.bk));
  }

  // The dispatches of a chunk: over heads; if all tiles of one head are too many, over tiles; if one tile is, over
  // its splits. All of one head come one after the other: they read the same keys.
  void cut(int chunk, Keys keys) {
    if (heads() == 0 || plan_.row_tiles == 0) return;
    const int splits =
        plan_.splits > 1 ? std::max(int(ceil_div(keys.end - keys.begin, plan_.split_keys)), 1) : 1;
    std::vector<double> tile_work(size_t(plan_.row_tiles));  // all splits of a tile of one head
    double head_work = 0;
    for (int t = 0; t < plan_.row_tiles; ++t) {
      for (int s = 0; s < splits; ++s) tile_work[t] += work(t, split(keys, s));
      head_work += tile_work[t];
    }
    if (head_work <= most_flops_) {
      const double fit = head_work > 0 ? std::floor(most_flops_ / head_work) : heads();
      const int64_t parts = fit >= heads() ? 1 : ceil_div(heads(), int64_t(fit));
      const int step = int(ceil_div(heads(), parts));
      for (int h = 0; h < heads(); h += step) {
        const int n = std::min(step, heads() - h);
        add(chunk, keys, {0, plan_.row_tiles}, {h, n}, {0, splits}, n * head_work);
      }
      return;
    }
    for (int h = 0; h < heads(); ++h) {
      for (int t = 0; t < plan_.row_tiles;) {
        double sum = tile_work[t];
        int n = 1;
        while (t + n < plan_.row_tiles && sum + tile_work[t + n] <= most_flops_)
          sum += tile_work[t + n++];
        // whole waves: the last threadgroups of a dispatch would else run on a GPU that idles for the most part
        for (const int waves = n > fill_ && t + n < plan_.row_tiles ? n - n % fill_ : n; n > waves;)
          sum -= tile_work[t + --n];
        if (sum <= most_flops_) {
          add(chunk, keys, {t, n}, {h, 1}, {0, splits}, sum);
        } else {
          cut_splits(chunk, keys, t, h, splits);
        }
        t += n;
      }
    }
  }

  void cut_splits(int chunk, Keys keys, int row_tile, int head, int splits) {
    for (int s = 0; s < splits;) {
      double sum = work(row_tile, split(keys, s));
      int n = 1;
      for (; s + n < splits; ++n) {
        const double next = work(row_tile, split(keys, s + n));
        if (sum + next > most_flops_) break;
        sum += next;
      }
      add(chunk, keys, {row_tile, 1}, {head, 1}, {s, n}, sum);
      s += n;
    }
  }

  Keys split(Keys keys, int s) const {
    if (plan_.splits == 1) return keys;
    const int64_t begin = keys.begin + int64_t(s) * plan_.split_keys;
    return {int(std::min<int64_t>(begin, keys.end)),
            int(std::min<int64_t>(begin + plan_.split_keys, keys.end))};
  }

  struct Some {
    int first, count;
  };

  void add(int chunk, Keys keys, Some row_tiles, Some heads, Some splits, double flops) {
    const int begin = split(keys, splits.first).begin;
    const int end = split(keys, splits.first + splits.count - 1).end;
    plan_.dispatches.push_back({
        .chunk = chunk,
        .split0 = splits.first,
        .part = {.row_tile0 = row_tiles.first,
                 .row_tiles = row_tiles.count,
                 .head0 = heads.first,
                 .heads = heads.count,
                 .key0 = begin,
                 .key1 = end,
                 .split_keys = plan_.splits > 1 ? plan_.split_keys : std::max(end - begin, 1),
                 .splits = splits.count,
                 .with_sinks = p_.sinks && chunk == 0 && splits.first == 0,
                 .with_carry = (chunk > 0 || p_.carry) && splits.first == 0},
        .flops = flops,
    });
  }

  const Problem& p_;
  Plan& plan_;
  const Tile& tile_;
  const int group_;
  const double block_flops_;  // of a tile and one block of keys
  const double most_flops_;
  const int fill_;
  Keys all_;  // keys that any row sees
};

}  // namespace

Device apple_gpu(const std::string& arch) {
  return {.backend = Backend::metal, .arch = arch, .fill = 20, .dispatch_flops = 2e11};
}

void plan_gpu(const Problem& p, const Device& device, Plan& out) {
  out.threads = out.tile.threads();
  out.threadgroup_bytes = out.tile.threadgroup_bytes(p.dtype);
  if (device.backend == Backend::cuda) plan_cuda_launch(p, device, out);
  Cutter(p, device, out).run(device);
}

}  // namespace sdpa
