// Mask arrays, read through their strides: broadcast dimensions stay at stride 0.
#pragma once

#include "kernels/cpu/rows.h"

namespace sdpa::cpu::SDPA_ISA {

// What a mask array does to a tile.
enum class Cover { Hidden, Partial, Open };

namespace mask_detail {

// How a mask element hides a key, or leaves its score as it is.
struct BoolRule {
  static SDPA_INLINE bool hides(uint8_t x) { return x == 0; }
  static SDPA_INLINE bool opens(uint8_t x) { return x != 0; }
  static SDPA_INLINE float bias(uint8_t x) { return x ? 0.f : -kInf; }
};
template <typename T, typename Bits, Bits kMinusInf>
struct AddRule {
  static SDPA_INLINE bool hides(Bits x) { return x == kMinusInf; }
  static SDPA_INLINE bool opens(Bits x) {
    return (x & Bits(~(Bits(1) << (8 * sizeof(Bits) - 1)))) == 0;
  }  // +-0
  static SDPA_INLINE float bias(Bits x) { return widen(bits_as<T>(x)); }
};

// Calls f(rule, element type) for the mask's element type.
template <class F>
SDPA_INLINE auto visit(const Params& p, F f) {
  if (p.mask == MaskKind::Bool) return f(BoolRule{}, uint8_t{});
  if (p.mask_dtype == DType::F32) return f(AddRule<float, uint32_t, 0xff800000u>{}, uint32_t{});
  if (p.mask_dtype == DType::F16) return f(AddRule<f16, uint16_t, 0xfc00>{}, uint16_t{});
  return f(AddRule<bf16, uint16_t, 0xff80>{}, uint16_t{});
}

}  // namespace mask_detail

// Whether the tile of the task's rows and the keys [key, key + n) is hidden, open or neither.
inline Cover mask_cover(const Params& p, const Operands& x, const Task& t, int key, int n) {
  return mask_detail::visit(p, [&](auto rule, auto element) {
    using E = decltype(element);
    // All heads of the group are looked at, though the first and last position may lack some: a superset is safe.
    const int iq0 = t.row0 / p.group, iq1 = (t.row0 + t.rows - 1) / p.group;
    const int positions = p.Ms.row == 0 ? 1 : iq1 - iq0 + 1;
    const int heads = p.Ms.head == 0 ? 1 : p.group;
    const int columns = p.Ms.col == 0 ? 1 : n;
    const E* base = static_cast<const E*>(x.mask) + t.b * p.Ms.batch +
                    int64_t(t.hkv) * p.group * p.Ms.head + iq0 * p.Ms.row + key * p.Ms.col;
    bool hidden = true, open = true;
    for (int i = 0; i < positions; ++i) {
      for (int h = 0; h < heads; ++h) {
        const E* m = base + i * p.Ms.row + h * p.Ms.head;
        int hides = 0, opens = 0;
        if (p.Ms.col == 1) {
          for (int j = 0; j < columns; ++j) hides += rule.hides(m[j]), opens += rule.opens(m[j]);
        } else {
          for (int j = 0; j < columns; ++j)
            hides += rule.hides(m[j * p.Ms.col]), opens += rule.opens(m[j * p.Ms.col]);
        }
        hidden &= hides == columns;
        open &= opens == columns;
        if (!hidden && !open) return Cover::Partial;
      }
    }
    return hidden ? Cover::Hidden : open ? Cover::Open : Cover::Partial;
  });
}

// What the mask adds to the scores of one row of a tile, -inf where it hides the key.
class MaskRows {
 public:
  MaskRows(const Params& p, const Operands& x, int b, int key, int n, float* bias)
      : p_(p), x_(x), b_(b), key_(key), n_(n), bias_(bias) {}

  // bias [n] of the row; rows that share a mask row (broadcast heads or positions) are read once.
  const float* operator()(Row row) {
    const int64_t offset = row.head * p_.Ms.head + row.iq * p_.Ms.row;
    if (!held_ || offset != offset_) read(offset);
    held_ = true;
    offset_ = offset;
    return bias_;
  }

 private:
  void read(int64_t offset) {
    mask_detail::visit(p_, [&](auto rule, auto element) {
      using E = decltype(element);
      const E* m = static_cast<const E*>(x_.mask) + b_ * p_.Ms.batch + key_ * p_.Ms.col + offset;
      if (p_.Ms.col == 1) {
        for (int j = 0; j < n_; ++j) bias_[j] = rule.bias(m[j]);
      } else {
        for (int j = 0; j < n_; ++j) bias_[j] = rule.bias(m[j * p_.Ms.col]);
      }
    });
  }

  const Params& p_;
  const Operands& x_;
  const int b_, key_, n_;
  float* bias_;
  bool held_ = false;
  int64_t offset_ = 0;
};

}  // namespace sdpa::cpu::SDPA_ISA
