"""What `torch.sdaa` is: torch.cuda's functions that the vendor's code uses, on the stand-in.

SDAA_SIMULATOR_LOST names a device that is there and does not answer.
"""

import os

import torch
from torch import Tensor

_simulator = torch.ops.sdaa_simulator
_MEMORY = 1 << 34  # bytes that a device claims to have; nothing holds to it


def _index(device: "int | str | torch.device | None") -> int:
    if device is None:
        return int(_simulator.current_device())
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return int(_simulator.current_device()) if index is None else index


def _lazy_init() -> None:
    """Torch calls this before the first tensor."""


def _is_in_bad_fork() -> bool:
    return False


def is_initialized() -> bool:
    return True


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return int(_simulator.device_count())


def current_device() -> int:
    return int(_simulator.current_device())


def set_device(device: "int | str | torch.device") -> None:
    if str(_index(device)) == os.environ.get("SDAA_SIMULATOR_LOST"):
        raise RuntimeError("sdaaErrorDeviceLost: heartbeat of the device is gone")
    _simulator.set_device(_index(device))


class device:  # noqa: N801 - the vendor's name
    """Make a device the current one for a while."""

    def __init__(self, device: "int | str | torch.device") -> None:
        self._index = _index(device)
        self._before = -1

    def __enter__(self) -> None:
        self._before = current_device()
        set_device(self._index)

    def __exit__(self, *_: object) -> None:
        set_device(self._before)


def synchronize(device: "int | torch.device | None" = None) -> None:
    assert _index(device) < device_count()


def empty_cache() -> None:
    pass


def Event(*, enable_timing: bool = False) -> torch.Event:  # noqa: N802 - the vendor's name
    """A torch.Event itself: of a subclass torch takes no elapsed time."""
    return torch.Event("sdaa", enable_timing=enable_timing)


def Stream(device: "int | torch.device | None" = None) -> torch.Stream:  # noqa: N802 - as above
    return torch.Stream(torch.device("sdaa", _index(device)))


def current_stream(device: "int | torch.device | None" = None) -> torch.Stream:
    return Stream(device)


default_stream = current_stream


class stream:  # noqa: N801 - the vendor's name
    """Give work to a stream for a while: here all work is over when the call returns."""

    def __init__(self, stream: torch.Stream) -> None:
        assert stream.device.type == "sdaa", stream

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def initial_seed() -> int:
    return int(_simulator.initial_seed(current_device()))


def manual_seed(seed: int) -> None:
    _simulator.seed(current_device(), seed & (2**63 - 1))


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        _simulator.seed(index, seed & (2**63 - 1))


def get_rng_state(device: "int | torch.device | None" = None) -> Tensor:
    return _simulator.rng_state(_index(device))


def set_rng_state(state: Tensor, device: "int | torch.device | None" = None) -> None:
    _simulator.set_rng_state(_index(device), state)


def get_rng_state_all() -> list[Tensor]:
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(states: list[Tensor]) -> None:
    for index, state in enumerate(states):
        set_rng_state(state, index)


class _Generator:
    """A device's own generator, as far as code that saves and seeds it goes."""

    def __init__(self, index: int) -> None:
        self._index = index

    def manual_seed(self, seed: int) -> "_Generator":
        _simulator.seed(self._index, seed & (2**63 - 1))
        return self

    def initial_seed(self) -> int:
        return int(_simulator.initial_seed(self._index))

    def get_state(self) -> Tensor:
        return get_rng_state(self._index)

    def set_state(self, state: Tensor) -> None:
        set_rng_state(state, self._index)


default_generators = [_Generator(index) for index in range(device_count())]


def memory_allocated(device: "int | torch.device | None" = None) -> int:
    return int(_simulator.memory(_index(device)))


def max_memory_allocated(device: "int | torch.device | None" = None) -> int:
    return int(_simulator.peak(_index(device)))


def reset_peak_memory_stats(device: "int | torch.device | None" = None) -> None:
    _simulator.reset_peak(_index(device))


class _Properties:
    name = "SIMULATED SPA"
    total_memory = _MEMORY


def get_device_properties(device: "int | torch.device | None" = None) -> _Properties:
    assert _index(device) < device_count()
    return _Properties()


def get_amp_supported_dtype() -> list[torch.dtype]:
    """What torch.autocast asks a device's module."""
    return [torch.float16]
