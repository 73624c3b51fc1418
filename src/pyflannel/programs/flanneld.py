"""flanneld: joins this host to a flannel network."""

import os
import sys

from pyflannel.programs.own_process import leave_out_openssl


def main() -> int:
    """Run until a signal; return 0 after a signal, 1 if flanneld cannot run here, 2 for a wrong command
    line.
    """
    leave_out_openssl(sys.argv[1:], os.environ)
    from pyflannel.programs.flanneld_run import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
