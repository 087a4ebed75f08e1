"""Training an APC model.

arguments      parse_arguments: the command line of train_apc.py
objective      apc_loss, Objective: the L1 distance to the frame n steps ahead
optimization   make_optimizer, LearningRate, NonfiniteGuard, seed_step
validation     validation_losses
checkpoints    read_checkpoint, load_weights: any APC checkpoint
s3prl_frames   options_of, spec_of: how s3prl's configuration describes frames
progress       Progress: where a run is, and when it ends
checkpointing  Checkpointer: save and resume a run
experiment     Experiment: the directory of a run
metrics        Curves, EpochBar: TensorBoard and the progress bar
figures        draw_epoch
distributed    Ranks: one process or several
"""
