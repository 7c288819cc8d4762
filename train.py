"""The command line of lit-baselines.

    python train.py fit -c configs/vqa/easy_vqa.yaml             train, then test the best checkpoint
    python train.py fit -c CONFIG --ckpt_path last               go on where the newest run of this name stopped
    python train.py test -c runs/.../config.yaml --ckpt_path runs/.../checkpoints/best.ckpt
    python train.py fit --help                                   every option

Everything lives in experiments/cli.py; `configs/base.yaml` is always underneath, later `-c` files and options win.
"""

from experiments.cli import main

if __name__ == "__main__":
    main()
