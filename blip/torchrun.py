"""`python -m blip.torchrun ...`: torchrun, which ends with the exit code of its processes.

torchrun itself always ends with 1; whoever starts it again must know a user's error (2), which comes again, from
a pre-emption (143) or a lost process (75), which pass. To lose the nodes' meeting point, or to come to it when they
are leaving, is a lost process, too.
"""

import sys
from collections.abc import Iterable

from blip.errors import TERMINATED, BlipError, LostPeerError

USER_ERROR, LOST_PEER = BlipError.exit_code, LostPeerError.exit_code


def main() -> int:
    """Run torchrun with this process's arguments; give its exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: TID251
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: TID251
    from torch.distributed.elastic.rendezvous import (  # noqa: TID251
        RendezvousError,
        RendezvousTimeoutError,
    )
    from torch.distributed.run import main as torchrun  # noqa: TID251

    try:
        torchrun()
    except ChildFailedError as error:
        return exit_code(failure.exitcode for failure in error.failures.values())
    except SignalException as error:
        return 128 + error.sigval
    except RendezvousTimeoutError as error:
        sys.stderr.write(f"blip: the nodes have not come together: {error}\n")
        return 1
    except RendezvousError:
        sys.stderr.write("blip: has lost the other nodes; the same command meets them again\n")
        return LOST_PEER
    return 0


def exit_code(codes: Iterable[int]) -> int:
    """Give the code that tells most of several processes: the cause rather than who suffered from it.

    Args:
        codes: Those that are not 0; -n for signal n.
    """
    shown = [128 - code if code < 0 else code for code in codes]
    last = [USER_ERROR, *(set(shown) - {USER_ERROR, TERMINATED, LOST_PEER}), TERMINATED, LOST_PEER]
    return next(code for code in last if code in shown)


if __name__ == "__main__":
    sys.exit(main())
