// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>

#include "sizes.h"
#include "workspace.h"

namespace ditn::tensorrt {

namespace {

using namespace nvinfer1;

constexpr const char* kNorms[] = {"none", "tanh", "layernorm"};  // in the order of Norm

std::atomic<ILoggerFinder*> logger_finder;

void report(const char* message) {
  ILoggerFinder* finder = logger_finder;
  ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger) return logger->log(ILogger::Severity::kERROR, message);
  std::fprintf(stderr, "%s\n", message);
}

// What TensorRT calls must not throw: it is told that something failed, and the log says what.
template <class Result, class Work>
Result attempt(Result failed, const Work& work) noexcept {
  try {
    return work();
  } catch (const std::exception& error) {
    report(error.what());
    return failed;
  }
}

void run(const Operator& op, const Options& options, DataType type, const Sizes& sizes, cuda::Device& device,
         const void* const* inputs, void* output) {
  const Call call{device, sizes.shape(), inputs, output, static_cast<int>(sizes['E']), options};
  (type == DataType::kHALF ? op.run_half : op.run_float)(call);
}

// Throws for what the kernels do not take.
size_t workspace(const Operator& op, const Options& options, DataType type, const Sizes& sizes) {
  if (sizes['C'] > op.most_channels) {
    throw std::runtime_error(std::string(op.name) + " takes at most " + std::to_string(op.most_channels) + " channels, not " +
                             std::to_string(sizes['C']));
  }
  MeasuredWorkspace device;
  const std::vector<const void*> inputs(op.inputs.size());
  run(op, options, type, sizes, device, inputs.data(), nullptr);
  return device.bytes();
}

Sizes largest(const Operator& op, const DynamicPluginTensorDesc* inputs, int32_t count) {
  return Sizes(op, count, [&](int i) { return inputs[i].max; });
}

Sizes given(const Operator& op, const PluginTensorDesc* inputs, int32_t count) {
  return Sizes(op, count, [&](int i) { return inputs[i].dims; });
}

Options options_of(const Operator& op, const PluginFieldCollection& fields) {
  const auto field = [&](const char* name, PluginFieldType type, const char* must_be) -> const PluginField& {
    for (int i = 0; i < fields.nbFields; ++i) {
      const PluginField& found = fields.fields[i];
      if (!std::strcmp(found.name, name) && found.type == type && found.data && found.length) return found;
    }
    throw std::runtime_error(std::string(op.name) + ": the field " + name +
                             " is missing or of another type, must be " + must_be);
  };
  const PluginField& text = field("norm", PluginFieldType::kCHAR, "a string");
  // Its length may count the zero at its end, or not.
  const std::string norm(static_cast<const char*>(text.data), strnlen(static_cast<const char*>(text.data), text.length));
  const auto found = std::find(std::begin(kNorms), std::end(kNorms), norm);
  if (found == std::end(kNorms)) {
    throw std::runtime_error(std::string(op.name) + ": norm is '" + norm + "', must be none, tanh or layernorm");
  }
  Options options{static_cast<Norm>(found - kNorms), 0};
  if (!op.patch_sizes.empty()) {
    options.patch_size = *static_cast<const int32_t*>(field("patch_size", PluginFieldType::kINT32, "one 32-bit integer").data);
    if (std::find(op.patch_sizes.begin(), op.patch_sizes.end(), options.patch_size) == op.patch_sizes.end()) {
      std::string sizes;
      for (int size : op.patch_sizes) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
      throw std::runtime_error(std::string(op.name) + ": patch_size is " + std::to_string(options.patch_size) +
                               ", must be one of " + sizes);
    }
  }
  return options;
}

const char* name_of(Norm norm) { return kNorms[static_cast<int>(norm)]; }

}  // namespace

Plugin::Plugin(const Operator& op, Options options)
    : op_(op), options_(options),
      described_(std::string("norm=") + name_of(options.norm) + ",patch_size=" + std::to_string(options.patch_size)) {
  const char* norm = name_of(options_.norm);
  fields_.emplace_back("norm", norm, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(norm)));
  if (!op.patch_sizes.empty()) fields_.emplace_back("patch_size", &options_.patch_size, PluginFieldType::kINT32, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
  return attempt<IPluginV3*>(nullptr, [&] { return new Plugin(*this); });
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t) const noexcept {
  outputs[0] = inputs[0];
  return 0;
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs,
                                int32_t, IExprBuilder&) noexcept {
  return attempt(1, [&] {
    Sizes(op_, input_count, [&](int i) {
      Dims dims{inputs[i].nbDims, {}};
      for (int k = 0; k < dims.nbDims; ++k) {
        dims.d[k] = inputs[i].d[k]->isConstant() ? inputs[i].d[k]->getConstantValue() : -1;
      }
      return dims;
    });
    outputs[0] = inputs[0];
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* all, int32_t, int32_t) noexcept {
  const PluginTensorDesc& asked = all[position].desc;
  const DataType map = all[0].desc.type;
  return asked.format == TensorFormat::kLINEAR && asked.type == map && (map == DataType::kHALF || map == DataType::kFLOAT);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                                int32_t) noexcept {
  return attempt(1, [&] {
    workspace(op_, options_, inputs[0].desc.type, largest(op_, inputs, input_count));
    return 0;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
  return attempt<size_t>(0, [&] {
    return workspace(op_, options_, inputs[0].desc.type, largest(op_, inputs, input_count));
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*, int32_t) noexcept {
  return attempt(1, [&] {
    const Sizes sizes = given(op_, inputs, input_count);
    const int patch = options_.patch_size;
    if (patch && (sizes['H'] % patch || sizes['W'] % patch)) {
      throw std::runtime_error(std::string(op_.name) + ": a map of " + std::to_string(sizes['H']) + "x" +
                               std::to_string(sizes['W']) + " is not a grid of " + std::to_string(patch) + "-pixel patches");
    }
    workspace(op_, options_, inputs[0].type, sizes);
    return 0;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* memory, cudaStream_t stream) noexcept {
  return attempt(1, [&] {
    Workspace device(memory, stream);
    const Sizes sizes = given(op_, input_descs, static_cast<int32_t>(op_.inputs.size()));
    run(op_, options_, input_descs[0].type, sizes, device, inputs, outputs[0]);
    return 0;
  });
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &collection_; }

Creator::Creator(const Operator& op) : op_(op) {
  fields_.emplace_back("norm", nullptr, PluginFieldType::kCHAR, 0);
  if (!op.patch_sizes.empty()) fields_.emplace_back("patch_size", nullptr, PluginFieldType::kINT32, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

IPluginV3* Creator::createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept {
  return attempt<IPluginV3*>(nullptr, [&] { return new Plugin(op_, options_of(op_, *fields)); });
}

}  // namespace ditn::tensorrt

// What IPluginRegistry::loadLibrary looks for.
extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using ditn::tensorrt::Creator;
  static const auto creators = [] {
    std::vector<std::unique_ptr<Creator>> all;
    for (const auto& op : ditn::tensorrt::operators()) all.push_back(std::make_unique<Creator>(op));
    return all;
  }();
  static const std::vector<nvinfer1::IPluginCreatorInterface*> pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> all;
    for (const auto& creator : creators) all.push_back(creator.get());
    return all;
  }();
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  ditn::tensorrt::logger_finder = finder;
}

}  // extern "C"
