"""``torchrun --nproc_per_node=N -m upfusion.train ...`` is ``upfusion train ...`` in each process."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv = ["upfusion", "train", *sys.argv[1:]]
    # By name: training does not import the command line, which imports it.
    runpy.run_module("upfusion", run_name="__main__", alter_sys=True)
