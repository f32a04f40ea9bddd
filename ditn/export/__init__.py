# SPDX-License-Identifier: Apache-2.0
"""A network as one file for other runtimes: ONNX, TensorRT's plugins, torch.export and AOTInductor. `export.py` writes
and checks a file, whatever its format."""
