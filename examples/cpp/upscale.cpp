// SPDX-License-Identifier: Apache-2.0
// Upscales a PNG without Python: ditn-upscale PACKAGE LIBRARY INPUT.png OUTPUT.png
//
// PACKAGE is what `ditn export --format aoti --uint8` wrote; LIBRARY holds the kernels that it calls, and
// `ditn_kernels.native_libraries()` says where it is.
#include <dlfcn.h>
#include <png.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace {

// [1, H, W, 3] in 0..255.
torch::Tensor read_png(const char* path) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&image, path)) throw std::runtime_error(std::string(path) + ": " + image.message);
  image.format = PNG_FORMAT_RGB;
  torch::Tensor pixels = torch::empty({1, image.height, image.width, 3}, torch::kUInt8);
  const png_color white{255, 255, 255};  // what is transparent is laid upon
  if (!png_image_finish_read(&image, &white, pixels.data_ptr(), 0, nullptr)) {
    throw std::runtime_error(std::string(path) + ": " + image.message);
  }
  return pixels;
}

void write_png(const char* path, const torch::Tensor& pixels) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.height = static_cast<png_uint_32>(pixels.size(1));
  image.width = static_cast<png_uint_32>(pixels.size(2));
  image.format = PNG_FORMAT_RGB;
  if (!png_image_write_to_file(&image, path, 0, pixels.const_data_ptr(), 0, nullptr)) {
    throw std::runtime_error(std::string(path) + ": " + image.message);
  }
}

void upscale(const char* package, const char* library, const char* input, const char* output) {
  // The library announces its operators to torch while it is opened.
  if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader model(package);
  const auto facts = model.get_metadata();
  const auto layout = facts.find("layout");
  if (layout == facts.end() || layout->second != "uint8 NHWC") {
    throw std::runtime_error(std::string(package) + ": expected a package of `ditn export --format aoti --uint8`");
  }
  const torch::Tensor pixels = read_png(input);
  const torch::Tensor enlarged = model.run({pixels}).at(0).contiguous();
  write_png(output, enlarged);
  std::printf("%s: %lld x %lld, x%s, weights %s\n", output, static_cast<long long>(enlarged.size(2)),
              static_cast<long long>(enlarged.size(1)), facts.at("scale").c_str(), facts.at("source").c_str());
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: %s PACKAGE LIBRARY INPUT.png OUTPUT.png\n", arguments[0]);
    return 2;
  }
  try {
    const torch::InferenceMode inference;
    upscale(arguments[1], arguments[2], arguments[3], arguments[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[0], error.what());
    return 1;
  }
  return 0;
}
