"""The command line of lit-baselines.

    python train.py fit -c configs/vqa/easy_vqa.yaml             train, then test the best checkpoint
    python train.py fit -c CONFIG --ckpt_path last               resume the newest run of this name
    python train.py test -c runs/.../config.yaml --ckpt_path runs/.../checkpoints/best.ckpt
    python train.py fit --help                                   every option
    python train.py compare runs/vqa/easy_vqa                    runs side by side, mean ± std over seeds
    python train.py sweep configs/sweeps/vqa.yaml                many runs from one file
    python train.py restore scan.png                             somebody's own damaged picture, beside it

Everything lives in experiments/cli.py; `configs/base.yaml` is always underneath, later `-c` files and options win.
"""

import sys

from experiments.arguments import run_command

if __name__ == "__main__" and not run_command(sys.argv[1:]):  # comparing and sweeping need not wait for Lightning
    from experiments.cli import main

    main()
