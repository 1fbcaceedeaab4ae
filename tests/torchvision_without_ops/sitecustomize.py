"""Lets torchvision's Python part be imported where its compiled operators do not load, as with a CPU build of torch
beside a CUDA build of torchvision. Its transforms need none of them. On PYTHONPATH it acts on any script."""

import importlib.util
import sys


def define_missing_operators() -> None:
    if importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        global library  # alive as long as its operators
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "sitecustomize":
    define_missing_operators()
