// The node of the MLX graph that computes the gradients of attention.
#pragma once

#include <mlx/primitives.h>

#include "src/attention.h"

namespace sdpa {

// Inputs: q, k, v [, mask] [, sinks] as Sdpa has them, its outputs out and lse, and the cotangents of both.
// Outputs: dq, dk, dv [, dsinks [B, Hq] in float32, of each batch]. There is none of the mask.
//
// out and lse only save work, as they follow from the other inputs: derivatives of this node leave them alone and run
// through stock operations, with all scores in memory.
class SdpaBackward : public mx::Primitive {
 public:
  SdpaBackward(mx::Stream stream, Attributes attributes)
      : Primitive(stream), attributes_(attributes) {}

  // Whether a kernel computes these gradients of an Sdpa node on that stream.
  static bool serves(const std::vector<mx::array>& primals, const Attributes&,
                     const std::vector<int>& argnums, mx::Stream);
  // The gradients of Sdpa's inputs `argnums`; zeros of a bool mask.
  static std::vector<mx::array> gradients(const std::vector<mx::array>& primals,
                                          const std::vector<mx::array>& cotangents,
                                          const std::vector<int>& argnums,
                                          const std::vector<mx::array>& outputs, const Attributes&,
                                          mx::Stream);

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override;
  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override { return "SdpaBackward"; }

 private:
  static std::vector<mx::array> make(std::vector<mx::array> inputs, const Attributes&, mx::Stream);

  Attributes attributes_;
};

}  // namespace sdpa
