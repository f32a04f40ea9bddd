// SPDX-License-Identifier: Apache-2.0
// Calls the plugins as TensorRT does, for the tests, which call this with ctypes. See tests/tensorrt_host.py.
#include <cstring>
#include <string>
#include <vector>

#include "NvInfer.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {

using namespace nvinfer1;

// An axis is known where its least and its most are the same.
struct Tensor {
  int32_t type, format, rank;
  int64_t least[Dims::MAX_DIMS], most[Dims::MAX_DIMS];
  void* data;
};

std::string logged;

class Logger : public ILogger, public ILoggerFinder {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) logged = message;
  }
  ILogger* findLogger() override { return this; }
};

class Expression : public IDimensionExpr {
 public:
  explicit Expression(int64_t value, bool constant) : value_(value), constant_(constant) {}
  bool isConstant() const noexcept override { return constant_; }
  int64_t getConstantValue() const noexcept override { return constant_ ? value_ : INT64_MIN; }

 private:
  int64_t value_;
  bool constant_;
};

// The plugins' shapes are those of an input: they have no business here.
class NoExpressions : public IExprBuilder {
  const IDimensionExpr* constant(int64_t) noexcept override { return nullptr; }
};

Dims dims_of(const Tensor& tensor, const int64_t* lengths) {
  Dims dims{tensor.rank, {}};
  std::copy_n(lengths, tensor.rank, dims.d);
  return dims;
}

PluginTensorDesc described(const Tensor& tensor, Dims dims) {
  return {dims, static_cast<DataType>(tensor.type), static_cast<TensorFormat>(tensor.format), -1.0f};
}

// With the least lengths, which are the lengths of a tensor that exists.
std::vector<PluginTensorDesc> fixed(const Tensor* tensors, int count) {
  std::vector<PluginTensorDesc> all;
  for (int i = 0; i < count; ++i) all.push_back(described(tensors[i], dims_of(tensors[i], tensors[i].least)));
  return all;
}

std::vector<DynamicPluginTensorDesc> dynamic(const Tensor* tensors, int count) {
  std::vector<DynamicPluginTensorDesc> all;
  for (int i = 0; i < count; ++i) {
    const Dims least = dims_of(tensors[i], tensors[i].least), most = dims_of(tensors[i], tensors[i].most);
    Dims dims = most;
    for (int k = 0; k < dims.nbDims; ++k) {
      if (least.d[k] != most.d[k]) dims.d[k] = -1;
    }
    all.push_back({described(tensors[i], dims), least, most, most});
  }
  return all;
}

IPluginCreatorV3One* creator(int index) {
  int32_t count = 0;
  return static_cast<IPluginCreatorV3One*>(getCreators(count)[index]);
}

template <class Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

IPluginV3OneBuild* build(IPluginV3* plugin) { return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

}  // namespace

extern "C" {

void start() {
  static Logger logger;
  setLoggerFinder(&logger);
}

const char* last_error() {
  static std::string last;
  last.swap(logged);
  logged.clear();
  return last.c_str();
}

int creator_count() {
  int32_t count = 0;
  getCreators(count);
  return count;
}

const char* creator_text(int index, int what) {
  const IPluginCreatorV3One* c = creator(index);
  const char* texts[] = {c->getPluginName(), c->getPluginVersion(), c->getPluginNamespace(), c->getInterfaceInfo().kind};
  return texts[what];
}

const PluginFieldCollection* creator_fields(int index) { return creator(index)->getFieldNames(); }

IPluginV3* create(int index, const PluginFieldCollection* fields, int phase) {
  return creator(index)->createPlugin("layer", fields, static_cast<TensorRTPhase>(phase));
}

IPluginV3* clone(IPluginV3* plugin) { return plugin->clone(); }
IPluginV3* attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }
void destroy(IPluginV3* plugin) { delete plugin; }
const PluginFieldCollection* serialized(IPluginV3* plugin) { return runtime(plugin)->getFieldsToSerialize(); }

const char* plugin_text(IPluginV3* plugin, int what) {
  const auto* core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  const char* texts[] = {core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace(),
                         build(plugin)->getTimingCacheID()};
  return texts[what];
}

int output_type(IPluginV3* plugin, const Tensor* tensors, int count) {
  std::vector<DataType> types;
  for (int i = 0; i < count; ++i) types.push_back(static_cast<DataType>(tensors[i].type));
  DataType output;
  if (build(plugin)->getNbOutputs() != 1 || build(plugin)->getOutputDataTypes(&output, 1, types.data(), count)) return -1;
  return static_cast<int>(output);
}

// Writes 10 * input + axis for every axis of the output, -1 for what is no input's axis. Returns their number, or -1.
int output_axes(IPluginV3* plugin, const Tensor* tensors, int count, int* axes) {
  std::vector<std::vector<Expression>> expressions(count);
  std::vector<DimsExprs> inputs(count);
  for (int i = 0; i < count; ++i) {
    const Tensor& t = tensors[i];
    for (int k = 0; k < t.rank; ++k) expressions[i].emplace_back(t.most[k], t.least[k] == t.most[k]);
    inputs[i].nbDims = t.rank;
    for (int k = 0; k < t.rank; ++k) inputs[i].d[k] = &expressions[i][k];
  }
  DimsExprs output;
  NoExpressions none;
  if (build(plugin)->getOutputShapes(inputs.data(), count, nullptr, 0, &output, 1, none)) return -1;
  for (int o = 0; o < output.nbDims; ++o) {
    axes[o] = -1;
    for (int i = 0; i < count; ++i) {
      for (int k = 0; k < inputs[i].nbDims; ++k) {
        if (output.d[o] == inputs[i].d[k]) axes[o] = 10 * i + k;
      }
    }
  }
  return output.nbDims;
}

bool supports(IPluginV3* plugin, int position, const Tensor* tensors, int count) {
  const auto all = dynamic(tensors, count);
  return build(plugin)->supportsFormatCombination(position, all.data(), count - 1, 1);
}

int configure(IPluginV3* plugin, const Tensor* tensors, int count) {
  const auto all = dynamic(tensors, count);
  return build(plugin)->configurePlugin(all.data(), count - 1, &all[count - 1], 1);
}

size_t workspace(IPluginV3* plugin, const Tensor* tensors, int count) {
  const auto all = dynamic(tensors, count);
  return build(plugin)->getWorkspaceSize(all.data(), count - 1, &all[count - 1], 1);
}

int shape_change(IPluginV3* plugin, const Tensor* tensors, int count) {
  const auto all = fixed(tensors, count);
  return runtime(plugin)->onShapeChange(all.data(), count - 1, &all[count - 1], 1);
}

int enqueue(IPluginV3* plugin, const Tensor* tensors, int count, void* memory) {
  const auto all = fixed(tensors, count);
  std::vector<void*> data;
  for (int i = 0; i < count; ++i) data.push_back(tensors[i].data);
  return runtime(plugin)->enqueue(all.data(), &all[count - 1], data.data(), &data[count - 1], memory, nullptr);
}

}  // extern "C"
