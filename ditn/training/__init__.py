# SPDX-License-Identifier: Apache-2.0
"""From a folder of images to weights: the recipe, the images and what degrades them, the step, and the run around it.
`train.py` is where to begin."""
