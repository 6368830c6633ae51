"""From windows to activations. In the order in which they are met:

model_name, model_files, model_identity   which model a name stands for, what its files hold
load_errors, misfits, loading             it is loaded as its checkpoint is, or refused
placement, hookpoints, source, sources    where it is put, and where it is read
weight_digests, limits                    what it is known by, and what it can read
batching, lanes, workers, forwards        windows in batches, read by several models at once
report, harvest                           activations at every pair, and what that took
batched_generation, answering             answers that a model writes to prompts, many at once
"""
