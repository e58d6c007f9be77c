"""When requests are sent: seconds from the start of the load, one for each of N requests."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmir.errors import OptionError

Process = Literal["poisson", "gamma", "constant"]
PROCESSES: tuple[Process, ...] = ("poisson", "gamma", "constant")


def arrival_times(
    count: int,
    request_rate: float,
    process: Process,
    burstiness: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """float64 [count], not decreasing, in seconds.

    request_rate   requests per second; inf: all at 0
    process        poisson: gaps of an exponential distribution; gamma: gaps of a gamma
                   distribution of shape `burstiness` and the same mean (below 1 in bursts, 1 as
                   poisson, above 1 more even); constant: equal gaps
    rng            gives the gaps

    The gaps are scaled so that the last request arrives at count / request_rate: every seed
    offers the same load.  Raises OptionError.
    """
    if not request_rate > 0:
        raise OptionError(f"the request rate must be above 0, not {request_rate:g}")
    if not 0 < burstiness < math.inf:
        raise OptionError(f"burstiness must be above 0 and finite, not {burstiness:g}")
    if burstiness != 1 and process != "gamma":
        raise OptionError(f"burstiness is of the gamma process; the process is {process}")
    if math.isinf(request_rate) or count == 0:
        return np.zeros(count)
    if process == "constant":
        gaps = np.ones(count)
    elif process == "poisson":
        gaps = rng.exponential(size=count)
    else:
        gaps = rng.gamma(burstiness, size=count)
    times = np.cumsum(gaps)
    # A gamma of a tiny shape may give nothing but zeros.
    scale = count / request_rate / times[-1] if times[-1] > 0 else 0.0
    return times * scale
