"""Trains a small classifier on sharded parameters, one epoch and, after a resumption, another. For torchrun.

    torchrun --nproc-per-node 2 sharded_training.py FOLDER
"""

import sys

from mmengine.config import Config

from fma_mm import cli


def make_config(work_dir, epochs, batch_size, **options):
    """The config of a training on 64 digits in their order, without any randomness."""
    loader = dict(
        batch_size=batch_size, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
        dataset=dict(
            type="HandwrittenDigits", split="train", indices=64,
            pipeline=[dict(type="Resize", scale=(32, 32)), dict(type="PackInputs")],
        ),
    )  # fmt: skip
    arch = dict(embed_dims=16, depths=(1, 1, 1), num_heads=(1, 2, 2))
    patches = dict(patch_sizes=(7, 3, 3), strides=(4, 2, 2))
    backbone = dict(type="FMA2D", arch=arch, img_size=32, **patches, cell_sizes=2, drop_path_rate=0.0)
    head = dict(type="LinearClsHead", num_classes=10, in_channels=64)
    return Config(
        dict(
            default_scope="mmpretrain", work_dir=str(work_dir), randomness=dict(seed=0),
            model=dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head),
            data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3),
            train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=epochs),
            # Far below the norm of the gradients, so that every step is clipped.
            optim_wrapper=dict(optimizer=dict(type="Adam", lr=1e-3), clip_grad=dict(max_norm=0.02)),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
            visualizer=dict(type="Visualizer", vis_backends=[]), **options,
        )
    )  # fmt: skip


def main(work_dir):
    for epochs in (1, 2):
        cfg = make_config(
            work_dir, epochs, 16, runner_type="FlexibleRunner", strategy=dict(type="FullyShardedStrategy"),
            launcher="pytorch", resume=epochs > 1, experiment_name=f"epochs{epochs}",
        )  # fmt: skip
        cli.use_cpus(cfg)
        cli.build_runner(cfg).train()


if __name__ == "__main__":
    main(sys.argv[1])
