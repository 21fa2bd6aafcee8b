"""Let PyPI's CUDA-linked torchvision, torchaudio and torchcodec wheels import beside a CPU-only torch.

PyPI serves only CUDA builds of the three for linux/x86_64. Their extension modules need libtorch_cuda.so, so that
  * `import torchvision` dies of "operator torchvision::nms does not exist" (it registers meta kernels for operators
    that its missing extension would have defined), which transformers reports as a missing PreTrainedModel;
  * `import torchaudio` (LLaMA-Factory, unconditionally) dies of an OSError, "Could not load this library";
  * `import torchcodec` raises OSError or RuntimeError where vLLM and transformers expect ImportError.
None of the extensions is needed for images: resizing uses torch's own interpolation.

Install: copy this file into site-packages, beside a file `torch_cpu_shim.pth` with the line `import torch_cpu_shim`.
It costs nothing until one of the three is imported, and changes nothing where torch was built for CUDA or ROCm, or
where the extension does load. Measured with torch 2.13.0+cpu, torchvision 0.28.0, torchaudio 2.11.0, torchcodec
0.17.0.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `import typing` would cost every start of this Python some milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


def _cpu_torch() -> bool:
    """Whether the installed torch can use neither CUDA nor ROCm. Called while a torch library is being imported."""
    import torch

    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def _skip_without_ops(load: Callable[[], None], module: ModuleType) -> None:
    if sys.modules["torchvision.extension"]._has_ops():
        load()


def _forgive_unloadable(load: Callable[[], None], module: ModuleType) -> None:
    load()
    stock = vars(module)["_load_lib"]

    def load_lib(lib: str) -> bool:
        try:
            return bool(stock(lib))
        except OSError:
            return False  # torchaudio's own answer for "the extension was not built"

    vars(module)["_load_lib"] = load_lib


def _as_import_error(load: Callable[[], None], module: ModuleType) -> None:
    try:
        load()
    except (OSError, RuntimeError) as error:
        raise ImportError(f"{module.__name__} was built for another torch: {str(error)[:200]}") from error


_HOOKS: dict[str, Callable[[Callable[[], None], ModuleType], None]] = {
    "torchvision._meta_registrations": _skip_without_ops,
    "torchvision._autograd_registrations": _skip_without_ops,
    "torchaudio._extension.utils": _forgive_unloadable,
    "torchcodec": _as_import_error,
}


class _Loader:
    """The stock loader of one module, with a hook around the execution of its body."""

    def __init__(self, inner: Any, hook: Callable[[Callable[[], None], ModuleType], None]) -> None:
        self.inner, self.hook = inner, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_module(self, spec: Any) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # torch is looked at here and not in find_spec: transformers probes with find_spec before anything needs torch.
        if _cpu_torch():
            self.hook(lambda: self.inner.exec_module(module), module)
        else:
            self.inner.exec_module(module)


class Finder:
    """Meta path finder that answers for the modules in `_HOOKS` only."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        hook = _HOOKS.get(name)
        if hook is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, hook)
            spec.loader = loader
        return spec


if not any(type(finder).__name__ == "Finder" and type(finder).__module__ == __name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
