"""Common part of all runs of mmpretrain, which count in epochs."""

_base_ = "./common_runtime.py"

default_scope = "mmpretrain"

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=100),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="auto"),
    visualization=dict(type="VisualizationHook", enable=False),
)
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
