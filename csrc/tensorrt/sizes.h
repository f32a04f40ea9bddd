// SPDX-License-Identifier: Apache-2.0
// What the letters in the axes of an operator's inputs stand for.
#pragma once

#include <NvInfer.h>

#include <cctype>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "operators.h"

namespace ditn::tensorrt {

class Sizes {
 public:
  // dims(i) is the shape of input i; an axis below 0 is not known yet. Throws std::runtime_error with the input's name, its
  // shape and the right one.
  template <class DimsOf>
  Sizes(const Operator& op, int count, const DimsOf& dims) : op_(op) {
    if (count != static_cast<int>(op.inputs.size())) {
      throw std::runtime_error(std::string(op.name) + " takes " + std::to_string(op.inputs.size()) + " inputs, not " +
                               std::to_string(count));
    }
    for (int i = 0; i < count; ++i) bind(op.inputs[i], dims(i));
  }

  // 0 if no input says.
  int64_t operator[](char letter) const {
    const auto found = of_.find(letter);
    return found == of_.end() ? 0 : found->second;
  }

  Shape shape() const { return {(*this)['B'], (*this)['H'], (*this)['W'], static_cast<int>((*this)['C'])}; }

 private:
  void bind(const Input& input, const nvinfer1::Dims& dims) {
    std::istringstream axes(input.axes);
    std::string axis;
    int i = 0;
    for (; axes >> axis; ++i) {
      if (i >= dims.nbDims || !fits(axis, dims.d[i])) break;
    }
    if (!axes.eof() || i != dims.nbDims) throw std::runtime_error(wrong(input, dims));
  }

  // Whether an axis, "3" or "C" or "2E", can be so long. Who is the first to name a letter gives it its value.
  bool fits(const std::string& axis, int64_t length) {
    if (length < 0) return true;
    const char letter = axis.back();
    if (std::isdigit(letter)) return length == std::stoi(axis);
    const int64_t factor = axis.size() == 1 ? 1 : std::stoi(axis);
    const auto [known, first] = of_.try_emplace(letter, length / factor);
    return known->second * factor == length;
  }

  std::string wrong(const Input& input, const nvinfer1::Dims& dims) const {
    std::ostringstream text;
    text << op_.name << ": " << input.name << " is [";
    for (int i = 0; i < dims.nbDims; ++i) text << (i ? ", " : "") << dims.d[i];
    text << "], must be [" << input.axes << "]";
    for (const auto& [letter, size] : of_) text << ", " << letter << " = " << size;
    return text.str();
  }

  const Operator& op_;
  std::map<char, int64_t> of_;
};

}  // namespace ditn::tensorrt
